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
from torch.nn.modules import module as torch_module

from cnnkern.arguments import pair, sides, single
from cnnkern.nn import ConvBlock
from cnnkern.ops import TRITON_ALGOS

__all__ = ["MLP", "ConvMLP"]

_ACTIVATIONS = {nn.Identity: "none", nn.ReLU: "relu", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh"}
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


def _has_hooks(layers: Iterable[nn.Module]) -> bool:
    for layer in layers:  # in the instance's dict, as looking at classes takes half as long again
        d = layer.__dict__
        if (
            d["_forward_hooks"]
            or d["_forward_pre_hooks"]
            or d["_backward_hooks"]
            or d["_backward_pre_hooks"]
        ):
            return True
    return False


def _parameters_of(layers: Iterable[nn.Module]) -> tuple[list[Tensor], list[Tensor]] | None:
    """Return the layers' weights and biases, unless one has no bias."""
    weights, biases = [], []
    for layer in layers:
        parameters = layer._parameters
        if parameters["bias"] is None:
            return None
        weights.append(parameters["weight"])
        biases.append(parameters["bias"])
    return weights, biases


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
            layers = self.layers()
            activation = _activation_between(tuple(map(type, layers)))
            parameters = None if activation is None else self.parameters_of(layers)
            if parameters is not None:
                return torch.ops.cnnkern.mlp.default(input, *parameters, activation)[-1]
        return super().forward(input)

    def layers(self) -> tuple[nn.Module, ...]:
        return tuple(self._modules.values())

    @staticmethod
    def parameters_of(layers: tuple[nn.Module, ...]) -> tuple[list[Tensor], list[Tensor]] | None:
        """Return weights and biases of layers of those types, unless the op does not take them."""
        parameters = None if _has_hooks(layers) else _parameters_of(layers[::2])
        if parameters is None or sum(map(Tensor.numel, parameters[0])) > _MAX_WEIGHTS:
            return None
        return parameters


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
        self._options = self._common = None

    def forward(self, images: Tensor) -> Tensor:
        call = self._whole_call(images)
        if call is not None:
            return torch.ops.cnnkern.conv_mlp.default(images, *call)[0]
        return self.classifier(self.features(images).flatten(1))

    def _whole_call(self, images: Tensor) -> list | None:
        """Return the op's arguments after the images, unless it does not take the network."""
        features, classifier = self._modules["features"], self._modules["classifier"]
        if images.dim() != 4 or not _takes_ops(images):
            return None
        if type(features) is not nn.Sequential or type(classifier) is not MLP:
            return None
        blocks, layers = tuple(features._modules.values()), classifier.layers()
        kinds = tuple(map(type, layers))
        if not {*map(type, blocks)} <= {ConvBlock}:
            return None
        options = [kinds, *map(_block_options, blocks)]
        if torch.compiler.is_compiling():  # which would compile again for what is kept here
            common = _common_options(*options)
        else:
            if options != self._options:  # they are attributes, which may have changed since
                self._common, self._options = _common_options(*options), options
            common = self._common
        if common is None or _has_hooks((features, classifier, *blocks)):
            return None
        of_blocks, of_layers = _parameters_of(blocks), classifier.parameters_of(layers)
        if of_blocks is None or of_layers is None:
            return None
        return [*of_blocks, *common, *of_layers]


def _block_options(block: ConvBlock) -> tuple:
    """Return what conv_mlp wants to know; its last four must be those of all blocks."""
    return (
        block.stride, block.padding, block.dilation, block.groups, block.pool_kernel_size,
        block.pool_stride, block.pool_padding, block.pool_ceil_mode, block.count_include_pad,
        block.padding_mode, block.algo, block.activation, block.pool,
    )  # fmt: skip


def _common_options(
    kinds: tuple[type, ...], *blocks: tuple
) -> tuple[list[int], str, str, str] | None:
    """Return conv_mlp's options of all blocks and layers, unless it does not take them."""
    if not blocks or any(block[-4:] != blocks[0][-4:] for block in blocks):
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
    return geometry, algo, activation, pool
