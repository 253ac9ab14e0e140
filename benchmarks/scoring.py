"""How long scoring takes: python benchmarks/scoring.py [--octave] (needs datasets/levin and datasets/lai).

Scores the blurry images themselves, which costs what scoring results costs.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {"levin": 20, "lai": 360}


def main():
    """Print seconds for each benchmark, and for the alignment of one image against the plain search."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--maxshift", type=int, default=10)
    parser.add_argument("--octave", action="store_true", help="time the .m scripts, too")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    from selfdeblur.data.benchmarks import LAI, LEVIN
    from selfdeblur.files.images import read_image
    from selfdeblur.scores import metrics
    from selfdeblur.scores.scoring import score_folder

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, maxshift {args.maxshift}")
    for benchmark in (LEVIN, LAI):
        start = time.perf_counter()
        rows = score_folder(benchmark, benchmark.blurry, maxshift=args.maxshift)
        seconds = time.perf_counter() - start
        scored = sum(row["psnr"] is not None for row in rows)
        print(f"{benchmark.name}: {scored} images in {seconds:.1f} s (target {TARGETS[benchmark.name]} s)")

    image, truth = read_image(LEVIN.blurry / "im1_kernel1_img.png"), read_image(LEVIN.ground_truth / "im1.png")
    start = time.perf_counter()
    for _ in range(10):
        found = metrics.align(image, truth, maxshift=args.maxshift)
    fast = (time.perf_counter() - start) / 10
    start = time.perf_counter()
    shift = plain_search(image, truth, args.maxshift)
    plain = time.perf_counter() - start
    same = "the same shift" if shift == (found.shift_y, found.shift_x) else "ANOTHER SHIFT"
    print(f"alignment of one Levin image: {fast * 1000:.0f} ms, plain search {plain:.1f} s, {same}")

    if args.octave:
        octave = shutil.which("octave-cli") or sys.exit("octave-cli is absent")
        for benchmark in (LEVIN, LAI):
            commands = f"addpath statistic; results = '{benchmark.blurry}'; csv_file = ''; maxshift = {args.maxshift};"
            start = time.perf_counter()
            subprocess.run(
                [octave, "--quiet", "--eval", f"{commands} statistic_{benchmark.name.title()}"],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            print(f"{benchmark.name} in Octave: {time.perf_counter() - start:.1f} s")


def plain_search(image, truth, maxshift, border=15):
    """The shift with the least sum of squared differences, every one tried on the pixels."""
    inner = truth[border:-border, border:-border]
    h, w = inner.shape
    steps = np.arange(-4 * maxshift, 4 * maxshift + 1)
    image = np.pad(image, ((0, 1), (0, 1)), mode="edge")
    best = (np.inf,)
    for y in steps:
        for x in steps:
            (r, fy), (c, fx) = divmod(y, 4), divmod(x, 4)
            a = image[border + r : border + r + h + 1, border + c : border + c + w + 1]
            rows = (1 - fy / 4) * a[:-1] + fy / 4 * a[1:]
            moved = (1 - fx / 4) * rows[:, :-1] + fx / 4 * rows[:, 1:]
            best = min(best, (np.sum((moved - inner) ** 2), y / 4, x / 4))
    return best[1:]


if __name__ == "__main__":
    main()
