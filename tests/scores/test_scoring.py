"""Folders of results: what is scored, what is refused, what is said about a part of a benchmark, and the tables."""

import csv
import json
import subprocess
import sys

import cv2
import generated
import numpy as np
import pytest
from common import ROOT, SHARED

from selfdeblur.data.benchmarks import LAI, LEVIN
from selfdeblur.errors import UserError
from selfdeblur.files.images import read_image, write_image
from selfdeblur.scores import metrics, scoring, tables


@pytest.fixture
def levin(tmp_path):
    """A small stand-in for Levin's folders: two sharp images, kernel 1, two results, two with the true kernel."""
    truth, results, reference, blurry = (tmp_path / n for n in ("gt", "results", "groundk", "blurry"))
    kernel = np.zeros((7, 9))
    kernel[1, 1:6] = [1, 0.8, 0.5, 0.2, 0.1]
    kernel[1:6, 1] = 0.4
    write_image(truth / "kernel1.png", kernel[::-1, ::-1])
    for i in (1, 2):
        name = f"im{i}_kernel1_img"
        sharp = cv2.GaussianBlur(np.random.default_rng(i).uniform(size=(70, 75)), None, 1)
        write_image(truth / f"im{i}.png", sharp)
        write_image(blurry / f"{name}.png", cv2.filter2D(sharp, -1, kernel / kernel.sum()))
        write_image(reference / f"{name}.png", 0.98 * sharp)
        write_image(results / f"{name}_x.png", 0.9 * sharp + 0.03)
        write_image(results / f"{name}_k.png", kernel)
        record = {
            "finished": True,
            "steps": 5000,
            "seconds": 12.5,
            "device": "cpu",
            "torch": "2",
            "settings": {"seed": 3},
        }
        (results / f"{name}.json").write_text(json.dumps(record))
    return tmp_path


def score(folder, **options):
    options = {"true_kernel": folder / "groundk", "blurry": folder / "blurry"} | options
    return scoring.score_folder(LEVIN, folder / "results", folder / "gt", **options)


def by_name(rows):
    return {row["image"]: row for row in rows}


def test_generated_calibration(tmp_path):
    generated.make(tmp_path)
    with open(ROOT / "tests/scores/calibration_generated.csv", newline="") as file:
        stored = {row.pop("name"): row for row in csv.DictReader(file)}
    assert set(stored) == {case[0] for case in generated.CASES}
    for name, *_, maxshift, _ in generated.CASES:
        image = read_image(tmp_path / "results" / f"{name}.png")
        truth = read_image(tmp_path / "truth" / f"{name}.png")
        row, found = scoring.score_image(image, truth, maxshift=maxshift)
        row["norm"] = np.linalg.norm(found.error * 255, 2)
        for column, value in stored[name].items():
            assert row[column] == pytest.approx(float(value), abs=1e-8), (name, column)
        assert row["on_rim"] == (name in ("rim", "flat"))


def test_scores_a_row_for_every_image_of_the_benchmark(levin):
    rows = score(levin)
    assert len(rows) == 16
    assert [r["image"] for r in rows[:3]] == ["im1_kernel1_img", "im1_kernel2_img", "im1_kernel3_img"]
    assert {r["status"] for r in rows} == {"ok", "missing"}
    row = by_name(rows)["im2_kernel1_img"]
    assert (row["truth"], row["kernel"], row["result"].name) == ("im2", "kernel1", "im2_kernel1_img_x.png")
    assert (row["steps"], row["seconds"], row["device"], row["seed"], row["finished"]) == (5000, 12.5, "cpu", 3, True)
    x, truth, reference = (
        read_image(levin / p) for p in ("results/im2_kernel1_img_x.png", "gt/im2.png", "groundk/im2_kernel1_img.png")
    )
    error, best = ((a - truth)[15:-15, 15:-15] for a in (x, reference))
    assert (row["shift_y"], row["shift_x"], row["on_rim"]) == (0, 0, False)
    assert row["psnr"] == pytest.approx(-10 * np.log10(np.mean(error**2)))
    assert row["error_ratio"] == pytest.approx(np.linalg.norm(error, 2) / np.linalg.norm(best, 2))
    assert row["ssd_ratio"] == pytest.approx(np.sum(error**2) / np.sum(best**2))
    assert row["kernel_similarity"] == pytest.approx(1, abs=1e-3)


def test_a_true_kernel_is_turned_to_the_sense_that_explains_the_blur(levin):
    stored, truth, blurry = (
        read_image(levin / p) for p in ("gt/kernel1.png", "gt/im1.png", "blurry/im1_kernel1_img.png")
    )
    for kernel in (stored, stored[::-1, ::-1]):
        found = scoring.true_kernel_image(kernel, truth, blurry)
        np.testing.assert_allclose(found, stored[::-1, ::-1] / stored.sum())
    row = score(levin, blurry=levin / "gt")[0]
    assert row["kernel_similarity"] is None


def test_levin_kernels_4_and_8_are_stored_turned():
    data = SHARED / "datasets/levin"
    if not data.is_dir():
        pytest.skip(f"NOT CHECKED on Levin's kernels: {data} is absent (set SELFDEBLUR_SHARED)")
    for image in ("im1", "im4"):
        truth = read_image(data / f"gt/{image}.png")
        turned = []
        for k in range(1, 9):
            stored = read_image(data / f"gt/kernel{k}.png")
            blurry = read_image(data / f"{image}_kernel{k}_img.png")
            kernel = scoring.true_kernel_image(stored, truth, blurry)
            again = cv2.filter2D(truth, -1, kernel, borderType=cv2.BORDER_REFLECT)
            found = metrics.align(again, blurry)
            assert metrics.psnr(found.image, found.truth) > 40
            if not np.allclose(kernel, stored / stored.sum()):
                turned.append(k)
        assert turned == [4, 8]


def test_a_partial_folder_says_so_everywhere(levin, capsys):
    (levin / "results/im2_kernel1_img_x.png").unlink()
    rows = score(levin)
    whole = scoring.averages(rows, "levin")[0]
    assert (whole["group"], whole["images"], whole["of"]) == ("all", 1, 32)
    remarks = "\n".join(scoring.remarks(rows, LEVIN))
    assert "PARTIAL: only 1 of 32 images have a score" in remarks
    assert "no result for im1_kernel2_img" in remarks
    assert "the sharp images found make 16 of the 32 images" in remarks
    argv = [
        f"--{o}={levin / d}" for o, d in (("results", "results"), ("ground_truth", "gt"), ("true-kernel", "groundk"))
    ]
    status = scoring.command_line(LEVIN, [*argv, f"--csv={levin / 'out.csv'}", f"--blurry={levin / 'blurry'}"])
    output = capsys.readouterr()
    assert status == 0
    assert "1/32" in output.out
    assert "warning: PARTIAL" in output.err
    written = tables.read_csv(levin / "out.csv", scoring.COLUMNS)
    assert len(written) == 16
    assert [r["status"] for r in written].count("missing") == 15
    assert written[0]["psnr"] == pytest.approx(rows[0]["psnr"], abs=1e-8)
    assert written[1]["psnr"] is None


def test_averages_by_image_and_kernel_and_success(levin):
    rows = score(levin)
    means = {m["group"]: m for m in scoring.averages(rows, LEVIN)}
    assert list(means) == ["all", "im1", "im2", *(f"kernel{k}" for k in range(1, 9))]
    one, two = (by_name(rows)[f"im{i}_kernel1_img"] for i in (1, 2))
    assert means["all"]["psnr"] == means["kernel1"]["psnr"] == pytest.approx((one["psnr"] + two["psnr"]) / 2)
    assert (means["im1"]["images"], means["im1"]["of"], means["im1"]["psnr"]) == (1, 8, one["psnr"])
    assert (means["kernel2"]["images"], means["kernel2"]["psnr"]) == (0, None)
    one["error_ratio"], two["error_ratio"] = 1.5, 2.5
    one["ssd_ratio"], two["ssd_ratio"] = 3, 3.1
    whole = scoring.averages(rows, LEVIN)[0]
    assert whole["success"] == {1.5: 0.5, 2: 0.5, 3: 1}
    assert whole["success_ssd"] == {1.5: 0, 2: 0, 3: 0.5}


def test_some_true_kernel_results_are_missing(levin):
    (levin / "groundk/im1_kernel1_img.png").unlink()
    rows = score(levin)
    assert by_name(rows)["im1_kernel1_img"]["error_ratio"] is None
    assert scoring.averages(rows, LEVIN)[0]["error_ratio_of"] == 1
    assert "mean error_ratio over 1 of 32 images" in scoring.report(rows, LEVIN)
    (levin / "groundk/im2_kernel1_img.png").unlink()
    assert any("no error ratio" in line for line in scoring.remarks(score(levin), LEVIN))


@pytest.mark.parametrize(
    ("record", "status"),
    [
        ('{"finished": true}', "ok"),
        ('{"finished": false}', "unfinished"),
        ('{"steps": 3}', "unfinished"),
        ("{", "unfinished"),
    ],
)
def test_the_record_tells_whether_a_run_was_finished(levin, record, status):
    (levin / "results/im1_kernel1_img.json").write_text(record)
    rows = score(levin)
    assert rows[0]["status"] == status
    assert rows[0]["psnr"] is not None
    remarks = "\n".join(scoring.remarks(rows, LEVIN))
    assert ("unfinished runs, scored as they are: im1_kernel1_img" in remarks) == (status == "unfinished")
    assert ("cannot be read" in remarks) == (record == "{")


def test_a_result_without_record_counts_as_made_elsewhere(levin):
    (levin / "results/im1_kernel1_img.json").unlink()
    assert (score(levin)[0]["status"], score(levin)[0]["finished"]) == ("ok", None)


@pytest.mark.parametrize(
    ("path", "content", "note"),
    [
        ("gt/im1.png", None, "the sharp image is missing"),
        ("results/im1_kernel1_img_x.png", np.zeros((70, 74)), "the sizes differ: 74 x 70 against 75 x 70"),
        ("results/im1_kernel1_img_x.png", np.random.default_rng(0).uniform(size=(70, 75, 3)), "a colour image, but"),
        ("results/im1_kernel1_img_x.png", b"not an image", "not an image"),
        ("gt/im1.png", np.zeros((20, 20)), "the sizes differ"),
    ],
)
def test_one_bad_image_is_named_and_the_others_are_scored(levin, path, content, note, capsys, monkeypatch):
    monkeypatch.chdir(levin)
    path = levin / path
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        write_image(path, content)
    rows = by_name(score(levin))
    assert rows["im1_kernel1_img"]["status"] == "failed"
    assert note in rows["im1_kernel1_img"]["note"]
    named = levin / "results/im1_kernel1_img_x.png" if path.exists() else path
    assert rows["im1_kernel1_img"]["note"].startswith(f"{named}: ")
    assert rows["im1_kernel1_img"]["psnr"] is None
    assert rows["im2_kernel1_img"]["status"] == "ok"
    argv = ["--results", str(levin / "results"), "--ground_truth", str(levin / "gt")]
    assert scoring.command_line(LEVIN, argv) == 1
    assert note in capsys.readouterr().err


def test_a_bad_kernel_or_reference_is_noted_and_the_scores_stand(levin):
    write_image(levin / "results/im1_kernel1_img_k.png", np.random.default_rng(0).uniform(size=(5, 5, 3)))
    write_image(levin / "groundk/im2_kernel1_img.png", np.zeros((60, 75)))
    for i in (1, 2):
        write_image(levin / f"blurry/im{i}_kernel1_img.png", np.zeros((70, 74)))
    rows = by_name(score(levin))
    one, two = rows["im1_kernel1_img"], rows["im2_kernel1_img"]
    assert one["psnr"] is not None
    assert one["error_ratio"] is not None
    assert one["kernel_similarity"] is None
    assert "no kernel similarity" in one["note"]
    assert two["psnr"] is not None
    assert two["error_ratio"] is None
    assert two["kernel_similarity"] is None
    assert "74 x 70 against 75 x 70 of the sharp image; no kernel similarity" in two["note"]
    assert "75 x 60 against 75 x 70 of the sharp image; no error ratio" in two["note"]
    assert any(one["note"] in line for line in scoring.remarks(list(rows.values()), LEVIN))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"--results": "nowhere"}, "nowhere: no such folder (option --results)"),
        ({"--ground_truth": "nowhere"}, "nowhere: no such folder (option --ground_truth)"),
        ({"--true_kernel": "nowhere"}, "nowhere: no such folder (option --true_kernel)"),
        ({"--results": "gt"}, "gt: holds no result of levin"),
        ({"--maxshift": "16"}, "--maxshift: 16 found"),
        ({"--add_to": "t.csv"}, "--add_to: needs --method NAME and --source TEXT"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(levin, monkeypatch, capsys, options, message):
    monkeypatch.chdir(levin)
    options = {"--results": "results", "--ground_truth": "gt"} | options
    assert scoring.command_line(LEVIN, [word for pair in options.items() for word in pair]) == 2
    output = capsys.readouterr()
    assert output.err.startswith(f"error: {message}")
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_name_x_goes_before_name_and_kernels_are_not_results(levin):
    results = levin / "results"
    write_image(results / "im1_kernel1_img.png", np.zeros((70, 75)))
    write_image(results / "im1_kernel2_img.png", np.zeros((70, 75)))
    assert sorted(scoring.find_results(LEVIN, results)) == ["im1_kernel1_img", "im1_kernel2_img", "im2_kernel1_img"]
    found = scoring.find_results(None, results)
    assert found["im1_kernel1_img"].name == "im1_kernel1_img_x.png"
    assert sorted(found) == ["im1_kernel1_img", "im1_kernel2_img", "im2_kernel1_img"]


def test_lai_is_scored_on_matlabs_y_whatever_the_mode(tmp_path):
    colours = np.stack([generated.pattern(64, 70, k) for k in range(3)], 2).astype(np.uint8)
    y = metrics.luminance(colours / 255.0)
    (tmp_path / "gt").mkdir()
    (tmp_path / "results").mkdir()
    alpha = np.full((64, 70, 1), 7, np.uint8)
    cv2.imwrite(str(tmp_path / "gt/text_05.png"), np.concatenate([colours[..., ::-1], alpha], 2))
    cv2.imwrite(str(tmp_path / "gt/text_04.png"), np.rint(y * 255).astype(np.uint8))
    grey = np.rint(y * 65535).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "results/text_05_kernel_01.png"), grey)
    cv2.imwrite(str(tmp_path / "results/text_05_kernel_02_x.png"), colours[..., ::-1])
    cv2.imwrite(str(tmp_path / "results/text_04_kernel_01.png"), np.rint(y * 255).astype(np.uint8))
    rows = by_name(scoring.score_folder("lai", tmp_path / "results", tmp_path / "gt", blurry=tmp_path))
    assert rows["text_05_kernel_01"]["psnr"] > 100
    assert rows["text_05_kernel_02"]["psnr"] == rows["text_04_kernel_01"]["psnr"] == float("inf")
    assert len(rows) == 8
    groups = [(m["group"], m["images"], m["of"]) for m in scoring.averages(list(rows.values()), LAI)]
    assert groups[:3] == [("all", 3, 100), ("text", 3, 20), ("kernel_01", 2, 25)]


def test_a_grey_result_saved_in_three_channels_is_grey(levin):
    path = levin / "results/im1_kernel1_img_x.png"
    before = score(levin)[0]["psnr"]
    write_image(path, np.dstack([read_image(path)] * 3))
    assert score(levin)[0]["psnr"] == before


def test_the_rim_is_reported(levin):
    path = levin / "results/im1_kernel1_img_x.png"
    write_image(path, np.roll(read_image(path), 4, 0))
    rows = score(levin, maxshift=2)
    assert (rows[0]["shift_y"], rows[0]["on_rim"], rows[0]["maxshift"]) == (2, True, 2)
    line = next(line for line in scoring.remarks(rows, LEVIN) if "rim" in line)
    assert line.startswith("best shift on the rim of the search, 2 pixels: im1_kernel1_img (a larger --maxshift")
    assert score(levin, maxshift=5)[0]["on_rim"] is False


def test_aligned_images_are_saved(levin):
    path = levin / "results/im1_kernel1_img_x.png"
    image = read_image(path)
    write_image(path, np.roll(image, (2, -3), (0, 1)))
    score(levin, aligned=levin / "moved")
    np.testing.assert_array_equal(read_image(levin / "moved/im1_kernel1_img_aligned.png"), image[15:-15, 15:-15])


def test_without_a_benchmark_names_are_matched(levin):
    write_image(levin / "gt/im1_kernel1_img.png", read_image(levin / "gt/im1.png"))
    rows = by_name(scoring.score_folder(None, levin / "results", levin / "gt"))
    assert [r["status"] for r in rows.values()] == ["ok", "failed"]
    assert "im2_kernel1_img.png: the sharp image is missing" in rows["im2_kernel1_img"]["note"]
    assert scoring.averages(list(rows.values()))[0]["of"] == 2


@pytest.mark.processes
def test_the_scripts_run_from_anywhere(levin):
    for name in ("levin", "lai"):
        script = ROOT / "statistic" / f"statistic_{name}.py"
        run = subprocess.run(
            [sys.executable, script, "--results", "results", "--ground_truth", "gt", "--maxshift", "1"],
            cwd=levin,
            capture_output=True,
            text=True,
        )
        assert run.returncode == (0 if name == "levin" else 2), run.stderr
        assert "Traceback" not in run.stderr


def test_rows_are_added_to_a_table_and_replaced(levin, monkeypatch):
    monkeypatch.chdir(levin)
    table = levin / "levin.csv"
    argv = ["--results", str(levin / "results"), "--ground_truth", str(levin / "gt"), "--add_to", str(table)]
    argv += ["--method", "ours", "--source", "this test"]
    assert scoring.command_line(LEVIN, [*argv, "--preset", "fast"]) == 0
    assert scoring.command_line(LEVIN, [*argv, "--preset", "paper"]) == 0
    first = table.read_text()
    assert scoring.command_line(LEVIN, [*argv, "--preset", "paper", "--maxshift", "1"]) == 0
    rows = tables.read_csv(table, tables.RECORD_COLUMNS)
    assert [(r["preset"], r["maxshift"]) for r in rows] == [("fast", 10)] * 2 + [("paper", 1)] * 2
    assert rows[0]["seed"] == 3
    assert (rows[0]["method"], rows[0]["source"], rows[0]["finished"]) == ("ours", "this test", "yes")
    assert len(first.splitlines()) == 5


def test_the_table_names_sources_and_parts(levin):
    rows = score(levin)
    tables.add_to_record(levin / "levin.csv", rows, method="ours", preset="paper", source="measured")
    (levin / "published.csv").write_text(
        "benchmark,group,method,psnr,ssim,error_ratio,source\n"
        "levin,all,Theirs,33.10,.9310,,Somebody 2020 (table 1)\n"
        "lai,all,Others,20.00,.700,,Somebody 2020\n"
    )
    text = tables.markdown(LEVIN, levin, groups=True)
    lines = text.splitlines()
    assert lines[0].startswith("| method | PSNR | SSIM | error ratio |")
    mean = np.mean([r["psnr"] for r in rows if r["psnr"]])
    assert lines[2].startswith(f"| ours, paper | {mean:.2f} |")
    assert "| **2 of 32** |" in lines[2]
    assert lines[2].endswith("| measured |")
    assert lines[3] == "| Theirs | 33.10 | .9310 | – | – | published | – | Somebody 2020 (table 1) |"
    assert "Others" not in text
    assert "(1 of 8)" in lines[7]
    assert len({line.count("|") for line in lines[:4]}) == 1
    (levin / "levin.csv").write_text("method,preset\na,b\n")
    with pytest.raises(UserError, match="column 'image' is missing"):
        tables.markdown(LEVIN, levin)


def test_the_tables_of_the_repository_are_whole():
    for benchmark in (LEVIN, LAI):
        rows = tables.read_csv(ROOT / "results" / f"{benchmark.name}.csv", tables.RECORD_COLUMNS)
        assert rows
        for row in rows:
            assert row["method"]
            assert row["source"]
            assert row["psnr"] is not None
            assert benchmark.stem.fullmatch(row["image"])
        assert f"| {benchmark.images} |" in tables.markdown(benchmark, ROOT / "results")
    published = tables.read_csv(ROOT / "results" / tables.PUBLISHED, tables.PUBLISHED_COLUMNS)
    assert {row["benchmark"] for row in published} == {"levin", "lai"}
    assert all(row["source"] and row["psnr"] for row in published)
