"""Triton kernels of the image generator: what `networks.triton_form` puts together.

A tensor of an image is (positions, C), positions row by row, or a frame of
(H + 2)(W + 2) positions, which has the reflection padding of the 3x3
convolution that reads it. Storage may be float32, float16 or bfloat16; all
arithmetic is in the type ``ACC`` (float32).

What a batch normalisation needs is a tensor of four rows, `SCALE`, `SHIFT`,
`MEAN` and `RSTD`: normalised is x scale + shift. Sums over positions are taken
by a fixed number of programs, whose parts are added up by another kernel, so
they do not depend on chance.

C, S and B (channels, channels of a skip branch, positions of a block) are
powers of 2, and at least 16 where there is a matrix product.
"""

import functools

import triton
import triton.language as tl

# Numbers that differ from scale to scale and from image to image; without this, each kind of number would have a kernel
# compiled for it.
SIZES = ["height", "width", "low_height", "low_width", "positions", "programs", "rows", "size"]
_kernel = functools.partial(triton.jit, do_not_specialize=SIZES)


@triton.jit
def _leaky(x):
    return tl.where(x > 0, x, x * 0.2)


@triton.jit
def _masked(g, x):
    """The gradient before the activation of x."""
    return tl.where(x > 0, g, g * 0.2)


@triton.jit
def _merge(count, mean, spread, values, inside, ACC: tl.constexpr):
    """Number, mean and sum of squared deviations of rows, those so far and those of a block (Chan et al. 1979)."""
    n = tl.sum(inside.to(ACC), 0)
    block_mean = tl.sum(tl.where(inside[:, None], values, 0.0), 0) / tl.maximum(n, 1.0)
    deviation = tl.where(inside[:, None], values - block_mean[None, :], 0.0)
    total = count + n
    share = n / tl.maximum(total, 1.0)
    delta = block_mean - mean
    spread += tl.sum(deviation * deviation, 0) + delta * delta * count * share
    return total, mean + delta * share, spread


@triton.jit
def _store_moments(partial, channel, total_channels, count, mean, spread):
    base = partial + tl.program_id(0) * 3 * total_channels + channel
    tl.store(base, mean)
    tl.store(base + total_channels, spread)
    tl.store(base + 2 * total_channels, mean * 0.0 + count)


@triton.jit
def _reflected(i, size):
    i = tl.where(i < 0, -i, i)
    return tl.where(i >= size, 2 * size - 2 - i, i)


@_kernel
def statistics_kernel(x, partial, positions, C: tl.constexpr, B: tl.constexpr, ACC: tl.constexpr):
    """Moments of x (positions, C) by program: (programs, 3, C)."""
    channel, row = tl.arange(0, C), tl.arange(0, B)
    begin = tl.program_id(0) * B
    # About a value of the tensor itself the sums do not cancel.
    pivot = tl.load(x + begin.to(tl.int64) * C + channel).to(ACC)
    first = tl.zeros([B, C], ACC)
    second = tl.zeros([B, C], ACC)
    number = tl.zeros([B], ACC)
    for start in range(begin, positions, tl.num_programs(0) * B):
        position = start + row
        inside = position < positions
        value = tl.load(x + position[:, None].to(tl.int64) * C + channel[None, :], mask=inside[:, None], other=0.0)
        value = tl.where(inside[:, None], value.to(ACC) - pivot[None, :], 0.0)
        first += value
        second += value * value
        number += inside.to(ACC)
    count = tl.sum(number, 0)
    total = tl.sum(first, 0)
    shift = total / count
    _store_moments(partial, channel, C, count, pivot + shift, tl.sum(second, 0) - total * shift)


@_kernel
def finish_norm_kernel(
    partial, gamma, beta, norm, eps, programs, channels, BETA: tl.constexpr, P: tl.constexpr, CB: tl.constexpr
):
    """The constants of a normalisation, norm (4, channels), from moments (programs, 3, channels)."""
    program = tl.arange(0, P)
    channel = tl.program_id(0) * CB + tl.arange(0, CB)
    there = channel < channels
    both = (program < programs)[:, None] & there[None, :]
    place = partial + program[:, None] * 3 * channels + channel[None, :]
    mean_of = tl.load(place, mask=both, other=0.0)
    spread_of = tl.load(place + channels, mask=both, other=0.0)
    count_of = tl.load(place + 2 * channels, mask=both, other=0.0)
    count = tl.sum(count_of, 0)
    count = tl.maximum(count, 1.0)
    mean = tl.sum(mean_of * count_of, 0) / count
    deviation = mean_of - mean[None, :]
    variance = tl.sum(spread_of + count_of * deviation * deviation, 0) / count
    rstd = 1.0 / tl.sqrt(variance + eps)
    scale = tl.load(gamma + channel, mask=there, other=0.0) * rstd
    tl.store(norm + channel, scale, mask=there)
    if BETA:
        shift = tl.load(beta + channel, mask=there, other=0.0) - mean * scale
        tl.store(norm + channels + channel, shift, mask=there)
    tl.store(norm + 2 * channels + channel, mean, mask=there)
    tl.store(norm + 3 * channels + channel, rstd, mask=there)


@_kernel
def finish_sums_kernel(
    partial,
    norm,
    out,
    positions,
    programs,
    channels,
    ROWS: tl.constexpr,
    NORM: tl.constexpr,
    P: tl.constexpr,
    CB: tl.constexpr,
):
    """Sums (ROWS, channels) of partial (programs, ROWS, channels), and with NORM two rows more, slope and constant.

    Row 0 is the sum of the gradient behind a normalisation, row 1 that of it times the normalised value: the gradients
    of beta and gamma. The gradient in front is then scale g + slope x + constant.
    """
    program = tl.arange(0, P)
    channel = tl.program_id(0) * CB + tl.arange(0, CB)
    there = channel < channels
    both = (program < programs)[:, None] & there[None, :]
    place = partial + program[:, None] * ROWS * channels + channel[None, :]
    for i in tl.static_range(ROWS):
        total = tl.sum(tl.load(place + i * channels, mask=both, other=0.0), 0)
        tl.store(out + i * channels + channel, total, mask=there)
        if i == 0:
            g_beta = total
        if i == 1:
            g_gamma = total
    if NORM:
        scale = tl.load(norm + channel, mask=there, other=0.0)
        mean = tl.load(norm + 2 * channels + channel, mask=there, other=0.0)
        rstd = tl.load(norm + 3 * channels + channel, mask=there, other=0.0)
        slope = -scale * rstd * g_gamma / positions
        tl.store(out + ROWS * channels + channel, slope, mask=there)
        tl.store(out + (ROWS + 1) * channels + channel, -scale * g_beta / positions - slope * mean, mask=there)


@_kernel
def sum_kernel(partial, out, programs, size, M: tl.constexpr, P: tl.constexpr):
    """out (size,), the sum over the rows of partial (programs, size)."""
    element = tl.program_id(0) * M + tl.arange(0, M)
    row = tl.arange(0, P)
    there = element < size
    total = tl.zeros([P, M], out.dtype.element_ty)
    for start in range(0, programs, P):
        both = (start + row < programs)[:, None] & there[None, :]
        total += tl.load(partial + (start + row)[:, None] * size + element[None, :], mask=both, other=0.0)
    tl.store(out + element, tl.sum(total, 0), mask=there)


@_kernel
def pad_kernel(z, frame, height, width, channels, C: tl.constexpr, B: tl.constexpr):
    """frame (H + 2, W + 2, channels) of z (channels, H, W)."""
    channel = tl.arange(0, C)
    position = tl.program_id(0) * B + tl.arange(0, B)
    wide = width + 2
    there = (position < (height + 2) * wide)[:, None] & (channel < channels)[None, :]
    r = _reflected(position // wide - 1, height)
    c = _reflected(position % wide - 1, width)
    place = (r * width + c)[:, None].to(tl.int64) + channel[None, :].to(tl.int64) * height * width
    value = tl.load(z + place, mask=there, other=0.0)
    place = position[:, None].to(tl.int64) * channels + channel[None, :]
    tl.store(frame + place, value.to(frame.dtype.element_ty), mask=there)


@_kernel
def pointwise_kernel(
    frame,
    weight,
    out,
    partial,
    height,
    width,
    channels,
    K: tl.constexpr,
    S: tl.constexpr,
    B: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out (H W, S), the inside of frame (H + 2, W + 2, channels) times weight (S, channels), and its moments."""
    channel, out_channel, row = tl.arange(0, K), tl.arange(0, S), tl.arange(0, B)
    real = channel < channels
    w = tl.load(weight + out_channel[None, :] * channels + channel[:, None], mask=real[:, None], other=0.0)
    w = w.to(frame.dtype.element_ty)
    positions = height * width
    mean = tl.zeros([S], ACC)
    spread = tl.zeros([S], ACC)
    count = tl.sum(tl.zeros([B], ACC), 0)
    for start in range(tl.program_id(0) * B, positions, tl.num_programs(0) * B):
        position = start + row
        inside = position < positions
        source = (position // width + 1) * (width + 2) + position % width + 1
        place = frame + source[:, None].to(tl.int64) * channels + channel[None, :]
        value = tl.load(place, mask=inside[:, None] & real[None, :], other=0.0)
        s = tl.dot(value, w, input_precision=PRECISION, out_dtype=ACC).to(out.dtype.element_ty)
        tl.store(out + position[:, None].to(tl.int64) * S + out_channel[None, :], s, mask=inside[:, None])
        count, mean, spread = _merge(count, mean, spread, s.to(ACC), inside, ACC)
    _store_moments(partial, out_channel, S, count, mean, spread)


@_kernel
def pointwise_backward_kernel(
    g,
    frame,
    partial,
    height,
    width,
    channels,
    K: tl.constexpr,
    S: tl.constexpr,
    B: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums by program, (programs, S, channels), for the gradient of the weight of `pointwise_kernel`; g is (H W, S)."""
    channel, out_channel, row = tl.arange(0, K), tl.arange(0, S), tl.arange(0, B)
    real = channel < channels
    positions = height * width
    total = tl.zeros([S, K], ACC)
    for start in range(tl.program_id(0) * B, positions, tl.num_programs(0) * B):
        position = start + row
        inside = position < positions
        source = (position // width + 1) * (width + 2) + position % width + 1
        place = frame + source[:, None].to(tl.int64) * channels + channel[None, :]
        value = tl.load(place, mask=inside[:, None] & real[None, :], other=0.0)
        place = g + position[:, None].to(tl.int64) * S + out_channel[None, :]
        value_g = tl.load(place, mask=inside[:, None], other=0.0)
        total += tl.dot(tl.trans(value_g), value, input_precision=PRECISION, out_dtype=ACC)
    place = partial + (tl.program_id(0) * S + out_channel[:, None]) * channels + channel[None, :]
    tl.store(place, total, mask=real[None, :])


@_kernel
def activate_kernel(
    x,
    norm,
    residual,
    out,
    weight,
    skip,
    partial,
    height,
    width,
    C: tl.constexpr,
    S: tl.constexpr,
    PAD: tl.constexpr,
    RESIDUAL: tl.constexpr,
    B: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Normalised and activated x (H W, C), with PAD 1 as a frame; with RESIDUAL normalised and added to that, instead.

    Where S is not 0: also skip (H W, S), its product with weight (S, C), and the moments of that.
    """
    channel, row = tl.arange(0, C), tl.arange(0, B)
    scale = tl.load(norm + channel)
    shift = tl.load(norm + C + channel)
    wide = width + 2 * PAD
    positions = (height + 2 * PAD) * wide
    if S:
        out_channel = tl.arange(0, S)
        w = tl.load(weight + out_channel[None, :] * C + channel[:, None]).to(out.dtype.element_ty)
        mean = tl.zeros([S], ACC)
        spread = tl.zeros([S], ACC)
        count = tl.sum(tl.zeros([B], ACC), 0)
    for start in range(tl.program_id(0) * B, positions, tl.num_programs(0) * B):
        position = start + row
        there = position < positions
        r = position // wide - PAD
        c = position % wide - PAD
        inside = there & (r >= 0) & (r < height) & (c >= 0) & (c < width)
        source = _reflected(r, height) * width + _reflected(c, width)
        place = source[:, None].to(tl.int64) * C + channel[None, :]
        value = tl.load(x + place, mask=there[:, None], other=0.0).to(ACC) * scale[None, :] + shift[None, :]
        if RESIDUAL:
            value += tl.load(residual + place, mask=there[:, None], other=0.0).to(ACC)
        else:
            value = _leaky(value)
        value = value.to(out.dtype.element_ty)
        tl.store(out + position[:, None].to(tl.int64) * C + channel[None, :], value, mask=there[:, None])
        if S:
            s = tl.dot(value, w, input_precision=PRECISION, out_dtype=ACC).to(skip.dtype.element_ty)
            place = (r * width + c)[:, None].to(tl.int64) * S + out_channel[None, :]
            tl.store(skip + place, s, mask=inside[:, None])
            count, mean, spread = _merge(count, mean, spread, s.to(ACC), inside, ACC)
    if S:
        _store_moments(partial, out_channel, S, count, mean, spread)


@_kernel
def activate_backward_kernel(
    g,
    x,
    norm,
    g_skip,
    weight,
    out,
    partial,
    partial_weight,
    height,
    width,
    C: tl.constexpr,
    S: tl.constexpr,
    PAD: tl.constexpr,
    ACTIVATED: tl.constexpr,
    B: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of the normalised x (H W, C) from g, that of what `activate_kernel` made of it, and its two sums.

    A frame must be folded before. Where S is not 0, the gradient g_skip (H W, S) of the product joins in, and there
    are the sums for the gradient of its weight by program, (programs, S, C).
    """
    channel, row = tl.arange(0, C), tl.arange(0, B)
    scale = tl.load(norm + channel)
    shift = tl.load(norm + C + channel)
    mean = tl.load(norm + 2 * C + channel)
    rstd = tl.load(norm + 3 * C + channel)
    positions = height * width
    first = tl.zeros([B, C], ACC)
    second = tl.zeros([B, C], ACC)
    if S:
        out_channel = tl.arange(0, S)
        w = tl.load(weight + out_channel[:, None] * C + channel[None, :]).to(x.dtype.element_ty)
        g_weight = tl.zeros([S, C], ACC)
    for start in range(tl.program_id(0) * B, positions, tl.num_programs(0) * B):
        position = start + row
        inside = (position < positions)[:, None]
        source = (position // width + PAD) * (width + 2 * PAD) + position % width + PAD
        value_g = tl.load(g + source[:, None].to(tl.int64) * C + channel[None, :], mask=inside, other=0.0).to(ACC)
        place = position[:, None].to(tl.int64) * C + channel[None, :]
        value = tl.load(x + place, mask=inside, other=0.0).to(ACC)
        normal = value * scale[None, :] + shift[None, :]
        if S:
            from_skip = tl.load(
                g_skip + position[:, None].to(tl.int64) * S + out_channel[None, :], mask=inside, other=0.0
            )
            z = tl.where(inside, _leaky(normal), 0.0).to(x.dtype.element_ty)
            value_g += tl.dot(from_skip, w, input_precision=PRECISION, out_dtype=ACC)
            g_weight += tl.dot(tl.trans(from_skip), z, input_precision=PRECISION, out_dtype=ACC)
        if ACTIVATED:
            value_g = _masked(value_g, normal)
        value_g = value_g.to(out.dtype.element_ty)
        tl.store(out + place, value_g, mask=inside)
        value_g = value_g.to(ACC)
        first += value_g
        second += value_g * (value - mean[None, :]) * rstd[None, :]
    base = partial + tl.program_id(0) * 2 * C + channel
    tl.store(base, tl.sum(first, 0))
    tl.store(base + C, tl.sum(second, 0))
    if S:
        tl.store(
            partial_weight + (tl.program_id(0) * S + out_channel[:, None]) * C + channel[None, :],
            g_weight,
        )


@_kernel
def norm_backward_kernel(
    g, x, norm, sums, out, positions, ROWS: tl.constexpr, C: tl.constexpr, B: tl.constexpr, ACC: tl.constexpr
):
    """out = scale g + slope x + constant, all (positions, C); sums as `finish_sums_kernel` left them. g may be out."""
    channel = tl.arange(0, C)
    position = tl.program_id(0) * B + tl.arange(0, B)
    inside = (position < positions)[:, None]
    scale = tl.load(norm + channel)
    slope = tl.load(sums + ROWS * C + channel)
    constant = tl.load(sums + (ROWS + 1) * C + channel)
    place = position[:, None].to(tl.int64) * C + channel[None, :]
    value_g = tl.load(g + place, mask=inside, other=0.0).to(ACC)
    value = tl.load(x + place, mask=inside, other=0.0).to(ACC)
    value = value_g * scale[None, :] + value * slope[None, :] + constant[None, :]
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


@_kernel
def fold_kernel(frame, height, width, channels: tl.constexpr, B: tl.constexpr, CB: tl.constexpr):
    """Add the rim of frame (H + 2, W + 2, channels), a gradient, to what it reflects."""
    k = tl.program_id(0) * B + tl.arange(0, B)
    channel = tl.program_id(1) * CB + tl.arange(0, CB)
    # Row 1 and row H - 2, then column 1 and column W - 2 without these rows.
    along_row = k < 2 * width
    second = tl.where(along_row, k >= width, k >= 2 * width + height)
    i = tl.where(along_row, k - second.to(tl.int32) * width, k - 2 * width - second.to(tl.int32) * height)
    r = tl.where(along_row, tl.where(second, height - 2, 1), i)
    c = tl.where(along_row, i, tl.where(second, width - 2, 1))
    there = k < 2 * (width + height)
    there = there & ((second == 0) | (tl.where(along_row, height, width) != 3))
    there = there & (along_row | ((r != 1) & (r != height - 2)))
    total = tl.zeros([B, CB], tl.float32)
    if frame.dtype.element_ty == tl.float64:
        total = total.to(tl.float64)
    for i_r in tl.static_range(3):
        for i_c in tl.static_range(3):
            part = there
            row = r + 1
            if i_r == 1:
                row = r * 0
                part = part & (r == 1)
            if i_r == 2:
                row = r * 0 + height + 1
                part = part & (r == height - 2)
            column = c + 1
            if i_c == 1:
                column = c * 0
                part = part & (c == 1)
            if i_c == 2:
                column = c * 0 + width + 1
                part = part & (c == width - 2)
            place = frame + (row * (width + 2) + column)[:, None].to(tl.int64) * channels + channel[None, :]
            total += tl.load(place, mask=part[:, None] & (channel < channels)[None, :], other=0.0).to(total.dtype)
    place = frame + ((r + 1) * (width + 2) + c + 1)[:, None].to(tl.int64) * channels + channel[None, :]
    tl.store(place, total.to(frame.dtype.element_ty), mask=there[:, None] & (channel < channels)[None, :])


@_kernel
def join_kernel(
    skip,
    skip_norm,
    below,
    below_norm,
    frame,
    partial,
    height,
    width,
    low_height,
    low_width,
    S: tl.constexpr,
    C: tl.constexpr,
    B: tl.constexpr,
    ACC: tl.constexpr,
):
    """Frame of the activated skip (H W, S) beside the upsampled activated below (ceil(H/2) ceil(W/2), C), and moments.

    Upsampling is bilinear by 2; where H or W is odd, its last row or column is cut.
    """
    channel, skip_channel, row = tl.arange(0, C), tl.arange(0, S), tl.arange(0, B)
    scale = tl.load(below_norm + channel)
    shift = tl.load(below_norm + C + channel)
    skip_scale = tl.load(skip_norm + skip_channel)
    skip_shift = tl.load(skip_norm + S + skip_channel)
    wide = width + 2
    positions = (height + 2) * wide
    mean = tl.zeros([C], ACC)
    spread = tl.zeros([C], ACC)
    count = tl.sum(tl.zeros([B], ACC), 0)
    skip_mean = tl.zeros([S], ACC)
    skip_spread = tl.zeros([S], ACC)
    skip_count = tl.sum(tl.zeros([B], ACC), 0)
    for start in range(tl.program_id(0) * B, positions, tl.num_programs(0) * B):
        position = start + row
        there = position < positions
        r = position // wide - 1
        c = position % wide - 1
        inside = there & (r >= 0) & (r < height) & (c >= 0) & (c < width)
        r = _reflected(r, height)
        c = _reflected(c, width)
        target = frame + position[:, None].to(tl.int64) * (S + C)
        s = tl.load(
            skip + (r * width + c)[:, None].to(tl.int64) * S + skip_channel[None, :], mask=there[:, None], other=0.0
        )
        s = _leaky(s.to(ACC) * skip_scale[None, :] + skip_shift[None, :]).to(frame.dtype.element_ty)
        tl.store(target + skip_channel[None, :], s, mask=there[:, None])
        skip_count, skip_mean, skip_spread = _merge(skip_count, skip_mean, skip_spread, s.to(ACC), inside, ACC)
        up = tl.maximum((r + 1) // 2 - 1, 0)
        down = tl.minimum((r + 1) // 2, low_height - 1)
        left = tl.maximum((c + 1) // 2 - 1, 0)
        right = tl.minimum((c + 1) // 2, low_width - 1)
        share_r = tl.where(r % 2 == 0, 0.75, 0.25).to(ACC)[:, None]
        share_c = tl.where(c % 2 == 0, 0.75, 0.25).to(ACC)[:, None]
        value = tl.zeros([B, C], ACC)
        for i in tl.static_range(4):
            source_r = down if i >= 2 else up
            source_c = right if i % 2 == 1 else left
            weight = (share_r if i >= 2 else 1.0 - share_r) * (share_c if i % 2 == 1 else 1.0 - share_c)
            place = below + (source_r * low_width + source_c)[:, None].to(tl.int64) * C + channel[None, :]
            x = tl.load(place, mask=there[:, None], other=0.0).to(ACC)
            value += weight * _leaky(x * scale[None, :] + shift[None, :])
        value = value.to(frame.dtype.element_ty)
        tl.store(target + S + channel[None, :], value, mask=there[:, None])
        count, mean, spread = _merge(count, mean, spread, value.to(ACC), inside, ACC)
    _store_moments(partial, skip_channel, S + C, skip_count, skip_mean, skip_spread)
    _store_moments(partial + S, channel, S + C, count, mean, spread)


@_kernel
def join_backward_skip_kernel(
    g,
    skip,
    norm,
    joined,
    out,
    partial,
    height,
    width,
    total_channels: tl.constexpr,
    S: tl.constexpr,
    B: tl.constexpr,
    ACC: tl.constexpr,
):
    """Gradient of the normalised skip (H W, S) and its two sums, from g, the folded gradient of the joined frame.

    joined is (2, S + C), slope and constant of the way through the statistics of the joined tensor.
    """
    channel, row = tl.arange(0, S), tl.arange(0, B)
    scale = tl.load(norm + channel)
    shift = tl.load(norm + S + channel)
    mean = tl.load(norm + 2 * S + channel)
    rstd = tl.load(norm + 3 * S + channel)
    slope = tl.load(joined + channel)
    constant = tl.load(joined + total_channels + channel)
    positions = height * width
    first = tl.zeros([B, S], ACC)
    second = tl.zeros([B, S], ACC)
    for start in range(tl.program_id(0) * B, positions, tl.num_programs(0) * B):
        position = start + row
        inside = (position < positions)[:, None]
        source = (position // width + 1) * (width + 2) + position % width + 1
        place = source[:, None].to(tl.int64) * total_channels + channel[None, :]
        value_g = tl.load(g + place, mask=inside, other=0.0).to(ACC)
        place = position[:, None].to(tl.int64) * S + channel[None, :]
        value = tl.load(skip + place, mask=inside, other=0.0).to(ACC)
        normal = value * scale[None, :] + shift[None, :]
        value_g = _masked(value_g + slope[None, :] * _leaky(normal) + constant[None, :], normal)
        value_g = tl.where(inside, value_g, 0.0).to(out.dtype.element_ty)
        tl.store(out + place, value_g, mask=inside)
        value_g = value_g.to(ACC)
        first += value_g
        second += value_g * (value - mean[None, :]) * rstd[None, :]
    base = partial + tl.program_id(0) * 2 * S + channel
    tl.store(base, tl.sum(first, 0))
    tl.store(base + S, tl.sum(second, 0))


@_kernel
def join_backward_below_kernel(
    g,
    below,
    norm,
    joined,
    out,
    partial,
    height,
    width,
    low_height,
    low_width,
    S: tl.constexpr,
    C: tl.constexpr,
    B: tl.constexpr,
    ACC: tl.constexpr,
):
    """As `join_backward_skip_kernel` for below (ceil(H/2) ceil(W/2), C): the transposed upsampling.

    Row i of below takes part in the rows 2 i - 1 to 2 i + 2 of the upsampled tensor U, by 1/4, 3/4, 3/4, 1/4. The
    slope goes with U itself, and U^T U has three diagonals: 3/8 beside the main one.
    """
    channel, row = tl.arange(0, C), tl.arange(0, B)
    scale = tl.load(norm + channel)[None, :]
    shift = tl.load(norm + C + channel)[None, :]
    mean = tl.load(norm + 2 * C + channel)[None, :]
    rstd = tl.load(norm + 3 * C + channel)[None, :]
    slope = tl.load(joined + S + channel)[None, :]
    constant = tl.load(joined + S + C + S + channel)[None, :]
    positions = low_height * low_width
    first = tl.zeros([B, C], ACC)
    second = tl.zeros([B, C], ACC)
    for start in range(tl.program_id(0) * B, positions, tl.num_programs(0) * B):
        position = start + row
        inside = position < positions
        i = position // low_width
        j = position % low_width
        value_g = tl.zeros([B, C], ACC)
        sum_r = tl.zeros([B], ACC)
        square_r = tl.zeros([B], ACC)
        for a in tl.static_range(4):
            r = 2 * i - 1 + a
            share_r = tl.where((r == 0) | (r == 2 * low_height - 1), 1.0, 0.75 if (a == 1) | (a == 2) else 0.25)
            share_r = tl.where((r >= 0) & (r < height), share_r, 0.0).to(ACC)
            sum_r += share_r
            square_r += share_r * share_r
            sum_c = tl.zeros([B], ACC)
            square_c = tl.zeros([B], ACC)
            for b in tl.static_range(4):
                c = 2 * j - 1 + b
                share_c = tl.where((c == 0) | (c == 2 * low_width - 1), 1.0, 0.75 if (b == 1) | (b == 2) else 0.25)
                share_c = tl.where((c >= 0) & (c < width), share_c, 0.0).to(ACC)
                sum_c += share_c
                square_c += share_c * share_c
                weight = share_r * share_c
                place = ((r + 1) * (width + 2) + c + 1)[:, None].to(tl.int64) * (S + C) + S + channel[None, :]
                part = tl.load(g + place, mask=(inside & (weight > 0))[:, None], other=0.0).to(ACC)
                value_g += weight[:, None] * part
        value = tl.zeros([B, C], ACC)
        squared = tl.zeros([B, C], ACC)
        for a in tl.static_range(3):
            for b in tl.static_range(3):
                r = i - 1 + a
                c = j - 1 + b
                weight = (square_r if a == 1 else 0.375) * (square_c if b == 1 else 0.375)
                part = inside & (r >= 0) & (r < low_height) & (c >= 0) & (c < low_width)
                place = (r * low_width + c)[:, None].to(tl.int64) * C + channel[None, :]
                x = tl.load(below + place, mask=part[:, None], other=0.0).to(ACC)
                if (a == 1) and (b == 1):
                    value += x
                weight = tl.where(part, weight, 0.0).to(ACC)
                squared += weight[:, None] * _leaky(x * scale + shift)
        normal = value * scale + shift
        value_g = _masked(value_g + slope * squared + constant * (sum_r * sum_c)[:, None], normal)
        value_g = tl.where(inside[:, None], value_g, 0.0).to(out.dtype.element_ty)
        tl.store(out + position[:, None].to(tl.int64) * C + channel[None, :], value_g, mask=inside[:, None])
        value_g = value_g.to(ACC)
        first += value_g
        second += value_g * (value - mean) * rstd
    base = partial + tl.program_id(0) * 2 * C + channel
    tl.store(base, tl.sum(first, 0))
    tl.store(base + C, tl.sum(second, 0))


@_kernel
def merge_weight_kernel(weight, norm, out, channels, rows, Q: tl.constexpr, CB: tl.constexpr):
    """out (O, 3, 3, channels), weight (O, channels, 3, 3) with each channel scaled; rows is 9 O."""
    q = tl.program_id(0) * Q + tl.arange(0, Q)
    channel = tl.program_id(1) * CB + tl.arange(0, CB)
    there = (q < rows)[:, None] & (channel < channels)[None, :]
    scale = tl.load(norm + channel, mask=channel < channels, other=0.0)
    value = tl.load(weight + (q // 9)[:, None] * channels * 9 + channel[None, :] * 9 + (q % 9)[:, None], mask=there)
    value = (value * scale[None, :]).to(out.dtype.element_ty)
    tl.store(out + q[:, None] * channels + channel[None, :], value, mask=there)


@_kernel
def merge_weight_backward_kernel(g, weight, norm, out, partial, channels, rows, Q: tl.constexpr, CB: tl.constexpr):
    """out, the gradient of the weight, from g (O, 3, 3, channels), that of the scaled one, and sums for the scale's."""
    q = tl.program_id(0) * Q + tl.arange(0, Q)
    channel = tl.program_id(1) * CB + tl.arange(0, CB)
    there = (q < rows)[:, None] & (channel < channels)[None, :]
    scale = tl.load(norm + channel, mask=channel < channels, other=0.0)
    place = (q // 9)[:, None] * channels * 9 + channel[None, :] * 9 + (q % 9)[:, None]
    value = tl.load(weight + place, mask=there, other=0.0)
    value_g = tl.load(g + q[:, None] * channels + channel[None, :], mask=there, other=0.0).to(value.dtype)
    tl.store(out + place, value_g * scale[None, :], mask=there)
    total = tl.sum(value_g * value, 0)
    tl.store(partial + tl.program_id(0) * channels + channel, total, mask=channel < channels)


@_kernel
def merge_finish_kernel(
    partial, norm, g_gamma, joined, positions, programs, channels, P: tl.constexpr, CB: tl.constexpr
):
    """Gradient of gamma of the joined tensor's normalisation, and joined (2, channels), slope and constant.

    The joined tensor reaches the scale through the variance alone: the way through the mean is closed, for a constant
    per channel has no effect in front of the next normalisation.
    """
    program = tl.arange(0, P)
    channel = tl.program_id(0) * CB + tl.arange(0, CB)
    there = channel < channels
    both = (program < programs)[:, None] & there[None, :]
    g_scale = tl.sum(tl.load(partial + program[:, None] * channels + channel[None, :], mask=both, other=0.0), 0)
    scale = tl.load(norm + channel, mask=there, other=0.0)
    mean = tl.load(norm + 2 * channels + channel, mask=there, other=0.0)
    rstd = tl.load(norm + 3 * channels + channel, mask=there, other=0.0)
    tl.store(g_gamma + channel, g_scale * rstd, mask=there)
    slope = -rstd * rstd * scale * g_scale / positions
    tl.store(joined + channel, slope, mask=there)
    tl.store(joined + channels + channel, -mean * slope, mask=there)


@_kernel
def mix_kernel(
    x,
    norm,
    weight,
    out,
    partial,
    positions,
    C: tl.constexpr,
    B: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out, the normalised and activated x (positions, C) times weight (C, C), and its moments."""
    channel, row = tl.arange(0, C), tl.arange(0, B)
    scale = tl.load(norm + channel)
    shift = tl.load(norm + C + channel)
    w = tl.load(weight + channel[:, None] * C + channel[None, :]).to(x.dtype.element_ty)
    mean = tl.zeros([C], ACC)
    spread = tl.zeros([C], ACC)
    count = tl.sum(tl.zeros([B], ACC), 0)
    for start in range(tl.program_id(0) * B, positions, tl.num_programs(0) * B):
        position = start + row
        inside = position < positions
        place = position[:, None].to(tl.int64) * C + channel[None, :]
        value = tl.load(x + place, mask=inside[:, None], other=0.0).to(ACC)
        z = _leaky(value * scale[None, :] + shift[None, :]).to(x.dtype.element_ty)
        product = tl.dot(z, tl.trans(w), input_precision=PRECISION, out_dtype=ACC).to(out.dtype.element_ty)
        tl.store(out + place, product, mask=inside[:, None])
        count, mean, spread = _merge(count, mean, spread, product.to(ACC), inside, ACC)
    _store_moments(partial, channel, C, count, mean, spread)


@_kernel
def head_kernel(x, norm, weight, bias, y, positions, C: tl.constexpr, B: tl.constexpr, ACC: tl.constexpr):
    """y (positions,), the sigmoid of the normalised and activated x (positions, C) times weight (C,) plus bias (1,)."""
    channel = tl.arange(0, C)
    position = tl.program_id(0) * B + tl.arange(0, B)
    inside = position < positions
    scale = tl.load(norm + channel)
    shift = tl.load(norm + C + channel)
    w = tl.load(weight + channel)
    place = position[:, None].to(tl.int64) * C + channel[None, :]
    value = tl.load(x + place, mask=inside[:, None], other=0.0).to(ACC)
    z = _leaky(value * scale[None, :] + shift[None, :])
    total = tl.sum(z * w[None, :], 1) + tl.load(bias)
    tl.store(y + position, 1.0 / (1.0 + tl.exp(-total)), mask=inside)


@_kernel
def head_backward_kernel(
    g, y, x, norm, weight, g_pre, partial, positions, C: tl.constexpr, B: tl.constexpr, ACC: tl.constexpr
):
    """g_pre (positions,), the gradient in front of the sigmoid, from g, that of y, and four sums by program.

    The sums are those of the gradient of the normalised x and of that times the normalised value, and the gradients of
    the weight and of the bias.
    """
    channel, row = tl.arange(0, C), tl.arange(0, B)
    scale = tl.load(norm + channel)[None, :]
    shift = tl.load(norm + C + channel)[None, :]
    mean = tl.load(norm + 2 * C + channel)[None, :]
    rstd = tl.load(norm + 3 * C + channel)[None, :]
    w = tl.load(weight + channel)[None, :]
    first = tl.zeros([B, C], ACC)
    second = tl.zeros([B, C], ACC)
    third = tl.zeros([B, C], ACC)
    fourth = tl.zeros([B], ACC)
    for start in range(tl.program_id(0) * B, positions, tl.num_programs(0) * B):
        position = start + row
        inside = position < positions
        value_y = tl.load(y + position, mask=inside, other=0.0).to(ACC)
        value_g = tl.load(g + position, mask=inside, other=0.0).to(ACC) * value_y * (1.0 - value_y)
        tl.store(g_pre + position, value_g, mask=inside)
        fourth += value_g
        place = position[:, None].to(tl.int64) * C + channel[None, :]
        value = tl.load(x + place, mask=inside[:, None], other=0.0).to(ACC)
        normal = value * scale + shift
        third += value_g[:, None] * _leaky(normal)
        g_x = _masked(value_g[:, None] * w, normal)
        first += g_x
        second += g_x * (value - mean) * rstd
    base = partial + tl.program_id(0) * 4 * C + channel
    tl.store(base, tl.sum(first, 0))
    tl.store(base + C, tl.sum(second, 0))
    total = tl.sum(third, 0)
    tl.store(base + 2 * C, total)
    tl.store(base + 3 * C, total * 0.0 + tl.sum(fourth, 0))


@_kernel
def mix_backward_kernel(
    x1,
    norm1,
    x2,
    norm2,
    sums2,
    g,
    head,
    weight,
    out,
    partial,
    partial_weight,
    positions,
    HEAD: tl.constexpr,
    ROWS: tl.constexpr,
    C: tl.constexpr,
    B: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of the normalised x1 from that of the normalised x2, g, the result of `mix_kernel`, and its sums.

    With HEAD g is (positions,), that in front of the sigmoid, and head (C,) the weight of the last convolution. Sums
    for the gradient of the weight are (programs, C, C). g may be out.
    """
    channel, row = tl.arange(0, C), tl.arange(0, B)
    w = tl.load(weight + channel[:, None] * C + channel[None, :]).to(x1.dtype.element_ty)
    g_weight = tl.zeros([C, C], ACC)
    first = tl.zeros([C], ACC)
    second = tl.zeros([C], ACC)
    for start in range(tl.program_id(0) * B, positions, tl.num_programs(0) * B):
        position = start + row
        inside = (position < positions)[:, None]
        place = position[:, None].to(tl.int64) * C + channel[None, :]
        # Constants are read anew for each block: there are too many of them to be kept in registers.
        value2 = tl.load(x2 + place, mask=inside, other=0.0).to(ACC)
        if HEAD:
            value_g = tl.load(g + position, mask=position < positions, other=0.0)[:, None]
            value_g = value_g * tl.load(head + channel)[None, :]
            value_g = _masked(
                value_g, value2 * tl.load(norm2 + channel)[None, :] + tl.load(norm2 + C + channel)[None, :]
            )
        else:
            value_g = tl.load(g + place, mask=inside, other=0.0).to(ACC)
        value_g = value_g * tl.load(norm2 + channel)[None, :] + value2 * tl.load(sums2 + ROWS * C + channel)[None, :]
        value_g += tl.load(sums2 + (ROWS + 1) * C + channel)[None, :]
        value_g = tl.where(inside, value_g, 0.0).to(x1.dtype.element_ty)
        value1 = tl.load(x1 + place, mask=inside, other=0.0)
        z = _leaky(value1.to(ACC) * tl.load(norm1 + channel)[None, :] + tl.load(norm1 + C + channel)[None, :])
        z = z.to(x1.dtype.element_ty)
        g_weight += tl.dot(tl.trans(value_g), z, input_precision=PRECISION, out_dtype=ACC)
        g_1 = _masked(tl.dot(value_g, w, input_precision=PRECISION, out_dtype=ACC), z).to(out.dtype.element_ty)
        tl.store(out + place, g_1, mask=inside)
        g_1 = g_1.to(ACC)
        first += tl.sum(g_1, 0)
        normal1 = (value1.to(ACC) - tl.load(norm1 + 2 * C + channel)[None, :]) * tl.load(norm1 + 3 * C + channel)[
            None, :
        ]
        second += tl.sum(g_1 * normal1, 0)
    base = partial + tl.program_id(0) * 2 * C + channel
    tl.store(base, first)
    tl.store(base + C, second)
    tl.store(partial_weight + (tl.program_id(0) * C + channel[:, None]) * C + channel[None, :], g_weight)


@_kernel
def pool_kernel(x, out, width, low_height, low_width, C: tl.constexpr, SKIP: tl.constexpr, B: tl.constexpr):
    """out (low_height low_width, C), the largest of 2 by 2 of the columns from SKIP on of x (H W, SKIP + C)."""
    channel = tl.arange(0, C)
    position = tl.program_id(0) * B + tl.arange(0, B)
    inside = (position < low_height * low_width)[:, None]
    corner = 2 * (position // low_width) * width + 2 * (position % low_width)
    place = x + corner[:, None].to(tl.int64) * (SKIP + C) + SKIP + channel[None, :]
    best = tl.load(place, mask=inside, other=0.0)
    best = tl.maximum(best, tl.load(place + SKIP + C, mask=inside, other=0.0))
    best = tl.maximum(best, tl.load(place + width * (SKIP + C), mask=inside, other=0.0))
    best = tl.maximum(best, tl.load(place + (width + 1) * (SKIP + C), mask=inside, other=0.0))
    place = out + position[:, None].to(tl.int64) * C + channel[None, :]
    tl.store(place, best.to(out.dtype.element_ty), mask=inside)


@_kernel
def unpool_kernel(
    g, x, out, height, width, low_height, low_width, C: tl.constexpr, SKIP: tl.constexpr, B: tl.constexpr
):
    """The columns from SKIP on of out (H W, SKIP + C), gradients of those of x, from g, that of `pool_kernel`'s result.

    Of equal values the first one has it, row by row.
    """
    channel = tl.arange(0, C)
    position = tl.program_id(0) * B + tl.arange(0, B)
    r = position // width
    c = position % width
    there = (position < height * width)[:, None]
    pooled = there & ((r // 2 < low_height) & (c // 2 < low_width))[:, None]
    corner = x + ((r - r % 2) * width + c - c % 2)[:, None].to(tl.int64) * (SKIP + C) + SKIP + channel[None, :]
    best = tl.load(corner, mask=pooled, other=0.0)
    first = tl.zeros([B, C], tl.int32)
    for i in tl.static_range(1, 4):
        value = tl.load(corner + ((i // 2) * width + i % 2) * (SKIP + C), mask=pooled, other=0.0)
        first = tl.where(value > best, i, first)
        best = tl.maximum(best, value)
    place = (r // 2 * low_width + c // 2)[:, None].to(tl.int64) * C + channel[None, :]
    value_g = tl.load(g + place, mask=pooled, other=0.0)
    value_g = tl.where(pooled & (first == (r % 2 * 2 + c % 2)[:, None]), value_g, 0.0)
    place = out + position[:, None].to(tl.int64) * (SKIP + C) + SKIP + channel[None, :]
    tl.store(place, value_g.to(out.dtype.element_ty), mask=there)
