"""Whether a picture is sharp already."""

import cv2
import numpy as np
import pytest
import torch
from skimage import data

from selfdeblur.classical.kernels import camera_shake_kernel
from selfdeblur.classical.sharp import ghost, is_sharp, steepness


def picture(name):
    image = getattr(data, name)()
    return image[100:356, 100:356] / 255 if name == "camera" else image[-256:, -256:] / 255


def blurred(image, kernel):
    """Filtered, with noise of 0.003, in 8 bits."""
    y = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT)
    y += 0.003 * np.random.default_rng(0).standard_normal(y.shape)
    return torch.from_numpy(np.rint(y.clip(0, 1) * 255) / 255).float()


def test_the_steepness_of_an_edge_is_known():
    for width in (1, 2, 4):
        y = (torch.arange(60.0) - 30).div(width).clamp(0, 1).mul(0.5).add(0.2)
        y = torch.rand(60, 60, generator=torch.Generator().manual_seed(0)) * 1e-4 + y
        y = (y + y.T) / 2
        assert steepness(y) == pytest.approx(1 / width, abs=0.03)
    assert steepness(torch.full((60, 60), 0.4)) == 0


@pytest.mark.parametrize("name", ["camera", "coins", "page"])
def test_sharp_pictures_are_known_and_blurry_ones_are_not_taken_for_them(name):
    image = picture(name)
    assert is_sharp(blurred(image, np.ones((1, 1))))
    line = np.zeros((9, 9))
    line[4] = 1 / 9
    for kernel in (camera_shake_kernel(11, rng=1), camera_shake_kernel(21, rng=2), np.eye(7) / 7, line):
        assert not is_sharp(blurred(image, kernel))


def test_a_double_exposure_is_not_sharp():
    double = np.zeros((13, 21))
    double[0, 0] = double[-1, -1] = 0.5
    y = blurred(picture("coins"), double)
    assert ghost(y) > 3 * ghost(blurred(picture("coins"), np.ones((1, 1))))
    assert not is_sharp(y)


def test_trails_of_lights_at_night_do_not_make_a_picture_sharp():
    night = np.full((200, 200), 0.05)
    for row, column in np.random.default_rng(1).integers(20, 180, (30, 2)):
        night[row, column : column + 15] = 0.9
    assert not is_sharp(torch.from_numpy(night).float())
