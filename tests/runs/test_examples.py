"""The examples run: those of the docstrings, and the notebook."""

import doctest
import importlib

import pytest
from common import ROOT

# deepinv is an extra; its example is run by tests/deepinv.sh.
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
