"""Cross-correlate a 3x3 matrix with a 2x2 kernel: section 7.2.1 of "Dive into Deep Learning"."""

import torch

from cnnkern.functional import corr2d
from cnnkern.nn import Corr2d


def main() -> None:
    X = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0]])
    K = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    Y = corr2d(X, K)
    print("corr2d(X, K) =", Y.tolist())
    assert Y.equal(torch.tensor([[19.0, 25.0], [37.0, 43.0]]))

    # The layer is the same sum with a learnt kernel, plus a learnt scalar.
    layer = Corr2d((2, 2))
    with torch.no_grad():
        layer.weight.copy_(K)
        layer.bias.fill_(1)
    print("with bias 1 =", layer(X).tolist())
    assert layer(X).equal(Y + 1)


if __name__ == "__main__":
    main()
