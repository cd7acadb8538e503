"""conv2d's gradients of weight and bias: sums over all pixels, in two stages of fixed order.

    D[k, (tap, c)] = sum over pixels m of G[k, m] * X[c, pixel m moved by the tap]

The pixels are cut into chunks, by the problem's geometry alone; each program sums one chunk into
its own slice of a workspace, and a second kernel adds the slices in order. No atomics: results are
the same on every run and device. With one chunk the first kernel writes the result.

Depthwise weights and the bias have no matrix product in them: a program sums its tile along the
pixels, one element per thread, and then across.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cnnkern.checks import check_4d, check_floats, check_size, conv2d_output_size
from cnnkern.ops import _new
from cnnkern.triton_kernels.config import conv2d_weight_tile, pixel_chunk, pixel_sum_tile
from cnnkern.triton_kernels.conv2d_gather import padded_index
from cnnkern.triton_kernels.index import divide, magic
from cnnkern.triton_kernels.launch import (
    MODES,
    accumulator,
    arch,
    is_depthwise,
    jit,
    launch,
    needs_int64,
    planes_are_rows,
    precision,
    vectors,
)
from cnnkern.triton_kernels.tuning import choose

REDUCE_BLOCK = 256


@triton.jit
def unravel_pixel(m, height, width, area_magic, width_magic, BIG: tl.constexpr):
    """Split the index of a pixel into image, row and column."""
    image = divide(m, height * width, area_magic, BIG)
    rest = m - image * (height * width)
    row = divide(rest, width, width_magic, BIG)
    return image, row, rest - row * width


@jit
def conv2d_weight_grad_kernel(
    g_ptr, x_ptr, part_ptr, batch, g_height, g_width, area_magic, width_magic, x_height, x_width,
    g_channels, x_channels, groups, g_n, g_c, g_h, g_w, x_n, x_c, x_h, x_w, taps_h, taps_w, mode,
    pad_h, pad_w, dil_h, dil_w, walk_h, walk_w, bundle_size, steps, channel_blocks, column_blocks,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BIG: tl.constexpr, PAD: tl.constexpr,
    MAJOR: tl.constexpr, VEC: tl.constexpr, FLAT: tl.constexpr, BUNDLED: tl.constexpr,
    POINTWISE: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Compute one tile of one slice of the weight's gradient, [CHANNELS, COLUMNS].

    g_channels and x_channels are those of one group. A tile has the columns of one tap or, if FLAT,
    of channels and taps as they come.
    """
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    pid = tl.program_id(0)
    blocks = channel_blocks * column_blocks
    tile, outer = pid % blocks, pid // blocks
    bundles = (groups + bundle_size - 1) // bundle_size
    bundle, split = outer % bundles, outer // bundles
    channel_block, column_block = tile % channel_blocks, tile // channel_blocks
    taps = taps_h * taps_w
    if MAJOR == "channels":
        g_n, g_h, g_w, g_c = g_n * VEC, g_h * VEC, g_w * VEC, 1
        x_n, x_h, x_w, x_c = x_n * VEC, x_h * VEC, x_w * VEC, 1
        g_channels, x_channels = g_channels * VEC, x_channels * VEC
    elif MAJOR == "pixels":
        g_n, g_c, g_w, x_n, x_c, x_w = g_n * VEC, g_c * VEC, 1, x_n * VEC, x_c * VEC, 1
        g_width, x_width = g_width * VEC, x_width * VEC

    k_limit, c_limit = g_channels, x_channels
    if BUNDLED:
        left_over = tl.minimum(groups - bundle * bundle_size, bundle_size)
        k_limit, c_limit = left_over * g_channels, left_over * x_channels
    k = channel_block * CHANNELS + tl.arange(0, CHANNELS)
    in_k = k < k_limit
    first_group = bundle * bundle_size
    g_row = (first_group * g_channels + k).to(INDEX) * g_c
    if FLAT:
        column = column_block * COLUMNS + tl.arange(0, COLUMNS)
        c, tap = column % x_channels, column // x_channels
        in_c = tap < taps
    else:
        c_blocks = column_blocks // taps
        tap = column_block // c_blocks
        c = (column_block % c_blocks) * COLUMNS + tl.arange(0, COLUMNS)
        in_c = c < c_limit
    move_h, move_w = tap // taps_w * dil_h - pad_h, tap % taps_w * dil_w - pad_w
    x_row = (first_group * x_channels + c).to(INDEX) * x_c

    acc = tl.zeros((CHANNELS, COLUMNS), ACC)
    for step in range(steps):
        m = (split.to(INDEX) * steps + step) * STEP + tl.arange(0, STEP)
        in_m = m < tl.cast(batch, INDEX) * g_height * g_width
        if POINTWISE:  # by plain divisions, which leave the alignment known
            image, col = m // g_width, m % g_width
            row = col * 0
        else:
            image, row, col = unravel_pixel(m, g_height, g_width, area_magic, width_magic, BIG)
        if POINTWISE:
            inside, x_pixel = in_m, image.to(INDEX) * x_n + col.to(INDEX) * x_w
        elif FLAT:
            h = (row * walk_h)[None, :] + move_h[:, None]
            w = (col * walk_w)[None, :] + move_w[:, None]
            if PAD:
                h, w = padded_index(h, x_height, mode), padded_index(w, x_width, mode)
            inside = (h >= 0) & (h < x_height) & (w >= 0) & (w < x_width) & in_m[None, :]
            x_pixel = (image.to(INDEX) * x_n)[None, :] + h.to(INDEX) * x_h + w.to(INDEX) * x_w
        else:
            h, w = row * walk_h + move_h, col * walk_w + move_w
            if PAD:
                h, w = padded_index(h, x_height, mode), padded_index(w, x_width, mode)
            inside = in_m & (h >= 0) & (h < x_height) & (w >= 0) & (w < x_width)
            x_pixel = image.to(INDEX) * x_n + h.to(INDEX) * x_h + w.to(INDEX) * x_w
        if not FLAT:
            inside, x_pixel = inside[None, :], x_pixel[None, :]
        g_pixel = image.to(INDEX) * g_n + row.to(INDEX) * g_h + col.to(INDEX) * g_w
        g = tl.load(
            g_ptr + g_row[:, None] + g_pixel[None, :], mask=in_k[:, None] & in_m[None, :],
            other=0.0,
        )  # fmt: skip
        x = tl.load(x_ptr + x_row[:, None] + x_pixel, mask=in_c[:, None] & inside, other=0.0)
        acc = tl.dot(g, tl.trans(x), acc, input_precision=PRECISION, out_dtype=ACC)

    mask = in_k[:, None] & in_c[None, :]
    place = first_group * g_channels + k
    if BUNDLED:  # products of different groups are no part of the result
        mask &= (k // g_channels)[:, None] == (c // x_channels)[None, :]
        c = c % x_channels
    size = tl.cast(groups, tl.int64) * g_channels * x_channels * taps
    offset = (place.to(tl.int64) * x_channels)[:, None] + c[None, :]
    offset = split * size + offset * taps + (tap[None, :] if FLAT else tap)
    tl.store(part_ptr + offset, acc.to(part_ptr.dtype.element_ty), mask=mask)


@jit
def conv2d_pixel_sum_kernel(
    g_ptr, x_ptr, part_ptr, batch, g_height, g_width, area_magic, width_magic, x_height, x_width,
    channels, multiplier, g_n, g_c, g_h, g_w, x_n, x_c, x_h, x_w, taps_h, taps_w, mode,
    pad_h, pad_w, dil_h, dil_w, walk_h, walk_w, steps, channel_blocks,
    ACC: tl.constexpr, BIG: tl.constexpr, PAD: tl.constexpr, HAS_X: tl.constexpr,
    MAJOR: tl.constexpr, CHANNELS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Sum g, or g times the x that one tap of a depthwise convolution reads, along a chunk."""
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    pid = tl.program_id(0)
    taps = taps_h * taps_w
    tap, outer = pid % taps, pid // taps
    channel_block, split = outer % channel_blocks, outer // channel_blocks
    if MAJOR == "channels":
        g_c, x_c = 1, 1
    k = channel_block * CHANNELS + tl.arange(0, CHANNELS)
    in_k = k < channels
    g_row, x_row = k.to(INDEX) * g_c, (k // multiplier).to(INDEX) * x_c
    move_h, move_w = tap // taps_w * dil_h - pad_h, tap % taps_w * dil_w - pad_w

    acc = tl.zeros((CHANNELS, STEP), ACC)
    for step in range(steps):
        m = (split.to(INDEX) * steps + step) * STEP + tl.arange(0, STEP)
        image, row, col = unravel_pixel(m, g_height, g_width, area_magic, width_magic, BIG)
        inside = m < tl.cast(batch, INDEX) * g_height * g_width
        h, w = row * walk_h + move_h, col * walk_w + move_w
        if PAD:
            h, w = padded_index(h, x_height, mode), padded_index(w, x_width, mode)
        if HAS_X:
            inside = inside & (h >= 0) & (h < x_height) & (w >= 0) & (w < x_width)
        mask = in_k[:, None] & inside[None, :]
        offset = image.to(INDEX) * g_n + row.to(INDEX) * g_h + col.to(INDEX) * g_w
        g = tl.load(g_ptr + g_row[:, None] + offset[None, :], mask=mask, other=0.0).to(ACC)
        if HAS_X:
            offset = image.to(INDEX) * x_n + h.to(INDEX) * x_h + w.to(INDEX) * x_w
            x = tl.load(x_ptr + x_row[:, None] + offset[None, :], mask=mask, other=0.0).to(ACC)
            acc += g * x
        else:
            acc += g
    total = tl.sum(acc, 1)
    offset = (split.to(tl.int64) * channels + k) * taps + tap
    tl.store(part_ptr + offset, total.to(part_ptr.dtype.element_ty), mask=in_k)


@jit
def sum_slices_kernel(
    part_ptr, y_ptr, size, slices, BIG: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add slices of `size` elements, first to last."""
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    i = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), part_ptr.dtype.element_ty)
    for slice in range(slices):
        acc += tl.load(part_ptr + tl.cast(slice, tl.int64) * size + i, mask=i < size, other=0.0)
    tl.store(y_ptr + i, acc.to(y_ptr.dtype.element_ty), mask=i < size)


# ---- from tensors to launches ------------------------------------------------------------------


def _workspace(y: Tensor, slices: int) -> Tensor:
    """Return where the first stage writes: slices in the type of the sums, or the result itself."""
    if slices == 1:
        return y
    dtype = torch.float64 if y.dtype == torch.float64 else torch.float32
    return torch.empty((slices, y.numel()), dtype=dtype, device=y.device)


def _sum_slices(part: Tensor, y: Tensor, slices: int) -> None:
    if slices > 1:
        launch(
            sum_slices_kernel, triton.cdiv(y.numel(), REDUCE_BLOCK), y, part, y, y.numel(), slices,
            BIG=needs_int64(y), BLOCK=REDUCE_BLOCK,
        )  # fmt: skip


def conv2d_weight_grad(
    grad: Tensor, input: Tensor, weight_size, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1),
    groups: int = 1, padding_mode: str = "zeros", algo: str = "auto",
) -> Tensor:  # fmt: skip
    """Differentiate conv2d by its weight: `cnnkern.ops` has the contract."""
    op = "conv2d_weight_grad"
    check_floats(op, grad=grad, input=input)
    size = conv2d_output_size(
        op, input.shape, weight_size, stride, padding, dilation, groups, padding_mode
    )
    check_size(op, "grad", grad, size)
    ieee = precision(op, algo)
    y = _new(grad, weight_size, False)
    K, C, R, S = weight_size
    if is_depthwise(groups, C, K // groups) and C == 1:
        _pixel_sum(grad, input, y, (R, S), stride, padding, dilation, padding_mode, K // groups)
        return y
    g, x, k = grad, input, K // groups
    bundle = max(1, min(groups, 16 // max(C, k)))
    flat = bundle == 1 and C < 16
    vec, major, pointwise = 1, "any", False
    if not flat and bundle == 1:
        one_to_one = R * S == max(*stride) == 1 and g.shape[2:] == x.shape[2:] and not any(padding)
        pointwise = one_to_one and planes_are_rows(g, x)
        vec, major = vectors(g, x, k, C, pointwise)
    columns, pixels = C * R * S if flat else bundle * C, size[0] * size[2] * size[3]
    tile = choose(
        "conv2d_weight_grad",
        conv2d_weight_tile(g.dtype, ieee, bundle * k, columns, arch(g), major == "any"),
        g, (ieee, major, "flat" if flat else "bundled" if bundle > 1 else "plain"),
        (bundle * k, columns, R * S, pixels),
    )  # fmt: skip
    channel_blocks = triton.cdiv(bundle * k, tile.channels)
    if flat:
        column_blocks = triton.cdiv(C * R * S, tile.pixels)
    else:
        column_blocks = R * S * triton.cdiv(bundle * C, tile.pixels)
    programs = channel_blocks * column_blocks * triton.cdiv(groups, bundle)
    steps, slices = pixel_chunk(pixels, programs, tile.step)
    part = _workspace(y, slices)
    g_sizes, x_sizes = g.shape[2:], x.shape[2:]
    g_strides, x_strides = g.stride(), x.stride()
    if major != "any":
        g_strides, x_strides = [s // vec for s in g_strides], [s // vec for s in x_strides]
    if major == "channels":
        k, C = k // vec, C // vec
    if pointwise:
        width = g_sizes[0] * g_sizes[1]
        g_sizes = x_sizes = (1, width // vec if major == "pixels" else width)
    launch(
        conv2d_weight_grad_kernel, programs * slices, y,
        g, x, part, size[0], *g_sizes, magic(g_sizes[0] * g_sizes[1]), magic(g_sizes[1]),
        *x_sizes, k, C, groups, *g_strides, *x_strides, R, S,
        MODES[padding_mode], padding[2], padding[0], *dilation, *stride, bundle, steps,
        channel_blocks, column_blocks,
        ACC=accumulator(g.dtype), PRECISION=ieee, BIG=_big(g, x, y, padding),
        PAD=padding_mode != "zeros", MAJOR=major, VEC=vec, FLAT=flat, BUNDLED=bundle > 1,
        POINTWISE=pointwise, CHANNELS=tile.channels, COLUMNS=tile.pixels, STEP=tile.step,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    _sum_slices(part, y, slices)
    return y


def conv2d_bias_grad(grad: Tensor) -> Tensor:
    """Differentiate conv2d by its bias: `cnnkern.ops` has the contract."""
    check_floats("conv2d_bias_grad", grad=grad)
    check_4d("conv2d_bias_grad", "grad", grad, "[N, K, P, Q]")
    y = grad.new_empty(grad.size(1))
    one, none = (1, 1), (0, 0, 0, 0)
    _pixel_sum(grad, None, y, one, one, none, one, "zeros", 1)
    return y


def _pixel_sum(grad, input, y, taps, stride, padding, dilation, mode, multiplier) -> None:
    if y.numel() == 0:
        return
    x = grad if input is None else input
    nhwc = grad.stride(1) == x.stride(1) == 1
    major, pixels = "channels" if nhwc else "any", grad.numel() // grad.size(1)
    tile = choose(
        "conv2d_pixel_sum", pixel_sum_tile(major), grad, (major, "bias" if input is None else "x"),
        (grad.size(1), pixels, taps[0] * taps[1]),
    )  # fmt: skip
    channel_blocks = triton.cdiv(grad.size(1), tile.channels)
    programs = channel_blocks * taps[0] * taps[1]
    steps, slices = pixel_chunk(pixels, programs, tile.step)
    part, (P, Q) = _workspace(y, slices), grad.shape[2:]
    launch(
        conv2d_pixel_sum_kernel, programs * slices, y,
        grad, x, part, grad.size(0), P, Q, magic(P * Q), magic(Q), *x.shape[2:], grad.size(1),
        multiplier,
        *grad.stride(), *x.stride(), *taps, MODES[mode], padding[2], padding[0], *dilation,
        *stride, steps, channel_blocks,
        ACC=accumulator(grad.dtype), BIG=_big(grad, x, y, padding), PAD=mode != "zeros",
        HAS_X=input is not None, MAJOR=major, CHANNELS=tile.channels, STEP=tile.step,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    _sum_slices(part, y, slices)


def _big(g: Tensor, x: Tensor, y: Tensor, padding) -> bool:
    return needs_int64(g, x, y) or max(x.shape[2:]) + max(padding) >= 2**30
