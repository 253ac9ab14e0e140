"""Doubles: kernels of two points, as of a camera that was knocked once.

Every edge stands twice in such a picture, so its gradients are like themselves
at one shift. A search that begins at coarse scales, where the two points are
one, may miss them.
"""

import numpy as np
import torch
import torch.nn.functional as F

from selfdeblur.classical.clipped import away_from_lights
from selfdeblur.classical.judge import free_energy, judged_window, two_opinions
from selfdeblur.classical.kernels import disk
from selfdeblur.classical.linear import gradients

# Shifts that are tried, those at which the gradients are most like themselves; not below so many pixels.
TRIED, LEAST_SHIFT = 3, 4.0

# A double is taken if its free energy in y is less than the first share of that of the kernel that was found, and in y
# smoothed less than the second. A true double that the search missed has 0.81 in y, those that it found 1.01 and more.
# As it is drawn at first, at a whole shift, it may have a little more than what was found.
CLEARLY_LESS, NOT_MUCH_MORE, AT_FIRST = 0.95, 1.05, 1.1

# The share of the first point and the width of both in pixels to begin with, the steps by which they and the shift are
# moved while that helps, at most so many times, and the least of each.
SHARE, WIDTH = 0.5, 1.5
STEPS = np.array([[0.5, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 0.1, 0], [0, 0, 0, 0.8]])
MOST_MOVES = 8


def double_kernel(y, kernel):
    """The kernel of two points that explains y clearly better than the kernel that was found, if there is one.

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
    y = y[judged_window(y, size)]
    (y, away), smoothed = two_opinions(y, away_from_lights(y))

    def energies(forms, image=(y, away)):
        kernels = torch.stack([kernel, *(double(form, size).to(kernel) for form in forms)]).to(y)
        found, *others = free_energy(image[0], kernels, away=image[1]).tolist()
        return [energy / found for energy in others]

    forms = [np.array([*shift, SHARE, WIDTH]) for shift in echoes(y, size)]
    forms = [form for form in forms if _fits(form, size)]
    if not forms:
        return None
    best, form = min(zip(energies(forms), forms, strict=True), key=lambda pair: pair[0])
    if best > AT_FIRST:
        return None
    for _ in range(MOST_MOVES):
        moved = [form + step for step in (*STEPS, *-STEPS) if _fits(form + step, size)]
        least, nearer = min(zip(energies(moved), moved, strict=True), key=lambda pair: pair[0])
        if least >= best:
            break
        best, form = least, nearer
    taken = best < CLEARLY_LESS and energies([form], smoothed)[0] < NOT_MUCH_MORE
    return double(form, size).to(kernel) if taken else None


def echoes(y, kernel_size):
    """The shifts (down, right) within a kernel's size at which the gradients of y are most like themselves.

    They are the largest peaks of the cepstrum: the transform of the logarithm of the power spectrum.
    """
    g = gradients(y)
    window = (torch.hann_window(n, periodic=False, dtype=y.dtype, device=y.device) for n in g.shape[-2:])
    rows, columns = window
    power = torch.fft.rfft2(g * rows[:, None] * columns).abs().square().sum(0)
    cepstrum = torch.fft.irfft2((power + 1e-3 * power.mean()).log(), s=g.shape[-2:])
    h, w = (min(n, (m - 1) // 2) for n, m in zip(kernel_size, g.shape[-2:], strict=True))
    near = cepstrum.roll((h, w), (0, 1))[: 2 * h + 1, : 2 * w + 1]
    down, right = torch.meshgrid(torch.arange(-h, h + 1), torch.arange(-w, w + 1), indexing="ij")
    peaks = (F.max_pool2d(near[None, None], 5, 1, 2)[0, 0] == near).cpu()
    peaks &= (down.square() + right.square() >= LEAST_SHIFT**2) & ((down > 0) | ((down == 0) & (right > 0)))
    order = near.cpu()[peaks].argsort(descending=True)[:TRIED]
    return torch.stack([down[peaks][order], right[peaks][order]], 1).tolist()


def double(form, size):
    """A kernel (h, w) of two round points: their shift (down, right), the share of the first, and their width."""
    down, right, share, width = form
    first, second = (disk(width, size, (sign * down / 2, sign * right / 2)) for sign in (1, -1))
    return torch.from_numpy((share * first + (1 - share) * second).astype(np.float32))


def _fits(form, size):
    down, right, share, width = form
    inside = abs(down) + width <= size[0] + 1 and abs(right) + width <= size[1] + 1
    return inside and np.hypot(down, right) >= LEAST_SHIFT and 0.1 < share < 0.9 and 1 <= width <= 5
