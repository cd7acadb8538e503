"""A convolution is a constrained linear layer: section 7.1 of "Dive into Deep Learning"."""

import torch

from cnnkern import conv_matrix
from cnnkern.functional import conv2d


def main() -> None:
    # The example of section 7.2.1 as a matrix: nine pixels in, four out.
    K = torch.tensor([[[[0.5, 1.0], [2.0, 3.0]]]])
    matrix = conv_matrix(K, (3, 3))
    print("conv_matrix of a 2x2 kernel on a 3x3 image:")
    for row in matrix.tolist():
        print("  ", " ".join(f"{v or '.':>4}" for v in row))

    # Locality: every output is connected to the pixels of its window only.
    assert matrix.ne(0).sum(1).tolist() == [4, 4, 4, 4]
    # Translation invariance: a step to the right is the same row, one pixel further (Toeplitz).
    assert matrix[0].roll(1).equal(matrix[1]) and matrix[0].roll(3).equal(matrix[2])
    print(f"{matrix.numel()} connections of a fully connected layer, {K.numel()} free numbers")

    torch.manual_seed(0)
    for kernel, size, options in (
        ((1, 1, 2, 2), (3, 3), {}),
        ((6, 3, 5, 5), (12, 10), {"padding": 2}),
        ((4, 2, 3, 2), (9, 8), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 3)}),
    ):
        weight, image = torch.randn(kernel), torch.randn(kernel[1], *size)
        convolved = conv2d(image, weight, **options)
        multiplied = conv_matrix(weight, size, **options) @ image.flatten()
        assert torch.allclose(convolved.flatten(), multiplied, atol=1e-5)
        print(f"kernels {kernel} on {size[0]}x{size[1]}: equal to the matrix product")


if __name__ == "__main__":
    main()
