"""The judge of kernels: how well a kernel explains a blurry image, told without the sharp one.

`free_energy` weighs all sharp images instead of the best one. `extent` tells a
kernel that does nothing, `noise_level` how much of y is noise, `judged_window`
which part of a large image is enough. Every kernel is meant in the correlation
sense of `selfdeblur.forward`.
"""

import torch
import torch.nn.functional as F

from selfdeblur.classical.clipped import away_from_lights, of_gradients
from selfdeblur.classical.linear import Correlation, conjugate_gradients, gradient_pairs, gradients, smooth
from selfdeblur.classical.recorded import Recorded

# A kernel of less `extent` is next to a point: it explains any image and deblurs nothing. Camera shakes have 0.13 to
# 0.35; a size that is twice too large halves it.
POINT_EXTENT = 0.045

# Deviation in pixels of the Gaussian by which y is smoothed for a second opinion: at full scale kernels are judged by
# the sum of the free energies of y and of y smoothed. The first takes noise that a kernel was fitted to for detail, the
# second likes a kernel that is too wide.
SECOND_OPINION_SIGMA = 1.5

# A kernel is clearly better than another one if the sum above is less than this share of the other's. Of two good
# kernels, both fitted by networks, the coarser may have 5 % less, and 12 % where there is much noise; one that is right
# where the other is wrong has 20 % less, or the two cannot be told apart.
CLEARLY_BETTER = 0.85

# Side of the square of a large image that kernels are judged on: so many pixels, or so many times the kernel's size.
JUDGED_SIDE, JUDGED_KERNEL_SIZES = 640, 6

# An image is made of blocks of JPEG if its third differences are so many times larger at each eighth place than at the
# others; images of less pixels a side have too few of them. Of 120 problems of the zoo those without JPEG have up to
# 1.13, those with it from 1.46 on, but for noise that it kept.
BLOCKINESS, SMALLEST_WITH_BLOCKS = 1.3, 64

# The least noise in such an image: what the rounding of the blocks leaves has no white noise's form, and with less the
# judge takes it for detail.
NOISE_OF_BLOCKS = 5e-3


# Pixels, of the images of several kernels, that a CPU judges at a time: what its caches hold.
AT_A_TIME = 1 << 17


def clearly_better(y, kernel, other, *, share=CLEARLY_BETTER):
    """Whether a kernel (h, w) explains y (H, W) clearly better than another: with less than a share of its energy."""
    if extent(kernel) < POINT_EXTENT:
        return False
    part = y[judged_window(y, kernel.shape)]
    images = two_opinions(part, away_from_lights(part))
    (_, energy), (_, others_energy) = badness(images, torch.stack([kernel, other]))
    return energy < share * others_energy


def two_opinions(y, away=None):
    """What kernels are judged on at full scale: pairs (image, mask) of y (H, W) and of y smoothed.

    See SECOND_OPINION_SIGMA; ``away`` is as in `free_energy`.
    """
    smoothed = smooth(y, SECOND_OPINION_SIGMA)
    if away is not None:
        rim = [(n - m) // 2 for n, m in zip(y.shape, smoothed.shape, strict=True)]
        away_smoothed = away[rim[0] : rim[0] + smoothed.shape[0], rim[1] : rim[1] + smoothed.shape[1]]
    return [(y, away), (smoothed, None if away is None else away_smoothed)]


def badness(images, kernels, **effort):
    """What kernels (n, h, w) are ordered by, least first: pairs (is next to a point, free energy).

    One next to a point, which explains any image, comes after all others. The
    energy is the sum over ``images``, forms of one blurry image with their masks; ``effort`` is
    handed on to `free_energy`.
    """
    energies = sum(free_energy(y, kernels, away=away, **effort) for y, away in images)
    rows = torch.stack([extents(kernels), energies.double()]).tolist()
    return [(extent < POINT_EXTENT, energy) for extent, energy in zip(*rows, strict=True)]


def summed_energies(y, kernels):
    """What `badness` says of kernels (n, h, w) by their energies alone, in y (H, W) and in y smoothed."""
    return [energy for _, energy in badness(two_opinions(y, away_from_lights(y)), kernels)]


def energies_in_turn(images, kernels):
    """The energies of `badness` for kernels (n, h, w), one after the other as asked for; a GPU finds all at once."""
    for some in kernels.split(len(kernels) if kernels.is_cuda else 1):
        yield from (energy for _, energy in badness(images, some))


def free_energy(y, kernel, *, away=None, rounds=14, steps=7):
    """How badly a kernel explains the blurry image when all sharp images are weighed, not only the best one.

    The variational bound of sparse Bayesian deconvolution, see Wipf and Zhang,
    "Revisiting Bayesian blind deconvolution", JMLR 2014: each gradient of x is
    normal with a variance of its own, its posterior has an independent spread
    at each pixel. Unlike the energy of a single best image it does not by
    itself favour the kernel that does nothing.

    Parameters
    ----------
    y : tensor or ndarray, (H, W)
        Blurry image, 0..1.
    kernel : tensor or ndarray, (..., h, w)
        Kernels to judge.
    away : tensor of bool (H, W), optional
        Pixels that count, see `clipped.away_from_lights`; by default all.
    rounds, steps : int
        Times the variances are renewed; conjugate gradient steps for each. Too few rounds favour
        kernels that are too wide.

    Returns
    -------
    tensor (...)
        Lower is better; comparable among kernels of one size for one image.
    """
    y = torch.as_tensor(y, dtype=torch.float32)
    kernel = torch.as_tensor(kernel, dtype=torch.float32, device=y.device)
    some = max(AT_A_TIME // y.numel(), 1)
    if y.device.type == "cpu" and kernel.dim() == 3 and len(kernel) > some:
        parts = (free_energy(y, part, away=away, rounds=rounds, steps=steps) for part in kernel.split(some))
        return torch.cat(list(parts))
    # White noise of y has twice its variance in the gradients, four times at their finest detail. Were not even that
    # allowed for, a kernel near to a point, which leaves such detail in the image, would explain y best.
    of_y = noise_of_detail(y) ** 2
    noise = max(1e-5 + 2 * of_y, 4 * of_y)
    y = gradient_pairs(y)
    blur = Correlation(y.shape, kernel.shape[-2:], of_gradients(away), pairs=True)
    k_spectrum = blur.spectrum(kernel)
    k_conjugate, k_weighted = k_spectrum.conj_physical(), k_spectrum / noise
    y, ones = blur.masked(y), blur.masked(torch.ones_like(y.real))
    precision = blur.transpose_in_x(ones, blur.spectrum(kernel**2)).real[..., None].clamp(min=1e-8) / noise
    right_side = torch.view_as_real(blur.transpose_in_x(y, k_weighted))
    x = torch.zeros_like(right_side)
    (top, left) = (n // 2 for n in kernel.shape[-2:])
    x[..., top : top + y.shape[0], left : left + y.shape[1], :] = torch.view_as_real(y)
    variance = torch.view_as_real(y).square().mean().clamp(min=1e-10).expand_as(x).contiguous()

    def blurred(x):
        return blur.forward(blur.spectrum(torch.view_as_complex(x)), k_conjugate)

    def of_data(x):
        return torch.view_as_real(blur.transpose_in_x(blurred(x), k_weighted))

    def once_more(x, variance, left, *, beyond):
        of_prior = 1 / variance
        spread = 1 / (precision + of_prior)

        def matrix(v):
            return torch.addcmul(of_data(v), v, of_prior)

        x, residual = conjugate_gradients(
            matrix, right_side, x, steps, spread, 3, residual=torch.addcmul(left, x, of_prior, value=-1)
        )
        renewed = (x**2 + spread).clamp(min=1e-10)
        if beyond:
            renewed = (variance * (renewed / variance) ** 1.8).clamp(min=1e-10)
        return x, renewed, torch.addcmul(residual, x, of_prior), spread

    left = right_side - of_data(x)
    with Recorded(once_more) as renew:
        for number in range(rounds):
            # To go beyond what the rule gives brings 14 rounds as far as 40; the last two, by the rule, give a bound.
            x, variance, left, spread = renew(x, variance, left, beyond=number < rounds - 2)
    error = torch.view_as_real(y - blurred(x)).square().sum((-3, -2, -1)) / noise
    return error + (x**2 / variance + (variance / spread).log()).sum((-3, -2, -1))


def judged_window(y, kernel_size):
    """The part of y (H, W) that kernels of a size (h, w) are judged on, as two slices."""
    return busiest_window(y, max(JUDGED_SIDE, JUDGED_KERNEL_SIZES * max(kernel_size)))


def busiest_window(y, side):
    """The square of at most ``side`` pixels a side with the most structure, as two slices.

    Structure is the mean of the square of the gradient, each pixel's limited to
    ten times the mean so that single edges do not decide; next to a value of 0
    or 1, where the image may be clipped and the model does not hold, it is 0.

    Parameters
    ----------
    y : tensor (H, W)
        Image, 0..1.
    side : int

    Returns
    -------
    (slice, slice)
    """
    height, width = (min(side, n) for n in y.shape)
    energy = gradients(y).square().sum(0)
    clipped = (y <= 0) | (y >= 1)
    energy[clipped[:-1, :-1] | clipped[:-1, 1:] | clipped[1:, :-1]] = 0
    energy = energy.clamp(max=10 * float(energy.mean()))
    sums = F.pad(energy.double().cumsum(0).cumsum(1), (1, 1, 1, 1))
    sums[-1], sums[:, -1] = sums[-2], sums[:, -2]
    totals = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = divmod(int(totals.argmax()), totals.shape[1])
    return slice(top, top + height), slice(left, left + width)


def extent(kernel):
    """Radius around its centroid that holds half of a kernel (h, w) of sum 1, over the larger of its sides."""
    return extents(kernel).item()


def extents(kernels):
    """`extent` of each kernel (..., h, w), as a tensor (...) of float64."""
    kernels = kernels.double()
    row, column = (torch.arange(n, dtype=torch.float64, device=kernels.device) for n in kernels.shape[-2:])
    row = row - (kernels.sum(-1) * row).sum(-1, keepdim=True)
    column = column - (kernels.sum(-2) * column).sum(-1, keepdim=True)
    distances, order = torch.hypot(row[..., :, None], column[..., None, :]).flatten(-2).sort(-1)
    kernels = kernels.flatten(-2)
    half = (kernels.gather(-1, order).cumsum(-1) < kernels.sum(-1, keepdim=True) / 2).sum(-1, keepdim=True)
    return distances.gather(-1, half)[..., 0] / max(row.shape[-1], column.shape[-1])


def noise_level(y):
    """Standard deviation of white noise in an image (H, W), from the median of its finest mixed differences.

    JPEG takes the finest noise away and leaves the rest. In an image made of its blocks the noise is that of an image
    of half the size, which white noise would have as well, and edges add a little to it; not less than NOISE_OF_BLOCKS.
    """
    if not has_blocks(y):
        return _finest_noise(y)
    half = F.avg_pool2d(y[None, None], 2)[0, 0]
    return max(_finest_noise(y), 2 * _finest_noise(half), NOISE_OF_BLOCKS)


def has_blocks(y):
    """Whether an image (H, W) shows the borders of the blocks of 8 x 8 pixels that JPEG is made of."""
    return min(y.shape) >= SMALLEST_WITH_BLOCKS and max(_blockiness(y), _blockiness(y.T)) > BLOCKINESS


def _blockiness(y):
    """How large third differences across columns are at each eighth place, at most, against their median."""
    steps = (y[:, 3:] - 3 * y[:, 2:-1] + 3 * y[:, 1:-2] - y[:, :-3]).abs().mean(0)
    places = torch.stack([steps[n::8].mean() for n in range(8)])
    return float(places.max() / places.median().clamp(min=1e-9))


def noise_of_detail(y):
    """The noise of the finest differences, which is what gradients have; in an image of blocks not too little of it."""
    return max(_finest_noise(y), NOISE_OF_BLOCKS if has_blocks(y) else 0)


def _finest_noise(y):
    rows = y[2:] - 2 * y[1:-1] + y[:-2]
    mixed = rows[:, 2:] - 2 * rows[:, 1:-1] + rows[:, :-2]
    return float(mixed.abs().median()) / 0.6745 / 6
