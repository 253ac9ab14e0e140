"""From the values of a picture to the range 0 to 1 and back, whatever its type and scale."""

import cv2
import numpy as np

# A range that is not declared ends so much above the brightest part: what is sharp is brighter than what is blurred.
HEADROOM = 1.25
# The largest values of cameras of 10, 12 and 14 bits.
CAMERAS = (1023, 4095, 16383)


def value_range(image: np.ndarray, white: int | None) -> tuple[float, float]:
    """The values of an image that stand for black and white.

    Of 8 bits a value, these are 0 and 255. In more bits and in floating point
    a picture often uses a small part of what its type can hold, as that of a
    camera of 12 bits, and the range follows the brightest part, single bright
    pixels aside; where the brightest value is one that cameras stop at, 2**n - 1,
    and many pixels have it, it is white. Floating point from above 0.5 to 1 counts
    as declared, too.

    Parameters
    ----------
    image : ndarray (H, W) or (H, W, 3)
    white : int or None
        The declared value of white; None for floating point.

    Returns
    -------
    (float, float)
        The second is larger.
    """
    if white is not None and white <= 255:
        return 0.0, float(white)
    low = min(float(image.min()), 0.0)
    peak = float(image.max())
    if white is None and low == 0 and 0.5 < peak <= 1:
        return 0.0, 1.0
    if white is not None and peak in (*CAMERAS, white) and (image == image.max()).mean() > 1e-5:
        return 0.0, peak
    values = image.astype(np.float32)
    channels = [values] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    small = min(values.shape[:2]) < 3
    bright = peak if small else max(float(cv2.medianBlur(np.ascontiguousarray(c), 3).max()) for c in channels)
    high = low + HEADROOM * (min(peak, 1.1 * (bright - low) + low) - low)
    high = high if white is None else min(high, float(white))
    return (low, high) if high > low else (low, low + 1.0)


def to_unit(image: np.ndarray, values: tuple[float, float]) -> np.ndarray:
    """An image as float32 within 0 to 1, where ``values`` are those for 0 and 1; what lies beyond is limited."""
    low, high = values
    image = image.astype(np.float32 if image.dtype.kind == "u" else np.float64)
    return np.clip((image - low) / (high - low), 0, 1).astype(np.float32)


def from_unit(image: np.ndarray, values: tuple[float, float], dtype: np.dtype, white: int | None) -> np.ndarray:
    """An image in terms of `to_unit`, maybe beyond 1, in the type and units that it came from.

    It is limited to what the type holds (``white``, for integers), and not to
    what the image held; of floating point nothing falls below the value for 0.
    """
    low, high = values
    image = np.asarray(image, dtype=np.float64) * (high - low) + low
    if white is None:
        return np.maximum(image, low).astype(dtype)
    return np.rint(np.clip(image, 0, white)).astype(dtype)
