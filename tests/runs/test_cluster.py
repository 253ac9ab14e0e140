"""Shards as tasks of a cluster: the same bytes as without one, whatever happens to a task; the table of states."""

import argparse
import errno
import functools
import json
import os
import pickle
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from common import ROOT
from thin import GATE, make_thin, thin_folder

from selfdeblur.__main__ import main
from selfdeblur.data.benchmarks import LEVIN
from selfdeblur.files import locks
from selfdeblur.files.tensors import read_torch
from selfdeblur.runs import cluster, command, photo
from selfdeblur.runs.command import benchmark_main
from selfdeblur.runs.results import ResultFolder
from selfdeblur.runs.status import read_status

NAMES = [f"im{i}_kernel5_img" for i in range(1, 5)]
RESULTS = ("_x.png", "_k.png", "_xnet.pth", "_knet.pth", "_history.csv")
OPTIONS = ["--num_iter", 8, "--mse_steps", 4, "--checkpoint_every", 1, "--threads", 1]


@pytest.fixture(scope="module", autouse=True)
def _thin():
    with pytest.MonkeyPatch.context() as patch:
        make_thin(patch.setattr)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory, picture):
    """Four images, and what they become without a cluster in ``single``."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "data").mkdir()
    for i, name in enumerate(NAMES):
        part = picture[20 * i : 20 * i + 40, : 44 + i]
        cv2.imwrite(str(folder / "data" / f"{name}.png"), (part * 255).astype(np.uint8))
    assert levin(folder, folder / "single") == 0
    return folder


def levin(data, out, *options):
    words = ["--data_path", data / "data", "--save_path", out, "--device", "cpu", *OPTIONS, *options]
    return benchmark_main(LEVIN, [str(word) for word in words])


def contents(folder):
    return {f"{n}{s}": (folder / f"{n}{s}").read_bytes() for n in NAMES for s in RESULTS}


def check(data, out):
    assert contents(out) == contents(data / "single")
    assert not list(out.glob("*_checkpoint.pth"))
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("tasks", [1, 3, 9])
def test_debug_gives_the_same_bytes(data, tmp_path, tasks, capsys):
    assert levin(data, tmp_path, "--cluster", "debug", "--jobs", tasks) == 0
    check(data, tmp_path)
    told = json.loads((tmp_path / "cluster" / "tasks.json").read_text())
    assert (told["images"], told["tasks"], len(told["jobs"])) == (4, min(tasks, 4), min(tasks, 4))
    assert capsys.readouterr().out.count("deblurred; see") == min(tasks, 4)
    status = read_status(tmp_path)
    assert (status["done"], status["waiting"], status["running"], status["failed"]) == (4, 0, {}, {})


def children(pid):
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


@pytest.mark.processes
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked up in /proc")
def test_local_tasks_that_are_struck_go_on(data, tmp_path, monkeypatch, capfd):
    """The first of two tasks is told that its time is over, the second is killed, both in the midst of an image."""
    monkeypatch.setattr(command, "partial", lambda _, benchmark: functools.partial(thin_folder, benchmark))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    out, gate = tmp_path / "out", tmp_path / "gate"
    gate.touch()
    seen = {}

    def at_gate(name):
        path = out / f"{name}_checkpoint.pth"
        return path.exists() and read_torch(path)["run"]["steps_done"] == GATE

    def strike():
        try:
            jobs = (
                wait_for(lambda: (out / "cluster" / "tasks.json").exists())
                and json.loads((out / "cluster" / "tasks.json").read_text())["jobs"]
            )
            wait_for(lambda: at_gate(NAMES[0]) and at_gate(NAMES[1]))
            seen["before"] = read_status(out)
            (second,) = children(jobs[1])
            os.kill(second, signal.SIGKILL)
            (first,) = children(jobs[0])
            os.kill(first, signal.SIGUSR2)
            wait_for(lambda: children(jobs[0]) not in ([], [first]))
            seen["after"] = read_status(out)
        finally:
            gate.unlink()

    striker = threading.Thread(target=strike)
    striker.start()
    assert levin(data, out, "--cluster", "local", "--jobs", 2) == 1
    striker.join()
    assert seen["before"]["running"] == {NAMES[0]: None, NAMES[1]: None}
    assert seen["before"]["waiting"] == 2
    assert seen["after"]["interrupted"].keys() >= {NAMES[1]}
    assert "error: task 2 of 2 was lost" in capfd.readouterr().err
    log = "".join(path.read_text() for path in (out / "cluster").glob("*_log.*"))
    assert "stopped by SIGUSR2" in log
    assert "Requeued job" in log
    status = read_status(out)
    assert (status["done"], list(status["interrupted"]), status["waiting"]) == (2, [NAMES[1]], 1)
    # The same command does the rest.
    assert levin(data, out, "--cluster", "debug", "--jobs", 2) == 0
    check(data, out)


def test_the_file_of_a_task_can_be_read_by_another_process(data, tmp_path):
    args = command._parser(LEVIN).parse_args(
        ["--data_path", str(data / "data"), "--cluster", "slurm", "--jobs", "4", "--cluster_cpus", "3"]
    )
    task = cluster.Task(functools.partial(command.deblur_folder, LEVIN), cluster._of_task(args, 2, 4))
    copy = pickle.loads(pickle.dumps(task.checkpoint().function))
    assert copy.run.func is command.deblur_folder
    assert copy.run.args == (LEVIN,)
    assert (copy.args.shard, copy.args.threads, copy.args.cluster, copy.args.jobs) == ((2, 4), 3, None, None)
    assert (args.shard, args.threads) == ((1, 1), None)


# Photographs


@pytest.fixture
def photos(tmp_path, picture):
    for i in range(3):
        (tmp_path / "in").mkdir(exist_ok=True)
        part = picture[20 * i : 20 * i + 70, :80]
        cv2.imwrite(str(tmp_path / "in" / f"p{i}.png"), (part * 255).astype(np.uint8))
    (tmp_path / "in" / "p3.png").write_bytes(b"no image")
    kernel = np.zeros((5, 5), np.uint8)
    kernel[2] = 255
    cv2.imwrite(str(tmp_path / "kernel.png"), kernel)
    return tmp_path


def deblur_photos(photos, out, *options):
    words = [photos / "in", photos / out, "--kernel", photos / "kernel.png", "--device", "cpu", "--preset", "quick"]
    return main([str(word) for word in [*words, "--threads", 1, "--quiet", *options]])


def pictures(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_photographs_of_a_folder(photos, capsys):
    assert deblur_photos(photos, "single") == 1
    assert deblur_photos(photos, "many", "--cluster", "debug", "--jobs", 2) == 1
    assert pictures(photos / "many") == pictures(photos / "single")
    assert len(pictures(photos / "many")) == 3
    status = read_status(photos / "many")
    assert (status["images"], status["done"], status["waiting"]) == (4, 3, 0)
    assert list(status["failed"]) == [str(photos / "in" / "p3.png")]
    capsys.readouterr()
    # Again: what is done is left, and still counted, and a shard is the same shard.
    shutil.rmtree(photos / "many" / "cluster")
    (photos / "many" / "p1_deblurred.png").unlink()
    assert deblur_photos(photos, "many", "--cluster", "debug", "--jobs", 2) == 1
    assert pictures(photos / "many") == pictures(photos / "single")
    assert read_status(photos / "many")["done"] == 3


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="there is no such signal here")
def test_a_photograph_that_is_interrupted_is_done_again(photos, monkeypatch, capsys):
    """SIGUSR2 in the midst of one leaves no half of a result, and submitit is told after that."""
    words = [str(photos / "in"), str(photos / "out"), "--kernel", str(photos / "kernel.png"), "--device", "cpu"]
    args = photo_arguments([*words, "--preset", "quick", "--threads", "1", "--cluster", "local"])
    task = cluster.Task(photo._shard_of_folder, cluster._of_task(args, 1, 2))
    restore, told = photo.restore, []

    def struck(*arguments, **options):
        os.kill(os.getpid(), signal.SIGUSR2)
        return restore(*arguments, **options)

    previous = signal.signal(signal.SIGUSR2, lambda *_: told.append(pictures(photos / "out")))
    try:
        with monkeypatch.context() as patch:
            patch.setattr(photo, "restore", struck)
            task()
    finally:
        signal.signal(signal.SIGUSR2, previous)
    assert told == [{}]
    assert "stopped by SIGUSR2" in capsys.readouterr().err
    assert list(read_status(photos / "out")["interrupted"]) == [str(photos / "in" / "p0.png")]
    assert task() in (0, 3)
    assert deblur_photos(photos, "single") == 1
    single = pictures(photos / "single")
    assert pictures(photos / "out") == {name: single[name] for name in ("p0_deblurred.png", "p2_deblurred.png")}


def photo_arguments(words):
    from selfdeblur.runs.photo_options import parser

    return parser().parse_args(words)


def test_two_processes_do_not_write_one_record(photos, capsys):
    record = photos / "record.jsonl"
    with open(record, "a") as file:
        assert locks.take_lock(file)
        assert deblur_photos(photos, "out", "--record", record) == 2
    assert str(record) in capsys.readouterr().err
    assert not pictures(photos / "out")


# Slurm as far as it goes without one: tests/runs/test_slurm.py has a real one


@pytest.fixture
def slurm_programs(tmp_path, monkeypatch):
    """Programs of the names of Slurm's; sbatch keeps what it is given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("srun", "exit 0"), ("sbatch", f"cp $1 {tmp_path}/script; echo Submitted batch job 77")):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def test_options_reach_sbatch(data, tmp_path, slurm_programs, capsys):
    assert levin(
        data, tmp_path / "out", "--cluster", "slurm", "--jobs", 4, "--cluster_partition", "gpu", "--cluster-minutes", 7,
        "--cluster_gpus", 1, "--cluster_cpus", 2, "--cluster_memory_gb", 16, "--cluster_at_once", 3,
        "--cluster_option", "qos=low", "--cluster_option", "account=a=b",
    ) == 0  # fmt: skip
    script = (tmp_path / "script").read_text()
    flags = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.M))
    expected = {"array": "0-3%3", "partition": "gpu", "time": "7", "gpus-per-node": "1", "cpus-per-task": "2",
                "mem": "16GB", "qos": "low", "account": "a=b", "requeue": "", "signal": "USR2@90"}  # fmt: skip
    assert expected.items() <= flags.items()
    assert "srun" in script
    assert "--cpus-per-task=2" in script.splitlines()[-1]
    out = capsys.readouterr().out
    assert out.startswith("4 tasks for 4 images are job 77,")
    assert read_status(tmp_path / "out")["waiting"] == 4


def test_what_sbatch_refuses_is_one_line(data, tmp_path, slurm_programs, capsys):
    (slurm_programs / "sbatch").write_text("#!/bin/sh\necho sbatch: error: one >&2\necho no partition >&2\nexit 1\n")
    assert levin(data, tmp_path / "out", "--cluster", "slurm", "--jobs", 2) == 2
    assert capsys.readouterr().err == "error: --cluster slurm: no partition\n"
    assert not list((tmp_path / "out" / "cluster").iterdir())


# Mistakes


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--jobs", 2], "--jobs"),
        (["--cluster_gpus", 2], "--cluster_gpus"),
        (["--cluster", "debug", "--shard", "1/2"], "--shard"),
        (["--cluster", "debug", "--overwrite"], "--overwrite"),
        (["--cluster", "debug", "--jobs", 0], "--jobs"),
        (["--cluster", "slurm", "--cluster_option", "qos"], "--cluster_option"),
        (["--cluster", "pbs"], "--cluster"),
        (["--cluster", "debug", "--kernel_size", 4], "kernel"),
    ],
)
def test_mistakes_are_one_line(data, tmp_path, options, named, capsys):
    assert levin(data, tmp_path / "out", *options) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert named in errors[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [["-o", "-"], ["--report"]])
def test_what_a_cluster_cannot_do_with_photographs(photos, options, capsys):
    assert main([str(photos / "in"), "-o", str(photos / "out"), "--cluster", "debug", *options]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (photos / "out").exists()


def test_without_slurm(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert levin(data, tmp_path / "out", "--cluster", "slurm", "--jobs", 2) == 2
    assert capsys.readouterr().err.startswith("error: --cluster slurm: srun and sbatch are not found")


def test_submitit_is_needed_for_a_cluster_alone(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert levin(data, tmp_path / "out", "--cluster", "local", "--jobs", 2) == 2
    assert capsys.readouterr().err == 'error: --cluster needs submitit: pip install "selfdeblur[cluster]"\n'
    assert levin(data, tmp_path / "out") == 0
    check(data, tmp_path / "out")


# Shards, failures, locks


def test_shards_keep_the_failures_of_each_other(data, tmp_path, capsys):
    shutil.copytree(data / "data", tmp_path / "data")
    for name in NAMES[1:3]:
        (tmp_path / "data" / f"{name}.png").write_bytes(b"no image")
    out = tmp_path / "out"
    assert levin(tmp_path, out, "--cluster", "debug", "--jobs", 4) == 2
    assert list(read_status(out)["failed"]) == NAMES[1:3]
    shutil.copy(data / "data" / f"{NAMES[1]}.png", tmp_path / "data")
    assert levin(tmp_path, out, "--shard", "2/4") == 0
    assert list(read_status(out)["failed"]) == NAMES[2:3]
    shutil.copy(data / "data" / f"{NAMES[2]}.png", tmp_path / "data")
    assert levin(tmp_path, out) == 0
    assert not (out / "failures.csv").exists()
    check(data, out)


def test_more_shards_than_images(data, tmp_path):
    assert levin(data, tmp_path / "out", "--shard", "5/9") == 0
    assert not (tmp_path / "out").exists()


def test_a_file_system_without_locks(data, tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    monkeypatch.setattr(locks, "_warned", False)
    assert levin(data, tmp_path) == 0
    check(data, tmp_path)
    assert capsys.readouterr().err.count("no locks on this file system") == 1


# The table


def test_the_table_of_states(tmp_path, capsys):
    folder = ResultFolder(tmp_path, {}, images=["a", "b", "c"])
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "tasks.json").write_text('{"images": 20, "tasks": 2, "jobs": ["5_0", "5_1"]}')
    for name, doubtful, seconds in (("im1", False, 1), ("im2", True, 2), ("im3", False, 9)):
        record = {"image": name, "finished": True, "seconds": seconds, "quality": {"doubtful": doubtful}}
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    (tmp_path / "b.json").write_text('{"image": "b", "finished": false, "steps": 300}')
    (tmp_path / "c_checkpoint.pth").touch()
    (tmp_path / ".d.lock").touch()  # of a process that was killed before its first checkpoint
    (tmp_path / "e.json").write_text("{")
    folder.record_failures({"f": "too small", "im3": "an older run"})
    with folder.lock("b"):
        found = read_status(tmp_path)
    assert found["running"] == {"b": 300}
    assert found["interrupted"] == {"c": None}
    assert set(found["failed"]) == {"e", "f"}
    assert (found["done"], found["doubtful"], found["seconds"], found["waiting"]) == (3, 1, 2, 13)
    assert main(["status", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(": 20 images, 2 tasks, job 5")
    assert [line.split()[:2] for line in lines[1:6]] == [
        ["done", "3"], ["running", "0"], ["interrupted", "2"], ["failed", "2"], ["waiting", "13"],
    ]  # fmt: skip
    assert "b (step 300)" in lines[3]
    assert "failed: f: too small" in lines
    assert main(["status", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["interrupted"] == {"b": 300, "c": None}
    assert main(["status", str(tmp_path / "absent")]) == 2


def test_lines_that_are_cut_off_are_left_out(tmp_path):
    (tmp_path / "cluster").mkdir()
    lines = [{"input": "a", "status": "running"}, {"input": "a", "status": "doubtful", "seconds": 3.0}, [1], 2]
    lines += [{"input": "a", "status": "done before"}]  # of a task that started again
    lines += [{"input": "c", "status": "running"}, {"input": "c", "status": "done before"}]  # killed between two writes
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"input": "b", "sta'
    (tmp_path / "cluster" / "photos_1_of_2.jsonl").write_text(text)
    found = read_status(tmp_path)
    assert (found["done"], found["doubtful"], found["images"], found["waiting"]) == (2, 1, None, None)
    assert (found["running"], found["interrupted"]) == ({}, {})


def test_a_signal_outside_of_a_run_ends_a_task_as_well():
    def run(_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        raise AssertionError("nothing stopped it")

    assert cluster.Task(run, argparse.Namespace())() == 130
