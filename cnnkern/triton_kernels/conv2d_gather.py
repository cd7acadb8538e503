"""The kernel of conv2d and of its gradient of the input: one implicit GEMM that gathers.

    D[o, m] = sum over taps and channels c of W[o, c, tap] * X[c, pixel m moved by the tap]

Both passes are this sum. Forward, pixel m is an output and steps over the input by `stride`.
Backward, the input's pixels fall into stride_h * stride_w phases; in each phase, the taps that meet
the pixel at all are every `step`-th one, and the sum walks over grad with stride 1. No pixel is
ever scattered to, and no product is made with a zero of the stride. Nothing is copied: padding, its
modes, strides, dilation, groups and both layouts are arithmetic on addresses.

Channels come before pixels in a tile, so an unknown layout is read along the pixels, which suits
NCHW; MAJOR tells the compiler where memory runs along the channels. A 1x1 kernel that meets each
pixel once is a matrix product (POINTWISE): a plane is one row, and steps differ by channels alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cnnkern.triton_kernels.activation import activate
from cnnkern.triton_kernels.launch import jit


@triton.jit
def padded_index(i, size, mode):
    """Map a padded coordinate into [0, size), as csrc/params.h does for the modes but zeros."""
    below = tl.where(mode == 1, -i, tl.where(mode == 2, 0, i + size))
    above = tl.where(mode == 1, 2 * (size - 1) - i, tl.where(mode == 2, size - 1, i - size))
    return tl.where(i < 0, below, tl.where(i >= size, above, i))


@triton.jit
def phase_taps(a, pad, stride, dilation, gcd, inverse, step, taps):
    """Return the first tap that meets phase `a`, how many do, and the first pixel they read.

    Tap r meets it where a + pad - r*dilation is a multiple of the stride: one r in every `step`.
    """
    t = a + pad
    first = ((t // gcd) * inverse) % step
    count = tl.where(t % gcd == 0, (tl.maximum(taps - first, 0) + step - 1) // step, 0)
    return first, count, (t - first * dilation) // stride


@triton.jit
def reciprocal(d):
    """Return 2^32 / d rounded up, computed once for all the divisions of a loop."""
    return 0xFFFFFFFF // tl.maximum(d, 1).to(tl.uint32) + 1


@triton.jit
def divide_by_reciprocal(i, d, reciprocal):
    """Return i // d, if i * d < 2^32: the quotient is too large by less than i * d / 2^32 / d."""
    return tl.where(d == 1, i, tl.umulhi(i.to(tl.uint32), reciprocal).to(tl.int32))


@triton.jit
def sum_of_taps(
    x_ptr, w_ptr, only, y_group, acc, h0, w0, in_m, in_y, x_row, w_row, x_height, x_width,
    x_channels, x_limit, x_c, x_h, x_w, w_x, w_r, w_s, count_h, count_w, first_r, first_s,
    step_h, step_w, move_h, move_w, mode, INDEX: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr, PAD: tl.constexpr, BUNDLED: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Add to acc the products of all taps, STEP channels at a time; of one group, if only >= 0."""
    # One loop over taps and channels, which the compiler can pipeline as a whole; it counts, since
    # to divide its index would take more instructions than the product does.
    r, s, first_c = 0, 0, 0
    for _ in range(count_h * count_w * ((x_limit + STEP - 1) // STEP)):
        c = first_c + tl.arange(0, STEP)
        in_c = c < x_limit
        if BUNDLED:
            c_group = c // x_channels
            in_x = in_c & ((only < 0) | (c_group == only))
        else:
            in_x = in_c
        h, w = h0 + r * move_h, w0 + s * move_w
        if PAD:
            h, w = padded_index(h, x_height, mode), padded_index(w, x_width, mode)
        inside = in_m & (h >= 0) & (h < x_height) & (w >= 0) & (w < x_width)
        offset = x_row + h.to(INDEX) * x_h + w.to(INDEX) * x_w
        x = tl.load(
            x_ptr + offset[None, :] + (c.to(INDEX) * x_c)[:, None],
            mask=inside[None, :] & in_x[:, None], other=0.0,
        )  # fmt: skip
        tap_offset = (first_r + r * step_h).to(INDEX) * w_r
        tap_offset += (first_s + s * step_w).to(INDEX) * w_s
        in_w = in_y[:, None] & in_c[None, :]
        if BUNDLED:  # block-diagonal: channels of different groups do not meet
            in_w &= y_group[:, None] == c_group[None, :]
            c = c % x_channels
        offset = w_row[:, None] + (tap_offset + c.to(INDEX) * w_x)[None, :]
        weight = tl.load(w_ptr + offset, mask=in_w, other=0.0)
        acc = tl.dot(weight, x, acc, input_precision=PRECISION, out_dtype=ACC)
        first_c += STEP
        s = tl.where(first_c < x_limit, s, s + 1)
        first_c = tl.where(first_c < x_limit, first_c, 0)
        r = tl.where(s < count_w, r, r + 1)
        s = tl.where(s < count_w, s, 0)
    return acc


@jit
def conv2d_gather_kernel(
    x_ptr, w_ptr, bias_ptr, y_ptr, has_bias, bias_stride,
    batch, x_height, x_width, y_height, y_width, x_channels, y_channels, groups,
    x_n, x_c, x_h, x_w, y_n, y_c, y_h, y_w, w_group, w_y, w_x, w_r, w_s,
    taps_h, taps_w, mode, pad_h, pad_w, dil_h, dil_w, walk_h, walk_w, move_h, move_w,
    phases_h, phases_w, stride_h, stride_w, gcd_h, gcd_w, inverse_h, inverse_w, step_h, step_w,
    bundle_size, pixel_blocks, channel_blocks,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BIG: tl.constexpr, PAD: tl.constexpr,
    ACT: tl.constexpr, MAJOR: tl.constexpr, W_MAJOR: tl.constexpr, VEC: tl.constexpr,
    FLAT: tl.constexpr, BUNDLED: tl.constexpr, POINTWISE: tl.constexpr,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Compute one tile of y, [CHANNELS, PIXELS], for one phase and one bundle of groups.

    x_channels and y_channels are those of one group; a tile works on bundle_size groups at once.
    """
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    pid = tl.program_id(0)
    blocks = pixel_blocks * channel_blocks
    tile, outer = pid % blocks, pid // blocks
    phase, bundle = outer % (phases_h * phases_w), outer // (phases_h * phases_w)
    phase_h, phase_w = phase // phases_w, phase % phases_w
    # Tiles in columns of 8 blocks of pixels: neighbours in time share their weights and inputs.
    column = tile // (8 * channel_blocks)
    rows = tl.minimum(pixel_blocks - 8 * column, 8)
    in_column = tile % (8 * channel_blocks)
    pixel_block, channel_block = 8 * column + in_column % rows, in_column // rows

    # Addresses are counted in units of VEC where the host found all of them to be multiples of it.
    if MAJOR == "channels":
        x_n, x_h, x_w, x_c = x_n * VEC, x_h * VEC, x_w * VEC, 1
        y_n, y_h, y_w, y_c = y_n * VEC, y_h * VEC, y_w * VEC, 1
        x_channels, y_channels = x_channels * VEC, y_channels * VEC
    elif MAJOR == "pixels":
        x_n, x_c, x_w, y_n, y_c, y_w = x_n * VEC, x_c * VEC, 1, y_n * VEC, y_c * VEC, 1
        x_width, y_width = x_width * VEC, y_width * VEC
    if W_MAJOR == "x":
        w_group, w_y, w_r, w_s, w_x = w_group * VEC, w_y * VEC, w_r * VEC, w_s * VEC, 1
    elif W_MAJOR == "y":
        w_group, w_x, w_r, w_s, w_y = w_group * VEC, w_x * VEC, w_r * VEC, w_s * VEC, 1
    if POINTWISE:
        # Told as constants, these leave the alignment of the rest known.
        x_h, y_h, move_h, move_w, w_r, w_s = 0, 0, 0, 0, 0, 0

    first_r, count_h, top = phase_taps(
        phase_h.to(INDEX), pad_h, stride_h, dil_h, gcd_h, inverse_h, step_h, taps_h
    )
    first_s, count_w, left = phase_taps(
        phase_w.to(INDEX), pad_w, stride_w, dil_w, gcd_w, inverse_w, step_w, taps_w
    )
    height = (y_height - phase_h + stride_h - 1) // stride_h
    width = (y_width - phase_w + stride_w - 1) // stride_w
    if POINTWISE:
        height, width = 1, y_width
    m = pixel_block.to(INDEX) * PIXELS + tl.arange(0, PIXELS)
    image, row, col = m // (height * width), m // width % height, m % width
    in_m = m < tl.cast(batch, INDEX) * height * width
    h0, w0 = row, col
    if not POINTWISE:
        h0, w0 = row * walk_h + top, col * walk_w + left

    y_local = channel_block * CHANNELS + tl.arange(0, CHANNELS)
    in_y = y_local < y_channels
    x_limit = x_channels
    bundle_x, bundle_y = bundle * x_channels, bundle * y_channels
    w_row = bundle.to(INDEX) * w_group + y_local.to(INDEX) * w_y
    if BUNDLED:
        bundle_x, bundle_y = bundle_x * bundle_size, bundle_y * bundle_size
        in_y = y_local < tl.minimum(bundle_size * y_channels, groups * y_channels - bundle_y)
        x_limit = tl.minimum(bundle_size * x_channels, groups * x_channels - bundle_x)
        y_group = y_local // y_channels
        w_row = (bundle * bundle_size + y_group).to(INDEX) * w_group
        w_row += (y_local % y_channels).to(INDEX) * w_y
    x_row = image.to(INDEX) * x_n + bundle_x.to(INDEX) * x_c

    acc = tl.zeros((CHANNELS, PIXELS), ACC)
    if FLAT:
        # Few channels: channels and taps are one index, so that no step is padded for each tap.
        taps = count_h * count_w
        taps_reciprocal, count_w_reciprocal = reciprocal(taps), reciprocal(count_w)
        for k0 in range(0, taps * x_limit, STEP):
            k = k0 + tl.arange(0, STEP)
            c = divide_by_reciprocal(k, taps, taps_reciprocal)
            tap = k - c * taps
            r = divide_by_reciprocal(tap, count_w, count_w_reciprocal)
            s = tap - r * count_w
            in_k = k < taps * x_limit
            h, w = h0[None, :] + (r * move_h)[:, None], w0[None, :] + (s * move_w)[:, None]
            if PAD:
                h, w = padded_index(h, x_height, mode), padded_index(w, x_width, mode)
            inside = (h >= 0) & (h < x_height) & (w >= 0) & (w < x_width)
            offset = x_row[None, :] + (c.to(INDEX) * x_c)[:, None] + h.to(INDEX) * x_h + w * x_w
            x = tl.load(x_ptr + offset, mask=inside & in_k[:, None] & in_m[None, :], other=0.0)
            offset = c.to(INDEX) * w_x + (first_r + r * step_h).to(INDEX) * w_r
            offset += (first_s + s * step_w).to(INDEX) * w_s
            weight = tl.load(
                w_ptr + w_row[:, None] + offset[None, :],
                mask=in_y[:, None] & in_k[None, :], other=0.0,
            )  # fmt: skip
            acc = tl.dot(weight, x, acc, input_precision=PRECISION, out_dtype=ACC)
    elif not BUNDLED:
        acc = sum_of_taps(
            x_ptr, w_ptr, -1, y_local, acc, h0, w0, in_m, in_y, x_row, w_row, x_height, x_width,
            x_channels, x_limit, x_c, x_h, x_w, w_x, w_r, w_s, count_h, count_w, first_r, first_s,
            step_h, step_w, move_h, move_w, mode, INDEX, ACC, PRECISION, PAD, BUNDLED, STEP,
        )  # fmt: skip
    else:
        # The zeros between groups turn infinities and NaNs of one into NaNs of the others. Where
        # the result has any NaN, each group is done once more, with the others' input masked.
        only, last = -1, 0
        none = tl.zeros((CHANNELS, PIXELS), ACC)
        while only < last:
            part = sum_of_taps(
                x_ptr, w_ptr, only, y_group, none, h0, w0, in_m, in_y, x_row, w_row, x_height,
                x_width, x_channels, x_limit, x_c, x_h, x_w, w_x, w_r, w_s, count_h, count_w,
                first_r, first_s, step_h, step_w, move_h, move_w, mode, INDEX, ACC, PRECISION, PAD,
                BUNDLED, STEP,
            )  # fmt: skip
            acc = tl.where((only < 0) | (y_group == only)[:, None], part, acc)
            if only < 0:
                any_nan = tl.max(tl.max((part != part).to(tl.int32), 1), 0)
                last = any_nan * bundle_size
            only += 1

    y = bundle_y + y_local
    bias = tl.load(bias_ptr + y.to(INDEX) * bias_stride, mask=in_y & (has_bias != 0), other=0.0)
    acc += bias.to(ACC)[:, None]
    if ACT == "gelu" or ACT == "silu":
        # As if the input of these, which backward asks for, had been saved on the way.
        acc = acc.to(y_ptr.dtype.element_ty).to(ACC)
    acc = activate(acc, ACT)
    offset = image.to(INDEX) * y_n + col.to(INDEX) * y_w
    if not POINTWISE:
        row, col = row * stride_h + phase_h, col * stride_w + phase_w
        offset = image.to(INDEX) * y_n + row.to(INDEX) * y_h + col.to(INDEX) * y_w
    tl.store(
        y_ptr + offset[None, :] + (y.to(INDEX) * y_c)[:, None],
        acc.to(y_ptr.dtype.element_ty), mask=in_m[None, :] & in_y[:, None],
    )  # fmt: skip
