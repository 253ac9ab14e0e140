"""benchmarks/gpu.py does all of its parts and goes on where it was stopped; tried out on the CPU with tiny images."""

import importlib.util
import json
import shutil

import cv2
import numpy as np
import pytest
from common import ROOT
from processes import run

from selfdeblur import UserError
from selfdeblur.scores.tables import RECORD_COLUMNS, read_csv

SPEC = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks" / "gpu.py")
gpu = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(gpu)


@pytest.fixture
def folder(tmp_path, picture):
    """A benchmark of each kind with one image of 64 x 60."""
    for blurry, truth, name, true_name in (
        ("levin", "levin/gt", "im1_kernel3_img", "im1"),
        ("lai/uniform_ycbcr", "lai/ground_truth", "text_01_kernel_02", "text_01"),
    ):
        for path, stem, image in ((blurry, name, cv2.blur(picture, (3, 3))), (truth, true_name, picture)):
            (tmp_path / path).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / path / f"{stem}.png"), (image[:64, :60] * 255).astype(np.uint8))
    return tmp_path


def options(folder, *more):
    return [
        "--trial", "--device", "cpu", "--num_iter", "2", "--levin", str(folder / "levin"), "--lai", str(folder / "lai"),
        "--save_path", str(folder / "out"), "--log", str(folder / "log.jsonl"), *more,
    ]  # fmt: skip


def entries(folder, what):
    return [e for e in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if e["what"] == what]


@pytest.mark.processes
def test_all_parts_and_again(folder, capsys, monkeypatch):
    def forked(command, end):
        if command[:2] == ["-m", "pytest"]:
            return 5, "no tests ran", ""
        done = run(*command, thin=True)
        return done.returncode, done.stdout, done.stderr

    monkeypatch.setattr(gpu, "run", forked)
    arguments = options(folder, "--precisions", "bf16", "--only", *list(gpu.PARTS)[:-2])  # the last are as the third
    assert gpu.main(arguments) == 0
    said = capsys.readouterr()
    assert [e["status"] for e in entries(folder, "tests")] == [0]
    splits = entries(folder, "split")
    assert [(e["preset"], e["size"]) for e in splits] == [("fast", "levin"), ("quick", "levin")]
    for entry in splits:
        (found,) = entry["rounds"]
        assert found["searches"] >= 1
        assert found["search"] > 0
        assert found["total"] == pytest.approx(found["search"] + found["steps"] + found["end"], abs=0.01)
    assert splits[0]["rounds"][0]["steps"] > splits[1]["rounds"][0]["steps"] == 0
    assert len(entries(folder, "step")) == 2
    assert all(e["seconds_per_step"] > 0 for e in entries(folder, "step"))
    runs = [
        ("levin", "fast", "float32", 1, 0),
        ("lai", "release", "bf16", 1, 0),
        ("levin", "release", "bf16", 1, 0),
    ]
    told = ("benchmark", "preset", "precision", "finished", "status")
    assert [tuple(e[name] for name in told) for e in entries(folder, "run")] == runs
    rows = read_csv(folder / "out" / "levin.csv", RECORD_COLUMNS)
    assert [row["preset"] for row in rows] == ["fast, GPU", "release, bf16, GPU"]
    assert rows[1]["source"] == "benchmarks/gpu.py, one cpu, 8 images at once, bf16"
    rows = read_csv(folder / "out" / "lai.csv", RECORD_COLUMNS)
    assert {row["image"] for row in rows} == {"text_01_kernel_02"}
    assert "| cpu | levin | release | bf16 | 2 | 1 | 8 |" in said.out
    assert "| fast | levin | first |" in said.out
    assert "ms" in said.err
    # All is in the log: nothing is done again, though the results are no longer there.
    shutil.rmtree(folder / "out")
    before = (folder / "log.jsonl").read_bytes()
    assert gpu.main(arguments) == 0
    assert (folder / "log.jsonl").read_bytes() == before
    assert gpu.main(["--report", "--log", str(folder / "log.jsonl")]) == 0
    assert capsys.readouterr().out.endswith(said.out)


def test_what_got_done_before_the_time_was_up_is_scored_and_left_out_the_next_time(folder, monkeypatch, capsys):
    """Three images, of which one is done in each go."""
    blurry = folder / "levin" / "im1_kernel3_img.png"
    for kernel in (1, 2):
        (folder / "levin" / f"im1_kernel{kernel}_img.png").write_bytes(blurry.read_bytes())
    asked, scored = [], []

    def stopped(command, end):
        if command[0].startswith("statistic"):
            scored.append(command)
            return 0, "scores", ""
        todo, out = (command[command.index(name) + 1] for name in ("--data_path", "--save_path"))
        asked.append(sorted(path.stem for path in todo.iterdir()))
        record = {"finished": True, "seconds": 1.0, "batch": 1}
        (out / f"{asked[-1][0]}.json").write_text(json.dumps(record))
        (out / f"{asked[-1][-1]}_other.json").write_text(json.dumps(record))
        return (130 if len(asked[-1]) > 1 else 0), "", "stopped by SIGTERM"

    monkeypatch.setattr(gpu, "run", stopped)
    for _ in range(4):
        assert gpu.main(options(folder, "--only", "fast_levin")) == 0
        shutil.rmtree(folder / "out", ignore_errors=True)  # another machine, with the log alone
    names = [f"im1_kernel{kernel}_img" for kernel in (1, 2, 3)]
    assert asked == [names, names[1:], names[2:]]
    assert len(scored) == 3
    assert [e["names"] for e in entries(folder, "scored")] == [[name] for name in names]
    assert "1 of 3 images finished" in capsys.readouterr().err


def test_tests_and_splits_that_fail_are_logged(folder, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "run", lambda *_: (1, "2 failed, 3 passed", "it broke\nat last"))
    assert gpu.main(options(folder, "--only", "tests", "split")) == 0
    assert [e["status"] for e in entries(folder, "tests")] == [1]
    assert [e["failed"] for e in entries(folder, "split")] == ["at last"] * 2
    assert "2 failed, 3 passed" in capsys.readouterr().err
    # Failed tests are run again, failed times of the same commit are not.
    assert gpu.main(options(folder, "--only", "tests", "split")) == 0
    assert [len(entries(folder, what)) for what in ("tests", "split")] == [2, 2]


def test_without_time_or_data_it_says_so(folder, capsys):
    assert gpu.main(options(folder, "--minutes", "0")) == 0
    said = capsys.readouterr().err
    for words in (
        "tests: no time left",
        "no time left for the other presets",
        "levin, fast, GPU: no time left",
        "lai, release, fp16, GPU: no time left",
        "levin, release, tf32, GPU: no time left",
        "no time left for the other steps",
        "lai, fast, GPU: no time left",
    ):
        assert words in said
    assert gpu.main([*options(folder, "--only", "levin"), "--levin", str(folder / "absent")]) == 0
    assert "absent: not there, so left out" in capsys.readouterr().err


STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped in order"))
print("begun", flush=True)
time.sleep(60)
"""


@pytest.mark.processes
def test_what_takes_too_long_is_ended_in_order():
    status, out, error = gpu.run(["-c", STUBBORN], gpu.time.monotonic() + 2)
    assert (status, out, error) == (1, "begun\n", "stopped in order\n")


def test_without_a_gpu_it_measures_nothing(folder, monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device"):
        gpu.main(["--log", str(folder / "log.jsonl")])
    with pytest.raises(UserError, match="--trial"):
        gpu.main(["--device", "cpu", "--log", str(folder / "log.jsonl")])
    assert not (folder / "log.jsonl").exists()


def test_every_case_is_measured_once():
    assert len(gpu.CASES) == len(set(gpu.CASES))
    assert {case[0] for case in gpu.CASES} == set(gpu.SIZES)
    assert {case[1] for case in gpu.CASES} == set(gpu.FORMS)
    assert {case[2] for case in gpu.CASES} == set(gpu.PRECISIONS)


def test_steps_of_another_commit_are_measured_again_when_asked(folder, monkeypatch, capsys):
    asked = []

    def run(command, end):
        asked.append(command[command.index("--precision") + 1])
        return 0, '{"seconds_per_step": 0.5, "precision": "float32"}', ""

    monkeypatch.setattr(gpu, "run", run)
    for commit, more, expected in (
        ("one", (), 2),
        ("one", ("--again",), 0),
        ("two", (), 0),
        ("two", ("--again",), 2),
        ("two", ("--again",), 0),
    ):
        monkeypatch.setattr(gpu, "commit_of_package", lambda commit=commit: commit)
        asked.clear()
        assert gpu.main(options(folder, "--only", "steps", *more)) == 0
        assert asked == ["float32"] * expected, (commit, more)
    assert [e["commit"] for e in entries(folder, "step")] == ["one", "one", "two", "two"]
    assert "| cpu | two | lai | plain | float32 | 1 | 500.00 | 1.00 | – |" in capsys.readouterr().out


def case_of(entry):
    return tuple(entry[key] for key in ("size", "form", "precision", "batch"))


def test_the_steps_of_the_log_are_not_measured_again(tmp_path, monkeypatch):
    """On a card that the committed log knows, time goes to what it lacks."""
    log = gpu.Log(ROOT / "benchmarks" / "gpu.jsonl")
    card = "NVIDIA H100 80GB HBM3"
    known = {case_of(e) for e in log.entries if e["what"] == "step" and e["card"] == card}
    assert known
    log.path = tmp_path / "log"
    monkeypatch.setattr(gpu, "run", lambda *_: (1, "", "none here"))
    gpu.measure_steps(gpu._parser().parse_args([]), log, card, gpu.time.monotonic() + 60)
    done = {
        (e["size"], e["form"], e["precision"], e["batch"]) for e in map(json.loads, log.path.read_text().splitlines())
    }
    assert done == set(gpu.CASES) - known


def test_a_damaged_log_is_named(tmp_path):
    (tmp_path / "log").write_text('{"what": "step"}\nx\n')
    with pytest.raises(UserError, match="line 2"):
        gpu.Log(tmp_path / "log")
