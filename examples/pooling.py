"""Pool an image by maximum and by mean: section 7.5 of "Dive into Deep Learning"."""

import torch

from cnnkern.nn import AvgPool2d, MaxPool2d


def main() -> None:
    X = torch.arange(9.0).reshape(1, 3, 3)
    maximum, mean = MaxPool2d(2, stride=1)(X), AvgPool2d(2, stride=1)(X)
    print("2x2 maxima:", maximum[0].tolist(), "2x2 means:", mean[0].tolist())
    assert maximum.equal(torch.tensor([[[4.0, 5.0], [7.0, 8.0]]]))
    assert mean.equal(torch.tensor([[[2.0, 3.0], [5.0, 6.0]]]))

    X = torch.arange(16.0).reshape(1, 1, 4, 4)
    corners = torch.tensor([[[[5.0, 7.0], [13.0, 15.0]]]])
    print("3x3 window, stride as the window:", MaxPool2d(3)(X).tolist())
    assert MaxPool2d(3)(X).equal(torch.tensor([[[[10.0]]]]))
    print("3x3 window, padding 1, stride 2:", MaxPool2d(3, padding=1, stride=2)(X).tolist())
    assert MaxPool2d(3, padding=1, stride=2)(X).equal(corners)
    assert MaxPool2d((2, 3), stride=(2, 3), padding=(0, 1))(X).equal(corners)

    # Channels are pooled one by one: as many come out as went in.
    Y = MaxPool2d(3, padding=1, stride=2)(torch.cat((X, X + 1), 1))
    print("two channels:", Y.tolist())
    assert Y.equal(torch.cat((corners, corners + 1), 1))


if __name__ == "__main__":
    main()
