"""The Triton implementations of the contract, registered as the ``.triton`` overloads.

One file per family of ops; each has one function per op, of the op's name and arguments. Triton and
those files are imported by the first call. An op without a CUDA C++ kernel runs Triton under its
plain overload, too, when given CUDA tensors. With TRITON_INTERPRET=1 CPU tensors go through
Triton's interpreter, which is right for float32 only: its dot products of bfloat16 are not.
"""

from __future__ import annotations

import importlib
import os

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

_implementations: dict = {}


def _import(name: str):
    try:
        importlib.import_module("triton")
    except ImportError as error:
        raise RuntimeError(
            f"cnnkern::{name}: algo='triton' needs the triton package, "
            f"which does not import: {error}"
        ) from error
    module = importlib.import_module(f"{__name__}.{MODULES[name]}")
    function = getattr(module, name)
    _implementations[name] = function if INTERPRETED else planned(function)
    return _implementations[name]


def _kernel(name: str):
    def kernel(*args, **kwargs):
        return (_implementations.get(name) or _import(name))(*args, **kwargs)

    return kernel


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
    if _name not in CUDA_OPS:
        _library.impl(_name, _kernel(_name), "CUDA")
