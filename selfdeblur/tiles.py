"""Pictures of any size: deconvolution in overlapping tiles, as large as the free memory bears."""

import math
import os
from pathlib import Path

import numpy as np
import torch

from selfdeblur.classical import deconvolve
from selfdeblur.errors import UserError
from selfdeblur.forward import centre

# A deconvolution holds so many numbers of 4 bytes for each pixel of a tile: weights, directions, spectra, all of the
# padded size.
NUMBERS = 48
# Of the memory that is free, so much is left to other programs and to what is not planned here.
SHARE = 0.5
LARGEST, SMALLEST = 1024, 192


def free_memory():
    """Bytes of memory that are free to this process; a gigabyte where the system does not tell."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    for most, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:  # the limit of a container; "max" where there is none
            found.append(int(Path(most).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):
            continue
    if not found and hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(min(found, default=1 << 30), 0)


def tile_side(kernel_size, free=None):
    """Side in pixels of the tiles that the free memory bears for a kernel of a size (h, w).

    Raises
    ------
    UserError
        If not even the smallest ones fit.
    """
    free = free_memory() if free is None else free
    side = math.isqrt(int(SHARE * free / (4 * NUMBERS)))
    needed = max(SMALLEST, 2 * overlap(kernel_size))
    side = min(side - max(kernel_size), max(LARGEST, 2 * needed))
    if side < needed:
        raise UserError(
            f"the memory does not suffice for a kernel of {kernel_size[0]} x {kernel_size[1]}: "
            f"{free >> 20} MB are free; close other programs or take a smaller --kernel_size"
        )
    return side


def overlap(kernel_size):
    """Pixels that two tiles share: what a tile does not know beyond its border reaches in by about a kernel."""
    return 2 * max(kernel_size) + 32


def deconvolve_tiled(y, kernel, *, weight, side=None, progress=None, **effort):
    """`selfdeblur.classical.initial.deconvolve` of an image of any size, on its own grid.

    Parameters
    ----------
    y : tensor (H, W)
        Blurry image.
    kernel : tensor (h, w)
        Kernel, sum 1, correlation sense.
    weight : float
        Strength of the prior.
    side : int, optional
        Largest side of a tile; by default that of `tile_side`.
    progress : callable, optional
        Called with the number of tiles done and of all; what it returns is not looked at.
    **effort
        ``rounds`` and ``steps``.

    Returns
    -------
    tensor (H, W)
        Sharp image. Neighbouring tiles are faded into each other by raised
        cosines over half of their `overlap`, the half in its middle.
    """
    size, shared = tuple(kernel.shape), overlap(kernel.shape)
    side = tile_side(size) if side is None else side
    rows, columns = (_spans(n, side, shared) for n in y.shape)
    if len(rows) * len(columns) == 1:
        return centre(deconvolve(y, kernel, weight=weight, **effort), size)
    result, total = torch.zeros_like(y), torch.zeros_like(y)
    for number, (top, bottom, left, right) in enumerate((*r, *c) for r in rows for c in columns):
        part = centre(deconvolve(y[top:bottom, left:right], kernel, weight=weight, **effort), size)
        fade = _fade(top, bottom, y.shape[0], shared)[:, None] * _fade(left, right, y.shape[1], shared)[None]
        fade = fade.to(y)
        result[top:bottom, left:right] += part * fade
        total[top:bottom, left:right] += fade
        if progress:
            progress(number + 1, len(rows) * len(columns))
    return result / total


def _spans(length, side, shared):
    """Tiles along one axis, (first, beyond last), of about one size."""
    if length <= side:
        return [(0, length)]
    count = -(-(length - shared) // (side - shared))
    starts = np.linspace(0, length - side, count).round().astype(int)
    return [(int(start), int(start) + side) for start in starts]


def _fade(first, last, length, shared):
    """Weight of a tile along one axis: 0 at its borders within the picture, 1 in its middle."""
    weights = torch.ones(last - first)
    quarter = shared // 4
    ramp = torch.zeros(shared - quarter)
    ramp[quarter:] = 0.5 - 0.5 * torch.cos(math.pi * (torch.arange(len(ramp) - quarter) + 0.5) / (len(ramp) - quarter))
    if first > 0:
        weights[: len(ramp)] *= ramp
    if last < length:
        weights[-len(ramp) :] *= ramp.flip(0)
    return weights
