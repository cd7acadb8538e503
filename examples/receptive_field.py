"""See which input pixels an output depends on: section 7.2.6 of "Dive into Deep Learning"."""

import torch
from torch import nn

from cnnkern import receptive_field
from cnnkern.nn import Conv2d, ConvBlock, Corr2d


def seen_pixels(model: nn.Module, size: int) -> tuple[int, int]:
    """Measure the field of a middle output element: the extent of a nonzero gradient."""
    x = torch.rand(1, 1, size, size, requires_grad=True)
    y = model(x)
    y[0, 0, y.size(2) // 2, y.size(3) // 2].backward()
    rows, columns = x.grad[0, 0].nonzero(as_tuple=True)
    return (int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1)


def main() -> None:
    # The element 19 of the first example is a sum over the 2x2 corner of its input.
    X = torch.arange(9.0).reshape(3, 3).requires_grad_()
    layer = Corr2d(2)
    layer(X)[0, 0].backward()
    print("one 2x2 kernel sees", receptive_field(layer))
    assert receptive_field(layer) == (2, 2)
    assert X.grad.ne(0).tolist() == [[True, True, False], [True, True, False], [False] * 3]

    torch.manual_seed(0)
    deeper = nn.Sequential(Conv2d(1, 1, 2), Conv2d(1, 1, 2))
    print("two 2x2 kernels see", receptive_field(deeper))
    assert receptive_field(deeper) == seen_pixels(deeper, 9) == (3, 3)

    # Strides multiply what later layers see. Average pools let the gradient reach every pixel.
    lenet = nn.Sequential(
        ConvBlock(1, 6, 5, padding=2, activation="sigmoid", pool="avg"),
        ConvBlock(6, 16, 5, activation="sigmoid", pool="avg"),
    )
    print("LeNet's last convolution and pool see", receptive_field(lenet))
    assert receptive_field(lenet) == seen_pixels(lenet, 28) == (16, 16)

    dilated = nn.Sequential(*(Conv2d(1, 1, 3, dilation=d) for d in (1, 2, 4)))
    print("3x3 kernels of dilation 1, 2, 4 see", receptive_field(dilated))
    assert receptive_field(dilated) == seen_pixels(dilated, 31) == (15, 15)


if __name__ == "__main__":
    main()
