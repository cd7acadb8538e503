"""conv2d and its gradient of the input, as one implicit GEMM that gathers.

    D[o, m] = sum over taps and channels c of W[o, c, tap] * X[c, pixel m moved by the tap]

Both passes are this sum. Forward, pixel m is an output and steps over the input by `stride`.
Backward, the input's pixels fall into stride_h * stride_w phases; in each phase, the taps that meet
the pixel at all are every `step`-th one, and the sum walks over grad with stride 1. No pixel is
ever scattered to, and no product is made with a zero of the stride. Nothing is copied: padding, its
modes, strides, dilation, groups and both layouts are arithmetic on addresses.

Channels come before pixels in a tile, so an unknown layout is read along the pixels, which suits
NCHW; MAJOR tells the compiler where memory runs along the channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from cnnkern.ops import _check_bias, _check_floats, _new, conv2d_output_size, is_nhwc
from cnnkern.triton_kernels.activation import activate
from cnnkern.triton_kernels.config import arch, conv2d_tile
from cnnkern.triton_kernels.launch import accumulator, jit, launch, needs_int64, precision

MODES = {"zeros": 0, "reflect": 1, "replicate": 2, "circular": 3}


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
    FLAT: tl.constexpr, BUNDLED: tl.constexpr,
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

    first_r, count_h, top = phase_taps(
        phase_h, pad_h, stride_h, dil_h, gcd_h, inverse_h, step_h, taps_h
    )
    first_s, count_w, left = phase_taps(
        phase_w, pad_w, stride_w, dil_w, gcd_w, inverse_w, step_w, taps_w
    )
    height = (y_height - phase_h + stride_h - 1) // stride_h
    width = (y_width - phase_w + stride_w - 1) // stride_w
    if MAJOR == "pixels":
        height, width = 1, y_width
    m = pixel_block.to(INDEX) * PIXELS + tl.arange(0, PIXELS)
    image, row, col = m // (height * width), m // width % height, m % width
    in_m = m < batch.to(INDEX) * height * width
    h0, w0 = row, col
    if MAJOR != "pixels":
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
        for k0 in range(0, taps * x_limit, STEP):
            k = k0 + tl.arange(0, STEP)
            c, tap = k // taps, k % taps
            r, s = tap // count_w, tap % count_w
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
    else:
        # One loop over taps and channels, which the compiler can pipeline as a whole.
        steps = (x_limit + STEP - 1) // STEP
        for k in range(count_h * count_w * steps):
            tap = k // steps
            r, s = tap // count_w, tap % count_w
            c = (k % steps) * STEP + tl.arange(0, STEP)
            in_c = c < x_limit
            h, w = h0 + r * move_h, w0 + s * move_w
            if PAD:
                h, w = padded_index(h, x_height, mode), padded_index(w, x_width, mode)
            inside = in_m & (h >= 0) & (h < x_height) & (w >= 0) & (w < x_width)
            offset = x_row + h.to(INDEX) * x_h + w.to(INDEX) * x_w
            x = tl.load(
                x_ptr + offset[None, :] + (c.to(INDEX) * x_c)[:, None],
                mask=inside[None, :] & in_c[:, None], other=0.0,
            )  # fmt: skip
            tap_offset = (first_r + r * step_h).to(INDEX) * w_r
            tap_offset += (first_s + s * step_w).to(INDEX) * w_s
            in_w = in_y[:, None] & in_c[None, :]
            if BUNDLED:  # block-diagonal: channels of different groups do not meet
                in_w &= y_group[:, None] == (c // x_channels)[None, :]
                c = c % x_channels
            offset = w_row[:, None] + (tap_offset + c.to(INDEX) * w_x)[None, :]
            weight = tl.load(w_ptr + offset, mask=in_w, other=0.0)
            acc = tl.dot(weight, x, acc, input_precision=PRECISION, out_dtype=ACC)

    y = bundle_y + y_local
    bias = tl.load(bias_ptr + y.to(INDEX) * bias_stride, mask=in_y & (has_bias != 0), other=0.0)
    acc += bias.to(ACC)[:, None]
    if ACT == "gelu" or ACT == "silu":
        # As if the input of these, which backward asks for, had been saved on the way.
        acc = acc.to(y_ptr.dtype.element_ty).to(ACC)
    acc = activate(acc, ACT)
    offset = image.to(INDEX) * y_n + col.to(INDEX) * y_w
    if MAJOR != "pixels":
        row, col = row * stride_h + phase_h, col * stride_w + phase_w
        offset = image.to(INDEX) * y_n + row.to(INDEX) * y_h + col.to(INDEX) * y_w
    tl.store(
        y_ptr + offset[None, :] + (y.to(INDEX) * y_c)[:, None],
        acc.to(y_ptr.dtype.element_ty), mask=in_m[None, :] & in_y[:, None],
    )  # fmt: skip


# ---- from tensors to launches ------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """One axis of the gather: of the output's rows or columns to the input's."""

    pad: int
    walk: int  # pixels of x from one pixel of y to the next
    move: int  # pixels of x from one tap to the next
    phases: int
    stride: int  # pixels of y from one of a phase to the next
    gcd: int
    inverse: int
    step: int  # taps from one that meets a phase to the next


def _forward_axis(pad: int, stride: int, dilation: int) -> Axis:
    return Axis(-pad, stride, dilation, 1, 1, 1, 0, 1)


def _backward_axis(pad: int, stride: int, dilation: int, size: int) -> Axis:
    gcd = math.gcd(stride, dilation)
    step = stride // gcd
    # Solves r*dilation = a + pad modulo the stride.
    inverse = pow(dilation // gcd, -1, step)
    return Axis(pad, 1, -(dilation // gcd), min(stride, size), stride, gcd, inverse, step)


def _gather(x, weight, bias, y, forward, stride, padding, dilation, groups, mode, ieee, act):
    """Launch y = gather of x; forward, or backward with x = grad and y = grad_input."""
    left, _, top, _ = padding
    taps = weight.shape[2:]
    if forward:
        rows = _forward_axis(top, stride[0], dilation[0])
        cols = _forward_axis(left, stride[1], dilation[1])
    else:
        rows = _backward_axis(top, stride[0], dilation[0], y.size(2))
        cols = _backward_axis(left, stride[1], dilation[1], y.size(3))
    x_channels, y_channels = x.size(1) // groups, y.size(1) // groups
    w_k, w_c, w_r, w_s = weight.stride()
    w_group, (w_y, w_x) = weight.size(0) // groups * w_k, (w_k, w_c) if forward else (w_c, w_k)
    bundle = max(1, min(groups, 16 // max(x_channels, y_channels)))
    flat = bundle == 1 and x_channels < 16
    vec, major, w_major = 1, "any", "any"
    if not flat and bundle == 1:
        vec, major = _vector(x, y, x_channels, y_channels, taps, rows, cols)
    x_sizes, y_sizes = x.shape[2:], y.shape[2:]
    x_strides, y_strides = list(x.stride()), list(y.stride())
    w_strides = [w_group, w_y, w_x, w_r, w_s]
    if major == "channels":
        inner = "x" if w_x == 1 else "y" if w_y == 1 else "any"
        others = (w_group, w_r, w_s, w_y if inner == "x" else w_x)
        if inner != "any" and all(s % vec == 0 for s in others):
            w_major, w_strides = inner, [s // vec for s in w_strides]
        x_strides, y_strides = [s // vec for s in x_strides], [s // vec for s in y_strides]
        x_channels, y_channels = x_channels // vec, y_channels // vec
    elif major == "pixels":
        x_sizes = y_sizes = (1, x_sizes[0] * x_sizes[1] // vec)
        x_strides, y_strides = [s // vec for s in x_strides], [s // vec for s in y_strides]
    phase_pixels = y.size(0) * -(-y.size(2) // rows.stride) * -(-y.size(3) // cols.stride)
    channels = bundle * y.size(1) // groups
    tile = conv2d_tile(x.dtype, ieee, channels, phase_pixels, arch(x.device.index))
    pixel_blocks, channel_blocks = (
        triton.cdiv(phase_pixels, tile.pixels),
        triton.cdiv(channels, tile.channels),
    )
    programs = (
        pixel_blocks * channel_blocks * rows.phases * cols.phases * triton.cdiv(groups, bundle)
    )
    launch(
        conv2d_gather_kernel, programs, x,
        x, weight, weight if bias is None else bias, y, int(bias is not None),
        0 if bias is None else bias.stride(0), y.size(0), *x_sizes, *y_sizes, x_channels,
        y_channels, groups, *x_strides, *y_strides, *w_strides, *taps, MODES[mode], rows.pad,
        cols.pad, *dilation, rows.walk, cols.walk, rows.move, cols.move, rows.phases, cols.phases,
        rows.stride, cols.stride, rows.gcd, cols.gcd, rows.inverse, cols.inverse, rows.step,
        cols.step, bundle, pixel_blocks, channel_blocks,
        ACC=accumulator(x.dtype), PRECISION=ieee, BIG=needs_int64(x, weight, y),
        PAD=mode != "zeros", ACT=act, MAJOR=major, W_MAJOR=w_major, VEC=vec, FLAT=flat,
        BUNDLED=bundle > 1, CHANNELS=tile.channels, PIXELS=tile.pixels, STEP=tile.step,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _vector(x, y, x_channels, y_channels, taps, rows, cols) -> tuple[int, str]:
    """Find along what both tensors' memory runs, and the elements of an aligned 16-byte access."""
    vec = 16 // x.element_size()
    x_n, x_c, x_h, x_w = x.stride()
    y_n, y_c, y_h, y_w = y.stride()
    if x_c == y_c == 1:
        aligned = (x_n, x_h, x_w, y_n, y_h, y_w, x_channels, y_channels)
        return vec if all(n % vec == 0 for n in aligned) else 1, "channels"
    plane = x.size(2) * x.size(3)
    flat = x_w == y_w == 1 and x_h == x.size(3) and y_h == y.size(3)
    one_to_one = (
        taps[0] * taps[1] == rows.walk * cols.walk == rows.stride * cols.stride == 1
        and x.shape[2:] == y.shape[2:]
    )
    if flat and one_to_one and all(n % vec == 0 for n in (plane, x_n, x_c, y_n, y_c)):
        return vec, "pixels"
    return 1, "any"


def conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride=(1, 1),
    padding=(0, 0, 0, 0), dilation=(1, 1), groups: int = 1, padding_mode: str = "zeros",
    algo: str = "auto",
) -> Tensor:  # fmt: skip
    """Convolve: `cnnkern.ops` has the contract."""
    return conv2d_activated(
        "conv2d", input, weight, bias, stride, padding, dilation, groups, padding_mode, algo, "none"
    )


def conv2d_activated(
    op: str, input, weight, bias, stride, padding, dilation, groups, padding_mode, algo, activation
) -> Tensor:
    """Convolve, add the bias and apply the activation in one kernel, on behalf of `op`."""
    _check_floats(op, input=input, weight=weight, bias=bias)
    size = conv2d_output_size(
        op, input.shape, weight.shape, stride, padding, dilation, groups, padding_mode
    )
    _check_bias(op, bias, size[1])
    y = _new(input, size, is_nhwc(input))
    if y.numel():
        _gather(
            input, weight, bias, y, True, stride, padding, dilation, groups, padding_mode,
            precision(op, algo), activation,
        )  # fmt: skip
    return y
