"""Images made by whole-number arithmetic, the same on every machine, for the calibration that needs no benchmark."""

import cv2
import numpy as np

# name, rows, columns, channels of the truth and of the result, bits of the result, maxshift, shift in the result.
CASES = (
    ("grey", 96, 80, 1, 1, 8, 5, (2, -3)),
    ("rim", 70, 75, 1, 1, 8, 1, (5, 1)),
    ("flat", 50, 60, 1, 1, 8, 2, None),
    ("deep", 100, 90, 1, 1, 16, 4, (-1, 0)),
    ("reduced", 415, 430, 1, 1, 8, 2, (1, -2)),
    ("y", 670, 675, 3, 1, 8, 2, (-2, 2)),
    ("colour", 120, 110, 3, 3, 8, 4, (-4, 5)),
)


def pattern(rows, columns, kind, start=(0, 0)):
    """Whole numbers 0..255: rings that get narrower, folded, so that there are smooth parts and edges."""
    r = np.arange(start[0], start[0] + rows)[:, None] + 40
    c = np.arange(start[1], start[1] + columns)[None, :] + 40
    value = ((3 + kind) * r * r + 5 * c * c + (2 * kind - 1) * r * c) // 256 % 512
    return np.where(value > 255, 511 - value, value)


def make(folder):
    """Write ``truth/NAME.png`` and ``results/NAME.png`` for each case."""
    for sub in ("truth", "results"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    for name, rows, columns, of_truth, of_result, bits, _, shift in CASES:
        truth = [pattern(rows, columns, k) for k in range(of_truth)]
        write(folder / "truth" / f"{name}.png", truth, 8)
        if shift is None:
            result = [np.full((rows, columns), 99)]
        else:
            weave = (7 * np.arange(rows)[:, None] + 13 * np.arange(columns)) % 17 - 8
            result = [(3 * pattern(rows, columns, k, shift) + pattern(rows, columns, k)) // 4 for k in range(of_result)]
            result = [np.clip(v + weave, 0, 255) for v in result]
        if bits == 16:
            result = [v * 250 + (v % 7) * 11 for v in result]
        write(folder / "results" / f"{name}.png", result, bits)


def write(path, channels, bits):
    """Write red, green, blue or one grey channel as a PNG of 8 or 16 bits."""
    array = np.dstack(channels[::-1]).astype(np.uint8 if bits == 8 else np.uint16)
    assert cv2.imwrite(str(path), array)
