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


def with_luminance(image, y):
    """Image of the shape of ``image`` with its chroma and the luminance y (H, W); range 0 to 1, float32."""
    image = np.asarray(image, dtype=np.float32)
    y = np.asarray(y, dtype=np.float32)
    if image.ndim == 2:
        return y
    ycrcb = cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)
    ycrcb[:, :, 0] = y
    return np.clip(cv2.cvtColor(ycrcb, cv2.COLOR_YCrCb2RGB), 0, 1)
