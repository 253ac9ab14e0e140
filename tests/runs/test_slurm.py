"""A real Slurm of one node: an array of tasks of which one is told that its time is over, one is queued again by the
scheduler, and one is killed; the bytes are those of a run without a cluster."""

import functools
import json
import os
import sys
import time
import warnings

import cv2
import numpy as np
import pytest
from common import ROOT
from one_node import CannotStartError, OneNode
from thin import GATE, make_thin, thin_folder

from selfdeblur.data.benchmarks import LEVIN
from selfdeblur.files.tensors import read_torch
from selfdeblur.runs import command
from selfdeblur.runs.command import benchmark_main
from selfdeblur.runs.status import read_status

pytestmark = pytest.mark.processes
NAMES = [f"im{i}_kernel5_img" for i in range(1, 9)]
RESULTS = ("_x.png", "_k.png", "_xnet.pth", "_knet.pth", "_history.csv")
TASKS = 4


@pytest.fixture
def slurm(tmp_path_factory, monkeypatch):
    """A Slurm whose programs are found; skips, loudly, where none can be had, or fails where it has to be there."""
    try:
        with OneNode(tmp_path_factory.mktemp("slurm")) as node:
            for name in ("SLURM_CONF", "PATH"):
                monkeypatch.setenv(name, node.environment[name])
            yield node
    except CannotStartError as error:
        message = f"NOT TESTED: a real Slurm, because it cannot be started: {error}"
        if os.environ.get("SELFDEBLUR_REQUIRE_SLURM"):
            pytest.fail(message)
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)


def levin(folder, out, *options):
    words = ["--data_path", folder / "data", "--save_path", out, "--device", "cpu", "--num_iter", 8, "--mse_steps", 4]
    words += ["--checkpoint_every", 1, "--threads", 1, *options]
    return benchmark_main(LEVIN, [str(word) for word in words])


def contents(folder):
    return {f"{n}{s}": (folder / f"{n}{s}").read_bytes() for n in NAMES for s in RESULTS}


def wait_for(condition, seconds=180):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Slurm is tested on Linux alone")
def test_an_array_of_eight_images(slurm, tmp_path, picture, monkeypatch, capsys):
    make_thin(monkeypatch.setattr)
    (tmp_path / "data").mkdir()
    for i, name in enumerate(NAMES):
        part = picture[15 * i : 15 * i + 40, : 44 + i]
        cv2.imwrite(str(tmp_path / "data" / f"{name}.png"), (part * 255).astype(np.uint8))
    assert levin(tmp_path, tmp_path / "single") == 0
    monkeypatch.setattr(command, "partial", lambda _, benchmark: functools.partial(thin_folder, benchmark))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    out, gate = tmp_path / "out", tmp_path / "gate"
    gate.touch()
    options = ["--cluster", "slurm", "--cluster_cpus", 1, "--cluster_minutes", 10]
    assert levin(tmp_path, out, *options, "--jobs", TASKS, "--cluster_partition", "none") == 2
    assert "nvalid partition" in capsys.readouterr().err
    assert levin(tmp_path, out, *options, "--jobs", TASKS) == 0
    job = json.loads((out / "cluster" / "tasks.json").read_text())["jobs"][0].partition("_")[0]
    assert f"{TASKS} tasks for 8 images are job {job}," in capsys.readouterr().out

    def log(task):
        return "".join(path.read_text() for path in sorted((out / "cluster").glob(f"{job}_{task}_0_log.*")))

    def states():
        return dict(line.split() for line in slurm.call("squeue", "-h", "-r", "-j", job, "-o", "%K %T").splitlines())

    # The first image of each task has its first steps behind it, and the task waits.
    def at_gate(name):
        path = out / f"{name}_checkpoint.pth"
        return path.exists() and read_torch(path)["run"]["steps_done"] == GATE

    wait_for(lambda: all(at_gate(name) for name in NAMES[:TASKS]))
    status = read_status(out)
    assert (list(status["running"]), status["waiting"]) == (NAMES[:TASKS], 4)
    slurm.call("scancel", "--signal=USR2", f"{job}_0")  # the time is over, or the machine needed
    slurm.call("scontrol", "requeue", f"{job}_1")
    slurm.call("scancel", "--signal=KILL", f"{job}_2")
    wait_for(lambda: "Requeued job" in log(0) and "stopped by SIGTERM" in log(1) and "2" not in states())
    status = read_status(out)
    assert set(status["interrupted"]) <= set(NAMES[:3])
    assert NAMES[2] in status["interrupted"]
    gate.unlink()
    wait_for(lambda: not states())
    assert "stopped by SIGUSR2" in log(0)
    for task in (0, 1):  # each started twice
        assert log(task).count("Starting with JobEnvironment") == 2
        assert "Job completed successfully" in log(task)
    status = read_status(out)
    assert (status["done"], list(status["interrupted"]), status["waiting"]) == (6, [NAMES[2]], 1)
    # The same command does what the killed task has left, here without the cluster.
    assert levin(tmp_path, out) == 0
    assert contents(out) == contents(tmp_path / "single")
    assert not list(out.glob(".*"))
    assert not list(out.glob("*_checkpoint.pth"))
