"""What the power spectrum of a blurry image says of kernels."""

import pytest
import torch
from common import part_blurred as blurred
from skimage import data

from selfdeblur.classical import quality
from selfdeblur.classical.kernels import camera_shake_kernel
from selfdeblur.classical.quality import MOST_SHORTFALL
from selfdeblur.classical.simple import simple_kernel
from selfdeblur.classical.spectrum import Spectrum

NOISE = 2e-3


def shake(seed, size=13):
    return torch.from_numpy(camera_shake_kernel(size, rng=seed)).float()


@pytest.mark.parametrize(
    ("picture", "corner"), [(data.camera, (60, 180)), (data.grass, (0, 0)), (data.coins, (60, 20))]
)
def test_the_true_kernel_explains_the_spectrum_best(picture, corner):
    true = shake(3)
    point = torch.zeros_like(true)
    point[6, 6] = 1
    spectrum = Spectrum(blurred(true, picture, corner), NOISE)
    misfits = spectrum.misfits(torch.stack([true, shake(4), shake(5), point, torch.full_like(true, 1 / 169)]))
    assert int(misfits.argmin()) == 0


def test_a_kernel_and_the_same_turned_cannot_be_told_apart():
    true = shake(3)
    one, other = Spectrum(blurred(true), NOISE).misfits(torch.stack([true, true.flip(0, 1)])).tolist()
    assert one == pytest.approx(other, abs=1e-5)


def test_contrast_and_brightness_do_not_matter():
    true = shake(3)
    y = blurred(true)
    one = Spectrum(y, 2 * NOISE).misfits(true[None])
    other = Spectrum(0.5 * y + 0.3, NOISE).misfits(true[None])
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_many_kernels_at_once_are_judged_as_one_by_one(monkeypatch):
    spectrum = Spectrum(blurred(shake(3)), NOISE)
    kernels = torch.stack([shake(n) for n in range(5)])
    together = spectrum.misfits(kernels)
    monkeypatch.setattr("selfdeblur.classical.spectrum.AT_A_TIME", 1)
    torch.testing.assert_close(spectrum.misfits(kernels), together, atol=1e-5, rtol=0)


def test_some_frequencies_tell_nearly_the_same():
    true = shake(3)
    spectrum = Spectrum(blurred(true), NOISE)
    some = spectrum.at_some_frequencies(4000)
    assert len(some.power) <= 4000 < len(spectrum.power)
    kernels = torch.stack([true, shake(4)])
    of_all, of_some = (form.misfits(kernels).diff().item() for form in (spectrum, some))
    assert of_some == pytest.approx(of_all, rel=0.3)
    assert spectrum.at_some_frequencies(10**9) is spectrum


def test_a_wrong_kernel_falls_short_of_what_the_spectrum_allows():
    true = shake(3)
    spectrum = Spectrum(blurred(true), NOISE)
    right, wrong = spectrum.shortfall(true), spectrum.shortfall(shake(4))
    assert abs(right) < MOST_SHORTFALL < 3 * MOST_SHORTFALL < wrong
    assert spectrum.shortfall(true.double()) == pytest.approx(right)
    assert not true.requires_grad


@pytest.mark.parametrize("side", [7, 8, 13, 20])
def test_a_tiny_picture_tells_nothing(side):
    y = torch.rand(side, side, generator=torch.Generator().manual_seed(0))
    assert not Spectrum(y, NOISE).enough
    assert simple_kernel(y, torch.full((5, 5), 1 / 25)) is None
    assert quality.assess(y, torch.rand(side + 4, side + 4), torch.full((5, 5), 1 / 25))["shortfall"] == 0
