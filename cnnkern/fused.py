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
    return any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
        for m in layers
    )


class MLP(nn.Sequential):
    """Apply linear layers with one activation between them: `torch.nn.Sequential`, as one op.

    Args:
        layers: torch.nn.Linear, an activation, Linear, ..., Linear. Any others work, too, one by
            one, as do activations other than ReLU, Sigmoid, Tanh and Identity.

    Shapes: ``[N, in_features]`` -> ``[N, out_features]``.
    """

    def forward(self, input: Tensor) -> Tensor:
        layers = self.linear_layers() if input.dim() == 2 and _takes_ops(input) else None
        if layers is None:
            return super().forward(input)
        return torch.ops.cnnkern.mlp.default(input, *layers)[-1]

    def linear_layers(self) -> tuple[list[Tensor], list[Tensor], str] | None:
        """Return weights, biases and the activation, unless the op does not take them."""
        layers = tuple(self._modules.values())
        linears, between = layers[::2], layers[1::2]
        if len(layers) % 2 == 0 or _has_hooks(layers):
            return None
        kinds = {type(layer) for layer in between} or {nn.Identity}
        activation = _ACTIVATIONS.get(kinds.pop())
        if kinds or activation is None or any(type(layer) is not nn.Linear for layer in linears):
            return None
        weights = [layer._parameters["weight"] for layer in linears]
        biases = [layer._parameters["bias"] for layer in linears]
        if any(b is None for b in biases) or sum(map(Tensor.numel, weights)) > _MAX_WEIGHTS:
            return None
        return weights, biases, activation


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
        self._options = self._geometry = None

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
        blocks = tuple(features._modules.values())
        if any(type(block) is not ConvBlock for block in blocks):
            return None
        if _has_hooks((features, classifier, *blocks)):
            return None
        layers = classifier.linear_layers()
        if layers is None:
            return None
        options = [layers[2], *(_block_options(block) for block in blocks)]
        if torch.compiler.is_compiling():  # which would compile again for what is kept here
            geometry = _common_options(*options)
        else:
            if options != self._options:  # they are attributes, which may have changed since
                self._geometry, self._options = _common_options(*options), options
            geometry = self._geometry
        biases = [block._parameters["bias"] for block in blocks]
        if geometry is None or any(b is None for b in biases):
            return None
        weights = [block._parameters["weight"] for block in blocks]
        return [weights, biases, *geometry, *layers[:2]]


def _block_options(block: ConvBlock) -> tuple:
    """Return what conv_mlp wants to know; its last four must be those of all blocks."""
    return (
        block.stride, block.padding, block.dilation, block.groups, block.pool_kernel_size,
        block.pool_stride, block.pool_padding, block.pool_ceil_mode, block.count_include_pad,
        block.padding_mode, block.algo, block.activation, block.pool,
    )  # fmt: skip


def _common_options(between: str, *blocks: tuple) -> tuple[list[int], str, str, str] | None:
    """Return conv_mlp's options of all blocks, unless it does not take them."""
    if not blocks or any(block[-4:] != blocks[0][-4:] for block in blocks):
        return None
    padding_mode, algo, activation, pool = blocks[0][-4:]
    if padding_mode != "zeros" or algo in TRITON_ALGOS or activation != between:
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
