"""The Triton implementations of the contract, registered as the ``.triton`` overloads.

One file per family of ops; each has one function per op, of the op's name and arguments. Triton and
those files are imported by the first call. An op without a CUDA C++ kernel runs Triton under its
plain overload, too, when given CUDA tensors. torch.compile sees the kernels, not the ops. With
TRITON_INTERPRET=1 CPU tensors go through Triton's interpreter, which is right for float32 only: its
dot products of bfloat16 are not.
"""

from __future__ import annotations

import importlib
import os

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensorMode

from cnnkern.ops import CUDA_OPS, _library, _ops
from cnnkern.triton_kernels.plan import planned

FAMILIES = {
    "conv2d": ("conv2d", "conv2d_input_grad"),
    "conv2d_weight_grad": ("conv2d_weight_grad", "conv2d_bias_grad"),
    "conv2d_act_pool2d": ("conv2d_act_pool2d",),
    "pool2d": ("max_pool2d", "avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d"),
    "pool2d_grad": (
        "max_pool2d_grad",
        "avg_pool2d_grad",
        "adaptive_avg_pool2d_grad",
        "act_pool2d_grad",
    ),
    "max_unpool2d": (
        "max_unpool2d",
        "max_unpool2d_grad",
        "max_pool2d_gather",
        "adaptive_max_pool2d_grad",
    ),
}
MODULES = {name: module for module, names in FAMILIES.items() for name in names}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_planned: dict = {}


def _implementation(name: str):
    """Return the function that launches an op's kernels, with its file imported."""
    try:
        importlib.import_module("triton")
    except ImportError as error:
        raise RuntimeError(
            f"cnnkern::{name}: algo='triton' needs the triton package, "
            f"which does not import: {error}"
        ) from error
    return getattr(importlib.import_module(f"{__name__}.{MODULES[name]}"), name)


def _kernel(name: str):
    def kernel(*args, **kwargs):
        function = _planned.get(name)
        if function is None:
            function = _implementation(name)
            _planned[name] = function = function if INTERPRETED else planned(function)
        return function(*args, **kwargs)

    return kernel


def _decomposition(name: str):
    """Return what AOTAutograd traces in the place of an op: its launches.

    It is what `torch.library.triton_op` registers, here for ops that have a schema and a fake
    already. torch.compile and AOTInductor then compile the kernels along with what is around them,
    and plan the memory that is between them. Exported programs keep the op. So do traces with sizes
    that are not known: tiles and grids follow from those.
    """

    def decompose(mode, op, types, args, kwargs):
        values = [v for a in args for v in (a if isinstance(a, list | tuple) else (a,))]
        tensors = [v for v in values if isinstance(v, Tensor)]
        numbers = [n for t in tensors for n in (*t.shape, *t.stride())]
        if (
            not torch._functorch.config.decompose_custom_triton_ops  # as torch.export has it
            or any(isinstance(n, torch.SymInt) for n in (*values, *numbers))
            or any(t.device.type != "cuda" for t in tensors)
        ):
            return mode.__torch_dispatch__(op, types, args, kwargs)
        from cnnkern.triton_kernels.launch import traced

        with mode, traced():
            return _implementation(name)(*args, **kwargs)

    return decompose


class _Kernels:
    """All kernels of the package; imported when they are asked for.

    Torch keeps compiled graphs on disk, by keys that the sources of an op's kernels belong to. Of a
    graph's backward only the forward ops are known then, so each op has the kernels of all.
    """

    def __iter__(self):
        from triton import JITFunction

        for file in FAMILIES:
            module = importlib.import_module(f"{__name__}.{file}")
            yield from (x for x in vars(module).values() if isinstance(x, JITFunction))


def _refuse_cpu(name: str):
    first = getattr(_ops, name).triton._schema.arguments[0].name

    def kernel(*args, **kwargs):
        raise RuntimeError(
            f"cnnkern::{name}: algo='triton' needs CUDA tensors, got {first} on the CPU"
        )

    return kernel


for _name in MODULES:
    _library.impl(f"{_name}.triton", _kernel(_name), "CUDA")
    _library.impl(f"{_name}.triton", (_kernel if INTERPRETED else _refuse_cpu)(_name), "CPU")
    torch.library.register_torch_dispatch(
        f"cnnkern::{_name}.triton", FunctionalTensorMode, _decomposition(_name), lib=_library
    )
    torch._library.triton.triton_ops_to_kernels[f"cnnkern::{_name}.triton"] = _Kernels()
    if _name not in CUDA_OPS:
        _library.impl(_name, _kernel(_name), "CUDA")
