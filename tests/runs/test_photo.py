"""The command ``selfdeblur PHOTO...``: which files are read and written, what is said, how it ends.

Most tests put a function that darkens a picture in the place of the method; one
takes the whole way.
"""

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage import data

from selfdeblur.__main__ import main
from selfdeblur.errors import UserError
from selfdeblur.restore import Restored
from selfdeblur.runs import photo

ROOT = Path(__file__).parents[2]
SMALL = data.camera()[100:150, 200:260]


@pytest.fixture
def stub(monkeypatch):
    """The method replaced: it halves a picture, thinks little of dark ones, fails on a mark and tells what it got."""
    calls = []

    def restore(array, **options):
        calls.append({"array": array, **options})
        assert array.min() >= 0
        assert array.max() <= 1
        if array.flat[0] > 0.98:
            raise UserError("the picture cannot be used")
        kernel = options["kernel"] if options["kernel"] is not None else np.full((3, 5), 1 / 15, np.float32)
        dark, flat = array.max() < 0.5, array.max() == array.min()
        reasons = ["the picture is flat"] if flat else ["the kernel makes an image that rings"] if dark else []
        return Restored(
            image=array if flat else array / 2,
            kernel=None if flat else kernel,
            kernel_size=None if flat else kernel.shape,
            noise=0.01,
            quality={"doubtful": bool(reasons), "reasons": reasons},
            seconds=0.1,
            improved=not reasons,
            unchanged=flat,
        )

    monkeypatch.setattr(photo, "restore", restore)
    return calls


def save(path, array=SMALL, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, array, **options)
    else:
        Image.fromarray(array).save(path, **options)
    return path


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def run(*words):
    return main([str(word) for word in words])


def test_one_photograph(stub, tmp_path, capsys):
    path = save(tmp_path / "photo.png")
    before = path.read_bytes()
    assert run(path) == 0
    assert names(tmp_path) == ["photo.png", "photo_deblurred.png", "photo_kernel.png"]
    assert path.read_bytes() == before
    result = np.asarray(Image.open(tmp_path / "photo_deblurred.png"))
    assert np.abs(result.astype(int) - SMALL / 2).max() <= 0.51
    assert np.asarray(Image.open(tmp_path / "photo_kernel.png")).shape == (3, 5)
    out, err = capsys.readouterr()
    assert "photo.png -> " in out
    assert "kernel 3 x 5" in out
    assert err == ""
    assert stub[0]["preset"] == "fast"
    assert stub[0]["kernel_size"] is None


def test_the_result_is_there_already(stub, tmp_path, capsys):
    path = save(tmp_path / "photo.png")
    assert run(path) == 0
    assert run(path) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert len(stub) == 1
    assert run(path, "--overwrite") == 0


def test_all_options_arrive(stub, tmp_path):
    path = save(tmp_path / "photo.png")
    words = "--preset quick --kernel-size 7 9 --noise 0.02 --time_limit 9 --device cpu --seed 3 --colour luminance"
    assert run(path, *words.split(), "--save-kernel", "--quiet") == 0
    got = stub[0]
    wanted = {"preset": "quick", "kernel_size": (7, 9), "noise": 0.02, "seed": 3, "colour": "luminance", "kernel": None}
    assert {name: got[name] for name in wanted} == wanted
    assert got["device"].type == "cpu"
    assert 8 < got["time_limit"] <= 9
    kernel = np.load(tmp_path / "photo_kernel.npy")
    assert kernel.shape == (3, 5)
    assert kernel.sum() == pytest.approx(1)


def test_a_known_kernel_is_read_and_not_written(stub, tmp_path):
    path = save(tmp_path / "photo.png")
    np.save(tmp_path / "k.npy", np.ones((5, 7)))
    assert run(path, "--kernel", tmp_path / "k.npy") == 0
    assert stub[0]["kernel"].shape == (5, 7)
    assert names(tmp_path) == ["k.npy", "photo.png", "photo_deblurred.png"]
    assert run(path, "--kernel", tmp_path / "k.npy", "--kernel_size", 9, "--overwrite") == 2


@pytest.mark.parametrize("given", ["-o", None])
def test_a_file_of_another_name_and_format(stub, tmp_path, given):
    path = save(tmp_path / "photo.png")
    words = [path, tmp_path / "new" / "sharp.jpg"]
    assert run(*([words[0], "-o", words[1]] if given else words)) == 0
    assert names(tmp_path / "new") == ["sharp.jpg", "sharp_kernel.png"]
    assert Image.open(tmp_path / "new" / "sharp.jpg").format == "JPEG"


def test_two_files_that_are_there_are_two_photographs(stub, tmp_path):
    a, b = save(tmp_path / "a.png"), save(tmp_path / "b.png")
    assert run(a, b) == 0
    assert names(tmp_path) == [
        *("a.png", "a_deblurred.png", "a_kernel.png", "b.png", "b_deblurred.png", "b_kernel.png"),
    ]


def test_the_input_is_never_overwritten_unless_told(stub, tmp_path, capsys):
    path = save(tmp_path / "photo.png")
    before = path.read_bytes()
    assert run(path, "-o", path) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert run(path, "-o", path, "--overwrite") == 0
    assert path.read_bytes() != before


@pytest.mark.parametrize("there", [False, True])
def test_two_folders(stub, tmp_path, there):
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "b.jpg")
    save(tmp_path / "in" / "sub" / "c.tif")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    if there:
        (tmp_path / "out").mkdir()
    assert run(tmp_path / "in", tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["a_deblurred.png", "a_kernel.png", "b_deblurred.jpg", "b_kernel.png"]
    assert run(tmp_path / "in", tmp_path / "out", "--recursive") == 0
    assert "sub/c_deblurred.tif" in names(tmp_path / "out")
    assert len(stub) == 3, "what was done before is left"


def test_a_folder_in_itself_does_not_take_results_for_photographs(stub, tmp_path, capsys):
    save(tmp_path / "a.png")
    assert run(tmp_path) == 0
    assert run(tmp_path) == 0
    assert len(stub) == 1
    assert "were deblurred before" in capsys.readouterr().err
    assert run(tmp_path, "--overwrite") == 0
    assert len(stub) == 2


@pytest.mark.parametrize("pair", [("a/x.png", "b/x.png"), ("a/x.png", "a/x.jpg"), ("a/x.png", "a/x.png")])
def test_two_that_would_write_one_file_stop_it_before_anything(stub, tmp_path, capsys, pair):
    paths = [save(tmp_path / name) for name in pair]
    assert run(*paths, "-o", tmp_path / "out") == 2
    assert "would both write" in capsys.readouterr().err
    assert not stub
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "PHOTO"),
        (["absent.png"], "absent.png: no such file"),
        (["{a}", "--preset", "slow"], "--preset"),
        (["{a}", "--kernel_size", "4"], "odd"),
        (["{a}", "--noise", "x"], "--noise"),
        (["{a}", "--time_limit", "0"], "--time_limit"),
        (["{a}", "-o", "new.xyz"], "suffix"),
        (["{a}", "{b}", "-o", "new.png"], "is one file for 2 pictures"),
        (["{folder}", "-o", "new.png"], "name a folder"),
        (["{folder}", "-o", "-"], "standard output holds one picture"),
        (["{a}", "--kernel", "absent.npy"], "absent.npy"),
        (["{a}", "--device", "tpu9"], "device"),
        (["-", "-", "{a}"], "standard input"),
        (["{empty}"], "no picture in it"),
        (["{a}", "--nonsense"], "--nonsense"),
    ],
)
def test_mistakes_are_one_line_and_status_2(stub, tmp_path, monkeypatch, capsys, words, reason):
    monkeypatch.chdir(tmp_path)
    places = {"a": save(tmp_path / "f" / "a.png"), "b": save(tmp_path / "f" / "b.png"), "folder": tmp_path / "f"}
    (tmp_path / "empty").mkdir()
    words = [word.format(**places, empty=tmp_path / "empty") for word in words]
    assert run(*words) == 2
    _, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert reason in err
    assert not stub
    assert names(tmp_path) == ["f/a.png", "f/b.png"]


def test_one_that_fails_does_not_stop_the_others(stub, tmp_path, capsys):
    marked = SMALL.copy()
    marked[0, 0] = 255
    paths = [save(tmp_path / "a.png", marked), tmp_path / "b.png", save(tmp_path / "c.png")]
    paths[1].write_bytes(paths[2].read_bytes()[:300])
    assert run(*paths) == 1
    err = capsys.readouterr().err
    assert f"{paths[0]}: the picture cannot be used" in err
    assert "truncated" in err
    assert (tmp_path / "c_deblurred.png").exists()
    assert not list(tmp_path.glob("[ab]_*"))


def test_no_reliable_improvement_is_status_3_and_written_unless_strict(stub, tmp_path, capsys):
    path = save(tmp_path / "dark.png", SMALL // 3)
    assert run(path, "--strict") == 3
    assert names(tmp_path) == ["dark.png"]
    assert run(path) == 3
    err = capsys.readouterr().err
    assert "no reliable improvement" in err
    assert "rings" in err
    assert "--preset best" in err, "what might help"
    assert (tmp_path / "dark_deblurred.png").exists()
    assert run(path, save(tmp_path / "good.png"), "--overwrite") == 3


def test_what_is_unchanged_comes_back_bit_for_bit(stub, tmp_path):
    path = tmp_path / "flat.jpg"
    Image.new("RGB", (50, 40), (90, 120, 30)).save(path, quality=40, comment=b"mine")
    one = np.asarray(Image.open(path))
    assert (one == one[0, 0]).all()
    assert run(path) in (0, 3)
    stub.clear()
    grey = save(tmp_path / "grey.png", np.full((40, 50), 77, np.uint8))
    assert run(grey) == 3
    assert (tmp_path / "grey_deblurred.png").read_bytes() == grey.read_bytes()
    assert not (tmp_path / "grey_kernel.png").exists()


def test_json_is_one_line_for_each_picture(stub, tmp_path, capsys):
    broken = tmp_path / "b.png"
    broken.write_bytes(b"no picture")
    paths = [save(tmp_path / "a.png"), broken, save(tmp_path / "dark.png", SMALL // 3)]
    assert run(*paths, "--json") == 1
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["status"] for line in lines] == ["improved", "failed", "doubtful"]
    assert lines[0]["input"] == str(paths[0])
    assert lines[0]["output"] == str(tmp_path / "a_deblurred.png")
    assert lines[0]["kernel"] == str(tmp_path / "a_kernel.png")
    assert lines[0]["kernel_size"] == [3, 5]
    assert lines[0]["noise"] == 0.01
    assert lines[0]["quality"] == {"doubtful": False}
    assert lines[0]["reasons"] == []
    assert lines[0]["seconds"] >= 0
    assert "not an image" in lines[1]["error"]
    assert lines[2]["reasons"] == ["the kernel makes an image that rings"]
    assert "a.png ->" in err


def test_standard_input_and_output(stub, tmp_path, monkeypatch, capsysbinary):
    content = io.BytesIO()
    Image.fromarray(SMALL).save(content, "JPEG", quality=90)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.getvalue())))
    assert run("-", "--json") == 0
    out, err = capsysbinary.readouterr()
    image = Image.open(io.BytesIO(out))
    assert image.format == "JPEG"
    assert np.asarray(image).mean() == pytest.approx(SMALL.mean() / 2, abs=1)
    assert json.loads(next(line for line in err.splitlines() if line.startswith(b"{")))["output"] == "-"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.getvalue())))
    assert run("-", "-o", tmp_path / "new.png") == 0
    assert names(tmp_path) == ["new.png", "new_kernel.png"]
    capsysbinary.readouterr()
    assert run(tmp_path / "new.png", "-o", "-", "--quiet") == 3
    out, _ = capsysbinary.readouterr()
    assert Image.open(io.BytesIO(out)).format == "PNG"


def test_pages(stub, tmp_path, capsys):
    stack = np.stack([SMALL, SMALL // 3, SMALL])
    path = save(tmp_path / "pages.tif", stack, photometric="minisblack")
    assert run(path, "--json") == 3
    assert np.abs(tifffile.imread(tmp_path / "pages_deblurred.tif") - stack / 2).max() <= 0.51
    assert sorted(p.name for p in tmp_path.glob("*kernel*")) == [f"pages_kernel_{n}.png" for n in (1, 2, 3)]
    (line,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert [bool(page["reasons"]) for page in line["pages"]] == [False, True, False]
    assert [call["kernel"] is None for call in stub] == [True] * 3
    stub.clear()
    assert run(path, "--kernel_from", "first", "-o", tmp_path / "one.tif") == 3
    assert [call["kernel"] is None for call in stub] == [True, False, False]
    assert (tmp_path / "one_kernel.png").exists()
    stub.clear()
    assert run(path, "--pages", "first", "-o", tmp_path / "first.tif") == 0
    assert len(stub) == 1
    assert len(tifffile.TiffFile(tmp_path / "first.tif").pages) == 1
    assert run(path, "-o", tmp_path / "new.png") == 1
    assert "holds one picture" in capsys.readouterr().err


def test_sixteen_bits_keep_their_scale(stub, tmp_path):
    array = SMALL.astype(np.uint16) * 16
    path = save(tmp_path / "slide.tif", array, resolution=(15748, 15748))
    assert run(path) == 0
    with tifffile.TiffFile(tmp_path / "slide_deblurred.tif") as file:
        result = file.asarray()
        assert file.pages[0].tags[282].value == (15748, 1)
    assert result.dtype == np.uint16
    assert np.abs(result - array / 2).max() <= 1


def test_alpha_reaches_the_method_and_the_file(stub, tmp_path):
    alpha = np.full(SMALL.shape, 255, np.uint8)
    alpha[:10] = 0
    path = save(tmp_path / "a.png", np.dstack([SMALL] * 3 + [alpha]))
    assert run(path) == 0
    assert np.array_equal(stub[0]["opaque"], alpha > 0)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a_deblurred.png"))[:, :, 3], alpha)


def test_the_report_compares_before_and_after(stub, tmp_path):
    path = save(tmp_path / "photo.png")
    assert run(path, "--report") == 0
    page = (tmp_path / "photo_deblurred.html").read_text()
    assert "photo" in page
    assert page.count("data:image/") >= 3
    save(tmp_path / "dark.png", SMALL // 3)
    assert run(path, tmp_path / "dark.png", "--report", "--overwrite") == 3
    assert "rings" in (tmp_path / "deblurred.html").read_text()


def test_sub_commands_stay_and_a_file_of_their_name_is_told_apart(stub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "report.png").rename(tmp_path / "report")
    assert run("report") == 2
    assert "RESULTS_DIR" in capsys.readouterr().err
    assert run("./report", "-o", "new.png") == 0
    with pytest.raises(SystemExit) as ended:
        run("--version")
    assert ended.value.code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_there_is_a_result_ends_with_130(stub, tmp_path, monkeypatch, capsys, number):
    paths = [save(tmp_path / "a.png"), save(tmp_path / "b.png")]
    monkeypatch.setattr(photo, "restore", lambda *_, **__: signal.raise_signal(number))
    assert run(*paths) == 130
    assert "interrupted" in capsys.readouterr().err
    assert names(tmp_path) == ["a.png", "b.png"]


def test_an_interrupt_in_the_midst_writes_the_best_so_far_and_ends(stub, tmp_path, monkeypatch):
    whole = photo.restore

    def interrupted(array, **options):
        result = whole(array, **options)
        quality = {"doubtful": True, "reasons": ["ended early: interrupted"]}
        return replace(result, stopped="interrupted", improved=False, quality=quality)

    monkeypatch.setattr(photo, "restore", interrupted)
    paths = [save(tmp_path / "a.png"), save(tmp_path / "b.png")]
    assert run(*paths) == 130
    assert names(tmp_path) == ["a.png", "a_deblurred.png", "a_kernel.png", "b.png"]


# The whole way


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_the_whole_way(tmp_path):
    rng = np.random.default_rng(0)
    image = data.coins().astype(float)
    image = sum(np.roll(image, (i, i), (0, 1)) for i in range(-2, 3)) / 5
    sharp, image = (picture[60:150, 120:210] for picture in (data.coins().astype(float), image))
    blurry = image + 0.5 * rng.standard_normal(image.shape)
    path = save(tmp_path / "photo.png", np.clip(blurry, 0, 255).astype(np.uint8))
    command = [sys.executable, "-m", "selfdeblur", path, "--preset", "quick", "--kernel_size", "7", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path)
    line = json.loads(done.stdout)
    assert done.returncode == {"improved": 0, "doubtful": 3, "unchanged": 3}[line["status"]]
    assert names(tmp_path) == ["photo.png", "photo_deblurred.png", "photo_kernel.png"]
    result = np.asarray(Image.open(tmp_path / "photo_deblurred.png")).astype(float)

    def error(image):
        shifts = [(i, j) for i in range(-3, 4) for j in range(-3, 6)]
        return min(np.mean((image - np.roll(sharp, by, (0, 1)))[10:-10, 10:-10] ** 2) for by in shifts)

    assert error(result) < error(blurry) / 2
