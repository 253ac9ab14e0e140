"""Sizes for a kernel that nothing is known of, from searches in frames of several sizes at half the scale.

In a frame that is too small a kernel is cut off, and explains the blurry image
badly. In one that is far too large the search may lose its way. So short
searches are made at half the scale in frames from small to large, and what they
find is judged in one frame.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from selfdeblur.classical.deconvolution import deconvolve
from selfdeblur.classical.judge import judged_window, summed_energies
from selfdeblur.classical.kernels import PART_OF_KERNEL, at_half_scale, framed, odd
from selfdeblur.classical.linear import shrink
from selfdeblur.classical.quality import disagreement
from selfdeblur.classical.search import SEARCHES, VARIANTS, coarse_to_fine_kernels, estimate_kernel
from selfdeblur.classical.simple import simple_kernel
from selfdeblur.classical.trails import best_kernel_of_trails

# Sides of the frames, in pixels of y. None is larger than a share of the image's shorter side, but for the first.
FRAMES, LARGEST_SHARE = (13, 19, 27, 41, 61, 91), 1 / 3

# The sizes in which trails are sought, which takes little where there are none.
FRAMES_OF_TRAILS = (13, 19, 27, 35, 41, 51, 61)

# Of a trail that is whole no more than this share lies on the rim of its frame.
TRAIL_ON_RIM = 0.01

# Kernels that each setting of a short search starts from, and settings: the last one, for text, finds no others.
SHORT_STARTS, SHORT_VARIANTS = 6, VARIANTS[:4]

# The best kernels of each frame that are judged.
JUDGED = 3

# The size is so many times the length of the kernel that was found, and a pixel more at each side; not below the
# smallest frame, which leaves no room to be wrong.
ROOM = 1.15

# A kernel that is further from all of theirs is doubted, see `OfAnySize`. Of 21 pictures (ten of the zoo, eleven whose
# blur differs over them) the four whose size went wrong have 0.15 to 0.62, the others up to 0.06.
MOST_APART = 0.1

# What a short search finds depends on luck, so energies that differ by less than this share say nothing. Of the
# kernels within it the shortest one gives another size if it is so much smaller.
ALIKE, MUCH_SMALLER = 0.015, 0.75


class OfAnySize(NamedTuple):
    """What `estimate_kernel_of_any_size` returns.

    Attributes
    ----------
    kernel : tensor of float32 (h, w)
        As `estimate_kernel` returns it, in a frame that leaves little room around it.
    apart : float or None
        How far the kernel is from what the short searches found: the least `disagreement` with the best kernel of any
        frame, at half the scale. None where there were none to compare with.
    """

    kernel: Tensor
    apart: float | None


class _Short(NamedTuple):
    """What the short searches found in the judged part of y at half the scale, frame by frame, the best first."""

    y: Tensor
    frames: list
    kernels: list


def kernel_of_trails_of_any_size(y):
    """The best of what trails of lights show in frames that have room for it, or None, see `kernel_of_trails`."""
    frames = [(frame, frame) for frame in FRAMES_OF_TRAILS if frame <= LARGEST_SHARE * min(y.shape)]
    return best_kernel_of_trails(y, frames, most_on_rim=TRAIL_ON_RIM)


def estimate_size(y, progress=None):
    """Estimate a size for the kernel of a blurry image, rather too large than too small.

    Parameters
    ----------
    y : tensor or ndarray, (H, W)
        Blurry image, 0..1.
    progress : callable, optional
        Called after each short search with how many are done, how many there are, and None; where a kernel is
        searched for in earnest, as in `estimate_kernel`. Where it returns True, the rest is left out.

    Returns
    -------
    (int, int)
        Height and width, odd and equal, at most 91 and, unless it is 13 or less, at most a third of the image's
        shorter side.
    """
    y = torch.as_tensor(y, dtype=torch.float32)
    if (kernel := kernel_of_trails_of_any_size(y)) is not None:
        return tuple(_trimmed(kernel).shape)
    sizes = _sizes(y, _short_searches(y, progress))
    return sizes[0] if len(sizes) == 1 else tuple(_kernel_of(y, sizes, progress).shape)


def estimate_kernel_of_any_size(y, progress=None):
    """Estimate a kernel (h, w) of which not even the size is known, with one search for each size that it may have.

    Parameters
    ----------
    y : tensor or ndarray, (H, W)
        Blurry image, 0..1.
    progress : callable, optional
        As in `estimate_size`.

    Returns
    -------
    OfAnySize
        The kernel and how far the short searches are from it. A simple kernel, see `simple_kernel`, is looked for in
        a frame twice as large as well.
    """
    y = torch.as_tensor(y, dtype=torch.float32)
    kernel = kernel_of_trails_of_any_size(y)
    if kernel is not None:
        return OfAnySize(_trimmed(kernel), None)
    short = _short_searches(y, progress)
    kernel = _kernel_of(y, _sizes(y, short), progress)
    side = min(2 * len(kernel) - 1, FRAMES[-1], odd(min(y.shape) / 2))
    if side > len(kernel):  # else the search has looked for it
        simple = simple_kernel(y, framed(kernel, (side, side)))
        kernel = kernel if simple is None else simple
    kernel = _trimmed(kernel)
    return OfAnySize(kernel, None if short is None else _apart(short, kernel))


def estimate_kernel_within(y, kernel_size, progress=None):
    """Estimate a kernel with one search, and with another one in a smaller frame where much of the first stays empty.

    Parameters
    ----------
    y : tensor (H, W)
        Blurry image, 0..1.
    kernel_size : (int, int)
        Size (h, w) of the kernel, odd; it may be far too large.
    progress : callable, optional
        As in `estimate_kernel`.

    Returns
    -------
    tensor of float32 (h, w)
        As `estimate_kernel` returns it.
    """
    first = estimate_kernel(y, kernel_size, searches=SEARCHES[:1], progress=progress)
    side = len(_trimmed(first)) if first.shape[0] == first.shape[1] else max(kernel_size)
    if side > MUCH_SMALLER * max(kernel_size):
        return first
    second = estimate_kernel(y, (side, side), searches=SEARCHES[:1], progress=progress)
    return framed(_simplest(y, [first, second]), kernel_size)


def _kernel_of(y, sizes, progress):
    """The best of the kernels that one search for each of some sizes finds."""
    return _simplest(y, [estimate_kernel(y, size, searches=SEARCHES[:1], progress=progress) for size in sizes])


def _simplest(y, kernels):
    """Of kernels whose energies say nothing between them and the best one, that of the smallest size."""
    if len(kernels) == 1:
        return kernels[0]
    largest = max(tuple(kernel.shape) for kernel in kernels)
    energies = _energies(y[judged_window(y, largest)], kernels, largest)
    alike = [n for n, energy in enumerate(energies) if energy <= (1 + ALIKE) * min(energies)]
    return kernels[min(alike, key=lambda n: kernels[n].shape)]


def _energies(y, kernels, size):
    """The energies of kernels of several sizes in y (H, W), in one frame (h, w), so that they can be compared."""
    return summed_energies(y, torch.stack([framed(kernel, size) for kernel in kernels]))


def _trimmed(kernel):
    """A kernel (n, n), its box in the middle, in the size that its length asks for, if that is less."""
    size = min(max(int(ROOM * _length(kernel)) // 2 * 2 + 3, FRAMES[0]), len(kernel))
    rim = (len(kernel) - size) // 2
    kernel = kernel[rim : rim + size, rim : rim + size]
    return kernel / kernel.sum()


def _short_searches(y, progress):
    """What `_Short` says of y (H, W); None where y is too small for searches at half the scale."""
    frames = [_half(frame) for frame in FRAMES if frame <= max(LARGEST_SHARE * min(y.shape), FRAMES[0])]
    half = tuple(n // 2 for n in y.shape)
    if min(half) <= 2 * frames[0]:
        return None
    small = shrink(y, half)
    small = small[judged_window(small, (frames[-1], frames[-1]))]
    kernels = []
    for number, frame in enumerate(frames, 1):
        kernels.append(_found(small, frame))
        if progress and progress(number, len(frames), None):
            break
    return _Short(small, frames, kernels)


def _sizes(y, short):
    """One size for the kernel of y (H, W) or two, height and width, odd and equal; that of the best kernel first.

    Where there are two, kernels of both are to be found and compared.
    """
    if short is None:
        largest = max(_half(2 * LARGEST_SHARE * min(y.shape) - 2), 3)
        return [(largest, largest)]
    kernels = [kernel for found in short.kernels for kernel in found]
    energies = _energies(short.y, kernels, (short.frames[-1], short.frames[-1]))
    best = min(energies)
    lengths = [_length(kernel) for kernel in kernels]
    first = _size(lengths[energies.index(best)], short.frames)
    other = min(n for n, energy in zip(lengths, energies, strict=True) if energy <= (1 + ALIKE) * best)
    other = _size(other, short.frames)
    return [(n, n) for n in ([first] if other > MUCH_SMALLER * first else [first, other])]


def _apart(short, kernel):
    """The least `disagreement` of a kernel (n, n) with the best one of each frame, at half the scale."""
    kernel = at_half_scale(kernel)
    side = max(len(kernel), short.frames[-1])
    kernels = [framed(k, (side, side)) for k in (kernel, *(found[0] for found in short.kernels))]
    image, *others = (deconvolve(short.y, k) for k in kernels)
    return min(disagreement(short.y, image, other, (side, side)) for other in others)


def _half(frame):
    """The odd number that is nearest to half a frame, the larger of two."""
    return int((frame + 3) // 4) * 2 - 1


def _found(y, frame):
    """Kernels that a short search finds in y (H, W) with a frame of so many pixels a side; none next to a point."""
    found = coarse_to_fine_kernels(y, (frame, frame), SHORT_VARIANTS, searches=SEARCHES[:1], starts=SHORT_STARTS)
    return [kernel for (is_point, _), kernel in found[:JUDGED] if not is_point] or [found[0][1]]


def _length(kernel):
    """The longer side of the box of a kernel (h, w), without its noise."""
    part = kernel > PART_OF_KERNEL * kernel.max()
    inside = [part.any(axis).nonzero().flatten() for axis in (0, 1)]
    return max(int(places[-1] - places[0]) + 1 for places in inside)


def _size(length, frames):
    """The size for a kernel of a length at half the scale."""
    return min(max(int(ROOM * length) * 2 + 3, FRAMES[0]), 2 * frames[-1] + 1)
