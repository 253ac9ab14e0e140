"""Colour images: the method works on the luminance, the chroma stays that of the blurry image.

Luminance is the full-range Y of OpenCV's YCrCb (0 to 1 here), as in the
released colour program; MATLAB's Y (16 to 235 of 255) is used for scoring only.
"""

import cv2
import numpy as np


def luminance(image):
    """Luminance (H, W) of an image (H, W) or (H, W, 3) red, green, blue; range 0 to 1, float32."""
    image = np.asarray(image, dtype=np.float32)
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)[:, :, 0]


def chroma(image):
    """The two chroma planes (H, W) of an image (H, W, 3) red, green, blue: red's and blue's, 0.5 for grey, float32."""
    ycrcb = cv2.cvtColor(np.asarray(image, dtype=np.float32), cv2.COLOR_RGB2YCrCb)
    return [np.ascontiguousarray(ycrcb[:, :, channel]) for channel in (1, 2)]


def from_luminance_and_chroma(y, red, blue):
    """Image (H, W, 3) red, green, blue of a luminance and two planes of `chroma`; limited to 0 to 1, float32."""
    return np.clip(cv2.cvtColor(np.stack([y, red, blue], -1).astype(np.float32), cv2.COLOR_YCrCb2RGB), 0, 1)


def with_luminance(image, y):
    """Image of the shape of ``image`` with its chroma and the luminance y (H, W); range 0 to 1, float32."""
    image = np.asarray(image, dtype=np.float32)
    y = np.asarray(y, dtype=np.float32)
    return y if image.ndim == 2 else from_luminance_and_chroma(y, *chroma(image))
