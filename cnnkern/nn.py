"""Layers on `cnnkern.functional`: subclasses of torch.nn's, so init and state_dict are the same.

Only `forward` is new. Padding modes go into the kernel: there is no padded copy of the input.
Every layer takes one more keyword, `algo`, and keeps it as an attribute.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnnkern import functional as F

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "Conv1d",
    "Conv2d",
    "ConvBlock",
    "ConvTranspose2d",
    "Corr2d",
    "LPPool2d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxUnpool2d",
]

ACTIVATIONS = ("none", "relu", "sigmoid", "tanh", "gelu", "silu")
POOLS = ("none", "max", "avg")


class Corr2d(nn.Module):
    """Cross-correlate one matrix with a learnt kernel and add a learnt scalar.

    Shapes: ``[H, W]`` -> ``[H - R + 1, W - S + 1]``; ``weight`` is ``[R, S]``, drawn from [0, 1),
    ``bias`` is ``[1]``, 0.

    Source: the class Conv2D of "Dive into Deep Learning", section 7.2.2.
    """

    algo = "auto"

    def __init__(
        self, kernel_size: int | tuple[int, int], *, algo: str = "auto", device=None, dtype=None
    ) -> None:
        super().__init__()
        size = (kernel_size,) * 2 if isinstance(kernel_size, int) else tuple(kernel_size)
        self.weight = nn.Parameter(torch.rand(size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))
        self.algo = algo

    def forward(self, X: Tensor) -> Tensor:
        return F.conv2d(X[None, None], self.weight[None, None], self.bias, algo=self.algo)[0, 0]

    def extra_repr(self) -> str:
        return f"kernel_size={tuple(self.weight.shape)}"


class _Algo:
    """Take `algo` after torch's own arguments; a class attribute serves converted modules."""

    algo = "auto"

    def __init__(self, *args, algo: str = "auto", **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.algo = algo

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.algo == "auto" else f"{text}, algo={self.algo!r}"


class Conv1d(_Algo, nn.Conv1d):
    """Convolve sequences: `torch.nn.Conv1d` and ``algo``, on `functional.conv1d`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv1d(
            input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups,
            padding_mode=self.padding_mode, algo=self.algo,
        )  # fmt: skip


class Conv2d(_Algo, nn.Conv2d):
    """Convolve images: `torch.nn.Conv2d` and ``algo``, on `functional.conv2d`.

    ``padding`` may also be (left, right, top, bottom).
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(
            input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups,
            padding_mode=self.padding_mode, algo=self.algo,
        )  # fmt: skip


class ConvTranspose2d(_Algo, nn.ConvTranspose2d):
    """Apply a transposed convolution: `torch.nn.ConvTranspose2d` and ``algo``."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        output_padding = self.output_padding
        if output_size is not None:
            output_padding = self._output_padding(
                input, output_size, self.stride, self.padding, self.kernel_size, 2, self.dilation
            )
        return F.conv_transpose2d(
            input, self.weight, self.bias, self.stride, self.padding, output_padding, self.groups,
            self.dilation, algo=self.algo,
        )  # fmt: skip


class ConvBlock(Conv2d):
    """Convolve, activate and pool in one op: `functional.conv2d_act_pool2d`.

    Parameters, their initialisation and state_dict are those of `torch.nn.Conv2d`. The chapter's
    block is ``ConvBlock(1, 6, 5, padding=2, activation="sigmoid", pool="avg")``.

    Args:
        activation: none, relu, sigmoid, tanh, gelu or silu.
        pool: none, max or avg, of windows ``pool_kernel_size`` pixels high and wide that are
            ``pool_stride`` apart (None: ``pool_kernel_size``).

    Raises:
        ValueError: an unknown activation or pool, and what torch.nn.Conv2d refuses.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        activation: str = "relu",
        pool: str = "none",
        pool_kernel_size: int | tuple[int, int] = 2,
        pool_stride: int | tuple[int, int] | None = None,
        pool_padding: int | tuple[int, int] = 0,
        pool_ceil_mode: bool = False,
        count_include_pad: bool = True,
        algo: str = "auto",
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype, algo=algo,
        )  # fmt: skip
        self.set_activation_and_pool(
            activation, pool, pool_kernel_size, pool_stride, pool_padding, pool_ceil_mode,
            count_include_pad,
        )  # fmt: skip

    def set_activation_and_pool(
        self,
        activation: str,
        pool: str = "none",
        pool_kernel_size: int | tuple[int, int] = 2,
        pool_stride: int | tuple[int, int] | None = None,
        pool_padding: int | tuple[int, int] = 0,
        pool_ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        """Change what follows the convolution; the arguments are the constructor's."""
        for name, value, known in (("activation", activation, ACTIVATIONS), ("pool", pool, POOLS)):
            if value not in known:
                raise ValueError(
                    f"ConvBlock: {name} must be one of {', '.join(known)}, got {value!r}"
                )
        self.activation, self.pool = activation, pool
        self.pool_kernel_size = pool_kernel_size
        self.pool_stride = pool_kernel_size if pool_stride is None else pool_stride
        self.pool_padding, self.pool_ceil_mode = pool_padding, pool_ceil_mode
        self.count_include_pad = count_include_pad

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d_act_pool2d(
            input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups,
            padding_mode=self.padding_mode, activation=self.activation, pool=self.pool,
            pool_kernel_size=self.pool_kernel_size, pool_stride=self.pool_stride,
            pool_padding=self.pool_padding, pool_ceil_mode=self.pool_ceil_mode,
            count_include_pad=self.count_include_pad, algo=self.algo,
        )  # fmt: skip

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, activation={self.activation!r}, pool={self.pool!r}"
        if self.pool == "none":
            return text
        return f"{text}, pool_kernel_size={self.pool_kernel_size}, pool_stride={self.pool_stride}"


class MaxPool1d(_Algo, nn.MaxPool1d):
    """Take the maximum of each window of a sequence: `torch.nn.MaxPool1d`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.max_pool1d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode,
            self.return_indices, algo=self.algo,
        )  # fmt: skip


class MaxPool2d(_Algo, nn.MaxPool2d):
    """Take the maximum of each window: `torch.nn.MaxPool2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode,
            self.return_indices, algo=self.algo,
        )  # fmt: skip


class AvgPool1d(_Algo, nn.AvgPool1d):
    """Average each window of a sequence: `torch.nn.AvgPool1d`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool1d(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode,
            self.count_include_pad, algo=self.algo,
        )  # fmt: skip


class AvgPool2d(_Algo, nn.AvgPool2d):
    """Average each window: `torch.nn.AvgPool2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode,
            self.count_include_pad, self.divisor_override, algo=self.algo,
        )  # fmt: skip


class AdaptiveAvgPool1d(_Algo, nn.AdaptiveAvgPool1d):
    """Average a sequence down to a fixed size: `torch.nn.AdaptiveAvgPool1d`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool1d(input, self.output_size, algo=self.algo)


class AdaptiveAvgPool2d(_Algo, nn.AdaptiveAvgPool2d):
    """Average an image down to a fixed size: `torch.nn.AdaptiveAvgPool2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(input, self.output_size, algo=self.algo)


class AdaptiveMaxPool1d(_Algo, nn.AdaptiveMaxPool1d):
    """Take maxima of a sequence down to a fixed size: `torch.nn.AdaptiveMaxPool1d`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_max_pool1d(input, self.output_size, self.return_indices, algo=self.algo)


class AdaptiveMaxPool2d(_Algo, nn.AdaptiveMaxPool2d):
    """Take maxima of an image down to a fixed size: `torch.nn.AdaptiveMaxPool2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_max_pool2d(input, self.output_size, self.return_indices, algo=self.algo)


class MaxUnpool2d(_Algo, nn.MaxUnpool2d):
    """Undo a max pool but for what it dropped: `torch.nn.MaxUnpool2d`."""

    def forward(
        self, input: Tensor, indices: Tensor, output_size: list[int] | None = None
    ) -> Tensor:
        return F.max_unpool2d(
            input,
            indices,
            self.kernel_size,
            self.stride,
            self.padding,
            output_size,
            algo=self.algo,
        )


class LPPool2d(_Algo, nn.LPPool2d):
    """Take the p-norm of each window: `torch.nn.LPPool2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.lp_pool2d(
            input,
            float(self.norm_type),
            self.kernel_size,
            self.stride,
            self.ceil_mode,
            algo=self.algo,
        )
