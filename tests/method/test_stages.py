"""Runs with a search, a check and a vote, and what judges a result without the sharp image."""

import copy
import functools
import json

import common
import cv2
import numpy as np
import pytest
import torch
from skimage import data

from networks import KernelGenerator
from selfdeblur import deblur, load_model
from selfdeblur.api import take_steps
from selfdeblur.classical import deconvolve, quality
from selfdeblur.classical.deconvolution import kernel_between
from selfdeblur.classical.judge import busiest_window
from selfdeblur.classical.kernels import camera_shake_kernel
from selfdeblur.data.benchmarks import LEVIN
from selfdeblur.runs.command import benchmark_main
from selfdeblur.settings import DOUBT, PRESETS, make_settings
from selfdeblur.solver import Fit, draw_z_k
from selfdeblur.stages import ESTIMATE, FITTED, LOOK_AFTER, LOOK_EVERY, SIMPLE, Run
from selfdeblur.vote import Choice, vote


def blurred(*arguments):
    """What `common.blurred` gives, as tensors of float32."""
    return tuple(torch.from_numpy(array).float() for array in common.blurred(*arguments))


def short_run(preset, y, kernel_size):
    return Run(y[None, None], (kernel_size, kernel_size), make_settings(preset, num_iter=6))


def finish(run):
    while run.steps_done < run.settings.num_iter:
        run.step()
    return run


def test_settings_survive_json():
    for name in PRESETS:
        fields = make_settings(name).as_dict()
        assert json.loads(json.dumps(fields)) == fields


def test_kernel_generator_starts_at_a_kernel():
    kernel = torch.from_numpy(camera_shake_kernel(9, rng=1)).float()
    net, z = KernelGenerator((9, 9)), draw_z_k(seed=0)
    net.start_at(z, kernel)
    assert (net(z)[0, 0] - kernel).abs().max() < 1e-4


def test_the_check_starts_at_what_the_search_finds(picture, short_search):
    _, _, y = blurred(picture, 48, 5, 1)
    run = short_run("best", y, 5)
    assert (run.stage, run.fit, run.steps_done) == ("", None, 0)
    run.begin()
    assert run.stage == FITTED
    assert (run.fit.outputs()[1][0, 0] - run.kernels[ESTIMATE]).abs().max() < 1e-4
    fit = run.fit
    run.step()
    assert run.fit is fit
    # One that is known already is not searched for.
    other = short_run("best", y, 5)
    other.kernels[ESTIMATE] = torch.full((5, 5), 1 / 25)
    other.begin()
    assert (other.fit.outputs()[1] - 1 / 25).abs().max() < 1e-4


@pytest.mark.parametrize("alone", [True, False])
def test_a_run_ends_after_a_step_where_its_estimate_stands_alone(picture, monkeypatch, alone):
    _, kernel, y = blurred(picture, 48, 5, 1)
    monkeypatch.setattr(quality, "stands_alone", lambda y, kernel: alone)
    run = short_run("fast", y, 5)
    run.kernels["estimate"] = kernel
    assert not run.is_done
    run.step()
    assert run.is_done == alone
    take_steps(run)
    assert run.is_done
    assert run.steps_done == (1 if alone else 6)
    output = run.output()
    assert (output.handed_back == SIMPLE) == alone
    if alone:
        assert torch.equal(output.kernel, kernel)
        assert torch.equal(output.x, deconvolve(y, kernel).clamp(0, 1))


@pytest.mark.parametrize(("apart", "steps"), [(0.8, LOOK_AFTER), (1.2, LOOK_AFTER + 3)])
def test_a_run_ends_early_where_its_check_agrees_closely(picture, monkeypatch, apart, steps):
    _, kernel, y = blurred(picture, 48, 5, 1)
    settings = make_settings("fast", num_iter=LOOK_AFTER + 3)
    monkeypatch.setattr(quality, "disagreement", lambda *_: apart * settings.settled)
    monkeypatch.setattr(quality, "stands_alone", lambda y, kernel: False)
    run = Run(y[None, None], (5, 5), settings)
    run.kernels["estimate"] = kernel
    told = []
    take_steps(run, told.append)
    assert run.steps_done == steps
    assert told[-1]["step"] == told[-1]["steps"] == steps
    assert told[-2]["steps"] == settings.num_iter
    # So early the network has no image yet that could be a part of the result.
    assert (run.output().share == 1) == (steps == LOOK_AFTER)
    # A run that goes on from here knows its end, too.
    again = Run(y[None, None], (5, 5), settings)
    again.load_state_dict(run.state_dict())
    assert again.is_done


@pytest.mark.parametrize("preset", ["fast", "best"])
def test_a_fit_ends_where_it_has_come_to_the_noise(picture, monkeypatch, preset):
    _, kernel, y = blurred(picture, 48, 5, 1)
    residuals = iter([0.02, 0.012, 0.009, 0.008])
    monkeypatch.setattr(Fit, "residual", lambda fit: next(residuals))
    monkeypatch.setattr("selfdeblur.stages.noise_level", lambda y: 0.01)
    monkeypatch.setattr(quality, "stands_alone", lambda y, kernel: False)
    run = Run(y[None, None], (5, 5), make_settings(preset, num_iter=100))
    run.kernels[ESTIMATE] = kernel
    take_steps(run)
    assert run.steps_done == 3 * LOOK_EVERY


def test_the_residual_of_a_fit(picture):
    _, kernel, y = blurred(picture, 48, 5, 1)
    run = Run(y[None, None], (5, 5), make_settings("nonblind"), kernel=kernel[None, None])
    x = run.fit.outputs()[0]
    expected = (torch.nn.functional.conv2d(x, kernel[None, None]) - y).square().mean().sqrt()
    assert run.fit.residual() == pytest.approx(float(expected), rel=1e-4)


def test_a_run_without_a_search_does_all_its_steps(picture):
    _, _, y = blurred(picture, 48, 5, 1)
    run = Run(y[None, None], (5, 5), make_settings(num_iter=2))
    run.step()
    assert not run.is_done
    run.step()
    assert run.is_done


@pytest.fixture
def voted(picture):
    """`vote` for kernels by their source, where another search, if there is to be one, finds ``again``.

    Gives the kernels to go on with, the estimate from then on, whether the result is doubtful, and the reason.
    """
    _, true, y = blurred(picture, 128, 13, 4)
    images = {}

    def deconvolved(kernel):
        key = kernel.numpy().tobytes()
        if key not in images:
            images[key] = deconvolve(y, kernel)
        return images[key]

    def outcome(estimate, check, again, confirmed=0.0):
        calls = []

        def search_again():
            calls.append(again)
            return again

        handed_in = (y, estimate, check)
        before = [kernel.clone() for kernel in handed_in]
        how = {"doubt": DOUBT, "confirmed": confirmed, "deconvolved": deconvolved, "search_again": search_again}
        choice = vote(y, estimate, check, **how)
        assert all(torch.equal(one, two) for one, two in zip(handed_in, before, strict=True))
        assert len(calls) == (again is not None)
        assert choice.estimate is None or choice.estimate is again
        after = estimate if choice.estimate is None else choice.estimate
        return torch.stack(choice.kernels), after, choice.disagreement > DOUBT, choice.reason

    outcome.kernels = true, true.flip(0), torch.full_like(true, 1 / true.numel())
    return outcome


def test_where_two_kernels_disagree_another_search_follows(voted):
    true, wrong, worse = voted.kernels
    for given, expected, estimate, doubtful, reason in (
        ((true, true, None), [true, true], true, False, "estimate and check agree"),
        ((wrong, true, worse), [true], wrong, True, "estimate and check disagree, another search found nothing better"),
        ((wrong, worse, wrong), [worse], wrong, True, "disagree, another search found nothing better"),
        ((wrong, worse, true), [true], true, True, "explains y better than the estimate, no other agrees"),
        ((wrong, true, true), [true, true], true, False, "explains y better and agrees with the check"),
        # Two of three agree, but explain y worse.
        ((true, wrong, wrong), [wrong, wrong], wrong, True, "agrees with the check, but explains y no better"),
        ((true, wrong, worse), [wrong], true, True, "disagree, another search found nothing better"),
    ):
        outcome = voted(*given)
        assert outcome[2] == doubtful
        assert torch.equal(outcome[1], estimate)
        assert torch.equal(outcome[0], torch.stack(expected))
        assert reason in outcome[3]


def test_a_check_that_agrees_closely_confirms_the_estimate(voted):
    true, wrong, _ = voted.kernels
    near = true + 1e-4 * wrong
    near /= near.sum()
    kernels, estimate, doubtful, reason = voted(true, near, None, confirmed=DOUBT)
    assert torch.equal(kernels, true[None])
    assert torch.equal(estimate, true)
    assert not doubtful
    assert reason == "the check confirms the estimate"
    # From no agreement on, a check that differs has its say.
    assert torch.equal(voted(true, near, None)[0], torch.stack([true, near]))


@pytest.fixture(scope="module")
def whole_run(picture):
    """Gives for a preset a short run to its end, and its state after each step."""

    @functools.cache
    def run_of(preset):
        _, _, y = blurred(picture, 48, 5, 1)
        run, states = short_run(preset, y, 5), {}
        while run.steps_done < run.settings.num_iter:
            run.step()
            states[run.steps_done] = copy.deepcopy(run.state_dict())
        return run, states

    return run_of


@pytest.mark.parametrize(("preset", "stop"), [("fast", 1), ("fast", 3), ("fast", 4), ("fast", 5), ("best", 5)])
def test_a_run_with_a_search_resumes_bit_for_bit(whole_run, preset, stop, short_search):
    whole, states = whole_run(preset)
    again = short_run(preset, whole.y[0, 0], 5)
    again.load_state_dict(copy.deepcopy(states[stop]))
    finish(again)
    assert torch.equal(whole.losses, again.losses)
    for a, b in zip(whole.result(), again.result(), strict=True):
        assert torch.equal(a, b)
    assert whole.quality(whole.output()) == again.quality(again.output())


@pytest.mark.parametrize("left", ["estimate", "estimate and check", "check", "another search", "another and check"])
def test_the_image_of_the_network_has_a_share_unless_another_search_is_left_alone(
    picture, monkeypatch, short_search, left
):
    _, _, y = blurred(picture, 48, 5, 1)
    run = finish(short_run("best", y, 5))
    x, check = (output[0, 0] for output in run.fit.outputs())
    estimate = run.kernels[ESTIMATE]
    new = estimate.flip(0)
    names = {"estimate": estimate, "check": check, "another": new}

    def voted(y, estimate, check, **_):
        kernels = tuple(check if name == "check" else k for name, k in names.items() if name in left)
        return Choice(kernels, 0.01, new if "another" in left else None, left)

    monkeypatch.setattr("selfdeblur.stages.vote", voted)
    monkeypatch.setattr(Run, "_against_networks", lambda *_: None)
    output = run.output()
    kernel = torch.stack([k for name, k in names.items() if name in left]).mean(0)
    assert torch.allclose(output.kernel, kernel, atol=1e-6)
    deconvolved = deconvolve(y, output.kernel).clamp(0, 1)
    share = 0 if left == "another search" else run.settings.network_share
    assert torch.allclose(output.x, share * x + (1 - share) * deconvolved, atol=1e-5)
    assert torch.allclose(run.image_state(output)["other"], deconvolved, atol=1e-5)
    assert float(run.image_state(output)["share"]) == pytest.approx(1 - share)


@pytest.mark.parametrize("doubt", [1e9, -1.0])
def test_a_run_ends_with_the_mean_of_kernels_deconvolved(picture, monkeypatch, short_search, doubt):
    monkeypatch.setattr("selfdeblur.vote.clearly_better", lambda y, kernel, other: False)
    monkeypatch.setattr("selfdeblur.stages.clearly_better", lambda y, kernel, other, share: False)
    _, _, y = blurred(picture, 64, 7, 1)
    run = finish(Run(y[None, None], (7, 7), make_settings("fast", num_iter=7, doubt=doubt, confirmed=0.0)))
    check = run.fit.G_k(run.fit.z_k)[0, 0].detach()
    kernel = (run.kernels["estimate"] + check) / 2 if doubt > 0 else check
    assert torch.allclose(run.result()[1], kernel, atol=1e-7)
    deconvolved = deconvolve(y, run.output().kernel).clamp(0, 1)
    share = run.settings.network_share
    assert 0 < share < 0.5
    expected = share * run.fit.outputs()[0][0, 0] + (1 - share) * deconvolved
    assert torch.allclose(run.result()[0], expected[3:-3, 3:-3], atol=1e-5)
    state = run.image_state(run.output())
    assert torch.allclose(state["other"], deconvolved, atol=1e-5)
    assert float(state["share"]) == pytest.approx(1 - share)


@pytest.mark.parametrize("why", ["energy", "noise", None])
def test_the_estimate_is_handed_back(picture, monkeypatch, short_search, why):
    _, _, y = blurred(picture, 64, 7, 1)
    shares = []
    monkeypatch.setattr(
        "selfdeblur.stages.clearly_better",
        lambda y, kernel, other, share: bool(shares.append(share)) or why == "energy",
    )
    most_noise = 0.0 if why == "noise" else 1.0
    run = finish(Run(y[None, None], (7, 7), make_settings("fast", num_iter=7, most_noise=most_noise, confirmed=0.0)))
    output = run.output()
    assert (output.handed_back is not None) == (why is not None)
    assert shares == ([] if why == "noise" else [make_settings("fast").passes])
    assert torch.equal(output.kernel, run.kernels["estimate"]) == (why is not None)
    assert run.quality(output).get("handed_back") == output.handed_back
    # The saved network of the kernel gives that kernel.
    generator = KernelGenerator((7, 7))
    generator.load_state_dict(run.kernel_state(output))
    assert (generator(run.fit.z_k)[0, 0] - output.kernel).abs().max() < 1e-5


def test_the_kernel_between_two_images(picture):
    x, true, y = blurred(picture, 64, 7, 1)
    start = torch.full_like(true, 1 / true.numel())
    found = kernel_between(y, x, start, kernel_weight=0, steps=200)
    assert (found - true).abs().max() < 0.01 * true.max()


def test_a_window_is_fitted_alone(picture, short_search):
    _, _, y = blurred(picture, 64, 5, 1)
    run = Run(y[None, None], (5, 5), make_settings("fast", num_iter=6, window=40))
    run.step()
    assert run.fit.y.shape == (1, 1, 40, 40)
    assert not run.fits_all_of_y
    assert run.result()[0].shape == (64, 64)
    finish(run)
    assert run.result()[0].shape == (64, 64)


def test_busiest_window():
    y = torch.full((60, 80), 0.5)
    y[30:50, 10:30] += 0.2 * torch.rand(20, 20, generator=torch.Generator().manual_seed(0))
    y[5:25, 50:70] = (torch.rand(20, 20, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    rows, columns = busiest_window(y, 24)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (24, 24)
    assert rows.start <= 30
    assert rows.stop >= 50
    assert columns.start <= 10
    assert columns.stop >= 30
    assert busiest_window(y, 70) == (slice(0, 60), slice(0, 70))
    assert busiest_window(torch.zeros(9, 9), 20) == (slice(0, 9), slice(0, 9))


def test_disagreement_sees_wrong_kernels_and_no_shifts(picture):
    _, kernel, y = blurred(picture, 80, 11, 2)
    x = deconvolve(y, kernel)
    assert quality.disagreement(y, x, x, (11, 11)) < 1e-6
    inner = torch.nn.functional.pad(kernel, (1, 1, 1, 1))
    shifted = inner.roll((1, 0), (0, 1))
    wrong = torch.nn.functional.pad(kernel.flip(0, 1), (1, 1, 1, 1))
    x = deconvolve(y, inner)
    near, far = (quality.disagreement(y, x, deconvolve(y, other), (13, 13)) for other in (shifted, wrong))
    assert near < DOUBT
    assert far > 3 * near


@pytest.mark.parametrize(
    ("name", "astray"), [("camera", False), ("retina", False), ("grass", True), ("gravel", True), ("brick", True)]
)
def test_a_trial_tells_pictures_in_which_the_search_goes_astray(name, astray):
    image = getattr(data, name)() / 255
    image = image if image.ndim == 2 else image.mean(2)
    _, kernel, y = blurred(image[100:270, 100:270], 146, 15, 2, 3e-3)
    sharp = deconvolve(y, kernel)
    assert (quality.astray(y, sharp, kernel) > quality.MOST_ASTRAY) == astray
    found = quality.assess(y, sharp.clamp(0, 1), kernel, searched=True)
    assert any("known in a picture like this" in reason for reason in found["reasons"]) == astray
    assert "astray" not in quality.assess(y, sharp.clamp(0, 1), kernel)


def test_known_failures_are_named(picture):
    x, kernel, y = blurred(picture, 64, 11, 2)
    good = quality.assess(y, x, kernel)
    assert not good["doubtful"]
    assert good["misfit"] < 1e-4
    assert quality.assess(y, x, kernel, 2 * DOUBT)["reasons"] == ["two estimates of the kernel disagree"]

    point, flat, rim = torch.zeros(11, 11), torch.full((11, 11), 1 / 121), torch.zeros(11, 11)
    point[5, 5] = 1
    rim[:, 0] = 1 / 11

    def explained(k, image=x):
        return torch.nn.functional.conv2d(image[None, None], k[None, None])[0, 0]

    for k, word in ((point, "single point"), (flat, "spread"), (rim, "border")):
        assert any(word in reason for reason in quality.assess(explained(k), x, k)["reasons"])
    assert any("do not explain" in reason for reason in quality.assess(y, x.flip(0), kernel)["reasons"])
    assert any("rings" in reason for reason in quality.assess(y, x, kernel.T.contiguous())["reasons"])
    assert any("flat" in reason for reason in quality.assess(y, 0 * x, kernel)["reasons"])


@pytest.mark.parametrize("preset", ["fast", "best"])
def test_the_models_of_a_run_with_a_search_give_its_image_again(picture, tmp_path, capsys, preset, short_search):
    _, _, y = blurred(picture, 56, 11, 2)
    (tmp_path / "data").mkdir()
    name = "im1_kernel5_img"
    cv2.imwrite(str(tmp_path / "data" / f"{name}.png"), np.rint(y.numpy() * 255).astype(np.uint8))
    options = ["--data_path", str(tmp_path / "data"), "--save_path", str(tmp_path / "out")]
    assert benchmark_main(LEVIN, [*options, "--preset", preset, "--num_iter", "6", "--device", "cpu"]) == 0
    files = [tmp_path / "out" / f"{name}{suffix}" for suffix in ("_x.png", "_k.png")]
    before = [cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in files]
    record = json.loads((tmp_path / "out" / f"{name}.json").read_text())
    assert record["quality"]["disagreement"] > 0
    reasons = record["quality"]["reasons"]
    assert reasons
    assert f"doubtful: {name}: {'; '.join(reasons)}\n" in capsys.readouterr().out
    for file in files:
        file.unlink()
    assert benchmark_main(LEVIN, [*options, "--reproduce"]) == 0
    for file, image in zip(files, before, strict=True):
        # Other sums of the same numbers may round otherwise.
        assert np.abs(cv2.imread(str(file), cv2.IMREAD_UNCHANGED).astype(int) - image).max() <= 1
    assert load_model(tmp_path / "out" / f"{name}_xnet.pth").image.shape == (56, 56)


@pytest.mark.search
def test_fast_deblurs(picture):
    x, _kernel, y = blurred(picture, 112, 11, 2)
    truth = x[5:-5, 5:-5].numpy()
    result = deblur(y.numpy(), 11, preset="fast", num_iter=120, device="cpu")

    def psnr(image):
        best = 0
        for dy in range(-3, 4):
            for dx in range(-3, 4):
                error = np.roll(image, (dy, dx), (0, 1))[10:-10, 10:-10] - truth[10:-10, 10:-10]
                best = max(best, -10 * np.log10(np.mean(error**2)))
        return best

    assert psnr(result.image) > psnr(y.numpy()) + 3
