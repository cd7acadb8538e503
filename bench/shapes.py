"""Named problems, each from a network that people run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Conv:
    """A convolution: N images of C x H x W, K kernels of R x S."""

    name: str
    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1

    @property
    def P(self) -> int:
        return (self.H + 2 * self.padding - self.dilation * (self.R - 1) - 1) // self.stride + 1

    @property
    def Q(self) -> int:
        return (self.W + 2 * self.padding - self.dilation * (self.S - 1) - 1) // self.stride + 1

    @property
    def flops(self) -> int:
        """Count multiplications and additions of the direct method, the same in every pass."""
        outputs = self.N * self.K * self.P * self.Q
        return 2 * outputs * (self.C // self.groups) * self.R * self.S

    @property
    def elements(self) -> int:
        """Count what has to be read or written once: images, kernels and results."""
        weight = self.K * (self.C // self.groups) * self.R * self.S
        return self.N * (self.C * self.H * self.W + self.K * self.P * self.Q) + weight


@dataclass(frozen=True)
class Pool:
    """A pool: `kind` max, avg or adaptive_avg (then `kernel` is the output's size)."""

    name: str
    kind: str
    N: int
    C: int
    H: int
    W: int
    kernel: int
    stride: int = 0
    padding: int = 0

    @property
    def P(self) -> int:
        if self.kind == "adaptive_avg":
            return self.kernel
        return (self.H + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def Q(self) -> int:
        if self.kind == "adaptive_avg":
            return self.kernel
        return (self.W + 2 * self.padding - self.kernel) // self.stride + 1


def square(name, N, C, size, K, kernel, stride=1, padding=None, dilation=1, groups=1) -> Conv:
    padding = dilation * (kernel // 2) if padding is None else padding
    return Conv(name, N, C, size, size, K, kernel, kernel, stride, padding, dilation, groups)


CONVS = (
    square("lenet conv1 5x5 1->6 @28", 256, 1, 28, 6, 5),
    square("lenet conv2 5x5 6->16 @14", 256, 6, 14, 16, 5, padding=0),
    square("cifar 3x3 3->64 @32", 128, 3, 32, 64, 3),
    square("stem 7x7s2 3->64 @224", 8, 3, 224, 64, 7, 2),
    square("resnet 3x3 64 @56", 8, 64, 56, 64, 3),
    square("resnet 3x3 128 @28", 8, 128, 28, 128, 3),
    square("resnet 3x3 256 @14", 8, 256, 14, 256, 3),
    square("resnet 3x3 512 @7", 8, 512, 7, 512, 3),
    square("resnet 3x3s2 128 @56", 8, 128, 56, 128, 3, 2),
    square("vgg 3x3 64 @224", 1, 64, 224, 64, 3),
    square("dilated 3x3d2 256 @28", 4, 256, 28, 256, 3, dilation=2),
    square("1x1 256->64 @56", 8, 256, 56, 64, 1),
    square("1x1 64->256 @56", 8, 64, 56, 256, 1),
    square("1x1 1024->256 @14", 8, 1024, 14, 256, 1),
    square("resnext 3x3g32 128 @56", 8, 128, 56, 128, 3, groups=32),
    square("mobilenet dw3x3 144 @56", 8, 144, 56, 144, 3, groups=144),
    square("mobilenet dw3x3s2 144 @56", 8, 144, 56, 144, 3, 2, groups=144),
    square("efficientnet dw5x5 240 @28", 8, 240, 28, 240, 5, groups=240),
    square("convnext dw7x7 96 @56", 8, 96, 56, 96, 7, groups=96),
)
# One image: latency instead of throughput.
_SINGLE = ("lenet conv1", "lenet conv2", "stem", "resnet 3x3 64", "resnet 3x3 512", "1x1 256->64",
           "mobilenet dw3x3 144", "convnext")  # fmt: skip
# Many: beside LeNet's, those whose operands fit the memory of a small machine.
_MANY = ("resnet 3x3 256", "resnet 3x3 512", "1x1 1024->256", "efficientnet dw5x5")
CONVS += tuple(
    replace(conv, name=f"{conv.name} N={n}", N=n)
    for n, names in ((1, _SINGLE), (256, _MANY))
    for conv in CONVS
    if conv.name.startswith(names)
)

POOLS = (
    Pool("lenet avg 2x2 6 @28", "avg", 256, 6, 28, 28, 2, 2),
    Pool("lenet avg 2x2 16 @10", "avg", 256, 16, 10, 10, 2, 2),
    Pool("max 2x2s2 64 @56", "max", 32, 64, 56, 56, 2, 2),
    Pool("resnet max 3x3s2p1 64 @112", "max", 64, 64, 112, 112, 3, 2, 1),
    Pool("inception max 3x3s1p1 192 @28", "max", 16, 192, 28, 28, 3, 1, 1),
    Pool("avg 2x2s2 64 @56", "avg", 32, 64, 56, 56, 2, 2),
    Pool("inception avg 3x3s1p1 192 @28", "avg", 16, 192, 28, 28, 3, 1, 1),
    Pool("global avg 512 @7", "adaptive_avg", 64, 512, 7, 7, 1),
    Pool("adaptive avg 4x4 256 @14", "adaptive_avg", 64, 256, 14, 14, 4),
)
POOLS += tuple(
    replace(pool, name=f"{pool.name} N=1", N=1)
    for pool in POOLS
    if pool.name.startswith(("lenet avg 2x2 6", "max", "resnet", "global"))
)


def of_batch(problems: Sequence[Conv | Pool], batch: int | None) -> list[Conv | Pool]:
    """Give the problems with that many images, each once; as they are where it is None."""
    if batch is None:
        return list(problems)
    return [
        replace(problem, name=f"{problem.name} N={batch}", N=batch)
        for problem in problems
        if " N=" not in problem.name
    ]
