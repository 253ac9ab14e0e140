"""Several images at once: the same bytes as one after the other, whatever happens to one of them."""

import csv
import json
import os
import shutil
import signal
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from processes import Program
from thin import make_thin

from selfdeblur import graphs
from selfdeblur.data.benchmarks import LEVIN
from selfdeblur.files.tensors import read_torch
from selfdeblur.runs import runner
from selfdeblur.runs.command import benchmark_main
from selfdeblur.runs.results import ResultFolder
from selfdeblur.settings import make_settings
from selfdeblur.solver import Fit

NAMES = ["im1_kernel5_img", "im2_kernel5_img", "im3_kernel3_img", "im4_kernel5_img"]
SIZES = [(40, 44), (40, 44), (36, 50), (44, 37)]
RESULTS = ("_x.png", "_k.png", "_xnet.pth", "_knet.pth", "_history.csv")
STEPS = 8
OPTIONS = ["--num_iter", STEPS, "--mse_steps", 4]
WAYS = pytest.mark.parametrize("fixed", [False, True], ids=["solver's steps", "fixed buffers"])


@pytest.fixture(scope="module", autouse=True)
def _thin():
    """Thin generators, for it is not the fit that is tested."""
    with pytest.MonkeyPatch.context() as patch:
        make_thin(patch.setattr)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory, picture):
    """Four images, and what they become one by one in ``single``."""
    folder = tmp_path_factory.mktemp("batch")
    (folder / "data").mkdir()
    for i, (name, (height, width)) in enumerate(zip(NAMES, SIZES, strict=True)):
        part = (picture[20 * i : 20 * i + height, :width] * 255).astype(np.uint8)
        cv2.imwrite(str(folder / "data" / f"{name}.png"), part)
    assert levin(folder, folder / "single", *OPTIONS) == 0
    return folder


def arguments(data, out, *options):
    return [*map(str, ("--data_path", data / "data", "--save_path", out, "--device", "cpu", *options))]


def levin(data, out, *options):
    return benchmark_main(LEVIN, arguments(data, out, *options))


def contents(folder, names=NAMES):
    return {f"{n}{s}": (folder / f"{n}{s}").read_bytes() for n in names for s in RESULTS}


def check(data, out, names=NAMES):
    assert contents(out, names) == contents(data / "single", names)
    assert not list(out.glob("*_checkpoint.pth"))
    assert not list(out.glob(".*"))


def on_fixed_buffers(monkeypatch, fixed):
    monkeypatch.setattr(runner, "on_fixed_buffers", lambda device: fixed)
    monkeypatch.setattr(runner, "CHECK_EVERY", 3)


@pytest.mark.parametrize(("batch", "fixed"), [(2, False), (9, False), (1, True), (3, True)])
def test_the_same_bytes_as_one_by_one(data, tmp_path, monkeypatch, batch, fixed, capsys):
    on_fixed_buffers(monkeypatch, fixed)
    assert levin(data, tmp_path, *OPTIONS, "--batch", batch, "--save_frequency", 3, "--checkpoint_every", 2) == 0
    check(data, tmp_path)
    assert "4 deblurred" in capsys.readouterr().out
    # The second time there is nothing to do.
    assert levin(data, tmp_path, *OPTIONS, "--batch", batch) == 0
    assert "4 finished before" in capsys.readouterr().out


def at_step(monkeypatch, number, action):
    """Call ``action(fit)`` before the objective of that step, counted from 0, is computed."""
    objective = Fit.objective

    def spoiled(fit, *arguments):
        if fit.steps_done == number:
            action(fit)
        return objective(fit, *arguments)

    monkeypatch.setattr(Fit, "objective", spoiled)


@pytest.mark.parametrize(("number", "fixed"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_a_signal_leaves_a_checkpoint_of_each(data, tmp_path, monkeypatch, fixed, number, capsys):
    with monkeypatch.context() as patch:
        on_fixed_buffers(patch, fixed)
        calls = []

        def send(fit):
            calls.append(fit)
            if len(calls) == 2:
                os.kill(os.getpid(), number)

        at_step(patch, 5, send)
        assert levin(data, tmp_path, *OPTIONS, "--batch", 3) == 130
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"stopped by {number.name}")
    done = {n: read_torch(tmp_path / f"{n}_checkpoint.pth")["run"]["steps_done"] for n in NAMES[:3]}
    # On fixed buffers the step is ended first.
    assert list(done.values()) == ([6, 6, 5] if fixed else [6, 5, 5])
    assert not (tmp_path / f"{NAMES[3]}_checkpoint.pth").exists()
    assert not list(tmp_path.glob(".*"))
    # Goes on in another way, with runs at different steps, and ends with the same bytes.
    on_fixed_buffers(monkeypatch, not fixed)
    assert levin(data, tmp_path, *OPTIONS, "--batch", 4) == 0
    check(data, tmp_path)


@pytest.mark.processes
def test_a_killed_batch_goes_on(data, tmp_path):
    options = [*OPTIONS, "--batch", 3, "--threads", 1, "--checkpoint_every", 1]
    killed = False
    while not killed:  # on a busy machine it may be done before it is noticed
        shutil.rmtree(tmp_path, ignore_errors=True)
        program = Program("selfdeblur_levin.py", *arguments(data, tmp_path, *options), thin=True)
        while program.poll() is None and not (tmp_path / f"{NAMES[2]}_checkpoint.pth").exists():
            time.sleep(0.001)
        program.kill()
        killed = program.wait().returncode == -signal.SIGKILL
        assert killed or program.returncode == 0, program.stderr
    assert levin(data, tmp_path, *OPTIONS, "--batch", 3) == 0
    check(data, tmp_path)


def test_one_image_that_fails_leaves_the_batch(data, tmp_path, monkeypatch, capsys):
    on_fixed_buffers(monkeypatch, True)
    (tmp_path / "data").mkdir()
    for name in NAMES:
        (tmp_path / "data" / f"{name}.png").write_bytes((data / "data" / f"{name}.png").read_bytes())
    (tmp_path / "data" / "im1_kernel1_img.png").write_bytes(b"no image")
    cv2.imwrite(str(tmp_path / "data" / "im2_kernel4_img.png"), np.zeros((20, 20), np.uint8))
    assert levin(tmp_path, tmp_path / "out", *OPTIONS, "--batch", 3) == 2
    check(data, tmp_path / "out")
    with open(tmp_path / "out" / "failures.csv", newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["im1_kernel1_img", "im2_kernel4_img"]
    captured = capsys.readouterr()
    assert "4 deblurred, 2 failed" in captured.out
    assert len(captured.err.splitlines()) == 2


def spoil(fit, value=float("nan")):
    """Make the loss of this step no number."""
    with torch.no_grad():
        fit.G_x.out.bias.fill_(value)


@WAYS
def test_a_loss_that_is_no_number_concerns_one_image(data, tmp_path, monkeypatch, fixed, capsys):
    on_fixed_buffers(monkeypatch, fixed)
    struck = []

    def strike(fit):
        if fit.y.shape[-2:] == SIZES[2] and len(struck) < 2:
            struck.append(fit.slowed)
            spoil(fit)

    at_step(monkeypatch, 5, strike)
    assert levin(data, tmp_path, *OPTIONS, "--batch", 4, "--checkpoint_every", 2) == 0
    assert struck == [0, 1]
    errors = capsys.readouterr().err
    assert errors.count(f"warning: {NAMES[2]}: the loss is not a number at step 6; again from step 4") == 2
    restarts = {name: json.loads((tmp_path / f"{name}.json").read_text())["restarts"] for name in NAMES}
    assert restarts == {NAMES[0]: 0, NAMES[1]: 0, NAMES[2]: 2, NAMES[3]: 0}
    others = [name for name in NAMES if name != NAMES[2]]
    assert contents(tmp_path, others) == contents(data / "single", others)
    history = (tmp_path / f"{NAMES[2]}_history.csv").read_text()
    assert "nan" not in history
    assert len(history.splitlines()) == STEPS + 1


def test_a_loss_that_stays_no_number_is_the_failure_of_one_image(data, tmp_path, monkeypatch, capsys):
    on_fixed_buffers(monkeypatch, True)
    at_step(monkeypatch, 1, lambda fit: spoil(fit) if fit.y.shape[-2:] == SIZES[2] else None)
    assert levin(data, tmp_path, *OPTIONS, "--batch", 4) == 2
    others = [name for name in NAMES if name != NAMES[2]]
    assert contents(tmp_path, others) == contents(data / "single", others)
    assert f"{NAMES[2]}.png: the loss is not a number at step 2, 3 restarts did not help" in capsys.readouterr().err


@pytest.mark.parametrize(("where", "fixed"), [("at the start", True), ("in a step", False), ("in a step", True)])
def test_too_small_a_memory_makes_the_batch_smaller(data, tmp_path, monkeypatch, fixed, where, capsys):
    """A device whose memory bears two runs."""
    on_fixed_buffers(monkeypatch, fixed)
    runs, begin, close, objective = set(), runner.start, runner._Work.close, Fit.objective

    def full(fit):
        return len(runs) > 2 and all(fit is not run.fit for run in list(runs)[:2])

    def start(*arguments, **options):
        run = begin(*arguments, **options)
        runs.add(run)
        if where == "at the start" and len(runs) > 2:
            runs.discard(run)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run

    def in_step(fit, *arguments):
        if where == "in a step" and fit.steps_done == 3 and full(fit):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return objective(fit, *arguments)

    def closing(work):
        runs.discard(work.run)
        close(work)

    monkeypatch.setattr(runner, "start", start)
    monkeypatch.setattr(Fit, "objective", in_step)
    monkeypatch.setattr(runner._Work, "close", closing)
    assert levin(data, tmp_path, *OPTIONS, "--batch", 4) == 0
    check(data, tmp_path)
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith("warning: the memory of cpu is too small for ")
    assert errors[0].endswith(("going on with 2", "going on with 1"))
    assert all(line.startswith("warning: ") for line in errors)


def test_images_that_do_not_even_fit_alone_go_to_the_cpu_at_last(data, tmp_path, monkeypatch, capsys):
    begin, devices = runner.start, []

    def start(y, size, settings, *, device, kernel):
        devices.append(device.type)
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return begin(y, size, settings, device=device, kernel=kernel)

    monkeypatch.setattr(runner, "start", start)
    jobs = [runner.Job(data / "data" / f"{n}.png", (5, 5), make_settings(num_iter=1)) for n in NAMES]
    folder = runner_folder(tmp_path, jobs)
    counts, failures = runner.deblur_files(jobs, folder, device=torch.device("cuda"), batch=4)
    assert (counts["deblurred"], failures) == (4, {})
    errors = capsys.readouterr().err.splitlines()
    assert errors == [f"warning: {name}: the memory of cuda is too small; going on with the CPU" for name in NAMES]
    assert devices == ["cuda"] * 4 + ["cpu"] * 4


def runner_folder(path, jobs):
    return ResultFolder(path, jobs[0].settings.as_dict(), images=[job.name for job in jobs])


def test_an_image_that_is_in_work_elsewhere_is_left_out(data, tmp_path, capsys):
    with ResultFolder(tmp_path, {}, images=[]).lock(NAMES[1]) as mine:
        assert mine
        assert levin(data, tmp_path, *OPTIONS, "--batch", 2) == 0
    assert "3 deblurred, 1 in work elsewhere" in capsys.readouterr().out
    check(data, tmp_path, [name for name in NAMES if name != NAMES[1]])


def test_how_many_fit(data, monkeypatch):
    jobs = [runner.Job(data / "data" / f"{name}.png", (5, 5), make_settings()) for name in NAMES]
    jobs.append(runner.Job(data / "absent.png", (5, 5), make_settings()))
    assert runner.images_at_once(jobs, torch.device("cpu")) == 1
    need = runner.gpu_memory((40, 44), (5, 5))
    assert 256 << 20 < need < 300 << 20

    def batch(free):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 2 * free))
        return runner.images_at_once(jobs, torch.device("cuda"))

    assert batch(0) == 1
    assert batch(need) == 1
    assert batch(3.5 * need) == 3
    assert batch(100 * need) == 4
    # What the documents promise.
    assert runner.gpu_memory((255, 255), (27, 27)) * 32 < 0.9 * 79 * 2**30
    # What an H200 took, reserved memory in float32.
    assert 9482 < runner.gpu_memory((680, 1024), (75, 75)) / 2**20 < 1.1 * 9482
    assert 902 < runner.gpu_memory((255, 255), (21, 21)) / 2**20 < 1.3 * 902


def test_time_is_shared(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(runner.time, "monotonic", lambda: now[0])
    clock = runner._Clock()
    now[0] = 10
    assert clock.read() == 10
    clock.share(4)
    now[0] = 30
    assert clock.read() == 15
    clock.share(0)
    now[0] = 31
    assert clock.read() == 16


@pytest.mark.parametrize("batch", ["0", "-1", "many", "1.5"])
def test_a_batch_that_is_none_is_refused(data, tmp_path, batch, capsys):
    assert levin(data, tmp_path, f"--batch={batch}") == 2
    assert "--batch" in capsys.readouterr().err


def test_results_of_another_precision_do_not_mix(data, tmp_path, capsys):
    options = ["--images", "im1_*", "--num_iter", 1]
    assert levin(data, tmp_path, *options) == 0
    assert levin(data, tmp_path, *options, "--precision", "bf16") == 2
    assert 'precision null there, "bf16" now' in capsys.readouterr().err
    assert levin(data, tmp_path / "other", *options, "--precision", "bf16", "--batch", "auto") == 0
    assert json.loads((tmp_path / "other" / "config.json").read_text())["settings"]["precision"] == "bf16"


def test_fixed_buffers_are_for_gpus():
    def run(device):
        return SimpleNamespace(y=SimpleNamespace(device=torch.device(device)))

    assert graphs.on_fixed_buffers(run("cuda:1"))
    assert not graphs.on_fixed_buffers(run("cpu"))


@WAYS
def test_a_loss_that_is_no_number_at_the_end_of_a_check(data, tmp_path, monkeypatch, fixed, capsys):
    """It is noticed before the vote takes what came of it."""
    on_fixed_buffers(monkeypatch, fixed)
    options = ["--images", f"{NAMES[0]}*", "--preset", "fast", "--num_iter", STEPS, "--kernel_size", 5]
    struck = []

    def strike(fit):
        if not struck:
            struck.append(fit)
            spoil(fit)

    assert levin(data, tmp_path / "whole", *options) == 0
    at_step(monkeypatch, STEPS - 1, strike)
    assert levin(data, tmp_path, *options, "--checkpoint_every", 1) == 0
    assert struck
    assert f"the loss is not a number at step {STEPS}; again from step {STEPS - 1}" in capsys.readouterr().err
    other = json.loads((tmp_path / f"{NAMES[0]}.json").read_text())
    assert (other["steps"], other["restarts"], other["finished"]) == (STEPS, 1, True)
    if not fixed:
        return
    # Without that, the same bytes as by the solver's steps.
    on_fixed_buffers(monkeypatch, False)
    assert levin(data, tmp_path / "solver", *options) == 0
    assert contents(tmp_path / "solver", NAMES[:1]) == contents(tmp_path / "whole", NAMES[:1])


@pytest.mark.parametrize(("options", "named"), [((), None), (("--noise_from", "cuda"), "cuda")])
def test_a_record_names_what_draws_the_noise(data, tmp_path, options, named):
    assert levin(data, tmp_path, "--images", f"{NAMES[0]}*", "--num_iter", 2, *options) == 0
    assert json.loads((tmp_path / f"{NAMES[0]}.json").read_text())["settings"].get("noise_from") == named
