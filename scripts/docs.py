"""What MkDocs calls while it builds the documentation, see mkdocs.yml: parts of other files become parts of pages.

A line ``{{ README: Title }}`` of a page stands for the section of that title in README.md, which thus is written once.
The notebook becomes a page, and the README's figure can be shown.
"""

import html
import json
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
SECTION = re.compile(r"^\{\{ README: (.+) \}\}$", re.M)
FIGURES = {"gallery.png": "results/gallery.png"}
NOTEBOOK = ROOT / "examples" / "one_picture.ipynb"


def on_files(files, config):
    """Add what lies outside docs/."""
    for name, source in FIGURES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, NOTEBOOK.name, abs_src_path=str(NOTEBOOK)))
    files.append(File.generated(config, "notebook.md", content=notebook_page(NOTEBOOK)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Put in the sections of the README."""
    pages = {
        slug(title): file.src_uri
        for file in files.documentation_pages()
        for title in SECTION.findall(file.content_string)
    }
    return SECTION.sub(lambda match: section(match[1], pages), markdown)


def section(title, pages):
    """A section of the README without its heading; ``pages`` are those on which its sections can be read."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", readme, re.M | re.S)
    if not found:
        raise ValueError(f"README.md has no section {title!r}")

    def link(match):
        text, target = match[1], match[2]
        if target.startswith("https://"):
            return match[0]
        if target.startswith("#") and target[1:] in pages:
            return f"[{text}]({pages[target[1:]]})"
        return text  # a file of the repository, which is no page

    return re.sub(r"\[([^\]]+)\]\(([^)]+)\)", link, found[1])


def slug(title):
    """The anchor of a heading of the README."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def notebook_page(path):
    """A notebook as Markdown, with the outputs that it was saved with."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                png = "".join(data["image/png"]).replace("\n", "")
                parts.append(f'<img alt="output of the cell above" src="data:image/png;base64,{png}">')
            elif text := "".join(output.get("text") or data.get("text/plain") or ()):
                parts.append(f"<pre>{html.escape(text)}</pre>")
    parts.append(f"[This page as a notebook]({path.name})")
    return "\n\n".join(parts) + "\n"
