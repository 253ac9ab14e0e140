"""The image generator's layers in a form that moves less memory, with the same mathematics.

Each function stands for the layers of `networks.skip` that its docstring
names and equals them to rounding. What they have in common:

- Everything is channels last, so a 1x1 convolution is one matrix product and
  batch normalisation reads memory in order.
- A bias, or any other constant per channel, in front of a batch normalisation
  has no effect, and its gradient is exactly 0: it is left out.
- What is cheap to compute again in the backward pass is not kept.
"""

from collections import namedtuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from networks.winograd import TiledConv

SLOPE = 0.2
# Positions worked on at a time: where cheap operations follow each other, and of a convolution.
BLOCK = 2048
STRIP = 3300
# Positions from which on a 3x3 convolution is done in tiles.
TILED = 16384

# By this, in float16, the product of a non-local block is smaller: it was seen to reach 4500 within 80 steps.
HALF_RANGE = 2.0**-8

_Upsampling = namedtuple("_Upsampling", ["sums", "bands"])


def generate(net, z, *, low_memory=False):
    """`SkipGenerator.forward` for z (1, in_channels, H, W)."""
    z = z.contiguous(memory_format=torch.channels_last)
    inputs = []
    for scale in net.scales:
        inputs.append(z)
        z = checkpoint(encode, z, scale, use_reentrant=False) if low_memory else encode(z, scale)
    for scale, above in zip(reversed(net.scales), reversed(inputs), strict=True):
        skip = norm_act(pointwise(above, scale.skip[0], bias=False), scale.skip[1])
        z = decode(skip, z, scale, net.out if scale is net.scales[0] else None, low_memory=low_memory)
    return torch.sigmoid(z + net.out.bias[:, None, None])


def encode(x, scale):
    """`_Scale.encode` of x (1, C, H, W)."""
    x = _padded_conv(x, scale.down[0])
    if scale.non_local is None:
        return refine(x, scale)
    x = non_local(norm_act(x, scale.down[1]), scale.non_local)
    return norm_act(_padded_conv(x, scale.refine[0]), scale.refine[1])


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
    weight = block.out.weight.flatten(1)
    # Sums over all positions, which under autocast may leave the range of the lower type.
    with torch.autocast(x.device.type, enabled=False):
        phi, g = phi.to(weight.dtype), g.to(weight.dtype)
        product = phi @ g.transpose(1, 2) / phi.shape[2]
        both = (product[0] @ weight.t()).t()
        down = 1
        if theta.dtype == torch.float16:
            # Nothing limits the values in front of a normalisation, and nothing changes where its eps goes with them.
            down = HALF_RANGE
            both = both * down
    y = F.linear(theta.permute(0, 2, 3, 1), both)
    norm = block.norm
    y = F.batch_norm(y.permute(0, 3, 1, 2), None, None, norm.weight, norm.bias, True, 0.0, norm.eps * down**2)
    return x + y


def decode(skip, below, scale, out=None, *, low_memory=False):
    """`_Scale.decode` from the output of its skip branch on; with ``out``, also that 1x1 convolution without its bias.

    Upsampled and joined tensor, normalised and activated ones exist only for a
    strip of rows or a block of positions at a time, while they are in the
    cache. What is kept is the output of the 3x3 convolution and that of the
    1x1 convolution; with ``low_memory`` only the former.

    Parameters
    ----------
    skip : tensor (1, S, H, W)
    below : tensor (1, C, ceil(H / 2), ceil(W / 2))
    scale : _Scale
    out : Conv2d, optional

    Returns
    -------
    tensor (1, O, H, W), channels last
    """
    merge, mix = scale.merge, scale.mix
    y = _Decode.apply(
        _positions(skip),
        _positions(below),
        scale.merge_norm.weight,
        merge[0].weight,
        merge[1].weight,
        merge[1].bias,
        mix[0].weight.flatten(1),
        mix[1].weight,
        mix[1].bias,
        None if out is None else out.weight.flatten(1),
        merge[1].eps,
        low_memory,
    )
    return _image(y)


class _Decode(torch.autograd.Function):
    """The joined tensor is j, the output of the merge convolution c1, that of the mix convolution c2.

    Normalisation of j scales and shifts each channel: the scale goes into the
    weights of the convolution, and the shift is a constant per output channel,
    which the normalisation that follows takes out.
    """

    @staticmethod
    def forward(ctx, skip, below, gamma0, weight1, gamma1, beta1, weight2, gamma2, beta2, weight3, eps, low_memory):
        join = _Join(skip, below)
        mean0, variance0 = join.statistics()
        rstd0 = (variance0 + eps).rsqrt()
        conv = _conv(weight1 * (gamma0 * rstd0)[:, None, None], skip)
        height, width, _ = skip.shape
        c1 = skip.new_empty(height, width, len(weight1))
        norm1 = _Norm(*_convolve(join, conv, c1), gamma1, beta1, eps)
        c1 = c1.flatten(0, 1)
        c2 = None if low_memory else torch.empty_like(c1[:, : len(weight2)])
        moments = _Moments(c1.new_empty(2, len(list(_blocks(c1))), len(weight2)))
        for block in _blocks(c1):
            z = norm1.activated(c1[block])
            moments.add(torch.mm(z, weight2.t(), out=None if c2 is None else c2[block]))
        norm2 = _Norm(*moments.merged(), gamma2, beta2, eps)
        y = c1.new_empty(len(c1), len(weight2) if weight3 is None else len(weight3))
        for block in _blocks(c1):
            z = norm1.activated(c1[block]).mm(weight2.t()) if c2 is None else c2[block]
            z = norm2.activated(z)
            if weight3 is None:
                y[block] = z
            else:
                torch.mm(z, weight3.t(), out=y[block])
        ctx.save_for_backward(
            skip, below, gamma0, weight1, weight2, weight3, mean0, rstd0, c1, c2, *norm1.tensors, *norm2.tensors
        )
        return y.view(height, width, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, g_y):
        skip, below, gamma0, weight1, weight2, weight3, mean0, rstd0, c1, c2, *rest = ctx.saved_tensors
        norm1, norm2 = _Norm.again(rest[:4]), _Norm.again(rest[4:])
        g_y = g_y.flatten(0, 1)

        def c2_of(block, z=None):
            if c2 is not None:
                return c2[block]
            return (norm1.activated(c1[block]) if z is None else z).mm(weight2.t())

        def g_of(block):
            """Gradient of the activated c2."""
            return g_y[block] if weight3 is None else g_y[block].mm(weight3)

        def g_c2_of(block, x):
            return norm2.input_gradient(norm2.masked(g_of(block), norm2.activated(x)), x)

        g_weight3 = None if weight3 is None else torch.zeros_like(weight3)
        for block in _blocks(c1):
            x = c2_of(block)
            z = norm2.activated(x)
            if weight3 is not None:
                g_weight3.addmm_(g_y[block].t(), z)
            norm2.collect(norm2.masked(g_of(block), z), x)
        norm2.close(len(c1))
        g_weight2 = torch.zeros_like(weight2)
        for block in _blocks(c1):
            z = norm1.activated(c1[block])
            g = g_c2_of(block, c2_of(block, z))
            g_weight2.addmm_(g.t(), z)
            g = norm1.masked(g.mm(weight2), z)
            norm1.collect(g, c1[block])
            if c2 is not None:
                c2[block] = g
        norm1.close(len(c1))

        join = _Join(skip, below)
        conv = _conv(weight1 * (gamma0 * rstd0)[:, None, None], skip)
        height, width, _ = skip.shape
        for rows in _strips(skip):
            block = slice(rows.start * width, rows.stop * width)
            if c2 is None:
                z = norm1.activated(c1[block])
                g = norm1.masked(g_c2_of(block, c2_of(block, z)).mm(weight2), z)
            else:
                g = c2[block]
            g = norm1.input_gradient(g, c1[block]).view(-1, width, len(weight1))
            strip = join.fill(conv.buffer(rows.stop - rows.start, width), rows)
            join.add_gradient(rows, conv.backward(strip, g))
        g_scaled = conv.weight_gradient()
        g_scale = (g_scaled * weight1).sum((0, 2, 3))
        # The input reaches the scale through the variance; the way through the mean is closed, see above.
        join.add_variance_gradient(mean0, -(rstd0**3) * gamma0 * g_scale / (height * width))
        return (
            join.g_skip,
            join.g_below,
            g_scale * rstd0,
            g_scaled * (gamma0 * rstd0)[:, None, None],
            norm1.g_gamma,
            norm1.g_beta,
            g_weight2,
            norm2.g_gamma,
            norm2.g_beta,
            g_weight3,
            None,
            None,
        )


def refine(x, scale):
    """`_Scale.encode` without non-local block from the normalisation in its middle on, for x (1, C, H, W).

    What is kept is x and the output of the convolution.
    """
    before, conv, after = scale.down[1], scale.refine[0], scale.refine[1]
    y = _Refine.apply(_positions(x), before.weight, before.bias, conv.weight, after.weight, after.bias, before.eps)
    return _image(y)


class _Refine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gamma1, beta1, weight, gamma2, beta2, eps):
        norm1 = _Norm(*_statistics(x), gamma1, beta1, eps)
        c = x.new_empty(*x.shape[:2], len(weight))
        norm2 = _Norm(*_convolve(_Activated(x, norm1), _conv(weight, x), c), gamma2, beta2, eps)
        y = torch.empty_like(c)
        for source, target in _block_pairs(c, y):
            target.copy_(norm2.activated(source))
        ctx.save_for_backward(x, weight, c, *norm1.tensors, *norm2.tensors)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g_y):
        x, weight, c, *rest = ctx.saved_tensors
        norm1, norm2 = _Norm.again(rest[:4]), _Norm.again(rest[4:])
        height, width, _ = x.shape
        for block, g in _block_pairs(c, g_y):
            norm2.collect(norm2.masked(g, norm2.activated(block)), block)
        norm2.close(height * width)
        source, conv = _Activated(x, norm1), _conv(weight, x)
        for rows in _strips(x):
            g = norm2.input_gradient(norm2.masked(g_y[rows], norm2.activated(c[rows])), c[rows])
            strip = source.fill(conv.buffer(rows.stop - rows.start, width), rows)
            source.add_gradient(rows, conv.backward(strip, g))
        g_x = source.g_x
        for block, g in _block_pairs(x, g_x):
            g.copy_(norm1.masked(g, norm1.activated(block)))
            norm1.collect(g, block)
        norm1.close(height * width)
        for block, g in _block_pairs(x, g_x):
            g.copy_(norm1.input_gradient(g, block))
        return g_x, norm1.g_gamma, norm1.g_beta, conv.weight_gradient(), norm2.g_gamma, norm2.g_beta, None


class _Activated:
    """A normalised and activated tensor, a strip of rows at a time; x is (H, W, C)."""

    def __init__(self, x, norm):
        self.x, self.norm = x, norm
        self.g_x = None

    def fill(self, buffer, rows):
        """As `_Join.fill`."""
        inner, around = _inner(buffer, rows, self.x.shape)
        torch.addcmul(self.norm.shift, self.x[around], self.norm.scale, out=inner)
        F.leaky_relu_(inner, SLOPE)
        return _reflected(buffer, rows, self.x.shape)

    def add_gradient(self, rows, g):
        """Hand the gradient of a strip, which is overwritten, on to ``g_x``, that of the activated tensor."""
        if self.g_x is None:
            self.g_x = torch.zeros_like(self.x)
        inner, around = _inner(_folded(g, rows, self.x.shape), rows, self.x.shape)
        self.g_x[around] += inner


class _Join:
    """Upsampling by 2, centre crop to the size of ``skip`` and concatenation, a strip of rows at a time.

    Parameters
    ----------
    skip : tensor (H, W, S)
    below : tensor (ceil(H / 2), ceil(W / 2), C)
        Upsampling gives at most one row and one column too many; the centre crop takes the first ones.
    """

    def __init__(self, skip, below):
        self.skip, self.below = skip, below
        self.height, self.width, self.channels = skip.shape
        # Upsampling is A below B^T; A^T A and B^T B have three diagonals.
        self.rows, self.columns = (_upsampling(n, below) for n in skip.shape[:2])
        self.g_skip = self.g_below = None

    def fill(self, buffer, rows):
        """Write the joined rows and their reflection-padded surroundings to buffer[: rows + 2, : W + 2]."""
        inner, around = _inner(buffer, rows, self.skip.shape)
        inner[..., : self.channels] = self.skip[around]
        self._upsample(rows, around, inner[..., self.channels :])
        return _reflected(buffer, rows, self.skip.shape)

    def add_gradient(self, rows, g):
        """Hand the gradient of a strip, which is overwritten, on to ``g_skip`` and ``g_below``."""
        if self.g_skip is None:
            self.g_skip, self.g_below = torch.zeros_like(self.skip), torch.zeros_like(self.below)
        inner, around = _inner(_folded(g, rows, self.skip.shape), rows, self.skip.shape)
        self.g_skip[around] += inner[..., : self.channels]
        up = inner[..., self.channels :]
        even, odd = up[:, ::2], up[:, 1::2]
        narrow = 0.75 * even
        narrow[:, : odd.shape[1]].add_(odd, alpha=0.75)
        narrow[:, 0].add_(even[:, 0], alpha=0.25)
        narrow[:, :-1].add_(even[:, 1:], alpha=0.25)
        narrow[:, 1:].add_(odd[:, : even.shape[1] - 1], alpha=0.25)
        if self.width % 2 == 0:
            narrow[:, -1].add_(odd[:, -1], alpha=0.25)
        # Row i of below takes part in the rows 2 i - 1 to 2 i + 2 of the upsampled tensor.
        for shift, share in ((-1, 0.25), (0, 0.75), (1, 0.75), (2, 0.25)):
            first = around.start + (around.start + shift) % 2
            part = narrow[first - around.start :: 2]
            i = (first - shift) // 2
            if i < 0:
                self.g_below[0].add_(part[0], alpha=share)
                part, i = part[1:], 0
            if i + len(part) > len(self.below):
                self.g_below[-1].add_(part[-1], alpha=share)
                part = part[:-1]
            self.g_below[i : i + len(part)].add_(part, alpha=share)

    def _upsample(self, rows, around, out):
        """Write the rows ``around`` of the upsampled tensor."""
        # Strips start at even rows.
        source = slice(max(rows.start // 2 - 1, 0), min((rows.stop + 1) // 2 + 1, len(self.below)))
        below = self.below[source]
        height, width, channels = below.shape
        tall = below.new_empty(height, 2, width, channels)
        tall[0, 0], tall[-1, 1] = below[0], below[-1]
        torch.lerp(below[:-1], below[1:], 0.75, out=tall[1:, 0])
        torch.lerp(below[:-1], below[1:], 0.25, out=tall[:-1, 1])
        tall = tall.view(2 * height, width, channels)[around.start - 2 * source.start : around.stop - 2 * source.start]
        even, odd = out[:, 2::2], out[:, 1:-1:2]
        out[:, 0] = tall[:, 0]
        torch.lerp(tall[:, :-1], tall[:, 1:], 0.75, out=even)
        torch.lerp(tall[:, : odd.shape[1]], tall[:, 1 : odd.shape[1] + 1], 0.25, out=odd)
        if self.width % 2 == 0:
            out[:, -1] = tall[:, -1]

    def statistics(self):
        """Mean and biased variance per joined channel.

        Those of the upsampled channels are had at their own size: the sum of
        squares of A b B^T is the product of b and A^T A b B^T B, and a constant
        goes through upsampling unchanged.
        """
        mean_skip, variance_skip = _statistics(self.skip)
        count = self.height * self.width
        weight = self.rows.sums[:, None] * self.columns.sums
        mean = sum(weight[r].flatten() @ self.below[r].flatten(0, 1) for r in self._half_strips()) / count
        squares = sum(
            torch.linalg.vecdot((self.below[r] - mean).flatten(0, 1), s.flatten(0, 1), dim=0)
            for r, s in self._squared(mean)
        )
        return torch.cat([mean_skip, mean]), torch.cat([variance_skip, squares / count])

    def add_variance_gradient(self, mean, slope):
        """Add slope (joined - mean), handed on to skip and below."""
        mean_skip, mean_up = mean.split([self.channels, len(mean) - self.channels])
        slope_skip, slope_up = slope.split([self.channels, len(mean) - self.channels])
        self.g_skip.addcmul_(self.skip, slope_skip).sub_(mean_skip * slope_skip)
        for rows, squared in self._squared(mean_up):
            self.g_below[rows].addcmul_(squared, slope_up)

    def _squared(self, mean):
        """Strips of A^T A (below - mean) B^T B."""
        (diagonal, beside), (columns, columns_beside) = self.rows.bands, self.columns.bands
        for rows in self._half_strips():
            x = self.below[rows] - mean
            y = x * diagonal[rows, None, None]
            y[1:] += x[:-1] * beside[rows.start : rows.stop - 1, None, None]
            y[:-1] += x[1:] * beside[rows.start : rows.stop - 1, None, None]
            if rows.start > 0:
                y[0] += (self.below[rows.start - 1] - mean) * beside[rows.start - 1]
            if rows.stop < len(self.below):
                y[-1] += (self.below[rows.stop] - mean) * beside[rows.stop - 1]
            x = y * columns[:, None]
            x[:, 1:] += y[:, :-1] * columns_beside[:, None]
            x[:, :-1] += y[:, 1:] * columns_beside[:, None]
            yield rows, x

    def _half_strips(self):
        return _strips(self.below)


def _inner(buffer, rows, size):
    """The part of a strip's buffer that lies within (H, W, ...), and the rows of the whole that it stands for."""
    around = slice(max(rows.start - 1, 0), min(rows.stop + 1, size[0]))
    return buffer[around.start - rows.start + 1 : around.stop - rows.start + 1, 1 : size[1] + 1], around


def _reflected(buffer, rows, size):
    """Fill the padding of a strip's buffer from its inner part."""
    strip = buffer[: rows.stop - rows.start + 2, : size[1] + 2]
    strip[:, 0], strip[:, -1] = strip[:, 2], strip[:, -3]
    if rows.start == 0:
        strip[0] = strip[2]
    if rows.stop == size[0]:
        strip[-1] = strip[-3]
    return buffer


def _folded(g, rows, size):
    """The gradient of a strip's inner part, in its place, from that of the strip."""
    strip = g[: rows.stop - rows.start + 2, : size[1] + 2]
    strip[:, 2] += strip[:, 0]
    strip[:, -3] += strip[:, -1]
    if rows.start == 0:
        strip[2] += strip[0]
    if rows.stop == size[0]:
        strip[-3] += strip[-1]
    return g


def _upsampling(size, like):
    """The matrix A of linear upsampling to ``size`` values, as (row sums of A^T, diagonal and next diagonal of A^T A).

    Column i of A has its entries in rows 2 i - 1 to 2 i + 2.
    """
    entries = like.new_tensor([0.25, 0.75, 0.75, 0.25])[:, None].repeat(1, (size + 1) // 2)
    entries[0, 0] = entries[3, -1] = 0
    entries[1, 0] = 1
    entries[2, -1] = 0 if size % 2 else 1
    beside = entries[2, :-1] * entries[0, 1:] + entries[3, :-1] * entries[1, 1:]
    return _Upsampling(entries.sum(0), (entries.square().sum(0), beside))


class _DirectConv:
    """`TiledConv` by the convolution of PyTorch."""

    def __init__(self, weight):
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.gradient = torch.zeros_like(self.weight)

    def buffer(self, rows, width):
        return self.weight.new_empty(rows + 2, width + 2, self.weight.shape[1])

    def forward(self, strip, out):
        out.copy_(_positions(F.conv2d(_image(strip), self.weight)))

    def backward(self, strip, g):
        arguments = (_image(g), _image(strip), self.weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
        self.gradient += torch.ops.aten.convolution_backward(*arguments, [False, True, False])[1]
        return _positions(torch.ops.aten.convolution_backward(*arguments, [True, False, False])[0])

    def weight_gradient(self):
        return self.gradient


def _convolve(source, conv, out):
    """Convolve a source of strips into out (H, W, O); returns its mean and biased variance per channel."""
    strips = list(_strips(out))
    moments = _Moments(out.new_empty(2, len(strips), out.shape[2]))
    for rows in strips:
        conv.forward(source.fill(conv.buffer(rows.stop - rows.start, out.shape[1]), rows), out[rows])
        moments.add(out[rows])
    return moments.merged()


def _conv(weight, x):
    """The way to convolve strips of x (H, W, C)."""
    return (TiledConv if x.shape[0] * x.shape[1] >= TILED else _DirectConv)(weight)


class _Moments:
    """Mean and biased variance per channel of positions that come block by block.

    Each block is taken about its own mean, so nothing cancels.

    Parameters
    ----------
    memory : tensor (2, blocks, C)
    """

    def __init__(self, memory):
        self.means, self.variances = memory
        self.counts = []

    def add(self, x):
        """Take in x (..., C)."""
        i = len(self.counts)
        self.means[i], self.variances[i] = _statistics(x.view(1, -1, x.shape[-1]))
        self.counts.append(x.numel() // x.shape[-1])

    def merged(self):
        """Mean and variance of all that was added."""
        share = self.means.new_tensor(self.counts)[:, None] / sum(self.counts)
        mean = (share * self.means).sum(0)
        return mean, (share * (self.variances + (self.means - mean).square())).sum(0)


class _Norm:
    """Batch normalisation of given mean and variance, and LeakyReLU, for blocks of positions (..., C)."""

    def __init__(self, mean, variance, gamma, beta, eps):
        self._set(mean, (variance + eps).rsqrt(), gamma, beta)

    @classmethod
    def again(cls, tensors):
        """From the ``tensors`` of another."""
        norm = cls.__new__(cls)
        norm._set(*tensors)
        return norm

    def _set(self, *tensors):
        self.tensors = tensors
        mean, self.rstd, gamma, beta = tensors
        self.scale = gamma * self.rstd
        self.shift = beta - mean * self.scale
        self.offset = -mean * self.rstd
        self.mean = mean
        self.g_gamma, self.g_beta = torch.zeros_like(gamma), torch.zeros_like(beta)

    def activated(self, x):
        """The block normalised and activated."""
        return F.leaky_relu_(torch.addcmul(self.shift, x, self.scale), SLOPE)

    def masked(self, g, z):
        """The gradient before the activation from that after it, z being ``activated``."""
        return torch.ops.aten.leaky_relu_backward(g, z, SLOPE, True)

    def collect(self, g, x):
        """Add what a block adds to the gradients of weight and bias, g being the gradient before the activation."""
        self.g_beta += g.sum(0)
        self.g_gamma += torch.addcmul(self.offset, x, self.rstd).mul_(g).sum(0)

    def close(self, positions):
        """Fix the constants of `input_gradient` after all blocks were collected."""
        # scale (g - mean(g) - normal mean(g normal)), the rest per channel.
        self.slope = -self.scale * self.rstd * self.g_gamma / positions
        self.constant = -self.scale * self.g_beta / positions - self.slope * self.mean

    def input_gradient(self, g, x):
        """The gradient of x from the one before the activation."""
        return torch.addcmul(self.constant, g, self.scale).addcmul_(x, self.slope)


def _padded_conv(x, conv):
    """Reflection-padded 3x3 convolution without its bias."""
    weight = conv.weight.contiguous(memory_format=torch.channels_last)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, stride=conv.stride)


def _positions(x):
    """(1, C, H, W) as (H, W, C)."""
    return x.permute(0, 2, 3, 1).squeeze(0)


def _image(x):
    """(H, W, C) as (1, C, H, W), channels last."""
    # The other way round the new dimension has a stride by which it does not count as channels last.
    return x[None].permute(0, 3, 1, 2)


def _statistics(x):
    """Mean and biased variance per channel of x (H, W, C)."""
    return torch.ops.aten.batch_norm_update_stats(_image(x), None, None, 0.0)


def _blocks(x):
    """Blocks of the positions of x (positions, C), so small that what is computed of one stays in the cache."""
    return (slice(start, min(start + BLOCK, len(x))) for start in range(0, len(x), BLOCK))


def _block_pairs(*tensors):
    """The same block of positions of several (H, W, C)."""
    tensors = [tensor.flatten(0, 1) for tensor in tensors]
    return (tuple(tensor[block] for tensor in tensors) for block in _blocks(tensors[0]))


def _strips(x):
    """Strips of the rows of x (H, W, C), each of a multiple of 4 rows but the last."""
    rows = 4 * max(1, STRIP // (4 * x.shape[1]))
    return (slice(start, min(start + rows, len(x))) for start in range(0, len(x), rows))
