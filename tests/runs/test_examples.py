"""The examples run: those of the docstrings, and the notebook."""

import doctest
import importlib
import json

import pytest
from common import ROOT

from selfdeblur import settings

# deepinv is an extra; its example is run by .ci/deepinv.
ELSEWHERE = {"selfdeblur.deepinv"}
WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "selfdeblur").rglob("*.py")
    if "\n    >>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", [name for name in WITH_EXAMPLES if name not in ELSEWHERE])
def test_examples_of_docstrings(name):
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried
    assert not failed


def test_the_public_calls_have_examples():
    assert "selfdeblur.api" in WITH_EXAMPLES


def cells(kind):
    notebook = json.loads((ROOT / "examples" / "one_picture.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_the_cells_of_the_notebook_run(monkeypatch, tmp_path, capsys, thin):
    """In order, in one namespace, with fewer steps."""
    text, changes = settings.PRESETS["fast"]
    monkeypatch.setitem(settings.PRESETS, "fast", (text, {**changes, "num_iter": 80}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    names = {}
    for number, cell in enumerate(cells("code")):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert names["result"].image.shape == names["blurry"].shape == (128, 128)
    assert "step 80 of 80, stage check" in capsys.readouterr().out
    assert (names["difference"] ** 2).mean() ** 0.5 < 0.02
    assert (tmp_path / "deblurred.png").is_file()


def test_the_notebook_was_saved_after_a_run():
    outputs = [output for cell in cells("code") for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in cells("code")] == list(range(1, len(cells("code")) + 1))
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
