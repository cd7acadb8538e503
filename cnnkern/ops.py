"""The contract of every op on one page: schema, fake implementation, autograd.

The C++ kernels meet this file by name only. An op's arguments are normalised integers: padding is
(left, right, top, bottom), everything else (height, width). Gradients are ops themselves, and
differentiable, so double backward is composition.

Each op has two overloads with one schema, one fake and one autograd: the plain one runs C++ on CPU
and CUDA tensors, ``.triton`` runs `cnnkern.triton_kernels`. Gradients stay within the overload.
A few ops more, which do the work of several at once in the CPU's caches, are the CPU's alone.

It is long because it is the whole contract.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from cnnkern import _C
from cnnkern._cuda_library import status as cuda_library_status  # noqa: F401
from cnnkern.checks import (
    act_pool2d_saves,
    check_4d,
    check_act_pool_grad,
    check_adaptive,
    check_adaptive_grad,
    check_bias,
    check_devices,
    check_divisor,
    check_floats,
    check_index_dtype,
    check_mlp,
    check_saved_pool,
    check_size,
    check_unpool,
    check_unpool_grad,
    conv2d_output_size,
    pool2d_output_size,
    saved_dtype,
)

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

# Of the CPU alone, whose caches hold what several ops would hand on. Gradients that are not needed
# are empty tensors, or missing at the end of a list.
CPU_SCHEMAS = (
    # act_pool2d_grad and the three gradients of the convolution.
    "conv2d_act_pool2d_grad(Tensor grad, Tensor input, Tensor weight, Tensor output, Tensor saved, "
    f"Tensor offsets, {_CONV}, {_ACT_POOL}, bool need_input=True, bool need_weight=True, "
    "bool need_bias=True) -> (Tensor, Tensor, Tensor)",
    # Linear layers with activations between them. Results: the output of each layer.
    "mlp(Tensor input, Tensor[] weights, Tensor[] biases, str activation='none') -> Tensor[]",
    # Results: the gradients of the input, then of each layer's weight and bias.
    "mlp_grad(Tensor grad, Tensor input, Tensor[] weights, Tensor[] outputs, "
    "str activation='none', bool need_input=True, bool need_params=True) -> Tensor[]",
    # Fused blocks, then linear layers; each one's weight and bias, in that order. `network` is
    # a text, see network_text(): it is handed over in a third of the time that a list of integers
    # takes. Results: the scores; if save, each block's three results and each hidden layer's
    # output, for conv_mlp_grad with the same arguments: how the blocks' lie in memory is theirs to
    # know.
    "conv_mlp(Tensor input, Tensor[] params, str network, bool save=False) -> Tensor[]",
    # Results: the gradients of the input, then of the parameters.
    "conv_mlp_grad(Tensor grad, Tensor input, Tensor[] params, Tensor[] results, str network, "
    "bool need_input=True) -> Tensor[]",
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
for _schema in CPU_SCHEMAS:
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
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


def _fake(name):
    def register(fake):
        for overload in OVERLOADS:
            torch.library.register_fake(f"cnnkern::{qualified(name, overload)}", fake, lib=_library)

    return register


@_fake("conv2d")
def _(input, weight, bias=None, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1,
      padding_mode="zeros", algo="auto"):  # fmt: skip
    check_floats("conv2d", input=input, weight=weight, bias=bias)
    size = conv2d_output_size(
        "conv2d", input.shape, weight.shape, stride, padding, dilation, groups, padding_mode
    )
    check_bias("conv2d", bias, size[1])
    return _new(input, size, is_nhwc(input))


@_fake("conv2d_input_grad")
def _(grad, weight, input_size, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1,
      padding_mode="zeros", algo="auto"):  # fmt: skip
    op = "conv2d_input_grad"
    check_floats(op, grad=grad, weight=weight)
    size = conv2d_output_size(
        op, input_size, weight.shape, stride, padding, dilation, groups, padding_mode
    )
    check_size(op, "grad", grad, size)
    return _new(grad, input_size, is_nhwc(grad))


@_fake("conv2d_weight_grad")
def _(grad, input, weight_size, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1,
      padding_mode="zeros", algo="auto"):  # fmt: skip
    op = "conv2d_weight_grad"
    check_floats(op, grad=grad, input=input)
    size = conv2d_output_size(
        op, input.shape, weight_size, stride, padding, dilation, groups, padding_mode
    )
    check_size(op, "grad", grad, size)
    return _new(grad, weight_size, False)


@_fake("conv2d_bias_grad")
def _(grad):
    check_floats("conv2d_bias_grad", grad=grad)
    check_4d("conv2d_bias_grad", "grad", grad, "[N, K, P, Q]")
    return grad.new_empty(grad.size(1))


@_fake("max_pool2d")
def _(input, kernel_size, stride, padding=(0, 0), dilation=(1, 1), ceil_mode=False, save="none"):
    check_floats("max_pool2d", input=input)
    size = pool2d_output_size(
        "max_pool2d", input.shape, kernel_size, stride, padding, dilation, ceil_mode
    )
    nhwc, dtype = is_nhwc(input), saved_dtype(save, kernel_size)
    saved = input.new_empty(0, dtype=dtype) if save == "none" else _new(input, size, nhwc, dtype)
    return _new(input, size, nhwc), saved


@_fake("max_pool2d_grad")
def _(grad, indices, input_size, kernel_size, stride, padding=(0, 0), dilation=(1, 1)):
    check_floats("max_pool2d_grad", grad=grad)
    check_devices("max_pool2d_grad", grad=grad, indices=indices)
    window = (kernel_size, stride, padding, dilation)
    check_saved_pool("max_pool2d_grad", input_size, indices, *window)
    check_size("max_pool2d_grad", "grad", grad, indices.shape)
    return _new(grad, input_size, is_nhwc(indices))


@_fake("max_pool2d_gather")
def _(input, indices, kernel_size, stride, padding=(0, 0), dilation=(1, 1)):
    check_floats("max_pool2d_gather", input=input)
    check_devices("max_pool2d_gather", input=input, indices=indices)
    window = (kernel_size, stride, padding, dilation)
    check_saved_pool("max_pool2d_gather", input.shape, indices, *window)
    return _new(input, indices.shape, is_nhwc(indices))


@_fake("avg_pool2d")
def _(input, kernel_size, stride, padding=(0, 0), ceil_mode=False, count_include_pad=True,
      divisor_override=None):  # fmt: skip
    check_floats("avg_pool2d", input=input)
    check_divisor("avg_pool2d", divisor_override)
    size = pool2d_output_size(
        "avg_pool2d", input.shape, kernel_size, stride, padding, (1, 1), ceil_mode
    )
    return _new(input, size, is_nhwc(input))


@_fake("avg_pool2d_grad")
def _(grad, input_size, kernel_size, stride, padding=(0, 0), ceil_mode=False,
      count_include_pad=True, divisor_override=None):  # fmt: skip
    op = "avg_pool2d_grad"
    check_floats(op, grad=grad)
    check_divisor(op, divisor_override)
    size = pool2d_output_size(op, input_size, kernel_size, stride, padding, (1, 1), ceil_mode)
    check_size(op, "grad", grad, size)
    return _new(grad, input_size, is_nhwc(grad))


@_fake("adaptive_avg_pool2d")
def _(input, output_size):
    check_floats("adaptive_avg_pool2d", input=input)
    check_adaptive("adaptive_avg_pool2d", input.shape, output_size)
    return _new(input, (*input.shape[:2], *output_size), is_nhwc(input))


@_fake("adaptive_avg_pool2d_grad")
def _(grad, input_size):
    check_floats("adaptive_avg_pool2d_grad", grad=grad)
    check_adaptive_grad("adaptive_avg_pool2d_grad", "grad", grad, input_size)
    return _new(grad, input_size, is_nhwc(grad))


@_fake("adaptive_max_pool2d")
def _(input, output_size):
    check_floats("adaptive_max_pool2d", input=input)
    check_adaptive("adaptive_max_pool2d", input.shape, output_size)
    size, nhwc = (*input.shape[:2], *output_size), is_nhwc(input)
    return _new(input, size, nhwc), _new(input, size, nhwc, torch.int64)


@_fake("adaptive_max_pool2d_grad")
def _(grad, indices, input_size):
    op = "adaptive_max_pool2d_grad"
    check_floats(op, grad=grad)
    check_devices(op, grad=grad, indices=indices)
    check_index_dtype(op, indices, or_offsets=False)
    check_adaptive_grad(op, "indices", indices, input_size)
    check_size(op, "grad", grad, indices.shape)
    return _new(grad, input_size, is_nhwc(indices))


@_fake("max_unpool2d")
def _(input, indices, output_size):
    check_floats("max_unpool2d", input=input)
    check_devices("max_unpool2d", input=input, indices=indices)
    check_unpool("max_unpool2d", input, indices, output_size)
    return _new(input, (*input.shape[:2], *output_size), is_nhwc(input))


@_fake("max_unpool2d_grad")
def _(grad, indices):
    check_floats("max_unpool2d_grad", grad=grad)
    check_devices("max_unpool2d_grad", grad=grad, indices=indices)
    check_unpool_grad("max_unpool2d_grad", grad, indices)
    return _new(grad, indices.shape, is_nhwc(indices))


@_fake("conv2d_act_pool2d")
def _(input, weight, bias, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1,
      padding_mode="zeros", algo="auto", activation="none", pool="none", pool_kernel_size=(2, 2),
      pool_stride=(2, 2), pool_padding=(0, 0), pool_ceil_mode=False, count_include_pad=True,
      save=False):  # fmt: skip
    op = "conv2d_act_pool2d"
    check_floats(op, input=input, weight=weight, bias=bias)
    conv_size = conv2d_output_size(
        op, input.shape, weight.shape, stride, padding, dilation, groups, padding_mode
    )
    check_bias(op, bias, conv_size[1])
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
    op = "act_pool2d_grad"
    check_act_pool_grad(
        op, grad, output, saved, offsets, input_size, activation, pool, pool_kernel_size,
        pool_stride, pool_padding, pool_ceil_mode,
    )  # fmt: skip
    return _new(grad, input_size, is_nhwc(output))


@torch.library.register_fake("cnnkern::conv2d_act_pool2d_grad", lib=_library)
def _(grad, input, weight, output, saved, offsets, stride=(1, 1), padding=(0, 0, 0, 0),
      dilation=(1, 1), groups=1, padding_mode="zeros", algo="auto", activation="none", pool="none",
      pool_kernel_size=(2, 2), pool_stride=(2, 2), pool_padding=(0, 0), pool_ceil_mode=False,
      count_include_pad=True, need_input=True, need_weight=True, need_bias=True):  # fmt: skip
    op = "conv2d_act_pool2d_grad"
    check_floats(op, grad=grad, input=input, weight=weight)
    conv_size = conv2d_output_size(
        op, input.shape, weight.shape, stride, padding, dilation, groups, padding_mode
    )
    check_act_pool_grad(
        op, grad, output, saved, offsets, conv_size, activation, pool, pool_kernel_size,
        pool_stride, pool_padding, pool_ceil_mode,
    )  # fmt: skip
    return (
        _new(grad, input.shape, is_nhwc(output)) if need_input else grad.new_empty(0),
        _new(grad, weight.shape, False) if need_weight else grad.new_empty(0),
        grad.new_empty(weight.size(0) if need_bias else 0),
    )


@torch.library.register_fake("cnnkern::mlp", lib=_library)
def _(input, weights, biases, activation="none"):
    check_mlp("mlp", input, weights, biases, activation)
    return [input.new_empty(input.size(0), w.size(0)) for w in weights]


@torch.library.register_fake("cnnkern::mlp_grad", lib=_library)
def _(grad, input, weights, outputs, activation="none", need_input=True, need_params=True):
    check_mlp("mlp_grad", input, weights, outputs, activation)
    grads = [input.new_empty(input.shape if need_input else (0,))]
    for w in weights if need_params else ():
        grads += [w.new_empty(w.shape), w.new_empty(w.size(0))]
    return grads


def network_text(algo: str, activation: str, pool: str, geometry) -> str:
    """Spell what conv_mlp is to know of its blocks.

    `geometry` has 17 integers a block: conv2d_act_pool2d's arguments from stride to groups and from
    pool_kernel_size to count_include_pad.
    """
    return " ".join(map(str, (algo, activation, pool, *geometry)))


def read_network(text: str) -> tuple[list[str], list[tuple[list, list]]]:
    """Return algo, activation and pool; and the options of each block's convolution and pool."""
    words = text.split()
    numbers = list(map(int, words[3:]))
    blocks = []
    for at in range(0, len(numbers), 17):
        g = numbers[at : at + 17]
        of_pool = [g[9:11], g[11:13], g[13:15], bool(g[15]), bool(g[16])]
        blocks.append(([g[:2], g[2:6], g[6:8], g[8]], of_pool))
    return words[:3], blocks


@torch.library.register_fake("cnnkern::conv_mlp", lib=_library)
def _(input, params, network, save=False):
    (algo, activation, pool), blocks = read_network(network)
    results, x = [], input
    for i, (conv, of_pool) in enumerate(blocks):
        x, *saved = _ops.conv2d_act_pool2d.default(
            x, *params[2 * i : 2 * i + 2], *conv, "zeros", algo, activation, pool, *of_pool, save
        )
        results += [x, *saved]
    weights, biases = params[2 * len(blocks) :: 2], params[2 * len(blocks) + 1 :: 2]
    check_mlp("conv_mlp", x.flatten(1), weights, biases, activation)
    outputs = [input.new_empty(input.size(0), w.size(0)) for w in weights]
    return [outputs[-1], *results, *outputs[:-1]] if save else outputs[-1:]


@torch.library.register_fake("cnnkern::conv_mlp_grad", lib=_library)
def _(grad, input, params, results, network, need_input=True):
    of_input = _new(input, input.shape, is_nhwc(results[1])) if need_input else input.new_empty(0)
    return [of_input, *(p.new_empty(p.shape) for p in params)]
