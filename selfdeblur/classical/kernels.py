"""Blur kernels: arrays (h, w), non-negative, sum 1, in the correlation sense.

The blurry image is ``y[i, j] = sum_{a, b} k[a, b] x[i + a, j + b]``, the valid
correlation of the sharp image with the kernel. MATLAB's ``conv2`` and
`scipy.signal.convolve` expect the same kernel turned by 180 degrees.
"""

import numpy as np
import torch

# Entries of less than this share of the largest one are noise, and not part of the kernel.
PART_OF_KERNEL = 0.05

# Parts of a pixel's side that a disk is drawn with.
PARTS = 8


def camera_shake_kernel(size, *, rng):
    """Draw a random camera-shake kernel: the path of a hand that can't hold still.

    The path is a random walk of the velocity with friction and a pull back to
    the start, drawn with sub-pixel precision: a point of the path is shared
    among the four pixels around it, so slow parts come out bright. The path is
    scaled and centred so that its bounding box leaves about one pixel free at
    each side of the longer axis.

    Parameters
    ----------
    size : int or (int, int)
        Size (h, w) of the kernel, odd, at least 3.
    rng : numpy.random.Generator or int
        Where the random numbers come from; an int seeds a new PCG64. Only
        ``rng.random`` is called and only sums and products follow, so a seed
        gives the same kernel on every machine.

    Returns
    -------
    ndarray of float64
        (h, w), non-negative, sum 1.

    Raises
    ------
    ValueError
        If a size is even or below 3.

    Examples
    --------
    >>> k = camera_shake_kernel(15, rng=0)
    >>> k.shape, round(float(k.sum()), 12), bool(k.min() >= 0)
    ((15, 15), 1.0, True)
    """
    h, w = (size, size) if np.ndim(size) == 0 else size
    if min(h, w) < 3 or h % 2 == 0 or w % 2 == 0:
        raise ValueError(f"kernel size must be odd and at least 3, got {h} x {w}")
    if not isinstance(rng, np.random.Generator):
        rng = np.random.Generator(np.random.PCG64(rng))
    points = 2048
    push = rng.random((points, 2)) - 0.5
    path = np.empty((points, 2))
    # Numbers of Python, which in such a loop are ten times as fast as arrays of two.
    for axis, velocity in enumerate((20 * (rng.random(2) - 0.5)).tolist()):
        position, places = 0.0, []
        for force in push[:, axis].tolist():
            velocity = 0.998 * velocity + force - 1e-5 * position
            position = position + velocity
            places.append(position)
        path[:, axis] = places
    path -= (path.max(0) + path.min(0)) / 2
    room = np.array([h - 3, w - 3]) / 2
    path *= (room / np.maximum(path.max(0), 1e-12)).min()
    path += np.array([h - 1, w - 1]) / 2

    kernel = np.zeros((h, w))
    corner = np.floor(path).astype(int)
    part = path - corner
    for dr in (0, 1):
        for dc in (0, 1):
            weight = np.abs(1 - dr - part[:, 0]) * np.abs(1 - dc - part[:, 1])
            np.add.at(kernel, (corner[:, 0] + dr, corner[:, 1] + dc), weight)
    return kernel / kernel.sum()


def disk(diameter, size, place=(0.0, 0.0)):
    """A disk of a diameter in pixels, an ndarray of float64 (h, w) of sum 1; each pixel has the share that is covered.

    ``place`` is how far down and to the right of the middle it lies.
    """
    rows, columns = (
        ((np.arange(n * PARTS) + 0.5) / PARTS - n / 2 - shift) ** 2 for n, shift in zip(size, place, strict=True)
    )
    inside = (rows[:, None] + columns <= diameter**2 / 4).reshape(size[0], PARTS, size[1], PARTS).mean((1, 3))
    return inside / inside.sum()


def point_like(kernel):
    """A point in the middle, a tensor of the size (h, w), type and device of a kernel: it blurs nothing."""
    point = torch.zeros_like(kernel)
    point[tuple(n // 2 for n in kernel.shape)] = 1
    return point


def share_on_rim(kernel):
    """Share of a kernel (h, w) of sum 1 in the outermost row and column at each side; 0 where there are only these."""
    inner = kernel[1:-1, 1:-1].sum() if min(kernel.shape) > 2 else kernel.sum()
    return kernel.sum() - inner


def odd(n):
    """The odd number of at least 3 that is nearest to n."""
    return max(2 * round((n - 1) / 2) + 1, 3)


def centred(kernels):
    """Kernels, tensor (..., h, w), with the box of the entries above 5 % of the largest moved to the middle; sum 1.

    Each is moved by whole pixels.
    """
    h, w = kernels.shape[-2:]
    large = kernels > PART_OF_KERNEL * kernels.amax((-2, -1), keepdim=True)
    rows, columns = (_moved(large.any(axis)) for axis in (-1, -2))
    places = rows.clamp(0, h - 1)[..., :, None] * w + columns.clamp(0, w - 1)[..., None, :]
    inside = ((rows >= 0) & (rows < h))[..., :, None] & ((columns >= 0) & (columns < w))[..., None, :]
    moved = kernels.flatten(-2).gather(-1, places.flatten(-2)).view_as(kernels).where(inside, 0)
    return moved / moved.sum((-2, -1), keepdim=True)


def similarity(kernel, others):
    """Greatest normalised correlation of a kernel (h, w) with each of others (n, h, w), a tensor (n).

    The same as `selfdeblur.scores.metrics.kernel_similarity`, by FFT: the sums take a second at 75 x 75.
    """
    size = [2 * n - 1 for n in kernel.shape]
    products = torch.fft.irfft2(torch.fft.rfft2(kernel, s=size) * torch.fft.rfft2(others, s=size).conj(), s=size)
    return products.amax((-2, -1)) / (kernel.norm() * others.norm(dim=(-2, -1)))


def framed(kernel, size):
    """A kernel, tensor (h, w), in the middle of a larger frame of odd size (h, w)."""
    rows, columns = ((n - m) // 2 for n, m in zip(size, kernel.shape, strict=True))
    return torch.nn.functional.pad(kernel, (columns, columns, rows, rows))


def at_half_scale(kernel):
    """A kernel (h, w) as it is for images of half the size; odd sizes of at least 3, sum 1."""
    size = [max(n // 4 * 2 + 1, 3) for n in kernel.shape]
    small = torch.nn.functional.interpolate(kernel[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    return small / small.sum()


def _moved(inside):
    """Where what comes to each place is, (..., n), if the box from the first True to the last comes to the middle."""
    n = inside.shape[-1]
    place = torch.arange(n, device=inside.device)
    first = torch.where(inside, place, n).amin(-1, keepdim=True)
    last = torch.where(inside, place, -1).amax(-1, keepdim=True)
    return place - (n - 1 - first - last).div(2, rounding_mode="floor")
