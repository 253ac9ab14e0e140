"""What is to be measured on a GPU, the most telling first: python benchmarks/gpu.py [--minutes 10]

1. steps: one step as a CUDA graph at the sizes of Lai and Levin, alone and with eight images side by side, in each
   precision, and in its plain form; seconds and peak GPU memory.
2. levin: all 32 images of Levin, preset release, 5000 steps, eight side by side; scored into results/levin.csv with the
   name of the card.
3. lai: as many images of Lai as the minutes that are left allow, spread over the benchmark; scored into
   results/lai.csv.

Every measurement is a line of JSON in --log as soon as it is there. What is in the log of the same card and the same
settings is not measured again (but with --again, if it is of another commit), and images go on from their checkpoints:
the same command, given again, goes on where it was stopped. At its end, and with --report alone, it prints the log as
tables.

Runs of this program are in float32, with TF32 off, unless they are asked for another precision: whether the scores
bear one is what part 2 is to tell, so it runs Levin in each of --precisions. The first step of a precision on a bare
machine compiles its kernels, which takes up to a minute.
"""

import contextlib
import json
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from selfdeblur.api import choose_device
from selfdeblur.arguments import Parser, guarded
from selfdeblur.data.benchmarks import LAI, LEVIN
from selfdeblur.errors import UserError
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
        parts = {"steps": measure_steps, "levin": run_levin, "lai": run_lai}
        for name in args.only or parts:
            parts[name](args, log, card, end)
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
            if entry["what"] == what and all(entry.get(key) == value for key, value in facts.items()):
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


def run_levin(args, log, card, end):
    """All images of Levin, once in each of the precisions asked for."""
    for precision in args.precisions:
        deblur(args, log, card, end, LEVIN, args.levin, precision, shards=1)


def run_lai(args, log, card, end):
    """Every so-many-th image of Lai, as the minutes that are left allow by the measured time of a step."""
    precision = args.precisions[0]
    earlier = log.find("images chosen", card=card, precision=precision, num_iter=args.num_iter)
    if earlier:
        shards = earlier["shards"]
    else:
        timed = log.find("step", card=card, size="lai", form="graph", precision=precision, batch=1)
        if not timed or "failed" in timed:
            say("lai: left out, because its step was not measured (part 'steps')")
            return
        left = max(0, end - time.monotonic())
        # A third goes into reading, writing, scoring and being wrong.
        count = int(left / 1.5 / (args.num_iter * timed["seconds_per_step"]))
        if count < 1:
            say(f"lai: left out, one image takes longer than the {left / 60:.1f} minutes that are left")
            return
        # An odd step through the images, which lie four kernels to a picture, meets all kernels.
        shards = max(1, -(-LAI.images // count)) | 1
        log.add("images chosen", card=card, precision=precision, num_iter=args.num_iter, shards=shards)
    deblur(args, log, card, end, LAI, args.lai, precision, shards=shards)


def deblur(args, log, card, end, benchmark, data, precision, *, shards):
    """Run a benchmark, or every ``shards``-th image of it, and score it."""
    key = {"card": card, "benchmark": benchmark.name, "precision": precision, "shards": shards}
    key["num_iter"] = args.num_iter
    if log.find("scored", **key):
        return
    blurry = data / "uniform_ycbcr" if benchmark is LAI else data
    if not blurry.is_dir():
        say(f"{blurry}: not there, so left out; get it by 'python -m selfdeblur fetch {benchmark.name}'")
        return
    if time.monotonic() > end:
        say(f"{benchmark.name}, {precision}: no time left")
        return
    out = args.save_path / f"{benchmark.name}_{precision}"
    begun = time.monotonic()
    command = [f"selfdeblur_{benchmark.name}.py", "--data_path", blurry, "--save_path", out, "--device", args.device]
    command += ["--batch", args.batch, "--precision", precision, "--num_iter", args.num_iter, "--save_frequency", 0]
    status, said, error = run([*command, "--shard", f"1/{shards}"], end)
    seconds = round(time.monotonic() - begun, 1)
    records = [json.loads(path.read_text()) for path in sorted(out.glob("*_img.json")) + sorted(out.glob("*_0?.json"))]
    finished = [record for record in records if record["finished"]]
    log.add(
        "run", **key, status=status, wall_seconds=seconds, finished=len(finished), batch=args.batch,
        at_once=max((record["batch"] for record in records), default=None),
        image_seconds=round(sum(record["seconds"] for record in finished), 1), said=(said + error).strip()[-1000:],
    )  # fmt: skip
    say(f"{benchmark.name}, {precision}: {len(finished)} images finished, {seconds:.0f} s in this go, status {status}")
    if status:
        say(error.strip()[-500:] or "stopped; the same command goes on")
        return
    table = args.save_path / f"{benchmark.name}.csv" if args.trial else Path("results") / f"{benchmark.name}.csv"
    at_once = finished[0]["batch"] if finished else args.batch
    source = f"benchmarks/gpu.py, one {card}, {at_once} images at once, {precision}"
    command = [f"statistic/statistic_{benchmark.name}.py", "--results", out]
    command += ["--ground_truth", data / ("ground_truth" if benchmark is LAI else "gt"), "--blurry", blurry]
    command += ["--add_to", table, "--method", "selfdeblur", "--preset", f"release, {precision}, GPU"]
    status, said, error = run([*command, "--source", source], None)
    log.add("scored" if status == 0 else "not scored", **key, said=(said + error).strip()[-3000:], table=str(table))
    say((said + error).strip())


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
    lines += ["", "| card | benchmark | precision | steps | images | at once | s in this go | s an image |"]
    lines.append("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for e in (e for e in log.entries if e["what"] == "run"):
        each = f"{e['image_seconds'] / e['finished']:.1f}" if e["finished"] else "–"
        cells = [e["card"], e["benchmark"], e["precision"], e["num_iter"], e["finished"], e["at_once"]]
        lines.append("| " + " | ".join(map(str, [*cells, e["wall_seconds"], each])) + " |")
    scored = [e for e in log.entries if e["what"] == "scored"]
    return "\n".join([*lines, *(f"\n{e['benchmark']}, {e['precision']}, {e['card']}:\n{e['said']}" for e in scored)])


def say(text):
    """Tell what was done, at once."""
    print(text, file=sys.stderr, flush=True)


def _parser():
    parser = Parser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--minutes", type=float, default=10, help="what is not done by then is left for the next time")
    add("--only", nargs="+", choices=("steps", "levin", "lai"), help="some of the parts, in this order; by default all")
    add(
        "--precisions",
        nargs="+",
        choices=PRECISIONS,
        default=["fp16", "tf32"],
        help="of the runs; Lai: the first",
    )
    add("--num_iter", type=int, default=5000, help="steps of a run")
    add("--batch", default="8", help="images at once in the runs")
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
