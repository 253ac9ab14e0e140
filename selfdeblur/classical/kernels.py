"""Blur kernels: arrays (h, w), non-negative, sum 1, in the correlation sense.

The blurry image is ``y[i, j] = sum_{a, b} k[a, b] x[i + a, j + b]``, the valid
correlation of the sharp image with the kernel. MATLAB's ``conv2`` and
`scipy.signal.convolve` expect the same kernel turned by 180 degrees.
"""

import io
import warnings
from pathlib import Path

import numpy as np

from selfdeblur.errors import UserError
from selfdeblur.files.images import open_without_waiting, read_image

_MAX_NUMPY_BYTES = 1 << 25


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
    >>> k.shape, round(k.sum(), 12), bool(k.min() >= 0)
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
    position, velocity = np.zeros(2), 20 * (rng.random(2) - 0.5)
    for i in range(points):
        velocity = 0.998 * velocity + push[i] - 1e-5 * position
        position = position + velocity
        path[i] = position
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
    if kernel.ndim != 2:
        what = "a coloured image" if kernel.ndim == 3 else f"an array of {kernel.ndim} dimensions"
        raise UserError(f"{path}: is {what}; a kernel is a grey image or an array of two dimensions")
    h, w = kernel.shape
    if h % 2 == 0 or w % 2 == 0:
        raise UserError(f"{path}: is {h} x {w} (height x width); both sizes of a kernel have to be odd")
    if not np.isfinite(kernel).all() or kernel.min() < 0:
        raise UserError(f"{path}: has values that are negative or not finite; a kernel has none")
    if kernel.max() == 0:
        raise UserError(f"{path}: all values are 0; the values of a kernel have a positive sum")
    # By its largest value first: the sum of huge values would be infinite.
    kernel = kernel / kernel.max()
    return kernel / kernel.sum()


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
