"""Find vertical edges with the kernel [1, -1]: section 7.2.3 of "Dive into Deep Learning"."""

import torch

from cnnkern.functional import corr2d


def main() -> None:
    X = torch.ones(6, 8)
    X[:, 2:6] = 0
    K = torch.tensor([[1.0, -1.0]])
    Y = corr2d(X, K)
    print("a row of the image:", X[0].int().tolist())
    print("a row of the edges:", Y[0].int().tolist(), "(1: white to black, -1: black to white)")
    expected = torch.zeros(6, 7)
    expected[:, 1], expected[:, 5] = 1, -1
    assert Y.equal(expected)

    # Turned on its side, the image has only horizontal edges: the kernel sees none.
    assert corr2d(X.t(), K).eq(0).all()
    print("edges of the transposed image:", int(corr2d(X.t(), K).abs().sum()))


if __name__ == "__main__":
    main()
