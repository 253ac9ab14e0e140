"""The image generator's layers in a form that moves less memory, with the same mathematics.

Each function stands for the layers of `networks.skip` that its docstring
names and equals them to rounding. What they have in common:

- Everything is channels last, so a 1x1 convolution is one matrix product and
  batch normalisation reads memory in order.
- A bias, or any other constant per channel, in front of a batch normalisation
  has no effect, and its gradient is exactly 0: it is left out.
- What is cheap to compute again in the backward pass is not kept.
"""

import torch
import torch.nn.functional as F

SLOPE = 0.2
# Positions worked on at a time where several cheap operations follow each other, so that they stay in the cache.
BLOCK = 2048


def generate(net, z):
    """`SkipGenerator.forward` for z (1, in_channels, H, W)."""
    z = z.contiguous(memory_format=torch.channels_last)
    inputs = []
    for scale in net.scales:
        inputs.append(z)
        z = _padded_conv(z, scale.down[0])
        z = norm_act(z, scale.down[1])
        if scale.non_local is not None:
            z = non_local(z, scale.non_local)
        z = norm_act(_padded_conv(z, scale.refine[0]), scale.refine[1])
    for scale, above in zip(reversed(net.scales), reversed(inputs), strict=True):
        skip = norm_act(pointwise(above, scale.skip[0], bias=False), scale.skip[1])
        z = join_conv(skip, z, scale.merge_norm, scale.merge[0])
        z = norm_act_pointwise(z, scale.merge[1], scale.mix[0])
        if scale is not net.scales[0]:
            z = norm_act(z, scale.mix[1])
    z = norm_act_pointwise(z, net.scales[0].mix[1], net.out)
    return torch.sigmoid(z + net.out.bias[:, None, None])


def norm_act(x, norm):
    """Batch normalisation and LeakyReLU of x (1, C, H, W)."""
    return F.leaky_relu_(F.batch_norm(x, None, None, norm.weight, norm.bias, True, 0.0, norm.eps), SLOPE)


def pointwise(x, conv, *, bias=True):
    """1x1 convolution of x (1, C, H, W) as a matrix product over its positions."""
    weight = conv.weight.flatten(1)
    y = F.linear(x.permute(0, 2, 3, 1), weight, conv.bias if bias else None)
    return y.permute(0, 3, 1, 2)


def non_local(x, block):
    """`NonLocal` with the products in the order theta (phi^T g): no matrix of positions x positions."""
    theta = pointwise(x, block.theta)
    phi = F.max_pool2d(pointwise(x, block.phi), 2).flatten(2)
    g = F.max_pool2d(pointwise(x, block.g), 2).flatten(2)
    product = phi @ g.transpose(1, 2) / phi.shape[2]
    y = F.linear(theta.permute(0, 2, 3, 1), (product[0] @ block.out.weight.flatten(1).t()).t())
    norm = block.norm
    y = F.batch_norm(y.permute(0, 3, 1, 2), None, None, norm.weight, norm.bias, True, 0.0, norm.eps)
    return x + y


def join_conv(skip, below, norm, conv):
    """Upsampling, centre crop, concatenation, batch normalisation and reflection-padded 3x3 convolution.

    The joined tensor is written once, into a buffer that has room for the
    padding. Normalisation scales and shifts each channel, so the scale goes
    into the weights of the convolution, and the shift is a constant per
    output channel: the result is right up to such a constant, which the
    normalisation that follows takes out.

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
        mean, variance = _inner_statistics(joined)
        rstd = (variance + eps).rsqrt()
        scaled = _scaled(weight, gamma * rstd)
        ctx.save_for_backward(skip, below, gamma, weight, mean, rstd)
        return F.conv2d(joined, scaled)

    @staticmethod
    def backward(ctx, g):
        skip, below, gamma, weight, mean, rstd = ctx.saved_tensors
        joined = _join(skip, below)
        arguments = (g, joined, _scaled(weight, gamma * rstd), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
        g_joined = torch.ops.aten.convolution_backward(*arguments, [True, False, False])[0]
        g_scaled = torch.ops.aten.convolution_backward(*arguments, [False, True, False])[1]
        g_scale = (g_scaled * weight).sum((0, 2, 3))
        g_joined = g_joined.permute(0, 2, 3, 1)
        g_joined[:, :, 2] += g_joined[:, :, 0]
        g_joined[:, :, -3] += g_joined[:, :, -1]
        g_joined[:, 2] += g_joined[:, 0]
        g_joined[:, -3] += g_joined[:, -1]
        g_inner, inner = g_joined[:, 1:-1, 1:-1], joined.permute(0, 2, 3, 1)[:, 1:-1, 1:-1]
        # The input reaches the scale through the variance; the way through the mean is closed, see above.
        slope = -(rstd**3) * gamma * g_scale / inner[..., 0].numel()
        g_inner.addcmul_(inner, slope).sub_(mean * slope)
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
    joined = skip.new_empty(1, height + 2, width + 2, channels + below.shape[1])
    inner = joined[:, 1:-1, 1:-1]
    inner[..., :channels] = skip.permute(0, 2, 3, 1)
    up = F.interpolate(below, scale_factor=2, mode="bilinear", align_corners=False)
    # Upsampling gives at most one row and one column too many; the centre crop takes the first ones.
    inner[..., channels:] = up[:, :, :height, :width].permute(0, 2, 3, 1)
    joined[:, 0], joined[:, -1] = joined[:, 2], joined[:, -3]
    joined[:, :, 0], joined[:, :, -1] = joined[:, :, 2], joined[:, :, -3]
    return joined.permute(0, 3, 1, 2)


def _inner_statistics(joined):
    """Mean and biased variance per channel of a padded tensor without its padding.

    The statistics of the whole, which lies in memory without gaps, less what
    the rim adds to them.
    """
    mean, variance = _statistics(joined)
    whole = joined[0, 0].numel()
    rim = torch.cat(
        [joined[0, :, :: joined.shape[2] - 1].flatten(1), joined[0, :, 1:-1, :: joined.shape[3] - 1].flatten(1)], 1
    )
    rim = rim - mean[:, None]
    count = whole - rim.shape[1]
    shift = -rim.sum(1) / count
    return mean + shift, (variance * whole - rim.square().sum(1)) / count - shift.square()


def _scaled(weight, scale):
    return (weight * scale[:, None, None]).contiguous(memory_format=torch.channels_last)


def norm_act_pointwise(x, norm, conv):
    """Batch normalisation, LeakyReLU and a 1x1 convolution without its bias; x is (1, C, H, W).

    Neither the normalised nor the activated tensor is kept: each block of
    positions goes through all three while it is in the cache.
    """
    return _NormActPointwise.apply(x, norm.weight, norm.bias, conv.weight.flatten(1), norm.eps)


class _NormActPointwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gamma, beta, weight, eps):
        flat = _flat(x)
        mean, variance = _statistics(x)
        rstd = (variance + eps).rsqrt()
        scale = gamma * rstd
        shift = beta - mean * scale
        out = flat.new_empty(len(flat), len(weight))
        for block in _blocks(len(flat)):
            z = F.leaky_relu_(torch.addcmul(shift, flat[block], scale), SLOPE)
            torch.mm(z, weight.t(), out=out[block])
        ctx.save_for_backward(x, gamma, beta, weight, mean, rstd)
        return _unflat(out, x)

    @staticmethod
    def backward(ctx, g_out):
        x, gamma, beta, weight, mean, rstd = ctx.saved_tensors
        flat, g_out = _flat(x), _flat(g_out)
        g = torch.empty_like(flat)
        g_weight, g_beta, g_gamma = torch.zeros_like(weight), torch.zeros_like(beta), torch.zeros_like(gamma)
        offset = -mean * rstd
        for block in _blocks(len(flat)):
            normal = torch.addcmul(offset, flat[block], rstd)
            z = F.leaky_relu_(torch.addcmul(beta, normal, gamma), SLOPE)
            g_weight.addmm_(g_out[block].t(), z)
            torch.mm(g_out[block], weight, out=g[block])
            torch.ops.aten.leaky_relu_backward.grad_input(g[block], z, SLOPE, True, grad_input=g[block])
            g_beta += g[block].sum(0)
            g_gamma += normal.mul_(g[block]).sum(0)
        # Batch normalisation backward: scale (g - mean(g) - normal mean(g normal)), the rest per channel.
        scale = gamma * rstd
        slope = -scale * rstd * g_gamma / len(flat)
        constant = -scale * g_beta / len(flat) - slope * mean
        for block in _blocks(len(flat)):
            torch.addcmul(constant, g[block], scale, out=g[block])
            g[block].addcmul_(flat[block], slope)
        return _unflat(g, x), g_gamma, g_beta, g_weight, None


def _padded_conv(x, conv):
    """Reflection-padded 3x3 convolution without its bias."""
    weight = conv.weight.contiguous(memory_format=torch.channels_last)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, stride=conv.stride)


def _statistics(x):
    """Per channel mean and (biased) variance of x (1, C, H, W)."""
    return torch.ops.aten.batch_norm_update_stats(x, None, None, 0.0)


def _flat(x):
    """(1, C, H, W) as positions x channels."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _unflat(flat, like):
    _, _, height, width = like.shape
    return flat.view(1, height, width, -1).permute(0, 3, 1, 2)


def _blocks(positions):
    return (slice(start, start + BLOCK) for start in range(0, positions, BLOCK))
