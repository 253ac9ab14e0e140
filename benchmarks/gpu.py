"""What is to be measured on a GPU, the most telling first: python benchmarks/gpu.py [--minutes 10]

1. tests: the tests that need a GPU.
2. split: one image of the size of Levin and one of Lai by quick, fast and best: seconds of the kernel search, of the
   steps, of the rest; the second image of a process, and the first, which also loads and compiles.
3. fast_levin: the 16 images of im1 and im2 of Levin, preset fast, one after the other.
4. lai: 20 images of Lai, each category with each kernel, preset release, 5000 steps, in the first of --precisions.
5. levin: all 32 images of Levin, preset release, 5000 steps, eight side by side, in TF32.
6. steps: one step as a CUDA graph at the sizes of Lai and Levin, alone and with eight images side by side, in each
   precision, and in its plain form; seconds and peak GPU memory.
7. fast_lai, best_lai: the 20 images of Lai, presets fast and best.

Scores go into results/levin.csv and results/lai.csv, with the name of the card, as soon as an image is done.

Every measurement is a line of JSON in --log as soon as it is there. What is in the log of the same card and the same
settings is not measured again (but with --again, if it is of another commit), images that are scored are left out, on
whatever card, and others go on from their checkpoints: the same command, given again, goes on where it was stopped,
with no more than the log on another machine. At its end, and with --report alone, it prints the log as tables.

Runs of this program are in float32, with TF32 off, unless they are asked for another precision. The first step of a
precision or of a network on a bare machine compiles its kernels, which takes up to a minute.
"""

import contextlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import quality
import torch

from selfdeblur.api import choose_device
from selfdeblur.arguments import Parser, guarded
from selfdeblur.data.benchmarks import LAI, LEVIN, Benchmark
from selfdeblur.errors import UserError
from selfdeblur.files.images import find_images
from selfdeblur.scores.scoring import commit_of_package
from selfdeblur.settings import PRECISIONS

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"levin": ((255, 255), 21), "lai": ((680, 1024), 75)}
FORMS = {"plain": ["--plain"], "graph": ["--graph"]}
# Of a step, in this order: size, form, precision, images side by side.
CASES = [
    ("lai", "graph", "fp16", 1),
    ("levin", "graph", "fp16", 8),
    ("levin", "graph", "fp16", 1),
    ("lai", "graph", "tf32", 1),
    ("levin", "graph", "tf32", 8),
    ("levin", "graph", "tf32", 1),
    ("levin", "graph", "float32", 8),
    ("levin", "graph", "float32", 1),
    ("lai", "graph", "float32", 1),
    ("levin", "graph", "bf16", 8),
    ("levin", "plain", "float32", 1),
    ("lai", "plain", "float32", 1),
]
CASE_SECONDS = 120
# Preset and size of the images that are deblurred for their time alone.
SPLITS = [(preset, size) for size in SIZES for preset in ("fast", "quick", "best")]
TESTS = ["tests/method/test_recorded.py", "tests/method/test_graphs.py", "tests/method/test_kernels.py"]


def main(argv=None):
    """Run the command line and return its exit status."""
    args = _parser().parse_args(argv)
    log = Log(args.log)
    if not args.report:
        device = choose_device(args.device)
        if device.type != "cuda" and not args.trial:
            raise UserError(
                "device: there is no GPU here, which is what this program measures; "
                "--report prints what was measured elsewhere, --trial tries the program out"
            )
        card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        end = time.monotonic() + 60 * args.minutes
        say(f"{card}, torch {torch.__version__}, {args.minutes:g} minutes; log: {args.log}")
        for name in args.only or PARTS:
            PARTS[name](args, log, card, end)
    print(report(log))
    return 0


class Log:
    """Measurements, one line of JSON each."""

    def __init__(self, path):
        self.path = Path(path)
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.entries = []
        for number, line in enumerate(lines, 1):
            try:
                self.entries.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"{path}: line {number} is no JSON; remove it") from error

    def add(self, what, **facts):
        """Write down a measurement."""
        entry = {"what": what, "time": datetime.now(timezone.utc).isoformat(timespec="seconds"), **facts}
        self.entries.append(entry)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def find(self, what, **facts):
        """The last entry with these facts, or None."""
        for entry in reversed(self.entries):
            if entry["what"] == what and matches(entry, facts):
                return entry
        return None


def measure_steps(args, log, card, end):
    """Seconds and memory of one step, each case in a process of its own."""
    commit = commit_of_package()
    for size, form, precision, batch in (case for case in CASES if not args.trial or case[1] == "plain"):
        key = {"card": card, "size": size, "form": form, "precision": precision, "batch": batch}
        if log.find("step", **key, **({"commit": commit} if args.again else {})):
            continue
        if time.monotonic() > end:
            say("no time left for the other steps")
            return
        (height, width), kernel = ((40, 44), 5) if args.trial else SIZES[size]
        steps = 2 if args.trial else 10 if form == "plain" else 50
        command = [
            "benchmarks/step.py",
            "--image_size",
            height,
            width,
            "--kernel_size",
            kernel,
            "--device",
            args.device,
        ]
        command += ["--precision", precision, "--batch", batch, "--warmup", 3, "--steps", steps, *FORMS[form]]
        status, out, error = run(command, min(end + 30, time.monotonic() + CASE_SECONDS))
        if status == 0:
            log.add("step", **key, commit=commit, **{k: v for k, v in json.loads(out).items() if k not in key})
            say(f"{size}, {form}, {precision}, {batch} at once: {1000 * json.loads(out)['seconds_per_step']:.2f} ms")
        else:
            reason = error.strip().splitlines()[-1][:300] if error.strip() else f"exit status {status}"
            log.add("step", **key, commit=commit, failed=reason)
            say(f"{size}, {form}, {precision}, {batch} at once: failed, {reason}")


def run_tests(args, log, card, end):
    """The tests that need a GPU; how they ended."""
    commit = commit_of_package()
    if log.find("tests", card=card, commit=commit, status=0):
        return
    if time.monotonic() > end:
        say("tests: no time left")
        return
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cuda" if not args.trial else "no_test", *TESTS]
    begun = time.monotonic()
    status, out, error = run(command, min(end, begun + 3 * CASE_SECONDS))
    status = 0 if args.trial and status == 5 else status  # no test was chosen
    seconds = round(time.monotonic() - begun, 1)
    log.add("tests", card=card, commit=commit, status=status, wall_seconds=seconds, said=(out + error).strip()[-3000:])
    say(f"tests: status {status}, {seconds:.0f} s: {(out.strip().splitlines() or [error.strip()[-300:]])[-1]}")


def measure_splits(args, log, card, end):
    """Where the time of presets goes, each in a process of its own."""
    commit = commit_of_package()
    for preset, size in SPLITS[:2] if args.trial else SPLITS:
        key = {"card": card, "preset": preset, "size": size}
        if log.find("split", **key, commit=commit):
            continue
        if time.monotonic() > end:
            say("no time left for the other presets")
            return
        (height, width), kernel = ((40, 44), 5) if args.trial else SIZES[size]
        command = ["benchmarks/split.py", "--preset", preset, "--image_size", height, width, "--kernel_size", kernel]
        command += ["--device", args.device, *(("--num_iter", 4, "--rounds", 1) if args.trial else ())]
        status, out, error = run(command, min(end + 30, time.monotonic() + 2 * CASE_SECONDS))
        if status == 0:
            found = json.loads(out.strip().splitlines()[-1])
            log.add("split", **key, commit=commit, **{k: v for k, v in found.items() if k not in key})
            say(f"{preset}, {size}: {found['rounds'][-1]}")
        else:
            reason = error.strip().splitlines()[-1][:300] if error.strip() else f"exit status {status}"
            log.add("split", **key, commit=commit, failed=reason)
            say(f"{preset}, {size}: failed, {reason}")


@dataclass(frozen=True)
class Task:
    """Images of a benchmark, to be run in one way."""

    benchmark: Benchmark
    preset: str
    precision: str
    num_iter: int | None
    batch: str
    names: tuple[str, ...] | None = None

    @property
    def key(self):
        """What the log knows it by."""
        key = {"benchmark": self.benchmark.name, "preset": self.preset, "precision": self.precision}
        return key | {"num_iter": self.num_iter}

    @property
    def label(self):
        """Its name in the tables of scores."""
        return f"{self.preset}, {self.precision}, GPU" if self.precision != "float32" else f"{self.preset}, GPU"

    @property
    def folder(self):
        return f"{self.benchmark.name}_{self.preset}_{self.precision}"


def with_preset(benchmark, preset):
    """The part that runs a preset on im1 and im2 of Levin or 20 images of Lai, one after the other."""

    def part(args, log, card, end):
        steps = args.num_iter if args.trial else None
        task = Task(benchmark, preset, "float32", steps, "1", tuple(quality.subset(benchmark.name)))
        deblur(args, log, card, end, task)

    return part


def run_lai(args, log, card, end):
    """The published settings on 20 images of Lai, one by one: several at once take as long, and none would be done."""
    names = tuple(quality.subset("lai"))
    deblur(args, log, card, end, Task(LAI, "release", args.precisions[0], args.num_iter, "1", names))


def run_levin(args, log, card, end):
    """All images of Levin in the last of the precisions asked for."""
    deblur(args, log, card, end, Task(LEVIN, "release", args.precisions[-1], args.num_iter, args.batch))


PARTS = {
    "tests": run_tests,
    "split": measure_splits,
    "fast_levin": with_preset(LEVIN, "fast"),
    "lai": run_lai,
    "levin": run_levin,
    "steps": measure_steps,
    "fast_lai": with_preset(LAI, "fast"),
    "best_lai": with_preset(LAI, "best"),
}


def deblur(args, log, card, end, task):
    """Run the images of a task that are not scored yet, and score those that get done."""
    benchmark, title = task.benchmark, f"{task.benchmark.name}, {task.label}"
    data = args.lai if benchmark is LAI else args.levin
    blurry = data / "uniform_ycbcr" if benchmark is LAI else data
    if not blurry.is_dir():
        say(f"{blurry}: not there, so left out; get it by 'python -m selfdeblur fetch {benchmark.name}'")
        return
    scored = {
        name for e in log.entries if e["what"] == "scored" and matches(e, task.key) for name in e.get("names", ())
    }
    paths = {path.stem: path for path in find_images(blurry, "*")}
    names = [name for name in task.names or sorted(paths) if name in paths and name not in scored]
    if not names:
        return
    if time.monotonic() > end:
        say(f"{title}: no time left")
        return
    out = args.save_path / task.folder
    todo = out / "todo"
    todo.mkdir(parents=True, exist_ok=True)
    for path in todo.iterdir():
        path.unlink()
    for name in names:
        (todo / paths[name].name).symlink_to(paths[name].resolve())
    begun = time.monotonic()
    command = [f"selfdeblur_{benchmark.name}.py", "--data_path", todo, "--save_path", out, "--device", args.device]
    command += ["--batch", task.batch, "--precision", task.precision, "--preset", task.preset, "--save_frequency", 0]
    command += [] if task.num_iter is None else ["--num_iter", task.num_iter]
    status, said, error = run(command, end)
    seconds = round(time.monotonic() - begun, 1)
    records = {name: json.loads(path.read_text()) for name in names if (path := out / f"{name}.json").exists()}
    finished = {name: record for name, record in records.items() if record["finished"]}
    log.add(
        "run", card=card, **task.key, status=status, wall_seconds=seconds, finished=len(finished), batch=task.batch,
        at_once=max((record["batch"] for record in records.values()), default=None),
        image_seconds=round(sum(record["seconds"] for record in finished.values()), 1),
        said=(said + error).strip()[-1000:],
    )  # fmt: skip
    say(f"{title}: {len(finished)} of {len(names)} images finished, {seconds:.0f} s in this go, status {status}")
    if status:
        say(error.strip()[-500:] or "stopped; the same command goes on")
    if finished:
        score(args, log, card, task, out, data, list(finished), next(iter(finished.values()))["batch"])


def score(args, log, card, task, out, data, names, at_once):
    """Score the results of a folder into the table."""
    benchmark = task.benchmark
    table = args.save_path / f"{benchmark.name}.csv" if args.trial else Path("results") / f"{benchmark.name}.csv"
    source = f"benchmarks/gpu.py, one {card}, {at_once} images at once, {task.precision}"
    blurry = data / "uniform_ycbcr" if benchmark is LAI else data
    command = [f"statistic/statistic_{benchmark.name}.py", "--results", out]
    command += ["--ground_truth", data / ("ground_truth" if benchmark is LAI else "gt"), "--blurry", blurry]
    command += ["--add_to", table, "--method", "selfdeblur", "--preset", task.label, "--source", source]
    status, said, error = run(command, None)
    said = (said + error).strip()[-3000:]
    log.add("scored" if status == 0 else "not scored", card=card, **task.key, names=names, said=said, table=str(table))
    say(said)


def matches(entry, key):
    """Whether an entry of the log has these facts."""
    return all(entry.get(name) == value for name, value in key.items())


def run(command, end):
    """Run one of the programs; it is asked to end in order at ``end``. Returns status, output and errors."""
    command = [sys.executable, *map(str, command)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            limit = None if end is None else max(1, end - time.monotonic())
            out, error = process.communicate(timeout=limit)
        except BaseException as stopped:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                out, error = process.communicate(timeout=60)
            if process.poll() is None:
                process.kill()
                out, error = process.communicate()
            if not isinstance(stopped, subprocess.TimeoutExpired):
                raise
    return process.returncode, out, error


def report(log):
    """The log as Markdown."""
    lines = ["| card | commit | size | form | precision | at once | ms a step and image | against plain | memory, MB |"]
    lines.append("| --- | --- | --- | --- | --- | ---: | ---: | ---: | ---: |")
    for e in (e for e in log.entries if e["what"] == "step"):
        cells = [e["card"], e.get("commit", "–"), e["size"], e["form"], e["precision"], e["batch"]]
        if "failed" in e:
            cells += ["failed", "", ""]
        else:
            plain = log.find("step", card=e["card"], size=e["size"], form="plain", precision="float32", batch=1)
            times = plain["seconds_per_step"] / e["seconds_per_step"] if plain and "failed" not in plain else None
            form = "" if e.get("recorded") or "graph" not in e["form"] else " (not recorded)"
            cells += [f"{1000 * e['seconds_per_step']:.2f}{form}", f"{times:.2f}" if times else "–"]
            cells.append(
                e.get("peak_gpu_reserved_mb") or f"{e['peak_gpu_mb']} without gaps" if "peak_gpu_mb" in e else "–"
            )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "| card | commit | preset | size | image | search, s | steps, s | rest, s | sum, s | searches |"]
    lines.append("| --- | --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for e in (e for e in log.entries if e["what"] == "split"):
        for number, round_ in enumerate(e.get("rounds", ()), 1):
            cells = [e["card"], e["commit"], e["preset"], e["size"], "first" if number == 1 else "later"]
            cells += [f"{round_[part]:.2f}" for part in ("search", "steps", "end", "total")]
            lines.append("| " + " | ".join(map(str, [*cells, round_["searches"]])) + " |")
    lines += ["", "| card | benchmark | preset | precision | steps | images | at once | s in this go | s an image |"]
    lines.append("| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for e in (e for e in log.entries if e["what"] == "run"):
        each = f"{e['image_seconds'] / e['finished']:.1f}" if e["finished"] else "–"
        cells = [e["card"], e["benchmark"], e.get("preset", "release"), e["precision"], e["num_iter"] or "–"]
        cells += [e["finished"], e["at_once"]]
        lines.append("| " + " | ".join(map(str, [*cells, e["wall_seconds"], each])) + " |")
    scored = [e for e in log.entries if e["what"] == "scored"]
    titles = (f"{e['benchmark']}, {e.get('preset', 'release')}, {e['precision']}, {e['card']}" for e in scored)
    return "\n".join([*lines, *(f"\n{title}:\n{e['said']}" for title, e in zip(titles, scored, strict=True))])


def say(text):
    """Tell what was done, at once."""
    print(text, file=sys.stderr, flush=True)


def _parser():
    parser = Parser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--minutes", type=float, default=10, help="what is not done by then is left for the next time")
    add("--only", nargs="+", choices=PARTS, help="some of the parts, in this order; by default all")
    add(
        "--precisions",
        nargs="+",
        choices=PRECISIONS,
        default=["fp16", "tf32"],
        help="of the runs with preset release: of Lai the first one, of Levin the last one",
    )
    add("--num_iter", type=int, default=5000, help="steps of a run")
    add("--batch", default="8", help="images at once in part levin")
    add("--device", default="cuda")
    add("--levin", type=Path, default=Path("datasets/levin"), help="folder of the Levin benchmark")
    add("--lai", type=Path, default=Path("datasets/lai"), help="folder of the Lai benchmark")
    add("--save_path", type=Path, default=Path("results/gpu"), help="folder of the folders of results")
    add("--log", type=Path, default=Path("benchmarks/gpu.jsonl"), help="file of the measurements")
    add("--again", action="store_true", help="measure steps again that the log has of another commit")
    add("--report", action="store_true", help="print the log and measure nothing")
    add("--trial", action="store_true", help="small steps on any device, and scores into --save_path, to try this out")
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main))
