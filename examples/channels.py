"""Sum over input channels, stack output channels: section 7.4 of "Dive into Deep Learning"."""

import torch

from cnnkern.functional import conv2d


def main() -> None:
    X = torch.stack([torch.arange(9.0).reshape(3, 3), torch.arange(1.0, 10).reshape(3, 3)])
    K = torch.stack([torch.arange(4.0).reshape(2, 2), torch.arange(1.0, 5).reshape(2, 2)])
    Y = conv2d(X, K[None])[0]
    print("two channels in, one out:", Y.tolist())
    assert Y.equal(torch.tensor([[56.0, 72.0], [104.0, 120.0]]))

    Y = conv2d(X, torch.stack((K, K + 1, K + 2)))
    print("two channels in, three out:", Y.tolist())
    assert Y.equal(
        torch.tensor(
            [
                [[56.0, 72.0], [104.0, 120.0]],
                [[76.0, 100.0], [148.0, 172.0]],
                [[96.0, 128.0], [192.0, 224.0]],
            ]
        )
    )

    # A 1x1 convolution is a matrix product over the channels at every pixel.
    torch.manual_seed(0)
    X, K = torch.randn(3, 3, 3), torch.randn(2, 3, 1, 1)
    product = (K.reshape(2, 3) @ X.reshape(3, 9)).reshape(2, 3, 3)
    difference = (conv2d(X, K) - product).abs().sum().item()
    print(f"1x1 convolution and matrix product differ by {difference:.1e}")
    assert difference < 1e-5


if __name__ == "__main__":
    main()
