"""SelfDeblur among the methods of deepinv. `bash .ci/deepinv` makes an environment in which all of these run."""

import importlib
import os
import sys
import types

import numpy as np
import pytest
import torch
from common import similarity
from skimage import data
from skimage.transform import downscale_local_mean
from torch.utils.data import DataLoader, Dataset

from selfdeblur import UserError, deblur
from selfdeblur.colour import chroma, luminance
from selfdeblur.errors import MissingExtraError
from selfdeblur.forward import blur

try:
    import deepinv
    from deepinv.loss.metric import PSNR
    from deepinv.physics import Blur, BlurFFT, Denoising, Downsampling, GaussianNoise

    from selfdeblur.deepinv import SelfDeblur
except (ImportError, RuntimeError) as error:
    if os.environ.get("SELFDEBLUR_REQUIRE_DEEPINV"):
        raise
    deepinv, found = None, str(error).split("\n")[0]
    NOT_TESTED = f"NOT TESTED: the reconstructor of deepinv ({found}); bash .ci/deepinv does"
else:
    NOT_TESTED = ""

needs_deepinv = pytest.mark.skipif(deepinv is None, reason=NOT_TESTED)
SIZE, STEPS = (7, 5), 3


@pytest.fixture(scope="module")
def kernel():
    """A lopsided kernel for a convolution (1, 1, 7, 5)."""
    k = np.random.default_rng(0).random(SIZE) * np.linspace(0, 1, SIZE[0])[:, None]
    return torch.tensor(k / k.sum(), dtype=torch.float32)[None, None]


@pytest.fixture(scope="module")
def x():
    """Two sharp colour images (2, 3, 46, 52)."""
    image = downscale_local_mean(data.astronaut()[:368, 60:476] / 255, (8, 8, 1))
    return torch.tensor(np.stack([image, image[::-1, ::-1]]), dtype=torch.float32).movedim(-1, 1)


def model(**options):
    return SelfDeblur(**{"preset": "release", "num_iter": STEPS, **options})


def grey(x):
    return x.mean(1, keepdim=True)


def array(tensor):
    """The image or kernel of a batch of one, as an array."""
    return np.ascontiguousarray(tensor[0, 0].numpy())


@needs_deepinv
def test_the_residual_is_that_of_our_forward_model(x, kernel, thin):
    physics = Blur(kernel, padding="valid")
    y = physics(grey(x))
    m = model()
    x_hat = m(y, physics)
    assert x_hat.shape == grey(x).shape
    assert m.kernel_.shape == (2, 1, *SIZE)
    assert torch.allclose(m.kernel_.sum((2, 3)), torch.ones(2, 1))
    ours = blur(x_hat, m.kernel_.flip(-2, -1)) - y
    physics.update(filter=m.kernel_)
    assert torch.allclose(physics.A(x_hat) - y, ours, atol=1e-6)
    assert not torch.allclose(Blur(m.kernel_.flip(-2, -1))(x_hat) - y, ours, atol=1e-6)


@needs_deepinv
@pytest.mark.parametrize("padding", ["valid", "circular", "replicate", "reflect", "fft"])
def test_the_result_is_that_of_deblur(x, kernel, padding, thin):
    sharp = grey(x)[:1]
    physics = BlurFFT(sharp.shape[1:], kernel) if padding == "fft" else Blur(kernel, padding=padding)
    y = physics(sharp)
    m = model(seed=5)
    x_hat = m(y, physics)
    expected = deblur(array(y.clamp(0, 1)), SIZE, preset="release", num_iter=STEPS, seed=5, device="cpu")
    assert x_hat.shape == sharp.shape
    middle = x_hat[:, :, 3:-3, 2:-2] if padding == "valid" else x_hat
    assert np.array_equal(array(middle), expected.image)
    assert np.array_equal(array(m.kernel_), np.rot90(expected.kernel, 2))
    assert m.quality_ == [expected.quality]


@needs_deepinv
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_works_with_and_without_gradients(x, kernel, mode, thin):
    with mode():
        physics = Blur(kernel)
        y = physics(grey(x)[:1])
        x_hat = model()(y, physics)
    assert not x_hat.requires_grad
    assert torch.equal(x_hat, model()(y.clone(), physics))


@needs_deepinv
def test_an_image_does_not_depend_on_its_batch(x, kernel, thin):
    physics = Blur(kernel)
    y = physics(x)
    m = model()
    x_hat, kernels = m(y, physics), m.kernel_
    for number in range(2):
        assert torch.equal(m(y[number : number + 1], physics)[0], x_hat[number])
        assert torch.equal(m.kernel_[0], kernels[number])


@needs_deepinv
def test_colours_are_sharpened_with_the_kernel_of_the_luminance(x, kernel, thin):
    physics = Blur(kernel)
    y = physics(x[:1])
    m = model()
    x_hat = m(y, physics)
    assert x_hat.shape == x[:1].shape
    assert x_hat.min() >= 0
    assert x_hat.max() <= 1
    image, blurry = (np.ascontiguousarray(t[0].movedim(0, -1).numpy()) for t in (x_hat, y))
    expected = deblur(luminance(blurry), SIZE, preset="release", num_iter=STEPS, device="cpu")
    assert np.array_equal(array(m.kernel_), np.rot90(expected.kernel, 2))
    physics.update(filter=m.kernel_)
    reblurred = physics.A(torch.tensor(np.stack(chroma(image)))[None])
    planes = torch.tensor(np.stack(chroma(blurry)))[None]
    assert (reblurred - planes).abs().mean() < 0.01
    # What is there is the colour of the image, and not that of grey.
    assert (planes - 0.5).abs().mean() > 0.03


@needs_deepinv
def test_the_size_may_be_given_or_estimated(x, kernel, thin, short_search):
    y = Blur(kernel, padding="circular")(grey(x)[:1])
    m = model(kernel_size=9)
    assert m(y, Blur(kernel)).shape[-2:] == (54, 60)
    assert m.kernel_.shape[-2:] == (9, 9)
    m = model()
    assert m(y, Blur(None, padding="circular")).shape == y.shape
    assert m.kernel_.shape[-1] >= 13


@needs_deepinv
def test_other_types_come_back(x, kernel, thin):
    physics = Blur(kernel).double()
    y = physics(grey(x)[:1].double())
    m = model()
    assert m(y, physics).dtype == m.kernel_.dtype == torch.float64
    physics.update(filter=m.kernel_)


class Pair(Dataset):
    """One sharp image (1, H, W) with its measurement, as `deepinv.test` reads them."""

    def __init__(self, x, y):
        self.item = {"x": x, "y": y}

    def __len__(self):
        return 1

    def __getitem__(self, number):
        return self.item


@needs_deepinv
@pytest.mark.search
def test_blur_is_taken_out_in_the_trial_of_deepinv(monkeypatch):
    """The preset fast in `deepinv.test`: nearer to the truth than the blurry image, with the right kernel."""
    sharp = data.camera()[80:352:4, 120:392:4] / 255
    sharp = torch.tensor(sharp, dtype=torch.float32)[None, None]
    true = torch.zeros(1, 1, 9, 9)
    true[..., 4, 2:7] = torch.tensor([0.1, 0.1, 0.2, 0.3, 0.3])
    physics = Blur(true, padding="valid", noise_model=GaussianNoise(1e-3, torch.Generator().manual_seed(0)))
    y = physics(sharp)
    seen = []
    solve = SelfDeblur.forward
    monkeypatch.setattr(SelfDeblur, "forward", lambda self, *given: seen.append(solve(self, *given)) or seen[-1])
    m = SelfDeblur()
    results = deepinv.test(m, DataLoader(Pair(sharp[0], y[0])), physics, metrics=PSNR(), verbose=False)
    (x_hat,) = seen
    assert results["PSNR"] == pytest.approx(PSNR()(x_hat, sharp).item(), abs=1e-3)
    assert results["PSNR"] > results["PSNR no learning"] + 5
    assert not m.quality_[0]["doubtful"]
    # Turned by 180 degrees the true kernel is less like itself than this, 0.88.
    assert similarity(array(m.kernel_), array(true)) > 0.95
    physics.update(filter=m.kernel_)
    assert (physics.A(x_hat) - y).square().mean().sqrt() < 0.01


@needs_deepinv
def test_what_cannot_be_used_is_named(x, kernel):
    m, physics = model(), Blur(kernel)
    y = physics(grey(x))
    for wrong, of, word in (
        (y, Denoising(), "physics: Denoising: a deepinv.physics.Blur"),
        (y, Downsampling((1, 46, 52), filter="gaussian", factor=2), "physics: Downsampling"),
        (y, Blur(torch.ones(1, 1, 4, 5) / 20), "its filter is 4 x 5"),
        (2 * y - 1, physics, "the range is 0 to 1, found -"),
        (y * 255, physics, "the range is 0 to 1"),
        (y[0], physics, r"found \(1, 40, 48\)"),
        (y[:0], physics, "the batch is empty"),
        (y.expand(2, 2, 40, 48), physics, r"found \(2, 2, 40, 48\)"),
        (array(y), physics, "found ndarray"),
        (y * torch.nan, physics, "not finite"),
        (y[..., :20, :20], physics, "too small"),
    ):
        with pytest.raises(UserError, match=word):
            m(wrong, of)
    assert not hasattr(m, "kernel_")
    with pytest.raises(UserError, match="preset nonblind"):
        SelfDeblur("nonblind")
    with pytest.raises(UserError, match="kernel_size: 4"):
        SelfDeblur(kernel_size=4)


def test_without_deepinv_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepinv.models", None)
    monkeypatch.delitem(sys.modules, "selfdeblur.deepinv", raising=False)
    with pytest.raises(MissingExtraError, match=r'needs deepinv: pip install "selfdeblur\[deepinv\]"') as caught:
        importlib.import_module("selfdeblur.deepinv")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, ImportError)


def test_a_torchvision_for_another_pytorch_is_named(monkeypatch):
    def fail(name):
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    broken = types.ModuleType("deepinv.models")
    broken.__getattr__ = fail
    monkeypatch.setitem(sys.modules, "deepinv", types.ModuleType("deepinv"))
    monkeypatch.setitem(sys.modules, "deepinv.models", broken)
    monkeypatch.delitem(sys.modules, "selfdeblur.deepinv", raising=False)
    with pytest.raises(MissingExtraError, match=r"are no pair: .* \(operator torchvision::nms does not exist\)$"):
        importlib.import_module("selfdeblur.deepinv")
