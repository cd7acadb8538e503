"""Networks of fused blocks and linear layers, which take as few calls of an op as can be.

What they compute, and their parameters, are those of torch.nn.Sequential with the same layers.
Where a fused op does not apply they run layer by layer: on other devices and dtypes, in autocast,
with hooks on a layer, and with weights beyond the caches. Whether it applies is looked up in each
call, as are the weights: a network may change between calls.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.modules import module as torch_module

from cnnkern import _C
from cnnkern.arguments import pair, sides, single
from cnnkern.nn import ConvBlock
from cnnkern.ops import TRITON_ALGOS, network_text

__all__ = ["MLP", "ConvMLP"]

_ACTIVATIONS = {nn.Identity: "none", nn.ReLU: "relu", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh"}
_ops = torch.ops.cnnkern
_DTYPES = (torch.float32, torch.float64)
_MAX_WEIGHTS = 1 << 18  # elements that stay in an L2 cache; measured on a 2-core Zen 4


def _takes_ops(input: Tensor) -> bool:
    """Tell whether the CPU's ops take a tensor, here and now."""
    return (
        type(input) is Tensor
        and input.is_cpu
        and input.dtype in _DTYPES
        and not torch.is_autocast_enabled("cpu")
        and not torch_module._has_any_global_hook()
    )


def _traced_parameters(modules: Iterable[nn.Module]) -> list[Tensor] | None:
    """Return each module's weight and bias, unless one has a hook or only one of the two.

    Modules without parameters have none to return. The compiler traces this; outside of it
    `_C.plain_parameters` does the same.
    """
    found: list[Tensor] = []
    for module in modules:
        d = module.__dict__
        if (
            d["_forward_hooks"]
            or d["_forward_pre_hooks"]
            or d["_backward_hooks"]
            or d["_backward_pre_hooks"]
        ):
            return None
        parameters = d["_parameters"]
        if parameters:
            if parameters.get("weight") is None or parameters.get("bias") is None:
                return None
            found += parameters["weight"], parameters["bias"]
    return found


def _fits_caches(weights: Iterable[Tensor]) -> bool:
    return sum(map(Tensor.numel, weights)) <= _MAX_WEIGHTS


def _activation_between(kinds: tuple[type, ...]) -> str | None:
    """Return the activation between linear layers, unless these types are something else."""
    between = set(kinds[1::2]) or {nn.Identity}
    if len(kinds) % 2 == 0 or len(between) > 1 or set(kinds[::2]) != {nn.Linear}:
        return None
    return _ACTIVATIONS.get(between.pop())


class MLP(nn.Sequential):
    """Apply linear layers with one activation between them: `torch.nn.Sequential`, as one op.

    Args:
        layers: torch.nn.Linear, an activation, Linear, ..., Linear. Any others work, too, one by
            one, as do activations other than ReLU, Sigmoid, Tanh and Identity.

    Shapes: ``[N, in_features]`` -> ``[N, out_features]``.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() == 2 and _takes_ops(input):
            layers = tuple(self._modules.values())
            activation = _activation_between(tuple(map(type, layers)))
            collect = _traced_parameters if is_compiling() else _C.plain_parameters
            params = None if activation is None else collect(layers)
            if params is not None and _fits_caches(params[::2]):
                return _ops.mlp.default(input, params[::2], params[1::2], activation)[-1]
        return super().forward(input)


class ConvMLP(nn.Module):
    """Apply fused blocks to images, and linear layers to what they give.

    On the CPU the whole network is one op, and so is its gradient.

    Args:
        features: `cnnkern.nn.ConvBlock` layers.
        classifier: linear layers and activations, see `MLP`.

    Shapes: ``[N, C, H, W]`` -> ``[N, num_classes]``.
    """

    def __init__(self, features: Iterable[nn.Module], classifier: Iterable[nn.Module]) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.classifier = MLP(*classifier)
        self._seen = self._network = None  # what _whole_call() keeps from call to call

    def forward(self, images: Tensor) -> Tensor:
        call = self._whole_call(images)
        if call is not None:
            return _ops.conv_mlp.default(images, *call)[0]
        return self.classifier(self.features(images).flatten(1))

    def _whole_call(self, images: Tensor) -> tuple[list[Tensor], str] | None:
        """Return the op's arguments after the images, unless it does not take the network."""
        own = self.__dict__  # a module's attributes take three times as long as its dict's items
        features, classifier = own["_modules"]["features"], own["_modules"]["classifier"]
        if images.dim() != 4 or not _takes_ops(images):
            return None
        if type(features) is not nn.Sequential or type(classifier) is not MLP:
            return None
        blocks, layers = features._modules.values(), classifier._modules.values()
        for block in blocks:
            if type(block) is not ConvBlock:
                return None
        compiling = is_compiling()
        collect = _traced_parameters if compiling else _C.plain_parameters
        params = collect((features, classifier, *blocks, *layers))
        if params is None:
            return None
        seen = [*map(type, layers), *map(_block_options, blocks)]
        network = own["_network"]
        if compiling or seen != own["_seen"]:  # they are attributes, which may have changed since
            network = _network_of(seen, len(layers), params[2 * len(blocks) :: 2])
            if not compiling:  # it would compile again for what is kept here
                self._network, self._seen = network, seen
        return None if network is None else (params, network)


def _block_options(block: ConvBlock) -> tuple:
    """Return what conv_mlp wants to know; its last four must be those of all blocks."""
    d = block.__dict__
    return (
        d["stride"], d["padding"], d["dilation"], d["groups"], d["pool_kernel_size"],
        d["pool_stride"], d["pool_padding"], d["pool_ceil_mode"], d["count_include_pad"],
        d["padding_mode"], d["algo"], d["activation"], d["pool"],
    )  # fmt: skip


def _network_of(seen: list, layers: int, weights: list[Tensor]) -> str | None:
    """Return conv_mlp's text on so many layers' types and blocks' options, if it takes them."""
    kinds, blocks = tuple(seen[:layers]), seen[layers:]
    if (
        not blocks
        or not _fits_caches(weights)
        or any(block[-4:] != blocks[0][-4:] for block in blocks)
    ):
        return None
    padding_mode, algo, activation, pool = blocks[0][-4:]
    if padding_mode != "zeros" or algo in TRITON_ALGOS or activation != _activation_between(kinds):
        return None
    geometry: list[int] = []
    for stride, padding, dilation, groups, window, step, pool_padding, ceil, count, *_ in blocks:
        if type(padding) is str:
            return None
        stride, dilation = (
            pair("conv_mlp", "stride", stride),
            pair("conv_mlp", "dilation", dilation),
        )
        geometry += [*stride, *sides("conv_mlp", padding, (1, 1), stride, dilation), *dilation]
        geometry.append(single("conv_mlp", "groups", groups))
        geometry += pair("conv_mlp", "pool_kernel_size", window)
        geometry += pair("conv_mlp", "pool_stride", step)
        geometry += [*pair("conv_mlp", "pool_padding", pool_padding), int(ceil), int(count)]
    return network_text(algo, activation, pool, geometry)
