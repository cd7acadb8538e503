"""Torch models onto these kernels: module by module (`convert`), or call by call (`override`).

The one place that names torch's own convolutions and pools, in order to intercept them.
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cnnkern import functional as F
from cnnkern import nn as ours
from cnnkern.checks import FLOAT_DTYPES

_MODULES = (
    "Conv1d", "Conv2d", "ConvTranspose2d", "MaxPool1d", "MaxPool2d", "AvgPool1d", "AvgPool2d",
    "AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveMaxPool1d", "AdaptiveMaxPool2d",
    "MaxUnpool2d", "LPPool2d",
)  # fmt: skip
MODULES = {getattr(nn, name): getattr(ours, name) for name in _MODULES}

ACTIVATIONS = {
    nn.ReLU: "relu",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
}


def convert(model: nn.Module, inplace: bool = False, *, fuse: bool = False) -> nn.Module:
    """Replace a model's torch.nn convolutions and pools by ours, which share its parameters.

    Only modules of exactly those types are replaced: a subclass may mean something else. Hooks,
    training mode and the state_dict's keys are kept.

    Args:
        inplace: change `model` itself; else the result is a new model around the same parameters
            and buffers.
        fuse: merge each run of Conv2d, activation and pool inside an ``nn.Sequential`` into one
            `nn.ConvBlock`. The merged-in modules leave an Identity in their place. Modules with
            hooks, and convolutions used twice, are not merged. A model that indexes into its
            Sequential for the values between those modules should not be fused.

    Returns: the model, or the new one.
    """
    if not inplace:
        model = _copy_around_tensors(model)
    for module in model.modules():
        # Ours add no state, so changing the class keeps everything else, the identity included.
        module.__class__ = MODULES.get(type(module), type(module))
    if fuse:
        uses = Counter(
            id(child) for module in model.modules() for child in module._modules.values()
        )
        for module in model.modules():
            if type(module) is nn.Sequential:
                _fuse_runs(module, uses)
    return model


def _copy_around_tensors(model: nn.Module) -> nn.Module:
    """Copy the modules, but not the tensors they hold."""
    memo = {}
    for module in model.modules():
        for holder in (module._parameters, module._buffers, vars(module)):
            memo |= {id(t): t for t in holder.values() if isinstance(t, Tensor)}
    return copy.deepcopy(model, memo)


def _fuse_runs(sequential: nn.Sequential, uses: Counter) -> None:
    names = list(sequential._modules)
    for i, name in enumerate(names):
        conv = sequential._modules[name]
        if type(conv) is not ours.Conv2d or uses[id(conv)] > 1 or _has_forward_hooks(conv):
            continue
        rest = names[i + 1 :]
        activation = pool = None
        if rest and (activation := _activation(sequential._modules[rest[0]])):
            merged = [rest.pop(0)]
        else:
            merged = []
        if rest and (pool := _pool(sequential._modules[rest[0]])):
            merged.append(rest[0])
        if not merged:
            continue
        conv.__class__ = ours.ConvBlock
        conv.set_activation_and_pool(activation or "none", **(pool or {}))
        for other in merged:
            sequential._modules[other] = nn.Identity()


def _has_forward_hooks(module: nn.Module) -> bool:
    return any(
        (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
    )


def _activation(module: nn.Module) -> str | None:
    if _has_forward_hooks(module) or getattr(module, "approximate", "none") != "none":
        return None
    return ACTIVATIONS.get(type(module))


def _pool(module: nn.Module) -> dict | None:
    """Give the pool's arguments of a ConvBlock, or None where the module is no pool that fits."""
    if _has_forward_hooks(module):
        return None
    if type(module) is ours.MaxPool2d and not module.return_indices and _is_one(module.dilation):
        kind, count_include_pad = "max", True
    elif type(module) is ours.AvgPool2d and module.divisor_override is None:
        kind, count_include_pad = "avg", module.count_include_pad
    else:
        return None
    return {
        "pool": kind,
        "pool_kernel_size": module.kernel_size,
        "pool_stride": module.stride,
        "pool_padding": module.padding,
        "pool_ceil_mode": module.ceil_mode,
        "count_include_pad": count_include_pad,
    }


def _is_one(dilation) -> bool:
    return dilation in (1, (1, 1), [1, 1])


def override() -> TorchFunctionMode:
    """Send torch's convolutions and pools to these kernels inside a ``with`` block.

    It catches the functions that `functional` has, wherever they are called from: torch.nn modules,
    torch.nn.functional and torch itself. Tensors that our kernels do not take (complex, integer,
    quantized, sparse, on other devices) go to torch's.
    """
    return _Override()


class _Override(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        ours = _FUNCTIONS.get(func)
        if ours is not None and _takes(args[0] if args else kwargs.get("input")):
            return ours(*args, **kwargs)
        return func(*args, **kwargs)


def _takes(input) -> bool:
    return (
        isinstance(input, Tensor)
        and input.dtype in FLOAT_DTYPES
        and input.layout == torch.strided
        and input.device.type in ("cpu", "cuda", "meta")
    )


def _with_indices(function):
    """Return the indices too, as torch's functions of such a name always do."""

    def call(input, kernel_size, *args, return_indices=True, **kwargs):
        return function(input, kernel_size, *args[:4], return_indices=True, **kwargs)

    return call


def _adaptive_with_indices(function):
    def call(input, output_size, return_indices=True):
        return function(input, output_size, True)

    return call


def _functions() -> dict:
    table = {}
    for name in F.__all__:
        for module in (torch.nn.functional, torch, torch._C._nn):
            theirs = getattr(module, name, None)
            # In torch._C._nn, and in torch itself for 1-D, these return the indices unasked.
            if theirs is not None and not (
                module is not torch.nn.functional and name.startswith("adaptive_max")
            ):
                table[theirs] = getattr(F, name)
    for dims in ("1d", "2d"):
        pool, adaptive = f"max_pool{dims}", f"adaptive_max_pool{dims}"
        with_indices = f"{pool}_with_indices"
        table[getattr(torch.nn.functional, with_indices)] = _with_indices(getattr(F, pool))
        table[getattr(torch.nn.functional, f"{adaptive}_with_indices")] = _adaptive_with_indices(
            getattr(F, adaptive)
        )
    table[torch.max_pool1d_with_indices] = _with_indices(F.max_pool1d)
    table[torch._C._nn.max_pool2d_with_indices] = _with_indices(F.max_pool2d)
    return table


_FUNCTIONS = _functions()
