"""Make results/sample.png, the README's figure, from the results of bash demo_levin.sh on the sample."""

import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from selfdeblur.files.images import find_images, read_image, write_image

GAP, KERNEL = 8, 44


def panel(image, kernel=None):
    """An image at twice its size, with the kernel, if there is one, in its lower right corner."""
    image = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    if kernel is not None:
        kernel = cv2.resize(kernel / kernel.max(), (KERNEL, KERNEL), interpolation=cv2.INTER_NEAREST)
        image[-KERNEL - 2 :, -KERNEL - 2 :] = 1
        image[-KERNEL:, -KERNEL:] = kernel
    return np.pad(image, GAP // 2, constant_values=1)


def main():
    """Write the figure: a row an image, blurry, deblurred with its kernel, sharp with the true kernel."""
    data, results = Path("datasets/sample/levin"), Path("results/sample/levin")
    rows = []
    for path in find_images(data):
        truth, kernel, _ = path.stem.split("_")
        x, k = (read_image(results / f"{path.stem}_{part}.png") for part in "xk")
        true_x, true_k = (read_image(data / "gt" / f"{name}.png") for name in (truth, kernel))
        rows.append(np.hstack([panel(read_image(path)), panel(x, k), panel(true_x, true_k)]))
    write_image(Path("results/sample.png"), np.vstack(rows))


if __name__ == "__main__":
    main()
