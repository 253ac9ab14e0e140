"""Simple kernels: disks, Gaussians, lines and doubles, and when they are taken."""

import numpy as np
import pytest
import torch
from common import part_blurred as blurred

from selfdeblur.classical import estimate_kernel, size
from selfdeblur.classical.kernels import camera_shake_kernel
from selfdeblur.classical.simple import (
    MOST_NOISE,
    SMALLEST,
    disk,
    double,
    echoes,
    gaussian,
    is_simple,
    line,
    simple_kernel,
)
from selfdeblur.scores.metrics import kernel_similarity

SIZE = 13, 15
EACH = [
    (disk, (8.0,)),
    (gaussian, (2.0,)),
    (line, (5.0, 9.0, 1.5)),
    (line, (-3.0, 7.0, 2.5)),
    (double, (5.0, -8.0, 0.6, 2.0)),
]


def drawn(form, numbers, size=SIZE):
    return torch.from_numpy(form(*numbers, size)).float()


@pytest.fixture
def shake():
    return torch.from_numpy(camera_shake_kernel(SIZE, rng=3)).float()


@pytest.mark.parametrize(("form", "numbers"), EACH)
def test_a_simple_kernel_is_a_kernel(form, numbers, shake):
    kernel = drawn(form, numbers)
    assert kernel.shape == SIZE
    assert kernel.min() >= 0
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-6)
    assert is_simple(kernel)
    assert not is_simple(shake)


def test_a_point_is_not_simple():
    point = torch.zeros(5, 5)
    point[2, 2] = 1
    assert not is_simple(point)


def test_a_disk_has_the_area_of_its_circle():
    assert float(1 / disk(7.0, SIZE).max()) == pytest.approx(np.pi * 3.5**2, rel=0.01)


def test_a_gaussian_has_its_deviation():
    kernel, place = gaussian(1.5, (15, 15)), np.arange(15) - 7
    assert float((kernel.sum(0) * place**2).sum()) == pytest.approx(1.5**2, rel=1e-3)


def test_a_line_lies_along_its_ends():
    kernel = line(6.0, 9.0, 1.5, (13, 15))
    rows, columns = np.nonzero(kernel > 0.5 * kernel.max())
    assert np.abs((rows - 6) * 9 - (columns - 7) * 6).max() / np.hypot(6, 9) < 1
    assert (rows.max() - rows.min(), columns.max() - columns.min()) == pytest.approx((6, 9), abs=1)


def test_a_double_is_two_points_at_its_shift():
    kernel = double(5.0, -8.0, 0.6, 2.0, SIZE)
    mean = [(kernel.sum(1 - axis) * (np.arange(n) - n // 2)).sum() for axis, n in enumerate(SIZE)]
    # The first point, of a share of 0.6, is half the shift from the middle; the other one is on the other side.
    assert mean == pytest.approx([0.2 * 2.5, 0.2 * -4.0], abs=0.05)


def test_the_shift_of_a_double_is_an_echo():
    assert [5, -8] in echoes(blurred(drawn(double, (5.0, -8.0, 0.6, 2.0))), SIZE)


@pytest.mark.parametrize(("form", "numbers"), EACH)
def test_a_simple_kernel_is_found_where_another_was_found(form, numbers, shake):
    true = drawn(form, numbers)
    found = simple_kernel(blurred(true), 0.8 * true + 0.2 * shake)
    assert is_simple(found)
    assert kernel_similarity(found.numpy(), true.numpy()) > 0.95


@pytest.mark.parametrize("seed", range(4))
def test_a_camera_shake_is_not_simple(seed):
    shake = torch.from_numpy(camera_shake_kernel(SIZE, rng=seed)).float()
    assert simple_kernel(blurred(shake), shake) is None


def test_a_picture_of_noise_tells_nothing():
    noise = torch.rand(100, 100, generator=torch.Generator().manual_seed(0))
    assert simple_kernel(noise, drawn(line, (5.0, 9.0, 1.5))) is None


def test_much_noise_tells_nothing(shake):
    true = drawn(disk, (8.0,))
    found = 0.8 * true + 0.2 * shake
    assert is_simple(simple_kernel(blurred(true, noise=MOST_NOISE / 2), found))
    assert simple_kernel(blurred(true, noise=2 * MOST_NOISE), found) is None


def test_a_tiny_kernel_is_left_alone():
    kernel = torch.full((SMALLEST - 2, SMALLEST - 2), 1 / (SMALLEST - 2) ** 2)
    assert simple_kernel(blurred(kernel), kernel) is None


def test_the_search_ends_with_a_simple_kernel():
    true = drawn(disk, (8.0,))
    found = estimate_kernel(blurred(true), SIZE, starts=2, searches=((5, 0),))
    assert is_simple(found)
    assert kernel_similarity(found.numpy(), true.numpy()) > 0.99


def test_a_kernel_is_apart_from_searches_that_found_others():
    true, other = drawn(disk, (8.0,), (13, 13)), drawn(line, (20.0, 20.0, 1.5), (31, 31))
    y = blurred(true)
    half, small, wrong = size.shrink(y, [n // 2 for n in y.shape]), size.at_half_scale(true), size.at_half_scale(other)
    assert size._apart(size._Short(half, [15, 15], [[wrong], [small]]), true) < 0.02
    assert size._apart(size._Short(half, [15], [[wrong]]), true) > size.MOST_APART


def test_a_disk_that_is_larger_than_the_size_that_was_found(monkeypatch):
    true = drawn(disk, (19.0,), (25, 25))
    cut_off = true[6:19, 6:19] / true[6:19, 6:19].sum()
    monkeypatch.setattr(size, "_kernel_of", lambda y, sizes, progress: cut_off)
    monkeypatch.setattr(size, "_sizes", lambda y, short: [(13, 13)])
    found = size.estimate_kernel_of_any_size(blurred(true)).kernel
    assert is_simple(found)
    assert kernel_similarity(found.numpy(), true.numpy()) > 0.95
