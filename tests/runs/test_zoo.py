"""The problems of the zoo, and what its tables say of rows."""

import sys
from collections import Counter

import numpy as np
import pytest
import torch
from common import ROOT
from scipy.signal import correlate

from selfdeblur.errors import UserError
from selfdeblur.forward import blur_plain
from selfdeblur.scores.tables import read_csv, write_csv

sys.path.insert(0, str(ROOT / "benchmarks"))
import photographs
import zoo
import zoo_problems
from zoo_problems import CODINGS, KERNELS, NOISE, PICTURES, Problem, problems

# Rows are only worth something while a number means the same problem: mean and deviation of the blurry image.
PINNED = {
    ("development", 8): (0.4343, 0.0643),
    ("development", 15): (0.4957, 0.2644),
    ("development", 53): (0.1565, 0.1286),
    ("report", 21): (0.4024, 0.1936),
    ("report", 54): (0.7753, 0.1123),
}


def problem_of(half, number):
    return problems(half)[number - 1]


def small(**changes):
    values = {
        "half": "development",
        "number": 1,
        "picture": "coffee",
        "picture_kind": "photograph",
        "kernel_kind": "shake thick",
        "kernel_size": (11, 11),
        "side": (128, 140),
        "noise": 0.0,
        "coding": "8 bit",
        "colour": False,
    }
    return Problem(**(values | changes))


@pytest.mark.parametrize(("half", "number"), PINNED)
def test_a_number_means_the_same_problem(half, number):
    first, second = problem_of(half, number), problem_of(half, number)
    assert first == second
    np.testing.assert_array_equal(first.y, second.y)
    np.testing.assert_array_equal(first.kernel, second.kernel)
    assert (first.y.mean(), first.y.std()) == pytest.approx(PINNED[half, number], abs=5e-4)


def test_halves_have_as_many_of_each_kind_and_differ():
    development, report = problems("development"), problems("report")
    for half in (development, report):
        assert [problem.number for problem in half] == list(range(1, 61))
        assert Counter(problem.picture_kind for problem in half) == PICTURES
        assert Counter(problem.kernel_kind for problem in half) == KERNELS
        assert Counter(problem.noise for problem in half) == NOISE
        assert Counter(problem.coding for problem in half) == CODINGS
    specifications = {(problem.picture, problem.side, problem.kernel_size) for problem in development}
    assert not specifications & {(problem.picture, problem.side, problem.kernel_size) for problem in report}
    with pytest.raises(UserError, match="half"):
        problems("whole")


@pytest.mark.parametrize("half", ["development", "report"])
def test_kernels_are_centred_and_smaller_than_the_size_handed_over(half):
    for problem in problems(half):
        size, kernel = problem.kernel_size[0], problem.kernel
        assert 9 <= size <= 61
        assert size % 2 == 1
        assert min(problem.side) >= 128
        assert max(problem.side) <= 512
        assert min(problem.side) >= 5 * size
        assert kernel.shape == problem.kernel_size
        assert kernel.min() >= 0
        assert kernel.sum() == pytest.approx(1)
        support = []
        for axis in (0, 1):
            rows = np.flatnonzero(kernel.any(1 - axis))
            assert abs(rows[0] - (size - 1 - rows[-1])) <= 1
            support.append(rows[-1] - rows[0] + 1)
        assert max(5, size / 1.3 - 4) <= max(support) <= size - 2, problem


@pytest.mark.parametrize("kind", KERNELS)
def test_the_true_kernel_blurs_the_sharp_picture_into_the_blurry_one(kind):
    problem = small(kernel_kind=kind, kernel_size=(13, 13))
    whole, kernel = (torch.from_numpy(a).double()[None, None] for a in (problem.whole, problem.kernel))
    y = blur_plain(whole, kernel)[0, 0].numpy()
    assert problem.y.shape == problem.x.shape == problem.side
    np.testing.assert_allclose(problem.blurred, y, atol=1e-6)
    np.testing.assert_allclose(problem.y, y.clip(0, 1), atol=0.501 / 255)
    np.testing.assert_array_equal(problem.x, problem.whole[6:-6, 6:-6])
    assert np.std(problem.y - problem.x) > 0.01


def test_noise_coding_colour_and_lights():
    clean, noisy = small(), small(noise=0.03)
    error = (noisy.y - clean.y)[(clean.y > 0.15) & (clean.y < 0.85)]
    assert error.std() == pytest.approx(0.03, rel=0.05)
    assert abs(error.mean()) < 1e-3
    for coding in ("JPEG 90", "JPEG 75"):
        lossy = small(coding=coding, colour=True)
        assert lossy.y.shape == (128, 140, 3)
        assert 0 < np.sqrt(np.mean((lossy.y - small(colour=True).y) ** 2)) < 0.05
    gamma = small(coding="gamma")
    light = correlate(gamma.whole.astype(float) ** 2.2, gamma.kernel, mode="valid", method="direct") ** (1 / 2.2)
    np.testing.assert_allclose(gamma.y, light, atol=0.501 / 255)
    assert np.abs(gamma.y - clean.y).max() > 0.01
    night = small(picture="coffee, lights", picture_kind="night", colour=True)
    assert night.whole.max() > 1.5
    assert night.x.max() == 1
    assert (night.y == 1).any()


@pytest.mark.parametrize("name", sorted({n for groups in zoo_problems.SOURCES.values() for g in groups for n in g}))
def test_every_picture_has_detail(name):
    problem = small(picture=name)
    assert problem.x.shape == problem.side
    assert 0 <= problem.x.min() < problem.x.max() <= 1
    assert np.abs(np.diff(problem.x)).mean() > 2e-3


def test_scores_are_of_the_luminance_at_the_best_shift():
    problem = small(colour=True)
    assert zoo.score(problem, problem.x)[1] > 0.999
    moved = np.roll(problem.x, (2, -3), (0, 1))
    assert zoo.score(problem, moved) == pytest.approx(zoo.score(problem, problem.x))
    assert 10 < zoo.score(problem, problem.y)[0] < 40


def row(number, label="a", half="development", **changes):
    problem = zoo._of_problem(problem_of(half, number))
    values = {
        "label": label,
        "preset": label,
        "seed": 0,
        "blurry": 20.0,
        "estimate": 27.0,
        "result": 28.0,
        "true": 30.0,
    }
    return problem | values | {"doubted": "no", "seconds": 10.0, "cpu_seconds": 9.0, "commit": "1"} | changes


def test_the_summary_follows_from_the_rows():
    rows = [
        row(1),  # good, trusted
        row(2, result=26.6, true=29.6, doubted="yes", seconds=30.0),  # lost; three decibels are not bad
        row(3, result=24.0),  # lost, wrong
        row(4, result=25.0, doubted="yes"),  # lost, bad, but doubted
        row(5, result=26.8, true=30.0),  # a loss of 0.2 does not count; wrong
        row(6, blurry=29.0),  # below the blurry image: bad
    ]
    found = zoo.summary(rows)
    assert found["problems"] == 6
    assert found["gap"] == pytest.approx((2 + 3 + 6 + 5 + 3.2 + 2) / 6)
    assert found["result"] == pytest.approx((28 + 26.6 + 24 + 25 + 26.8 + 28) / 6)
    assert found["lost"] == pytest.approx(3 / 6)
    assert found["wrong"] == pytest.approx(2 / 6)
    assert [found[name] for name in ("bad_doubted", "bad_trusted", "good_doubted", "good_trusted")] == [1, 3, 1, 1]
    assert found["doubted"] == pytest.approx(2 / 6)
    assert found["seconds"] == 10


def test_the_table_compares_labels_on_their_common_problems(tmp_path, capsys):
    rows = [row(1), row(2, result=26.0), row(3), row(2, "b", result=29.5), row(3, "b", result=28.5)]
    rows += [row(9, half="report", result=30.0)]
    write_csv(tmp_path / "zoo.csv", rows, zoo.COLUMNS)
    assert zoo.main(["table", "--csv", str(tmp_path / "zoo.csv")]) == 0
    out = capsys.readouterr().out
    assert "## development, 2 problems" in out
    assert "| a | 20.00 | 27.00 | 27.00 | 30.00 | 3.00 | 50% | 50% | 10 | 9 |" in out
    assert "| b | 20.00 | 27.00 | 29.00 | 30.00 | 1.00 | 0% | 0% | 10 | 9 |" in out
    assert "| a | 0 | 1 | 0 | 1 |" in out
    assert "## report, 1 problems" in out
    assert zoo.main(["plot", "--csv", str(tmp_path / "zoo.csv"), "--to", str(tmp_path / "gap.png")]) == 0
    assert (tmp_path / "gap_development.png").exists()
    assert (tmp_path / "gap_report.png").exists()
    with pytest.raises(UserError, match="no row"):
        zoo.main(["table", "--csv", str(tmp_path / "zoo.csv"), "--only", "60"])


@pytest.mark.processes
def test_what_has_a_row_is_left(tmp_path, capsys):
    table = tmp_path / "zoo.csv"
    smallest = min(problems("development"), key=lambda problem: np.prod(problem.side) * problem.kernel_size[0])
    arguments = ["run", str(smallest.number), "--preset", "estimate", "--csv", str(table)]
    for todo in (1, 0):
        assert zoo.main(arguments) == 0
        assert f"{todo} of 1 problems to do" in capsys.readouterr().out
    (found,) = read_csv(table, zoo.COLUMNS)
    assert found["number"] == smallest.number
    assert found["estimate"] == found["result"]
    assert found["blurry"] < found["true"]
    write_csv(table, [found | {"picture": "another"}], zoo.COLUMNS)
    with pytest.raises(UserError, match="another form of the zoo"):
        zoo.main(arguments)
    write_csv(table, [found | {"seed": 1}], zoo.COLUMNS)
    with pytest.raises(UserError, match="give a --label"):
        zoo.main(arguments)


def test_a_row_has_the_stages_of_the_preset(monkeypatch, thin):
    problem = small(noise=0.01)
    truth = torch.from_numpy(problem.kernel).float()

    def known(y, size, **options):
        return truth.clone()

    monkeypatch.setattr(zoo, "estimate_kernel", known)
    monkeypatch.setattr("selfdeblur.stages.estimate_kernel", known)
    found = zoo.measure(problem, "fast", num_iter=3, network_share=0.0)
    assert found["estimate"] == pytest.approx(found["true"], abs=0.01)
    assert found["estimate_similarity"] == pytest.approx(1, abs=1e-4)
    stages = dict(stage.split() for stage in found["stages"].split("; "))
    assert set(stages) == {"estimate", "check", "end"}
    assert float(stages["estimate"]) == pytest.approx(found["true"], abs=0.01)
    # Both kernels of the mean start at the true one.
    assert found["result"] == pytest.approx(found["true"], abs=0.5)
    assert set(zoo.COLUMNS) - set(found) == {"label", "commit"}


def test_the_short_form_is_small_and_mixed():
    for half in ("development", "report"):
        short = zoo.chosen(half, only_short=True)
        assert len(short) == 12
        assert len({problem.kernel_kind for problem in short}) >= 5
        assert max(max(problem.kernel_size) for problem in short) <= 27
    assert [problem.number for problem in zoo.chosen("report", "3,7-9")] == [3, 7, 8, 9]
    for wrong in ("3,x", "61", "-"):
        with pytest.raises(UserError, match="NUMBERS"):
            zoo.chosen("report", wrong)


def test_the_figures_of_photographs_are_those_of_their_rows():
    rows = read_csv(ROOT / "results" / "photographs.csv", photographs.COLUMNS, numbers=False)
    assert {row["part"] for row in rows} == set(photographs.PARTS)
    assert photographs.table(rows) in (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["halves", "object", "rotation"])
def test_pictures_whose_blur_differs(kind):
    y, x = photographs.varied(2, kind)
    assert y.shape == x.shape
    assert np.array_equal(y, photographs.varied(2, kind)[0])
    off = np.abs(y - x)
    h, w = y.shape
    if kind != "halves":
        # What does not move is sharp: the ground, and the axis of the rotation.
        still = off[:8, :8] if kind == "object" else off[h // 2 - 4 : h // 2 + 4, w // 2 - 4 : w // 2 + 4]
        assert still.mean() < 0.5 * off.mean()


def test_parts_of_photographs_go_on_where_they_were(tmp_path, monkeypatch, capsys):
    asked = []

    def few(args):
        for name in ("one", "two"):
            yield name, "form", lambda name=name: asked.append(name) or {"result": 30.0}

    monkeypatch.setattr(photographs, "sizes", few)
    table = tmp_path / "rows.csv"
    for _ in range(2):
        assert photographs.main(["run", "sizes", "--csv", str(table)]) == 0
    assert asked == ["one", "two"]
    assert [row["name"] for row in read_csv(table, numbers=False)] == ["one", "two"]
    with pytest.raises(UserError, match="unknown"):
        photographs.main(["run", "shapes", "--csv", str(table)])
