"""What a convolution is, in other terms: the inputs it sees, the matrix that it multiplies by."""

from __future__ import annotations

from torch import Tensor, nn

from cnnkern.arguments import pair, sides
from cnnkern.nn import ConvBlock, Corr2d

_WINDOWS = (nn.Conv1d, nn.Conv2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d)
_WHOLE_IMAGE = (
    nn.Linear,
    nn.ConvTranspose2d,
    nn.MaxUnpool2d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
)


def receptive_field(model: nn.Module) -> tuple[int, int]:
    """Count the input pixels, (height, width), that one output element can depend on.

    The model's convolutions and pools are taken one after the other, in the order in which they
    were registered: each adds ``dilation * (kernel_size - 1)`` steps, a step being the product of
    the strides before it. Layers without a window add nothing; a 1-D model has height 1.

    Raises:
        ValueError: a layer whose field has no fixed size, such as Linear or an adaptive pool. Pass
            the part of the model before it.

    Source: "Dive into Deep Learning", section 7.2.6.
    """
    field, step = [1, 1], [1, 1]
    for name, module in model.named_modules():
        if isinstance(module, _WHOLE_IMAGE):
            raise ValueError(
                f"receptive_field: {name or 'the model'} ({type(module).__name__}) sees no window "
                "of fixed size"
            )
        for kernel, stride, dilation in _windows(module):
            for d in range(2):
                field[d] += dilation[d] * (kernel[d] - 1) * step[d]
                step[d] *= stride[d]
    return field[0], field[1]


def _windows(module: nn.Module):
    """Yield (kernel, stride, dilation) of each window that the module slides."""
    if isinstance(module, _WINDOWS):
        yield [
            _rows_columns(module, value)
            for value in (module.kernel_size, module.stride, getattr(module, "dilation", 1))
        ]
    if isinstance(module, ConvBlock) and module.pool != "none":
        kernel = pair("receptive_field", "pool_kernel_size", module.pool_kernel_size)
        yield kernel, pair("receptive_field", "pool_stride", module.pool_stride), (1, 1)
    if isinstance(module, Corr2d):
        yield tuple(module.weight.shape), (1, 1), (1, 1)


def _rows_columns(module: nn.Module, value) -> tuple[int, int]:
    if isinstance(module, nn.Conv1d | nn.MaxPool1d | nn.AvgPool1d):
        return 1, value[0] if isinstance(value, tuple) else value
    return pair("receptive_field", "window", value)


def conv_matrix(
    weight: Tensor,
    size: tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, int] = 1,
) -> Tensor:
    """Write a convolution as the dense matrix of the fully connected layer that it is.

    Shapes: weight ``[K, C, R, S]`` and an image size (H, W) -> ``[K * P * Q, C * H * W]``; its
    product with a flattened image is the flattened result. Locality shows as zeros, translation
    invariance as the same R * S numbers on every row, shifted.

    Raises:
        RuntimeError: weight is not 4-dimensional, or does not fit the image.

    Source: "Dive into Deep Learning", section 7.1.
    """
    op = "conv_matrix"
    if weight.dim() != 4:
        raise RuntimeError(f"cnnkern::{op}: weight must be [K, C, R, S], got {list(weight.shape)}")
    K, C, R, S = weight.shape
    H, W = pair(op, "size", tuple(size))
    stride, dilation = pair(op, "stride", stride), pair(op, "dilation", dilation)
    left, right, top, bottom = sides(op, padding, (R, S), stride, dilation)
    P = (H + top + bottom - dilation[0] * (R - 1) - 1) // stride[0] + 1
    Q = (W + left + right - dilation[1] * (S - 1) - 1) // stride[1] + 1
    if P < 1 or Q < 1:
        raise RuntimeError(f"cnnkern::{op}: a {R}x{S} kernel does not fit into a {H}x{W} image")
    matrix = weight.new_zeros(K, P, Q, C, H, W)
    for p in range(P):
        for q in range(Q):
            for r in range(R):
                for s in range(S):
                    h = p * stride[0] + r * dilation[0] - top
                    w = q * stride[1] + s * dilation[1] - left
                    if 0 <= h < H and 0 <= w < W:
                        matrix[:, p, q, :, h, w] = weight[:, :, r, s]
    return matrix.reshape(K * P * Q, C * H * W)
