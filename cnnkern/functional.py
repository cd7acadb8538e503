"""The public functions, with torch.nn.functional's names, argument order and defaults.

They turn what callers write into the plain ints of the ops (`cnnkern.ops`) and call them: one step
from here to the kernel. Pools live in `cnnkern.pooling` and are re-exported.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cnnkern.arguments import ends, is_unbatched, pair, sides, single
from cnnkern.ops import DEFAULT
from cnnkern.pooling import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    avg_pool1d,
    avg_pool2d,
    lp_pool2d,
    max_pool1d,
    max_pool2d,
    max_unpool2d,
)
from cnnkern.selection import conv2d_algo, conv2d_ops

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "avg_pool1d",
    "avg_pool2d",
    "conv1d",
    "conv2d",
    "conv2d_act_pool2d",
    "conv_transpose2d",
    "corr2d",
    "lp_pool2d",
    "max_pool1d",
    "max_pool2d",
    "max_unpool2d",
]


def corr2d(X: Tensor, K: Tensor) -> Tensor:
    """Slide the matrix K over the matrix X and sum the products at each place.

    Shapes: X ``[H, W]``, K ``[R, S]`` -> ``[H - R + 1, W - S + 1]``.

    Raises:
        RuntimeError: X or K is no matrix of floats, or K is larger than X.

    Source: "Dive into Deep Learning", section 7.2, equation 7.2.1. It is a cross-correlation, as
    every "convolution" here: K is not flipped.
    """
    if X.dim() != 2 or K.dim() != 2:
        raise RuntimeError(
            f"cnnkern::corr2d: X and K must be matrices, got {list(X.shape)} and {list(K.shape)}"
        )
    one, none = (1, 1), (0, 0, 0, 0)
    return DEFAULT.conv2d(
        X[None, None], K[None, None], None, one, none, one, 1, "zeros", conv2d_algo("auto", X)
    )[0, 0]


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    algo: str = "auto",
) -> Tensor:
    """Cross-correlate images with a bank of kernels.

    Shapes: input ``[N, C, H, W]`` or ``[C, H, W]``, weight ``[K, C/groups, R, S]``, bias ``[K]``
    -> ``[N, K, P, Q]`` with ``P = (H + top + bottom - dilation * (R - 1) - 1) // stride + 1``. The
    result has the input's memory layout, contiguous or channels_last.

    Args:
        padding: pixels on every side, (height, width), (left, right, top, bottom), "valid" for
            none, or "same" for an output of the input's size; an odd total puts the extra pixel on
            the right and at the bottom.
        padding_mode: what the padding holds: zeros, reflect, replicate or circular.
        algo: "auto", which `cnnkern.selection` explains for GPUs, or the name of a kernel, which
            raises where that does not apply. "winograd" takes a fraction of the products of a 3x3
            kernel, and "auto" picks it where it pays, except in float64. On the CPU it rounds twice
            as much, and an infinity or NaN reaches all outputs of its 4x4 tile; "direct" sums
            plainly. "triton" runs the Triton kernels, forward and backward; float32 is then
            multiplied exactly, and on tensor cores with "triton_tf32" (10 bits of each factor) or
            "triton_tf32x3" (three such products, nearly all of float32's bits). "auto_tf32" is
            "auto" with float32 on tensor cores, too, as "triton_tf32" rounds it. On GPUs "auto"
            becomes that where ``torch.backends.fp32_precision`` or
            ``torch.backends.cudnn.fp32_precision`` is "tf32". No other switch of torch.backends has
            a say, and float32 is exact by default.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not match, or values out of range.
        TypeError, ValueError: sizes that are not ints, or too many of them.

    Source: ``torch.nn.functional.conv2d``, which has neither ``padding_mode``, four-sided padding
    nor ``algo``. Differs: dtypes must match, there are no complex or integer kernels.
    """
    if is_unbatched("conv2d", input, "NCHW"):
        return conv2d(
            input.unsqueeze(0), weight, bias, stride, padding, dilation, groups,
            padding_mode=padding_mode, algo=algo,
        ).squeeze(0)  # fmt: skip
    stride, dilation = pair("conv2d", "stride", stride), pair("conv2d", "dilation", dilation)
    if type(groups) is not int:
        groups = single("conv2d", "groups", groups)
    padding = sides("conv2d", padding, weight.shape[2:], stride, dilation)
    algo = conv2d_algo(algo, input)
    return conv2d_ops(algo, input, weight, stride, groups).conv2d(
        input, weight, bias, stride, padding, dilation, groups, padding_mode, algo
    )


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int] = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    algo: str = "auto",
) -> Tensor:
    """Cross-correlate sequences with a bank of kernels: `conv2d` on images one pixel high.

    Shapes: input ``[N, C, W]`` or ``[C, W]``, weight ``[K, C/groups, S]``, bias ``[K]``
    -> ``[N, K, Q]``. Padding is an int, (left, right), "same" or "valid".

    Raises:
        RuntimeError, TypeError, ValueError: as `conv2d`, whose name some messages carry.

    Source: ``torch.nn.functional.conv1d``; differs as `conv2d` does.
    """
    unbatched = is_unbatched("conv1d", input, "NCW")
    if weight.dim() != 3:
        raise RuntimeError(
            f"cnnkern::conv1d: weight must be [K, C/groups, S], got {list(weight.shape)}"
        )
    stride = (1, single("conv1d", "stride", stride))
    dilation = (1, single("conv1d", "dilation", dilation))
    groups = single("conv1d", "groups", groups)
    left, right = ends("conv1d", padding, weight.size(2), stride, dilation)
    x = (input.unsqueeze(0) if unbatched else input).unsqueeze(-2)
    weight = weight.unsqueeze(-2)
    algo = conv2d_algo(algo, x)
    y = conv2d_ops(algo, x, weight, stride, groups).conv2d(
        x, weight, bias, stride, (left, right, 0, 0), dilation, groups,
        padding_mode, algo,
    ).squeeze(-2)  # fmt: skip
    return y.squeeze(0) if unbatched else y


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    output_padding: int | tuple[int, int] = 0,
    groups: int = 1,
    dilation: int | tuple[int, int] = 1,
    *,
    algo: str = "auto",
) -> Tensor:
    """Apply the transpose of `conv2d`: its gradient with respect to the input.

    Shapes: input ``[N, C, H, W]`` or ``[C, H, W]``, weight ``[C, K/groups, R, S]``, bias ``[K]``
    -> ``[N, K, P, Q]`` with
    ``P = (H - 1) * stride - 2 * padding + dilation * (R - 1) + output_padding + 1``.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not match, values out of range, or an
            output_padding that is smaller than neither stride nor dilation.
        TypeError, ValueError: sizes that are not ints, or too many of them.

    Source: ``torch.nn.functional.conv_transpose2d``; differs as `conv2d` does.
    """
    op = "conv_transpose2d"
    if is_unbatched(op, input, "NCHW"):
        return conv_transpose2d(
            input.unsqueeze(0), weight, bias, stride, padding, output_padding, groups, dilation,
            algo=algo,
        ).squeeze(0)  # fmt: skip
    stride, dilation = pair(op, "stride", stride), pair(op, "dilation", dilation)
    pad, extra = pair(op, "padding", padding), pair(op, "output_padding", output_padding)
    groups = single(op, "groups", groups)
    _check_transposed(op, input, weight, bias, stride, pad, extra, groups, dilation)
    size = [
        (input.size(2 + i) - 1) * stride[i]
        - 2 * pad[i]
        + dilation[i] * (weight.size(2 + i) - 1)
        + extra[i]
        + 1
        for i in range(2)
    ]
    if size[0] < 1 or size[1] < 1:
        raise RuntimeError(
            f"cnnkern::{op}: the output would be {size[0]}x{size[1]} for input "
            f"{list(input.shape)}, weight {list(weight.shape)} and padding {pad}"
        )
    if extra[0] >= stride[0] or extra[1] >= stride[1]:
        # The convolution of that output has more rows than the input; those are zeros.
        rows, columns = extra[0] // stride[0], extra[1] // stride[1]
        input = torch.constant_pad_nd(input, (0, columns, 0, rows))
    algo = conv2d_algo(algo, input)
    out = conv2d_ops(algo, input, weight, stride, groups, transposed=True).conv2d_input_grad(
        input, weight, (input.size(0), weight.size(1) * groups, *size), stride,
        (pad[1], pad[1], pad[0], pad[0]), dilation, groups, "zeros", algo,
    )  # fmt: skip
    # Under autocast the op has computed in a dtype of its own choice.
    return out if bias is None else out + bias.to(out.dtype).view(-1, 1, 1)


def _check_transposed(op, input, weight, bias, stride, padding, extra, groups, dilation) -> None:
    """Refuse, in the caller's terms, what conv2d_input_grad would refuse in its own."""
    if input.size(2) < 1 or input.size(3) < 1:
        raise RuntimeError(
            f"cnnkern::{op}: input must have at least one row and column, got {list(input.shape)}"
        )
    if groups < 1:
        raise RuntimeError(f"cnnkern::{op}: groups must be at least 1, got {groups}")
    if weight.dim() != 4 or weight.size(0) != input.size(1) or input.size(1) % groups:
        raise RuntimeError(
            f"cnnkern::{op}: weight must be [C, K/groups, R, S] with C = {input.size(1)} divisible "
            f"by groups, got {list(weight.shape)} for input {list(input.shape)} and groups {groups}"
        )
    for name, value, least in (
        ("stride", stride, 1),
        ("dilation", dilation, 1),
        ("padding", padding, 0),
        ("output_padding", extra, 0),
    ):
        if max(value) >= 2**31:
            raise RuntimeError(f"cnnkern::{op}: {name} must be below 2^31, got {value}")
        if value[0] < least or value[1] < least:
            raise RuntimeError(f"cnnkern::{op}: {name} must be at least {least}, got {value}")
    if any(e >= s and e >= d for e, s, d in zip(extra, stride, dilation, strict=True)):
        raise RuntimeError(
            f"cnnkern::{op}: output_padding must be smaller than stride or dilation, got {extra} "
            f"for stride {stride} and dilation {dilation}"
        )
    if bias is None:
        return
    if bias.dim() != 1 or bias.size(0) != weight.size(1) * groups:
        raise RuntimeError(
            f"cnnkern::{op}: bias must be [{weight.size(1) * groups}], got {list(bias.shape)}"
        )
    if bias.dtype != input.dtype and not torch.is_autocast_enabled(input.device.type):
        raise RuntimeError(
            f"cnnkern::{op}: bias must have the dtype of input, got {bias.dtype} and {input.dtype}"
        )


def conv2d_act_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: str = "none",
    pool: str = "none",
    pool_kernel_size: int | tuple[int, int] = 2,
    pool_stride: int | tuple[int, int] | None = None,
    pool_padding: int | tuple[int, int] = 0,
    pool_ceil_mode: bool = False,
    count_include_pad: bool = True,
    algo: str = "auto",
) -> Tensor:
    """Convolve, add the bias, apply an activation and pool, in one op.

    Shapes: as `conv2d`, then as `max_pool2d` or `avg_pool2d`. Where a kernel fuses them, the
    convolution's output is never written to memory.

    Args:
        activation: none, relu, sigmoid, tanh, gelu (the exact one) or silu.
        pool: none, max or avg. The other pool arguments are those of `max_pool2d` and
            `avg_pool2d`; ``pool_stride`` None is ``pool_kernel_size``.

    Raises:
        RuntimeError: an unknown name, and what `conv2d` and the pools refuse.
        TypeError, ValueError: sizes that are not ints, or too many of them.

    Source: ours; equal to the three torch functions one after the other.
    """
    op = "conv2d_act_pool2d"
    if is_unbatched(op, input, "NCHW"):
        return conv2d_act_pool2d(
            input.unsqueeze(0), weight, bias, stride, padding, dilation, groups,
            padding_mode=padding_mode, activation=activation, pool=pool,
            pool_kernel_size=pool_kernel_size, pool_stride=pool_stride, pool_padding=pool_padding,
            pool_ceil_mode=pool_ceil_mode, count_include_pad=count_include_pad, algo=algo,
        ).squeeze(0)  # fmt: skip
    stride, dilation = pair(op, "stride", stride), pair(op, "dilation", dilation)
    if type(groups) is not int:
        groups = single(op, "groups", groups)
    padding = sides(op, padding, weight.shape[2:], stride, dilation)
    window = pair(op, "pool_kernel_size", pool_kernel_size)
    step = window if pool_stride is None else pair(op, "pool_stride", pool_stride)
    # Backward needs extra results; inference does not pay for them.
    save = torch.is_grad_enabled() and (
        input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )
    algo = conv2d_algo(algo, input)
    return conv2d_ops(algo, input, weight, stride, groups).conv2d_act_pool2d(
        input, weight, bias, stride, padding, dilation, groups, padding_mode, algo, activation,
        pool, window, step, pair(op, "pool_padding", pool_padding), pool_ceil_mode,
        count_include_pad, save,
    )[0]  # fmt: skip
