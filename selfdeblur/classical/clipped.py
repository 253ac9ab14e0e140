"""Where a blurry image is clipped: a light is brighter than the image can say, so y = k ⊗ x does not hold there.

So the kernel is sought without the lights and the pixels next to them, and a
deconvolution leaves out what it finds to be brighter than white.
"""

import torch
import torch.nn.functional as F

# A pixel of at least so much may be clipped: noise, JPEG and the mean of three channels bring it below 1.
NEARLY_WHITE = 0.9

# Where more than this share of an image is nearly white it is paper or sky, and its values are taken as they are.
MOST_LIGHTS = 0.03


def lights(y):
    """Where an image (H, W), 0..1, may be clipped: a tensor of bool; None where nothing is, or too much for lights."""
    white = y >= NEARLY_WHITE
    return white if 0 < float(white.double().mean()) <= MOST_LIGHTS else None


def away_from_lights(y):
    """Where an image (H, W), 0..1, is next to no light; a tensor of bool, or None where there are no lights.

    The trail of a light is not left out: it shows the kernel.
    """
    white = lights(y)
    if white is None:
        return None
    return F.max_pool2d(white[None, None].to(y), 3, stride=1, padding=1)[0, 0] == 0


def shrunk(away, size):
    """The mask at another size (H, W), where it holds for all pixels that one of them is made of."""
    if away is None or away.shape == tuple(size):
        return away
    return F.interpolate(away[None, None].float(), size=tuple(size), mode="area")[0, 0] > 0.999


def of_gradients(away):
    """Of which `linear.gradients` all pixels are away from lights: (H - 1, W - 1), 1 or 0; None stays None."""
    if away is None:
        return None
    return (away[:-1, :-1] & away[:-1, 1:] & away[1:, :-1]).to(torch.float32)
