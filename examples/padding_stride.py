"""Keep or shrink an image by padding and stride: section 7.3 of "Dive into Deep Learning"."""

import torch

from cnnkern.nn import Conv2d


def main() -> None:
    X = torch.rand(1, 1, 8, 8)
    for title, arguments, size in (
        ("padding 1", {"kernel_size": 3, "padding": 1}, (8, 8)),
        ("kernel (5, 3), padding (2, 1)", {"kernel_size": (5, 3), "padding": (2, 1)}, (8, 8)),
        ("padding 'same', kernel (4, 6)", {"kernel_size": (4, 6), "padding": "same"}, (8, 8)),
        ("padding 1, stride 2", {"kernel_size": 3, "padding": 1, "stride": 2}, (4, 4)),
        (
            "kernel (3, 5), padding (0, 1), stride (3, 4)",
            {"kernel_size": (3, 5), "padding": (0, 1), "stride": (3, 4)},
            (2, 2),
        ),
    ):
        shape = tuple(Conv2d(1, 1, **arguments)(X).shape[2:])
        print(f"8x8, {title}: {shape[0]}x{shape[1]}")
        assert shape == size


if __name__ == "__main__":
    main()
