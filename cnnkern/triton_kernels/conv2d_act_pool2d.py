"""Convolution, bias, activation and pool in one kernel, for small networks; else in two.

The implicit GEMM of conv2d.py for few channels, with its pixels in another order: a window of the
pool after the other, and within it the convolution's outputs that it pools.

      pixels of a tile      | window 0      | window 1      |        2x2 windows, TAPS = 4
      output (row, column)  | 00 01 10 11   | 02 03 12 13   | ...
                              \\_________/     \\_________/
                               one result      one result

So the accumulator is pooled where it is, by reducing its last axis, and the convolution's output
goes to memory only where backward asks for it. Windows must not overlap, since a shared output
would be computed twice, and have 2, 4, 8 or 16 taps. Everything else runs conv2d with its
activation, then the pool; so do many channels, where conv2d's own tiles are worth more.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cnnkern import _C
from cnnkern.checks import (
    act_pool2d_saves,
    check_bias,
    check_floats,
    conv2d_output_size,
    pool2d_output_size,
)
from cnnkern.ops import _new, is_nhwc
from cnnkern.triton_kernels.activation import activate
from cnnkern.triton_kernels.config import act_pool2d_tile
from cnnkern.triton_kernels.conv2d import conv2d_activated
from cnnkern.triton_kernels.launch import accumulator, jit, launch, needs_int64, precision
from cnnkern.triton_kernels.pool2d import larger, run_pool2d
from cnnkern.triton_kernels.tuning import choose

MAX_CHANNELS = 15  # of the input: from 16 on, conv2d steps through channels tap by tap


@jit
def conv2d_act_pool2d_kernel(
    x_ptr, w_ptr, bias_ptr, y_ptr, saved_ptr, offsets_ptr, has_bias, bias_stride,
    windows, C, H, W, K, S, taps, P, Q, x_n, x_c, x_h, x_w, w_k, w_c, w_r, w_s,
    y_n, y_c, y_h, y_w, saved_n, saved_c, saved_h, saved_w,
    stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, channel_blocks,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BIG: tl.constexpr, PADDED: tl.constexpr,
    ACT: tl.constexpr, KIND: tl.constexpr, SAVE: tl.constexpr, OFFSETS: tl.constexpr,
    KNOWN: tl.constexpr, POOL_R: tl.constexpr, POOL_S: tl.constexpr,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Compute a tile of CHANNELS x PIXELS / TAPS results; P x Q are the pooled rows and columns."""
    if KNOWN is not None:  # no index is then divided by a number that is not known
        S, taps = KNOWN
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    TAPS: tl.constexpr = POOL_R * POOL_S
    WINDOWS: tl.constexpr = PIXELS // TAPS
    pid = tl.program_id(0)
    first_window = (pid // channel_blocks).to(INDEX) * WINDOWS
    k = (pid % channel_blocks) * CHANNELS + tl.arange(0, CHANNELS)
    in_k = k < K

    pixel = tl.arange(0, PIXELS)
    window, tap = first_window + pixel // TAPS, pixel % TAPS
    n, row, col = window // (P * Q), (window // Q % P).to(tl.int32), (window % Q).to(tl.int32)
    row, col = row * POOL_R + tap // POOL_S, col * POOL_S + tap % POOL_S
    in_m = window < windows
    h0, w0 = row * stride_h - pad_h, col * stride_w - pad_w
    x_base = n * x_n + h0.to(INDEX) * x_h + w0.to(INDEX) * x_w

    acc = tl.zeros((CHANNELS, PIXELS), ACC)
    for start in range(0, C * taps, STEP):
        i = start + tl.arange(0, STEP)
        c, rs = i // taps, i % taps
        r, s = rs // S, rs % S
        in_i = i < C * taps
        weight = tl.load(
            w_ptr + (k.to(INDEX) * w_k)[:, None] + (c * w_c + r * w_r + s * w_s)[None, :],
            mask=in_k[:, None] & in_i[None, :], other=0.0,
        )  # fmt: skip
        dh, dw = r * dil_h, s * dil_w
        place = x_base[None, :] + (c.to(INDEX) * x_c + dh * x_h + dw * x_w)[:, None]
        inside = in_i[:, None] & in_m[None, :]
        if PADDED:
            h, w = h0[None, :] + dh[:, None], w0[None, :] + dw[:, None]
            # As unsigned numbers, negative ones are too large: one comparison for two.
            inside &= h.to(tl.uint32, bitcast=True) < tl.cast(H, tl.uint32)
            inside &= w.to(tl.uint32, bitcast=True) < tl.cast(W, tl.uint32)
        x = tl.load(x_ptr + place, mask=inside, other=0.0)
        acc = tl.dot(weight, x, acc, input_precision=PRECISION, out_dtype=ACC)

    bias = tl.load(bias_ptr + k * bias_stride, mask=in_k & (has_bias != 0), other=0.0)
    acc += bias.to(ACC)[:, None]
    value = activate(acc, ACT)
    if SAVE:
        place = (n * saved_n + row.to(INDEX) * saved_h + col.to(INDEX) * saved_w)[None, :]
        place += (k.to(INDEX) * saved_c)[:, None]
        # What backward differentiates at: see act_pool2d_saves.
        saved = acc if ACT == "gelu" or ACT == "silu" else value
        tl.store(
            saved_ptr + place, saved.to(saved_ptr.dtype.element_ty),
            mask=in_k[:, None] & in_m[None, :],
        )  # fmt: skip

    value = tl.reshape(value, (CHANNELS, WINDOWS, TAPS))
    window = first_window + tl.arange(0, WINDOWS)
    n, row, col = window // (P * Q), window // Q % P, window % Q
    place = (n * y_n + row * y_h + col * y_w)[None, :] + (k.to(INDEX) * y_c)[:, None]
    mask = in_k[:, None] & (window < windows)[None, :]
    if KIND == "avg":
        y = tl.sum(value, 2) * (1.0 / TAPS)
    else:
        at = tl.arange(0, TAPS)[None, None, :] + tl.zeros((CHANNELS, WINDOWS, TAPS), tl.int32)
        y, at = tl.reduce((value, at), 2, larger)
        if OFFSETS:
            tl.store(offsets_ptr + place, at.to(tl.uint8), mask=mask)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=mask)


def fits_one_kernel(
    input: Tensor, weight: Tensor, conv_size, groups: int, padding_mode: str, activation: str,
    pool: str, pool_kernel_size, pool_stride, pool_padding, pool_ceil_mode: bool,
) -> bool:  # fmt: skip
    """Tell whether the one kernel computes this block, and better than two do."""
    R, S = pool_kernel_size
    if pool == "none" or groups != 1 or padding_mode != "zeros" or input.size(1) > MAX_CHANNELS:
        return False
    if tuple(pool_stride) != (R, S) or tuple(pool_padding) != (0, 0) or pool_ceil_mode:
        return False
    # Outputs that no window takes are not computed: they cannot be saved either.
    if act_pool2d_saves(activation, pool) and (conv_size[2] % R or conv_size[3] % S):
        return False
    return R * S in (2, 4, 8, 16)


def run_one_kernel(
    x, weight, bias, y, saved, offsets, stride, padding, dilation, ieee, activation, pool, window
) -> None:
    (N, C, H, W), (K, _, R, S), (P, Q) = x.shape, weight.shape, y.shape[2:]
    windows = N * P * Q
    tile = choose(
        "conv2d_act_pool2d", act_pool2d_tile(x.dtype, K), x,
        (ieee, pool, "save" if saved is not None else "none"), (K, N * P * Q, C * R * S),
    )  # fmt: skip
    blocks = triton.cdiv(K, tile.channels)
    inside = all(pad == 0 for pad in padding)
    launch(
        conv2d_act_pool2d_kernel,
        triton.cdiv(windows * window[0] * window[1], tile.pixels) * blocks, x,
        x, weight, weight if bias is None else bias, y, y if saved is None else saved,
        y if offsets is None else offsets, int(bias is not None),
        0 if bias is None else bias.stride(0), windows, C, H, W, K, S, R * S, P, Q, *x.stride(),
        *weight.stride(), *y.stride(), *(y if saved is None else saved).stride(),
        *stride, padding[2], padding[0], *dilation, blocks,
        ACC=accumulator(x.dtype), PRECISION=ieee,
        BIG=needs_int64(x, weight, y, y if saved is None else saved), PADDED=not inside,
        ACT=activation, KIND=pool, SAVE=saved is not None, OFFSETS=offsets is not None,
        KNOWN=(S, R * S) if (R, S) in ((3, 3), (5, 5)) else None,
        POOL_R=window[0], POOL_S=window[1], CHANNELS=tile.channels, PIXELS=tile.pixels,
        STEP=tile.step, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def conv2d_act_pool2d(
    input, weight, bias, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1,
    padding_mode="zeros", algo="auto", activation="none", pool="none", pool_kernel_size=(2, 2),
    pool_stride=(2, 2), pool_padding=(0, 0), pool_ceil_mode=False, count_include_pad=True,
    save=False,
):  # fmt: skip
    """Convolve, activate and pool: `cnnkern.ops` has the contract."""
    op = "conv2d_act_pool2d"
    check_floats(op, input=input, weight=weight, bias=bias)
    conv = (stride, padding, dilation, groups, padding_mode)
    conv_size = conv2d_output_size(op, input.shape, weight.shape, *conv)
    check_bias(op, bias, conv_size[1])
    _C.check_act_pool(op, activation, pool, list(pool_kernel_size))
    ieee = precision(op, algo)
    size = conv_size
    if pool != "none":
        size = pool2d_output_size(
            op, conv_size, pool_kernel_size, pool_stride, pool_padding, (1, 1), pool_ceil_mode
        )
    nhwc = is_nhwc(input)
    saves = save and act_pool2d_saves(activation, pool)
    nothing, no_offsets = input.new_empty(0), input.new_empty(0, dtype=torch.uint8)
    offsets = _new(input, size, nhwc, torch.uint8) if save and pool == "max" else None

    if fits_one_kernel(
        input, weight, conv_size, groups, padding_mode, activation, pool, pool_kernel_size,
        pool_stride, pool_padding, pool_ceil_mode,
    ):  # fmt: skip
        y = _new(input, size, nhwc)
        saved = _new(input, conv_size, nhwc) if saves else None
        run_one_kernel(
            input, weight, bias, y, saved, offsets, stride, padding, dilation, ieee, activation,
            pool, pool_kernel_size,
        )  # fmt: skip
    else:
        # gelu and silu are differentiated at their input, so the pool applies them.
        late = activation in ("gelu", "silu") and (saves or pool != "none")
        saved = conv2d_activated(
            op, input, weight, bias, *conv, algo, "none" if late else activation
        )
        if pool == "none" and not late:
            return saved, nothing, no_offsets
        y = _new(input, size, nhwc)
        window = (1, 1, 1, 1, 0, 0, 1, 1)
        if pool != "none":
            window = (*pool_kernel_size, *pool_stride, *pool_padding, 1, 1)
        run_pool2d(
            saved, y, nhwc, window, "max" if pool == "max" else "avg", saved=offsets,
            include_pad=count_include_pad, activation=activation if late else "none",
        )  # fmt: skip
    return y, saved if saves else nothing, no_offsets if offsets is None else offsets
