"""Simple kernels: disks, Gaussians, straight lines and doubles.

A lens out of focus makes a disk, a steady motion a line, a knock a double. One
to four numbers tell such a kernel, so that all can be tried, and none can be
fitted to noise. The kernel search, whose sharp image has few gradients, finds
them badly; the spectrum of y, see `selfdeblur.classical.spectrum`, shows them
plainly, by its rings or stripes of zeros.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from selfdeblur.classical.clipped import away_from_lights
from selfdeblur.classical.judge import free_energy, judged_window, noise_level, noise_of_detail, two_opinions
from selfdeblur.classical.kernels import PART_OF_KERNEL, disk, point_like
from selfdeblur.classical.linear import gradients, taper
from selfdeblur.classical.spectrum import Spectrum

# Smaller kernels have no form to speak of.
SMALLEST = 5

# With finest noise of a larger standard deviation nothing is told: doubles agree with it as well as the kernel does.
MOST_NOISE = 0.015

# Diameters of disks, standard deviations of Gaussians and lengths of lines that are tried, in pixels: the least one and
# the factor between neighbours. A Gaussian's is at most this share of the kernel's size; the directions of lines are so
# many pixels apart at the ends.
DISKS, GAUSSIANS, LINES, WIDEST, APART = (3.0, 1.12), (0.6, 1.15), (3.0, 1.15), 0.25, 1.0

# The least and largest width of a line or of a point of a double in pixels. Doubles are tried with these widths, lines
# with the first; doubles with these shares of the first point.
WIDTHS, TRIED_WIDTHS, TRIED_SHARES = (1.0, 5.0), (1.5, 2.5), (0.5, 0.35)

# Doubles are tried at so many shifts, those at which the gradients are most like themselves; not below so many pixels.
SHIFTS, LEAST_SHIFT = 3, 4.0

# The best numbers of a form from which these are moved while that helps; the rounds, each with half the step of the one
# before, and the moves in a round.
BEGINNINGS, ROUNDS, MOVES = 3, 4, 4

# The first numbers of each form are compared at so many frequencies, those that they are moved to at more, and the best
# of each form at all.
FREQUENCIES_AT_FIRST, FREQUENCIES = 4_000, 16_000

# A simple kernel is taken if its misfit is above that of the kernel that was found by at most this share of what a
# point, which explains nothing, has above it; and below that of a point by so much, for each frequency and in all.
# Camera shakes of Levin have misfits 0.2 to 1 times that of a point above theirs, true simple kernels, but for some
# pages, from below zero to 0.03.
NOT_WORSE, BETTER_THAN_A_POINT, IN_ALL = 0.05, 2e-3, 40.0

# A form stands alone if it is this share of the way from a point to its misfit ahead of all other forms: a Gaussian and
# a disk may be alike, a line or a double is like nothing else.
ALONE = 0.6

# The free energies in y and in y smoothed have a say: their product is at most so many times that of the kernel that
# was found, which is fitted to y, noise and all, and so is the first alone. Bricks and lamps have a spectrum of their
# own, with which wrong simple kernels agree. Of a form that stands alone the product may be larger.
MOST_ENERGY, MOST_OF_ONE_ALONE = 1.3, 2.0


@dataclass(frozen=True)
class Form:
    """One kind of simple kernel.

    Attributes
    ----------
    draw : callable
        From its numbers and a size (h, w) the kernel, an ndarray of float64 (h, w).
    steps : tuple of tuple of float
        What its numbers are moved by at first.
    fits : callable
        Whether numbers make a kernel of that kind within a size.
    """

    draw: Callable
    steps: tuple
    fits: Callable


def simple_kernel(y, kernel):
    """The simple kernel that explains y as well as the kernel that was found, if there is one.

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
    if min(size) < SMALLEST:
        return None
    y = y[judged_window(y, size)]
    if noise_of_detail(y) > MOST_NOISE:
        return None
    spectrum = Spectrum(y, noise_level(y))
    if not spectrum.enough:
        return None
    some = spectrum.at_some_frequencies(FREQUENCIES)
    forms = [_nearest(some, FORMS[name], numbers, size) for name, numbers in _tried(y, size).items() if numbers]
    if not forms:
        return None
    judged = torch.stack([kernel, point_like(kernel), *(_like(form, kernel) for form in forms)])
    of_found, of_point, *misfits = spectrum.misfits(judged.to(y)).tolist()
    better = max(BETTER_THAN_A_POINT, IN_ALL / len(spectrum.power))
    enough = min(of_found + NOT_WORSE * max(of_point - of_found, 0), of_point - better)
    first, second = sorted([*misfits, of_point])[:2]
    if first > enough:
        return None
    alone = second - first >= ALONE * (of_point - first)
    forms = [form for form, misfit in zip(forms, misfits, strict=True) if misfit <= (first if alone else enough)]
    # The spectrum is the same for a double turned by 180 degrees.
    forms += [form[::-1, ::-1] for form in forms if not np.array_equal(form, form[::-1, ::-1])]
    judged = torch.stack([kernel, *(_like(form, kernel) for form in forms)])
    energies = [free_energy(image, judged.to(y), away=away) for image, away in two_opinions(y, away_from_lights(y))]
    in_y, smoothed = ((energy[1:] / energy[0]).tolist() for energy in energies)
    most_in_y, most = (math.inf, MOST_OF_ONE_ALONE) if alone else (MOST_ENERGY, MOST_ENERGY)
    products = [a * b if a <= most_in_y else math.inf for a, b in zip(in_y, smoothed, strict=True)]
    least = min(products)
    return judged[1 + products.index(least)].clone() if least <= most else None


def _like(form, kernel):
    return torch.from_numpy(form.astype(np.float32)).to(kernel)


def is_simple(kernel):
    """Whether a kernel (h, w) is of a form that `simple_kernel` draws.

    Such a kernel is the same turned by 180 degrees, or two small pieces that are about as high as wide.
    """
    if kernel.max() == 1:
        return False
    if torch.equal(kernel, kernel.flip(0, 1)):
        return True
    inside = (kernel > PART_OF_KERNEL * kernel.max()).cpu().numpy().astype(np.uint8)
    count, _, boxes, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
    width, height, area = boxes[1:, cv2.CC_STAT_WIDTH : cv2.CC_STAT_AREA + 1].T
    most = min(WIDTHS[1] + 2, max(kernel.shape) / 2)
    compact = (np.abs(width - height) <= 1) & (width <= most) & (2 * area >= width * height)
    return count == 3 and bool(compact.all())


def gaussian(deviation, size):
    """A Gaussian of a standard deviation in pixels in the middle of (h, w)."""
    rows, columns = (np.exp(-((np.arange(n) - n // 2) ** 2) / (2 * deviation**2)) for n in size)
    kernel = rows[:, None] * columns
    return kernel / kernel.sum()


def line(down, right, width, size):
    """A line of a width in pixels in the middle of (h, w), one end so far down and to the right of the other."""
    length = math.hypot(down, right)
    rows, columns = (np.arange(n) - n // 2 for n in size)
    along = (rows[:, None] * down + columns * right) / length
    across = (columns * down - rows[:, None] * right) / length
    distance = np.hypot(np.maximum(np.abs(along) - length / 2, 0), across)
    kernel = np.clip((width + 1) / 2 - distance, 0, 1)
    kernel = kernel + kernel[::-1, ::-1]
    return kernel / kernel.sum()


def double(down, right, share, width, size):
    """A kernel (h, w) of two disks: the shift between them in pixels, the share of the first, their width."""
    first, second = (disk(width, size, (sign * down / 2, sign * right / 2)) for sign in (1, -1))
    return share * first + (1 - share) * second


def _within(down, right, width, size):
    inside = abs(down) + width <= size[0] + 1 and abs(right) + width <= size[1] + 1
    return inside and WIDTHS[0] <= width <= WIDTHS[1]


FORMS = {
    "disk": Form(disk, ((0.5,),), lambda diameter, size: 2 <= diameter <= min(size)),
    "Gaussian": Form(gaussian, ((0.15,),), lambda deviation, size: 0.4 <= deviation <= WIDEST * min(size)),
    "line": Form(
        line,
        ((0.7, 0, 0), (0, 0.7, 0), (0, 0, 0.5)),
        lambda down, right, width, size: _within(down, right, width, size) and math.hypot(down, right) >= 2,
    ),
    "double": Form(
        double,
        ((0.5, 0, 0, 0), (0, 0.5, 0, 0), (0, 0, 0.1, 0), (0, 0, 0, 0.5)),
        lambda down, right, share, width, size: (
            _within(down, right, width, size) and math.hypot(down, right) >= LEAST_SHIFT and 0.1 < share < 0.9
        ),
    ),
}


def _tried(y, size):
    """The numbers of each form that are tried at first."""
    tried = {
        "disk": [(diameter,) for diameter in _ladder(*DISKS, min(size))],
        "Gaussian": [(deviation,) for deviation in _ladder(*GAUSSIANS, WIDEST * min(size))],
        "line": [],
        "double": [
            (*shift, share, width) for shift in echoes(y, size) for share in TRIED_SHARES for width in TRIED_WIDTHS
        ],
    }
    for length in _ladder(*LINES, math.hypot(*size)):
        count = math.ceil(math.pi * length / 2 / APART)
        angles = [math.pi * n / count for n in range(count)]
        tried["line"] += [(length * math.sin(angle), length * math.cos(angle), TRIED_WIDTHS[0]) for angle in angles]
    return {name: [form for form in forms if FORMS[name].fits(*form, size)] for name, forms in tried.items()}


def _ladder(least, factor, most):
    """Values from the least to the largest, each so many times the one before."""
    return [least * factor**n for n in range(int(math.log(max(most / least, 1)) / math.log(factor)) + 1)]


def _nearest(spectrum, form, tried, size):
    """The kernel of a form that is nearest to the spectrum, from the best of some numbers on."""

    def ordered(forms, spectrum=spectrum):
        drawn = torch.from_numpy(np.stack([form.draw(*numbers, size) for numbers in forms]))
        return sorted(zip(spectrum.misfits(drawn.to(spectrum.power)).tolist(), forms, strict=True))

    ends = []
    first = ordered(tried, spectrum.at_some_frequencies(FREQUENCIES_AT_FIRST))[:BEGINNINGS]
    for least, numbers in ordered([numbers for _, numbers in first]):
        steps = np.array(form.steps)
        for _ in range(ROUNDS):
            for _ in range(MOVES):
                moved = [tuple(numbers + step) for step in (*steps, *-steps)]
                moved = [other for other in moved if form.fits(*other, size)]
                misfit, nearer = ordered(moved)[0] if moved else (math.inf, None)
                if misfit >= least:
                    break
                least, numbers = misfit, nearer
            steps = steps / 2
        ends.append((least, numbers))
    return form.draw(*min(ends)[1], size)


def echoes(y, kernel_size):
    """The shifts (down, right) within a kernel's size at which the gradients of y are most like themselves.

    They are the largest peaks of the cepstrum: the transform of the logarithm of the power spectrum.
    """
    g = gradients(y)
    power = torch.fft.rfft2(g * taper(g)).abs().square().sum(0)
    cepstrum = torch.fft.irfft2((power + 1e-3 * power.mean()).log(), s=g.shape[-2:])
    h, w = (min(n, (m - 1) // 2) for n, m in zip(kernel_size, g.shape[-2:], strict=True))
    near = cepstrum.roll((h, w), (0, 1))[: 2 * h + 1, : 2 * w + 1]
    down, right = torch.meshgrid(torch.arange(-h, h + 1), torch.arange(-w, w + 1), indexing="ij")
    peaks = (F.max_pool2d(near[None, None], 5, 1, 2)[0, 0] == near).cpu()
    peaks &= (down.square() + right.square() >= LEAST_SHIFT**2) & ((down > 0) | ((down == 0) & (right > 0)))
    order = near.cpu()[peaks].argsort(descending=True)[:SHIFTS]
    return torch.stack([down[peaks][order], right[peaks][order]], 1).tolist()
