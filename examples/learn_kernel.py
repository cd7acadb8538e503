"""Learn the edge detector from what it outputs: section 7.2.4 of "Dive into Deep Learning"."""

import torch

from cnnkern.functional import corr2d
from cnnkern.nn import Conv2d


def main() -> None:
    torch.manual_seed(0)
    X = torch.ones(6, 8)
    X[:, 2:6] = 0
    Y = corr2d(X, torch.tensor([[1.0, -1.0]])).reshape(1, 1, 6, 7)
    X = X.reshape(1, 1, 6, 8)

    conv = Conv2d(1, 1, kernel_size=(1, 2), bias=False)
    losses = []
    for i in range(10):
        loss = ((conv(X) - Y) ** 2).sum()
        conv.zero_grad()
        loss.backward()
        with torch.no_grad():
            conv.weight -= 3e-2 * conv.weight.grad
        losses.append(loss.item())
        if i % 2:
            print(f"epoch {i + 1}, loss {losses[-1]:.3f}")
    print("learnt:", conv.weight.detach().flatten().tolist(), "true: [1, -1]")
    assert losses[-1] < 0.05 < losses[0]
    assert torch.allclose(conv.weight.flatten(), torch.tensor([1.0, -1.0]), atol=0.1)


if __name__ == "__main__":
    main()
