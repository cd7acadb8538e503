"""Block sizes, warps and stages by architecture, dtype and shape class: a table, not a search.

The table is made by what fits, not by timing: accumulators of at most 64 registers a thread for
products on tensor cores and 32 for plain FMAs, operand stages within 99 KiB of shared memory (the
least of sm_80 and later), tiles no wider than the problem. Where a search is asked for, `tuning.py`
starts from the table's tile and stays within `RANGES`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Tile:
    """A tile of the GEMM: channels (of the result) x pixels, and a step of the reduction."""

    channels: int
    pixels: int
    step: int
    warps: int
    stages: int

    @property
    def sums_a_thread(self) -> int:
        return self.channels * self.pixels // (32 * self.warps)


@dataclass(frozen=True)
class Ranges:
    """The least and the most of each number of a tile, for the tiles that tuning may try."""

    channels: tuple[int, int]
    pixels: tuple[int, int]
    step: tuple[int, int]
    warps: tuple[int, int] = (1, 8)
    stages: tuple[int, int] = (1, 6)
    sums_a_thread: int = 128  # of 255 registers


# Triton multiplies matrices of at least 16 x 16 x 16. A kernel without a loop to pipeline has one
# number of stages; one that walks along a tensor counts its results, or vectors of them, as pixels.
RANGES = {
    "conv2d_gather": Ranges((16, 256), (16, 256), (16, 128)),
    "conv2d_weight_grad": Ranges((16, 256), (16, 256), (16, 128)),
    "conv2d_act_pool2d": Ranges((8, 64), (32, 256), (8, 64)),
    "conv2d_depthwise": Ranges((1, 128), (8, 1024), (1, 1), stages=(2, 2)),
    "conv2d_pixel_sum": Ranges((1, 128), (1, 1), (16, 1024), stages=(2, 2)),
    "pool2d": Ranges((1, 1), (32, 1024), (1, 1), stages=(2, 2)),
    "pool2d_grad": Ranges((1, 1), (32, 1024), (1, 1), stages=(2, 2)),
    "plane_pool2d": Ranges((1, 128), (8, 256), (1, 1), stages=(2, 2), sums_a_thread=32),
    "gather": Ranges((1, 1), (32, 1024), (1, 1), stages=(2, 2)),
    # All pairs of a scatter's pixels are compared.
    "scatter": Ranges((1, 128), (4, 32), (1, 1), stages=(2, 2), sums_a_thread=2),
}


# dtype class -> widest channels of the class -> tile.
_TILES = {
    # float64, float32 multiplied exactly, and all of sm_75, for which Triton has FMAs only.
    "wide": {
        16: Tile(16, 64, 16, 4, 2),
        32: Tile(32, 64, 16, 4, 2),
        None: Tile(64, 64, 16, 4, 2),
    },
    "tf32": {
        16: Tile(16, 128, 16, 4, 3),
        32: Tile(32, 128, 16, 4, 3),
        64: Tile(64, 128, 32, 4, 3),
        None: Tile(128, 128, 32, 8, 3),
    },
    "narrow": {  # float16 and bfloat16
        16: Tile(16, 128, 16, 4, 3),
        32: Tile(32, 128, 32, 4, 3),
        64: Tile(64, 128, 32, 4, 4),
        None: Tile(128, 128, 32, 8, 4),
    },
}


def conv2d_tile(
    dtype: torch.dtype, precision: str, channels: int, pixels: int, summed: int, sm: int,
    scattered: bool, big: bool = False,
) -> Tile:  # fmt: skip
    """Choose the tile for results of so many channels and pixels on architecture `sm`.

    `summed` are the channels that a step runs over. `scattered` says that memory is not known to
    run along a tile's rows: an address per element takes registers, so that more threads share the
    tile; `big`, that addresses take two registers each.
    """
    kind = "wide"
    if sm >= 80 and dtype.itemsize == 2:
        kind = "narrow"
    elif sm >= 80 and dtype == torch.float32 and precision != "ieee":
        kind = "tf32"
    table = _TILES[kind]
    width = next((w for w in table if w is not None and channels <= w), None)
    tile = table[width]
    if precision == "tf32x3" and kind == "tf32" and tile.channels >= 64:
        # Both halves of each factor are in registers, beside the sums.
        tile = replace(tile, pixels=tile.pixels // 2)
    if kind == "narrow" and width is None:
        if (channels + 127) // 128 * ((pixels + 127) // 128) < 64:
            tile = table[64]  # too few tiles for the SMs
        elif not scattered and (summed % 64 == 0 or summed >= 256):
            # Half as many steps, of which each computes addresses: 32 KiB a stage, of 99 or 227.
            return Tile(128, 128, 64, 8, 4 if sm in (90, 100, 103) else 3)
    if scattered and kind != "wide" and tile.channels >= 64:
        step = min(tile.step, 64 // dtype.itemsize)
        return Tile(tile.channels, tile.pixels, step // 2 if big else step, 8, 3)
    return tile


def depthwise_tile(major: str) -> Tile:
    """Choose the tile of a depthwise sum: 8 results a thread, along what the memory runs."""
    return Tile(32, 32, 1, 4, 2) if major == "channels" else Tile(4, 256, 1, 4, 2)


def pixel_sum_tile(major: str) -> Tile:
    """Choose the tile of a sum along the pixels: 8 elements a thread and step."""
    return Tile(32, 1, 32, 4, 2) if major == "channels" else Tile(4, 1, 256, 4, 2)


def walk_tile() -> Tile:
    """Choose the tile of a pool, its gradient or a gather: a result, or 16 bytes, for a thread."""
    return Tile(1, 128, 1, 4, 2)


def plane_tile(major: str) -> Tile:
    """Choose the tile of a global pool: 4 elements a thread and step, so many of each plane."""
    return Tile(32, 16, 1, 4, 2) if major == "channels" else Tile(8, 64, 1, 4, 2)


def scatter_tile(major: str) -> Tile:
    """Choose the tile of a scatter: a warp for a plane, or for a line of channels."""
    return Tile(32, 8, 1, 4, 2) if major == "channels" else Tile(1, 32, 1, 1, 2)


def act_pool2d_tile(dtype: torch.dtype, channels: int) -> Tile:
    """Choose the tile of the fused block, as narrow as dot products of the dtype can be."""
    least = 16 if dtype.itemsize == 2 else 8
    width = min(32, max(least, 1 << (channels - 1).bit_length()))
    return Tile(width, 64, 8, 4, 3) if dtype.itemsize == 8 else Tile(width, 128, 16, 4, 3)


def conv2d_weight_tile(
    dtype: torch.dtype, precision: str, channels: int, columns: int, sm: int, scattered: bool
) -> Tile:
    """Choose the tile of the weight's gradient; `pixels` are its columns, `step` counts pixels."""
    tile = conv2d_tile(dtype, precision, channels, 1 << 30, 1 << 30, sm, scattered)
    width = 64 if columns > 32 and dtype.itemsize <= 4 else 32
    if sm >= 80 and dtype.itemsize == 2 and not scattered and min(tile.channels, columns) >= 128:
        width = 128
    # Each operand has an address per element of its own here.
    warps = 8 if tile.channels * width >= 4096 else 4
    step = 32 if sm >= 80 else 16
    return Tile(tile.channels, width, step, warps, min(tile.stages, 3))


def pixel_chunk(pixels: int, programs: int, step: int) -> tuple[int, int]:
    """Cut a sum over pixels into chunks: return the steps of one, and the number of chunks.

    About 512 programs in all, which fills the largest GPU, but no chunk of under 512 pixels. The
    rule knows the problem only, not the device, so results do not depend on that.
    """
    wanted = max(1, min(512 // max(1, programs), pixels // 512))
    steps = -(-pixels // (wanted * step))
    return steps, max(1, -(-pixels // max(1, steps * step)))
