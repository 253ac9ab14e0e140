"""What the documents name exists, and the figures they give are those of the tables."""

import contextlib
import io
import json
import re
import runpy
import shlex
import statistics
import sys

import pytest
from common import ROOT

from selfdeblur import PRESETS
from selfdeblur.__main__ import COMMANDS, main
from selfdeblur.data.benchmarks import LEVIN
from selfdeblur.runs.command import _parser
from selfdeblur.scores.tables import read_csv
from selfdeblur.settings import QUICK

NAMES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "datasets/README.md", "results/README.md")
LOG = sorted((ROOT / "benchmarks" / "log").glob("*.md"))
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [*(ROOT / name for name in NAMES), ROOT / "benchmarks" / "README.md", *LOG, *PAGES]
# Pages of the documentation that are made while it is built, see scripts/docs.py.
GENERATED = {"notebook.md", "gallery.png"}
# Made by runs or fetched, so not part of a checkout.
MADE = (
    "datasets/levin",
    "datasets/lai",
    "datasets/sample",
    "results/levin",
    "results/lai/",
    "results/sample/",
    "build/",
)

# The rows behind the README's table of presets.
OF_PRESET = {"fast": "fast", "best": "best", "release": "release, tf32, GPU"}


def text_of(path):
    return path.read_text(encoding="utf-8")


README = text_of(ROOT / "README.md")
PAGE = text_of(ROOT / "benchmarks" / "README.md")


def section(text, title):
    """What stands under a heading of the second level."""
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.M | re.S).group(1)


def table(text, first):
    """Rows of the table whose first column has this title, as lists of cells."""
    lines = text[re.search(rf"^\| {re.escape(first)} \|", text, re.M).start() :].split("\n")
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[: _end(lines)]]
    return rows[2:]


def _end(lines):
    return next((n for n, line in enumerate(lines) if not line.startswith("|")), len(lines))


# Links, files, lines


def anchors(path):
    """The anchors of a document's headings, as they are made on the web pages of repositories."""
    headings = re.findall(r"^#+ (.+)$", text_of(path), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)]+)\)", text_of(path)):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        if path in PAGES and name in GENERATED:
            continue
        target = path.parent / name if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_exist(path):
    for name in re.findall(r"`([\w./-]+/[\w./-]*|\w+\.(?:py|sh|m|cff|toml|txt|csv|png))`", text_of(path)):
        if name.startswith(MADE) and not (ROOT / name).exists():
            continue
        places = (ROOT / name, path.parent / name, ROOT / "results" / name)
        in_data = path.parent.name == "datasets"
        example = "NAME" in name or name.startswith("photo") or name in ("failures.csv", "NAME_history.csv")
        assert in_data or example or any(place.exists() for place in places), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_are_short(path):
    for number, line in enumerate(text_of(path).split("\n"), 1):
        assert len(line) <= 120 or (line.startswith("|") and path not in LOG), f"line {number} has {len(line)}"


def test_the_readme_is_short():
    assert README.count("\n") < 250


def test_the_log_lists_its_files():
    listed = set(re.findall(r"^\| \[([\w-]+\.md)\]", text_of(ROOT / "benchmarks" / "log" / "README.md"), re.M))
    assert listed == {path.name for path in LOG} - {"README.md"}


# Commands


def named_commands(program):
    """Every command line of the documents that starts with a program's name, without its comment."""
    for path in DOCUMENTS:
        text = text_of(path)
        for line in [*re.findall(r"^    (.+)$", text, re.M), *re.findall(r"`([^`]+)`", text)]:
            if line.startswith(program + " "):
                words = shlex.split(line.split("  #")[0])
                yield pytest.param(words, id=f"{path.relative_to(ROOT)}: {' '.join(words)[:60]}")


def options_of(call):
    """The options in the help that a call prints, in this process."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        try:
            status = call()
        except SystemExit as end:
            status = end.code
    assert status in (None, 0), output.getvalue()
    return set(re.findall(r"(?<![\w-])--?\w+", output.getvalue()))


def help_of(words, monkeypatch):
    """The options of a script, with the sub-command or benchmark that follows its name."""
    bare = []
    for word in words[1:]:
        if word.startswith("-"):
            break
        bare.append(word)
    monkeypatch.setattr(sys, "argv", [*bare, "--help"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    return options_of(lambda: runpy.run_path(str(ROOT / bare[0]), run_name="__main__"))


def options_in(words):
    """The options among the words of a command, each in the spelling of the help."""
    return {word.split("=")[0].replace("-", "_").replace("__", "--", 1) for word in words if word.startswith("--")}


@pytest.mark.parametrize("words", [*named_commands("python")])
def test_python_commands_exist(words, monkeypatch):
    if words[1] == "-m":
        if words[2] == "selfdeblur":
            assert words[3] in COMMANDS
            assert options_in(words) <= options_of(lambda: main([words[3], "--help"]))
        else:
            assert words[2] in ("pytest", "venv"), words
        return
    assert (ROOT / words[1]).is_file(), words
    if options := options_in(words):
        assert options <= help_of(words, monkeypatch), words


@pytest.mark.parametrize("words", [*named_commands("bash")])
def test_shell_commands_exist(words):
    assert (ROOT / words[1]).is_file(), words


@pytest.mark.parametrize("words", [*named_commands("selfdeblur")])
def test_options_of_the_command_exist(words):
    assert options_in(words) <= options_of(lambda: main(["--help"]))


def test_the_table_of_the_command_names_its_options():
    text = section(README, "Your own image")
    named = {option for row in table(text, "option") for option in re.findall(r"--\w+", row[0])}
    assert named <= options_of(lambda: main(["--help"]))


def test_readme_names_every_preset_and_option():
    presets = {row[0].strip("`") for row in table(section(README, "Presets"), "preset")}
    assert presets == {QUICK, *PRESETS}
    options = {f"--{action.dest}" for action in _parser(LEVIN)._actions if action.dest != "help"}
    rows = table(section(README, "Reproduce the paper"), "option")
    assert {name for row in rows for name in re.findall(r"--\w+", row[0])} <= options
    assert options <= set(re.findall(r"--\w+", README))
    for name in COMMANDS.keys() - {"sample"}:  # the demos call it
        forms = (f"python -m selfdeblur {name}", f"`selfdeblur {name}`", f"`{name}`")
        assert any(form in README for form in forms), name


def test_reasons_for_doubt_are_those_of_the_program():
    sources = "\n".join(text_of(path) for path in (ROOT / "selfdeblur").rglob("*.py"))
    reasons = [row[0].strip("`") for row in table(section(README, "When it fails, and what to do"), "it says")]
    assert len(reasons) >= 7
    for reason in reasons:
        assert f'"{reason}"' in sources, reason


def test_markers_are_those_of_the_tests():
    text = text_of(ROOT / "CONTRIBUTING.md")
    named = {row[0].strip("`") for row in table(section(text, "Tests"), "marker")}
    declared = set(re.findall(r'^    "(\w+):', section_of_markers(), re.M))
    assert named == declared


def section_of_markers():
    return re.search(r"^markers = \[\n(.*?)^\]", text_of(ROOT / "pyproject.toml"), re.M | re.S).group(1)


# Figures


def runs(benchmark):
    """The rows of a benchmark's table by method, preset and seed, under the names that the documents give them."""
    groups = {}
    for row in read_csv(ROOT / "results" / f"{benchmark}.csv"):
        groups.setdefault((row["method"], row["preset"], row["seed"]), []).append(row)
    seeds = [key[:2] for key in groups]
    names = {key: f"{key[0]}, {key[1]}" for key in groups}
    names |= {key: f"{names[key]}, seed {key[2]:g}" for key in groups if seeds.count(key[:2]) > 1}
    return {names[key]: rows for key, rows in groups.items()}


def figures(rows, columns):
    """Cells of a table: what each column says of the rows of one run, a dash where they do not tell."""
    scores = {name: [row[name] for row in rows if row[name] is not None] for name in ("psnr", "ssim", "seconds")}
    ratios = [row["error_ratio"] for row in rows if row["error_ratio"] is not None]
    doubts = [row["doubtful"] for row in rows if row["doubtful"] is not None]
    cells = {
        "images": f"{len(rows)}",
        "PSNR": f"{statistics.mean(scores['psnr']):.2f}",
        "SSIM": f"{statistics.mean(scores['ssim']):.4f}",
        "worst": f"{min(scores['psnr']):.2f}",
        "error ratio": f"{statistics.mean(ratios):.3f}" if ratios else "–",
        "at most 2": f"{sum(ratio <= 2 for ratio in ratios) / len(ratios):.0%}".replace("%", " %") if ratios else "–",
        "doubtful": f"{doubts.count('yes')} of {len(doubts)}" if doubts else "–",
        "s": f"{statistics.median(scores['seconds']):.0f}" if scores["seconds"] else "–",
    }
    return [cells[column] for column in columns]


@pytest.mark.parametrize(
    ("benchmark", "columns"),
    [
        ("levin", ("images", "PSNR", "SSIM", "worst", "error ratio", "at most 2", "doubtful", "s")),
        ("lai", ("images", "PSNR", "SSIM", "worst", "doubtful", "s")),
    ],
)
def test_figures_of_the_page_are_those_of_the_rows(benchmark, columns):
    rows = table(section(PAGE, benchmark.title()), "method, preset")
    assert len(rows) >= 3
    for name, *cells in rows:
        assert cells == figures(runs(benchmark)[name], columns), name


@pytest.mark.parametrize("preset", OF_PRESET)
def test_figures_of_the_presets_are_those_of_the_rows(preset):
    named = runs("levin")
    name = f"selfdeblur, {OF_PRESET[preset]}"
    psnr, ssim, worst, seconds, doubtful = figures(
        named.get(name) or named[f"{name}, seed 0"], ("PSNR", "SSIM", "worst", "s", "doubtful")
    )
    cells = next(row for row in table(section(README, "Presets"), "preset") if row[0] == f"`{preset}`")
    assert cells[2].rstrip(" \\*") == f"{psnr} / {float(ssim):.3f}".replace("/ 0", "/ ")
    assert cells[3].rstrip(" \\*") == worst
    assert cells[4].startswith(f"{seconds} s")
    assert cells[5].rstrip(" \\*") == doubtful


def test_photographs_of_the_page_are_those_of_the_rows():
    rows = read_csv(ROOT / "results" / "synthetic.csv")
    cells = {}
    for row in rows:
        scores = ", ".join(f"{row[name]:.2f}" for name in ("blurry", "estimate", "psnr"))
        cells.setdefault(row["image"], [f"{row['side']:g}", f"{row['kernel_size']:g}"]).append(
            scores + "*" * (row["doubtful"] == "yes")
        )
    *shown, (mean, _, _, *means) = table(section(PAGE, "Photographs outside the benchmarks"), "photograph")
    assert {name: rest for name, *rest in shown} == cells
    assert mean == "mean"
    for noise, text in zip((0, 1e-3, 1e-2), means, strict=True):
        those = [row for row in rows if row["noise"] == noise]
        for name, value in zip(("blurry", "estimate", "psnr"), text.split(", "), strict=True):
            assert float(value) == pytest.approx(statistics.mean(row[name] for row in those), abs=0.0051)


def test_times_of_a_step_on_a_gpu_are_those_of_the_log():
    entries = [json.loads(line) for line in text_of(ROOT / "benchmarks" / "gpu.jsonl").splitlines()]
    steps = {}
    for entry in entries:
        if entry["what"] == "step":
            card = entry["card"].split()[1] + (f", {entry['commit']}" if "commit" in entry else "")
            memory = entry.get("peak_gpu_reserved_mb", f"{entry.get('peak_gpu_mb')} used")
            cell = f"{1000 * entry['seconds_per_step']:.2f}, {memory}"
            steps[card, entry["size"], entry["form"], str(entry["batch"]), entry["precision"]] = cell
    rows = table(section(PAGE, "GPU"), "card, commit")
    assert len(rows) >= 10
    for *key, float32, tf32, fp16, bf16 in rows:
        for precision, cell in (("float32", float32), ("tf32", tf32), ("fp16", fp16), ("bf16", bf16)):
            assert cell == steps.get((*key, precision), "–"), (key, precision)


@pytest.mark.parametrize("benchmark", ["levin", "lai"])
def test_the_making_of_every_row_is_told(benchmark):
    text = section(text_of(ROOT / "results" / "README.md"), "How the rows were made")
    text = text[text.index(f"{benchmark.title()}, `{benchmark}.csv`") :]
    told = {row[0]: int(row[1]) for row in table(text, "method, preset")}
    rows = {}
    for row in read_csv(ROOT / "results" / f"{benchmark}.csv"):
        name = f"{row['method']}, {row['preset']}"
        rows[name] = rows.get(name, 0) + 1
    assert told == rows
