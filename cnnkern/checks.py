"""What ops refuse, in the words of the C++ kernels: for the fakes and the Triton kernels.

Geometry is checked by the C++ rules (csrc/geometry.h) themselves; here are the checks of tensors,
which in C++ are those of csrc/check.h and csrc/pool2d_check.h. Sizes of which some are not known,
when torch traces, are left to the call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cnnkern import _C

FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MAX_OFFSETS = 256  # a uint8 tells as many elements of a window apart


def max_pool2d_save(kernel_size) -> str:
    """Choose what a max pool saves for backward: offsets, or indices where those do not fit."""
    return "offsets" if kernel_size[0] * kernel_size[1] <= MAX_OFFSETS else "indices"


def saved_dtype(save: str, kernel_size) -> torch.dtype:
    if save not in ("none", "offsets", "indices"):
        raise RuntimeError(
            f"cnnkern::max_pool2d: save must be 'none', 'offsets' or 'indices', got '{save}'"
        )
    if save == "offsets" and max_pool2d_save(kernel_size) != "offsets":
        raise RuntimeError(
            "cnnkern::max_pool2d: save='offsets' needs a window of at most 256 elements, "
            f"got kernel_size {list(kernel_size)}"
        )
    return torch.int64 if save == "indices" else torch.uint8


def _dtype_name(t: Tensor) -> str:
    """Return what C++ calls the tensor's dtype: Int for int32."""
    return t.type().rpartition(".")[2].removesuffix("Tensor")


def check_bias(op: str, bias: Tensor | None, channels) -> None:
    if bias is not None and (bias.dim() != 1 or bias.size(0) != channels):
        raise RuntimeError(f"cnnkern::{op}: bias must be [{channels}], got {list(bias.shape)}")


def check_floats(op: str, **tensors: Tensor | None) -> None:
    """Refuse a first tensor that is no float tensor, and what differs from it."""
    first_name, first = next(iter(tensors.items()))
    if first.dtype not in FLOAT_DTYPES:
        raise RuntimeError(
            f"cnnkern::{op}: {first_name} must be float32, float64, bfloat16 or float16, "
            f"got {_dtype_name(first)}"
        )
    check_devices(op, **tensors)
    for name, t in tensors.items():
        if t is not None and t.dtype != first.dtype:
            raise RuntimeError(
                f"cnnkern::{op}: {name} must have the dtype of {first_name}, "
                f"got {_dtype_name(t)} and {_dtype_name(first)}"
            )


def check_devices(op: str, **tensors: Tensor | None) -> None:
    first_name, first = next(iter(tensors.items()))
    for name, t in tensors.items():
        if t is not None and t.device != first.device:
            raise RuntimeError(f"cnnkern::{op}: {name} must be on the same device as {first_name}")


def _concrete(*sizes) -> bool:
    return all(isinstance(x, int) for size in sizes for x in size)


def conv2d_output_size(
    op, input_size, weight_size, stride, padding, dilation, groups, padding_mode
):
    """Return [N, K, P, Q]; sizes that are all known are checked by the C++ rules."""
    if _concrete(input_size, weight_size):
        return _C.conv2d_output_size(
            op, list(input_size), list(weight_size), stride, padding, dilation, groups, padding_mode
        )
    torch._check(len(input_size) == 4 and len(weight_size) == 4)
    torch._check(input_size[1] == weight_size[1] * groups)
    (N, _, H, W), (K, _, R, S) = input_size, weight_size
    P = (H + padding[2] + padding[3] - dilation[0] * (R - 1) - 1) // stride[0] + 1
    Q = (W + padding[0] + padding[1] - dilation[1] * (S - 1) - 1) // stride[1] + 1
    return [N, K, P, Q]


def pool2d_output_size(op, input_size, kernel_size, stride, padding, dilation, ceil_mode):
    """Return [N, C, P, Q]; sizes that are all known are checked by the C++ rules."""
    if _concrete(input_size):
        return _C.pool2d_output_size(
            op, list(input_size), kernel_size, stride, padding, dilation, ceil_mode
        )
    torch._check(len(input_size) == 4)
    out = []
    for size, k, s, p, d in zip(
        input_size[2:], kernel_size, stride, padding, dilation, strict=True
    ):
        n = (size + 2 * p - d * (k - 1) - 1 + (s - 1 if ceil_mode else 0)) // s + 1
        if ceil_mode:
            n = torch.sym_min(n, (size + p - 1) // s + 1)
        out.append(n)
    return [*input_size[:2], *out]


def check_adaptive(op, input_size, output_size):
    if _concrete(input_size, output_size):
        _C.check_adaptive_pool2d(op, list(input_size), list(output_size))


def check_size(op: str, name: str, t: Tensor, size: Sequence[int]) -> None:
    if _concrete(t.shape, size) and list(t.shape) != list(size):
        raise RuntimeError(f"cnnkern::{op}: {name} must be {list(size)}, got {list(t.shape)}")


def check_4d(op: str, name: str, t: Tensor, letters: str) -> None:
    if t.dim() != 4:
        raise RuntimeError(
            f"cnnkern::{op}: {name} must be {letters}, got {t.dim()} dimensions: {list(t.shape)}"
        )


def check_index_dtype(op: str, indices: Tensor, or_offsets: bool) -> None:
    """Refuse what is neither int64 nor, where offsets in a window will do, uint8."""
    if indices.dtype != torch.int64 and not (or_offsets and indices.dtype == torch.uint8):
        wanted = "uint8 or int64" if or_offsets else "int64"
        raise RuntimeError(f"cnnkern::{op}: indices must be {wanted}, got {_dtype_name(indices)}")


def check_divisor(op: str, divisor_override: int | None) -> None:
    if divisor_override == 0:
        raise RuntimeError(f"cnnkern::{op}: divisor_override must not be 0, got 0")


def check_saved_pool(op, input_size, indices, kernel_size, stride, padding, dilation) -> None:
    """Refuse saved positions of another kind or size than max_pool2d gives, in ceil_mode or not."""
    sizes = []
    if _concrete(input_size, indices.shape):
        window = (kernel_size, stride, padding, dilation)
        ceil_mode = list(pool2d_output_size(op, input_size, *window, True))
        floor_mode = list(input_size[:2])
        for size, k, s, p, d in zip(input_size[2:], *window, strict=True):
            floor_mode.append((size + 2 * p - d * (k - 1) - 1) // s + 1)
        sizes = [floor_mode, ceil_mode]
    if indices.dtype == torch.uint8 and max_pool2d_save(kernel_size) != "offsets":
        raise RuntimeError(
            f"cnnkern::{op}: indices must be int64 where a window has over {MAX_OFFSETS} elements, "
            f"got uint8 for kernel_size {list(kernel_size)}"
        )
    check_4d(op, "indices", indices, "[N, C, P, Q]")
    if sizes and list(indices.shape) not in sizes:
        raise RuntimeError(
            f"cnnkern::{op}: indices must be {sizes[0]} or, in ceil_mode, {sizes[1]}, "
            f"got {list(indices.shape)}"
        )
    check_index_dtype(op, indices, or_offsets=True)


def check_adaptive_grad(op: str, name: str, pooled: Tensor, input_size) -> None:
    """Refuse what is no adaptive pool's output for that input."""
    check_4d(op, name, pooled, "[N, C, P, Q]")
    check_adaptive(op, input_size, pooled.shape[2:])
    check_size(op, name, pooled, [*input_size[:2], *pooled.shape[2:]])


def check_unpool(op: str, input: Tensor, indices: Tensor, output_size) -> None:
    """Refuse what max_unpool2d cannot scatter to planes of that size."""
    check_4d(op, "input", input, "[N, C, P, Q]")
    if _concrete(input.shape, output_size):
        # An output's size is checked as that of an adaptive pool of one pixel.
        N, C, _, _ = input.shape
        _C.check_adaptive_pool2d(op, [N, max(C, 1), 1, 1], list(output_size))
    check_index_dtype(op, indices, or_offsets=False)
    check_size(op, "input", input, indices.shape)


def check_unpool_grad(op: str, grad: Tensor, indices: Tensor) -> None:
    check_4d(op, "grad", grad, "[N, C, H, W]")
    check_4d(op, "indices", indices, "[N, C, P, Q]")
    check_index_dtype(op, indices, or_offsets=False)
    if _concrete(grad.shape, indices.shape) and grad.shape[:2] != indices.shape[:2]:
        raise RuntimeError(
            f"cnnkern::{op}: indices must have the N and C of grad, got {list(indices.shape)} and "
            f"{list(grad.shape)}"
        )


def act_pool2d_saves(activation: str, pool: str) -> bool:
    """Tell whether backward needs the conv's output; else `output` and the offsets are enough.

    It is the pre-activation for gelu and silu, the activation otherwise: relu, sigmoid and tanh
    have derivatives that are functions of their value.
    """
    return activation in ("gelu", "silu") or (activation != "none" and pool == "avg")


def check_act_pool_grad(
    op, grad, output, saved, offsets, input_size, activation, pool, pool_kernel_size, pool_stride,
    pool_padding, pool_ceil_mode,
) -> None:  # fmt: skip
    """Refuse what the fused block does not give, or save, for an input of that size."""
    check_floats(op, grad=grad, output=output, saved=saved)
    check_devices(op, grad=grad, offsets=offsets)
    _C.check_act_pool(op, activation, pool, list(pool_kernel_size))
    size = list(input_size)
    if pool != "none":
        size = pool2d_output_size(
            op, input_size, pool_kernel_size, pool_stride, pool_padding, (1, 1), pool_ceil_mode
        )
    check_size(op, "grad", grad, size)
    check_size(op, "output", output, size)
    saves = act_pool2d_saves(activation, pool)
    check_size(op, "saved", saved, input_size if saves else [0])
    check_size(op, "offsets", offsets, size if pool == "max" else [0])
    if offsets.dtype != torch.uint8:
        raise RuntimeError(f"cnnkern::{op}: offsets must be uint8")


def check_mlp(op: str, input: Tensor, weights, others, activation: str) -> None:
    """Refuse layers that do not follow each other; `others` are one tensor a layer."""
    _C.check_act_pool(op, activation, "none", [1, 1])
    if activation in ("gelu", "silu"):
        raise RuntimeError(
            f"cnnkern::{op}: activation must be 'none', 'relu', 'sigmoid' or 'tanh', got "
            f"'{activation}'"
        )
    if input.dtype not in (torch.float32, torch.float64):
        raise RuntimeError(
            f"cnnkern::{op}: input must be float32 or float64, got {_dtype_name(input)}"
        )
    if input.dim() != 2:
        raise RuntimeError(f"cnnkern::{op}: input must be [N, features], got {list(input.shape)}")
    if not weights:
        raise RuntimeError(f"cnnkern::{op}: weights must not be empty")
    if len(others) != len(weights):
        raise RuntimeError(f"cnnkern::{op}: there must be {len(weights)} layers, got {len(others)}")
    features = input.size(1)
    for w in weights:
        if w.dim() != 2 or w.size(1) != features:
            raise RuntimeError(
                f"cnnkern::{op}: weights must be [outputs, {features}], got {list(w.shape)}"
            )
        features = w.size(0)
