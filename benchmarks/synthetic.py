"""Quality of a preset on images and kernels of no benchmark, with noise: python benchmarks/synthetic.py --preset fast

Photographs of scikit-image at sizes of 128 to 420 px, each blurred by a camera shake drawn for it, with white noise of
deviation 0, 1e-3 and 1e-2 (of the range), rounded to 8 bits. Prints a line for each: PSNR of the blurry image, of the
classical estimate alone and of the preset, similarity of the kernels, and whether the result calls itself doubtful.
What stands in --table is not run again.
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import skimage.data
import torch

from selfdeblur.api import deblur
from selfdeblur.classical import deconvolve, estimate_kernel
from selfdeblur.classical.kernels import camera_shake_kernel
from selfdeblur.forward import blur, centre
from selfdeblur.runs.arguments import Parser, guarded
from selfdeblur.scores.metrics import align, kernel_similarity, psnr
from selfdeblur.scores.tables import read_csv, write_csv
from selfdeblur.settings import PRESETS

# Photograph, side of the blurry image, kernel size, seed of the kernel.
IMAGES = (
    ("chelsea", 128, 11, 4),
    ("astronaut", 200, 15, 2),
    ("camera", 255, 19, 1),
    ("coffee", 300, 25, 3),
    ("rocket", 360, 31, 5),
    ("immunohistochemistry", 420, 41, 6),
)
NOISE = (0.0, 1e-3, 1e-2)


def main(argv=None):
    """Run the command line and return its exit status."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=[name for name in PRESETS if name != "nonblind"], default="fast")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, nargs="+", default=NOISE)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", type=Path, default=Path("results/synthetic.csv"))
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    rows = read_csv(args.table) if args.table.exists() else []
    done = {(row["preset"], row["image"], row["noise"], row["seed"]) for row in rows}
    for image in IMAGES:
        for noise in args.noise:
            if (args.preset, image[0], noise, args.seed) not in done:
                rows.append(run(image, noise, args))
                print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
                write_csv(args.table, rows, list(rows[-1]))
    for noise in args.noise:
        mine = [row for row in rows if row["preset"] == args.preset and row["noise"] == noise]
        means = [statistics.mean(row[name] for row in mine) for name in ("blurry", "estimate", "psnr")]
        print(f"noise {noise:g}: blurry {means[0]:.2f}, estimate {means[1]:.2f}, {args.preset} {means[2]:.2f} dB")
    return 0


def run(image, noise, args):
    """Blur one image, deblur it and give its row."""
    name, _, size, _ = image
    truth, kernel, y = blurred(*image, noise)
    estimate = estimate_kernel(y, (size, size))
    plain = centre(deconvolve(y, estimate)[None, None], (size, size))[0, 0].clamp(0, 1).numpy()
    begun = time.perf_counter()
    result = deblur(y.numpy(), size, preset=args.preset, seed=args.seed, device="cpu")
    return {
        "preset": args.preset,
        "image": name,
        "side": len(y),
        "kernel_size": size,
        "noise": noise,
        "seed": args.seed,
        "blurry": score(y.numpy(), truth),
        "estimate": score(plain, truth),
        "psnr": score(result.image, truth),
        "estimate_similarity": round(kernel_similarity(estimate.numpy(), kernel), 3),
        "kernel_similarity": round(kernel_similarity(result.kernel, kernel), 3),
        "doubtful": "yes" if result.quality["doubtful"] else "no",
        "seconds": round(time.perf_counter() - begun, 1),
    }


def blurred(name, side, size, seed, noise):
    """Sharp image (side, side) and kernel (size, size), as arrays, and blurry image (side, side), as a tensor."""
    source = getattr(skimage.data, name)()
    grey = (cv2.cvtColor(source, cv2.COLOR_RGB2GRAY) if source.ndim == 3 else source).astype(np.float32) / 255
    whole = side + size - 1
    # Photographs of more than twice the size are halved, so that they are sharp at the scale of a pixel.
    shrink = min(min(grey.shape) / whole, 2.0)
    grey = cv2.resize(grey, None, fx=1 / shrink, fy=1 / shrink, interpolation=cv2.INTER_AREA)
    top, left = ((n - whole) // 2 for n in grey.shape)
    x = grey[top : top + whole, left : left + whole]
    kernel = camera_shake_kernel(size, rng=seed)
    y = blur(torch.from_numpy(x)[None, None], torch.from_numpy(kernel).float()[None, None])[0, 0].numpy()
    y = y + noise * np.random.default_rng(seed).standard_normal(y.shape)
    y = np.rint(y.clip(0, 1) * 255).astype(np.float32) / 255
    inner = slice(size // 2, size // 2 + side)
    return x[inner, inner], kernel, torch.from_numpy(y)


def score(image, truth):
    """PSNR at maxshift 10, of the image rounded to 8 bits, in dB."""
    found = align(np.rint(image.clip(0, 1) * 255) / 255, truth)
    return round(psnr(found.image, found.truth), 2)


if __name__ == "__main__":
    sys.exit(guarded(main))
