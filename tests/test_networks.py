"""The generators compute what the original ones compute, in the plain and in the fused form."""

import collections
import json
from pathlib import Path

import pytest
import torch

from networks import KernelGenerator, SkipGenerator
from selfdeblur.forward import blur, blur_plain
from selfdeblur.images import read_image
from selfdeblur.losses import DSSIM, dssim_plain, mse

FINGERPRINT = json.loads(Path(__file__).with_name("fingerprint.json").read_text())
PLAIN = pytest.mark.parametrize("plain", [True, False], ids=["plain", "fused"])


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def fill(net):
    """Fill the parameters by the rule that goes with the fingerprint."""
    for module in net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            j = torch.arange(parameter.numel(), dtype=torch.float64)
            if parameter.dim() >= 2:
                values = torch.sin(1 + 0.7 * j) * (2 / parameter[0].numel()) ** 0.5
            elif name == "weight":
                values = 1 + 0.1 * torch.sin(j)
            else:
                values = 0.05 * torch.cos(j)
            parameter.data.copy_(values.view(parameter.shape))
    return net


def z_x(height, width):
    c, r, s = (torch.arange(n, dtype=torch.float64) for n in (8, height, width))
    return 0.05 * (1 + torch.sin(0.3 * (c[:, None, None] + 1) * r[:, None] + 0.2 * s + c[:, None, None]))[None]


def z_k():
    return 0.05 * (1 + torch.sin(torch.arange(200, dtype=torch.float64)))


def test_parameter_counts_and_shapes():
    net = SkipGenerator()
    shapes = collections.Counter(str(list(p.shape)) for p in net.parameters())
    assert sum(p.numel() for p in net.parameters()) == FINGERPRINT["generator_parameters"]
    assert len(list(net.parameters())) == FINGERPRINT["generator_parameter_tensors"]
    assert shapes == FINGERPRINT["generator_parameter_shapes"]
    kernel_net = KernelGenerator((17, 17))
    assert sum(p.numel() for p in kernel_net.parameters()) == FINGERPRINT["kernel_parameters_17x17"]


@PLAIN
def test_image_generator_output(plain):
    expected = FINGERPRINT["generator_output"]
    _, _, height, width = expected["input"]
    x = fill(SkipGenerator(plain=plain))(z_x(height, width)).detach()
    assert list(x.shape) == expected["shape"]
    assert x.mean().item() == pytest.approx(expected["mean"], abs=1e-9)
    assert x.std().item() == pytest.approx(expected["std_unbiased"], abs=1e-9)
    assert x[0, 0, 50, [0, 10, 20, 90]].tolist() == pytest.approx(expected["row_50_columns_0_10_20_90"], abs=1e-9)
    assert x[0, 0, 0, 0].item() == pytest.approx(expected["first_pixel"], abs=1e-9)
    assert x[0, 0, -1, -1].item() == pytest.approx(expected["last_pixel"], abs=1e-9)


def test_kernel_generator_output():
    expected = FINGERPRINT["kernel_output"]
    k = fill(KernelGenerator((17, 17)))(z_k()).detach()
    assert k.shape == (1, 1, 17, 17)
    assert k.sum().item() == pytest.approx(expected["sum"], abs=1e-9)
    assert k.max().item() == pytest.approx(expected["max"], abs=1e-9)
    assert k.argmax().item() == expected["argmax"]
    assert k.flatten()[:3].tolist() == pytest.approx(expected["first_3"], abs=1e-9)


def test_loss_trajectory(levin):
    """Six joint steps of Adam, and at each of them the loss by the fused form for the same parameters.

    The fused form does not walk the path by itself: Adam divides by gradients
    that are zero but for rounding, so another order of summation, or another
    number of threads, sends the plain form itself 1e-6 astray within six steps.
    """
    y = torch.from_numpy(read_image(levin / "im1_kernel1_img.png")[64:156, 64:140])[None, None]
    G_x, G_k = fill(SkipGenerator(plain=True)), fill(KernelGenerator((17, 17)))
    fused = SkipGenerator()
    optimiser = torch.optim.Adam([{"params": G_x.parameters(), "lr": 0.01}, {"params": G_k.parameters(), "lr": 1e-4}])
    dssim = DSSIM(y)
    plain_losses, fused_losses = [], []
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    for step in range(6):
        x, k = G_x(z_x(108, 92)), G_k(z_k())
        y_hat = blur_plain(x, k)
        loss = mse(y_hat, y) if step < 3 else dssim_plain(y_hat, y)
        plain_losses.append(loss.item())
        with torch.no_grad():
            fused.load_state_dict(G_x.state_dict())
            y_hat = blur(fused(z_x(108, 92)), k)
            fused_losses.append((mse(y_hat, y) if step < 3 else dssim(y_hat)).item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.set_num_threads(threads)
    expected = pytest.approx(FINGERPRINT["loss_trajectory_float64_3mse_3ssim"], rel=1e-8)
    assert plain_losses == expected
    assert fused_losses == expected


def outputs_and_gradients(size, dtype, *, plain):
    """Output of a generator with fixed random parameters, and the gradient of an error by parameter name."""
    torch.manual_seed(0)
    net = SkipGenerator(plain=plain)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    z, target = torch.rand(1, 8, *size), torch.rand(1, 1, *size)
    net = net.to(dtype)
    x = net(z.to(dtype))
    mse(x, target.to(dtype)).backward()
    # A bias in front of a normalisation has gradient 0, which the fused form leaves out.
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in net.named_parameters()}
    return x.detach(), gradients


@pytest.mark.parametrize("size", [(61, 75), (64, 48), (33, 33)])
def test_fused_form_equals_the_plain_one(size):
    x, gradients = outputs_and_gradients(size, torch.float64, plain=True)
    y, others = outputs_and_gradients(size, torch.float64, plain=False)
    assert (x - y).abs().max() < 1e-12
    for name, gradient in gradients.items():
        assert (gradient - others[name]).abs().max() < 1e-9, name


# Not so small that the deepest scale normalises by a handful of positions, which makes rounding a matter of chance.
@pytest.mark.parametrize("size", [(100, 90), (97, 139)])
def test_fused_form_rounds_like_the_plain_one(size):
    exact, exact_gradients = outputs_and_gradients(size, torch.float64, plain=True)
    errors, gradient_errors = [], []
    for plain in (True, False):
        x, gradients = outputs_and_gradients(size, torch.float32, plain=plain)
        errors.append((x - exact).square().sum().item() ** 0.5)
        squares = [(gradients[n] - g).square().sum().item() for n, g in exact_gradients.items()]
        gradient_errors.append(sum(squares) ** 0.5)
    # The fused form leaves the mean of the joined tensor in and so rounds two to four times as coarsely.
    assert errors[1] < 10 * errors[0]
    assert gradient_errors[1] < 10 * gradient_errors[0]


def test_kernel_sums_to_one_for_any_weights():
    net = KernelGenerator((5, 9))
    for parameter in net.parameters():
        parameter.data.normal_(0, 3)
    k = net(torch.rand(200))
    assert k.shape == (1, 1, 5, 9)
    assert k.min() >= 0
    assert k.sum().item() == pytest.approx(1)


def test_generator_of_another_shape():
    net = SkipGenerator(3, 2, channels=(8, 16, 24), skip_channels=4, non_local_from=1)
    plain = SkipGenerator(3, 2, channels=(8, 16, 24), skip_channels=4, non_local_from=1, plain=True)
    plain.load_state_dict(net.state_dict())
    z = torch.rand(1, 3, 37, 50)
    assert net(z).shape == (1, 2, 37, 50)
    assert torch.allclose(net(z), plain(z), atol=1e-12)
