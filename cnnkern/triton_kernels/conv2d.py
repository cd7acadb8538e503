"""conv2d and its gradient of the input: from tensors to launches of the gathering kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from cnnkern.checks import check_bias, check_floats, check_size, conv2d_output_size
from cnnkern.ops import _new, is_nhwc
from cnnkern.triton_kernels.config import conv2d_tile, depthwise_tile
from cnnkern.triton_kernels.conv2d_depthwise import conv2d_depthwise_kernel
from cnnkern.triton_kernels.conv2d_fold import fold
from cnnkern.triton_kernels.conv2d_gather import conv2d_gather_kernel
from cnnkern.triton_kernels.launch import (
    MODES,
    accumulator,
    arch,
    is_depthwise,
    launch,
    needs_int64,
    planes_are_rows,
    precision,
    vectors,
)
from cnnkern.triton_kernels.tuning import choose

# From so many results a channel on, each weight is read by enough tiles to be worth a copy in which
# 16 bytes are read at once and asynchronously.
PIXELS_TO_PACK = 1024


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
    w_strides = _weight_strides(weight, groups, forward)
    depthwise = is_depthwise(groups, x_channels, y_channels)
    bundle = 1 if depthwise else max(1, min(groups, 16 // max(x_channels, y_channels)))
    # Divisions in the kernel hold for 16 * taps^2 < 2^32.
    flat = not depthwise and bundle == 1 and x_channels < 16 and taps[0] * taps[1] < 2**14
    vec, major, w_major, pointwise = 1, "any", "any", False
    if not flat and bundle == 1:
        one_to_one = taps[0] * taps[1] == max(*stride) == 1 and x.shape[2:] == y.shape[2:]
        pointwise = one_to_one and not depthwise and planes_are_rows(x, y)
        widths = (x.size(1), y.size(1)) if depthwise else (x_channels, y_channels)
        vec, major = vectors(x, y, *widths, pointwise)
        if depthwise and x_channels != y_channels:
            vec = 1
    x_sizes, y_sizes = x.shape[2:], y.shape[2:]
    x_strides, y_strides = list(x.stride()), list(y.stride())
    if major != "any":
        x_strides, y_strides = [s // vec for s in x_strides], [s // vec for s in y_strides]
    if pointwise:
        width = x_sizes[0] * x_sizes[1]
        x_sizes = y_sizes = (1, width // vec if major == "pixels" else width)
    phase_pixels = y.size(0) * -(-y.size(2) // rows.stride) * -(-y.size(3) // cols.stride)
    flags = {
        "ACC": accumulator(x.dtype), "PAD": mode != "zeros", "ACT": act, "MAJOR": major, "VEC": vec,
        "BIG": needs_int64(x, weight, y) or max(*x.shape[2:]) + max(*padding) >= 2**30,
    }  # fmt: skip
    if depthwise:
        kernel, channels, parts = conv2d_depthwise_kernel, y.size(1), 1
        tile = choose(
            "conv2d_depthwise", depthwise_tile(major), x, (major,),
            (channels, phase_pixels, taps[0] * taps[1]),
        )  # fmt: skip
        flags["EQUAL"] = x_channels == y_channels
        groups //= vec
    else:
        kernel, channels, parts = conv2d_gather_kernel, bundle * y_channels, -(-groups // bundle)
        if major == "channels":
            w_major, w_strides = _weight_vectors(w_strides, vec)
            if w_major == "any" and phase_pixels >= PIXELS_TO_PACK:
                weight = _packed(weight)
                w_major, w_strides = _weight_vectors(_weight_strides(weight, groups, forward), vec)
        table = conv2d_tile(
            x.dtype, ieee, channels, phase_pixels, x_channels, arch(x), major == "any", flags["BIG"]
        )
        tile = choose(
            "conv2d_gather", table, x,
            (ieee, major, w_major, "flat" if flat else "bundled" if bundle > 1 else "plain"),
            (channels, phase_pixels, x_channels * taps[0] * taps[1]),
        )  # fmt: skip
        if major == "channels":
            x_channels, y_channels = x_channels // vec, y_channels // vec
        flags |= {
            "PRECISION": ieee, "W_MAJOR": w_major, "FLAT": flat, "BUNDLED": bundle > 1,
            "POINTWISE": pointwise, "STEP": tile.step,
        }  # fmt: skip
    pixel_blocks = triton.cdiv(phase_pixels, tile.pixels)
    channel_blocks = triton.cdiv(channels, tile.channels)
    launch(
        kernel, pixel_blocks * channel_blocks * rows.phases * cols.phases * parts, x,
        x, weight, weight if bias is None else bias, y, int(bias is not None),
        0 if bias is None else bias.stride(0), y.size(0), *x_sizes, *y_sizes, x_channels,
        y_channels, groups, *x_strides, *y_strides, *w_strides, *taps, MODES[mode], rows.pad,
        cols.pad, *dilation, rows.walk, cols.walk, rows.move, cols.move, rows.phases, cols.phases,
        rows.stride, cols.stride, rows.gcd, cols.gcd, rows.inverse, cols.inverse, rows.step,
        cols.step, bundle, pixel_blocks, channel_blocks,
        CHANNELS=tile.channels, PIXELS=tile.pixels, num_warps=tile.warps, num_stages=tile.stages,
        **flags,
    )  # fmt: skip


def _packed(weight: Tensor) -> Tensor:
    """Copy a weight to channels_last: what has no padding to fold is only copied."""
    packed = _new(weight, weight.shape, True)
    fold(weight, packed, (0, 0, 0, 0), "replicate")
    return packed


def _weight_strides(weight: Tensor, groups: int, forward: bool) -> list[int]:
    """Return the strides of group, channels of y, channels of x, and taps."""
    k, c, r, s = weight.stride()
    return [weight.size(0) // groups * k, *((k, c) if forward else (c, k)), r, s]


def _weight_vectors(strides: list[int], vec: int) -> tuple[str, list[int]]:
    """Find along which channels the weight's memory runs, if its addresses are multiples of vec."""
    group, y, x, r, s = strides
    for inner, other, name in ((x, y, "x"), (y, x, "y")):
        if inner == 1 and all(n % vec == 0 for n in (group, other, r, s)):
            return name, [n // vec for n in strides]
    return "any", strides


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
    check_floats(op, input=input, weight=weight, bias=bias)
    size = conv2d_output_size(
        op, input.shape, weight.shape, stride, padding, dilation, groups, padding_mode
    )
    check_bias(op, bias, size[1])
    y = _new(input, size, is_nhwc(input))
    if y.numel():
        _gather(
            input, weight, bias, y, True, stride, padding, dilation, groups, padding_mode,
            precision(op, algo), activation,
        )  # fmt: skip
    return y


def conv2d_input_grad(
    grad: Tensor, weight: Tensor, input_size, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1),
    groups: int = 1, padding_mode: str = "zeros", algo: str = "auto",
) -> Tensor:  # fmt: skip
    """Differentiate conv2d by its input: `cnnkern.ops` has the contract."""
    op = "conv2d_input_grad"
    check_floats(op, grad=grad, weight=weight)
    size = conv2d_output_size(
        op, input_size, weight.shape, stride, padding, dilation, groups, padding_mode
    )
    check_size(op, "grad", grad, size)
    ieee, nhwc = precision(op, algo), is_nhwc(grad)
    y = _new(grad, input_size, nhwc)
    if y.numel() == 0:
        return y
    if padding_mode == "zeros":
        _gather(
            grad, weight, None, y, False, stride, padding, dilation, groups, "zeros", ieee, "none"
        )
        return y
    # Elements that the padding copied add up their copies' gradients, in the order of the rows.
    left, right, top, bottom = padding
    N, C, H, W = input_size
    padded = _new(grad, (N, C, H + top + bottom, W + left + right), nhwc, _wide(grad.dtype))
    _gather(
        grad, weight, None, padded, False, stride, (0, 0, 0, 0), dilation, groups, "zeros", ieee,
        "none",
    )  # fmt: skip
    fold(padded, y, padding, padding_mode)
    return y


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
