"""Round kernels: disks and Gaussians, and when they are taken."""

import numpy as np
import pytest
import torch
from skimage import data

from selfdeblur.classical import estimate_kernel
from selfdeblur.classical.kernels import camera_shake_kernel
from selfdeblur.classical.round import SMALLEST, disk, gaussian, is_round, round_kernel
from selfdeblur.forward import blur
from selfdeblur.scores.metrics import kernel_similarity


def blurred(kernel, noise=2e-3):
    """A part of a photograph, 160 x 160, blurred by a kernel."""
    side = 160 + len(kernel) - 1
    x = torch.from_numpy(data.camera()[60 : 60 + side, 180 : 180 + side] / np.float32(255))
    y = blur(x[None, None], torch.as_tensor(kernel, dtype=torch.float32)[None, None])[0, 0]
    return (y + noise * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


@pytest.fixture
def shake():
    return torch.from_numpy(camera_shake_kernel(13, rng=3)).float()


def test_a_disk_has_the_area_of_its_circle():
    kernel = disk(7.0, (11, 13))
    assert kernel.shape == (11, 13)
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-6)
    assert float(1 / kernel.max()) == pytest.approx(np.pi * 3.5**2, rel=0.01)
    assert float(kernel[0].sum()) == 0


def test_a_gaussian_has_its_deviation():
    kernel = gaussian(1.5, (15, 15)).double()
    place = torch.arange(15, dtype=torch.float64) - 7
    assert float((kernel.sum(0) * place**2).sum()) == pytest.approx(1.5**2, rel=1e-3)


def test_what_is_round(shake):
    assert is_round(disk(5.3, (9, 9)))
    assert is_round(gaussian(1.2, (7, 9)))
    assert not is_round(shake)
    point = torch.zeros(5, 5)
    point[2, 2] = 1
    assert not is_round(point)


@pytest.mark.parametrize(("draw", "value"), [(disk, 8.0), (gaussian, 2.0)])
def test_a_round_kernel_is_found_where_another_was_found(draw, value, shake):
    true = draw(value, (13, 13))
    found = round_kernel(blurred(true), 0.8 * true + 0.2 * shake)
    assert is_round(found)
    assert kernel_similarity(found.numpy(), true.numpy()) > 0.99


def test_a_camera_shake_is_not_round(shake):
    assert round_kernel(blurred(shake), shake) is None


def test_much_noise_tells_nothing():
    true = disk(8.0, (13, 13))
    assert round_kernel(blurred(true, noise=0.03), true) is None


def test_a_tiny_kernel_is_left_alone():
    kernel = torch.full((SMALLEST - 2, SMALLEST - 2), 1 / (SMALLEST - 2) ** 2)
    assert round_kernel(blurred(kernel), kernel) is None


def test_the_search_ends_with_a_round_kernel():
    true = disk(8.0, (13, 13))
    found = estimate_kernel(blurred(true), (13, 13), starts=2, searches=((5, 0),))
    assert is_round(found)
    assert kernel_similarity(found.numpy(), true.numpy()) > 0.99
