"""What several tests share: where things lie, and images to take the blur out of."""

import os
from pathlib import Path

import numpy as np
import torch
from scipy.signal import correlate, fftconvolve
from skimage import data

from selfdeblur.classical.kernels import camera_shake_kernel
from selfdeblur.forward import blur

ROOT = Path(__file__).resolve().parents[1]
# The original program's numbers and the benchmarks, which are no part of the repository.
SHARED = Path(os.environ.get("SELFDEBLUR_SHARED", ROOT.parent / "shared"))


def blurred(picture, size, kernel_size, seed, noise=0.0):
    """A picture blurred in the valid region.

    Parameters
    ----------
    picture : str or ndarray
        Name of a function of `skimage.data`, whose picture is reduced to the
        size by whole numbers; of an array (H, W) the upper left corner is taken.
    size, kernel_size : int
        Sides of the blurry image and of the kernel.
    seed : int
        Of the kernel and of the noise.
    noise : float
        Standard deviation of the white noise.

    Returns
    -------
    sharp image on the padded grid, kernel, blurry image : ndarray of float64
    """
    rng = np.random.default_rng(seed)
    kernel = camera_shake_kernel(kernel_size, rng=seed)
    side = size + kernel_size - 1
    if isinstance(picture, str):
        image = getattr(data, picture)().astype(float) / 255
        image = image.mean(-1) if image.ndim == 3 else image
        step = min(image.shape) // side
        image = image[: side * step, : side * step].reshape(side, step, side, step).mean((1, 3))
    else:
        image = picture[:side, :side]
    y = correlate(image, kernel, mode="valid", method="fft")
    return image, kernel, y + noise * rng.standard_normal(y.shape)


def part_blurred(kernel, picture=data.camera, corner=(60, 180), side=160, noise=2e-3):
    """A part of a picture, ``side`` pixels a side, blurred by a kernel (h, w), with white noise; tensors of float32."""
    rows, columns = (slice(first, first + side + n - 1) for first, n in zip(corner, kernel.shape, strict=True))
    x = torch.from_numpy(picture()[rows, columns] / np.float32(255))
    y = blur(x[None, None], kernel[None, None])[0, 0]
    return (y + noise * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


def similarity(a, b):
    """Largest normalised cross-correlation of two kernels over all shifts, 1 for equal ones."""
    return fftconvolve(a, b[::-1, ::-1]).max() / np.sqrt((a**2).sum() * (b**2).sum())
