"""Checks of what a user hands in: images, kernels, kernel sizes. A mistake is a `UserError`."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from selfdeblur.errors import UserError


def check_image(y: ArrayLike) -> np.ndarray:
    """Turn an image into float32 within 0 to 1, or raise `UserError`."""
    y = np.asarray(y)
    if not (y.ndim == 2 or (y.ndim == 3 and y.shape[2] == 3)):
        raise UserError(f"the image must be of shape (H, W) or (H, W, 3), found {y.shape}")
    if np.issubdtype(y.dtype, np.unsignedinteger):
        y = y / np.iinfo(y.dtype).max
    elif not np.issubdtype(y.dtype, np.floating):
        raise UserError(f"the image must be of floats or unsigned integers, found {y.dtype}")
    if not np.isfinite(y).all():
        raise UserError("the image holds values that are not finite")
    if y.size == 0:
        raise UserError("the image is empty")
    if y.min() < 0 or y.max() > 1:
        raise UserError(f"the image must lie within 0 to 1, found {y.min():.3g} to {y.max():.3g}")
    return y.astype(np.float32)


def check_kernel(kernel: ArrayLike, name: str = "the kernel") -> np.ndarray:
    """Turn a kernel into float64 of sum 1, or raise `UserError`; ``name`` begins the message."""
    kernel = np.asarray(kernel, dtype=np.float64)
    if kernel.ndim != 2:
        raise UserError(f"{name} must be of shape (h, w), found {kernel.shape}")
    h, w = kernel.shape
    if h % 2 == 0 or w % 2 == 0:
        raise UserError(f"{name} is {h} x {w} (height x width); both sizes of a kernel have to be odd")
    if not np.isfinite(kernel).all() or kernel.min() < 0:
        raise UserError(f"{name} holds values that are negative or not finite")
    if kernel.sum() <= 0:
        raise UserError(f"{name} sums to 0")
    return kernel / kernel.sum()


def check_kernel_size(kernel_size: int | Sequence[int]) -> tuple[int, int]:
    """Turn one or two numbers into (h, w), or raise `UserError` where one is not odd and positive."""
    size = np.atleast_1d(kernel_size).tolist()
    size = tuple(size * 2 if len(size) == 1 else size)
    if len(size) != 2 or any(not isinstance(n, int) or n < 1 or n % 2 == 0 for n in size):
        raise UserError(f"kernel_size: {' '.join(map(str, size))}: one or two odd, positive numbers are needed")
    return size
