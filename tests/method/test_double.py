"""Doubles: kernels of two points, and when they are taken."""

import numpy as np
import pytest
import torch
from skimage import data

from selfdeblur.classical.double import double, double_kernel, echoes
from selfdeblur.classical.kernels import camera_shake_kernel
from selfdeblur.forward import blur
from selfdeblur.scores.metrics import kernel_similarity

FORM = (5.0, -8.0, 0.6, 2.0)


def blurred(kernel):
    """A part of a photograph, 140 x 140, blurred by a kernel."""
    side = 140 + len(kernel) - 1
    x = torch.from_numpy(data.camera()[60 : 60 + side, 180 : 180 + side] / np.float32(255))
    y = blur(x[None, None], kernel[None, None])[0, 0]
    return (y + 2e-3 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


def shake():
    return torch.from_numpy(camera_shake_kernel(13, rng=3)).float()


def test_a_double_is_two_points_at_its_shift():
    kernel = double(FORM, (13, 15))
    assert kernel.shape == (13, 15)
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-6)
    rows, columns = (torch.arange(n) - n // 2 for n in kernel.shape)
    mean = [float((kernel.sum(1 - axis) * place).sum()) for axis, place in enumerate((rows, columns))]
    # The first point, of a share of 0.6, is half the shift from the middle; the other one is on the other side.
    assert mean == pytest.approx([0.2 * 2.5, 0.2 * -4.0], abs=0.05)


def test_the_shift_is_an_echo():
    assert [5, -8] in echoes(blurred(double(FORM, (13, 19))), (13, 19))


def test_a_double_that_the_search_missed_is_taken():
    true = double(FORM, (13, 19))
    wrong = torch.zeros(13, 19)
    wrong[2:9, 6:12] = shake()[3:10, 4:10]
    found = double_kernel(blurred(true), wrong / wrong.sum())
    assert kernel_similarity(found.numpy(), true.numpy()) > 0.95


def test_what_was_found_well_stays():
    true = double(FORM, (13, 19))
    assert double_kernel(blurred(true), true) is None
    assert double_kernel(blurred(shake()), shake()) is None


def test_a_kernel_without_room_for_two_points_stays():
    kernel = torch.full((3, 3), 1 / 9)
    assert double_kernel(blurred(kernel), kernel) is None
