"""The image generator as one function with kernels of its own, for a GPU; the same mathematics as `networks.whole`.

On a GPU most of a step went into passes over memory: of normalisation,
activation, padding, upsampling and 1x1 convolutions, each reading and writing
tensors of 128 channels. Here only the 3x3 convolutions are PyTorch's. What is
between two of them is one or two passes: one that takes the moments, where
these do not come with the product before, and one that reads what a
convolution gave, normalises and activates it and writes what the next one
reads, with its padding. Backward likewise: one pass takes the two sums of a
normalisation, the next one applies them.

Kept are the outputs and the inputs of the convolutions; activated values are
computed again. A constant per channel in front of a normalisation is left out,
as in `networks.fused`, which has the same formulas.

Storage is in the type of z or, under autocast, in that of autocast; arithmetic
is in float32. With float32 the products of 1x1 convolutions are in TF32 where
PyTorch's convolutions are.
"""

import warnings
from collections import namedtuple
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from networks.fused import HALF_RANGE

try:
    from networks import triton_kernels as kernels
except ImportError:
    # PyTorch for CPUs comes without Triton.
    kernels = None

# Larger tensors have places that int32 does not hold.
LARGEST = 2**31 - 1
_Shape = namedtuple("_Shape", ["values", "programs", "warps", "stages"])

# By kernel: values of a block (positions times channels), programs at most, warps, stages of its pipeline.
SHAPES = {
    "simple": _Shape(4096, LARGEST, 4, 1),
    "statistics": _Shape(4096, 1024, 4, 1),
    "pointwise": _Shape(4096, 1024, 4, 1),
    "activate": _Shape(4096, 1024, 4, 1),
    "activate_skip": _Shape(4096, 1024, 4, 1),
    "activate_backward": _Shape(4096, 1024, 4, 1),
    "activate_skip_backward": _Shape(4096, 264, 4, 1),
    "join": _Shape(4096, 1024, 4, 1),
    "join_backward_skip": _Shape(2048, 1024, 4, 1),
    "join_backward_below": _Shape(2048, 1024, 4, 1),
    "mix": _Shape(8192, 264, 8, 2),
    "mix_backward": _Shape(8192, 132, 8, 1),
    "head_backward": _Shape(4096, 1024, 4, 1),
}

# Whether a kind of generator was found to work.
_tried = {}


def usable(net, z):
    """Whether this form has what a generator needs for an input z (1, C, H, W), and works on its device."""
    widths = [scale.mix[0].out_channels for scale in net.scales]
    narrow = [scale.skip[0].out_channels for scale in net.scales]
    return (
        kernels is not None
        and z.dtype == torch.float32
        and net.out.out_channels == 1
        and all(16 <= n <= 256 and n & (n - 1) == 0 for n in widths + narrow)
        and (z.shape[2] + 2) * (z.shape[3] + 2) * (max(widths) + max(narrow)) <= LARGEST
        and _works(net, z, tuple(widths))
    )


def _works(net, z, widths):
    """Whether a small pass forward and back can be done: kernels may be too large for a card, or not compile there.

    It is tried once for each kind of generator; what it compiles is what the pass itself needs.
    """
    storage, tf32 = _storage(z), torch.backends.cudnn.allow_tf32
    key = z.device, z.shape[1], widths, tuple(scale.non_local is not None for scale in net.scales), storage, tf32
    if key not in _tried:
        side = 2 << len(widths)
        small = torch.linspace(0, 1, side * side, device=z.device).expand(1, z.shape[1], -1).reshape(1, -1, side, side)
        try:
            with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
                step = _Pass(net, storage, small)
                step.backward(step.forward(small))
            _tried[key] = True
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            warnings.warn(
                f"the kernels written for GPUs cannot be used here, so steps are slower: {error}", stacklevel=2
            )
            _tried[key] = False
    return _tried[key]


def _storage(z):
    """The type in which activations of a pass with input z are kept."""
    device = z.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else z.dtype


def generate(net, z):
    """`SkipGenerator.forward` for z (1, in_channels, H, W)."""
    storage = _storage(z)
    with torch.autocast(z.device.type, enabled=False):
        return _Generate.apply(net, z, storage, *net.parameters())


class _Generate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, net, z, storage, *parameters):
        step = _Pass(net, storage, z)
        y = step.forward(z)
        ctx.step, ctx.parameters = step, parameters
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        gradients = ctx.step.backward(g)
        ctx.step = None
        return (None, None, None, *(gradients.get(parameter) for parameter in ctx.parameters))


class _Pass:
    """One pass forward and back: what is kept in between, and the gradients by parameter."""

    def __init__(self, net, storage, z):
        self.net, self.storage, self.master = net, storage, z.dtype
        tf32 = storage == torch.float32 and torch.backends.cudnn.allow_tf32
        self.options = {
            "ACC": kernels.tl.float64 if z.dtype == torch.float64 else kernels.tl.float32,
            "PRECISION": "tf32" if tf32 else "ieee",
        }
        self.arithmetic = {"ACC": self.options["ACC"]}
        self.kept = [{} for _ in net.scales]
        self.gradients = {}

    # Forward

    def forward(self, z):
        """The image for z (1, in_channels, H, W)."""
        scales, kept = self.net.scales, self.kept
        self._first_frame(z, scales[0], kept[0])
        for i, (scale, have) in enumerate(zip(scales, kept, strict=True)):
            self._encode(scale, have)
            if i + 1 < len(scales):
                self._next_frame(have, scales[i + 1], kept[i + 1])
        below = kept[-1]["r"], kept[-1]["r_norm"]
        for scale, have in zip(reversed(scales), reversed(kept), strict=True):
            self._decode(scale, have, *below)
            below = have["c2"], have["c2_norm"]
        return self._head(*below)

    def _first_frame(self, z, scale, have):
        _, channels, height, width = z.shape
        have["size"] = height, width
        frame = have["frame"] = z.new_empty(height + 2, width + 2, channels, dtype=self.storage)
        c = max(_power(channels), 2)
        rows, programs, how = self._grid("simple", (height + 2) * (width + 2), c)
        kernels.pad_kernel[programs,](z.contiguous(), frame, height, width, channels, c, rows, **how)
        conv, norm = scale.skip[0], scale.skip[1]
        s = have["s"] = self._like(frame, height * width, conv.out_channels)
        rows, programs, how = self._grid("pointwise", height * width, 32)
        partial = self._partial(s, programs, 3, s.shape[1])
        kernels.pointwise_kernel[programs,](
            frame, conv.weight, s, partial, height, width, channels, max(16, c), s.shape[1], rows, **self.options, **how
        )
        have["s_norm"] = self._finish_norm(partial, norm)

    def _encode(self, scale, have):
        """From the frame to the raw output r of the second convolution of the encoder unit."""
        d, d_size = self._conv(have["frame"], self._weight(scale.down[0]), stride=2)
        have["d"], have["d_size"], have["d_norm"] = d, d_size, self._norm(d, scale.down[1])
        if scale.non_local is None:
            have["inner"] = self._activate(d, have["d_norm"], d_size, pad=1)
        else:
            x = have["x"] = self._activate(d, have["d_norm"], d_size, pad=0).flatten(0, 1)
            have["inner"] = self._non_local(x, d_size, scale.non_local, have)
        r, _ = self._conv(have["inner"], self._weight(scale.refine[0]))
        have["r"], have["r_norm"] = r, self._norm(r, scale.refine[1])

    def _next_frame(self, have, scale, below):
        """The input of the next scale, and the product of its skip branch."""
        size = below["size"] = have["d_size"]
        conv, norm = scale.skip[0], scale.skip[1]
        below["s"] = self._like(have["r"], size[0] * size[1], conv.out_channels)
        below["frame"], partial = self._activate(have["r"], have["r_norm"], size, pad=1, weight=conv, skip=below["s"])
        below["s_norm"] = self._finish_norm(partial, norm)

    def _decode(self, scale, have, low, low_norm):
        """From the skip branch's product and what comes from below, both raw, to the raw output c2 of the unit."""
        (height, width), s = have["size"], have["s"]
        low_height, low_width = have["d_size"]
        skip_channels, channels = s.shape[1], low.shape[1]
        joined = have["joined"] = self._like(s, height + 2, width + 2, skip_channels + channels)
        rows, programs, how = self._grid("join", (height + 2) * (width + 2), channels)
        partial = self._partial(s, programs, 3, skip_channels + channels)
        kernels.join_kernel[programs,](
            s, have["s_norm"], low, low_norm, joined, partial, height, width, low_height, low_width,
            skip_channels, channels, rows, **self.arithmetic, **how,
        )  # fmt: skip
        norm0 = have["joined_norm"] = self._finish_norm(partial, scale.merge_norm, shift=False)
        weight = have["scaled"] = self._scaled(scale.merge[0].weight, norm0)
        c1, _ = self._conv(joined, weight)
        have["c1"], have["c1_norm"] = c1, self._norm(c1, scale.merge[1])
        c2 = have["c2"] = torch.empty_like(c1)
        rows, programs, how = self._grid("mix", *c1.shape)
        partial = self._partial(c1, programs, 3, c1.shape[1])
        kernels.mix_kernel[programs,](
            c1, have["c1_norm"], scale.mix[0].weight, c2, partial, len(c1), c1.shape[1], rows, **self.options, **how
        )
        have["c2_norm"] = self._finish_norm(partial, scale.mix[1])

    def _head(self, c2, norm):
        out = self.net.out
        size = self.kept[0]["size"]
        y = self.y = c2.new_empty(1, 1, *size, dtype=self.master)
        rows, programs, how = self._grid("simple", *c2.shape)
        kernels.head_kernel[programs,](
            c2, norm, out.weight, out.bias, y, len(c2), c2.shape[1], rows, **self.arithmetic, **how
        )
        return y

    def _non_local(self, x, size, block, have):
        """`NonLocal` of x (H W, C) as a frame; products over the positions are summed up in float32."""
        inner = block.theta.out_channels
        low = [n // 2 for n in size]
        convs = block.theta, block.phi, block.g
        weight = torch.cat([conv.weight.flatten(1) for conv in convs]).to(x.dtype)
        bias = torch.cat([conv.bias for conv in convs]).to(x.dtype)
        three = torch.addmm(bias, x, weight.t())
        pooled = x.new_empty(low[0] * low[1], 2 * inner, dtype=self.master)
        rows, programs, how = self._grid("simple", *pooled.shape)
        kernels.pool_kernel[programs,](three, pooled, size[1], *low, 2 * inner, inner, rows, **how)
        phi, g = pooled.split(inner, 1)
        product = (phi.t() @ g).div_(len(pooled))
        out = block.out.weight.flatten(1)
        down = HALF_RANGE if x.dtype == torch.float16 else 1
        both = (product @ out.t()).mul_(down).to(x.dtype)
        y = three[:, :inner] @ both
        norm = self._norm(y, block.norm, down**2)
        have["non_local"] = weight, three, pooled, product, both, y, norm
        return self._activate(y, norm, size, pad=1, residual=x)

    # Backward

    def backward(self, g):
        """Gradients by parameter, from that of the image."""
        scales, kept = self.net.scales, self.kept
        g, sums, rows = self._head_backward(g)
        head, skips = True, []
        for scale, have, low in zip(scales, kept, [*kept[1:], None], strict=True):
            self._mix_backward(scale, have, g, sums, rows, head)
            low = (kept[-1]["r"], kept[-1]["r_norm"]) if low is None else (low["c2"], low["c2_norm"])
            g, sums, g_skip = self._merge_backward(scale, have, *low)
            skips.append(g_skip)
            head, rows = False, 2
        for i in reversed(range(len(scales))):
            g = self._encode_backward(scales[i], kept[i], g, sums, first=i == 0)
            g, sums = self._frame_backward(scales[i], kept[i], g, skips[i], kept[i - 1] if i else None)
        return self.gradients

    def _head_backward(self, g):
        out, have = self.net.out, self.kept[0]
        c2, norm = have["c2"], have["c2_norm"]
        g_pre = torch.empty_like(self.y)
        rows, programs, how = self._grid("head_backward", *c2.shape)
        partial = self._partial(c2, programs, 4, c2.shape[1])
        kernels.head_backward_kernel[programs,](
            g.contiguous(), self.y, c2, norm, out.weight, g_pre, partial, *c2.shape, rows, **self.arithmetic, **how
        )
        sums = self._finish_sums(partial, norm, len(c2))
        self.gradients[out.weight] = sums[2].view(out.weight.shape)
        self.gradients[out.bias] = sums[3, :1]
        return g_pre, sums, 4

    def _mix_backward(self, scale, have, g, sums2, rows, head):
        """From the gradient of the normalised c2 to that of c1, in ``have["g"]``."""
        mix, norm = scale.mix, scale.merge[1]
        self._keep_norm(mix[1], sums2)
        c1, c2 = have["c1"], have.pop("c2")
        channels = c1.shape[1]
        out = torch.empty_like(c1) if head else g
        block, programs, how = self._grid("mix_backward", *c1.shape)
        partial = self._partial(c1, programs, 2, channels)
        partial_weight = self._partial(c1, programs, channels, channels)
        kernels.mix_backward_kernel[programs,](
            c1, have["c1_norm"], c2, have["c2_norm"], sums2, g, self.net.out.weight, mix[0].weight, out,
            partial, partial_weight, len(c1), head, rows, channels, block, **self.options, **how,
        )  # fmt: skip
        self.gradients[mix[0].weight] = self._sum(partial_weight).view(mix[0].weight.shape)
        sums1 = self._finish_sums(partial, have["c1_norm"], len(c1))
        self._keep_norm(norm, sums1)
        have["g"] = self._norm_backward(out, c1, have["c1_norm"], sums1)

    def _merge_backward(self, scale, have, low, low_norm):
        """From the gradient of c1 to those of the normalised tensors that were joined."""
        weight = scale.merge[0].weight
        norm0, joined = have["joined_norm"], have.pop("joined")
        height, width = have["size"]
        g, g_scaled = self._conv_backward(have.pop("g"), joined, have.pop("scaled"))
        channels, rows = weight.shape[1], 9 * len(weight)
        g_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
        grid = -(-rows // 64), -(-channels // 16)
        partial = self._partial(weight, grid[0], channels)
        kernels.merge_weight_backward_kernel[grid](
            _nhwc(g_scaled), weight, norm0, g_weight, partial, channels, rows, 64, 16
        )
        through = weight.new_empty(2, channels)
        g_gamma = weight.new_empty(channels)
        kernels.merge_finish_kernel[-(-channels // 16),](
            partial, norm0, g_gamma, through, float(height * width), len(partial), channels, _room(len(partial)), 16
        )
        self.gradients[weight] = g_weight
        self.gradients[scale.merge_norm.weight] = g_gamma
        self._fold(g)
        s, s_norm = have["s"], have["s_norm"]
        g_skip = torch.empty_like(s)
        rows, programs, how = self._grid("join_backward_skip", *s.shape)
        partial = self._partial(s, programs, 2, s.shape[1])
        kernels.join_backward_skip_kernel[programs,](
            g, s, s_norm, through, g_skip, partial, height, width, channels, s.shape[1], rows, **self.arithmetic, **how
        )
        s_sums = self._finish_sums(partial, s_norm, len(s))
        self._keep_norm(scale.skip[1], s_sums)
        g_skip = self._norm_backward(g_skip, s, s_norm, s_sums)
        g_low = torch.empty_like(low)
        rows, programs, how = self._grid("join_backward_below", *low.shape)
        partial = self._partial(s, programs, 2, low.shape[1])
        kernels.join_backward_below_kernel[programs,](
            g, low, low_norm, through, g_low, partial, height, width, *have["d_size"],
            s.shape[1], low.shape[1], rows, **self.arithmetic, **how,
        )  # fmt: skip
        return g_low, self._finish_sums(partial, low_norm, len(low)), g_skip

    def _encode_backward(self, scale, have, g, sums, *, first):
        """From the gradient of the normalised r to that of the frame of the scale, which is None for the first one."""
        self._keep_norm(scale.refine[1], sums)
        g = self._norm_backward(g, have["r"], have["r_norm"], sums)
        g, g_weight = self._conv_backward(g, have.pop("inner"), self._weight(scale.refine[0]))
        self.gradients[scale.refine[0].weight] = self._to_master(g_weight, scale.refine[0].weight)
        pad = 1
        if scale.non_local is not None:
            g = self._non_local_backward(g, have, scale.non_local)
            pad = 0
        else:
            self._fold(g)
        g, sums = self._activate_backward(g, have["d"], have["d_norm"], have["d_size"], pad=pad)
        self._keep_norm(scale.down[1], sums)
        g = self._norm_backward(g, have["d"], have["d_norm"], sums)
        weight = scale.down[0].weight
        g, g_weight = self._conv_backward(g, have["frame"], self._weight(scale.down[0]), stride=2, needed=not first)
        self.gradients[weight] = self._to_master(g_weight, weight)
        return g

    def _frame_backward(self, scale, have, g, g_skip, above):
        """From the gradients of a scale's frame and of its skip branch's product to that of the r before it."""
        weight = scale.skip[0].weight
        if above is not None:
            self._fold(g)
            g, sums, g_weight = self._activate_backward(
                g, above["r"], above["r_norm"], have["size"], pad=1, weight=weight, g_skip=g_skip
            )
            self.gradients[weight] = g_weight.view(weight.shape)
            return g, sums
        (height, width), channels, skip_channels = have["size"], *reversed(weight.shape[:2])
        rows, programs, how = self._grid("pointwise", height * width, 32)
        partial = self._partial(g_skip, programs, skip_channels, channels)
        kernels.pointwise_backward_kernel[programs,](
            g_skip, have["frame"], partial, height, width, channels,
            max(16, _power(channels)), skip_channels, rows, **self.options, **how,
        )  # fmt: skip
        self.gradients[weight] = self._sum(partial).view(weight.shape)
        return None, None

    def _non_local_backward(self, g, have, block):
        """The gradient of x (H W, C) from that of the frame of `_non_local`."""
        weight, three, pooled, product, both, y, norm = have.pop("non_local")
        x, size = have["x"], have["d_size"]
        inner = block.theta.out_channels
        self._fold(g)
        g, sums = self._activate_backward(g, y, norm, size, pad=1, activated=False)
        self._keep_norm(block.norm, sums)
        g_y = self._norm_backward(g, y, norm, sums, out=torch.empty_like(y))
        theta = three[:, :inner]
        g_three = torch.empty_like(three)
        torch.mm(g_y, both.t(), out=g_three[:, :inner])
        g_both = (theta.t() @ g_y).to(self.master).mul_(HALF_RANGE if x.dtype == torch.float16 else 1)
        out = block.out.weight.flatten(1)
        self.gradients[block.out.weight] = (g_both.t() @ product).view(block.out.weight.shape)
        g_product = (g_both @ out).div_(len(pooled))
        phi, values = pooled.split(inner, 1)
        g_pooled = torch.cat([values @ g_product.t(), phi @ g_product], 1)
        rows, programs, how = self._grid("simple", len(x), 2 * inner)
        kernels.unpool_kernel[programs,](
            g_pooled, three, g_three, *size, *(n // 2 for n in size), 2 * inner, inner, rows, **how
        )
        g_weight = (g_three.t() @ x).to(self.master)
        g_bias = g_three.sum(0, dtype=self.master)
        for number, conv in enumerate((block.theta, block.phi, block.g)):
            part = slice(number * inner, (number + 1) * inner)
            self.gradients[conv.weight] = g_weight[part].view(conv.weight.shape)
            self.gradients[conv.bias] = g_bias[part]
        return torch.addmm(g, g_three, weight)

    # Pieces

    def _conv(self, frame, weight, stride=1):
        """The convolution of a frame as (positions, C), and its height and width."""
        y = F.conv2d(_nchw(frame), weight, stride=stride)
        return _nhwc(y).flatten(0, 1), tuple(y.shape[2:])

    def _conv_backward(self, g, frame, weight, *, stride=1, needed=True):
        """Gradients of the frame, as (H + 2, W + 2, C), if it is needed, and of the weight."""
        size = [(n - 3) // stride + 1 for n in frame.shape[:2]]
        g = _nchw(g.view(*size, -1))
        arguments = (g, _nchw(frame), weight, None, [stride] * 2, [0, 0], [1, 1], False, [0, 0], 1)
        g, g_weight, _ = torch.ops.aten.convolution_backward(*arguments, [needed, True, False])
        return _nhwc(g) if needed else None, g_weight

    def _weight(self, conv):
        return conv.weight.to(self.storage, memory_format=torch.channels_last)

    def _scaled(self, weight, norm):
        """The weight with each channel scaled, in the type and form of storage."""
        channels, rows = weight.shape[1], 9 * len(weight)
        out = weight.new_empty(len(weight), 3, 3, channels, dtype=self.storage)
        grid = -(-rows // 64), -(-channels // 16)
        kernels.merge_weight_kernel[grid](weight, norm, out, channels, rows, 64, 16)
        return out.permute(0, 3, 1, 2)

    def _to_master(self, g, weight):
        """The gradient of a weight in its type and form."""
        return torch.empty_like(weight, memory_format=torch.contiguous_format).copy_(g)

    def _norm(self, x, norm, down=1):
        """The constants of the normalisation of x (positions, C), with an eps ``down`` times that of ``norm``."""
        rows, programs, how = self._grid("statistics", *x.shape)
        partial = self._partial(x, programs, 3, x.shape[1])
        kernels.statistics_kernel[programs,](x, partial, *x.shape, rows, **self.arithmetic, **how)
        return self._finish_norm(partial, norm, down=down)

    def _finish_norm(self, partial, norm, *, shift=True, down=1):
        programs, _, channels = partial.shape
        constants = partial.new_empty(4, channels)
        block = _columns(programs)
        kernels.finish_norm_kernel[-(-channels // block),](
            partial,
            norm.weight,
            norm.bias,
            constants,
            norm.eps * down,
            programs,
            channels,
            shift,
            _room(programs),
            block,
        )
        return constants

    def _finish_sums(self, partial, norm, positions):
        programs, rows, channels = partial.shape
        sums = partial.new_empty(rows + 2, channels)
        block = _columns(programs)
        kernels.finish_sums_kernel[-(-channels // block),](
            partial, norm, sums, float(positions), programs, channels, rows, True, _room(programs), block
        )
        return sums

    def _keep_norm(self, norm, sums):
        self.gradients[norm.bias], self.gradients[norm.weight] = sums[0], sums[1]

    def _sum(self, partial):
        """The sum over the first dimension."""
        programs, size = len(partial), partial[0].numel()
        out = partial.new_empty(size)
        kernels.sum_kernel[-(-size // 64),](partial, out, programs, size, 64, 32)
        return out

    def _activate(self, x, norm, size, *, pad, residual=None, weight=None, skip=None):
        """`activate_kernel`; with a convolution ``weight`` also the partial moments of ``skip``."""
        channels = x.shape[1]
        out = self._like(x, size[0] + 2 * pad, size[1] + 2 * pad, channels)
        s = 0 if skip is None else skip.shape[1]
        rows, programs, how = self._grid("activate_skip" if s else "activate", out.shape[0] * out.shape[1], channels)
        partial = self._partial(x, programs, 3, s) if s else norm
        kernels.activate_kernel[programs,](
            x, norm, x if residual is None else residual, out, weight.weight if s else norm, skip if s else x, partial,
            *size, channels, s, pad, residual is not None, rows, **self.options, **how,
        )  # fmt: skip
        return (out, partial) if s else out

    def _activate_backward(self, g, x, norm, size, *, pad, activated=True, weight=None, g_skip=None):
        """`activate_backward_kernel`: gradient of the normalised x, its sums, and with ``g_skip`` the weight's."""
        channels = x.shape[1]
        out = torch.empty_like(x)
        s = 0 if g_skip is None else g_skip.shape[1]
        rows, programs, how = self._grid("activate_skip_backward" if s else "activate_backward", *x.shape)
        partial = self._partial(x, programs, 2, channels)
        partial_weight = self._partial(x, programs, s, channels) if s else norm
        kernels.activate_backward_kernel[programs,](
            g, x, norm, g_skip if s else x, weight if s else norm, out, partial, partial_weight,
            *size, channels, s, pad, activated, rows, **self.options, **how,
        )  # fmt: skip
        sums = self._finish_sums(partial, norm, len(x))
        return (out, sums, self._sum(partial_weight)) if s else (out, sums)

    def _norm_backward(self, g, x, norm, sums, out=None):
        """The gradient of x from that of the normalised x, in its memory unless ``out`` is given."""
        out = g if out is None else out
        channels = x.shape[1]
        rows, programs, how = self._grid("simple", *x.shape)
        kernels.norm_backward_kernel[programs,](
            g, x, norm, sums, out, len(x), len(sums) - 2, channels, rows, **self.arithmetic, **how
        )
        return out

    def _fold(self, g):
        height, width, channels = g.shape[0] - 2, g.shape[1] - 2, g.shape[2]
        grid = -(-2 * (height + width) // 64), -(-channels // 16)
        kernels.fold_kernel[grid](g, height, width, channels, 64, 16)

    def _grid(self, kernel, positions, channels):
        """Positions of a block, the number of programs, and what else a launch is told."""
        shape = SHAPES[kernel]
        rows = max(16, shape.values // channels)
        how = {"num_warps": shape.warps, "num_stages": shape.stages}
        return rows, min(shape.programs, -(-positions // rows)), how

    def _like(self, x, *shape):
        return x.new_empty(shape, dtype=self.storage)

    def _partial(self, x, *shape):
        return x.new_empty(shape, dtype=self.master)


def _nchw(x):
    """(H, W, C) as (1, C, H, W), channels last."""
    return x[None].permute(0, 3, 1, 2)


def _nhwc(x):
    """(1, C, H, W) or a weight, channels last, as (H, W, C) or (O, 3, 3, C)."""
    x = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    return x[0] if len(x) == 1 else x


def _columns(programs):
    """Channels that one program finishes at a time."""
    return 4096 // max(256, _room(programs))


def _room(programs):
    """Parts that one program finishes, a power of 2, of which there are few, each with a kernel of its own."""
    return next(n for n in (64, 256, 1024) if programs <= n)


@lru_cache(maxsize=256)
def _power(n):
    """The power of 2 from n on."""
    return 1 << (n - 1).bit_length()
