"""The transpose of padding by reflection, replication or wrapping: copies add to their source.

Each element of the result gathers its own place in the padded gradient and those of the padding's
rows and columns that show it, in a fixed order. Only padding is searched, a few rows and columns.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from cnnkern.triton_kernels.conv2d_gather import padded_index
from cnnkern.triton_kernels.launch import MODES, accumulator, jit, launch, needs_int64

BLOCK = 512


@triton.jit
def source(i, at, before, size, mode):
    """Return the i-th candidate for a place in the padded axis, and whether it shows `at`.

    Candidate 0 is the element itself, then come the padding before and the padding after.
    """
    place = tl.where(i == 0, at + before, tl.where(i <= before, i - 1, size + i - 1))
    return place, padded_index(place - before, size, mode) == at


@jit
def conv2d_fold_kernel(
    x_ptr, y_ptr, batch, channels, height, width, left, right, top, bottom, mode,
    x_n, x_c, x_h, x_w, y_n, y_c, y_h, y_w,
    ACC: tl.constexpr, BIG: tl.constexpr, NHWC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    i = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    if NHWC:
        c, rest = i % channels, i // channels
        w, h, n = rest % width, rest // width % height, rest // width // height
    else:
        w, rest = i % width, i // width
        h, c, n = rest % height, rest // height % channels, rest // height // channels
    inside = n < batch
    base = x_ptr + n.to(INDEX) * x_n + c.to(INDEX) * x_c
    acc = tl.zeros((BLOCK,), ACC)
    for row in range(top + bottom + 1):
        p, shows_h = source(row, h, top, height, mode)
        for column in range(left + right + 1):
            q, shows_w = source(column, w, left, width, mode)
            offset = p.to(INDEX) * x_h + q.to(INDEX) * x_w
            acc += tl.load(base + offset, mask=inside & shows_h & shows_w, other=0.0).to(ACC)
    offset = n.to(INDEX) * y_n + c.to(INDEX) * y_c + h.to(INDEX) * y_h + w.to(INDEX) * y_w
    tl.store(y_ptr + offset, acc.to(y_ptr.dtype.element_ty), mask=inside)


def fold(x: Tensor, y: Tensor, padding, mode: str) -> None:
    """Fill y with the gradient of the tensor whose padded copy has the gradient x."""
    launch(
        conv2d_fold_kernel, triton.cdiv(y.numel(), BLOCK), y,
        x, y, *y.shape, *padding, MODES[mode], *x.stride(), *y.stride(),
        ACC=accumulator(y.dtype), BIG=needs_int64(x, y), NHWC=y.stride(1) == 1, BLOCK=BLOCK,
    )  # fmt: skip
