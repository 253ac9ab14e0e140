"""The size of a kernel that nothing is known of, from a search at half the scale.

A search from coarse to fine finds the shape of a kernel, and with it its
length, in a frame that is far too large; what the frame costs is detail, which
half the scale does not have. So a short search with a large frame at half the
scale tells the size for the search in earnest.
"""

import torch
import torch.nn.functional as F

from selfdeblur.classical.judge import judged_window
from selfdeblur.classical.search import SEARCHES, VARIANTS, coarse_to_fine_kernels

# The largest kernel that is sought, in pixels of y, and the share of the image's shorter side that it may have.
LARGEST_KERNEL, LARGEST_SHARE = 61, 1 / 3

# The smallest size that is given: a frame of less leaves no room to be wrong.
SMALLEST_KERNEL = 13

# Entries of less than this share of the largest one are noise, and not part of the kernel.
PART_OF_KERNEL = 0.05

# The frame is so much larger than the kernel that is found at half the scale, and a pixel more at each side.
FRAME = 1.25

# Kernels that each setting of the short search starts from, and settings: the last one, for text, finds no others.
SHORT_STARTS, SHORT_VARIANTS = 6, VARIANTS[:4]


def estimate_size(y):
    """Estimate a size for the kernel of a blurry image, rather too large than too small.

    Parameters
    ----------
    y : tensor or ndarray, (H, W)
        Blurry image, 0..1.

    Returns
    -------
    (int, int)
        Height and width, odd and equal, at most 61 and at most a third of the image's shorter side.
    """
    y = torch.as_tensor(y, dtype=torch.float32)
    half = tuple(n // 2 for n in y.shape)
    largest = _odd_below(min(LARGEST_KERNEL, LARGEST_SHARE * min(y.shape)))
    frame = _odd_below(largest / 2)
    if frame < 5:
        return max(largest, 3), max(largest, 3)
    small = F.interpolate(y[None, None], size=half, mode="bicubic", antialias=True, align_corners=False)[0, 0]
    small = small[judged_window(small, (frame, frame))]
    found = coarse_to_fine_kernels(small, (frame, frame), SHORT_VARIANTS, searches=SEARCHES[:1], starts=SHORT_STARTS)
    lengths = [2 * _length(kernel) for _, kernel in found[:3]]
    # Of the three best ones the first may be in pieces, far apart; then the others are smaller.
    length = min(lengths[0], sorted(lengths)[len(lengths) // 2])
    size = min(max(_odd_below(FRAME * length) + 2, SMALLEST_KERNEL), largest)
    return size, size


def _length(kernel):
    """The longer side of the box of a kernel (h, w), without its noise."""
    part = kernel > PART_OF_KERNEL * kernel.max()
    inside = [part.any(axis).nonzero().flatten() for axis in (0, 1)]
    return max(int(places[-1] - places[0]) + 1 for places in inside)


def _odd_below(number):
    """The largest odd number that is at most ``number``."""
    return int((number - 1) // 2) * 2 + 1
