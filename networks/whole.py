"""The image generator's layers in a form for GPUs, with the same mathematics.

What `networks.fused` does block by block, for the caches of a CPU, is done
here with whole tensors, in as few passes over memory as PyTorch's kernels
allow, and nothing waits for the GPU, so that a step can be captured in a CUDA
graph. Under autocast all is computed in the lower type but statistics,
parameters and the last sigmoid.

As there, everything is channels last, a constant per channel in front of a
batch normalisation is left out, and the products of the non-local block are
taken in the order theta (phi^T g).
"""

import torch
import torch.nn.functional as F

from networks.fused import non_local, norm_act, pointwise


def generate(net, z):
    """`SkipGenerator.forward` for z (1, in_channels, H, W)."""
    noise = z = z.contiguous(memory_format=torch.channels_last)
    inputs = []
    for scale in net.scales:
        inputs.append(z)
        z = norm_act(padded_conv(z, scale.down[0]), scale.down[1])
        if scale.non_local is not None:
            z = non_local(z, scale.non_local)
        z = norm_act(padded_conv(z, scale.refine[0]), scale.refine[1])
    for scale, above in zip(reversed(net.scales), reversed(inputs), strict=True):
        skip = norm_act(pointwise(above, scale.skip[0], bias=False), scale.skip[1])
        z = norm_act(join_conv(skip, z, scale.merge_norm, scale.merge[0]), scale.merge[1])
        z = norm_act(pointwise(z, scale.mix[0], bias=False), scale.mix[1])
    return torch.sigmoid(pointwise(z, net.out).to(noise.dtype))


def padded_conv(x, conv):
    """Reflection-padded 3x3 convolution without its bias."""
    weight = conv.weight.contiguous(memory_format=torch.channels_last)
    return F.conv2d(_ReflectionPad.apply(x), weight, stride=conv.stride)


class _ReflectionPad(torch.autograd.Function):
    """Reflection padding by 1 that stays channels last; on a GPU, PyTorch's does not."""

    @staticmethod
    def forward(ctx, x):
        frame, inner = _frame(x.shape[1], x.shape[2:], x)
        inner.copy_(x.permute(0, 2, 3, 1))
        _reflect(frame)
        return frame.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, g):
        # The gradient comes from a convolution and has no other reader, so it may be overwritten.
        return _fold(g.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def join_conv(skip, below, norm, conv):
    """Upsampling, centre crop, concatenation, batch normalisation and reflection-padded 3x3 convolution.

    The joined tensor is written once, into a buffer that has room for the
    padding, and is made again in the backward pass. Normalisation scales and
    shifts each channel, so the scale goes into the weights of the
    convolution, and the shift is a constant per output channel: the result is
    right up to such a constant, which the normalisation that follows takes
    out.

    Parameters
    ----------
    skip : tensor (1, S, H, W)
    below : tensor (1, C, ceil(H / 2), ceil(W / 2))
    norm : BatchNorm2d
        Of the S + C joined channels.
    conv : Conv2d

    Returns
    -------
    tensor (1, O, H, W), channels last
    """
    return _JoinConv.apply(skip, below, norm.weight, conv.weight, norm.eps)


class _JoinConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, skip, below, gamma, weight, eps):
        joined = _join(skip, below)
        mean, variance = _statistics(joined)
        rstd = (variance + eps).rsqrt()
        ctx.save_for_backward(skip, below, gamma, weight, mean, rstd)
        return F.conv2d(joined, _scaled(weight, gamma * rstd, joined))

    @staticmethod
    def backward(ctx, g):
        skip, below, gamma, weight, mean, rstd = ctx.saved_tensors
        joined = _join(skip, below)
        arguments = (g, joined, _scaled(weight, gamma * rstd, joined), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
        g_joined, g_scaled, _ = torch.ops.aten.convolution_backward(*arguments, [True, True, False])
        g_scaled = g_scaled.to(weight.dtype)
        g_scale = (g_scaled * weight).sum((0, 2, 3))
        g_inner, inner = _fold(g_joined.permute(0, 2, 3, 1)), joined.permute(0, 2, 3, 1)[:, 1:-1, 1:-1]
        # The input reaches the scale through the variance; the way through the mean is closed, see above.
        slope = -(rstd**3) * gamma * g_scale / inner[..., 0].numel()
        g_inner += torch.addcmul(-mean * slope, inner, slope)
        channels, (_, below_channels, rows, columns) = skip.shape[1], below.shape
        up = g.new_zeros(1, 2 * rows, 2 * columns, below_channels)
        up[:, : g_inner.shape[1], : g_inner.shape[2]] = g_inner[..., channels:]
        g_below = torch.ops.aten.upsample_bilinear2d_backward(
            up.permute(0, 3, 1, 2), [2 * rows, 2 * columns], list(below.shape), False, 2.0, 2.0
        )
        g_skip = g_inner[..., :channels].permute(0, 3, 1, 2)
        return g_skip, g_below, g_scale * rstd, g_scaled * (gamma * rstd)[:, None, None], None


def _join(skip, below):
    """The joined tensor with its padding, (1, S + C, H + 2, W + 2), channels last."""
    channels, (height, width) = skip.shape[1], skip.shape[2:]
    joined, inner = _frame(channels + below.shape[1], (height, width), skip)
    inner[..., :channels] = skip.permute(0, 2, 3, 1)
    up = F.interpolate(below, scale_factor=2, mode="bilinear", align_corners=False)
    # Upsampling gives at most one row and one column too many; the centre crop takes the first ones.
    inner[..., channels:] = up[:, :, :height, :width].permute(0, 2, 3, 1)
    _reflect(joined)
    return joined.permute(0, 3, 1, 2)


def _frame(channels, size, like):
    """An empty tensor (1, H + 2, W + 2, C) and the view of it without its rim."""
    frame = like.new_empty(1, size[0] + 2, size[1] + 2, channels)
    return frame, frame[:, 1:-1, 1:-1]


def _reflect(frame):
    """Fill the rim by reflection."""
    frame[:, 0], frame[:, -1] = frame[:, 2], frame[:, -3]
    frame[:, :, 0], frame[:, :, -1] = frame[:, :, 2], frame[:, :, -3]


def _fold(g):
    """The gradient of what is inside the rim, from that of the whole, which is overwritten."""
    g[:, :, 2] += g[:, :, 0]
    g[:, :, -3] += g[:, :, -1]
    g[:, 2] += g[:, 0]
    g[:, -3] += g[:, -1]
    return g[:, 1:-1, 1:-1]


def _statistics(joined):
    """Mean and biased variance per channel, in the type of the parameters, of a padded tensor without its padding.

    The statistics of the whole, which lies in memory without gaps, less what
    the rim adds to them.
    """
    mean, variance = torch.ops.aten.batch_norm_update_stats(joined, None, None, 0.0)
    whole = joined[0, 0].numel()
    rim = torch.cat(
        [joined[0, :, :: joined.shape[2] - 1].flatten(1), joined[0, :, 1:-1, :: joined.shape[3] - 1].flatten(1)], 1
    )
    rim = rim - mean[:, None]
    count = whole - rim.shape[1]
    shift = -rim.sum(1) / count
    return mean + shift, (variance * whole - rim.square().sum(1)) / count - shift.square()


def _scaled(weight, scale, like):
    return (weight * scale[:, None, None]).to(like.dtype, memory_format=torch.channels_last)
