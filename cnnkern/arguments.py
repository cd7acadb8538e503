"""What callers may write for a size, and the plain ints that the ops take.

The first lines of each function are the hot path: an int, or a tuple of ints, passes through with
two or three type checks. Anything else goes the slow way, which converts or refuses it.
"""

from __future__ import annotations

from operator import index
from typing import Any

import torch
from torch import Tensor

Pair = tuple[int, int]
Quad = tuple[int, int, int, int]


def pair(op: str, name: str, value: Any) -> Pair:
    """Spread an int, or check (height, width)."""
    kind = type(value)
    if kind is int:
        return value, value
    if kind is tuple and len(value) == 2 and type(value[0]) is int and type(value[1]) is int:
        return value
    values = _integers(op, name, value, "an int or a pair of ints (height, width)", (1, 2))
    return values * 2 if len(values) == 1 else values


def window_stride(op: str, value: Any, kernel_size: Pair) -> Pair:
    """Give a pool's stride; None, and torch's empty list, stand for the kernel's size."""
    if value is None or (type(value) in (list, tuple) and len(value) == 0):
        return kernel_size
    return pair(op, "stride", value)


def single(op: str, name: str, value: Any) -> int:
    """Give the one int of a 1-D op, which may come as a tuple of one."""
    if type(value) is int:
        return value
    return _integers(op, name, value, "an int", (1,))[0]


def sides(op: str, padding: Any, kernel: Pair, stride: Pair, dilation: Pair) -> Quad:
    """Give a convolution's padding as (left, right, top, bottom)."""
    kind = type(padding)
    if kind is int:
        return padding, padding, padding, padding
    if kind is str:
        return _named_padding(op, padding, kernel, stride, dilation)
    if not (
        kind is tuple and len(padding) == 2 and type(padding[0]) is int and type(padding[1]) is int
    ):
        what = "an int, (height, width), (left, right, top, bottom), 'same' or 'valid'"
        padding = _integers(op, "padding", padding, what, (1, 2, 4))
        if len(padding) == 4:
            return padding
    return padding[-1], padding[-1], padding[0], padding[0]


def ends(op: str, padding: Any, kernel: int, stride: Pair, dilation: Pair) -> Pair:
    """Give a 1-D convolution's padding as (left, right)."""
    if isinstance(padding, str):
        return _named_padding(op, padding, (1, kernel), stride, dilation)[:2]
    values = _integers(op, "padding", padding, "an int, (left, right), 'same' or 'valid'", (1, 2))
    return values[0], values[-1]


def _named_padding(op: str, padding: str, kernel: Pair, stride: Pair, dilation: Pair) -> Quad:
    if padding == "valid":
        return 0, 0, 0, 0
    if padding != "same":
        raise ValueError(f"cnnkern::{op}: padding must be 'same' or 'valid', got {padding!r}")
    if stride[0] != 1 or stride[1] != 1:
        raise ValueError(f"cnnkern::{op}: padding 'same' needs stride 1, got stride {stride}")
    height, width = dilation[0] * (kernel[0] - 1), dilation[1] * (kernel[1] - 1)
    top, left = height // 2, width // 2
    return left, width - left, top, height - top


def output_extents(op: str, value: Any, input_sizes) -> tuple:
    """Give an adaptive pool's output (height, width); None keeps the input's."""
    kind = type(value)
    if kind is int or value is None:
        value = (value,) * len(input_sizes)
    elif kind not in (tuple, list, torch.Size):
        value = (value,)
    if len(value) == 1:
        value = (value[0],) * len(input_sizes)
    if len(value) != len(input_sizes):
        raise ValueError(
            f"cnnkern::{op}: output_size must be an int, None, or {len(input_sizes)} of them, "
            f"got {value}"
        )
    return tuple(
        size if v is None else v if type(v) is int else _integer(op, "output_size", v, "ints")
        for v, size in zip(value, input_sizes, strict=True)
    )


def is_unbatched(op: str, input: Tensor, letters: str) -> bool:
    """Tell whether `input` lacks the batch dimension, the first of `letters`, or refuse it."""
    if not isinstance(input, Tensor):
        raise TypeError(f"cnnkern::{op}: input must be a Tensor, got {type(input).__name__}")
    dims = input.dim()
    if dims == len(letters):
        return False
    if dims == len(letters) - 1:
        return True
    raise RuntimeError(
        f"cnnkern::{op}: input must be [{', '.join(letters)}] or [{', '.join(letters[1:])}], "
        f"got {dims} dimensions: {list(input.shape)}"
    )


def _integers(op: str, name: str, value: Any, what: str, lengths: tuple[int, ...]) -> tuple:
    if not isinstance(value, tuple | list):
        return (_integer(op, name, value, what),)
    if len(value) not in lengths:
        raise ValueError(f"cnnkern::{op}: {name} must be {what}, got {value!r}")
    return tuple(_integer(op, name, v, what, value) for v in value)


def _integer(op: str, name: str, value: Any, what: str, whole: Any = None) -> int:
    if isinstance(value, torch.SymInt):
        return value
    # bool is an int to Python, and `index` takes whatever else calls itself one (NumPy, tensors).
    try:
        if not isinstance(value, bool):
            return index(value)
    except (TypeError, ValueError, RuntimeError):
        pass
    shown = value if whole is None else whole
    raise TypeError(f"cnnkern::{op}: {name} must be {what}, got {shown!r}")
