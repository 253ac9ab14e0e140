"""Kills, full disks, numbers that are none: what was computed stays, what is on disk is whole.

The long form, 200 kills, is marked slow: python -m pytest -m slow tests/runs/test_faults.py
"""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time

import cv2
import numpy as np
import pytest
import torch
from common import ROOT
from processes import Program

from selfdeblur import UserError
from selfdeblur.data.benchmarks import LEVIN
from selfdeblur.errors import OutputError
from selfdeblur.files import atomic as files
from selfdeblur.files.records import read_json
from selfdeblur.files.tensors import read_torch, write_torch
from selfdeblur.runs import runner
from selfdeblur.runs.command import benchmark_main
from selfdeblur.runs.results import ResultFolder
from selfdeblur.settings import Settings, make_settings
from selfdeblur.stages import Run

NAME = "im1_kernel5_img"
RESULTS = ("_x.png", "_k.png", "_xnet.pth", "_knet.pth", "_history.csv")


@pytest.fixture
def data(tmp_path, picture, thin):
    """A folder with one blurry image and a kernel; runs have thin generators, for it is not the fit that is tested."""
    (tmp_path / "data").mkdir()
    cv2.imwrite(str(tmp_path / "data" / f"{NAME}.png"), (picture[:40, :44] * 255).astype(np.uint8))
    kernel = np.zeros((5, 5), np.uint8)
    kernel[2] = 255
    cv2.imwrite(str(tmp_path / "kernel.png"), kernel)
    return tmp_path


def levin(data, *arguments, out="out"):
    """Run the Levin script in this process; returns its exit status."""
    return benchmark_main(
        LEVIN,
        ["--data_path", str(data / "data"), "--save_path", str(data / out), "--device", "cpu", *map(str, arguments)],
    )


def begin(data, out, *arguments, thin=True):
    """Start the Levin script as a process of its own."""
    return Program(
        "selfdeblur_levin.py", "--data_path", data / "data", "--save_path", data / out, "--device", "cpu",
        "--threads", 1, *arguments, thin=thin,
    )  # fmt: skip


def do(*arguments, **options):
    program = begin(*arguments, **options).wait()
    assert program.returncode == 0, program.stderr


def contents(folder):
    return {
        suffix: (folder / f"{NAME}{suffix}").read_bytes() for suffix in RESULTS if (folder / f"{NAME}{suffix}").exists()
    }


PRESETS = {
    "release": ["--mse_steps", 4],
    "paper": ["--preset", "paper", "--tv_weight", 1e-3],
    "nonblind": ["--kernel", "kernel.png"],
    "fast": ["--preset", "fast"],
    "best": ["--preset", "best"],
}


def kill_until_done(data, preset, kills, rng, *, thin):
    """Run a preset, killed at random moments, until ``kills`` were struck and it is done; compare with a whole run."""
    options = ["--num_iter", 12, "--checkpoint_every", 1, "--save_frequency", 3, *PRESETS[preset]]
    options = [data / o if o == "kernel.png" else o for o in options]
    whole, broken = data / f"whole_{preset}", data / f"broken_{preset}"
    do(data, whole.name, *options, thin=thin)
    begun = time.monotonic()
    do(data, f"timed_{preset}", *options, thin=thin)
    length = time.monotonic() - begun
    struck = 0
    while struck < kills:
        program = begin(data, broken.name, *options, thin=thin)
        try:
            # From the start of the first step on, where there is something to break.
            program.wait(rng.uniform(0.3, 1.1) * length)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()
        assert program.returncode in (0, -signal.SIGKILL), program.stderr
        struck += program.returncode != 0
        for path in broken.glob("*.pth") if broken.exists() else ():
            read_torch(path)
        for path in broken.glob("*.json") if broken.exists() else ():
            assert read_json(path)
        if program.returncode == 0 and struck < kills:
            assert contents(broken) == contents(whole)
            shutil.rmtree(broken)
    do(data, broken.name, *options, thin=thin)
    assert contents(broken) == contents(whole)
    assert not list(broken.glob("*_checkpoint.pth"))
    return struck


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.processes
def test_a_few_kills(data, preset):
    assert kill_until_done(data, preset, 2, random.Random(preset), thin=True) == 2


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.processes
def test_fifty_kills(data, preset):
    assert kill_until_done(data, preset, 50, random.Random(1), thin=False) == 50


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.processes
def test_a_signal_ends_a_run_in_order(data, number):
    options = ["--num_iter", 5000, "--checkpoint_every", 2]
    program = begin(data, "out", *options)
    lock, checkpoint = data / "out" / f".{NAME}.lock", data / "out" / f"{NAME}_checkpoint.pth"
    while program.poll() is None and not checkpoint.exists():
        time.sleep(0.02)
    assert lock.exists()
    program.send_signal(number)
    program.wait(30)
    assert program.returncode == 130
    assert program.stderr.splitlines()[-1].startswith(f"stopped by {number.name}")
    assert not lock.exists()
    assert read_torch(checkpoint)["run"]["steps_done"] >= 2


def test_backward_can_be_left_by_an_exception():
    y = torch.rand(1, 1, 36, 36, generator=torch.Generator().manual_seed(0))
    whole, broken = (Run(y, (3, 3), make_settings(num_iter=3, mse_steps=0)) for _ in range(2))
    dssim = broken.fit.dssim

    def fail(y_hat):
        y_hat.register_hook(lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        return dssim(y_hat)

    broken.step()
    broken.fit.dssim = fail
    with pytest.raises(KeyboardInterrupt):
        broken.step()
    broken.fit.dssim = dssim
    while broken.steps_done < 3:
        broken.step()
    while whole.steps_done < 3:
        whole.step()
    assert torch.equal(whole.losses, broken.losses)


def test_a_loss_that_is_no_number_goes_back_with_half_the_rate(data, monkeypatch, capsys):
    gradient = Run.gradient
    seen = []

    def spoiled(run):
        gradient(run)
        seen.append((run.steps_done, run.slowed))
        if run.steps_done == 3 and len(seen) < 6:
            run.losses[3] = float("nan")

    monkeypatch.setattr(Run, "gradient", spoiled)
    assert levin(data, "--num_iter", 5, "--checkpoint_every", 2) == 0
    assert seen == [(0, 0), (1, 0), (2, 0), (3, 0), (2, 1), (3, 1), (4, 1)]
    assert "not a number at step 4" in capsys.readouterr().err
    assert json.loads((data / "out" / f"{NAME}.json").read_text())["restarts"] == 1


def test_a_loss_that_stays_no_number_is_a_failure(data, monkeypatch, capsys):
    gradient = Run.gradient

    def spoiled(run):
        gradient(run)
        run.losses[run.steps_done] = float("inf")

    monkeypatch.setattr(Run, "gradient", spoiled)
    assert levin(data, "--num_iter", 5) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    with open(data / "out" / "failures.csv", newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == [NAME]


def test_running_out_of_memory_is_a_failure_of_one_image(data, monkeypatch, capsys):
    (data / "data" / "im2_kernel5_img.png").write_bytes((data / "data" / f"{NAME}.png").read_bytes())
    gradient, calls = Run.gradient, []

    def greedy(run):
        calls.append(run)
        if len(calls) == 1:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        gradient(run)

    monkeypatch.setattr(Run, "gradient", greedy)
    assert levin(data, "--num_iter", 1) == 2
    assert "memory of this machine is too small" in capsys.readouterr().err
    assert (data / "out" / "im2_kernel5_img_x.png").exists()


def test_a_gpu_that_is_too_small_hands_over_to_the_cpu(data, monkeypatch, capsys):
    settings = make_settings(num_iter=2)
    job = runner.Job(data / "data" / f"{NAME}.png", (5, 5), settings)
    folder = ResultFolder(data / "out", settings.as_dict(), images=[NAME])
    begin = runner.start

    def start(y, size, settings, *, device, kernel):
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return begin(y, size, settings, device=device, kernel=kernel)

    monkeypatch.setattr(runner, "start", start)
    counts, failures = runner.deblur_files([job], folder, device=torch.device("cuda"))
    assert (counts["deblurred"], failures) == (1, {})
    assert "going on with the CPU" in capsys.readouterr().err
    assert json.loads((data / "out" / f"{NAME}.json").read_text())["device"].startswith("cpu")


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    files.write_text(path, "before")

    def fail(*_):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OutputError, match=r"a\.txt.*No space left on device, \d+ bytes are missing"):
                files.write_text(path, "after")
        assert path.read_text() == "before"
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 2 MB, room for less than a checkpoint."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("NOT TESTED: a full disk, because a small one cannot be mounted here (it takes root)")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(data, small_disk, capsys):
    (small_disk / "out").mkdir()
    (small_disk / "out" / "note.txt").write_text("kept")
    assert benchmark_main(
        LEVIN, ["--data_path", str(data / "data"), "--save_path", str(small_disk / "out"), "--device", "cpu",
                "--num_iter", "4", "--checkpoint_every", "2"],
    ) == 2  # fmt: skip
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    assert f"{NAME}_checkpoint.pth" in message
    assert "bytes are missing" in message
    assert {p.name for p in (small_disk / "out").iterdir()} == {"config.json", "note.txt"}


def test_the_folder_is_deleted_under_a_run(data, monkeypatch):
    gradient = Run.gradient

    def deleting(run):
        if run.steps_done == 1:
            shutil.rmtree(data / "out", ignore_errors=True)
        gradient(run)

    assert levin(data, "--num_iter", 3, out="whole") == 0
    monkeypatch.setattr(Run, "gradient", deleting)
    assert levin(data, "--num_iter", 3) == 0
    assert contents(data / "out") == contents(data / "whole")
    assert (data / "out" / "config.json").exists()


def test_times_are_taken_from_a_clock_that_cannot_be_set_back():
    for path in (ROOT / "selfdeblur").rglob("*.py"):
        assert not re.search(r"\btime\.time\(|from time import|\bnow\(", path.read_text(encoding="utf-8")), path


@pytest.mark.processes
def test_two_processes_share_a_folder(data):
    for i in range(2, 5):
        shutil.copy(data / "data" / f"{NAME}.png", data / "data" / f"im{i}_kernel5_img.png")
    options = ["--num_iter", 30]
    programs = [begin(data, "out", *options) for _ in range(2)]
    assert [program.wait().returncode for program in programs] == [0, 0]
    assert sum(int(number) for program in programs for number in re.findall(r"(\d+) deblurred", program.stdout)) == 4
    images = [p.read_bytes() for p in sorted((data / "out").glob("*_x.png"))]
    assert len(images) == 4
    assert len(set(images)) == 1
    assert not list((data / "out").glob(".*"))


def test_a_lock_is_held_and_let_go(tmp_path):
    folders = [ResultFolder(tmp_path, {}, images=["a"]) for _ in range(2)]
    with folders[0].lock("a") as mine:
        assert mine
        with folders[1].lock("a") as also_mine:
            assert not also_mine
        with folders[1].lock("b") as other:
            assert other
    with folders[1].lock("a") as mine:
        assert mine


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"\x80\x02}q\x00.", b"{}", b"\x00" * 1000],
    ids=["empty", "zip magic", "pickle", "json", "zeros"],
)
def test_a_damaged_checkpoint_is_named(data, content, capsys):
    assert levin(data, "--num_iter", 3) == 0
    (data / "out" / f"{NAME}.json").unlink()
    (data / "out" / f"{NAME}_checkpoint.pth").write_bytes(content)
    assert levin(data, "--num_iter", 3) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert f"{NAME}_checkpoint.pth" in errors[0]


def test_a_checkpoint_of_another_image_or_shape_is_refused(data, capsys):
    assert levin(data, "--num_iter", 3) == 0
    identity = json.loads((data / "out" / f"{NAME}.json").read_text())["identity"]
    (data / "out" / f"{NAME}.json").unlink()
    for state in ({"identity": {}}, [1, 2], {"identity": identity, "seconds": 0.0, "run": {"steps_done": 1}}):
        write_torch(data / "out" / f"{NAME}_checkpoint.pth", state)
        assert levin(data, "--num_iter", 3) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


# The last number is the exit status where the record of the folder is such.
@pytest.mark.parametrize(
    ("content", "status"),
    [
        pytest.param("", 2, id="empty"),
        pytest.param("{", 2, id="cut off"),
        pytest.param("[]", 2, id="list"),
        pytest.param("null", 2, id="null"),
        pytest.param("[" * 100_000, 2, id="deep"),
        pytest.param('{"settings": 3}', 0, id="number"),
        pytest.param('{"identity": []}', 0, id="other"),
        pytest.param("\ufeff{}", 2, id="mark"),
        pytest.param("{}{}", 2, id="two"),
    ],
)
def test_odd_records_are_one_line(data, content, status, capsys):
    (data / "out").mkdir()
    (data / "out" / f"{NAME}.json").write_text(content, encoding="utf-8")
    assert levin(data, "--num_iter", 1) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    (data / "out" / f"{NAME}.json").unlink()
    (data / "out" / "config.json").write_text(content, encoding="utf-8")
    assert levin(data, "--num_iter", 1) == status
    assert len(capsys.readouterr().err.splitlines()) == (status == 2)
    if status == 0:
        assert json.loads((data / "out" / "config.json").read_text())["settings"]["num_iter"] == 1


def test_the_result_does_not_depend_on_its_company(data, picture):
    for i in (2, 3):
        part = (picture[10 * i : 10 * i + 41, :43] * 255).astype(np.uint8)
        cv2.imwrite(str(data / "data" / f"im{i}_kernel5_img.png"), part)
    assert levin(data, "--num_iter", 3, out="all") == 0
    assert levin(data, "--num_iter", 3, "--images", "im2_*", out="one") == 0
    assert levin(data, "--num_iter", 3, "--shard", "2/2", out="shard") == 0
    for out in ("one", "shard"):
        for suffix in RESULTS:
            name = f"im2_kernel5_img{suffix}"
            assert (data / out / name).read_bytes() == (data / "all" / name).read_bytes()


def test_settings_are_refused_where_they_are_no_numbers():
    for change in (
        {"num_iter": 1.5},
        {"seed": "0"},
        {"lr_image": float("inf")},
        {"num_iter": 2**70},
        {"tv_weight": None},
    ):
        with pytest.raises(UserError):
            Settings(**change)
