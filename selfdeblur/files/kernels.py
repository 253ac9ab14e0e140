"""Kernel files to arrays: an image, or a NumPy file of plain numbers."""

import io
import warnings
from pathlib import Path

import numpy as np

from selfdeblur.checks import check_kernel
from selfdeblur.errors import UserError
from selfdeblur.files.images import open_without_waiting, read_image

_MAX_NUMPY_BYTES = 1 << 25


def read_kernel(path):
    """Read a blur kernel from an image file or a NumPy file (.npy).

    Parameters
    ----------
    path : str or Path
        Of a grey image (or a coloured one whose channels are equal), or of a
        two-dimensional array of numbers.

    Returns
    -------
    ndarray of float64
        (h, w), both odd, non-negative, sum 1; turned neither way, so in the
        correlation sense if the file is.

    Raises
    ------
    UserError
        If the file cannot be read, or if what it holds is no kernel: not
        two-dimensional, of even height or width, with negative values or
        values that are not finite, or all 0.
    """
    path = Path(path)
    kernel = _read_numpy(path) if path.suffix.lower() == ".npy" else read_image(path)
    if kernel.ndim == 3 and (kernel == kernel[:, :, :1]).all():
        kernel = kernel[:, :, 0]
    if kernel.ndim == 3:
        raise UserError(f"{path}: is a coloured image; a kernel is a grey image or an array of two dimensions")
    # By its largest value first: the sum of huge values would be infinite.
    if np.isfinite(kernel).all() and kernel.max() > 0:
        kernel = kernel / kernel.max()
    return check_kernel(kernel, f"{path}: the kernel")


def _read_numpy(path):
    """Read an array of numbers as float64, without the pickles that may be in such a file and would run code."""
    try:
        with open(path, "rb", opener=open_without_waiting) as file:
            content = file.read(_MAX_NUMPY_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) > _MAX_NUMPY_BYTES:
        raise UserError(f"{path}: more than {_MAX_NUMPY_BYTES} bytes are too many for a kernel")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    # The header is a piece of Python text, and a malformed one ends in one of a dozen kinds of exception.
    except Exception as error:
        raise UserError(f"{path}: not a readable NumPy file of plain numbers") from error
    if array.dtype.kind not in "fiu" or array.size == 0:
        raise UserError(f"{path}: holds no array of real numbers, but {array.dtype} of shape {array.shape}")
    with np.errstate(all="ignore"):
        return array.astype(np.float64)
