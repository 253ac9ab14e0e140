"""Round kernels: disks, as of a lens out of focus, and Gaussians.

One number tells such a kernel, so all of them can be tried, and none can be
fitted to noise. The kernel search, whose sharp image has few gradients, finds
them badly: a disk has rings of zeros in its spectrum, and a Gaussian leaves
nothing at fine detail.
"""

import math
from functools import partial
from operator import itemgetter

import numpy as np
import torch

from selfdeblur.classical import kernels
from selfdeblur.classical.clipped import away_from_lights, shrunk
from selfdeblur.classical.judge import free_energy, judged_window, noise_level, two_opinions
from selfdeblur.classical.linear import shrink

# Diameters of the disks and standard deviations of the Gaussians that are tried: the least one in pixels, the factor
# between neighbours, and the largest one as a share of the kernel's size.
DISKS, GAUSSIANS = (3.0, 1.15, 1.0), (0.8, 1.18, 0.22)

# Smaller kernels have no form to speak of.
SMALLEST = 5

# They are tried where the image has at least so many pixels a side, and the kernel this size.
SMALL_IMAGE, SMALL_KERNEL = 128, 9

# Rounds and steps of `free_energy` there, and the best of each kind that are judged at full scale.
EFFORT, BEST = {"rounds": 10, "steps": 6}, 2

# A round kernel is taken if its free energy in y is at most so many times that of the kernel that was found, that in y
# smoothed at most as large, and the product of both ratios at most AS_GOOD_IN_BOTH. A kernel that was found is fitted
# to y, noise and all, which makes up to 6 % on its side.
AS_GOOD, AS_GOOD_IN_BOTH = 1.06, 1.025

# Where there is more noise (standard deviation), all kernels have nearly the same energy, and none is taken: with 0.01
# small camera shakes are taken for disks.
MOST_NOISE = 7e-3


def round_kernel(y, kernel):
    """The disk or the Gaussian that explains y as well as the kernel that was found, if there is one.

    Parameters
    ----------
    y : tensor (H, W)
        Blurry image, 0..1.
    kernel : tensor (h, w)
        The kernel that was found.

    Returns
    -------
    tensor of float32 (h, w) or None
    """
    size = tuple(kernel.shape)
    if min(size) < SMALLEST or noise_level(y) > MOST_NOISE:
        return None
    y = y[judged_window(y, size)]
    away = away_from_lights(y)
    sharp_opinion, smooth_opinion = (partial(_energies, *image) for image in two_opinions(y, away))
    found = [kernel.to(y)]
    of_found = sharp_opinion(found)[0]
    enough = of_found * AS_GOOD
    taken = []
    for draw, values, factor in _ladders(y, away, size):
        entries = zip(sharp_opinion([draw(value, size) for value in values]), values, strict=True)
        entries = [entry for entry in entries if entry[0] <= math.sqrt(factor) * enough]
        if not entries:
            continue
        smoothed = smooth_opinion([*found, *(draw(value, size) for _, value in entries)])
        sums = [
            (energy + other, energy, other, value) for (energy, value), other in zip(entries, smoothed[1:], strict=True)
        ]
        best = min(sums)
        for _ in range(3):  # between two rungs of the ladder, ever nearer
            factor = math.sqrt(factor)
            values = best[-1] / factor, best[-1] * factor
            drawn = [draw(value, size) for value in values]
            energies = zip(sharp_opinion(drawn), smooth_opinion(drawn), values, strict=True)
            best = min(best, *((energy + other, energy, other, value) for energy, other, value in energies))
        both = best[1] * best[2] / (of_found * smoothed[0])
        if best[1] <= enough and best[2] <= smoothed[0] and both <= AS_GOOD_IN_BOTH:
            taken.append((best[1], draw(best[3], size)))
    return min(taken, key=itemgetter(0))[1].to(kernel) if taken else None


def is_round(kernel):
    """Whether a kernel (h, w) is one that `round_kernel` draws: it is the same when it is mirrored."""
    return bool(kernel.max() < 1) and all(torch.equal(kernel, kernel.flip(axis)) for axis in (0, 1))


def _energies(y, away, judged):
    return free_energy(y, torch.stack([kernel.to(y) for kernel in judged]), away=away).tolist()


def _ladders(y, away, size):
    """Of disks and of Gaussians the function that draws one, the best values at a small scale, and their factor."""
    scale = 1
    while min(size) / scale > 1.5 * SMALL_KERNEL and min(y.shape) / scale >= SMALL_IMAGE:
        scale *= 2
    shape = tuple(round(n / scale) for n in y.shape)
    small = tuple(kernels.odd(n / scale) for n in size)
    y, away = (shrink(y, shape), shrunk(away, shape)) if scale > 1 else (y, away)
    for draw, (least, factor, share) in ((disk, DISKS), (gaussian, GAUSSIANS)):
        steps = max(int(math.log(max(share * min(size) / least, 1)) / math.log(factor)), 0)
        values = [least * factor**step for step in range(steps + 1)]
        energies = free_energy(
            y, torch.stack([draw(value / scale, small) for value in values]).to(y), away=away, **EFFORT
        )
        yield draw, [values[n] for n in energies.argsort()[:BEST].tolist()], factor


def disk(diameter, size):
    """A disk of a diameter in pixels in the middle of (h, w), see `kernels.disk`."""
    return torch.from_numpy(kernels.disk(diameter, size).astype(np.float32))


def gaussian(deviation, size):
    """A Gaussian of a standard deviation in pixels in the middle of (h, w)."""
    rows, columns = (np.exp(-((np.arange(n) - n // 2) ** 2) / (2 * deviation**2)) for n in size)
    kernel = rows[:, None] * columns
    return torch.from_numpy((kernel / kernel.sum()).astype(np.float32))
