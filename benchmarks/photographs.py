"""How pictures fare of which nothing is told: python benchmarks/photographs.py run, then python ... table

    run [PARTS]   measure what has no row in the table (--csv); all parts by default, in the order below
    table         print the figures as Markdown, each with its target

Parts, all with the preset `quick` on one thread, but for the last:

    sizes         im1 and im2 of Levin: kernel size as published, doubled, and estimated
    lai           ten images of Lai, two of each category: kernel size as published, and estimated
    noise         im1 and im2 of Levin with Gaussian noise of 0.01 and 0.03, seed 0, kernel size as published
    sharp         sharp and blurry pictures of the zoo: which are taken for sharp, and what is handed back
    varying       pictures whose blur differs: another kernel in one half, a sharp ground, a rotation
    honest        problems of the short zoo, kernel size estimated: those worse than the input, and warned of
    colour        the sharp images of Lai blurred by a camera shake that is known: colours sharpened or kept
    large         the command on a colour picture of twelve megapixels, kernel of 61 pixels, size estimated; all threads

The benchmarks are read from datasets/levin and datasets/lai, or from the folders that --levin and --lai name.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import cv2
import numpy as np
import torch
from quality import subset
from skimage import data
from step import measure as seconds_of
from zoo import short
from zoo_problems import drawn_kernel, problems, score

from selfdeblur.arguments import Parser, guarded
from selfdeblur.classical.judge import JUDGED_SIDE, busiest_window
from selfdeblur.classical.sharp import is_sharp
from selfdeblur.colour import luminance
from selfdeblur.data.benchmarks import LAI, LEVIN
from selfdeblur.errors import UserError
from selfdeblur.files.images import find_images, read_image, write_image
from selfdeblur.forward import blur
from selfdeblur.restore import restore
from selfdeblur.scores.metrics import psnr
from selfdeblur.scores.scoring import commit_of_package, score_image
from selfdeblur.scores.tables import read_csv, write_csv
from selfdeblur.settings import make_settings
from selfdeblur.stages import Run

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = (
    *("part", "name", "form", "blurry", "result", "size", "doubted", "unchanged", "reasons", "seconds", "commit"),
    # Of the large picture alone: seconds over those of a plain step, measured just before, and the most memory it took.
    *("plain_steps", "peak_mb"),
)
PARTS = ("sizes", "lai", "noise", "sharp", "varying", "honest", "colour", "large")
LAI_IMAGES = 10
NOISE = (0.01, 0.03)
VARYING = 48
# Side of the kernel that Lai's sharp images are blurred with, a thick camera shake.
COLOUR_KERNEL = 31
# Height and width of the large picture, and the side of its kernel.
LARGE, LARGE_KERNEL = (3000, 4000), 61


def main(argv=None):
    """Run the command line and return its exit status."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("parts", nargs="*", metavar="PARTS", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--csv", type=Path, default=ROOT / "results" / "photographs.csv")
    parser.add_argument("--levin", type=Path, default=ROOT / LEVIN.blurry)
    parser.add_argument("--lai", type=Path, default=ROOT / LAI.blurry.parent)
    args = parser.parse_args(argv)
    if unknown := set(args.parts) - set(PARTS):
        raise UserError(f"PARTS: {', '.join(sorted(unknown))}: unknown; they are {', '.join(PARTS)}")
    rows = read_csv(args.csv, numbers=False) if args.csv.exists() else []
    if args.action == "table":
        print(table(rows))
        return 0
    torch.set_num_threads(1)
    done = {(row["part"], row["name"], row["form"]) for row in rows}
    for part in args.parts or PARTS:
        for name, form, measure in globals()[part](args):
            if (part, name, form) in done:
                continue
            begun = time.monotonic()
            row = {"part": part, "name": name, "form": form, **measure(), "commit": commit_of_package()}
            rows.append(
                {column: row.get(column, "") for column in COLUMNS} | {"seconds": round(time.monotonic() - begun)}
            )
            write_csv(args.csv, rows, COLUMNS)
            print(" ".join(str(value) for value in rows[-1].values()), flush=True)
    return 0


# Each part gives triples: name, form, and what measures it


def sizes(args):
    for path in _levin(args):
        published = LEVIN.kernel_size(path.stem)[0]
        for form, size in (("published", published), ("doubled", 2 * published + 1), ("estimated", None)):
            yield path.stem, form, lambda path=path, size=size: _scored(args.levin, LEVIN, path, kernel_size=size)


def lai(args):
    for name in subset("lai")[:LAI_IMAGES]:
        path = args.lai / LAI.blurry.name / f"{name}.png"
        for form, size in (("published", LAI.kernel_size(name)), ("estimated", None)):
            yield name, form, lambda path=path, size=size: _scored(args.lai, LAI, path, kernel_size=size)


def noise(args):
    for path in _levin(args):
        size = LEVIN.kernel_size(path.stem)
        for level in NOISE:
            yield (
                path.stem,
                f"{level}",
                lambda path=path, size=size, n=level: _scored(args.levin, LEVIN, path, n, kernel_size=size),
            )


def sharp(args):
    for problem in problems("development"):
        for form in ("sharp", "blurry"):
            yield f"problem {problem.number}", form, lambda p=problem, form=form: _taken_for_sharp(p, form)


def varying(args):
    for number in range(VARYING):
        kind = ("halves", "halves", "object", "rotation")[number % 4]
        yield f"picture {number}", kind, lambda number=number, kind=kind: _varying(number, kind)


def honest(args):
    for problem in short(problems("development")):
        yield f"problem {problem.number}", "estimated", lambda problem=problem: _problem(problem)


def colour(args):
    for path in find_images(args.lai / LAI.ground_truth.name):
        for form in ("rgb", "luminance"):
            yield path.stem, form, lambda path=path, form=form: _coloured(args, path, form)


def large(args):
    yield "astronaut, repeated", "estimated", _large


def _levin(args):
    return [path for path in find_images(args.levin, "im[12]_*")]


def _told(result):
    return {
        "size": "" if result.kernel_size is None else result.kernel_size[0],
        "doubted": int(not result.improved),
        "unchanged": int(result.unchanged),
        "reasons": "; ".join(result.quality["reasons"]),
    }


def _scored(folder, benchmark, path, level=0.0, **options):
    y = read_image(path)
    if level:
        y = (y + level * np.random.default_rng(0).standard_normal(y.shape)).clip(0, 1)
    truth = read_image(folder / benchmark.ground_truth.name / f"{benchmark.truth_name(path.stem)}.png")
    result = restore(y.astype(np.float32), preset="quick", **options)
    return {"blurry": _psnr(y, truth), "result": _psnr(result.image, truth)} | _told(result)


def _psnr(image, truth):
    return round(float(score_image(np.rint(np.clip(image, 0, 1) * 255) / 255, truth)[0]["psnr"]), 3)


def _taken_for_sharp(problem, form):
    """Whether a picture would be handed back at once, as `restore` decides it."""
    y = luminance(problem.x if form == "sharp" else problem.y)
    y = torch.from_numpy((np.rint(y * 255) / 255).astype(np.float32))
    return {"unchanged": int(is_sharp(y[busiest_window(y, JUDGED_SIDE)]))}


def _varying(number, kind):
    y, x = varied(number, kind)
    result = restore(y, preset="quick")
    return {"blurry": _psnr(y, x), "result": _psnr(result.image, x)} | _told(result)


def varied(number, kind):
    """A picture (H, W) whose blur differs over it, and the sharp one; of the zoo's development half."""
    rng = np.random.default_rng(100 + number)
    quiet = [p for p in problems("development") if p.noise <= 0.01 and p.picture_kind not in ("night", "texture")]
    x = luminance(quiet[number % len(quiet)].x).astype(np.float32)[:256, :256]
    size = int(rng.choice([13, 17, 21]))
    kernels = [drawn_kernel(str(rng.choice(["shake thin", "shake thick", "line"])), size, rng) for _ in range(2)]
    first, second = (_blurred(np.pad(x, size // 2, "reflect"), kernel) for kernel in kernels)
    h, w = x.shape
    if kind == "halves":
        y = first.copy()
        y[:, w // 2 :] = second[:, w // 2 :]
    elif kind == "object":
        rows, columns = np.mgrid[:h, :w]
        inside = ((rows - h / 2) / (h / 3)) ** 2 + ((columns - w / 2) / (w / 3)) ** 2 < 1
        share = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), 3)
        y = x * (1 - share) + first * share
    else:
        turned = []
        for angle in np.linspace(-3, 3, 41):
            matrix = cv2.getRotationMatrix2D((w / 2, h / 2), angle, 1)
            turned.append(cv2.warpAffine(x, matrix, (w, h), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT))
        y = np.mean(turned, 0)
    y = y + 0.003 * rng.standard_normal(y.shape)
    return (np.rint(y.clip(0, 1) * 255) / 255).astype(np.float32), x


def _blurred(x, kernel):
    return blur(*(torch.from_numpy(np.ascontiguousarray(a))[None, None].double() for a in (x, kernel)))[0, 0].numpy()


def _problem(problem):
    y = np.asarray(problem.y, np.float32)
    result = restore(y, preset="quick")
    before, after = score(problem, y)[0], score(problem, result.image)[0]
    return {"blurry": round(before, 3), "result": round(after, 3)} | _told(result)


def _coloured(args, path, form):
    x = read_image(path)
    kernel = drawn_kernel("shake thick", COLOUR_KERNEL, np.random.default_rng(0))
    h, w = (n // 2 for n in kernel.shape)
    y = np.dstack([_blurred(x[:, :, c], kernel) for c in range(3)])
    y = (np.rint(y.clip(0, 1) * 255) / 255).astype(np.float32)
    truth = x[h:-h, w:-w]
    result = restore(y, kernel=kernel, preset="quick", colour=form).image.clip(0, 1)
    values = [round(float(psnr(image, truth)), 3) for image in (y, np.rint(result * 255) / 255)]
    return {"blurry": values[0], "result": values[1]}


def _large():
    """The command as a user calls it, in a process of its own."""
    x = cv2.resize(data.astronaut(), (1000, 1000), interpolation=cv2.INTER_CUBIC)
    x = np.pad(x, [(0, n - m) for n, m in zip((*LARGE, 3), x.shape, strict=True)], "symmetric") / 255
    kernel = drawn_kernel("shake thick", LARGE_KERNEL, np.random.default_rng(0))
    half = LARGE_KERNEL // 2
    y = np.dstack([_blurred(np.pad(x[:, :, c], half, "symmetric"), kernel) for c in range(3)])
    y += 0.003 * np.random.default_rng(0).standard_normal(y.shape)
    torch.set_num_threads(os.cpu_count())
    run = Run(torch.rand(1, 1, 255, 255), (21, 21), make_settings(num_iter=4, mse_steps=0), plain=True)
    plain_step, _ = seconds_of([run.step], 1, 3, torch.device("cpu"))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        blurry, sharp = Path(folder) / "blurry.png", Path(folder) / "sharp.png"
        write_image(blurry, y)
        command = [sys.executable, "-m", "selfdeblur", str(blurry), "-o", str(sharp), "--preset", "quick", "--json"]
        begun = time.monotonic()
        made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - begun
        told = json.loads(made.stdout)
        values = [
            float(psnr(read_image(path)[half:-half, half:-half], x[half:-half, half:-half])) for path in (blurry, sharp)
        ]
    return {
        "blurry": round(values[0], 3),
        "result": round(values[1], 3),
        "size": told["kernel_size"][0],
        "doubted": int(told["status"] != "improved"),
        "unchanged": 0,
        "plain_steps": round(seconds / plain_step, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
    }


# The table


def table(rows):
    """The figures as a table in Markdown."""

    def of(part, *forms):
        return [row for row in rows if row["part"] == part and (not forms or row["form"] in forms)]

    def mean(found):
        return np.mean([float(row["result"]) for row in found])

    lines = ["| figure | target | measured | pictures |", "| --- | --- | --- | ---: |"]

    def line(figure, target, found, text):
        if found:
            lines.append(f"| {figure} | {target} | {text(found)} | {len(found)} |")

    for part, benchmark, form, target in (
        ("sizes", "Levin", "estimated", "-0.3 dB"),
        ("sizes", "Levin", "doubled", "-0.5 dB"),
        ("lai", "Lai", "estimated", "-0.3 dB"),
    ):
        published = mean(of(part, "published")) if of(part, "published") else np.nan
        line(
            f"{benchmark}, kernel size {form}, against the published one",
            f"at least {target}",
            of(part, form),
            lambda found, published=published: f"{mean(found) - published:+.2f} dB ({mean(found):.2f})",
        )
    for level, target in zip(NOISE, (30.0, 26.5), strict=True):
        line(
            f"Levin with noise of {level}",
            f"at least {target} dB",
            of("noise", f"{level}"),
            lambda found: f"{mean(found):.2f} dB",
        )
    for form, target in (("sharp", "most"), ("blurry", "none")):
        line(
            f"{form} pictures handed back at once as sharp",
            target,
            of("sharp", form),
            lambda found: f"{sum(int(row['unchanged']) for row in found)}",
        )
    line(
        "blur that differs over the picture: no reliable improvement",
        "more than half",
        of("varying"),
        lambda found: f"{sum(int(row['doubted']) for row in found)}",
    )
    worse = [row for row in of("varying") + of("honest") if float(row["result"]) < float(row["blurry"])]
    line(
        "results worse than the input that are warned of",
        "9 of 10",
        worse,
        lambda found: f"{sum(int(row['doubted']) for row in found)}",
    )
    better = [row for row in of("honest") if float(row["result"]) >= float(row["blurry"])]
    line(
        "results better than the input that are warned of all the same",
        "few",
        better,
        lambda found: f"{sum(int(row['doubted']) for row in found)}",
    )
    line(
        "zoo, kernel size estimated: gain in PSNR",
        "above 0",
        of("honest"),
        lambda found: f"{np.mean([float(row['result']) - float(row['blurry']) for row in found]):+.2f} dB",
    )
    line(
        "colours sharpened, against colours kept (RGB)",
        "at least 0 dB",
        of("colour", "rgb"),
        lambda found: f"{mean(found) - mean(of('colour', 'luminance')):+.2f} dB ({mean(found):.2f})",
    )
    line(
        "twelve megapixels in colour, kernel of 61: plain steps, memory",
        "at most 470, 6000 MB",
        of("large"),
        lambda found: f"{float(found[0]['plain_steps']):.0f}, {found[0]['peak_mb']} MB",
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(guarded(main))
