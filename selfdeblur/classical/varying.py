"""Whether the blur differs over a picture, so that no single kernel can explain it."""

import itertools

import numpy as np
import torch

from selfdeblur.classical.judge import busiest_window, summed_energies
from selfdeblur.classical.kernels import at_half_scale
from selfdeblur.classical.linear import shrink
from selfdeblur.classical.search import refitted

# Largest side of a window, at half the scale of y.
SIDE = 160

# Least side of the picture at half the scale, without the kernel: smaller parts do not tell kernels apart.
SMALLEST = 60

# `variation` from which on a blur differs over the picture. Pictures with one blur have up to 1.01, whatever its kind,
# those with another blur in one half, a sharp ground or a rotation mostly 1.02 to 1.3. But a photograph whose ground
# was out of focus already has up to 1.1, and comes out better all the same.
MOST_VARIATION = 1.12


def variation(y, kernel):
    """How much better the parts of a blurry image are explained by kernels of their own than by those of other parts.

    Parameters
    ----------
    y : tensor (H, W)
        Blurry image, 0..1.
    kernel : tensor (h, w)
        Kernel that was found for all of y, correlation sense. The kernels of the parts start from it.

    Returns
    -------
    float or None
        Of each two of five parts, four quarters and the middle, at half the scale: the energy of either with the
        kernel of the other, over that with its own; the lesser of both, since a part without structure is explained
        badly by any other's kernel, but its own explains others no better. The mean over all pairs. None where the
        picture is too small for its kernel.
    """
    small = at_half_scale(kernel.to(y))
    half = shrink(y, [n // 2 for n in y.shape])
    if min(half.shape) < SMALLEST + max(small.shape) or max(kernel.shape) < 5:
        return None
    windows = [window.contiguous() for window in _windows(half)]
    own = torch.stack([refitted(window, small) for window in windows])
    energies = np.array([summed_energies(w, own) for w in windows])
    ratios = energies / energies.diagonal()[:, None]
    return float(np.mean([min(ratios[i, j], ratios[j, i]) for i, j in itertools.combinations(range(len(own)), 2)]))


def _windows(y):
    """The busiest windows of the four quarters of an image and of its middle."""
    h, w = y.shape
    for top, left in ((0, 0), (0, w - w // 2), (h - h // 2, 0), (h - h // 2, w - w // 2), (h // 4, w // 4)):
        part = y[top : top + h // 2, left : left + w // 2]
        yield part if max(part.shape) <= SIDE else part[busiest_window(part, SIDE)]
