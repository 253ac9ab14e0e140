"""The image generator G_x: an encoder-decoder with skip connections and non-local blocks."""

import torch
import torch.nn.functional as F
from torch import nn

from networks import fused, triton_form, whole

# Channels from which on strips that stay in the cache pay: with 32 a step is a third faster without them.
WIDE = 64


class SkipGenerator(nn.Module):
    """Image generator of SelfDeblur (paper, section 3.1; layers as in the released program).

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the noise z_x and of the image.
    channels : sequence of int
        Channels of each scale, finest first.
    skip_channels : int
        Channels of each skip branch.
    non_local_from : int
        Index of the first scale whose encoder holds a non-local block; the
        released program has them at scales 3 to 5, which is index 2.
    plain : bool
        Run the layers one by one as they are written here, instead of in the
        form of `networks.fused`, `networks.whole` or `networks.triton_form`,
        which give the same numbers to rounding.
    in_strips : bool, optional
        Take `networks.fused` on a CPU; by default for scales of `WIDE`
        channels and more, and with ``low_memory``. A GPU, and autocast, have
        `networks.whole`; a GPU with Triton has `networks.triton_form`.
    low_memory : bool
        Compute more of what the backward pass needs again instead of keeping
        it (on the CPU); the same numbers, to rounding.
    """

    def __init__(
        self,
        in_channels=8,
        out_channels=1,
        *,
        channels=(128,) * 5,
        skip_channels=16,
        non_local_from=2,
        plain=False,
        low_memory=False,
        in_strips=None,
    ):
        super().__init__()
        self.plain, self.low_memory = plain, low_memory
        self.in_strips = channels[0] >= WIDE or low_memory if in_strips is None else in_strips
        self.scales = nn.ModuleList()
        for i, width in enumerate(channels):
            below = channels[min(i + 1, len(channels) - 1)]
            self.scales.append(
                _Scale(channels[i - 1] if i else in_channels, width, below, skip_channels, i >= non_local_from)
            )
        self.out = nn.Conv2d(channels[0], out_channels, 1)

    def forward(self, z):
        """Map z, shape (1, in_channels, H, W), to an image of shape (1, out_channels, H, W) within 0 to 1."""
        if not self.plain:
            if z.is_cuda and triton_form.usable(self, z):
                return triton_form.generate(self, z)
            if z.is_cuda or torch.is_autocast_enabled(z.device.type) or not self.in_strips:
                return whole.generate(self, z)
            return fused.generate(self, z, low_memory=self.low_memory)
        noise, inputs = z, []
        for scale in self.scales:
            inputs.append(z)
            z = scale.encode(z)
        for scale, above in zip(reversed(self.scales), reversed(inputs), strict=True):
            z = scale.decode(above, z)
        return torch.sigmoid(self.out(z).to(noise.dtype))


class _Scale(nn.Module):
    """One scale: the encoder unit down to half the size, the skip branch, and the decoder unit back up."""

    def __init__(self, in_channels, width, below, skip_channels, non_local):
        super().__init__()
        self.down = _ConvNormAct(in_channels, width, 3, stride=2)
        self.non_local = NonLocal(width) if non_local else None
        self.refine = _ConvNormAct(width, width, 3)
        self.skip = _ConvNormAct(in_channels, skip_channels, 1)
        self.merge_norm = _norm(skip_channels + below)
        self.merge = _ConvNormAct(skip_channels + below, width, 3)
        self.mix = _ConvNormAct(width, width, 1)

    def encode(self, x):
        x = self.down(x)
        return self.refine(x if self.non_local is None else self.non_local(x))

    def decode(self, above, below):
        up = F.interpolate(below, scale_factor=2, mode="bilinear", align_corners=False)
        joined = torch.cat(_centre_crop([self.skip(above), up]), dim=1)
        return self.mix(self.merge(self.merge_norm(joined)))


class _ConvNormAct(nn.Sequential):
    """Reflection-padded convolution, batch normalisation, LeakyReLU 0.2."""

    def __init__(self, in_channels, out_channels, size, stride=1):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, padding_mode="reflect"),
            _norm(out_channels),
            nn.LeakyReLU(0.2),
        )


class NonLocal(nn.Module):
    """Dot-product non-local block without softmax (Wang et al., CVPR 2018, as in the released program).

    The output is x + BN(W((theta phi^T / N) g)), N the number of pooled
    positions. Weight and bias of the normalisation start at 0, so the block
    starts as the identity.
    """

    def __init__(self, channels):
        super().__init__()
        inner = channels // 2
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        self.g = nn.Conv2d(channels, inner, 1)
        self.out = nn.Conv2d(inner, channels, 1)
        self.norm = _norm(channels)
        nn.init.zeros_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)

    def forward(self, x):
        theta = self.theta(x).flatten(2)
        phi = F.max_pool2d(self.phi(x), 2).flatten(2)
        g = F.max_pool2d(self.g(x), 2).flatten(2)
        attention = theta.transpose(1, 2) @ phi / phi.shape[2]
        y = (attention @ g.transpose(1, 2)).transpose(1, 2)
        return x + self.norm(self.out(y.reshape(1, -1, *x.shape[2:])))


def _norm(channels):
    # The generator is fitted to one image and always normalised by that image's own statistics.
    return nn.BatchNorm2d(channels, track_running_stats=False)


def _centre_crop(tensors):
    """Cut tensors to their smallest height and width, keeping the centre."""
    height = min(t.shape[2] for t in tensors)
    width = min(t.shape[3] for t in tensors)
    cropped = []
    for t in tensors:
        top, left = (t.shape[2] - height) // 2, (t.shape[3] - width) // 2
        cropped.append(t[:, :, top : top + height, left : left + width])
    return cropped
