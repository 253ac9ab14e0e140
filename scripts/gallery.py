"""Make results/gallery.png, the README's first figure: four pictures, blurred and deblurred by this program.

    python scripts/gallery.py [--preset quick] [--only plate]

Sharp pictures come from scikit-image or are drawn; each is blurred by a kernel, gets noise and is stored as a JPEG.
The program is told nothing but the blurry picture. What it makes is kept in build/gallery, and not made again.
"""

import argparse
import io
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from skimage import data

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from zoo_problems import DRAWINGS, drawn_kernel

from selfdeblur.files.images import write_image
from selfdeblur.forward import blur
from selfdeblur.restore import restore
from selfdeblur.scores.metrics import align, psnr

ROOT = Path(__file__).resolve().parents[1]
NOISE, QUALITY = 0.003, 95
WIDTH, GAP, KERNEL = 400, 8, 64


def pictures():
    """Name, sharp picture (H, W, 3) and kernel of each."""
    rng = np.random.default_rng
    yield "plate", DRAWINGS["plate"]((220, 340), rng(4)), drawn_kernel("line", 27, rng(1))
    yield "photograph", data.coffee()[40:360, 90:590] / 255, drawn_kernel("shake thick", 25, rng(3))
    yield "page", DRAWINGS["drawn page"]((230, 350), rng(2)), drawn_kernel("shake thin", 19, rng(5))
    yield "close-up", data.chelsea()[10:290, 30:430] / 255, drawn_kernel("disk", 15, rng(0))


def blurry(x, kernel):
    """The blurry picture as its file holds it, and the sharp one that lies over it."""
    channels = torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1))).double()[:, None]
    y = blur(channels, torch.from_numpy(kernel)[None, None].double())[:, 0].numpy().transpose(1, 2, 0)
    y = y + NOISE * np.random.default_rng(0).standard_normal(y.shape)
    stored = io.BytesIO()
    Image.fromarray(np.rint(y.clip(0, 1) * 255).astype(np.uint8)).save(stored, "JPEG", quality=QUALITY, subsampling=0)
    h, w = (n // 2 for n in kernel.shape)
    return np.asarray(Image.open(stored)).astype(np.float32) / 255, x[h : x.shape[0] - h, w : x.shape[1] - w]


def panel(image, kernel=None):
    """A picture WIDTH pixels wide, with a kernel in its lower right corner."""
    height = round(WIDTH * image.shape[0] / image.shape[1])
    image = cv2.resize(np.float32(image), (WIDTH, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    if kernel is not None:
        kernel = cv2.resize(np.float32(kernel / kernel.max()), (KERNEL, KERNEL), interpolation=cv2.INTER_NEAREST)
        image[-KERNEL - 3 :, -KERNEL - 3 :] = 1
        image[-KERNEL:, -KERNEL:] = kernel[:, :, None]
    return np.pad(image, ((GAP // 2,) * 2, (GAP // 2,) * 2, (0, 0)), constant_values=1)


def main():
    """Deblur what is not deblurred yet, and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--only")
    args = parser.parse_args()
    folder, rows = ROOT / "build" / "gallery", []
    folder.mkdir(parents=True, exist_ok=True)
    for name, x, kernel in pictures():
        if args.only not in (None, name):
            continue
        y, truth = blurry(x, kernel)
        kept = folder / f"{name}_{args.preset}.npz"
        if not kept.exists():
            result = restore(y, preset=args.preset)
            np.savez(kept, image=result.image, kernel=result.kernel, told=json.dumps(result.quality))
        found = np.load(kept)
        image = found["image"].clip(0, 1)
        placed = [align(i.mean(2), truth.mean(2)) for i in (y, image)]
        scores = [round(float(psnr(i.image, i.truth)), 1) for i in placed]
        print(name, "blurry, deblurred:", *scores, "dB; kernel", found["kernel"].shape, json.loads(str(found["told"])))
        rows.append(np.hstack([panel(y), panel(image, found["kernel"]), panel(truth, kernel)]))
    if args.only is None:
        write_image(ROOT / "results" / "gallery.png", np.vstack(rows))


if __name__ == "__main__":
    main()
