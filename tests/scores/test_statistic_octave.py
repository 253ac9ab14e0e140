"""The scripts for MATLAB, run under GNU Octave: published numbers, plain search, numbers of the Python twins."""

import csv
import json
import os
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import cv2
import generated
import numpy as np
import pytest
from common import ROOT, SHARED

from selfdeblur.data.benchmarks import LAI, LEVIN
from selfdeblur.scores import scoring

OCTAVE = shutil.which("octave-cli") or shutil.which("octave")


@pytest.fixture(scope="module")
def octave():
    """Run commands in Octave without its start files and packages; returns what it printed."""
    if OCTAVE is None:
        message = "NOT TESTED: the .m scripts, because GNU Octave is absent (apt-get install octave-cli)"
        if os.environ.get("SELFDEBLUR_REQUIRE_OCTAVE"):
            pytest.fail(message)
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)

    def run(commands):
        commands = f"addpath('{ROOT}/statistic'); addpath('{ROOT}/tests/scores'); {commands}"
        done = subprocess.run(
            [OCTAVE, "--no-gui", "--norc", "--quiet", "--eval", commands], capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def shared_rows(dataset):
    table, data = SHARED / "calibration.csv", SHARED / "datasets" / dataset
    if not table.is_file() or not data.is_dir():
        pytest.skip(f"NOT CALIBRATED on the benchmarks: {table} or {data} is absent (set SELFDEBLUR_SHARED)")
    rows = [row for row in rows_of(table) if row["dataset"] == dataset]
    return {Path(row["deblurred"]).stem: row for row in rows}, data


def assert_calibrated(path, expected):
    rows = {row["image"]: row for row in rows_of(path)}
    for name, row in expected.items():
        for column in ("psnr", "ssim"):
            assert float(rows[name][column]) == pytest.approx(float(row[column]), abs=1e-6), (name, column)
    return rows


def test_levin_agrees_with_the_published_script(octave, tmp_path):
    expected, data = shared_rows("levin")
    assert len(expected) == 32
    printed = octave(
        f"results = '{data}/groundk'; true_kernel = results; ground_truth = '{data}/gt'; maxshift = 5; "
        f"csv_file = '{tmp_path}/scores.csv'; statistic_Levin"
    )
    rows = assert_calibrated(tmp_path / "scores.csv", expected)
    assert {(row["status"], float(row["error_ratio"])) for row in rows.values()} == {("ok", 1)}
    means = [np.mean([float(r[c]) for r in expected.values()]) for c in ("psnr", "ssim")]
    assert re.search(rf"^all +32/32  PSNR {means[0]:.6f}  SSIM {means[1]:.6f} ", printed, re.MULTILINE)
    kernel6 = np.mean([float(r["psnr"]) for n, r in expected.items() if "kernel6" in n])
    assert re.search(rf"^kernel6 +4/4  PSNR {kernel6:.6f} ", printed, re.MULTILINE)
    assert "warning: best shift on the rim of the search, 5 pixels: im1_kernel6_img im3_kernel6_img" in printed


def test_lai_agrees_with_the_published_script_and_says_that_it_is_partial(octave, tmp_path):
    expected, data = shared_rows("lai")
    assert len(expected) == 3
    for row in expected.values():
        shutil.copy(data / row["deblurred"], tmp_path)
    printed = octave(f"results = '{tmp_path}'; ground_truth = '{data}/ground_truth'; maxshift = 3; statistic_Lai")
    rows = assert_calibrated(tmp_path / "scores.csv", expected)
    assert len(rows) == 100
    assert [row["status"] for row in rows.values()].count("missing") == 97
    assert re.search(r"^all +3/100 ", printed, re.MULTILINE)
    assert re.search(r"^text +2/20 ", printed, re.MULTILINE)
    assert "warning: PARTIAL: only 3 of 100 images have a score" in printed


def test_generated_calibration_and_plain_search(octave, tmp_path):
    generated.make(tmp_path)
    stored = {row.pop("name"): row for row in rows_of(ROOT / "tests/scores/calibration_generated.csv")}
    commands = []
    for name, *_, maxshift, _ in generated.CASES:
        folders = f"'{tmp_path}/results', '{tmp_path}/truth'"
        commands.append(f"rows = score_results({{'{name}'}}, {{'{name}'}}, {folders}, '', {maxshift});")
        commands.append(f"write_scores(rows, '{tmp_path}/{name}.csv');")
    small = [case for case in generated.CASES if case[1] <= 100]
    names = ", ".join(f"'{case[0]}'" for case in small)
    shifts = [case[6] for case in small]
    commands.append(f"plain_score('{tmp_path}', {{{names}}}, {shifts}, '{tmp_path}/plain.csv');")
    octave(" ".join(commands))
    for name, numbers in stored.items():
        (row,) = rows_of(tmp_path / f"{name}.csv")
        assert row["status"] == "ok", row
        for column in set(numbers) & set(row):
            assert float(row[column]) == pytest.approx(float(numbers[column]), abs=1e-7), (name, column)
    plain = rows_of(tmp_path / "plain.csv")
    assert [row["name"] for row in plain] == ["grey", "rim", "flat", "deep"]
    for row in plain:
        for column, value in stored[row["name"]].items():
            assert float(row[column]) == pytest.approx(float(value), abs=1e-8), (row["name"], column)


@pytest.fixture
def folders(tmp_path):
    """A stand-in for each benchmark with results of all sorts, whole, unfinished and wrong."""
    rng = np.random.default_rng(0)

    def sharp():
        return cv2.GaussianBlur(rng.uniform(size=(64, 71)), None, 1)

    def put(path, image, bits=8):
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.rint(image * (2**bits - 1)).astype(np.uint16 if bits == 16 else np.uint8)
        assert cv2.imwrite(str(path), array[..., ::-1] if array.ndim == 3 and array.shape[2] == 3 else array)

    levin = tmp_path / "levin"
    for i in (1, 2, 4):
        truth = sharp()
        put(levin / f"gt/im{i}.png", truth)
        for k in range(1, 9):
            name = f"im{i}_kernel{k}_img"
            moved = np.roll(truth, (k - 4, 4 - i), (0, 1)) * 0.8 + 0.2 * sharp()
            put(levin / "results" / (f"{name}_x.png" if k % 2 else f"{name}.png"), moved, bits=16 if k == 3 else 8)
            if k != 8:
                put(levin / f"groundk/{name}.png", truth * 0.9 + 0.1 * sharp())
    results = levin / "results"
    for name, finished in (("im1_kernel1_img", True), ("im1_kernel2_img", False)):
        (results / f"{name}.json").write_text(json.dumps({"finished": finished}))
    put(results / "im1_kernel4_img.png", sharp()[:, 1:])
    put(results / "im1_kernel6_img.png", np.stack([sharp()] * 3, 2))
    put(results / "im1_kernel8_img.png", np.stack([sharp(), sharp(), sharp()], 2))
    (results / "im2_kernel1_img_x.png").write_bytes(b"not an image")
    (results / "im2_kernel2_img.png").unlink()
    put(results / "im2_kernel2_img_x.png", np.full((64, 71), 0.5))
    put(results / "im3_kernel1_img.png", sharp())
    put(results / "im4_kernel2_img_x.png", sharp())

    lai = tmp_path / "lai"
    for truth_name in ("text_05", "people_01"):
        truth = np.stack([sharp() for _ in range(3)], 2)
        alpha = [] if truth_name == "people_01" else [np.ones((64, 71, 1))]
        put(lai / f"gt/{truth_name}.png", np.concatenate([truth[..., ::-1] if alpha else truth, *alpha], 2))
        put(lai / f"results/{truth_name}_kernel_01.png", 0.8 * truth[..., 1] + 0.1)
        put(lai / f"results/{truth_name}_kernel_02_x.png", 0.9 * np.roll(truth, 1, 0))
        put(lai / f"results/{truth_name}_kernel_03_x.png", np.stack([truth[..., 0]] * 3, 2))
    return {"levin": levin, "lai": lai}


@pytest.mark.parametrize("benchmark", [LEVIN, LAI], ids=lambda b: b.name)
def test_gives_the_numbers_of_the_python_scripts(octave, folders, benchmark):
    folder = folders[benchmark.name]
    reference = folder / "groundk" if benchmark is LEVIN else None
    python = scoring.score_folder(benchmark, folder / "results", folder / "gt", reference, maxshift=4, blurry=folder)
    python = {row["image"]: row for row in python}
    printed = octave(
        f"results = '{folder}/results'; ground_truth = '{folder}/gt'; maxshift = 4; "
        f"true_kernel = '{reference or ''}'; csv_file = '{folder}/m.csv'; statistic_{benchmark.name.title()}"
    )
    rows = rows_of(folder / "m.csv")
    assert len(rows) == benchmark.images
    scored = 0
    for row in rows:
        twin = python.get(row["image"])
        if twin is None:  # no sharp image, so the Python script knows of no such image
            assert row["status"] == "missing"
            continue
        assert row["status"] == twin["status"], (row, twin)
        assert row["on_rim"] == {None: "", True: "yes", False: "no"}[twin["on_rim"]]
        for column in ("psnr", "ssim", "ssim_plain", "error_ratio", "ssd_ratio", "shift_y", "shift_x"):
            value = twin[column]
            assert (row[column] == "") == (value is None), (row, column)
            if value is not None:
                assert float(row[column]) == pytest.approx(value, abs=2e-8), (row["image"], column)
        scored += twin["psnr"] is not None
    assert scored == {"levin": 21, "lai": 6}[benchmark.name]
    means = {m["group"]: m for m in scoring.averages(list(python.values()), benchmark)}
    for group, mean in means.items():
        (line,) = (line for line in printed.splitlines() if line.split()[:1] == [group])
        assert line.split()[1] == f"{mean['images']}/{mean['of']}"
        if mean["images"]:
            assert f"PSNR {mean['psnr']:.6f}  SSIM {mean['ssim']:.6f}" in line
    if benchmark is LEVIN:
        assert "warning: unfinished runs, scored as they are: im1_kernel2_img" in printed
        for text in (
            "im1_kernel4_img not scored: ",
            "the sizes differ: 70 x 64 against 71 x 64",
            "sharp image is grey",
        ):
            assert text in printed
        assert re.search(r"im3_kernel1_img not scored: .*im3\.png is missing", printed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("results = '/nowhere';", "/nowhere: no such folder (variable results)"),
        ("results = tempdir; ground_truth = '/nowhere';", "/nowhere: no such folder (variable ground_truth)"),
    ],
)
def test_a_missing_folder_is_named(octave, settings, message):
    command = f"try, {settings} csv_file = ''; statistic_Levin; catch failure, disp(failure.message); end"
    assert message in octave(command)


def test_the_scripts_keep_to_what_matlab_and_octave_share():
    """No MATLAB is here to run them: at least nothing that only Octave takes, and no package."""
    files = sorted((ROOT / "statistic").glob("*.m"))
    assert {"statistic_Levin.m", "statistic_Lai.m"} < {file.name for file in files}
    only_octave = re.compile(
        r"#|\bpkg\b|\bend(if|for|while|function|_\w+)\b|\bprintf\b|\+=|-=|\+\+|!|\bdo\b|\buntil\b|\*\*"
    )
    for file in files:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if line.lstrip().startswith("%"):
                continue
            code = re.sub(r"'[^']*'", "''", line)
            assert not only_octave.search(code), (file.name, number, line)
            assert '"' not in code, (file.name, number, line)
