"""Gradients of max, average and adaptive average pools, and of an activation before the pool.

    dx[n, c, h, w] = act'(.) * sum over the windows (p, q) that cover (h, w) of
                     dy[n, c, p, q] / divisor,  or  dy[n, c, p, q] where (h, w) is the maximum

A thread owns an element of dx and gathers from the windows that cover it, in their order: nothing
is scattered, no atomics, the same bits on every run. Whether the element is a window's maximum is
told by comparing one saved byte (or int64 index) with its own place in the window.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from cnnkern.checks import (
    act_pool2d_saves,
    check_act_pool_grad,
    check_adaptive_grad,
    check_devices,
    check_divisor,
    check_floats,
    check_saved_pool,
    check_size,
    pool2d_output_size,
)
from cnnkern.ops import _new, is_nhwc
from cnnkern.triton_kernels.activation import derivative
from cnnkern.triton_kernels.index import Walk, flat_index, unravel
from cnnkern.triton_kernels.launch import jit, launch
from cnnkern.triton_kernels.pool2d import (
    adaptive_window,
    known_window,
    window_divisor,
    window_start,
    window_stop,
)


@triton.jit
def last_cover(h, size, count, stride, pad, ADAPTIVE: tl.constexpr):
    """Return the last window that may cover position h."""
    return ((h + 1) * count + size - 1) // size - 1 if ADAPTIVE else (h + pad) // stride


@jit
def pool2d_grad_kernel(
    dy_ptr, saved_ptr, value_ptr, dx_ptr,
    units, C, C_magic, H, H_magic, W, W_magic, P, Q,
    dy_n, dy_c, dy_h, dy_w, saved_n, saved_c, saved_h, saved_w, value_n, value_c, value_h, value_w,
    R, S, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, covers_h, covers_w, include_pad, divisor,
    KIND: tl.constexpr, SAVED: tl.constexpr, ACT: tl.constexpr, DILATED: tl.constexpr,
    ADAPTIVE: tl.constexpr, KNOWN: tl.constexpr,
    NHWC: tl.constexpr, VEC: tl.constexpr, BIG: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Compute UNITS * VEC elements of dx.

    `value` is what the activation's derivative is taken at: of the windows' results, for a max pool
    behind relu, sigmoid or tanh, else of the elements.
    """
    ACC: tl.constexpr = tl.float64 if dx_ptr.dtype.element_ty == tl.float64 else tl.float32
    BY_WINDOW: tl.constexpr = KIND == "max" and (ACT == "relu" or ACT == "sigmoid" or ACT == "tanh")
    if KNOWN is not None:
        R, S, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, covers_h, covers_w = KNOWN
    unit, lane, mask = flat_index(units, VEC, BIG, UNITS)
    n, c, h, w = unravel(unit, C, C_magic, H, H_magic, W, W_magic, NHWC, BIG)
    dy_base = (n * dy_n + c * dy_c) * VEC + lane
    saved_base = (n * saved_n + c * saved_c) * VEC + lane
    value_base = (n * value_n + c * value_c) * VEC + lane

    total = tl.zeros((UNITS, VEC), ACC)
    if KIND == "none":
        dy = tl.load(dy_ptr + (dy_base + (h * dy_h + w * dy_w) * VEC), mask=mask, other=0.0)
        total += dy.to(ACC)
    else:
        p_last = last_cover(h, H, P, stride_h, pad_h, ADAPTIVE)
        q_last = last_cover(w, W, Q, stride_w, pad_w, ADAPTIVE)
        for i in range(covers_h):
            p = p_last - (covers_h - 1) + i
            h0 = window_start(p, H, P, stride_h, pad_h, ADAPTIVE)
            h1 = window_stop(p, h0, H, P, R, dil_h, ADAPTIVE)
            r = h - h0
            in_p = mask & (p >= 0) & (p < P) & (h < h1)
            if DILATED:
                in_p &= r % dil_h == 0
                r = r // dil_h
            for j in range(covers_w):
                q = q_last - (covers_w - 1) + j
                w0 = window_start(q, W, Q, stride_w, pad_w, ADAPTIVE)
                w1 = window_stop(q, w0, W, Q, S, dil_w, ADAPTIVE)
                s = w - w0
                take = in_p & (q >= 0) & (q < Q) & (w < w1)
                if DILATED:
                    take &= s % dil_w == 0
                    s = s // dil_w
                place = dy_base + (p * dy_h + q * dy_w) * VEC
                dy = tl.load(dy_ptr + place, mask=take, other=0.0).to(ACC)
                if KIND == "avg":
                    count = window_divisor(h0, h1, H, pad_h, include_pad)
                    count *= window_divisor(w0, w1, W, pad_w, include_pad)
                    # Windows that do not exist may count nothing.
                    count = tl.where(take, tl.where(divisor != 0, divisor, count), 1)
                    dy = dy / count.to(ACC)
                else:
                    # All are loaded where the window exists, not only for maxima: as vectors.
                    if BY_WINDOW:
                        place = value_base + (p * value_h + q * value_w) * VEC
                        y = tl.load(value_ptr + place, mask=take, other=0.0).to(ACC)
                        dy *= derivative(y, ACT)
                    place = saved_base + (p * saved_h + q * saved_w) * VEC
                    at = tl.load(saved_ptr + place, mask=take, other=0)
                    if SAVED == "offsets":
                        take &= at.to(tl.int32) == r * S + s
                    else:
                        take &= at == (h * W + w).to(tl.int64)
                    dy = tl.where(take, dy, 0.0)
                total += dy
    if ACT != "none" and not BY_WINDOW:
        place = value_base + (h * value_h + w * value_w) * VEC
        total *= derivative(tl.load(value_ptr + place, mask=mask, other=0.0).to(ACC), ACT)
    tl.store(dx_ptr + (unit * VEC + lane), total.to(dx_ptr.dtype.element_ty), mask=mask)


def run_pool2d_grad(
    dy: Tensor, dx: Tensor, nhwc: bool, window: tuple, kind: str, *,
    saved: Tensor | None = None, value: Tensor | None = None, activation: str = "none",
    include_pad: bool = True, divisor: int = 0, adaptive: bool = False,
) -> None:  # fmt: skip
    """Write the gradient `dx` of what was pooled into `dy`'s size with `window`."""
    H, W = dx.shape[2:]
    P, Q = dy.shape[2:]
    big = H * W >= 2**31 or (adaptive and max((P + 1) * (H + 1), (Q + 1) * (W + 1)) >= 2**31)
    given = [t for t in (dy, saved, value) if t is not None]
    R, S, stride_h, stride_w, _, _, dil_h, dil_w = window
    if adaptive:
        covers = (P - 1) // H + 2, (Q - 1) // W + 2
    else:  # of windows `stride` apart and dil * (taps - 1) + 1 long, no more cover one element
        covers = dil_h * (R - 1) // stride_h + 1, dil_w * (S - 1) // stride_w + 1
    known = known_window(*window)
    walk = Walk("pool2d_grad", kind, math.prod(covers), dx, nhwc, *given, also_big=big)
    units, C, C_magic, H, H_magic, W, W_magic = walk.sizes()
    strides = [walk.strides(t) if t is not None else (0, 0, 0, 0) for t in (dy, saved, value)]
    launch(
        pool2d_grad_kernel, walk.programs, dx, dy, dy if saved is None else saved,
        dy if value is None else value, dx,
        units, C, C_magic, H, H_magic, W, W_magic, P, Q,
        *strides[0], *strides[1], *strides[2], *window, *covers, int(include_pad), divisor,
        KIND=kind,
        SAVED="indices" if saved is not None and saved.dtype == torch.int64 else "offsets",
        ACT=activation, DILATED=(dil_h, dil_w) != (1, 1), ADAPTIVE=adaptive,
        KNOWN=known and (*known, *covers), **walk.meta(),
    )  # fmt: skip


def max_pool2d_grad(grad, indices, input_size, kernel_size, stride, padding=(0, 0),
                    dilation=(1, 1)):  # fmt: skip
    op = "max_pool2d_grad"
    check_floats(op, grad=grad)
    check_devices(op, grad=grad, indices=indices)
    check_saved_pool(op, input_size, indices, kernel_size, stride, padding, dilation)
    check_size(op, "grad", grad, indices.shape)
    nhwc = is_nhwc(indices)
    dx = _new(grad, input_size, nhwc)
    window = (*kernel_size, *stride, *padding, *dilation)
    run_pool2d_grad(grad, dx, nhwc, window, "max", saved=indices)
    return dx


def avg_pool2d_grad(
    grad, input_size, kernel_size, stride, padding=(0, 0), ceil_mode=False, count_include_pad=True,
    divisor_override=None,
):  # fmt: skip
    op = "avg_pool2d_grad"
    check_floats(op, grad=grad)
    check_divisor(op, divisor_override)
    size = pool2d_output_size(op, input_size, kernel_size, stride, padding, (1, 1), ceil_mode)
    check_size(op, "grad", grad, size)
    nhwc = is_nhwc(grad)
    dx = _new(grad, input_size, nhwc)
    run_pool2d_grad(
        grad, dx, nhwc, (*kernel_size, *stride, *padding, 1, 1), "avg",
        include_pad=count_include_pad, divisor=divisor_override or 0,
    )  # fmt: skip
    return dx


def adaptive_avg_pool2d_grad(grad, input_size):
    op = "adaptive_avg_pool2d_grad"
    check_floats(op, grad=grad)
    check_adaptive_grad(op, "grad", grad, input_size)
    nhwc = is_nhwc(grad)
    dx = _new(grad, input_size, nhwc)
    window = adaptive_window(input_size[2:], grad.shape[2:])
    run_pool2d_grad(grad, dx, nhwc, window, "avg", include_pad=False, adaptive=True)
    return dx


def act_pool2d_grad(
    grad, output, saved, offsets, input_size, activation="none", pool="none",
    pool_kernel_size=(2, 2), pool_stride=(2, 2), pool_padding=(0, 0), pool_ceil_mode=False,
    count_include_pad=True,
):  # fmt: skip
    op = "act_pool2d_grad"
    check_act_pool_grad(
        op, grad, output, saved, offsets, input_size, activation, pool, pool_kernel_size,
        pool_stride, pool_padding, pool_ceil_mode,
    )  # fmt: skip
    window = (1, 1, 1, 1, 0, 0, 1, 1)
    if pool != "none":
        window = (*pool_kernel_size, *pool_stride, *pool_padding, 1, 1)
    saves = act_pool2d_saves(activation, pool)
    nhwc = is_nhwc(output)
    dx = _new(grad, input_size, nhwc)
    value = None if activation == "none" else saved if saves else output
    run_pool2d_grad(
        grad, dx, nhwc, window, pool, saved=offsets if pool == "max" else None, value=value,
        activation=activation, include_pad=count_include_pad,
    )  # fmt: skip
    return dx
