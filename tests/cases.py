"""The one table of cases, the one table of tolerances, and the comparison that uses them.

Cases are picked by hand, each for the mistake in its comment. The CPU kernels' tiles are 8 output
channels, vectors of 4, 8 or 16 lanes, and reductions cut at 512: sizes sit on and off those.

It is long because it is one table, to be read as one.
"""

from __future__ import annotations

import functools
import math
import zlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cnnkern import reference

# ---- tolerances --------------------------------------------------------------------------------

# dtype -> (storage, accumulation): an element may be off by
#     (storage + accumulation * sqrt(reduction length)) * max |expected|.
# Storage is the rounding of the result, accumulation that of the running sum, whose error grows as
# a random walk does. 16-bit inputs are summed in float32.
TOLERANCE = {
    torch.float64: (2**-52, 2**-52),  # one ulp each; the oracle itself is off by as much
    torch.float32: (
        2**-22,
        2**-23,
    ),  # two ulps, for the division or the activation; one ulp per step
    torch.bfloat16: (2**-8, 2**-23),  # half an ulp
    torch.float16: (2**-11, 2**-23),  # half an ulp
    # Winograd's F(2x2, 3x3) needs no row: its transforms make terms up to 4 times as large, but it
    # adds up one number a channel and not nine, so that it comes out closer than the other kernels.
    # float32 on tensor cores, when asked for: tf32 rounds each factor to 11 bits, so a product is
    # off by 2**-10, a sum of many by no more of its size; twice that for results that cancel.
    "tf32": (2**-9, 2**-23),
    # Winograd takes differences of what its transforms made larger: a few bits less.
    "winograd": (2**-19, 2**-21),
}


def tolerance(dtype: torch.dtype | str, reduction=1, roundings=1, condition=1.0) -> float:
    """Bound the error relative to the largest expected value.

    `roundings` counts the results stored in `dtype` on the way, as between two chained ops;
    `condition` is how much larger the sum is than the result, as before a sigmoid.
    """
    storage, accumulation = TOLERANCE[dtype]
    return roundings * storage + accumulation * reduction**0.5 * condition


def assert_close(
    actual: Tensor,
    expected: Tensor,
    dtype: torch.dtype,
    reduction: int = 1,
    roundings: int = 1,
    condition: float = 1.0,
    what: str = "output",
    terms: float = 0.0,
    row: torch.dtype | str | None = None,
) -> None:
    """Compare with the float64 `expected`; NaN or a wrong shape or dtype fails.

    `terms` is the size of what is summed, for results so few that all of them may cancel; `row` is
    that of TOLERANCE, where it is not the dtype's.
    """
    assert actual.dtype == dtype, f"{what}: dtype {actual.dtype}, expected {dtype}"
    assert actual.shape == expected.shape, f"{what}: {actual.shape}, expected {expected.shape}"
    if expected.numel() == 0:
        return
    error = (actual.detach().cpu().double() - expected).abs()
    bound = tolerance(row or dtype, reduction, roundings, condition) * max(
        expected.abs().max().item(), terms
    )
    worst = error.max().item()
    if not worst <= bound:  # also true of NaN
        at = tuple(
            int(i) for i in torch.unravel_index(error.nan_to_num(nan=1e300).argmax(), error.shape)
        )
        raise AssertionError(
            f"{what}: off by {worst:.3g} where {bound:.3g} is allowed; the worst is at {at}: "
            f"{actual[at].item():.9g}, expected {expected[at].item():.9g}; "
            f"{int((~(error <= bound)).sum())} of {error.numel()} elements are off"
        )


# ---- data --------------------------------------------------------------------------------------


def values(size, seed: int, grid: float = 0) -> Tensor:
    """Return normal float64 values that float32 holds exactly; on a grid, multiples of it up to 4.

    Multiples of 1/16 are exact in every dtype, so one expectation serves bfloat16 and float16.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tuple(size), generator=generator)
    return ((x / grid).round() * grid).clamp(-4, 4).double() if grid else x.double()


def data_grid(dtype: torch.dtype) -> float:
    return 0 if dtype in (torch.float32, torch.float64) else 1 / 16


def seed_of(name: str) -> int:
    return zlib.crc32(name.encode())


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    # Every other column and channel of a wider tensor.
    "sliced": lambda x: x.repeat_interleave(2, 1).repeat_interleave(2, 3)[:, ::2, :, ::2],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "batch_inside": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    # channels_last with a gap between the pixels: still channels_last, but not dense.
    "channels_last_sliced": lambda x: torch.cat([x, x], 1)
    .contiguous(memory_format=torch.channels_last)[:, : x.shape[1]],
}  # fmt: skip


def layout(x: Tensor, name: str) -> Tensor:
    """Return the same values with other strides."""
    y = LAYOUTS[name](x)
    assert y.shape == x.shape
    return y


# ---- convolutions ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conv:
    name: str
    input: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]  # K, C/groups, R, S
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # left, right, top, bottom
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    padding_mode: str = "zeros"
    bias: bool = True

    def __str__(self):
        return self.name

    @property
    def geometry(self) -> tuple:
        """The arguments of the raw op after bias."""
        return (
            self.stride, self.padding, self.dilation, self.groups, self.padding_mode,
        )  # fmt: skip

    def output_size(self) -> list[int]:
        (N, _, H, W), (K, _, R, S) = self.input, self.weight
        left, right, top, bottom = self.padding
        P = (H + top + bottom - self.dilation[0] * (R - 1) - 1) // self.stride[0] + 1
        Q = (W + left + right - self.dilation[1] * (S - 1) - 1) // self.stride[1] + 1
        return [N, K, P, Q]

    @property
    def macs(self) -> int:
        """Multiply-adds of one pass."""
        return math.prod(self.output_size()) * math.prod(self.weight[1:])

    def reductions(self) -> dict[str, int]:
        """How many products or values each result sums."""
        K, Cg, R, S = self.weight
        N, _, P, Q = self.output_size()
        windows = max(1, N * P * Q)
        # Padding modes other than zeros add up what the copies of an element receive.
        copies = 1 if self.padding_mode == "zeros" else (P + R) * (Q + S)
        return {
            "output": Cg * R * S + 1,
            "input": K // self.groups * R * S * copies,
            "weight": windows,
            "bias": windows,
        }

    def tensors(self, grid: float = 0) -> dict[str, Tensor | None]:
        """Return float64 input, weight, bias and the gradient of the output."""
        seed = seed_of(self.name)
        sizes = (self.input, self.weight, (self.weight[0],), self.output_size())
        x, w, b, g = (values(size, seed + i, grid) for i, size in enumerate(sizes))
        return {"input": x, "weight": w, "bias": b if self.bias else None, "grad": g}


@functools.cache
def conv_expected(case: Conv, grid: float = 0) -> dict[str, Tensor | None]:
    """Return what the reference gives: the output and the gradients of input, weight, bias."""
    t = case.tensors(grid)
    output, grads = reference.vjp(
        lambda x, w, b: reference.conv2d(x, w, b, *case.geometry),
        (t["input"], t["weight"], t["bias"]),
        t["grad"],
    )
    return dict(zip(("output", "input", "weight", "bias"), (output, *grads), strict=True))


CONVS = (
    # LeNet, CIFAR and ImageNet shapes, shrunk where their size tests nothing.
    Conv("lenet1", (4, 1, 28, 28), (6, 1, 5, 5), padding=(2, 2, 2, 2)),
    Conv("lenet2", (3, 6, 14, 14), (16, 6, 5, 5)),
    Conv("rgb_stem", (1, 3, 33, 35), (17, 3, 7, 7), (2, 2), (3, 3, 3, 3), bias=False),
    Conv("vgg", (1, 32, 14, 14), (32, 32, 3, 3), padding=(1, 1, 1, 1)),
    # The smallest of everything, and extents at which a loop runs once or never.
    Conv("single", (1, 1, 1, 1), (1, 1, 1, 1)),
    Conv("batch0", (0, 3, 8, 8), (4, 3, 3, 3)),
    Conv("no_rows", (2, 3, 0, 5), (4, 3, 2, 2), padding=(1, 1, 1, 1)),
    Conv("padding_only", (1, 2, 1, 1), (3, 2, 3, 3), padding=(1, 1, 1, 1)),
    Conv("kernel_is_input", (2, 5, 7, 6), (9, 5, 7, 6)),
    Conv("one_output_column", (2, 3, 9, 5), (4, 3, 3, 5)),
    # Pointwise: a matrix product, off and on the tile.
    Conv("pointwise", (2, 7, 5, 9), (11, 7, 1, 1)),
    Conv("pointwise_tile", (1, 64, 4, 16), (24, 64, 1, 1), bias=False),
    Conv("pointwise_stride", (2, 9, 8, 7), (10, 9, 1, 1), (2, 3)),
    Conv("pointwise_pad", (1, 4, 3, 3), (5, 4, 1, 1), padding=(2, 1, 0, 3)),
    # Odd primes everywhere; channels around the tile of 8 and the vector of 16.
    Conv("primes", (3, 5, 11, 13), (7, 5, 3, 3), padding=(1, 1, 1, 1)),
    Conv("channels9", (1, 17, 6, 18), (9, 17, 3, 3), padding=(1, 1, 1, 1)),
    Conv("channels128", (1, 128, 7, 7), (130, 128, 3, 3), padding=(1, 1, 1, 1)),
    Conv("reduction1152", (2, 46, 6, 5), (8, 46, 5, 5), padding=(2, 2, 2, 2)),
    Conv("reduction512", (1, 32, 5, 17), (8, 32, 4, 4)),
    Conv("output1", (2, 16, 9, 9), (1, 16, 3, 3)),
    # One channel in or out, whose columns share inputs; more channels than are summed at a time.
    Conv("grey", (2, 1, 5, 23), (60, 1, 3, 3), padding=(1, 1, 1, 1)),
    Conv("grey_window7", (1, 1, 9, 17), (3, 1, 7, 7), padding=(3, 3, 3, 3), bias=False),
    Conv("output1_rows", (2, 5, 6, 30), (1, 5, 3, 5)),
    # Winograd: patches of 2x2 cut off on both sides, padding beyond the kernel, whose gradient
    # starts inside; channels one off its tile of 64 and its slices of 4, patches on two tiles.
    Conv("patches", (2, 6, 7, 9), (5, 6, 3, 3), padding=(5, 0, 1, 3)),
    Conv("patches_tile", (3, 33, 10, 4), (65, 33, 3, 3), padding=(0, 2, 1, 1), bias=False),
    # The window of direct: several tiles of columns, a tile of several images with some left over.
    Conv("window_tiles", (2, 3, 5, 150), (6, 3, 3, 3), padding=(1, 0, 0, 1)),
    Conv("window_images", (37, 2, 4, 3), (3, 2, 3, 3), padding=(1, 1, 1, 1)),
    # Winograd's tiles of 4x4: cut at every edge; more of them in a row, and more weights, than are
    # transformed together.
    Conv("tiles_cut", (2, 35, 9, 14), (49, 35, 3, 3), padding=(0, 2, 1, 0)),
    Conv("tiles_row", (1, 33, 3, 75), (32, 33, 3, 3), padding=(1, 1, 1, 1)),
    Conv("outputs257", (2, 70, 5, 6), (257, 70, 3, 3), padding=(1, 1, 1, 1), bias=False),
    # Images as lanes: blocks of them with some left over, a block of channels and some left over.
    Conv("images35", (35, 18, 5, 7), (20, 18, 2, 3), padding=(1, 0, 1, 1)),
    # Rows and planes much longer or shorter than a vector.
    Conv("wide", (1, 2, 3, 230), (5, 2, 3, 5), padding=(2, 2, 1, 1)),
    Conv("tall", (1, 2, 131, 3), (3, 2, 5, 3), padding=(1, 1, 0, 0)),
    Conv("row", (2, 3, 1, 37), (4, 3, 1, 5), padding=(2, 2, 0, 0)),
    Conv("column", (2, 3, 37, 1), (4, 3, 5, 1), (2, 1), (0, 0, 2, 2)),
    Conv("large_kernel", (1, 2, 20, 21), (3, 2, 11, 13), padding=(6, 6, 5, 5)),
    Conv("even_kernel", (2, 4, 9, 10), (6, 4, 2, 4), padding=(1, 2, 0, 1)),
    # Strides: phases of unequal length, windows that skip elements, rest rows never read.
    Conv("stride2", (2, 5, 11, 12), (9, 5, 3, 3), (2, 2), (1, 1, 1, 1)),
    Conv("stride2_tile", (1, 16, 16, 33), (16, 16, 3, 3), (2, 2), (1, 1, 1, 1), bias=False),
    # Rows that fill vectors; phases of the gradient that share a copy, cut to have all channels
    Conv("stride2_copy", (1, 3, 20, 320), (64, 3, 5, 5), (2, 2), (2, 2, 2, 2), bias=False),
    # Columns of few channels: bands of rows, which share some; cut within a row; of so many outputs
    # that pixels would share a set of L1.
    Conv("columns_bands", (1, 4, 49, 6), (35, 4, 3, 2), (1, 2), (1, 1, 1, 1)),
    Conv("columns_wide", (1, 15, 5, 150), (2, 15, 5, 5), padding=(2, 2, 2, 2), bias=False),
    Conv("columns_deep", (1, 2, 4, 5), (1024, 2, 2, 3), padding=(0, 1, 1, 0), bias=False),
    Conv("stride3_rest", (1, 3, 13, 15), (4, 3, 3, 4), (3, 3)),
    Conv("stride_exceeds_kernel", (2, 3, 17, 16), (5, 3, 2, 3), (5, 4), (1, 0, 1, 0)),
    Conv("stride_mixed", (1, 4, 12, 19), (6, 4, 4, 5), (1, 3), (2, 2, 1, 1)),
    # Dilation: with stride, holes that the gradient must leave at zero.
    Conv("dilation2", (2, 4, 11, 12), (5, 4, 3, 3), dilation=(2, 2), padding=(2, 2, 2, 2)),
    Conv("dilation_mixed", (1, 3, 15, 17), (4, 3, 3, 2), dilation=(3, 5), padding=(1, 0, 2, 3)),
    Conv("dilation_stride", (1, 3, 16, 18), (7, 3, 3, 3), (2, 3), (2, 1, 2, 1), (3, 2)),
    # Phases whose last tiles have no outputs; fewer outputs than phases.
    Conv("dilation_tiles", (2, 13, 18, 37), (20, 13, 3, 3), dilation=(2, 3), padding=(2, 1, 4, 3)),
    Conv("dilation_circular", (1, 16, 21, 37), (16, 16, 3, 3), dilation=(4, 2),
         padding=(4, 4, 2, 2), padding_mode="circular"),
    Conv("dilation_exceeds_output", (2, 12, 7, 10), (12, 12, 3, 3), dilation=(3, 4)),
    # Groups: few channels a group, depthwise, depthwise with a multiplier.
    Conv("groups2", (2, 6, 8, 9), (10, 3, 3, 3), padding=(1, 1, 1, 1), groups=2),
    Conv("groups_narrow", (1, 24, 7, 18), (36, 2, 3, 3), padding=(1, 1, 1, 1), groups=12),
    Conv("pointwise_wide", (2, 40, 13, 20), (37, 40, 1, 1)),
    Conv("pointwise_groups", (1, 34, 9, 16), (68, 17, 1, 1), groups=2, bias=False),
    Conv("pointwise_deep", (1, 1024, 4, 8), (19, 1024, 1, 1)),
    Conv("pointwise_4kib_pixels", (2, 1024, 3, 5), (64, 1024, 1, 1)),
    Conv("groups_pointwise", (2, 12, 5, 5), (8, 3, 1, 1), groups=4, bias=False),
    Conv("groups2_wide", (1, 10, 13, 37), (10, 2, 3, 5), padding=(1, 1, 2, 2), groups=5),
    Conv("groups4_stride", (2, 24, 15, 37), (24, 4, 3, 3), (2, 2), (1, 1, 1, 1), groups=6),
    Conv("groups8", (1, 24, 9, 19), (24, 8, 4, 3), padding=(1, 2, 1, 1), groups=3),
    Conv("depthwise", (2, 19, 9, 21), (19, 1, 3, 3), padding=(1, 1, 1, 1), groups=19),
    Conv("depthwise_stride", (1, 16, 12, 34), (16, 1, 5, 5), (2, 2), (2, 2, 2, 2), groups=16),
    # A gradient whose phases differ in size; of 3 x 1; with phases that no tap meets.
    Conv("depthwise_stride_odd", (2, 18, 15, 71), (18, 1, 3, 3), (2, 2), (1, 1, 1, 1), groups=18),
    Conv("depthwise_stride3", (2, 17, 14, 52), (17, 1, 5, 3), (3, 1), (2, 1, 0, 1), groups=17),
    Conv("depthwise_stride5", (1, 3, 13, 47), (3, 1, 3, 3), (5, 5), (1, 1, 1, 1), groups=3),
    # Rows of step 2 that are read as they lie: of less than a vector; whose ends no vector meets.
    Conv("depthwise_stride_short", (2, 7, 9, 25), (7, 1, 3, 3), (2, 2), (1, 0, 0, 1), groups=7),
    Conv("depthwise_stride_wide", (1, 3, 7, 131), (3, 1, 2, 7), (1, 2), (0, 1, 5, 0), groups=3),
    Conv("depthwise_stride_dilation", (1, 5, 19, 45), (5, 1, 3, 3), (2, 2), (2, 2, 3, 3), (1, 3),
         groups=5),
    Conv("depthwise_multiplier", (2, 5, 8, 11), (15, 1, 3, 3), padding=(1, 1, 1, 1), groups=5),
    Conv("depthwise_dilation", (1, 8, 13, 17), (8, 1, 3, 3), dilation=(2, 3), groups=8, bias=False),
    # Vectors of channels that end inside: rows and columns in blocks; pairs of rows with gaps.
    Conv("depthwise_tall", (1, 33, 37, 70), (33, 1, 4, 3), padding=(1, 2, 1, 1), groups=33),
    Conv("groups2_dilation", (1, 18, 11, 9), (18, 2, 3, 2), (1, 2), (2, 2, 0, 1), (2, 3), groups=9),
    # Planes that share 16 bytes, of more than a tile's channels; cut into rows; into columns.
    Conv("depthwise_planes", (2, 20, 7, 7), (20, 1, 3, 3), padding=(1, 1, 1, 1), groups=20),
    Conv("depthwise_rows", (1, 2, 67, 101), (2, 1, 3, 3), padding=(1, 1, 1, 1), groups=2),
    Conv("depthwise_columns", (1, 1, 3, 1300), (1, 1, 3, 3), padding=(1, 1, 1, 1), bias=False),
    # Weights that outweigh the pixels of all images.
    Conv("groups_few_pixels", (2, 144, 3, 4), (160, 36, 2, 2), groups=4),
    # Groups of a tensor core's 16 channels and more, with phases of unequal length in the gradient.
    Conv("groups16_stride", (1, 32, 9, 10), (40, 16, 3, 3), (2, 3), (1, 1, 2, 0), groups=2),
    # Padding: asymmetric, beyond the kernel so that whole windows see nothing, every mode.
    Conv("asymmetric", (2, 3, 7, 8), (4, 3, 3, 3), (2, 1), (3, 0, 0, 2)),
    Conv("huge_padding", (1, 2, 3, 4), (3, 2, 2, 3), padding=(7, 5, 4, 6)),
    Conv("huge_padding_stride", (2, 3, 2, 3), (4, 3, 3, 3), (4, 3), (9, 8, 5, 7)),
    Conv("reflect", (2, 3, 6, 7), (4, 3, 3, 5), padding=(4, 3, 2, 5), padding_mode="reflect"),
    Conv("replicate", (1, 3, 4, 5), (5, 3, 3, 3), (2, 1), (6, 1, 0, 7), padding_mode="replicate"),
    Conv("circular", (2, 4, 5, 4), (4, 2, 3, 3), padding=(4, 1, 2, 5), groups=2,
         padding_mode="circular"),
    Conv("depthwise_reflect", (1, 9, 6, 18), (9, 1, 3, 3), padding=(1, 1, 1, 1), groups=9,
         padding_mode="reflect"),
)  # fmt: skip

# The large tiles of the CUDA algorithms, which only problems of many blocks get: in few
# multiply-adds that takes groups or phases, which are blocks too. Channels on and off chunks of 4.
# "weight": several tiles of 32 channels and 32 taps, as it is packed and its gradient summed up.
LARGE_TILES = (
    ("igemm", torch.float32, Conv("fprop", (1, 512, 1, 3), (9216, 4, 1, 2), groups=128)),
    ("igemm", torch.float32, Conv("fprop_ragged", (1, 384, 1, 3), (9344, 3, 1, 2), groups=128)),
    ("igemm", torch.float32, Conv("dgrad", (1, 132, 8, 9), (8, 132, 3, 4), (8, 8), (1, 3, 0, 1))),
    ("igemm", torch.float32, Conv("dgrad_ragged", (1, 130, 8, 8), (7, 130, 3, 4), (8, 8))),
    ("igemm", torch.float32, Conv("wgrad", (2, 8, 6, 7), (72, 8, 3, 3), padding=(1, 0, 2, 1))),
    ("igemm", torch.float32, Conv("wgrad_ragged", (2, 9, 6, 7), (70, 9, 3, 3), (1, 1), (1, 0) * 2)),
    ("mma", torch.float16, Conv("fprop", (1, 1024, 1, 3), (4608, 16, 1, 2), groups=64)),
    ("mma", torch.bfloat16, Conv("dgrad", (1, 4608, 2, 3), (1024, 72, 1, 2), (1, 2), groups=64)),
    ("igemm", torch.float32, Conv("weight", (1, 37, 6, 8), (35, 37, 5, 7))),
    ("mma", torch.float16, Conv("weight", (1, 37, 6, 8), (35, 37, 5, 7))),
)  # fmt: skip

# ---- transposed convolutions -------------------------------------------------------------------


@dataclass(frozen=True)
class ConvTranspose:
    name: str
    input: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]  # C, K/groups, R, S
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    output_padding: tuple[int, int] = (0, 0)
    groups: int = 1
    dilation: tuple[int, int] = (1, 1)

    def __str__(self):
        return self.name

    @property
    def arguments(self) -> tuple:
        """The arguments after bias."""
        return self.stride, self.padding, self.output_padding, self.groups, self.dilation


CONV_TRANSPOSES = (
    ConvTranspose("plain", (2, 3, 5, 6), (3, 4, 3, 3)),
    ConvTranspose("padding", (2, 3, 5, 6), (3, 4, 3, 3), padding=(1, 1)),
    ConvTranspose("upsample", (1, 8, 5, 7), (8, 5, 4, 4), (2, 2), (1, 1)),
    ConvTranspose("output_padding", (1, 3, 5, 4), (3, 2, 3, 3), (2, 3), (1, 0), (1, 2)),
    ConvTranspose("pad_exceeds_kernel", (1, 2, 7, 8), (2, 3, 3, 2), padding=(3, 2)),
    ConvTranspose("dilation", (2, 3, 4, 5), (3, 4, 3, 2), (1, 2), (1, 2), (0, 1), 1, (2, 3)),
    ConvTranspose("groups", (2, 6, 4, 5), (6, 2, 3, 3), (2, 2), (1, 1), groups=3),
    ConvTranspose("depthwise", (1, 10, 6, 9), (10, 1, 4, 4), (2, 2), (1, 1), groups=10),
    ConvTranspose("gaps", (1, 2, 3, 4), (2, 3, 2, 2), (5, 4)),
    ConvTranspose("pointwise", (2, 5, 3, 4), (5, 7, 1, 1), (2, 1), output_padding=(1, 0)),
    ConvTranspose("batch0", (0, 3, 4, 4), (3, 2, 3, 3)),
)

# ---- pools -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """A window for max and avg pools; dilation is of the max pool alone, so avg skips those."""

    name: str
    input: tuple[int, int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False

    def __str__(self):
        return self.name

    @property
    def max_arguments(self) -> tuple:
        return self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode

    @property
    def avg_arguments(self) -> tuple:
        assert self.dilation == (1, 1)
        return self.kernel, self.stride, self.padding, self.ceil_mode


POOLS = (
    Pool("lenet", (3, 6, 28, 28), (2, 2), (2, 2)),
    Pool("odd_rest", (2, 5, 7, 9), (2, 2), (2, 2)),
    Pool("resnet", (1, 17, 15, 34), (3, 3), (2, 2), (1, 1)),
    Pool("overlap", (2, 3, 9, 11), (3, 3), (1, 1), (1, 1)),
    Pool("skips", (1, 4, 13, 14), (2, 3), (4, 5)),
    # Side by side, of fewer channels than the CPU has lanes.
    Pool("thirds", (2, 5, 10, 11), (3, 3), (3, 3)),
    Pool("fifths", (3, 2, 9, 41), (2, 5), (2, 5)),
    Pool("single", (1, 1, 1, 1), (1, 1), (1, 1)),
    Pool("batch0", (0, 3, 6, 6), (2, 2), (2, 2)),
    Pool("whole_plane", (2, 3, 5, 7), (5, 7), (1, 1)),
    Pool("whole_plane_of_vectors", (2, 40, 8, 12), (8, 12), (8, 12)),
    Pool("row", (2, 3, 1, 41), (1, 3), (1, 2), (0, 1)),
    Pool("wide", (1, 2, 4, 230), (3, 2), (1, 2), (1, 0)),
    # Windows that overlap, in planes of several bands of rows on the CPU; and dilated ones.
    Pool("tall_overlap", (1, 2, 97, 45), (3, 3), (1, 1), (1, 1)),
    Pool("tall_steps", (17, 1, 130, 41), (7, 3), (3, 2), (3, 1)),
    Pool("tall_halves", (1, 2, 131, 67), (3, 3), (2, 2), (1, 1)),
    Pool("tall_halves_ceil", (2, 1, 66, 70), (3, 3), (2, 2), ceil_mode=True),
    Pool("rows_padded", (1, 3, 40, 33), (3, 3), (1, 1), (1, 0)),
    Pool("wide_dilation", (1, 3, 14, 43), (3, 3), (1, 2), (1, 1), (2, 2)),
    # The same of channels_last: more channels than the CPU takes at a time.
    Pool("overlap_channels", (1, 51, 6, 66), (5, 5), (1, 1), (2, 2)),
    Pool("window256", (1, 2, 17, 18), (16, 16), (1, 1)),  # the last offset a byte can hold
    Pool("window289", (1, 2, 18, 17), (17, 17), (1, 1)),  # one that it cannot
    Pool("ceil", (2, 3, 8, 7), (3, 2), (2, 2), ceil_mode=True),
    Pool("ceil_padded", (1, 9, 6, 10), (3, 4), (2, 3), (1, 2), ceil_mode=True),
    Pool("ceil_drops_window", (1, 3, 5, 6), (2, 2), (3, 5), (1, 1), ceil_mode=True),
    Pool("ceil_grows", (1, 2, 1, 2), (2, 3), (4, 4), ceil_mode=True),  # larger than the input
    Pool("dilation", (2, 4, 9, 12), (3, 2), (2, 1), (1, 1), (2, 3)),
    # Few windows of 32 taps or more: with padding, with dilation, and most of the plane in none.
    Pool("few_padded", (2, 3, 8, 46), (4, 8), (4, 8), (0, 1)),
    Pool("few_dilated", (1, 3, 11, 23), (6, 6), (12, 12), dilation=(2, 2)),
    Pool("few_apart", (1, 2, 27, 26), (6, 6), (20, 20)),
    Pool("dilation_ceil", (1, 3, 10, 11), (2, 3), (3, 2), (1, 1), (3, 2), ceil_mode=True),
)
AVG_POOLS = tuple(case for case in POOLS if case.dilation == (1, 1))
# (count_include_pad, divisor_override)
AVG_DIVISORS = ((True, None), (False, None), (True, 3), (False, -7))


@dataclass(frozen=True)
class Adaptive:
    name: str
    input: tuple[int, int, int, int]
    output: tuple[int, int]

    def __str__(self):
        return self.name


ADAPTIVES = (
    Adaptive("global", (2, 19, 7, 7), (1, 1)),
    Adaptive("global_large", (1, 5, 13, 11), (1, 1)),  # more than twice 64 elements
    Adaptive("global_of_vectors", (2, 40, 8, 12), (1, 1)),
    Adaptive("global_channels", (1, 45, 7, 7), (1, 1)),  # a tile of 32 and a rest
    Adaptive("global_plane", (1, 2, 79, 80), (1, 1)),  # fits into shared memory but for float64
    Adaptive("even", (2, 3, 8, 12), (4, 3)),
    Adaptive("uneven", (2, 5, 7, 11), (3, 4)),
    Adaptive("same", (1, 3, 5, 4), (5, 4)),
    Adaptive("grows", (1, 3, 3, 2), (7, 5)),  # windows of one element, each used more than once
    Adaptive("mixed", (1, 17, 4, 35), (9, 2)),
    Adaptive("single", (1, 1, 1, 1), (1, 1)),
    Adaptive("batch0", (0, 3, 4, 4), (2, 2)),
)

# ---- the fused block ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Fused:
    """A convolution of the table above, followed by an activation and a pool."""

    name: str
    conv: Conv
    activation: str
    pool: str
    pool_kernel: tuple[int, int] = (2, 2)
    pool_stride: tuple[int, int] = (2, 2)
    pool_padding: tuple[int, int] = (0, 0)
    pool_ceil_mode: bool = False
    count_include_pad: bool = True
    # Where dtypes of 16 bits agree with the oracle on which element is the largest, though the
    # convolution be rounded to them before it is pooled, as in the pieces of CUDA C++.
    narrow: bool = field(default=True)

    def __str__(self):
        return self.name

    @property
    def act_pool(self) -> tuple:
        return (
            self.activation, self.pool, self.pool_kernel, self.pool_stride, self.pool_padding,
            self.pool_ceil_mode, self.count_include_pad,
        )  # fmt: skip


_conv = {case.name: case for case in CONVS}
FUSED = (
    Fused("lenet1", _conv["lenet1"], "sigmoid", "avg"),
    Fused("lenet2", _conv["lenet2"], "sigmoid", "avg"),
    Fused("modern_lenet", _conv["lenet2"], "relu", "max"),
    Fused("nothing", _conv["primes"], "none", "none"),
    Fused("relu", _conv["stride2"], "relu", "none"),
    Fused("sigmoid", _conv["dilation2"], "sigmoid", "none"),
    Fused("tanh", _conv["groups2"], "tanh", "none"),
    Fused("gelu", _conv["channels9"], "gelu", "none"),
    Fused("silu", _conv["asymmetric"], "silu", "none"),
    Fused("max", _conv["primes"], "none", "max", narrow=False),
    Fused("avg", _conv["even_kernel"], "none", "avg", (3, 2), (2, 1), (1, 1)),
    Fused("relu_max_overlap", _conv["channels9"], "relu", "max", (3, 3), (1, 2), (1, 1)),
    Fused("relu_avg", _conv["reflect"], "relu", "avg", (2, 2), (1, 1), (1, 1), True, False),
    Fused("sigmoid_max", _conv["primes"], "sigmoid", "max", (3, 2), (2, 2), narrow=False),
    Fused("tanh_max", _conv["lenet2"], "tanh", "max", (2, 2), (3, 3), (1, 1), True, narrow=False),
    Fused("tanh_avg", _conv["circular"], "tanh", "avg", (2, 3), (1, 1)),
    Fused("gelu_max", _conv["rgb_stem"], "gelu", "max", (3, 3), (2, 2), (1, 1), narrow=False),
    Fused("gelu_avg", _conv["vgg"], "gelu", "avg"),
    Fused("silu_max", _conv["stride2_tile"], "silu", "max", (2, 2), (1, 2), narrow=False),
    Fused("silu_avg", _conv["dilation_stride"], "silu", "avg", (3, 3), (2, 2), (1, 1), True),
    Fused("depthwise", _conv["depthwise"], "relu", "max"),
    Fused("depthwise_avg", _conv["depthwise_multiplier"], "silu", "avg"),
    Fused("pointwise", _conv["pointwise"], "relu", "avg"),
    Fused("images_none", _conv["window_images"], "silu", "none"),
    Fused("one_row", _conv["row"], "relu", "none"),
    Fused("images_avg", _conv["images35"], "sigmoid", "avg", (3, 2), (1, 2), (1, 1)),
    Fused("images_max", _conv["images35"], "gelu", "max", (3, 3), (2, 1), (1, 0), narrow=False),
    Fused("images_relu", _conv["images35"], "relu", "max", (3, 3), (2, 1), (1, 0), narrow=False),
    Fused("quads", _conv["vgg"], "relu", "max", narrow=False),
    Fused("windows_columns", _conv["wide"], "sigmoid", "avg"),
    Fused("windows_groups", _conv["groups2"], "relu", "max"),
    Fused("windows_channels", _conv["pointwise_wide"], "tanh", "avg"),
    Fused("windows_stride", _conv["stride2_tile"], "silu", "avg"),
    Fused("windows_images", _conv["images35"], "sigmoid", "avg"),
    Fused("windows_before", _conv["images35"], "gelu", "max", narrow=False),
    Fused("batch0", _conv["batch0"], "relu", "max"),
    Fused("single", _conv["single"], "gelu", "avg", (1, 1), (1, 1)),
    Fused("window_is_plane", _conv["kernel_is_input"], "tanh", "max", (1, 1), (1, 1)),
    Fused("global_avg", _conv["channels128"], "relu", "avg", (7, 7), (7, 7)),
    Fused("huge_padding", _conv["huge_padding"], "relu", "max", (3, 2), (2, 3)),
)
