"""The contract of every op on one page: schema, fake implementation, autograd.

The C++ kernels meet this file by name only. An op's arguments are normalised integers: padding is
(left, right, top, bottom), everything else (height, width). Gradients are ops themselves, and
differentiable, so double backward is composition.

Each op has two overloads with one schema, one fake and one autograd: the plain one runs C++ on CPU
and CUDA tensors, ``.triton`` runs `cnnkern.triton_kernels`. Gradients stay within the overload.

It is long because it is the whole contract.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from cnnkern import _C
from cnnkern._cuda_library import status as cuda_library_status  # noqa: F401

_CONV = (
    "int[2] stride=1, int[4] padding=0, int[2] dilation=1, int groups=1, "
    "str padding_mode='zeros', str algo='auto'"
)
_POOL = "int[2] kernel_size, int[2] stride, int[2] padding=0, int[2] dilation=1"
_AVG = (
    "int[2] kernel_size, int[2] stride, int[2] padding=0, bool ceil_mode=False, "
    "bool count_include_pad=True, int? divisor_override=None"
)
_ACT_POOL = (
    "str activation='none', str pool='none', int[2] pool_kernel_size=2, int[2] pool_stride=2, "
    "int[2] pool_padding=0, bool pool_ceil_mode=False, bool count_include_pad=True"
)

SCHEMAS = (
    f"conv2d(Tensor input, Tensor weight, Tensor? bias=None, {_CONV}) -> Tensor",
    f"conv2d_input_grad(Tensor grad, Tensor weight, SymInt[4] input_size, {_CONV}) -> Tensor",
    f"conv2d_weight_grad(Tensor grad, Tensor input, SymInt[4] weight_size, {_CONV}) -> Tensor",
    "conv2d_bias_grad(Tensor grad) -> Tensor",
    # save: 'none', 'offsets' (uint8, r*S + s inside the window) or 'indices' (int64, h*W + w).
    f"max_pool2d(Tensor input, {_POOL}, bool ceil_mode=False, str save='none') -> (Tensor, Tensor)",
    f"max_pool2d_grad(Tensor grad, Tensor indices, SymInt[4] input_size, {_POOL}) -> Tensor",
    f"max_pool2d_gather(Tensor input, Tensor indices, {_POOL}) -> Tensor",
    f"avg_pool2d(Tensor input, {_AVG}) -> Tensor",
    f"avg_pool2d_grad(Tensor grad, SymInt[4] input_size, {_AVG}) -> Tensor",
    "adaptive_avg_pool2d(Tensor input, SymInt[2] output_size) -> Tensor",
    "adaptive_avg_pool2d_grad(Tensor grad, SymInt[4] input_size) -> Tensor",
    "adaptive_max_pool2d(Tensor input, SymInt[2] output_size) -> (Tensor, Tensor)",
    "adaptive_max_pool2d_grad(Tensor grad, Tensor indices, SymInt[4] input_size) -> Tensor",
    "max_unpool2d(Tensor input, Tensor indices, SymInt[2] output_size) -> Tensor",
    "max_unpool2d_grad(Tensor grad, Tensor indices) -> Tensor",
    # Results: output, what backward needs of the activation, max-pool offsets; or empty tensors.
    f"conv2d_act_pool2d(Tensor input, Tensor weight, Tensor? bias, {_CONV}, {_ACT_POOL}, "
    "bool save=False) -> (Tensor, Tensor, Tensor)",
    "act_pool2d_grad(Tensor grad, Tensor output, Tensor saved, Tensor offsets, "
    f"SymInt[4] input_size, {_ACT_POOL}) -> Tensor",
)

OP_NAMES = tuple(schema.split("(")[0] for schema in SCHEMAS)
OVERLOADS = ("default", "triton")
TRITON_ALGOS = ("triton", "triton_tf32", "triton_tf32x3")  # the values of algo that mean .triton


def qualified(name: str, overload: str) -> str:
    """Spell an overload as the dispatcher does: conv2d, conv2d.triton."""
    return name if overload == "default" else f"{name}.{overload}"


_library = torch.library.Library("cnnkern", "DEF")
for _name, _schema in zip(OP_NAMES, SCHEMAS, strict=True):
    for _overload in OVERLOADS:
        _library.define(
            _schema.replace(_name, qualified(_name, _overload), 1),
            tags=(torch.Tag.pt2_compliant_tag,),
        )
_ops = torch.ops.cnnkern


class Overloads:
    """Every op of the contract as one of its overloads, by name."""

    def __init__(self, overload: str) -> None:
        for name in OP_NAMES:
            setattr(self, name, getattr(getattr(_ops, name), overload))


DEFAULT, TRITON = (Overloads(overload) for overload in OVERLOADS)

# The ops that have a CUDA C++ kernel; the others run Triton on CUDA tensors, whatever the overload.
CUDA_OPS = frozenset(
    name
    for name in OP_NAMES
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"cnnkern::{name}", "CUDA")
)

# ---- tensors that are no plain strided float tensors -------------------------------------------


def _refuse(name: str, kind: str):
    def kernel(*args, **kwargs):
        raise RuntimeError(
            f"cnnkern::{name}: tensors must be dense and strided, got a {kind} tensor"
        )

    return kernel


for _name, _overload in itertools.product(OP_NAMES, OVERLOADS):
    for _key, _kind in (
        ("SparseCPU", "sparse"),
        ("SparseCUDA", "sparse"),
        ("SparseCsrCPU", "sparse compressed"),
        ("SparseCsrCUDA", "sparse compressed"),
        ("QuantizedCPU", "quantized"),
        ("QuantizedCUDA", "quantized"),
        ("MkldnnCPU", "mkldnn"),
    ):
        _library.impl(qualified(_name, _overload), _refuse(_name, _kind), _key)

# ---- autocast: convolutions run in the autocast dtype, pools in whatever they are given --------


def _autocast(op, device: str):
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU).add(
        torch._C.DispatchKey.AutocastCUDA
    )

    def kernel(*args, **kwargs):
        dtype = torch.get_autocast_dtype(device)

        def cast(x):
            is_cast = isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
            return x.to(dtype) if is_cast else x

        args, kwargs = [cast(a) for a in args], {k: cast(v) for k, v in kwargs.items()}
        with torch._C._ExcludeDispatchKeyGuard(key):
            return op(*args, **kwargs)

    return kernel


for _name, _overload in itertools.product(
    ("conv2d", "conv2d_input_grad", "conv2d_act_pool2d"), OVERLOADS
):
    for _key, _device in (("AutocastCPU", "cpu"), ("AutocastCUDA", "cuda")):
        _op = getattr(getattr(_ops, _name), _overload)
        _library.impl(qualified(_name, _overload), _autocast(_op, _device), _key)

# ---- fakes -------------------------------------------------------------------------------------

FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def is_nhwc(t: Tensor) -> bool:
    """Tell whether outputs computed from `t` are channels_last; the rule of csrc/check.h."""
    if t.dim() != 4 or t.is_contiguous():
        return False
    return (
        t.size(1) > 1
        and t.stride(1) == 1
        and t.stride(3) >= t.size(1)
        and t.stride(2) >= t.stride(3)
    )


def _new(like: Tensor, sizes, nhwc: bool, dtype: torch.dtype | None = None) -> Tensor:
    layout = torch.channels_last if nhwc else torch.contiguous_format
    return torch.empty(
        tuple(sizes), dtype=dtype or like.dtype, device=like.device, memory_format=layout
    )


def _check_bias(op: str, bias: Tensor | None, channels) -> None:
    if bias is not None and (bias.dim() != 1 or bias.size(0) != channels):
        raise RuntimeError(f"cnnkern::{op}: bias must be [{channels}], got {list(bias.shape)}")


def _check_grad_size(op: str, grad: Tensor, size) -> None:
    if grad.dim() != 4 or any(a != b for a, b in zip(grad.shape, size, strict=True)):
        raise RuntimeError(f"cnnkern::{op}: grad must be {list(size)}, got {list(grad.shape)}")


def _check_floats(op: str, **tensors: Tensor | None) -> None:
    """Refuse what is no float tensor, and what differs from the first in dtype or device."""
    first_name, first = next(iter(tensors.items()))
    for name, t in tensors.items():
        if t is None:
            continue
        if t.dtype not in FLOAT_DTYPES:
            raise RuntimeError(
                f"cnnkern::{op}: {name} must be float32, float64, bfloat16 or float16, "
                f"got {t.dtype}"
            )
        if t.dtype != first.dtype:
            raise RuntimeError(
                f"cnnkern::{op}: {name} must have the dtype of {first_name}, "
                f"got {t.dtype} and {first.dtype}"
            )
    _check_devices(op, **tensors)


def _check_devices(op: str, **tensors: Tensor | None) -> None:
    first_name, first = next(iter(tensors.items()))
    for name, t in tensors.items():
        if t is not None and t.device != first.device:
            raise RuntimeError(
                f"cnnkern::{op}: {name} must be on the same device as {first_name}, "
                f"got {t.device} and {first.device}"
            )


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


def _check_adaptive(op, input_size, output_size):
    if _concrete(input_size, output_size):
        _C.check_adaptive_pool2d(op, list(input_size), list(output_size))


def _fake(name):
    def register(fake):
        for overload in OVERLOADS:
            torch.library.register_fake(f"cnnkern::{qualified(name, overload)}", fake, lib=_library)

    return register


@_fake("conv2d")
def _(input, weight, bias=None, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1,
      padding_mode="zeros", algo="auto"):  # fmt: skip
    _check_floats("conv2d", input=input, weight=weight, bias=bias)
    size = conv2d_output_size(
        "conv2d", input.shape, weight.shape, stride, padding, dilation, groups, padding_mode
    )
    _check_bias("conv2d", bias, size[1])
    return _new(input, size, is_nhwc(input))


@_fake("conv2d_input_grad")
def _(grad, weight, input_size, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1,
      padding_mode="zeros", algo="auto"):  # fmt: skip
    op = "conv2d_input_grad"
    _check_floats(op, grad=grad, weight=weight)
    size = conv2d_output_size(
        op, input_size, weight.shape, stride, padding, dilation, groups, padding_mode
    )
    _check_grad_size(op, grad, size)
    return _new(grad, input_size, is_nhwc(grad))


@_fake("conv2d_weight_grad")
def _(grad, input, weight_size, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1,
      padding_mode="zeros", algo="auto"):  # fmt: skip
    op = "conv2d_weight_grad"
    _check_floats(op, grad=grad, input=input)
    size = conv2d_output_size(
        op, input.shape, weight_size, stride, padding, dilation, groups, padding_mode
    )
    _check_grad_size(op, grad, size)
    return _new(grad, weight_size, False)


@_fake("conv2d_bias_grad")
def _(grad):
    _check_floats("conv2d_bias_grad", grad=grad)
    return grad.new_empty(grad.size(1))


MAX_OFFSETS = 256  # a uint8 tells as many elements of a window apart


def max_pool2d_save(kernel_size) -> str:
    """Choose what a max pool saves for backward: offsets, or indices where those do not fit."""
    return "offsets" if kernel_size[0] * kernel_size[1] <= MAX_OFFSETS else "indices"


def _check_saved(op: str, indices: Tensor, kernel_size) -> None:
    if indices.dtype == torch.uint8 and max_pool2d_save(kernel_size) != "offsets":
        raise RuntimeError(
            f"cnnkern::{op}: indices must be int64 where a window has over {MAX_OFFSETS} elements, "
            f"got uint8 for kernel_size {list(kernel_size)}"
        )


def _saved_dtype(save: str, kernel_size) -> torch.dtype:
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


@_fake("max_pool2d")
def _(input, kernel_size, stride, padding=(0, 0), dilation=(1, 1), ceil_mode=False, save="none"):
    _check_floats("max_pool2d", input=input)
    size = pool2d_output_size(
        "max_pool2d", input.shape, kernel_size, stride, padding, dilation, ceil_mode
    )
    nhwc, dtype = is_nhwc(input), _saved_dtype(save, kernel_size)
    saved = input.new_empty(0, dtype=dtype) if save == "none" else _new(input, size, nhwc, dtype)
    return _new(input, size, nhwc), saved


@_fake("max_pool2d_grad")
def _(grad, indices, input_size, kernel_size, stride, padding=(0, 0), dilation=(1, 1)):
    _check_floats("max_pool2d_grad", grad=grad)
    _check_devices("max_pool2d_grad", grad=grad, indices=indices)
    _check_saved("max_pool2d_grad", indices, kernel_size)
    return _new(grad, input_size, is_nhwc(indices))


@_fake("max_pool2d_gather")
def _(input, indices, kernel_size, stride, padding=(0, 0), dilation=(1, 1)):
    _check_floats("max_pool2d_gather", input=input)
    _check_devices("max_pool2d_gather", input=input, indices=indices)
    _check_saved("max_pool2d_gather", indices, kernel_size)
    return _new(input, indices.shape, is_nhwc(indices))


@_fake("avg_pool2d")
def _(input, kernel_size, stride, padding=(0, 0), ceil_mode=False, count_include_pad=True,
      divisor_override=None):  # fmt: skip
    _check_floats("avg_pool2d", input=input)
    if divisor_override == 0:
        raise RuntimeError("cnnkern::avg_pool2d: divisor_override must not be 0, got 0")
    size = pool2d_output_size(
        "avg_pool2d", input.shape, kernel_size, stride, padding, (1, 1), ceil_mode
    )
    return _new(input, size, is_nhwc(input))


@_fake("avg_pool2d_grad")
def _(grad, input_size, kernel_size, stride, padding=(0, 0), ceil_mode=False,
      count_include_pad=True, divisor_override=None):  # fmt: skip
    _check_floats("avg_pool2d_grad", grad=grad)
    return _new(grad, input_size, is_nhwc(grad))


@_fake("adaptive_avg_pool2d")
def _(input, output_size):
    _check_floats("adaptive_avg_pool2d", input=input)
    _check_adaptive("adaptive_avg_pool2d", input.shape, output_size)
    return _new(input, (*input.shape[:2], *output_size), is_nhwc(input))


@_fake("adaptive_avg_pool2d_grad")
def _(grad, input_size):
    _check_floats("adaptive_avg_pool2d_grad", grad=grad)
    return _new(grad, input_size, is_nhwc(grad))


@_fake("adaptive_max_pool2d")
def _(input, output_size):
    _check_floats("adaptive_max_pool2d", input=input)
    _check_adaptive("adaptive_max_pool2d", input.shape, output_size)
    size, nhwc = (*input.shape[:2], *output_size), is_nhwc(input)
    return _new(input, size, nhwc), _new(input, size, nhwc, torch.int64)


@_fake("adaptive_max_pool2d_grad")
def _(grad, indices, input_size):
    _check_floats("adaptive_max_pool2d_grad", grad=grad)
    _check_devices("adaptive_max_pool2d_grad", grad=grad, indices=indices)
    return _new(grad, input_size, is_nhwc(indices))


@_fake("max_unpool2d")
def _(input, indices, output_size):
    _check_floats("max_unpool2d", input=input)
    _check_devices("max_unpool2d", input=input, indices=indices)
    return _new(input, (*input.shape[:2], *output_size), is_nhwc(input))


@_fake("max_unpool2d_grad")
def _(grad, indices):
    _check_floats("max_unpool2d_grad", grad=grad)
    _check_devices("max_unpool2d_grad", grad=grad, indices=indices)
    return _new(grad, indices.shape, is_nhwc(indices))


def act_pool2d_saves(activation: str, pool: str) -> bool:
    """Tell whether backward needs the conv's output; else `output` and the offsets are enough.

    It is the pre-activation for gelu and silu, the activation otherwise: relu, sigmoid and tanh
    have derivatives that are functions of their value.
    """
    return activation in ("gelu", "silu") or (activation != "none" and pool == "avg")


@_fake("conv2d_act_pool2d")
def _(input, weight, bias, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1,
      padding_mode="zeros", algo="auto", activation="none", pool="none", pool_kernel_size=(2, 2),
      pool_stride=(2, 2), pool_padding=(0, 0), pool_ceil_mode=False, count_include_pad=True,
      save=False):  # fmt: skip
    op = "conv2d_act_pool2d"
    _check_floats(op, input=input, weight=weight, bias=bias)
    conv_size = conv2d_output_size(
        op, input.shape, weight.shape, stride, padding, dilation, groups, padding_mode
    )
    _check_bias(op, bias, conv_size[1])
    _C.check_act_pool(op, activation, pool, list(pool_kernel_size))
    size = conv_size
    if pool != "none":
        size = pool2d_output_size(
            op, conv_size, pool_kernel_size, pool_stride, pool_padding, (1, 1), pool_ceil_mode
        )
    nhwc = is_nhwc(input)
    saved, offsets = input.new_empty(0), input.new_empty(0, dtype=torch.uint8)
    if save and act_pool2d_saves(activation, pool):
        saved = _new(input, conv_size, nhwc)
    if save and pool == "max":
        offsets = _new(input, size, nhwc, torch.uint8)
    return _new(input, size, nhwc), saved, offsets


@_fake("act_pool2d_grad")
def _(grad, output, saved, offsets, input_size, activation="none", pool="none",
      pool_kernel_size=(2, 2), pool_stride=(2, 2), pool_padding=(0, 0), pool_ceil_mode=False,
      count_include_pad=True):  # fmt: skip
    _check_floats("act_pool2d_grad", grad=grad, output=output, saved=saved)
    _check_devices("act_pool2d_grad", grad=grad, offsets=offsets)
    return _new(grad, input_size, is_nhwc(output))
