"""Max and average pools, plain and adaptive: a kernel with a thread per output, and a global one.

    y[n, c, p, q] = max or mean of x[n, c, h, w] over the window that starts at (p, q)'s corner

Threads follow the output's memory, so stores are whole lines, and neighbours read neighbouring
windows. channels_last tensors are read 16 bytes of channels at a time. A window's corner and end
are all that differs between plain, padded, dilated, ceil_mode and adaptive pools. What backward
needs of a max pool is one byte an output: the offset of the maximum inside its window. A window of
the whole plane is too long for one thread, so neighbours share it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cnnkern.checks import (
    check_adaptive,
    check_divisor,
    check_floats,
    pool2d_output_size,
    saved_dtype,
)
from cnnkern.ops import _new, is_nhwc
from cnnkern.triton_kernels.activation import activate
from cnnkern.triton_kernels.config import plane_tile
from cnnkern.triton_kernels.index import Walk, flat_index, unravel
from cnnkern.triton_kernels.launch import accumulator, jit, launch, needs_int64
from cnnkern.triton_kernels.tuning import choose

SMALLEST = 32  # elements of a plane that several threads share
# Windows with kernels of their own, which know as constants: size, stride, padding, dilation.
KNOWN_WINDOWS = (
    (2, 2, 2, 2, 0, 0, 1, 1),
    (3, 3, 2, 2, 1, 1, 1, 1),
)


def known_window(*window: int) -> tuple[int, ...] | None:
    """Return the window as a kernel's KNOWN constant, if it is a common one."""
    return window if window in KNOWN_WINDOWS else None


@triton.jit
def window_start(i, size, count, stride, pad, ADAPTIVE: tl.constexpr):
    """Return where window i of `count` starts, which may be in the padding."""
    return i * size // count if ADAPTIVE else i * stride - pad


@triton.jit
def window_stop(i, start, size, count, taps, dil, ADAPTIVE: tl.constexpr):
    """Return the end of window i, which may be beyond the plane."""
    return ((i + 1) * size + count - 1) // count if ADAPTIVE else start + (taps - 1) * dil + 1


@triton.jit
def window_divisor(start, stop, size, pad, include_pad):
    """Count what an average divides by along one axis; never what hangs over the padding."""
    counted = tl.minimum(stop, size + pad) - start
    clipped = tl.minimum(stop, size) - tl.maximum(start, 0)
    return tl.where(include_pad != 0, counted, clipped)


@triton.jit
def divided(total, count):
    """Return total / count in the type of `total`, correctly rounded."""
    if total.dtype == tl.float64:
        quotient = total / tl.cast(count, tl.float64)
    else:
        quotient = tl.div_rn(total, tl.cast(count, tl.float32))
    return quotient


@jit
def pool2d_kernel(
    x_ptr, y_ptr, saved_ptr, units, C, C_magic, P, P_magic, Q, Q_magic, H, W, x_n, x_c, x_h, x_w,
    R, S, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, include_pad, divisor,
    KIND: tl.constexpr, SAVE: tl.constexpr, ACT: tl.constexpr, ADAPTIVE: tl.constexpr,
    KNOWN: tl.constexpr,
    NHWC: tl.constexpr, VEC: tl.constexpr, BIG: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Pool UNITS * VEC outputs; ACT is applied to what is read."""
    if KNOWN is not None:
        R, S, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w = KNOWN
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    unit, lane, mask = flat_index(units, VEC, BIG, UNITS)
    n, c, p, q = unravel(unit, C, C_magic, P, P_magic, Q, Q_magic, NHWC, BIG)
    h0 = window_start(p, H, P, stride_h, pad_h, ADAPTIVE)
    w0 = window_start(q, W, Q, stride_w, pad_w, ADAPTIVE)
    h1 = window_stop(p, h0, H, P, R, dil_h, ADAPTIVE)
    w1 = window_stop(q, w0, W, Q, S, dil_w, ADAPTIVE)
    h_end, w_end = tl.minimum(h1, H), tl.minimum(w1, W)
    base = (n * x_n + c * x_c) * VEC + lane

    if KIND == "max":
        value = tl.full((UNITS, VEC), -float("inf"), ACC)
        # The first tap inside the plane: the choice where nothing is larger than -inf.
        r0 = (tl.maximum(-h0, 0) + dil_h - 1) // dil_h
        s0 = (tl.maximum(-w0, 0) + dil_w - 1) // dil_w
        at = (h0 + r0 * dil_h) * W + w0 + s0 * dil_w if SAVE == "indices" else r0 * S + s0
        at = tl.broadcast_to(at, (UNITS, VEC))
    else:
        value = tl.zeros((UNITS, VEC), ACC)
    for r in range(R):
        h = h0 + r * dil_h
        inside_h = mask & (h >= 0) & (h < h_end)
        row = base + h * x_h * VEC
        for s in range(S):
            w = w0 + s * dil_w
            inside = inside_h & (w >= 0) & (w < w_end)
            if KIND == "max":
                x = tl.load(x_ptr + (row + w * x_w * VEC), mask=inside, other=-float("inf"))
                x = activate(x.to(ACC), ACT)
                if ACT != "none":  # which may have raised the -inf of what is outside
                    x = tl.where(inside, x, -float("inf"))
                take = (x > value) | (x != x)
                value = tl.where(take, x, value)
                if SAVE == "indices":
                    at = tl.where(take, h * W + w, at)
                elif SAVE == "offsets":
                    at = tl.where(take, r * S + s, at)
            else:
                x = tl.load(x_ptr + (row + w * x_w * VEC), mask=inside, other=0.0)
                x = activate(x.to(ACC), ACT)
                value += tl.where(inside, x, 0.0) if ACT != "none" else x

    if KIND == "avg":
        count = window_divisor(h0, h1, H, pad_h, include_pad)
        count *= window_divisor(w0, w1, W, pad_w, include_pad)
        value = divided(value, tl.where(divisor != 0, divisor, count))
    y = unit * VEC + lane
    tl.store(y_ptr + y, value.to(y_ptr.dtype.element_ty), mask=mask)
    if SAVE == "offsets":
        tl.store(saved_ptr + y, at.to(tl.uint8), mask=mask)
    elif SAVE == "indices":
        tl.store(saved_ptr + y, at.to(tl.int64), mask=mask)


@triton.jit
def larger(value, at, other, other_at):
    """Choose the larger of two elements of a window, as max_pool2d does."""
    either = (value != value) | (other != other)
    # NaN beats everything, the last one of several; the first of equal values is taken.
    last = (other != other) & ((value == value) | (other_at > at))
    greater = (other > value) | ((other == value) & (other_at < at))
    take = tl.where(either, last, greater)
    return tl.where(take, other, value), tl.where(take, other_at, at)


@jit
def plane_pool2d_kernel(
    x_ptr, y_ptr, saved_ptr, N, C, size, blocks, x_n, x_c, x_i, divisor,
    KIND: tl.constexpr, SAVE: tl.constexpr, ACC: tl.constexpr, NHWC: tl.constexpr,
    VEC: tl.constexpr, BIG: tl.constexpr, PLANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pool whole planes, BLOCK elements of PLANES planes at a time, and across at the end.

    What the layout has in vectors, channels or a plane's elements, is counted in units of VEC.
    """
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    x_n = x_n * VEC
    if NHWC:
        C, x_i, x_c = C * VEC, x_i * VEC, 1
        n = (tl.program_id(0) // blocks).to(INDEX)
        c = (tl.program_id(0) % blocks) * PLANES + tl.arange(0, PLANES)
    else:
        size, x_c, x_i = size * VEC, x_c * VEC, 1
        plane = tl.program_id(0).to(INDEX) * PLANES + tl.arange(0, PLANES)
        n, c = plane // C, plane % C
    in_plane = (n < N) & (c < C)
    base = n * x_n + c.to(INDEX) * x_c
    value = tl.full((PLANES, BLOCK), 0.0 if KIND == "avg" else -float("inf"), ACC)
    at = tl.zeros((PLANES, BLOCK), INDEX) + tl.arange(0, BLOCK)[None, :]
    for start in range(0, size, BLOCK):
        i = tl.cast(start, INDEX) + tl.arange(0, BLOCK)
        mask = in_plane[:, None] & (i < size)[None, :]
        offset = base[:, None] + (i * x_i)[None, :]
        if KIND == "avg":
            value += tl.load(x_ptr + offset, mask=mask, other=0.0).to(ACC)
        else:
            x = tl.load(x_ptr + offset, mask=mask, other=-float("inf")).to(ACC)
            take = (x > value) | (x != x)
            value, at = tl.where(take, x, value), tl.where(take, i[None, :], at)
    if KIND == "avg":
        y = divided(tl.sum(value, 1), divisor)
    else:
        y, at = tl.reduce((value, at), 1, larger)
    plane = n * C + c
    if SAVE != "none":
        tl.store(saved_ptr + plane, at.to(saved_ptr.dtype.element_ty), mask=in_plane)
    tl.store(y_ptr + plane, y.to(y_ptr.dtype.element_ty), mask=in_plane)


def is_whole_plane(x: Tensor, y: Tensor, nhwc: bool, window: tuple, adaptive: bool) -> bool:
    """Tell whether the one window of each plane is the plane, in memory without gaps, and large."""
    H, W = x.shape[2:]
    dense = x.stride(2) == W * x.stride(3) and (nhwc or x.stride(3) == 1)
    whole = adaptive or window == (H, W, *window[2:4], 0, 0, 1, 1)
    return dense and whole and y.shape[2:] == (1, 1) and H * W >= SMALLEST


def run_plane_pool2d(
    x: Tensor, y: Tensor, nhwc: bool, kind: str, saved: Tensor | None, divisor: int
) -> None:
    """Pool each plane of `x` to one element of `y`."""
    (N, C, H, W), (x_n, x_c, _, x_w) = x.shape, x.stride()
    size, vec = H * W, 16 // x.itemsize
    if any(n % vec for n in ((C, x_n, x_w) if nhwc else (size, x_n, x_c))):
        vec = 1
    major = "channels" if nhwc else "pixels"
    tile = choose(
        "plane_pool2d", plane_tile(major), x, (kind, major, vec), (N * C, size)
    )  # fmt: skip
    blocks = triton.cdiv(C, tile.channels)
    programs = N * blocks if nhwc else triton.cdiv(N * C, tile.channels)
    launch(
        plane_pool2d_kernel, programs, x, x, y, y if saved is None else saved, N,
        C // vec if nhwc else C, size if nhwc else size // vec, blocks, x_n // vec,
        x_c if nhwc else x_c // vec, x_w // vec if nhwc else x_w, divisor or size,
        KIND=kind, SAVE="none" if saved is None else "at", ACC=accumulator(x.dtype), NHWC=nhwc,
        VEC=vec, BIG=needs_int64(x, y) or size >= 2**30, PLANES=tile.channels, BLOCK=tile.pixels,
        num_warps=tile.warps,
    )  # fmt: skip


def run_pool2d(
    x: Tensor, y: Tensor, nhwc: bool, window: tuple, kind: str, *, saved: Tensor | None = None,
    include_pad: bool = True, divisor: int = 0, activation: str = "none", adaptive: bool = False,
) -> None:  # fmt: skip
    """Pool `x` into `y`; `window` is R, S, stride, padding and dilation, (height, width) each."""
    if activation == "none" and is_whole_plane(x, y, nhwc, window, adaptive):
        run_plane_pool2d(x, y, nhwc, kind, saved, divisor)
        return
    H, W = x.shape[2:]
    P, Q = y.shape[2:]
    # A product of the extents is formed by adaptive windows, and by indices.
    big = H * W >= 2**31 or (adaptive and max((P + 1) * H, (Q + 1) * W) >= 2**31)
    outputs = (y,) if saved is None else (y, saved)
    taps = window[0] * window[1]
    walk = Walk("pool2d", kind, taps, y, nhwc, x, *outputs[1:], also_big=big)
    save = "none" if saved is None else "offsets" if saved.dtype == torch.uint8 else "indices"
    launch(
        pool2d_kernel, walk.programs, x, x, y, y if saved is None else saved, *walk.sizes(), H, W,
        *walk.strides(x), *window, int(include_pad), divisor,
        KIND=kind, SAVE=save, ACT=activation, ADAPTIVE=adaptive, KNOWN=known_window(*window),
        **walk.meta(),
    )  # fmt: skip


def adaptive_window(input_size, output_size) -> tuple[int, ...]:
    """Return the window arguments of an adaptive pool: R x S bounds the size of its windows."""
    taps = (h // p if h % p == 0 else h // p + 2 for h, p in zip(input_size, output_size))  # noqa: B905
    return *taps, 1, 1, 0, 0, 1, 1


def max_pool2d(
    input, kernel_size, stride, padding=(0, 0), dilation=(1, 1), ceil_mode=False, save="none"
):
    op = "max_pool2d"
    check_floats(op, input=input)
    size = pool2d_output_size(op, input.shape, kernel_size, stride, padding, dilation, ceil_mode)
    nhwc, dtype = is_nhwc(input), saved_dtype(save, kernel_size)
    y = _new(input, size, nhwc)
    saved = None if save == "none" else _new(input, size, nhwc, dtype)
    window = (*kernel_size, *stride, *padding, *dilation)
    run_pool2d(input, y, nhwc, window, "max", saved=saved)
    return y, input.new_empty(0, dtype=dtype) if saved is None else saved


def avg_pool2d(
    input, kernel_size, stride, padding=(0, 0), ceil_mode=False, count_include_pad=True,
    divisor_override=None,
):  # fmt: skip
    op = "avg_pool2d"
    check_floats(op, input=input)
    check_divisor(op, divisor_override)
    size = pool2d_output_size(op, input.shape, kernel_size, stride, padding, (1, 1), ceil_mode)
    nhwc = is_nhwc(input)
    y = _new(input, size, nhwc)
    run_pool2d(
        input, y, nhwc, (*kernel_size, *stride, *padding, 1, 1), "avg",
        include_pad=count_include_pad, divisor=divisor_override or 0,
    )  # fmt: skip
    return y


def adaptive_avg_pool2d(input, output_size):
    op = "adaptive_avg_pool2d"
    check_floats(op, input=input)
    check_adaptive(op, input.shape, output_size)
    nhwc = is_nhwc(input)
    y = _new(input, (*input.shape[:2], *output_size), nhwc)
    window = adaptive_window(input.shape[2:], output_size)
    run_pool2d(input, y, nhwc, window, "avg", include_pad=False, adaptive=True)
    return y


def adaptive_max_pool2d(input, output_size):
    op = "adaptive_max_pool2d"
    check_floats(op, input=input)
    check_adaptive(op, input.shape, output_size)
    nhwc = is_nhwc(input)
    size = (*input.shape[:2], *output_size)
    y, indices = _new(input, size, nhwc), _new(input, size, nhwc, torch.int64)
    window = adaptive_window(input.shape[2:], output_size)
    run_pool2d(input, y, nhwc, window, "max", saved=indices, adaptive=True)
    return y, indices
