"""LeNet, the network of the CNN chapter of "Dive into Deep Learning" (d2l.ai, section 7.6).

It stands on this package's fused blocks: convolution, bias, activation and pooling are one op a
layer. Every knob that the chapter turns (window, channels, activation, pooling, depth, width,
initialisation) is an argument.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from cnnkern.fused import ConvMLP
from cnnkern.nn import ConvBlock

__all__ = ["ACTIVATIONS", "INITS", "POOLS", "LeNet"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
POOLS = ("none", "max", "avg")
INITS: dict[str, Callable[[Tensor], object]] = {
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "kaiming_uniform": partial(nn.init.kaiming_uniform_, nonlinearity="relu"),
    "kaiming_normal": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "orthogonal": nn.init.orthogonal_,
    "normal": partial(nn.init.normal_, std=0.01),
    "default": lambda weight: weight,
}


class LeNet(ConvMLP):
    """Classify images with blocks of convolution, activation and pooling, then linear layers.

    With no arguments it is the network of D2L section 7.6: 5x5 pad 2 -> 6, sigmoid, 2x2 average
    pool; 5x5 -> 16, sigmoid, 2x2 average pool; linear 400 -> 120 -> 84 -> 10 with sigmoids between.
    Parameters are created in the book's order, so a seed gives the book's initial weights.

    Args:
        in_channels: channels of the input image.
        num_classes: scores given per image.
        image_size: height and width of the input, or one int for both.
        channels: output channels of each convolution; its length is their number.
        kernel_size: window of every convolution, or one int per convolution.
        padding: zeros around every convolution's input, or one int per convolution. None pads the
            first by half its window and the others not at all, as the book does.
        activation: after every layer but the last: none, relu, sigmoid, tanh, gelu or silu.
        pool: after every convolution: none, max or avg.
        pool_size: window and stride of the pooling.
        hidden: widths of the linear layers before the last one; may be empty.
        init: of the weights: xavier_uniform, xavier_normal, kaiming_uniform, kaiming_normal,
            orthogonal, normal (std 0.01) or default. Biases keep torch's default.
        algo: the convolution algorithm asked of every block.

    Shapes: ``[N, in_channels, height, width]`` -> ``[N, num_classes]``, scores before softmax.

    Raises:
        ValueError: an unknown name, a size below 1, a list whose length is not that of
            ``channels``, or a layer whose window does not fit what is left of the image.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        image_size: int | Sequence[int] = 28,
        *,
        channels: Sequence[int] = (6, 16),
        kernel_size: int | Sequence[int] = 5,
        padding: int | Sequence[int] | None = None,
        activation: str = "sigmoid",
        pool: str = "avg",
        pool_size: int = 2,
        hidden: Sequence[int] = (120, 84),
        init: str = "xavier_uniform",
        algo: str = "auto",
    ) -> None:
        _check_choice("activation", activation, ACTIVATIONS)
        _check_choice("pool", pool, POOLS)
        _check_choice("init", init, INITS)
        if not channels:
            raise ValueError("LeNet: channels must name at least one convolution, got ()")
        size = _per_item("image_size", image_size, 2)
        kernels = _per_item("kernel_size", kernel_size, len(channels))
        if padding is None:
            padding = (kernels[0] // 2,) + (0,) * (len(channels) - 1)
        paddings = _per_item("padding", padding, len(channels), least=0)
        for name, values in {
            "in_channels": (in_channels,),
            "num_classes": (num_classes,),
            "channels": channels,
            "pool_size": (pool_size,),
            "hidden": hidden,
        }.items():
            _check_least(name, values, 1)

        config: dict[str, Any] = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "image_size": list(size),
            "channels": list(channels),
            "kernel_size": list(kernels),
            "padding": list(paddings),
            "activation": activation,
            "pool": pool,
            "pool_size": pool_size,
            "hidden": list(hidden),
            "init": init,
            "algo": algo,
        }
        blocks: list[nn.Module] = []
        shapes = [(in_channels, *size)]
        for index, (width, kernel, pad) in enumerate(zip(channels, kernels, paddings, strict=True)):
            shapes.append(_block_shape(index, shapes[-1], width, kernel, pad, pool, pool_size))
            blocks.append(
                ConvBlock(
                    shapes[-2][0],
                    width,
                    kernel,
                    padding=pad,
                    activation=activation,
                    pool=pool,
                    pool_kernel_size=pool_size,
                    algo=algo,
                )
            )
        features = shapes[-1][0] * shapes[-1][1] * shapes[-1][2]
        linears: list[nn.Module] = []
        for width in hidden:
            linears += [nn.Linear(features, width), ACTIVATIONS[activation]()]
            features = width
        super().__init__(blocks, [*linears, nn.Linear(features, num_classes)])

        # What rebuilds this network: a checkpoint carries it beside the weights.
        self.config = config
        # Image sizes after each block, [C, H, W], the input's first.
        self.shapes = shapes
        for module in self.modules():
            if isinstance(module, ConvBlock | nn.Linear):
                INITS[init](module.weight)

    def summary(self) -> str:
        """Say the sizes between the layers and the number of parameters, in one line."""
        sizes = ["x".join(map(str, shape)) for shape in self.shapes]
        sizes += [str(layer.out_features) for layer in self.classifier if hasattr(layer, "bias")]
        return f"{' -> '.join(sizes)}, {sum(p.numel() for p in self.parameters())} parameters"


def _block_shape(
    index: int,
    shape: tuple[int, int, int],
    channels: int,
    kernel: int,
    padding: int,
    pool: str,
    pool_size: int,
) -> tuple[int, int, int]:
    """Give a block's output shape, or say which of its windows no longer fits."""
    _, height, width = shape
    conv = tuple(extent + 2 * padding - kernel + 1 for extent in (height, width))
    if min(conv) < 1:
        raise ValueError(
            f"LeNet: convolution {index + 1}, window {kernel} and padding {padding}, does not fit "
            f"the {height}x{width} image it is given; use fewer convolutions, more padding, a "
            "smaller kernel_size or a larger image_size"
        )
    if pool == "none":
        return channels, conv[0], conv[1]
    if min(conv) < pool_size:
        raise ValueError(
            f"LeNet: {pool} pool {index + 1}, window {pool_size}, shrinks the {conv[0]}x{conv[1]} "
            "image it is given to nothing; use fewer convolutions, more padding, a smaller "
            "pool_size or a larger image_size"
        )
    return channels, conv[0] // pool_size, conv[1] // pool_size


def _per_item(name: str, value: int | Sequence[int], count: int, least: int = 1) -> tuple[int, ...]:
    """Spread one int over ``count`` items, or check that a sequence has that many."""
    values = (value,) * count if isinstance(value, int) else tuple(value)
    if len(values) != count:
        raise ValueError(f"LeNet: {name} must be one int or {count} of them, got {list(values)}")
    _check_least(name, values, least)
    return values


def _check_least(name: str, values: Sequence[int], least: int) -> None:
    if any(not isinstance(value, int) or value < least for value in values):
        raise ValueError(f"LeNet: {name} must be ints of at least {least}, got {list(values)}")


def _check_choice(name: str, value: str, choices: Sequence[str] | dict[str, Any]) -> None:
    if value not in choices:
        raise ValueError(f"LeNet: {name} must be one of {', '.join(choices)}, got {value!r}")
