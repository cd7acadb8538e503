"""Pools of `cnnkern.functional`: max, average, adaptive, unpooling and power average.

The 1-D pools are the 2-D ones on images one pixel high, which costs two views. Everywhere `algo` is
"auto" or "triton", which runs the Triton kernels, forward and backward.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cnnkern.arguments import is_unbatched, output_extents, pair, single, window_stride
from cnnkern.checks import max_pool2d_save
from cnnkern.ops import DEFAULT, TRITON


def _ops(op: str, algo: str):
    if algo == "auto":
        return DEFAULT
    if algo == "triton":
        return TRITON
    raise RuntimeError(f"cnnkern::{op}: algo must be 'auto' or 'triton', got {algo!r}")


def max_pool2d(
    input: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    algo: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Take the maximum of each window.

    Shapes: input ``[N, C, H, W]`` or ``[C, H, W]`` -> ``[N, C, P, Q]`` with
    ``P = (H + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1``, rounded up with
    ceil_mode as long as the last window starts left of the right padding. With return_indices also
    the int64 places of the maxima, ``h * W + w``. stride None is kernel_size.

    Raises:
        RuntimeError: a window that does not fit, a padding of more than half of it, or a dtype
            other than float32, float64, bfloat16 and float16.
        TypeError, ValueError: sizes that are not ints, or too many of them.

    Source: ``torch.nn.functional.max_pool2d``. Differs: backward keeps one byte an output, not an
    int64, unless the indices are asked for.
    """
    unbatched = is_unbatched("max_pool2d", input, "NCHW")
    kernel_size = pair("max_pool2d", "kernel_size", kernel_size)
    stride = window_stride("max_pool2d", stride, kernel_size)
    padding = pair("max_pool2d", "padding", padding)
    dilation = pair("max_pool2d", "dilation", dilation)
    x = input.unsqueeze(0) if unbatched else input
    if return_indices:
        save = "indices"
    elif input.requires_grad and torch.is_grad_enabled():
        save = max_pool2d_save(kernel_size)
    else:
        save = "none"
    out, saved = _ops("max_pool2d", algo).max_pool2d(
        x, kernel_size, stride, padding, dilation, ceil_mode, save
    )
    if unbatched:
        out = out.squeeze(0)
    if not return_indices:
        return out
    return out, saved.squeeze(0) if unbatched else saved


def avg_pool2d(
    input: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    algo: str = "auto",
) -> Tensor:
    """Average each window.

    Shapes: as `max_pool2d` with dilation 1. The sum is divided by the number of elements, those of
    the padding included if count_include_pad says so, or by divisor_override.

    Raises:
        RuntimeError: as `max_pool2d`, or a divisor_override of 0.
        TypeError, ValueError: sizes that are not ints, or too many of them.

    Source: ``torch.nn.functional.avg_pool2d``; differs in nothing.
    """
    unbatched = is_unbatched("avg_pool2d", input, "NCHW")
    kernel_size = pair("avg_pool2d", "kernel_size", kernel_size)
    stride = window_stride("avg_pool2d", stride, kernel_size)
    padding = pair("avg_pool2d", "padding", padding)
    if divisor_override is not None:
        divisor_override = single("avg_pool2d", "divisor_override", divisor_override)
    x = input.unsqueeze(0) if unbatched else input
    out = _ops("avg_pool2d", algo).avg_pool2d(
        x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )
    return out.squeeze(0) if unbatched else out


def adaptive_avg_pool2d(
    input: Tensor, output_size: int | None | tuple, *, algo: str = "auto"
) -> Tensor:
    """Average each of the windows that divide the image evenly into output_size.

    Shapes: input ``[N, C, H, W]`` or ``[C, H, W]`` -> ``[N, C, P, Q]``; output_size is (P, Q), or
    one int for both, and None keeps the input's. Window i covers rows ``i*H // P`` to
    ``ceil((i+1)*H / P)``.

    Raises:
        RuntimeError: an output size below 1, an empty image, or a dtype that is no float.
        TypeError, ValueError: sizes that are not ints, or too many of them.

    Source: ``torch.nn.functional.adaptive_avg_pool2d``; differs: no output size 0.
    """
    if is_unbatched("adaptive_avg_pool2d", input, "NCHW"):
        return adaptive_avg_pool2d(input.unsqueeze(0), output_size, algo=algo).squeeze(0)
    return _ops("adaptive_avg_pool2d", algo).adaptive_avg_pool2d(
        input, output_extents("adaptive_avg_pool2d", output_size, input.shape[2:])
    )


def adaptive_max_pool2d(
    input: Tensor,
    output_size: int | None | tuple,
    return_indices: bool = False,
    *,
    algo: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Take the maximum of each of the windows that divide the image evenly into output_size.

    Shapes and errors: as `adaptive_avg_pool2d`; with return_indices also the int64 places of the
    maxima, ``h * W + w``.

    Source: ``torch.nn.functional.adaptive_max_pool2d``; differs: no output size 0.
    """
    unbatched = is_unbatched("adaptive_max_pool2d", input, "NCHW")
    x = input.unsqueeze(0) if unbatched else input
    results = _ops("adaptive_max_pool2d", algo).adaptive_max_pool2d(
        x, output_extents("adaptive_max_pool2d", output_size, x.shape[2:])
    )
    out, indices = (t.squeeze(0) for t in results) if unbatched else results
    return (out, indices) if return_indices else out


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    output_size: tuple[int, ...] | None = None,
    *,
    algo: str = "auto",
) -> Tensor:
    """Put each element where `max_pool2d` took it from, and zeros elsewhere.

    Shapes: input and int64 indices ``[N, C, P, Q]`` or ``[C, P, Q]`` -> ``[N, C, H, W]`` with
    ``H = (P - 1) * stride - 2 * padding + kernel_size``, or the output_size given, ``(H, W)`` or
    ``(N, C, H, W)``, which is less than a stride away from that.

    Raises:
        RuntimeError: indices of another shape or dtype, or outside the output.
        ValueError: an output_size that no such pool has made.

    Source: ``torch.nn.functional.max_unpool2d``; differs in nothing.
    """
    op = "max_unpool2d"
    if is_unbatched(op, input, "NCHW"):
        return max_unpool2d(
            input.unsqueeze(0),
            indices.unsqueeze(0),
            kernel_size,
            stride,
            padding,
            output_size,
            algo=algo,
        ).squeeze(0)
    kernel_size = pair(op, "kernel_size", kernel_size)
    stride = window_stride(op, stride, kernel_size)
    padding = pair(op, "padding", padding)
    usual = tuple(
        (input.size(2 + i) - 1) * stride[i] + kernel_size[i] - 2 * padding[i] for i in range(2)
    )
    if output_size is None:
        return _ops(op, algo).max_unpool2d(input, indices, usual)
    size = tuple(output_size)
    size = size[-2:] if len(size) in (3, 4) else size
    if len(size) != 2 or any(
        not u - s < n < u + s for n, u, s in zip(size, usual, stride, strict=True)
    ):
        raise ValueError(
            f"cnnkern::{op}: output_size must be less than stride {stride} away from {usual}, "
            f"got {tuple(output_size)}"
        )
    return _ops(op, algo).max_unpool2d(input, indices, size)


def lp_pool2d(
    input: Tensor,
    norm_type: float,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    ceil_mode: bool = False,
    *,
    algo: str = "auto",
) -> Tensor:
    """Take the p-norm of each window, p being norm_type.

    Shapes: as `avg_pool2d`. norm_type inf is the largest magnitude, -inf the smallest.

    Raises:
        TypeError, ValueError: norm_type is no number, 0 or NaN.
        RuntimeError: as `avg_pool2d`.

    Source: ``torch.nn.functional.lp_pool2d``, composed as there: x**p keeps its sign, so odd p can
    cancel, and windows that ceil_mode cuts off count as whole ones. Differs: refuses NaN.
    """
    if isinstance(norm_type, bool) or not isinstance(norm_type, int | float):
        raise TypeError(f"cnnkern::lp_pool2d: norm_type must be a number, got {norm_type!r}")
    if norm_type == 0 or math.isnan(norm_type):
        raise ValueError(f"cnnkern::lp_pool2d: norm_type must not be 0 or NaN, got {norm_type!r}")
    if norm_type == math.inf:
        return max_pool2d(input.abs(), kernel_size, stride, 0, 1, ceil_mode, algo=algo)
    if norm_type == -math.inf:
        return -max_pool2d(-input.abs(), kernel_size, stride, 0, 1, ceil_mode, algo=algo)
    rows, columns = pair("lp_pool2d", "kernel_size", kernel_size)
    out = avg_pool2d(input.pow(norm_type), kernel_size, stride, 0, ceil_mode, algo=algo)
    return (out.sign() * out.abs().relu()).mul(rows * columns).pow(1.0 / norm_type)


# ---- one dimension -----------------------------------------------------------------------------


def max_pool1d(
    input: Tensor,
    kernel_size: int | tuple[int],
    stride: int | tuple[int] | None = None,
    padding: int | tuple[int] = 0,
    dilation: int | tuple[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    algo: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Take the maximum of each window of a sequence.

    Shapes: input ``[N, C, W]`` or ``[C, W]`` -> ``[N, C, Q]``; otherwise as `max_pool2d`, whose
    name some messages carry.

    Source: ``torch.nn.functional.max_pool1d``; differs as `max_pool2d` does.
    """
    unbatched = is_unbatched("max_pool1d", input, "NCW")
    x = (input.unsqueeze(0) if unbatched else input).unsqueeze(-2)
    window = _window1d("max_pool1d", kernel_size, stride, padding)
    step = (1, single("max_pool1d", "dilation", dilation))
    results = max_pool2d(x, *window, step, ceil_mode, return_indices, algo=algo)
    if not return_indices:
        return _sequence(results, unbatched)
    return _sequence(results[0], unbatched), _sequence(results[1], unbatched)


def avg_pool1d(
    input: Tensor,
    kernel_size: int | tuple[int],
    stride: int | tuple[int] | None = None,
    padding: int | tuple[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    *,
    algo: str = "auto",
) -> Tensor:
    """Average each window of a sequence.

    Shapes: input ``[N, C, W]`` or ``[C, W]`` -> ``[N, C, Q]``; otherwise as `avg_pool2d`.

    Source: ``torch.nn.functional.avg_pool1d``; differs in nothing.
    """
    unbatched = is_unbatched("avg_pool1d", input, "NCW")
    x = (input.unsqueeze(0) if unbatched else input).unsqueeze(-2)
    window = _window1d("avg_pool1d", kernel_size, stride, padding)
    return _sequence(avg_pool2d(x, *window, ceil_mode, count_include_pad, algo=algo), unbatched)


def adaptive_avg_pool1d(
    input: Tensor, output_size: int | None | tuple, *, algo: str = "auto"
) -> Tensor:
    """Average each of the windows that divide a sequence evenly into output_size.

    Shapes: input ``[N, C, W]`` or ``[C, W]`` -> ``[N, C, Q]``; otherwise as `adaptive_avg_pool2d`.

    Source: ``torch.nn.functional.adaptive_avg_pool1d``; differs: None keeps the input's size.
    """
    unbatched = is_unbatched("adaptive_avg_pool1d", input, "NCW")
    x = (input.unsqueeze(0) if unbatched else input).unsqueeze(-2)
    size = output_extents("adaptive_avg_pool1d", output_size, x.shape[3:])
    return _sequence(
        _ops("adaptive_avg_pool1d", algo).adaptive_avg_pool2d(x, (1, *size)), unbatched
    )


def adaptive_max_pool1d(
    input: Tensor,
    output_size: int | None | tuple,
    return_indices: bool = False,
    *,
    algo: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Take the maximum of each of the windows that divide a sequence evenly into output_size.

    Shapes: input ``[N, C, W]`` or ``[C, W]`` -> ``[N, C, Q]``; otherwise as `adaptive_max_pool2d`.

    Source: ``torch.nn.functional.adaptive_max_pool1d``; differs: None keeps the input's size.
    """
    unbatched = is_unbatched("adaptive_max_pool1d", input, "NCW")
    x = (input.unsqueeze(0) if unbatched else input).unsqueeze(-2)
    size = output_extents("adaptive_max_pool1d", output_size, x.shape[3:])
    out, indices = _ops("adaptive_max_pool1d", algo).adaptive_max_pool2d(x, (1, *size))
    if not return_indices:
        return _sequence(out, unbatched)
    return _sequence(out, unbatched), _sequence(indices, unbatched)


def _window1d(op: str, kernel_size, stride, padding) -> tuple:
    kernel = single(op, "kernel_size", kernel_size)
    no_stride = stride is None or (type(stride) in (list, tuple) and len(stride) == 0)
    step = kernel if no_stride else single(op, "stride", stride)
    return (1, kernel), (1, step), (0, single(op, "padding", padding))


def _sequence(x: Tensor, unbatched: bool) -> Tensor:
    x = x.squeeze(-2)
    return x.squeeze(0) if unbatched else x
