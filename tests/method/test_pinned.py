"""What each preset gives on small problems stays what it was: numbers that `benchmarks/same_bytes.py --pin` wrote.

Bytes differ between kinds of CPUs, so the numbers are held to a tolerance. To pin them anew, after a change that is
meant: python benchmarks/same_bytes.py --pin tests/method/pinned.json
"""

import json
import sys
from pathlib import Path

import pytest
from common import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import same_bytes

PINNED = json.loads(Path(__file__).with_name("pinned.json").read_text(encoding="utf-8"))
# Ten times what other instructions of the CPU (AVX2 in the place of AVX-512) change: the image is the most sensitive.
TOLERANCE = {"losses": 1e-3, "kernel": 1e-3, "image": 2e-2}


@pytest.mark.parametrize("case", same_bytes.PINNED, ids=same_bytes.name_of)
def test_the_numbers_are_those_that_were_pinned(case):
    found = same_bytes.numbers(same_bytes.solve(case, *same_bytes.problem(case)))
    for name, expected in PINNED[same_bytes.name_of(case)].items():
        assert found[name] == pytest.approx(expected, rel=TOLERANCE[name]), name


def test_all_presets_are_pinned():
    from selfdeblur import PRESETS

    assert {case[0] for case in same_bytes.PINNED} == set(PRESETS)
    assert set(PINNED) == {same_bytes.name_of(case) for case in same_bytes.PINNED}
