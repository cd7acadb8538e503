"""Run a network that was written with torch.nn on these kernels, without changing its code."""

import torch
from torch import nn

import cnnkern


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding="same", padding_mode="reflect"), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )
    images = torch.randn(8, 3, 32, 32)
    expected = model(images)

    # A new model around the same parameters; `inplace=True` changes this one.
    converted = cnnkern.convert(model, fuse=True)
    print(converted)
    # Or nothing but the calls inside a block.
    with cnnkern.override():
        overridden = model(images)
    for title, scores in (("convert", converted(images)), ("override", overridden)):
        print(f"{title}: off by {(scores - expected).abs().max().item():.1e}")
        assert torch.allclose(scores, expected, atol=1e-5)
    assert all(a is b for a, b in zip(model.parameters(), converted.parameters(), strict=True))


if __name__ == "__main__":
    main()
