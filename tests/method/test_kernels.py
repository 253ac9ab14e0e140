"""The image generator with kernels of its own against its plain form.

Without a GPU the kernels run in Triton's interpreter, see `conftest.py`. PyTorch for CPUs comes without Triton:
python -m pip install --no-deps -r requirements-triton.txt
"""

import pytest
import torch

from networks import SkipGenerator, triton_form, whole
from networks.fused import HALF_RANGE
from selfdeblur.precision import generator_type
from selfdeblur.settings import make_settings
from selfdeblur.solver import Z_CHANNELS

if triton_form.kernels is None:
    pytest.skip("NOT TESTED: kernels for GPUs, because Triton is not installed", allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Odd and even sizes, with and without non-local blocks, equal and unequal widths.
CASES = {
    "odd": ((33, 45), (16, 16, 16)),
    "even": ((40, 36), (16, 16, 16)),
    "widths": ((47, 38), (32, 16, 32, 16)),
    "local": ((21, 23), (16, 32)),
}


def gradients(size, channels, form, dtype=torch.float64, precision="float32", by=1.0, inputs=8, non_local_from=2):
    """Image of a form of the generator with fixed random parameters, and the gradient of an error by parameter."""
    torch.manual_seed(0)
    net = SkipGenerator(inputs, channels=channels, non_local_from=non_local_from, plain=True)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    z, target = torch.rand(1, inputs, *size), torch.rand(1, 1, *size)
    net, z, target = (it.to(DEVICE, dtype) for it in (net, z, target))
    with generator_type(precision, z.device):
        x = net(z) if form == "plain" else form(net, z)
    assert x.dtype == dtype
    (x - target).square().mean().mul(by).backward()
    # A bias in front of a normalisation has gradient 0, which other forms leave out.
    return x.detach(), {
        name: torch.zeros_like(p) if p.grad is None else p.grad / by for name, p in net.named_parameters()
    }


def error(found, exact):
    """Of all gradients together, relative."""
    found, exact = (torch.cat([g.flatten().double() for g in gs.values()]) for gs in (found, exact))
    return ((found - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("name", CASES)
def test_the_kernels_equal_the_plain_form(name):
    x, exact = gradients(*CASES[name], "plain")
    y, found = gradients(*CASES[name], triton_form.generate)
    assert (x - y).abs().max() < 1e-12
    for parameter in exact:
        assert (found[parameter] - exact[parameter]).abs().max() < 1e-11, parameter


@pytest.mark.parametrize("preset", ["fast", "best"])
def test_the_networks_of_checks_have_them_too(preset, monkeypatch):
    inputs, channels = Z_CHANNELS, make_settings(preset).channels
    monkeypatch.setattr(triton_form, "_works", lambda *_: True)
    net = SkipGenerator(inputs, channels=channels, non_local_from=len(channels))
    assert triton_form.usable(net, torch.zeros(1, inputs, 320, 320))
    how, channels = {"inputs": inputs, "non_local_from": len(channels)}, channels[:2]
    size = 21, 18
    x, exact = gradients(size, channels, "plain", **how)
    y, found = gradients(size, channels, triton_form.generate, **how)
    assert (x - y).abs().max() < 1e-12
    for parameter in exact:
        assert (found[parameter] - exact[parameter]).abs().max() < 1e-11, parameter


# In the interpreter bfloat16 comes out wrong (an error of 0.1 of the image), which it does not on a card.
@pytest.mark.parametrize("precision", ["float32", "fp16"] + ["bf16"] * (DEVICE == "cuda"))
def test_the_kernels_round_like_the_form_without_them(precision):
    x, exact = gradients(*CASES["odd"], "plain")
    errors, gradient_errors = [], []
    for form in (whole.generate, triton_form.generate):
        # Gradients of the size that a run gives them, see `GRADIENT_SIZE`.
        y, found = gradients(*CASES["odd"], form, torch.float32, precision, by=2.0**12)
        errors.append((x - y).square().mean().sqrt().item())
        gradient_errors.append(error(found, exact))
    assert 0 < errors[1] < 2 * errors[0] < 0.1
    assert 0 < gradient_errors[1] < 2 * gradient_errors[0] < 0.5
    assert precision == "float32" or errors[1] > 1e-5  # what is stored is indeed rounded


def test_a_scale_in_front_of_a_normalisation_changes_nothing():
    assert HALF_RANGE < 1
    x, exact = gradients(*CASES["odd"], "plain", torch.float32)
    y, found = gradients(*CASES["odd"], whole.generate, torch.float32, "fp16", by=2.0**12)
    assert (x - y).abs().max() < 0.05
    assert error(found, exact) < 0.1


def test_what_the_kernels_cannot_do_is_left_to_the_other_form(monkeypatch):
    monkeypatch.setattr(triton_form, "_works", lambda *_: True)
    z = torch.zeros(1, 8, 40, 40)
    assert triton_form.usable(SkipGenerator(8, channels=(16, 32)), z)
    assert not triton_form.usable(SkipGenerator(8, channels=(16, 24)), z)
    assert not triton_form.usable(SkipGenerator(8, channels=(8, 8)), z)
    assert not triton_form.usable(SkipGenerator(8, channels=(16, 32)), z.double())
    monkeypatch.setattr(triton_form, "LARGEST", 40 * 40 * 16)
    assert not triton_form.usable(SkipGenerator(8, channels=(16, 32)), z)


def test_kernels_that_fail_are_told_once_and_left_alone(monkeypatch):
    net, z = SkipGenerator(8, channels=(16, 32)), torch.zeros(1, 8, 40, 40)
    monkeypatch.setattr(triton_form, "_tried", {})
    monkeypatch.setattr(triton_form._Pass, "forward", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match="kernels written for GPUs cannot be used here"):
        assert not triton_form.usable(net, z)
    assert not triton_form.usable(net, z)
    memory = torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(triton_form, "_tried", {})

    def full(*_):
        raise memory

    monkeypatch.setattr(triton_form._Pass, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        triton_form.usable(net, z)
    assert not triton_form._tried
