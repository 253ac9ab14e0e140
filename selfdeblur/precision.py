"""The arithmetic of a run on a GPU: what is computed in float32, in TF32, in float16 or in bfloat16.

Only the image generator is ever computed in less than float32. Blur, loss,
sigmoid, the kernel generator, all parameters and the optimiser stay in float32:
the variances of SSIM are small differences of large numbers.
"""

import contextlib

import torch

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

# Root mean square of the image's gradient on its way into a generator in float16, where numbers below 6e-5 have fewer
# digits and those above 65504 are infinite. Behind it, the medians of gradients by layer lie between 4e-4 and 10 of it,
# and the largest one at 6000 (measured over 80 steps on an image of Levin); the sigmoid takes a quarter or less.
GRADIENT_SIZE = 4.0
# Small images leave few positions to the deepest normalisations, whose gradients are larger: after an infinite one the
# size is less by the first factor, and with each step more by the second, up to the one above.
LESS, MORE = 1 / 4, 2 ** (1 / 200)


@contextlib.contextmanager
def arithmetic(precision, device):
    """Forward and backward pass in here are of a given precision.

    PyTorch lets convolutions use TF32 unless it is told not to, so on a GPU
    both of its switches are set, and set back afterwards. That of matrix
    products stays off, for blur and loss have such.
    """
    if device.type != "cuda":
        yield
        return
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch, allowed in zip(switches, (precision == "tf32", False), strict=True):
            switch.allow_tf32 = allowed
        yield
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed


def generator_type(precision, device):
    """Context in which the image generator is called."""
    # Each weight is used once a step, so a cache of converted weights would only stand in the way of a CUDA graph.
    dtype = TYPES.get(precision)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False)


def gradient_scale(precision, like):
    """What the gradients inside the image generator are multiplied by, and the size that it aims at, as a tensor (2,).

    None where they are not scaled.
    """
    return like.new_tensor([1.0, GRADIENT_SIZE]) if precision == "fp16" else None


def scaled_gradient(x, scale):
    """The image x as it is; its gradient is multiplied by a power of 2 that suits float16, kept in ``scale``.

    Without a scale nothing is done.
    """
    return x if scale is None else _Scaled.apply(x, scale)


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        factor, aim = ctx.scale
        size = torch.linalg.vector_norm(g).clamp_(min=1e-30) / g.numel() ** 0.5
        factor.copy_(torch.exp2(torch.log2(aim / size).round_()))
        return g * factor, None


def unscale(parameters, scale, optimiser):
    """Take the scale out of the gradients of parameters behind `scaled_gradient`.

    Where one of them is not finite, the next step of the optimiser, a fused
    one, leaves everything as it is, and the scale of later steps is less.
    Without a scale nothing is done.
    """
    if scale is None:
        return
    factor, aim = scale
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    overflow = torch.zeros_like(factor)
    torch._amp_foreach_non_finite_check_and_unscale_(gradients, overflow, factor.reciprocal())
    # It is where torch.amp.GradScaler tells it the same.
    optimiser.found_inf = overflow
    aim.copy_(torch.where(overflow > 0, aim * LESS, (aim * MORE).clamp(max=GRADIENT_SIZE)))
