"""The arithmetic of a run on a GPU: what is computed in float32, in TF32 or in bfloat16.

Only the image generator is ever computed in less than float32. Blur, loss,
sigmoid, the kernel generator, all parameters and the optimiser stay in float32:
the variances of SSIM are small differences of large numbers.
"""

import contextlib

import torch


@contextlib.contextmanager
def arithmetic(precision, device):
    """Forward and backward pass in here are of a given precision.

    PyTorch lets convolutions use TF32 unless it is told not to, so on a GPU
    both of its switches are set, and set back afterwards.
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
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)
