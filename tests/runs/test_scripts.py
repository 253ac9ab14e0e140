"""The two benchmark scripts, run as a user runs them, on tiny images."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch
from common import ROOT
from processes import Program, run

from networks import KernelGenerator, SkipGenerator
from selfdeblur.data.benchmarks import LEVIN
from selfdeblur.runs.command import benchmark_main

LEVIN_NAME, LAI_NAME = "im1_kernel5_img", "text_01_kernel_01"


def script(name, *arguments):
    """Run a script of the top folder in a new interpreter; returns the finished process."""
    command = [sys.executable, str(ROOT / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def options_of(folder, *arguments):
    return "--data_path", folder / "data", "--save_path", folder / "out", "--device", "cpu", "--threads", 1, *arguments


def levin(folder, *arguments, thin=True):
    """Run the Levin script as a process that has the packages loaded, by default with thin generators."""
    return run("selfdeblur_levin.py", *options_of(folder, *arguments), thin=thin)


@pytest.mark.processes
def test_a_reader_that_stops_early_is_no_error():
    command = [sys.executable, "-c", "import sys; from selfdeblur.arguments import guarded\n"
               "sys.exit(guarded(lambda: print('line\\n' * 100_000)))"]  # fmt: skip
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def mistake(process):
    """The one line of a user's mistake."""
    assert process.returncode == 2, process.stderr
    assert process.stdout == ""
    lines = process.stderr.splitlines()
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def folder(tmp_path, picture):
    (tmp_path / "data").mkdir()
    cv2.imwrite(str(tmp_path / "data" / f"{LEVIN_NAME}.png"), (picture[:40, :44] * 255).astype(np.uint8))
    return tmp_path


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.processes
def test_levin_from_start_to_models(folder):
    process = script("selfdeblur_levin.py", *options_of(folder, "--num-iter", 3, "--save_frequency", 2))
    assert process.returncode == 0, process.stderr
    out = folder / "out"
    assert {p.name for p in out.iterdir()} == {"config.json"} | {
        LEVIN_NAME + s for s in ("_x.png", "_k.png", "_xnet.pth", "_knet.pth", "_history.csv", ".json")
    }
    assert cv2.imread(str(out / f"{LEVIN_NAME}_x.png"), -1).shape == (40, 44)
    kernel = cv2.imread(str(out / f"{LEVIN_NAME}_k.png"), -1)
    assert kernel.shape == (11, 11)
    assert kernel.max() == 255
    record = json.loads((out / f"{LEVIN_NAME}.json").read_text())
    assert (record["steps"], record["finished"], record["kernel_size"]) == (3, True, [11, 11])
    assert json.loads((out / "config.json").read_text())["settings"]["mse_steps"] == 1000
    with open(out / f"{LEVIN_NAME}_history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["loss"]) == record["loss"]
    SkipGenerator().load_state_dict(torch.load(out / f"{LEVIN_NAME}_xnet.pth", weights_only=True))
    KernelGenerator((11, 11)).load_state_dict(torch.load(out / f"{LEVIN_NAME}_knet.pth", weights_only=True))

    before = files(out)
    assert "1 finished before" in levin(folder, "--num_iter", 3, thin=False).stdout
    assert files(out) == before
    (out / f"{LEVIN_NAME}_x.png").unlink()
    (out / f"{LEVIN_NAME}_k.png").unlink()
    assert levin(folder, "--reproduce").returncode == 0
    assert files(out) == before
    assert "1 deblurred" in levin(folder, "--num_iter", 3, "--overwrite", thin=False).stdout
    after = files(out)
    same = before.keys() - {f"{LEVIN_NAME}.json"}
    assert {name: after[name] for name in same} == {name: before[name] for name in same}


@pytest.mark.processes
def test_lai_with_sizes_of_its_table(tmp_path, picture):
    (tmp_path / "data").mkdir()
    cv2.imwrite(str(tmp_path / "data" / f"{LAI_NAME}.png"), (picture[:40, :44] * 255).astype(np.uint8))
    process = script(
        "selfdeblur_lai.py", "--data_path", tmp_path / "data", "--save-path", tmp_path / "out", "--num_iter=2",
        "--preset", "release", "--seed", 3, "--threads", 1,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert cv2.imread(str(tmp_path / "out" / f"{LAI_NAME}_k.png"), -1).shape == (31, 31)
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["settings"]
    assert (settings["mse_steps"], settings["seed"]) == (500, 3)


@pytest.mark.processes
def test_a_known_kernel(folder):
    kernel = np.zeros((5, 7), np.uint8)
    kernel[2, 1:6] = 255
    cv2.imwrite(str(folder / "kernel.png"), kernel)
    process = levin(folder, "--kernel", folder / "kernel.png", "--num_iter", 2)
    assert process.returncode == 0, process.stderr
    assert np.array_equal(cv2.imread(str(folder / "out" / f"{LEVIN_NAME}_k.png"), -1), kernel)
    assert not (folder / "out" / f"{LEVIN_NAME}_knet.pth").exists()
    assert json.loads((folder / "out" / "config.json").read_text())["settings"]["preset"] == "nonblind"


@pytest.mark.processes
def test_kernel_size_of_two_numbers_or_estimated(folder):
    (folder / "data" / f"{LEVIN_NAME}.png").rename(folder / "data" / "holiday.png")
    assert levin(folder, "--num_iter", 1, "--kernel_size", 7, 9).returncode == 0
    assert cv2.imread(str(folder / "out" / "holiday_k.png"), -1).shape == (7, 9)
    for options in ([], ["--kernel_size", "auto"]):
        out = folder / f"out{len(options)}"
        assert levin(folder, "--num_iter", 1, "--save_path", out, *options).returncode == 0
        size = json.loads((out / "holiday.json").read_text())["kernel_size"]
        assert size[0] == size[1] >= 3
        assert cv2.imread(str(out / "holiday_k.png"), -1).shape == tuple(size)
        assert levin(folder, "--num_iter", 1, "--save_path", out, *options).returncode == 0, "finished before"
    assert "auto 7" in mistake(levin(folder, "--num_iter", 1, "--kernel_size", "auto", 7))


@pytest.mark.processes
def test_an_interrupted_run_goes_on_to_the_same_files(folder):
    options = ["--num_iter", 12, "--checkpoint_every", 1]
    assert levin(folder, *options, "--save_path", folder / "whole", thin=False).returncode == 0
    checkpoint = folder / "out" / f"{LEVIN_NAME}_checkpoint.pth"
    for number, status in ((signal.SIGTERM, 130), (signal.SIGKILL, -9)):
        program = Program("selfdeblur_levin.py", *options_of(folder, *options))
        old = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while program.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == old):
            time.sleep(0.01)
        program.send_signal(number)
        assert program.wait(60).returncode == status
        assert checkpoint.exists()
    assert levin(folder, *options, thin=False).returncode == 0
    assert not checkpoint.exists()
    whole, resumed = files(folder / "whole"), files(folder / "out")
    for suffix in ("_x.png", "_k.png", "_xnet.pth", "_knet.pth", "_history.csv"):
        assert whole[LEVIN_NAME + suffix] == resumed[LEVIN_NAME + suffix], suffix


@pytest.mark.processes
def test_one_bad_image_does_not_stop_the_others(folder):
    (folder / "data" / "im2_kernel5_img.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    process = levin(folder, "--num_iter", 1)
    assert process.returncode == 2
    assert "im2_kernel5_img.png" in process.stderr
    assert "1 deblurred, 1 failed" in process.stdout
    assert (folder / "out" / f"{LEVIN_NAME}_x.png").exists()
    with open(folder / "out" / "failures.csv", newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["im2_kernel5_img"]


@pytest.mark.processes
def test_results_of_other_settings_are_not_mixed(folder):
    assert levin(folder, "--num_iter", 1).returncode == 0
    before = files(folder / "out")
    assert "num_iter 1 there, 2 now" in mistake(levin(folder, "--num_iter", 2))
    assert "kernel_size" in mistake(levin(folder, "--num_iter", 1, "--kernel_size", 9))
    assert {k: v for k, v in files(folder / "out").items() if k != "failures.csv"} == before


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--kernel_size", "8"], "kernel_size"),
        (["--kernel_size", "-3"], "kernel_size"),
        (["--kernel_size", "0"], "kernel_size"),
        (["--kernel_size", "big"], "kernel_size"),
        (["--num_iter", "-1"], "num_iter"),
        (["--num_iter", "0"], "num_iter"),
        (["--preset", "magic"], "preset"),
        (["--preset", "nonblind"], "--kernel"),
        (["--kernel", "no-such-kernel.png"], "no-such-kernel.png"),
        (["--kernel", "black.png"], "black.png"),
        (["--images", "nothing*"], "nothing*"),
        (["--data_path", "no-such-folder"], "no-such-folder"),
        (["--data_path", "empty"], "empty"),
        (["--shard", "3/2"], "shard"),
        (["--magic"], "--magic"),
        (["--tv_weight", "-1"], "tv_weight"),
        pytest.param(
            ["--device", "cuda"], "cuda", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
        ),
    ],
)
def test_a_mistake_is_one_line(folder, arguments, word, monkeypatch, capsys):
    (folder / "empty").mkdir()
    cv2.imwrite(str(folder / "black.png"), np.zeros((5, 5), np.uint8))
    monkeypatch.chdir(folder)
    assert benchmark_main(LEVIN, ["--data_path=data", "--save_path=out", "--num_iter=1", *arguments]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1
    assert word in errors
    assert not list(folder.glob("out/*_x.png"))


@pytest.mark.processes
def test_an_image_smaller_than_the_kernel(folder):
    process = levin(folder, "--num_iter", 1, "--kernel_size", 45)
    assert "smaller than the kernel" in mistake(process)


@pytest.mark.processes
def test_a_folder_that_cannot_be_written(folder):
    (folder / "out").write_text("a file where the folder should be")
    assert "out" in mistake(levin(folder, "--num_iter", 1))
    assert (folder / "out").read_text() == "a file where the folder should be"


@pytest.mark.processes
def test_a_read_only_folder(folder):
    (folder / "out").mkdir(mode=0o555)
    with contextlib.ExitStack() as stack:
        if os.access(folder / "out", os.W_OK):  # as root
            mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder / "out"]
            if subprocess.run(mount, capture_output=True, check=False).returncode:
                pytest.skip("NOT TESTED: a read-only folder, because this user may write everywhere and not mount")
            stack.callback(subprocess.run, ["umount", folder / "out"], check=True)
        assert "cannot be written" in mistake(levin(folder, "--num_iter", 1))


@pytest.mark.processes
def test_reproduce_without_models(folder):
    assert "no such model" in levin(folder, "--reproduce").stderr


@pytest.mark.processes
def test_shards_divide_the_images(folder):
    for name in ("im2_kernel5_img", "im3_kernel5_img"):
        (folder / "data" / f"{name}.png").write_bytes((folder / "data" / f"{LEVIN_NAME}.png").read_bytes())
    for shard, count in (("1/2", "2 of"), ("2/2", "1 of")):
        assert levin(folder, "--num_iter", 1, "--shard", shard).stdout.splitlines()[-1].startswith(count)
    assert "3 finished before" in levin(folder, "--num_iter", 1).stdout
    images = [(folder / "out" / f"im{n}_kernel5_img_x.png").read_bytes() for n in (1, 2, 3)]
    assert images[0] == images[1] == images[2]
