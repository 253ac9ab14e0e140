"""The page of ``python -m selfdeblur report``, without a browser: what it holds, from which files."""

import base64
import csv
import hashlib
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from processes import run as run_program
from scipy import ndimage, signal

from selfdeblur.arguments import Parser
from selfdeblur.errors import UserError
from selfdeblur.files.images import read_image, write_image
from selfdeblur.scores import report, scoring

SETTINGS = {"preset": "release", "num_iter": 60, "mse_steps": 20, "seed": 0, "milestones": [30, 40]}


def kernel_of(number):
    """A lopsided kernel in the correlation sense, (9, 9)."""
    kernel = np.zeros((9, 9))
    kernel[1, 1 + number % 3 : 8] = np.arange(1, 8 - number % 3)
    kernel[1:7, 7] += 2
    return kernel / kernel.sum()


def make_results(folder, names=("im1_kernel1_img", "im1_kernel4_img", "im2_kernel1_img"), *, size=(96, 120)):
    """Blurry images, truths and results of generated textures in Levin's layout: (results, blurry) folders."""
    rng = np.random.default_rng(0)
    results, blurry = Path(folder) / "results", Path(folder) / "levin"
    for name in names:
        truth_name, kernel_name = name.split("_")[:2]
        number = int(truth_name.removeprefix("im"))
        truth = ndimage.gaussian_filter(np.random.default_rng(number).random(size), 1.2)
        truth = (truth - truth.min()) / np.ptp(truth)
        kernel = kernel_of(int(kernel_name.removeprefix("kernel")))
        wide = np.pad(truth, 4, mode="reflect")
        write_image(blurry / "gt" / f"{truth_name}.png", truth)
        write_image(blurry / "gt" / f"{kernel_name}.png", kernel / kernel.max())
        write_image(blurry / f"{name}.png", signal.correlate(wide, kernel, "valid"))
        write_image(blurry / "groundk" / f"{name}.png", truth + 0.01 * rng.standard_normal(size))
        write_result(results, blurry, name, truth + 0.02 * rng.standard_normal(size), kernel)
    (results / "config.json").write_text(json.dumps({"settings": SETTINGS}))
    return results, blurry


def write_result(results, blurry, name, image, kernel, **changes):
    """The files that a run leaves for one image."""
    write_image(results / f"{name}_x.png", image)
    write_image(results / f"{name}_k.png", kernel / kernel.max())
    with open(results / f"{name}_history.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "objective", "loss"])
        writer.writerows([s, "mse" if s <= 20 else "1-ssim", 1 / s if s <= 20 else 3 / s] for s in range(1, 61))
    record = {"image": name, "blurry": str(blurry / f"{name}.png"), "kernel_size": list(kernel.shape)}
    record |= {"settings": SETTINGS, "steps": 60, "finished": True, "seconds": 12.5, "device": "cpu", "loss": 0.05}
    (results / f"{name}.json").write_text(json.dumps(record | changes))


def change_record(results, name, **changes):
    path = results / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def images_of(data):
    return {image["name"]: image for image in data["images"]}


def picture(data, image, key):
    """The embedded picture as an array, range 0 to 1."""
    content = base64.b64decode(data["pictures"][image["pictures"][key]].split(",")[1])
    array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) / 255
    return array[:, :, ::-1] if array.ndim == 3 else array


def run(*words):
    parser = Parser()
    report.add_arguments(parser)
    return report.main(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def results(tmp_path):
    return make_results(tmp_path)[0]


def test_page_is_written_beside_the_results(results, capsys):
    assert run(results) == 0
    page = (results / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert str(results / "report.html") in capsys.readouterr().out


def test_scores_are_those_of_the_scoring_module(results, tmp_path):
    rows = scoring.score_folder(
        "levin", results, tmp_path / "levin/gt", tmp_path / "levin/groundk", blurry=tmp_path / "levin"
    )
    rows = {row["image"]: row for row in rows if row["result"]}
    images = images_of(data_of(report.render(results)))
    assert images.keys() == rows.keys()
    for name, image in images.items():
        assert image["scores"] == {key: rows[name][key] for key in (*scoring.SCORES, "shift_y", "shift_x")}
        assert image["state"] == "finished"


def test_pictures_are_the_files(results, tmp_path):
    data = data_of(report.render(results))
    image = images_of(data)["im1_kernel4_img"]
    for key, path in (
        ("blurry", tmp_path / "levin/im1_kernel4_img.png"),
        ("deblurred", results / "im1_kernel4_img_x.png"),
        ("truth", tmp_path / "levin/gt/im1.png"),
        ("kernel", results / "im1_kernel4_img_k.png"),
    ):
        np.testing.assert_array_equal(picture(data, image, key), read_image(path))


def test_a_shared_picture_is_kept_once(results):
    images = images_of(data_of(report.render(results)))
    assert images["im1_kernel1_img"]["pictures"]["truth"] == images["im1_kernel4_img"]["pictures"]["truth"]
    assert images["im1_kernel1_img"]["pictures"]["truth"] != images["im2_kernel1_img"]["pictures"]["truth"]


@pytest.mark.parametrize("turned", [False, True])
def test_true_kernel_is_shown_in_the_sense_of_the_estimated_one(results, tmp_path, turned):
    path = tmp_path / "levin/gt/kernel4.png"
    kernel = read_image(path)
    if turned:
        write_image(path, kernel[::-1, ::-1])
    data = data_of(report.render(results))
    np.testing.assert_array_equal(picture(data, images_of(data)["im1_kernel4_img"], "true_kernel"), kernel)


def test_error_map_is_taken_after_alignment(results, tmp_path):
    truth = read_image(tmp_path / "levin/gt/im1.png")
    write_image(results / "im1_kernel1_img_x.png", np.roll(truth, (2, -3), (0, 1)))
    data = data_of(report.render(results))
    image = images_of(data)["im1_kernel1_img"]
    assert (image["scores"]["shift_y"], image["scores"]["shift_x"]) == (2, -3)
    assert picture(data, image, "error").shape == (96 - 30, 120 - 30, 3)
    darkest = data["error_scale"]["colours"][0]
    shown = np.unique(np.rint(255 * picture(data, image, "error")).astype(int).reshape(-1, 3), axis=0)
    assert ["#" + "".join(f"{c:02x}" for c in colour) for colour in shown] == [darkest]
    other = picture(data, images_of(data)["im2_kernel1_img"], "error")
    assert other.max() > 0.5


def test_equal_images_do_not_break_the_page(results, tmp_path):
    write_image(results / "im1_kernel1_img_x.png", read_image(tmp_path / "levin/gt/im1.png"))
    image = images_of(data_of(report.render(results)))["im1_kernel1_img"]
    assert "psnr" not in image["scores"]
    assert "infinite" in image["problem"]


def test_nothing_is_loaded_from_elsewhere(results):
    page = report.render(results)
    addresses = {a for a in re.findall(r"""[a-z]+://[^\s"'<>]*""", page) if a != "http://www.w3.org/2000/svg"}
    assert addresses == set()
    assert re.findall(r"""(?:src|href)=["'](?!data:,)""", page) == []
    assert "default-src 'none'" in page
    assert all(uri.startswith("data:image/") for uri in data_of(page)["pictures"].values())


def test_names_and_settings_cannot_become_markup(tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    results = tmp_path / 'a <b> & "c"'
    write_result(results, tmp_path, evil, np.full((40, 40), 0.5), kernel_of(1), settings={"note": "</script><b>&"})
    (results / "config.json").write_text(json.dumps({"<i>": "</script><script>alert(2)</script>"}))
    page = report.render(results)
    assert "<title>a &lt;b&gt; &amp; &quot;c&quot;: SelfDeblur report</title>" in page
    assert page.count("<script") == page.count("</script>") == 2
    assert evil not in page
    block = re.search(r'id="data">(.*?)</script>', page, re.S)[1]
    assert not set(block) & set("<>&\u2028\u2029")
    data = data_of(page)
    assert data["images"][0]["name"] == evil
    assert data["images"][0]["settings"] == {"note": "</script><b>&"}
    assert data["settings"] == {"<i>": "</script><script>alert(2)</script>"}


def test_works_without_truth(results, tmp_path):
    for path in (tmp_path / "levin/gt").iterdir():
        path.unlink()
    (tmp_path / "levin/gt").rmdir()
    data = data_of(report.render(results))
    assert any("--ground_truth" in notice for notice in data["notices"])
    assert [figure["label"] for figure in data["figures"]] == ["Images finished", "Time per image"]
    for image in data["images"]:
        assert image["scores"] == {}
        assert {"blurry", "deblurred", "kernel"} <= image["pictures"].keys()
        assert not {"truth", "error", "true_kernel"} & image["pictures"].keys()


def test_works_without_the_blurry_images(results, tmp_path):
    (tmp_path / "levin").rename(tmp_path / "gone")
    data = data_of(report.render(results, ground_truth=tmp_path / "gone/gt"))
    image = images_of(data)["im2_kernel1_img"]
    assert image["scores"]["psnr"] > 30
    assert "blurry" not in image["pictures"]


def test_a_copy_is_not_compared_with_the_benchmarks_own_images(tmp_path, monkeypatch):
    make_results(tmp_path / "datasets")
    results, blurry = make_results(tmp_path / "copy")
    for path in (blurry / "gt").iterdir():
        path.unlink()
    (blurry / "gt").rmdir()
    monkeypatch.chdir(tmp_path)
    assert all(image["scores"] == {} for image in data_of(report.render(results))["images"])


def test_defaults_are_the_benchmarks_folders(tmp_path, monkeypatch):
    results, _ = make_results(tmp_path / "datasets")
    for path in results.glob("*.json"):
        path.unlink()
    monkeypatch.chdir(tmp_path)
    data = data_of(report.render(results))
    assert all({"psnr", "error_ratio"} <= image["scores"].keys() for image in data["images"])
    assert "Levin benchmark" in data["subtitle"]


@pytest.mark.parametrize("same", [True, False])
def test_a_moved_folder_is_found_again_by_what_is_in_its_files(tmp_path, monkeypatch, same):
    results, blurry = make_results(tmp_path / "datasets")
    content = (blurry / "im1_kernel1_img.png").read_bytes() if same else b"another picture"
    change_record(results, "im1_kernel1_img", identity={"blurry_sha256": hashlib.sha256(content).hexdigest()})
    for name in ("im1_kernel1_img", "im1_kernel4_img", "im2_kernel1_img"):
        change_record(results, name, blurry=f"elsewhere/{name}.png")
    monkeypatch.chdir(tmp_path)
    assert all(bool(image["scores"]) == same for image in data_of(report.render(results))["images"])


def test_a_part_never_looks_like_the_whole(results, tmp_path):
    change_record(results, "im1_kernel4_img", finished=False, steps=30)
    blurry = tmp_path / "levin"
    write_image(blurry / "im2_kernel4_img.png", np.full((96, 120), 0.5))
    write_image(blurry / "im2_kernel5_img.png", np.full((96, 120), 0.5))
    (results / "im2_kernel5_img_checkpoint.pth").write_bytes(b"")
    data = data_of(report.render(results))
    images = images_of(data)
    assert {name: image["state"] for name, image in images.items()} == {
        "im1_kernel1_img": "finished",
        "im1_kernel4_img": "unfinished",
        "im2_kernel1_img": "finished",
        "im2_kernel4_img": "missing",
        "im2_kernel5_img": "unfinished",
    }
    assert (images["im1_kernel4_img"]["steps"], images["im1_kernel4_img"]["num_iter"]) == (30, 60)
    first = data["figures"][0]
    assert (first["value"], first["unit"], first["note"]) == ("2", "of 5", "2 unfinished, 1 missing")
    notices = " ".join(data["notices"])
    assert "PARTIAL: only 3 of 5" in notices
    assert "5 of 32 images of levin" in notices


def test_the_benchmarks_size_counts_where_nothing_else_is_known(results, tmp_path):
    (tmp_path / "levin").rename(tmp_path / "gone")
    data = data_of(report.render(results))
    assert data["figures"][0]["unit"] == "of 32"
    assert "PARTIAL: only 3 of 32 images are finished." in data["notices"]


def test_results_of_another_program(tmp_path):
    folder = tmp_path / "other"
    rng = np.random.default_rng(1)
    for name in ("holiday", "cat_x"):
        write_image(folder / f"{name}.png", rng.random((64, 50, 3)))
    data = data_of(report.render(folder))
    assert {i["name"]: i["state"] for i in data["images"]} == {"holiday": "finished", "cat": "finished"}
    assert picture(data, data["images"][0], "deblurred").shape == (64, 50, 3)


def test_colour_results_with_truth(tmp_path):
    rng = np.random.default_rng(1)
    truth = ndimage.gaussian_filter(rng.random((80, 90, 3)), (1, 1, 0))
    write_image(tmp_path / "gt/photo.png", truth)
    write_image(tmp_path / "out/photo_x.png", truth + 0.01 * rng.standard_normal(truth.shape))
    data = data_of(report.render(tmp_path / "out", ground_truth=tmp_path / "gt"))
    image = data["images"][0]
    assert image["scores"]["psnr"] > 35
    assert picture(data, image, "truth").shape == (80, 90, 3)
    assert picture(data, image, "error").shape == (50, 60, 3)


def test_damaged_files_cost_their_own_image_only(results):
    path = results / "im1_kernel4_img_x.png"
    path.write_bytes(path.read_bytes()[:30])
    (results / "im2_kernel1_img.json").write_text("{")
    (results / "im1_kernel1_img_history.csv").write_text("step,loss\n1,0.5\n2,")
    images = images_of(data_of(report.render(results)))
    assert images["im1_kernel4_img"]["state"] == "failed"
    assert "im1_kernel4_img_x.png" in images["im1_kernel4_img"]["problem"]
    assert images["im2_kernel1_img"]["state"] == "unfinished"
    assert images["im1_kernel1_img"]["state"] == "finished"
    assert images["im1_kernel1_img"]["history"]["step"] == [1]


def test_truth_of_another_size_is_not_scored(results, tmp_path):
    write_image(tmp_path / "levin/gt/im2.png", np.full((90, 120), 0.5))
    images = images_of(data_of(report.render(results)))
    assert images["im2_kernel1_img"]["state"] == "failed"
    assert "sizes differ" in images["im2_kernel1_img"]["problem"]
    assert "truth" not in images["im2_kernel1_img"]["pictures"]
    assert images["im1_kernel1_img"]["scores"]["psnr"] > 30


def test_recorded_failures_are_shown(results):
    (results / "failures.csv").write_text("image,reason\nim1_kernel1_img,too dark\n")
    assert images_of(data_of(report.render(results)))["im1_kernel1_img"]["problem"] == "too dark"


def test_loss_curve_is_thinned_and_knows_where_the_loss_changes(results):
    image = images_of(data_of(report.render(results)))["im1_kernel1_img"]
    assert image["history"]["changes"] == [{"step": 21, "label": "MSE → 1 − SSIM"}]
    assert image["history"]["step"] == list(range(1, 61))
    lines = [f"{step},{1 / step}" for step in range(1, 5001)]
    (results / "im1_kernel1_img_history.csv").write_text("\n".join(["step,loss", *lines]))
    history = images_of(data_of(report.render(results)))["im1_kernel1_img"]["history"]
    assert len(history["step"]) <= report.CURVE_POINTS + 1
    assert (history["step"][0], history["step"][-1]) == (1, 5000)
    assert history["changes"] == []


def test_quality_and_settings_of_an_image(results):
    change_record(results, "im1_kernel1_img", quality={"flagged": True, "border": 0.3}, settings=SETTINGS | {"seed": 7})
    change_record(results, "im2_kernel1_img", quality={"flagged": False, "border": 0.1})
    data = data_of(report.render(results))
    images = images_of(data)
    assert images["im1_kernel1_img"]["flagged"]
    assert images["im1_kernel1_img"]["quality"] == {"flagged": True, "border": 0.3}
    assert images["im1_kernel1_img"]["differing"] == ["seed"]
    assert not images["im2_kernel1_img"]["flagged"]
    assert images["im2_kernel1_img"]["differing"] == []
    assert "1 doubtful" in data["figures"][0]["note"]


def test_large_pictures_are_reduced_unless_asked(results):
    def shape(max_side):
        data = data_of(report.render(results, max_side=max_side))
        image = images_of(data)["im1_kernel1_img"]
        assert image["size"] == [96, 120]
        assert image["reduced"] == (0 < max_side < 120)
        return picture(data, image, "deblurred").shape

    assert shape(60) == (48, 60)
    assert shape(120) == shape(0) == (96, 120)


def test_options_take_hyphens_and_underscores(results, tmp_path):
    gt, groundk, blurry = (tmp_path / "levin" / name for name in ("gt", "groundk", ""))
    words = [results, "--benchmark", "levin", "--maxshift", 3]
    first = ["--data_path", blurry, "--ground_truth", gt, "--true_kernel", groundk, "--max_side", 50]
    for options in (first, [str(word).replace("_", "-") if str(word)[:2] == "--" else word for word in first]):
        output = tmp_path / "page.html"
        assert run(*words, *options, "--output", output) == 0
        assert data_of(output.read_text())["images"][0]["reduced"]
        output.unlink()


@pytest.mark.parametrize("found", ["nothing", "a file", "an empty folder", "no result", "no levin result"])
def test_bad_results_folder_is_one_line(tmp_path, found):
    folder = tmp_path / "there"
    if found == "a file":
        folder.write_text("")
    elif found != "nothing":
        folder.mkdir()
    if found == "no result":
        (folder / "notes.txt").write_text("")
    if found == "no levin result":
        write_image(folder / "cat_x.png", np.zeros((20, 20)))
    with pytest.raises(UserError) as caught:
        report.render(folder, benchmark="levin" if "levin" in found else "auto")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--ground_truth", "nowhere"], "--ground_truth"),
        (["--data_path", "nowhere"], "--data_path"),
        (["--true_kernel", "nowhere"], "--true_kernel"),
        (["--maxshift", "16"], "--maxshift"),
        (["--max_side", "-1"], "--max_side"),
        (["--output", "."], "--output"),
    ],
)
def test_bad_options_name_themselves_and_leave_the_page(results, words, named):
    (results / "report.html").write_text("before")
    with pytest.raises(UserError, match=named):
        run(results, *words)
    assert (results / "report.html").read_text() == "before"
    assert not list(results.glob(".report*"))


@pytest.mark.processes
def test_command_line_exit_status(results, tmp_path):
    done = run_program("-m", "selfdeblur", "report", tmp_path / "nowhere")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    done = run_program("-m", "selfdeblur", "report", results, "--output", tmp_path / "page.html", "--max-side", 50)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").stat().st_size > 10_000
