"""Kernels that trails of lights show."""

import cv2
import numpy as np
import pytest
import torch
from skimage import data

from selfdeblur.api import start
from selfdeblur.classical import estimate_kernel, trails
from selfdeblur.classical.kernels import camera_shake_kernel
from selfdeblur.classical.size import estimate_kernel_of_any_size, estimate_size
from selfdeblur.classical.trails import kernel_of_trails
from selfdeblur.forward import blur
from selfdeblur.restore import restore
from selfdeblur.scores.metrics import kernel_similarity, psnr
from selfdeblur.settings import make_settings
from selfdeblur.stages import TRAILS

KERNEL = camera_shake_kernel(17, rng=4)


def night(lights=12, brightness=8.0, kernel=KERNEL, noise=0.003):
    """A dark blurry photograph (H, W) with lights that are brighter than white, and the sharp one."""
    rng = np.random.default_rng(3)
    x = 0.2 * data.coffee()[60:300, 100:380].mean(2) / 255
    for row, column in rng.integers(15, 220, (lights, 2)):
        x[row, column] = brightness * (0.5 + rng.random())
    y = blur(*(torch.from_numpy(a)[None, None] for a in (x, kernel)))[0, 0].numpy()
    y = (y + noise * rng.standard_normal(y.shape)).clip(0, 1)
    h, w = (n // 2 for n in kernel.shape)
    return torch.from_numpy(np.rint(y * 255) / 255).float(), x[h:-h, w:-w].clip(0, 1)


def test_trails_show_the_kernel_in_correlation_sense():
    y, _ = night()
    found = kernel_of_trails(y, (17, 17))
    assert kernel_similarity(found.numpy(), KERNEL) > 0.95
    assert kernel_similarity(found.rot90(2, (0, 1)).numpy(), KERNEL) < 0.9
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    assert torch.equal(estimate_kernel(y, (17, 17)), found)


def test_trails_are_put_together_from_pieces():
    thin = camera_shake_kernel(31, rng=5)
    y, _ = night(kernel=thin, brightness=20.0)
    pieces, _ = cv2.connectedComponents((y.numpy() > np.median(y) + 0.15).astype(np.uint8))
    found = kernel_of_trails(y, (31, 31))
    assert kernel_similarity(found.numpy(), thin) > 0.9
    assert pieces > 13


def test_where_the_same_pixels_of_all_trails_are_clipped_they_are_not_refined(monkeypatch):
    monkeypatch.setattr(trails, "refine_kernel", lambda *args, **kwargs: pytest.fail("refined"))
    y, _ = night(brightness=60.0)
    assert kernel_similarity(kernel_of_trails(y, (17, 17)).numpy(), KERNEL) > 0.8


def test_the_size_of_trails_is_seen():
    y, _ = night()
    found = estimate_kernel_of_any_size(y).kernel
    assert estimate_size(y) == tuple(found.shape)
    assert found.shape[0] in (19, 27)
    assert kernel_similarity(found.numpy(), KERNEL) > 0.9


def test_without_lights_there_are_no_trails():
    for image in (data.camera(), data.coins(), data.page(), 255 - data.page(), data.brick()):
        y = torch.from_numpy(image[:200, :200] / 255).float()
        kernel = torch.from_numpy(KERNEL).float()
        assert kernel_of_trails(blur(y[None, None], kernel[None, None])[0, 0], (17, 17)) is None
    assert kernel_of_trails(night(lights=2)[0], (17, 17)) is None


@pytest.mark.parametrize("preset", ["quick", "fast"])
def test_a_night_scene_becomes_better(preset):
    y, x = night()
    result = restore(y.numpy(), preset=preset)
    assert psnr(result.image.clip(0, 1), x) > psnr(y.numpy(), x) + 1
    assert "lights" in " ".join(result.notes)
    assert result.improved


def test_a_run_hands_back_the_kernel_that_trails_show(thin):
    y, _ = night()
    run = start(y[:170, :210].numpy(), (17, 17), make_settings("fast", num_iter=2, seed=0))
    assert kernel_of_trails(y[:170, :210], (17, 17)) is not None
    while run.steps_done < run.settings.num_iter:
        run.step()
    output = run.output()
    assert output.handed_back == TRAILS
    assert torch.equal(output.kernel, kernel_of_trails(y[:170, :210], (17, 17)))
    assert run.quality(output)["handed_back"] == TRAILS
