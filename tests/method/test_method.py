"""Forward model, losses and solver."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.fft import next_fast_len
from torch.autograd import gradcheck

from networks import KernelGenerator
from selfdeblur import UserError, colour, deblur, forward, losses
from selfdeblur.classical.kernels import camera_shake_kernel
from selfdeblur.forward import centre
from selfdeblur.settings import PRESETS, make_settings
from selfdeblur.solver import draw_z_k, draw_z_x
from selfdeblur.stages import Run


def test_blur_is_the_valid_correlation():
    x = torch.arange(20.0, dtype=torch.float64).view(1, 1, 4, 5)
    k = torch.tensor([[0.5, 0.0, 0.25], [0.0, 0.0, 0.0], [0.0, 0.25, 0.0]], dtype=torch.float64)[None, None]
    expected = torch.tensor([[0.5 * 0 + 0.25 * 2 + 0.25 * 11]], dtype=torch.float64)
    assert torch.allclose(forward.blur(x, k)[0, 0, :1, :1], expected)


@pytest.mark.parametrize(("size", "kernel_size"), [((31, 40), (5, 9)), ((64, 64), (27, 27)), ((9, 9), (9, 9))])
def test_blur_by_fft_equals_the_plain_one(size, kernel_size):
    torch.manual_seed(0)
    results = []
    for blur in (forward.blur, forward.blur_plain):
        torch.manual_seed(0)
        x = torch.rand(1, 1, *size, dtype=torch.float64, requires_grad=True)
        k = torch.rand(1, 1, *kernel_size, dtype=torch.float64, requires_grad=True)
        y = blur(x, k)
        y.square().sum().backward()
        results.append((y, x.grad, k.grad))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-11)


def test_dssim_equals_the_plain_one():
    torch.manual_seed(0)
    y = torch.rand(1, 1, 23, 31, dtype=torch.float64)
    gradients = []
    for loss in (losses.DSSIM(y), lambda y_hat: losses.dssim_plain(y_hat, y)):
        torch.manual_seed(1)
        y_hat = torch.rand(1, 1, 23, 31, dtype=torch.float64, requires_grad=True)
        value = loss(y_hat)
        value.backward()
        gradients.append((value, y_hat.grad))
    assert gradients[0][0].item() == pytest.approx(gradients[1][0].item(), abs=1e-13)
    assert torch.allclose(gradients[0][1], gradients[1][1], rtol=0, atol=1e-13)


def test_dssim_of_equal_images_is_zero():
    y = torch.rand(1, 1, 20, 20, dtype=torch.float64)
    assert losses.DSSIM(y)(y).item() == pytest.approx(0, abs=1e-12)


def test_total_variation_of_a_known_image():
    x = torch.tensor([[0.0, 1.0], [0.0, 3.0]], dtype=torch.float64)
    # Differences down: 0 and 2, mean square 2; across: 1 and 3, mean square 5.
    assert losses.total_variation(x).item() == pytest.approx(2 * (2 + 5))


def test_gradients_in_float64():
    torch.manual_seed(0)
    y = torch.rand(1, 1, 12, 13, dtype=torch.float64)
    y_hat = torch.rand(1, 1, 12, 13, dtype=torch.float64, requires_grad=True)
    x = torch.rand(1, 1, 9, 10, dtype=torch.float64, requires_grad=True)
    k = torch.rand(1, 1, 3, 5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(losses.DSSIM(y), y_hat)
    assert gradcheck(lambda a: losses.mse(a, y), y_hat)
    assert gradcheck(losses.total_variation, x)
    assert gradcheck(forward.blur, (x, k))


def test_given_the_sharp_image_the_kernel_is_recovered(picture):
    k = torch.from_numpy(camera_shake_kernel(9, rng=1)).float()[None, None]
    x = torch.from_numpy(picture[:72, :72]).float()[None, None]
    y = forward.blur_plain(x, k)
    torch.manual_seed(0)
    G_k, z_k = KernelGenerator((9, 9)), draw_z_k(seed=0)
    optimiser = torch.optim.Adam(G_k.parameters(), lr=1e-3)
    dssim = losses.DSSIM(y)
    for _ in range(300):
        optimiser.zero_grad()
        dssim(forward.blur(x, G_k(z_k))).backward()
        optimiser.step()
    estimate = G_k(z_k).detach()
    assert torch.nn.functional.cosine_similarity(estimate.flatten(), k.flatten(), dim=0) > 0.98


def test_given_the_kernel_the_sharp_image_is_recovered(picture):
    kernel = camera_shake_kernel(9, rng=1)
    x = torch.from_numpy(picture[:56, :56])[None, None]
    y = forward.blur_plain(x, torch.from_numpy(kernel)[None, None])[0, 0].numpy()
    truth = x[0, 0, 4:-4, 4:-4].numpy()
    result = deblur(y, preset="nonblind", kernel=kernel, num_iter=80, device="cpu")
    assert np.abs(result.kernel - kernel).max() < 1e-7

    def psnr(image):
        return -10 * np.log10(np.mean((image - truth) ** 2))

    assert psnr(result.image) > psnr(y) + 3


def test_inputs_follow_the_seed():
    z = draw_z_x((20, 24), (5, 7), seed=0)
    assert z.shape == (1, 8, 24, 30)
    assert z.min() >= 0
    assert z.max() <= 0.1
    # As the released program draws it: the seed is set anew for each input.
    assert torch.equal(draw_z_k(seed=0), z.flatten()[:200])
    assert not torch.equal(draw_z_k(seed=1), draw_z_k(seed=0))


def test_centre_lies_over_the_blurry_image():
    x = torch.arange(7 * 9.0).view(1, 1, 7, 9)
    assert torch.equal(centre(x, (3, 5)), x[:, :, 1:-1, 2:-2])
    assert torch.equal(centre(x, (1, 1)), x)


def test_steps_switch_the_data_term_and_halve_the_rates():
    y = torch.rand(1, 1, 36, 36, generator=torch.Generator().manual_seed(0))
    run = Run(y, (3, 3), make_settings(num_iter=6, mse_steps=2, milestones=(3, 5)))
    rates = []
    while run.steps_done < 6:
        run.step()
        rates.append([group["lr"] for group in run.fit.optimiser.param_groups])
    assert [run.settings.data_term(step) for step in range(4)] == ["mse", "mse", "1-ssim", "1-ssim"]
    assert rates == [[0.01 / d, 0.0001 / d] for d in (1, 1, 1, 2, 2, 4)]
    # 1 - SSIM of an image not yet fitted is far above its mean squared error.
    assert run.losses[2] > 3 * run.losses[1]


def test_paper_preset_adds_total_variation():
    y = torch.rand(1, 1, 36, 36, generator=torch.Generator().manual_seed(0))
    runs = [Run(y, (3, 3), make_settings("paper", num_iter=1, tv_weight=weight)) for weight in (0.0, 1.0)]
    for run in runs:
        run.step()
    with torch.no_grad():
        fit = Run(y, (3, 3), runs[0].settings).fit
        x = fit.G_x(fit.z_x + 1e-3 * torch.randn(fit.z_x.shape, generator=fit.rng))
    added = (runs[1].losses[0] - runs[0].losses[0]).item()
    assert added == pytest.approx(losses.total_variation(x).item(), rel=1e-4)


def test_a_resumed_run_equals_one_that_never_stopped():
    y = torch.rand(1, 1, 36, 40, generator=torch.Generator().manual_seed(0))
    settings = make_settings(num_iter=6, mse_steps=3, milestones=(4,))
    whole = Run(y, (5, 5), settings)
    while whole.steps_done < 6:
        whole.step()
    part = Run(y, (5, 5), settings)
    for _ in range(2):
        part.step()
    again = Run(y, (5, 5), settings)
    again.load_state_dict(part.state_dict())
    while again.steps_done < 6:
        again.step()
    assert torch.equal(whole.losses, again.losses)
    for a, b in zip(whole.result(), again.result(), strict=True):
        assert torch.equal(a, b)


def test_the_same_seed_gives_the_same_result(picture):
    y = picture[:40, :44]
    a, b, c = (deblur(y, 5, num_iter=3, seed=seed, device="cpu") for seed in (0, 0, 1))
    assert np.array_equal(a.image, b.image)
    assert np.array_equal(a.kernel, b.kernel)
    assert not np.array_equal(a.image, c.image)


def test_result_of_a_colour_image(picture):
    y = np.stack([picture[:40, :44], 0.5 * picture[:40, :44], 0.9 * picture[:40, :44]], axis=2)
    result = deblur((y * 255).astype(np.uint8), (5, 3), num_iter=2, device="cpu")
    assert result.image.shape == y.shape
    assert result.kernel.shape == (5, 3)
    assert result.history["loss"].shape == (2,)


@pytest.mark.parametrize(
    ("dtype", "largest"), [(np.uint8, 255), (np.uint16, 2600), (np.uint16, 65535), (np.float32, 1), (np.float64, 1)]
)
def test_a_result_is_of_the_kind_of_the_image(picture, dtype, largest):
    y = (picture[:40, :44] / picture[:40, :44].max() * largest).astype(dtype)
    wanted = deblur(y, 5, num_iter=2, device="cpu")
    assert wanted.image.dtype == dtype
    assert wanted.image.shape == y.shape
    assert 0.3 * largest < wanted.image.max() <= 1.3 * largest
    tensor = torch.from_numpy(y.astype(np.int32) if dtype == np.uint16 else y)
    if dtype == np.uint16:
        tensor = tensor.to(torch.uint16)
    result = deblur(tensor, 5, num_iter=2, device="cpu")
    assert result.image.dtype == tensor.dtype
    assert np.array_equal(result.image.numpy(), wanted.image)


def test_colours_may_stand_on_any_axis(picture):
    y = np.stack([picture[:40, :44], 0.5 * picture[:40, :44], 0.9 * picture[:40, :44]], axis=2).astype(np.float32)
    wanted = deblur(y, 5, num_iter=2, device="cpu").image
    for axis in (0, 1, 2, -3):
        moved = deblur(np.moveaxis(y, -1, axis), 5, num_iter=2, device="cpu", channel_axis=axis).image
        assert np.array_equal(np.moveaxis(moved, axis, -1), wanted)
    with pytest.raises(UserError, match="channel_axis"):
        deblur(y, 5, num_iter=2, device="cpu", channel_axis=3)


def test_half_precision_comes_back_as_such(picture):
    y = torch.from_numpy(picture[:40, :44]).to(torch.bfloat16)
    assert deblur(y, 5, num_iter=1, device="cpu").image.dtype == torch.bfloat16


def test_the_callback_is_called_once_a_step_and_may_end_it(picture):
    y, told = picture[:40, :44], []
    result = deblur(y, 5, num_iter=3, device="cpu", callback=told.append)
    assert [step["step"] for step in told] == [1, 2, 3]
    assert [step["loss"] for step in told] == result.history["loss"].tolist()
    assert all(step["steps"] == 3 and step["stage"] == "release" and step["seconds"] > 0 for step in told)
    assert told[-1]["left"] == 0
    stopped = deblur(y, 5, num_iter=3, device="cpu", callback=lambda step: step["step"] == 2)
    assert np.array_equal(stopped.history["loss"], result.history["loss"][:2])
    assert stopped.image.shape == y.shape


def test_noise_sets_the_weight_and_no_size_is_estimated(picture, monkeypatch):
    y = picture[:40, :44]
    assert deblur(y, 5, num_iter=1, device="cpu", noise=0.02).settings.tv_weight == pytest.approx(2e-3)
    assert deblur(y, 5, num_iter=1, device="cpu", noise=0.02, tv_weight=0.5).settings.tv_weight == 0.5
    monkeypatch.setattr("selfdeblur.api.estimate_size", lambda image: (7, 9))
    assert deblur(y, num_iter=1, device="cpu").kernel.shape == (7, 9)


def test_luminance_is_replaced_and_chroma_kept():
    rng = np.random.default_rng(0)
    image = 0.3 + 0.4 * rng.random((6, 7, 3))
    y = colour.luminance(image)
    assert np.abs(y - image @ [0.299, 0.587, 0.114]).max() < 1e-6
    assert np.abs(colour.with_luminance(image, y) - image).max() < 1e-3
    moved = colour.with_luminance(image, y + 0.1)
    assert np.abs(moved - image - 0.1).max() < 1e-3
    assert np.array_equal(colour.with_luminance(image[:, :, 0], y), y)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"kernel_size": 4}, "kernel_size"),
        ({"kernel_size": (5, 0)}, "kernel_size"),
        ({"kernel_size": (5, 5, 5)}, "kernel_size"),
        ({"noise": 2}, "noise"),
        ({"kernel_size": 51}, "smaller than the kernel"),
        ({"num_iter": 0}, "num_iter"),
        ({"seed": -1}, "seed"),
        ({"preset": "magic"}, "preset"),
        ({"preset": "nonblind"}, "kernel"),
        ({"kernel": np.ones((5, 5))}, "nonblind"),
        ({"preset": "nonblind", "kernel": np.zeros((5, 5))}, "sums to 0"),
        ({"preset": "nonblind", "kernel": -np.ones((5, 5))}, "negative"),
        ({"tv_weight": float("nan")}, "tv_weight"),
        ({"network_share": 1.5}, "network_share"),
        ({"device": "abacus"}, "device"),
    ],
)
def test_a_mistake_is_named(arguments, word):
    y = np.full((40, 40), 0.5)
    with pytest.raises(UserError, match=word) as error:
        deblur(y, **{"kernel_size": 5, "num_iter": 1, "device": "cpu", **arguments})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "y",
    [
        np.full((40, 40), np.nan),
        np.full((40, 40), 200.0),
        np.zeros((40, 40, 4)),
        np.zeros((20, 20)),
        np.zeros((40, 40), int),
        np.zeros((0, 40)),
        np.zeros(40),
    ],
)
def test_an_image_that_is_not_usable_is_refused(y):
    with pytest.raises(UserError, match="image"):
        deblur(y, 5, num_iter=1, device="cpu")


def test_presets_differ_from_the_release_where_they_say():
    release = make_settings("release")
    assert (release.num_iter, release.mse_steps, release.tv_weight) == (5000, 1000, 0)
    changed = {
        name: {k for k in dataclasses.asdict(release) if getattr(make_settings(name), k) != getattr(release, k)}
        for name in PRESETS
    }
    assert changed == {
        name: set(changes) | ({"preset"} if name != "release" else set()) for name, (_, changes) in PRESETS.items()
    }


def test_low_memory_is_a_setting_of_the_run():
    y = torch.rand(1, 1, 36, 36, generator=torch.Generator().manual_seed(0))
    losses = []
    for low_memory in (False, True):
        settings = make_settings(num_iter=1, mse_steps=0, low_memory=low_memory)
        # Results from before there was the setting are those of settings without it.
        assert settings.as_dict().get("low_memory", False) is low_memory
        assert ("low_memory" in settings.as_dict()) is low_memory
        run = Run(y, (3, 3), settings)
        assert run.fit.G_x.low_memory is low_memory
        run.step()
        losses.append(run.losses[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    with pytest.raises(UserError, match="low_memory"):
        make_settings(low_memory=1)


def test_lengths_of_fast_transforms():
    for n in range(1, 5001):
        assert forward.fast_length(n) == 4 * next_fast_len(-(-n // 4), real=True), n
