"""Quality of a preset on pictures and kernels of no benchmark: python benchmarks/zoo.py run --preset fast --jobs 2

The problems are those of zoo_problems.py: 60 for development, 60 others that are looked at for a report only.

    run           deblur those that have no row in the table of scores (--csv) under this label, largest first
    table         print the means of the table of scores as Markdown; with several labels, of the problems all have
    plot          draw the gap to the true kernel, problem by problem (--to, a PNG)
    show NUMBERS  write the sharp and the blurry image, both kernels, and what they make of the blurry image (--to)

A row has the PSNR of the blurry image, of the classical estimate's deconvolution (`estimate`), of the preset
(`result`), of the deconvolution with the true kernel (`true`), and of that with the kernel of each stage. The preset
"estimate" is the estimate alone, without a network.
"""

import os
import statistics
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, TimeoutError, as_completed
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from zoo_problems import KERNELS, PICTURES, SEEDS, Problem, problems, score

import selfdeblur.stages
from selfdeblur import api
from selfdeblur.arguments import Parser, guarded
from selfdeblur.classical import deconvolve, estimate_kernel, quality
from selfdeblur.colour import luminance
from selfdeblur.errors import UserError
from selfdeblur.files.images import write_image
from selfdeblur.forward import centre
from selfdeblur.scores.metrics import kernel_similarity
from selfdeblur.scores.scoring import commit_of_package
from selfdeblur.scores.tables import read_csv, write_csv
from selfdeblur.settings import PRESETS

__all__ = ["Problem", "chosen", "measure", "problems", "score", "short", "summary"]

ROOT = Path(__file__).resolve().parents[1]
ESTIMATE = "estimate"

# What a row says of its problem; a row that differs is of another form of the zoo.
OF_PROBLEM = (
    "half",
    "number",
    "picture",
    "picture_kind",
    "kernel_kind",
    "kernel_size",
    "height",
    "width",
    "colour",
    "noise",
    "coding",
)
COLUMNS = (
    *OF_PROBLEM,
    "label",
    "preset",
    "seed",
    "blurry",
    "blurry_ssim",
    "estimate",
    "estimate_ssim",
    "estimate_similarity",
    "result",
    "result_ssim",
    "kernel_similarity",
    "true",
    "true_ssim",
    "stages",
    "doubted",
    "reasons",
    "estimate_seconds",
    "seconds",
    "cpu_seconds",
    "device",
    "torch",
    "commit",
)

# In dB: a result so far below the own estimate has lost by the networks; one so far below the true kernel is bad.
LOST, BAD = 0.3, 3.0

# The short form: problems of the fewest pixels with kernels of at most this size, so many of a kind.
SHORT, SHORT_KERNEL, SHORT_OF_A_KIND = 12, 27, 3


def main(argv=None):
    """Run the command line and return its exit status."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=("run", "table", "plot", "show"))
    parser.add_argument("numbers", nargs="?", metavar="NUMBERS", help="problems, as 3,7-9; default: all")
    parser.add_argument("--only", metavar="NUMBERS", help="the same")
    parser.add_argument("--half", choices=tuple(SEEDS), help="default: development, for table and plot both")
    parser.add_argument("--short", action="store_true", help=f"{SHORT} small problems, some of each kind of kernel")
    presets = [name for name in PRESETS if name != "nonblind"]
    parser.add_argument("--preset", choices=[*presets, ESTIMATE], default="fast")
    parser.add_argument("--label", help="name of this form of the program in the table; default: the preset's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="problems at once, a process of one thread each")
    parser.add_argument("--minutes", type=float, help="stop then; what is unfinished is given up")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--csv", type=Path, default=ROOT / "results" / "zoo.csv")
    parser.add_argument("--to", type=Path, help="file or folder; default: results/zoo.png, results/zoo")
    args = parser.parse_args(argv)
    if args.numbers and args.only:
        raise UserError("--only: the problems are given twice; leave one out")
    if args.jobs < 1:
        raise UserError(f"--jobs: {args.jobs}: at least one process is needed")
    args.numbers, args.label = args.numbers or args.only, args.label or args.preset
    return {"run": run, "table": table, "plot": plot, "show": show}[args.action](args)


# Which problems


def chosen(half, numbers=None, only_short=False):
    """The problems of a half, of them those of ``numbers``, as "3,7-9", and of the short form."""
    found = problems(half)
    if only_short:
        found = short(found)
    if numbers is None:
        return found
    wanted = set()
    for part in numbers.split(","):
        first, _, last = part.partition("-")
        try:
            wanted |= set(range(int(first), int(last or first) + 1))
        except ValueError:
            raise UserError(f"NUMBERS: {numbers!r}: whole numbers are needed, as 3,7-9") from None
    found = [problem for problem in found if problem.number in wanted]
    if not found:
        raise UserError(f"NUMBERS: {numbers}: no such problem; there are 1 to {len(problems(half))}")
    return found


def short(of):
    """Of these problems the short form, see SHORT, by number."""
    taken = []
    for problem in sorted(of, key=lambda problem: problem.side[0] * problem.side[1]):
        alike = sum(problem.kernel_kind == other.kernel_kind for other in taken)
        if alike < SHORT_OF_A_KIND and problem.kernel_size[0] <= SHORT_KERNEL and len(taken) < SHORT:
            taken.append(problem)
    return sorted(taken, key=lambda problem: problem.number)


# Running


def run(args):
    """Deblur what has no row yet; after each problem the table is written anew."""
    mine = chosen(args.half or "development", args.numbers, args.short)
    done = [row for row in _rows(args.csv) if row["label"] == args.label]
    for row in done:
        _check(row, args)
    numbers = {(row["half"], row["number"]) for row in done}
    left = [problem for problem in mine if (problem.half, problem.number) not in numbers]
    left.sort(key=lambda problem: -(problem.side[0] * problem.side[1]) * (1 + problem.kernel_size[0] / 20))
    commit = commit_of_package()
    others = {row["commit"] for row in done} - {commit}
    if others:
        print(
            f"{args.label}: there are rows of commit {', '.join(map(str, others))}; take another --label for a new form"
        )
    print(f"{len(left)} of {len(mine)} problems to do", flush=True)
    begun, failed = time.monotonic(), 0
    # Inherited by the processes: their libraries read it when they start.
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn"), initializer=_begin) as pool:
        options = (args.preset, args.seed, args.device)
        tasks = {pool.submit(measure, problem, *options): problem for problem in left}
        try:
            for task in as_completed(tasks, timeout=args.minutes and 60 * args.minutes):
                problem = tasks[task]
                if error := task.exception():
                    failed += 1
                    print(f"{problem.number}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                    continue
                row = task.result() | {"label": args.label, "commit": commit}
                # Read again: another run may have added to it.
                write_csv(args.csv, [*_rows(args.csv), row], COLUMNS)
                _say(row)
        except (TimeoutError, KeyboardInterrupt) as stopped:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                process.terminate()
            if isinstance(stopped, KeyboardInterrupt):
                raise
    ended = sum(task.done() and not task.cancelled() for task in tasks)
    print(
        f"{ended - failed} problems done in {time.monotonic() - begun:.0f} s, {len(left) - ended} left, {failed} failed"
    )
    return 1 if failed else 0


def _begin():
    """Begin a process: one thread, and an end with the parent, however that ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _end_with_parent():
    parent_process().join()
    os._exit(1)


def _rows(path):
    return read_csv(path, COLUMNS) if Path(path).exists() else []


def _check(row, args):
    """Raise `UserError` if a row is not of the problem that has its number, or of another preset, under one label."""
    try:
        wanted = _of_problem(problems(row["half"])[int(row["number"]) - 1])
    except (IndexError, ValueError):
        wanted = {}
    if any(row[name] != value for name, value in wanted.items()) or not wanted:
        raise UserError(
            f"{args.csv}: {row['half']} {row['number']} is of another form of the zoo; choose another --csv"
        )
    if (row["preset"], row["seed"]) != (args.preset, args.seed):
        raise UserError(
            f"{args.csv}: {args.label!r} has rows of preset {row['preset']}, seed {row['seed']:.0f}; give a --label"
        )


def _of_problem(problem):
    height, width = problem.side
    values = {"height": height, "width": width, "kernel_size": problem.kernel_size[0]}
    values |= {"colour": "yes" if problem.colour else "no"}
    return {name: values[name] if name in values else getattr(problem, name) for name in OF_PROBLEM}


def _say(row):
    print(
        f"{row['half'][:3]} {row['number']:3.0f}  {row['picture']}, {row['kernel_kind']} {row['kernel_size']:.0f}:"
        f" blurry {row['blurry']:.2f}, estimate {row['estimate']:.2f}, {row['label']} {row['result']:.2f},"
        f" true {row['true']:.2f} dB{', doubted' if row['doubted'] == 'yes' else ''}, {row['seconds']:.0f} s",
        flush=True,
    )


def measure(problem, preset, seed=0, device="cpu", **changes):
    """Deblur one problem and give its row.

    Parameters
    ----------
    problem : Problem
    preset : str
        Of `selfdeblur.PRESETS`, or "estimate".
    seed : int
    device : str
    **changes
        Further fields of `selfdeblur.Settings`.

    Returns
    -------
    dict
        The COLUMNS but ``label`` and ``commit``.
    """
    size, y = problem.kernel_size, torch.from_numpy(luminance(problem.y)).to(device)
    scores = {"blurry": score(problem, problem.y), "true": score(problem, plain(y, problem.kernel))}
    begun, cpu = time.perf_counter(), time.process_time()
    searches, runs, start = [], [], api.start

    def searched(*args, **options):
        since = time.perf_counter()
        kernel = estimate_kernel(*args, **options)
        searches.append((kernel, round(time.perf_counter() - since, 1)))
        return kernel

    def started(*args, **options):
        runs.append(start(*args, **options))
        return runs[0]

    if preset != ESTIMATE:
        # The run that `deblur` makes is kept for the kernels of its stages, and what its first search finds.
        with patch.object(api, "start", started), patch.object(selfdeblur.stages, "estimate_kernel", searched):
            result = api.deblur(problem.y, size, preset=preset, seed=seed, device=device, **changes)
    row = {"seconds": round(time.perf_counter() - begun, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    if not searches:
        searched(y, size)
    estimate, row["estimate_seconds"] = searches[0]
    x = deconvolve(y, estimate)
    scores["estimate"] = score(problem, centre(x, size).clamp(0, 1).cpu().numpy())
    if preset == ESTIMATE:
        kernel, judged, stages = estimate.cpu().numpy(), quality.assess(y, x, estimate, searched=True), {}
        scores["result"] = scores["estimate"]
        row |= {"seconds": row["estimate_seconds"], "cpu_seconds": round(time.process_time() - cpu, 1)}
    else:
        kernel, judged, scores["result"] = result.kernel, result.quality, score(problem, result.image)
        stages = dict(runs[0].kernels) if runs else {}
        stages["end"] = torch.from_numpy(kernel)
    for name, (decibels, similar) in scores.items():
        row |= {name: round(decibels, 3), f"{name}_ssim": round(similar, 4)}
    psnrs = {name: score(problem, plain(y, k.to(y.device)))[0] for name, k in stages.items()}
    return (
        _of_problem(problem)
        | row
        | {
            "preset": preset,
            "seed": seed,
            "estimate_similarity": round(kernel_similarity(estimate.cpu().numpy(), problem.kernel), 4),
            "kernel_similarity": round(kernel_similarity(kernel, problem.kernel), 4),
            "stages": "; ".join(f"{name} {value:.2f}" for name, value in psnrs.items()) or None,
            "doubted": "yes" if judged["doubtful"] else "no",
            "reasons": "; ".join(judged["reasons"]) or None,
            "device": torch.cuda.get_device_name() if torch.device(device).type == "cuda" else device,
            "torch": torch.__version__,
        }
    )


def plain(y, kernel):
    """Blurry luminance y (H, W) deconvolved with a kernel (h, w): an array (H, W), 0..1."""
    return centre(deconvolve(y, kernel), tuple(kernel.shape)).clamp(0, 1).cpu().numpy()


# Tables


def summary(rows):
    """What counts in some rows.

    Returns
    -------
    dict
        ``problems``; means of ``blurry``, ``estimate``, ``result``, ``true`` in dB, of their ``gap``, true - result;
        shares of results that have ``lost``, are ``wrong`` and not doubted, see LOST and BAD; of ``doubted``; counts
        of ``bad_doubted``, ``bad_trusted``, ``good_doubted``, ``good_trusted``, where bad is more than BAD below the
        true kernel, or below the blurry image; medians of ``seconds``
        and ``cpu_seconds``.
    """
    count = len(rows)
    off = [row["true"] - row["result"] > BAD for row in rows]
    bad = [far or row["result"] < row["blurry"] for far, row in zip(off, rows, strict=True)]
    doubted = [row["doubted"] == "yes" for row in rows]
    kinds = list(zip(bad, doubted, strict=True))
    return {
        "problems": count,
        **{name: statistics.fmean(row[name] for row in rows) for name in ("blurry", "estimate", "result", "true")},
        "gap": statistics.fmean(row["true"] - row["result"] for row in rows),
        "lost": sum(row["estimate"] - row["result"] > LOST for row in rows) / count,
        "wrong": sum(far and not doubt for far, doubt in zip(off, doubted, strict=True)) / count,
        "doubted": sum(doubted) / count,
        "bad_doubted": kinds.count((True, True)),
        "bad_trusted": kinds.count((True, False)),
        "good_doubted": kinds.count((False, True)),
        "good_trusted": kinds.count((False, False)),
        **{name: statistics.median(row[name] for row in rows) for name in ("seconds", "cpu_seconds")},
    }


def table(args):
    """Print the means of each half."""
    for half, labels in _labelled(args).items():
        print(f"## {half}, {len(next(iter(labels.values())))} problems\n")
        print(markdown(labels))
    return 0


def _labelled(args):
    """Rows of each half by their label, of the chosen problems that every label has."""
    rows = read_csv(args.csv, COLUMNS)
    halves = {}
    for half in SEEDS if args.half is None else [args.half]:
        wanted = {problem.number for problem in chosen(half, args.numbers, args.short)}
        labels = {}
        for row in rows:
            if row["half"] == half and row["number"] in wanted:
                labels.setdefault(row["label"], {})[row["number"]] = row
        if labels:
            common = set.intersection(*(set(found) for found in labels.values()))
            if not common:
                raise UserError(
                    f"{args.csv}: no problem of the half {half} has a row of every label; choose with --only"
                )
            halves[half] = {label: [found[n] for n in sorted(common)] for label, found in labels.items()}
    if not halves:
        raise UserError(f"{args.csv}: holds no row of these problems")
    return halves


def markdown(labels):
    """Tables of means for rows by their label: of all, then by kind of kernel and picture, noise, and coding."""
    head = f"| | blurry | estimate | result | true kernel | gap | more than {LOST} dB below the estimate"
    head += f" | more than {BAD:g} dB below the true kernel, not doubted | s | CPU s |"
    lines = [head, "| --- |" + " ---: |" * 9]
    confusion = ["| | bad, doubted | bad, not doubted | good, doubted | good, not doubted |", "| --- |" + " ---: |" * 4]
    for label, rows in labels.items():
        found = summary(rows)
        lines.append(_line(label, found) + f" {found['seconds']:.0f} | {found['cpu_seconds']:.0f} |")
        counts = [found[name] for name in ("bad_doubted", "bad_trusted", "good_doubted", "good_trusted")]
        confusion.append("| " + " | ".join(map(str, [label, *counts])) + " |")
    lines += ["", f"Bad: more than {BAD:g} dB below the true kernel, or below the blurry image.", "", *confusion, ""]
    for title, column, order in (
        ("kernel", "kernel_kind", list(KERNELS)),
        ("size of kernel", "size", ["to 15", "17 to 29", "31 and more"]),
        ("picture", "picture_kind", list(PICTURES)),
        ("noise", "noise", None),
        ("coding", "coding", None),
        ("colour", "colour", None),
    ):
        lines += [f"| {title} | | problems | blurry | estimate | result | true kernel | gap | lost | wrong |"]
        lines += ["| --- | --- |" + " ---: |" * 8]
        values = order or sorted({row[column] for rows in labels.values() for row in rows})
        for value in values:
            for label, rows in labels.items():
                of_kind = [row for row in rows if (_size(row) if column == "size" else row[column]) == value]
                if of_kind:
                    found = summary(of_kind)
                    lines.append(_line(f"{value} | {label} | {found['problems']}", found))
        lines.append("")
    return "\n".join(lines)


def _size(row):
    return "to 15" if row["kernel_size"] <= 15 else "17 to 29" if row["kernel_size"] <= 29 else "31 and more"


def _line(first, found):
    means = " | ".join(f"{found[name]:.2f}" for name in ("blurry", "estimate", "result", "true", "gap"))
    return f"| {first} | {means} | {found['lost']:.0%} | {found['wrong']:.0%} |"


# Pictures


def plot(args):
    """Draw the gap of each problem, of result and estimate, the problems in the order of the first label's gap."""
    path = args.to or ROOT / "results" / "zoo.png"
    for half, labels in _labelled(args).items():
        file = path if args.half else path.with_name(f"{path.stem}_{half}{path.suffix}")
        image = drawn(labels)
        write_image(file, np.asarray(image) / 255)
        print(file)
    return 0


def drawn(labels, column=18, decibel=18):
    """The gap of each problem by label as an image of Pillow; 20 dB and more are drawn at 20."""
    first = next(iter(labels.values()))
    order = [row["number"] for row in sorted(first, key=lambda row: row["true"] - row["result"])]
    top, bottom = 20, -8
    colours = ((30, 90, 200), (220, 120, 0), (0, 140, 80), (150, 0, 150), (90, 90, 90))
    left, head = 50, 20 + 14 * (len(labels) + 1)
    width, height = left + column * len(order) + 20, head + decibel * (top - bottom) + 150
    image = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default()

    def row_of(gap):
        return head + decibel * (top - min(max(gap, bottom), top))

    for gap in range(bottom, top + 1, 2):
        draw.line((left, row_of(gap), width - 20, row_of(gap)), (120,) * 3 if gap == 0 else (225,) * 3)
        draw.text((left - 8, row_of(gap)), str(gap), "black", font, anchor="rm")
    draw.line((left, row_of(BAD), width - 20, row_of(BAD)), (220, 60, 60))
    draw.text((left, 4), "dB below the true kernel; filled: not doubted, dash: the estimate", "black", font)
    for n, (label, rows) in enumerate(labels.items()):
        colour = colours[n % len(colours)]
        draw.text((left, 18 + 14 * n), label, colour, font)
        for row in rows:
            x = left + column * (order.index(row["number"]) + 0.5)
            y = row_of(row["true"] - row["estimate"])
            if n == 0:
                draw.line((x - 6, y, x + 6, y), (140,) * 3, 2)
                name = Image.new("RGB", (140, 12), "white")
                text = f"{row['number']:.0f} {row['kernel_kind']}, {row['picture_kind']}"
                ImageDraw.Draw(name).text((138, 0), text, "black", font, anchor="ra")
                image.paste(name.rotate(90, expand=True), (int(x) - 6, height - 142))
            y = row_of(row["true"] - row["result"])
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), colour if row["doubted"] == "no" else "white", colour, 2)
    return image


def show(args):
    """Write the pictures of the chosen problems."""
    folder = args.to or ROOT / "results" / "zoo"
    for problem in chosen(args.half or "development", args.numbers, args.short):
        y = torch.from_numpy(luminance(problem.y))
        estimate = estimate_kernel(y, problem.kernel_size).numpy()
        pictures = {
            "sharp": problem.x,
            "blurry": problem.y,
            "true_kernel": problem.kernel / problem.kernel.max(),
            "true": plain(y, problem.kernel),
            "estimate_kernel": estimate / estimate.max(),
            "estimate": plain(y, estimate),
        }
        for name, picture in pictures.items():
            write_image(folder / f"{problem.half}_{problem.number}_{name}.png", picture)
        print(f"{folder / f'{problem.half}_{problem.number}_'}*.png: {problem}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
