"""The forward model of shift-invariant blur, y = k ⊗ x (paper, equation 1)."""

from functools import lru_cache

import torch
import torch.nn.functional as F


def blur(x, k):
    """Valid correlation of x with k by FFT.

    A circular correlation of the size of x differs from the linear one only
    outside the valid region, so this equals `blur_plain` to rounding, at a
    cost that does not grow with the kernel.

    Parameters
    ----------
    x : tensor (..., H + h - 1, W + w - 1)
        Sharp image.
    k : tensor (..., h, w)
        Blur kernel, in correlation sense (the flip of MATLAB's convolution kernel).

    Returns
    -------
    tensor (..., H, W)
    """
    size = [fast_length(n) for n in x.shape[-2:]]
    spectrum = torch.fft.rfft2(x, s=size) * torch.fft.rfft2(k, s=size).conj()
    full = torch.fft.irfft2(spectrum, s=size)
    return full[..., : x.shape[-2] - k.shape[-2] + 1, : x.shape[-1] - k.shape[-1] + 1]


@lru_cache(maxsize=1024)
def fast_length(n):
    """The smallest multiple of 4 of at least n >= 1 whose prime factors are 2, 3 and 5.

    Of such a length an FFT is fast; of an odd one, as 225 or 375, a real one takes twice as long
    for each number.
    """
    n = -(-n // 4) * 4
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 4


def blur_plain(x, k):
    """Valid correlation of x (1, 1, H + h - 1, W + w - 1) with k (1, 1, h, w) as one convolution layer."""
    return F.conv2d(x, k)


def centre(x, kernel_size):
    """The part of a sharp image (..., H + h - 1, W + w - 1) that lies over the blurry image: (..., H, W)."""
    h, w = kernel_size
    return x[..., h // 2 : x.shape[-2] - h // 2, w // 2 : x.shape[-1] - w // 2]
