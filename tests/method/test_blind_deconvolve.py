"""The call in the manner of scikit-image is `deblur`, with other names."""

import numpy as np
import pytest
import torch

from selfdeblur import UserError, blind_deconvolve, deblur

SEED = 3


def stop_early(step):
    """A callback that ends the fit at its second step."""
    return step["step"] == 2


def the_same(image, **options):
    image, kernel = blind_deconvolve(image, 5, callback=stop_early, **options)
    return image, kernel


def test_it_is_deblur(picture, thin):
    y = picture[:40, :48]
    image, kernel = the_same(y, rng=SEED)
    result = deblur(y, 5, preset="fast", seed=SEED, callback=stop_early)
    assert np.array_equal(image, result.image)
    assert np.array_equal(kernel, result.kernel)
    assert image.shape == y.shape
    assert image.dtype == y.dtype
    assert kernel.shape == (5, 5)
    assert kernel.sum() == pytest.approx(1)


def test_a_generator_is_a_seed(picture, thin):
    y = picture[:40, :48]
    images = [the_same(y, rng=np.random.default_rng(seed))[0] for seed in (1, 1, 2)]
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])
    assert np.array_equal(the_same(y, rng=np.int64(SEED))[0], the_same(y, rng=SEED)[0])
    generator = np.random.default_rng(1)
    assert np.array_equal(the_same(y, rng=generator)[0], images[0])
    assert not np.array_equal(the_same(y, rng=generator)[0], images[0])


def test_colours_need_their_axis(picture, thin):
    y = np.stack([picture[:40, :48]] * 3)
    with pytest.raises(UserError, match="channel_axis"):
        blind_deconvolve(np.moveaxis(y, 0, -1), 5)
    image, _ = the_same(y, channel_axis=0)
    last, _ = the_same(np.moveaxis(y, 0, -1), channel_axis=-1)
    assert image.shape == y.shape
    assert np.array_equal(np.moveaxis(image, 0, -1), last)


def test_a_tensor_comes_back_as_one(picture, thin):
    y = torch.from_numpy(picture[:40, :48])
    image, kernel = the_same(y)
    assert isinstance(image, torch.Tensor)
    assert image.dtype == y.dtype
    assert isinstance(kernel, np.ndarray)


@pytest.mark.parametrize(
    ("options", "word"),
    [({"rng": "seven"}, "rng: 'seven'"), ({"rng": -1}, "seed: -1"), ({"preset": "slow"}, "preset: 'slow'")],
)
def test_a_mistake_is_named(picture, options, word):
    with pytest.raises(UserError, match=word):
        blind_deconvolve(picture[:40, :48], 5, **options)
