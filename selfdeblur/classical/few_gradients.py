"""The sharp image of the kernel search: one with few gradients, for a given kernel.

The L0 prior of Xu, Zheng and Jia, "Unnatural L0 sparse representation for
natural image deblurring", CVPR 2013; where most of the image may be background,
as a page or the night sky is, with the prior of Pan, Hu, Su and Yang,
"Deblurring text images via L0-regularized intensity and gradient prior", CVPR
2014.
"""

import math

import torch
import torch.nn.functional as F

from selfdeblur.classical.linear import conjugate_gradients
from selfdeblur.classical.recorded import Recorded
from selfdeblur.forward import fast_length

# The weight of a splitting grows by this factor up to its end; near a background, where there are two, by the second,
# and that of the background has an end of its own.
GROWTH, NEAR_GROWTH, MOST, MOST_NEAR = 2, 8, 1e5, 8


class FewGradients:
    """The sharp image with an L0 prior on its gradients, by half-quadratic splitting in the Fourier domain."""

    def __init__(self, y, kernel_size, level_of_background):
        self.blurry_size, self.kernel_size = y.shape, kernel_size
        self.level_of_background = level_of_background
        self.y = _extend_periodically(y, kernel_size)
        self.y_spectrum = torch.fft.rfft2(self.y)
        rows = torch.fft.fftfreq(self.y.shape[0], dtype=y.dtype, device=y.device)[:, None]
        columns = torch.fft.rfftfreq(self.y.shape[1], dtype=y.dtype, device=y.device)[None]
        # Spectrum of the operator that sends an image to minus its Laplacian of forward differences.
        self.laplacian = 4 * (torch.sin(math.pi * rows) ** 2 + torch.sin(math.pi * columns) ** 2)

    def __call__(self, kernel, weight, near_background, spans=None):
        """Sharp images on the padded grid for kernels (..., h, w); ``weight`` is the cost of a pixel with a gradient,
        and with ``near_background`` that of a pixel that differs from the background, too. It is a number, or one for
        each kernel, as a tensor (n, 1, 1) with their `spans`."""
        spans = spans or self.spans([weight], near_background)
        (h, w), (top, left) = self.kernel_size, (n // 2 for n in self.kernel_size)
        padded = F.pad(kernel, (0, self.y.shape[1] - w, 0, self.y.shape[0] - h))
        k_spectrum = torch.fft.rfft2(padded.roll((-top, -left), (-2, -1)))
        data, power = k_spectrum * self.y_spectrum, k_spectrum.abs() ** 2
        x = self.y
        if near_background:
            for alpha, least, going in _penalties(weight, spans[1], NEAR_GROWTH, MOST_NEAR):
                flat = x.masked_fill((x - self.level_of_background) ** 2 < least, self.level_of_background)
                new = self._few_gradients(
                    x, data + alpha * torch.fft.rfft2(flat), power + alpha, weight, spans[0], NEAR_GROWTH
                )
                x = new if going is None else torch.where(going, new, x)
        else:
            x = self._few_gradients(x, data, power, weight, spans[0], GROWTH)
        x = x.roll((top, left), (-2, -1))
        return x[..., : self.blurry_size[0] + h - 1, : self.blurry_size[1] + w - 1]

    @staticmethod
    def spans(weights, near_background):
        """Fewest and most values that the weights of each splitting go through, for costs that are numbers."""
        ends = [(GROWTH, MOST)] if not near_background else [(NEAR_GROWTH, MOST), (NEAR_GROWTH, MOST_NEAR)]
        counts = [[_length(weight, *end) for weight in weights] or [0] for end in ends]
        return tuple((min(numbers), max(numbers)) for numbers in counts)

    def _few_gradients(self, x, data, power, weight, span, growth):
        for beta, least, going in _penalties(weight, span, growth, MOST):
            right, down = x.roll(-1, -1).sub_(x), x.roll(-1, -2).sub_(x)
            strong = torch.addcmul(right.square(), down, down).ge_(least)
            right, down = right.mul_(strong), down.mul_(strong)
            sparse = right.roll(1, -1).sub_(right).sub_(down)
            sparse[..., 1:, :] += down[..., :-1, :]
            sparse[..., :1, :] += down[..., -1:, :]
            spectrum = _plus(data, torch.fft.rfft2(sparse), beta)
            spectrum.mul_(_plus(power, self.laplacian, beta).reciprocal_())
            new = torch.fft.irfft2(spectrum, s=self.y.shape)
            x = new if going is None else torch.where(going, new, x)
        return x


def _plus(a, b, factor):
    """a + factor * b, of which a tensor is one number for each kernel."""
    return torch.add(a, b, alpha=factor) if isinstance(factor, float) else a + factor * b


def _length(weight, growth, end):
    """How many values from twice the weight on, each so many times the one before, are below an end."""
    count, value = 0, 2 * weight
    while value < end:
        count, value = count + 1, value * growth
    return count


def _penalties(weight, span, growth, end):
    """The weights of a splitting, from twice the cost on, and which square a gradient must have not to be set to 0.

    With a cost for each kernel also for which kernels the weight is still below ``end``; None: for all.
    """
    fewest, most = span
    for number in range(most):
        penalty = weight * (2.0 * growth**number)
        yield penalty, 0.5 / growth**number, None if number < fewest else penalty < end


def background_level(y):
    """Grey level that the background of y (H, W) would have: its 5 % or 95 % quantile, that nearer to the median."""
    dark, middle, bright = quantile(y, (0.05, 0.5, 0.95)).tolist()
    return dark if middle - dark < bright - middle else bright


def quantile(values, shares):
    """The values below which these shares of all values lie, without a mean of two."""
    ordered = values.flatten().sort().values
    return ordered[(torch.tensor(shares, dtype=torch.float64) * (len(ordered) - 1)).round().long().to(values.device)]


def _extend_periodically(y, kernel_size):
    """Put y in the corner of a larger image that is smooth across its borders when repeated (least gradient energy)."""
    size = [fast_length(n + 2 * k) for n, k in zip(y.shape, kernel_size, strict=True)]
    free = torch.ones(size, dtype=y.dtype, device=y.device)
    free[: y.shape[0], : y.shape[1]] = 0
    known = torch.full_like(free, float(y.mean()))
    known[: y.shape[0], : y.shape[1]] = y

    def laplacian(v):
        return 4 * v - v.roll(1, 0) - v.roll(-1, 0) - v.roll(1, 1) - v.roll(-1, 1)

    fixed = known * (1 - free)
    filling, _ = conjugate_gradients(
        lambda v: free * laplacian(free * v),
        -free * laplacian(fixed),
        known * free,
        4 * max(kernel_size),
        at_a_time=4 if Recorded.on(y.device) else 1,
    )
    return fixed + filling * free
