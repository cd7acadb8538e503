"""Moves by saved position: max_unpool2d, the gradient of adaptive_max_pool2d, and their transposes.

    scatter: y[n, c, at[n, c, p, q]] = or += x[n, c, p, q]      gather: y[n, c, p, q] = x[n, c, at]

Saved positions are the caller's and may repeat. A scatter gives each plane (each channel, in
channels_last) to one program, which clears it and goes through the windows in order, a few at a
time; among those few, equal positions are found by comparing all pairs, and one thread writes for
all of them. So sums have a fixed order and the last one of several overwrites wins, as in a loop,
without atomics. To refuse a position outside the plane would take a wait for the device, so it is
passed over: a scatter ignores it, a gather gives 0.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cnnkern.checks import (
    check_adaptive_grad,
    check_devices,
    check_floats,
    check_index_dtype,
    check_saved_pool,
    check_size,
    check_unpool,
    check_unpool_grad,
)
from cnnkern.ops import _new, is_nhwc
from cnnkern.triton_kernels.config import scatter_tile
from cnnkern.triton_kernels.index import Walk, flat_index, unravel
from cnnkern.triton_kernels.launch import jit, launch, needs_int64
from cnnkern.triton_kernels.tuning import choose


@triton.jit
def combine(at, index, x, ADD: tl.constexpr):
    """Merge equal positions among windows [BW, BC]: the value to write, and by whom."""
    same = at[:, None, :] == at[None, :, :]
    # The last window of those that share a position writes for them.
    later = same & (index[:, None, None] < index[None, :, None])
    writes = tl.max(later.to(tl.int32), axis=1) == 0
    if ADD:
        x = tl.sum(tl.where(same, x[None, :, :], 0.0), axis=1)
    return x, writes


@jit
def scatter_kernel(
    x_ptr, at_ptr, sum_ptr, y_ptr, C, Q, windows, plane, channel_blocks,
    x_n, x_c, x_h, x_w, at_n, at_c, at_h, at_w, y_n, y_c, y_i,
    ADD: tl.constexpr, BIG: tl.constexpr, WINDOWS: tl.constexpr, CHANNELS: tl.constexpr,
    CLEAR: tl.constexpr,
):  # fmt: skip
    """Fill the planes of CHANNELS channels of an image; `sum` is y, or y in a wider type."""
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    ACC: tl.constexpr = sum_ptr.dtype.element_ty
    pid = tl.program_id(0)
    n = (pid // channel_blocks).to(INDEX)
    c = ((pid % channel_blocks) * CHANNELS + tl.arange(0, CHANNELS)).to(INDEX)
    in_c = c < C
    y_base = n * y_n + c * y_c
    for start in range(0, plane, CLEAR):
        i = start + tl.arange(0, CLEAR)
        place = i.to(INDEX)[:, None] * y_i + y_base[None, :]
        tl.store(sum_ptr + place, tl.zeros((CLEAR, CHANNELS), ACC),
                 mask=(i < plane)[:, None] & in_c[None, :])  # fmt: skip
    for start in range(0, windows, WINDOWS):
        # What other threads wrote for the windows before is visible after the barrier.
        tl.debug_barrier()
        i = start + tl.arange(0, WINDOWS)
        p, q = (i // Q).to(INDEX), (i % Q).to(INDEX)
        mask = (i < windows)[:, None] & in_c[None, :]
        place = (n * at_n + p * at_h + q * at_w)[:, None] + (c * at_c)[None, :]
        at = tl.load(at_ptr + place, mask=mask, other=-1)
        mask &= (at >= 0) & (at < plane)
        at = tl.where(mask, at, -1)
        place = (n * x_n + p * x_h + q * x_w)[:, None] + (c * x_c)[None, :]
        x = tl.load(x_ptr + place, mask=mask, other=0.0).to(ACC)
        x, writes = combine(at, i, x, ADD)
        mask &= writes
        place = at.to(INDEX) * y_i + y_base[None, :]
        if ADD:
            x += tl.load(sum_ptr + place, mask=mask, other=0.0)
        tl.store(sum_ptr + place, x, mask=mask)
    if y_ptr.dtype.element_ty != ACC:
        tl.debug_barrier()
        for start in range(0, plane, CLEAR):
            i = start + tl.arange(0, CLEAR)
            place = i.to(INDEX)[:, None] * y_i + y_base[None, :]
            mask = (i < plane)[:, None] & in_c[None, :]
            total = tl.load(sum_ptr + place, mask=mask, other=0.0)
            tl.store(y_ptr + place, total.to(y_ptr.dtype.element_ty), mask=mask)


@jit
def gather_kernel(
    x_ptr, at_ptr, y_ptr, units, C, C_magic, P, P_magic, Q, Q_magic, H, W,
    x_n, x_c, x_h, x_w, at_n, at_c, at_h, at_w, S, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w,
    SAVED: tl.constexpr, NHWC: tl.constexpr, VEC: tl.constexpr, BIG: tl.constexpr,
    UNITS: tl.constexpr,
):  # fmt: skip
    """Read UNITS * VEC elements of planes H x W at their positions."""
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    unit, lane, mask = flat_index(units, VEC, BIG, UNITS)
    n, c, p, q = unravel(unit, C, C_magic, P, P_magic, Q, Q_magic, NHWC, BIG)
    place = (n * at_n + c * at_c + p * at_h + q * at_w) * VEC + lane
    at = tl.load(at_ptr + place, mask=mask, other=0)
    if SAVED == "offsets":
        tap = at.to(tl.int32)
        h = p * stride_h - pad_h + tap // S * dil_h
        w = q * stride_w - pad_w + tap % S * dil_w
        inside = mask & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    else:
        inside = mask & (at >= 0) & (at < tl.cast(H, tl.int64) * W)
        at = tl.where(inside, at, 0).to(INDEX)
        h, w = at // W, at % W
    place = (n * x_n + c * x_c) * VEC + lane + (h * x_h + w * x_w) * VEC
    x = tl.load(x_ptr + place, mask=inside, other=0.0)
    tl.store(y_ptr + (unit * VEC + lane), x, mask=mask)


def run_scatter(x: Tensor, at: Tensor, y: Tensor, nhwc: bool, add: bool) -> None:
    """Scatter `x` [N, C, P, Q] to the positions `at` of y's planes."""
    N, C, H, W = y.shape
    total = torch.empty_like(y, dtype=torch.float32) if add and y.itemsize == 2 else y
    major = "channels" if nhwc else "any"
    windows = x.size(2) * x.size(3)
    tile = choose(
        "scatter", scatter_tile(major), x, (major, "add" if add else "keep"),
        (N, C, windows, H * W),
    )  # fmt: skip
    blocks = -(-C // tile.channels)
    launch(
        scatter_kernel, N * blocks, y, x, at, total, y, C, x.size(3), windows, H * W, blocks,
        *x.stride(), *at.stride(), y.stride(0), y.stride(1), y.stride(3),
        ADD=add, BIG=needs_int64(x, at, y), WINDOWS=tile.pixels, CHANNELS=tile.channels,
        CLEAR=256 // tile.channels, num_warps=tile.warps,
    )  # fmt: skip


def run_gather(x: Tensor, at: Tensor, y: Tensor, nhwc: bool, window: tuple) -> None:
    """Gather `y` [N, C, P, Q] from x's planes; `window` is that of offsets."""
    H, W = x.shape[2:]
    saved = "offsets" if at.dtype == torch.uint8 else "indices"
    walk = Walk("gather", saved, 1, y, nhwc, x, at, also_big=H * W >= 2**31)
    _, S, *geometry = window
    launch(
        gather_kernel, walk.programs, y, x, at, y, *walk.sizes(), H, W, *walk.strides(x),
        *walk.strides(at), S, *geometry,
        SAVED=saved, **walk.meta(),
    )  # fmt: skip


PLAIN = (1, 1, 1, 1, 0, 0, 1, 1)


def max_unpool2d(input, indices, output_size):
    op = "max_unpool2d"
    check_floats(op, input=input)
    check_devices(op, input=input, indices=indices)
    check_unpool(op, input, indices, output_size)
    nhwc = is_nhwc(input)
    y = _new(input, (*input.shape[:2], *output_size), nhwc)
    run_scatter(input, indices, y, nhwc, add=False)
    return y


def max_unpool2d_grad(grad, indices):
    op = "max_unpool2d_grad"
    check_floats(op, grad=grad)
    check_devices(op, grad=grad, indices=indices)
    check_unpool_grad(op, grad, indices)
    nhwc = is_nhwc(indices)
    y = _new(grad, indices.shape, nhwc)
    run_gather(grad, indices, y, nhwc, PLAIN)
    return y


def max_pool2d_gather(input, indices, kernel_size, stride, padding=(0, 0), dilation=(1, 1)):
    op = "max_pool2d_gather"
    check_floats(op, input=input)
    check_devices(op, input=input, indices=indices)
    check_saved_pool(op, input.shape, indices, kernel_size, stride, padding, dilation)
    nhwc = is_nhwc(indices)
    y = _new(input, indices.shape, nhwc)
    run_gather(input, indices, y, nhwc, (*kernel_size, *stride, *padding, *dilation))
    return y


def adaptive_max_pool2d_grad(grad, indices, input_size):
    op = "adaptive_max_pool2d_grad"
    check_floats(op, grad=grad)
    check_devices(op, grad=grad, indices=indices)
    check_index_dtype(op, indices, or_offsets=False)
    check_adaptive_grad(op, "indices", indices, input_size)
    check_size(op, "grad", grad, indices.shape)
    nhwc = is_nhwc(indices)
    dx = _new(grad, input_size, nhwc)
    run_scatter(grad, indices, dx, nhwc, add=True)
    return dx
