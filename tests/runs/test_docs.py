"""The documentation is built without a warning, loads nothing from elsewhere, and describes every public name."""

import re
import subprocess
import sys

import griffe
import pytest
from common import ROOT

import selfdeblur

REFERENCE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
DESCRIBED = re.findall(r"^::: (\S+)$", REFERENCE, re.M)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built pages by their names."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    built = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


@pytest.fixture(scope="module")
def package():
    return griffe.load("selfdeblur", search_paths=[str(ROOT)], docstring_parser="numpy", resolve_aliases=True)


@pytest.mark.processes
def test_pages_are_built_and_load_nothing_from_elsewhere(site):
    pages = {path.name: path.read_text(encoding="utf-8") for path in site.glob("*.html")}
    sources = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert {f"{name}.html" for name in sources | {"notebook"}} <= set(pages)
    for name, text in pages.items():
        assert "{{" not in text, name
        loaded = re.findall(r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"([^\"]*)\"", text)
        assert len(loaded) > 3
        for address in loaded:
            assert not re.match(r"(?:https?:)?//", address), (name, address)
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.search(r"url\([\"']?(?:https?:)?//|@import", styles)


@pytest.mark.processes
def test_sections_of_the_readme_are_on_the_pages(site):
    assert "What goes in comes out" in (site / "picture.html").read_text(encoding="utf-8")
    presets = (site / "presets.html").read_text(encoding="utf-8")
    for name in selfdeblur.PRESETS:
        assert f"<code>{name}</code></td>" in presets, name
    reference = (site / "python.html").read_text(encoding="utf-8")
    for name in DESCRIBED:
        assert f'id="{name}"' in reference, name


def test_every_public_name_is_in_the_reference():
    assert {f"selfdeblur.{name}" for name in selfdeblur.__all__} <= set(DESCRIBED)
    assert len(DESCRIBED) == len(set(DESCRIBED))


@pytest.mark.parametrize("name", [*DESCRIBED, "selfdeblur.deepinv.SelfDeblur.forward"])
def test_docstrings_are_whole(package, name):
    """Every parameter, result and attribute of what the reference describes has words, and so has each error."""
    item = package[name.removeprefix("selfdeblur.")]
    item = item.final_target if item.is_alias else item
    assert item.docstring, name
    sections = {part.kind.value: part.value for part in item.docstring.parsed}
    for kind in ("parameters", "returns", "raises", "attributes"):
        for entry in sections.get(kind, ()):
            assert len(entry.description.strip()) > 8, f"{name}: {entry}"
    if item.is_function:
        in_signature = {parameter.name for parameter in item.parameters} - {"self"}
        described = {part for entry in sections["parameters"] for part in re.split(r",\s*", entry.name.lstrip("*"))}
        assert described == in_signature
        assert "returns" in sections
