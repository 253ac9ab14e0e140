"""What the documents name exists."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from selfdeblur import PRESETS
from selfdeblur.__main__ import COMMANDS
from selfdeblur.data.benchmarks import LEVIN
from selfdeblur.runs.command import _parser

DOCUMENTS = [ROOT / name for name in ("README.md", "datasets/README.md", "results/README.md", "benchmarks/README.md")]
# Made by runs or fetched, so not part of a checkout.
MADE = (
    "datasets/levin",
    "datasets/lai",
    "datasets/sample",
    "results/levin",
    "results/lai/",
    "results/sample/",
    "results/mine",
    "benchmarks/gpu.jsonl",
)


def texts():
    return [(path, path.read_text(encoding="utf-8")) for path in DOCUMENTS if path.exists()]


def commands():
    """Every command line that a document names, without its comment."""
    found = []
    for path, text in texts():
        for line in [*re.findall(r"^    (.+)$", text, re.M), *re.findall(r"`([^`]+)`", text)]:
            if re.match(r"(bash|python) ", line):
                found.append(pytest.param(shlex.split(line.split("  #")[0]), id=f"{path.parent.name}: {line[:60]}"))
    return found


@pytest.mark.parametrize("words", commands())
def test_command_exists(words):
    if words[:2] == ["python", "-m"]:
        if words[2] == "selfdeblur":
            assert words[3] in COMMANDS
        return
    program = ROOT / words[1]
    assert program.is_file(), words
    if program.suffix == ".py":
        known = set(re.findall(r"--\w+", help_of(program)))
        assert {word for word in words if word.startswith("--")} <= known | {"--help"}


HELP = {}


def help_of(program):
    if program not in HELP:
        run = subprocess.run([sys.executable, program, "--help"], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        HELP[program] = run.stdout
    return HELP[program]


def test_files_exist():
    for path, text in texts():
        links = re.findall(r"\]\(([^)#:]+)\)", text)
        code = re.findall(r"`([\w./-]+/[\w./-]*|\w+\.(?:py|sh|m|cff|toml|txt))`", text)
        for name in [*links, *code]:
            if name.startswith(MADE) or "NAME" in name:
                continue
            candidates = (ROOT / name, path.parent / name, ROOT / "selfdeblur" / name, ROOT / "statistic" / name)
            fetched = path.parent.name == "datasets"
            assert fetched or any(Path(c).exists() for c in candidates), f"{path.name} names {name}"


def test_readme_names_every_preset_and_option():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in PRESETS:
        assert f"`{name}`" in readme
    for action in _parser(LEVIN)._actions:
        if action.dest != "help":
            assert f"--{action.dest}" in readme, action.dest
    for name in COMMANDS:
        assert f"python -m selfdeblur {name}" in readme or f"`{name}`" in readme or name == "sample"
