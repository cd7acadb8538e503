"""Which element of a 4-D tensor a flat index is, without dividing.

A flat index is split into (n, c, p, q) by three divisions by sizes known at launch. Each is one
32 x 32 -> 64 bit product and a shift by numbers that the host has computed, not the twenty or so
instructions of a hardware division, so that pools stay bound by memory. Both layouts are walked in
the order of memory: q is the innermost index of NCHW, c that of NHWC.
"""

from __future__ import annotations

import functools

import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from cnnkern.triton_kernels.config import walk_tile
from cnnkern.triton_kernels.launch import needs_int64
from cnnkern.triton_kernels.tuning import choose


@functools.lru_cache(maxsize=4096)
def magic(divisor: int) -> int:
    """Return m + shift * 2^32 such that i // divisor == (i * m) >> shift for 0 <= i < 2^31.

    With 2^(s-1) < divisor <= 2^s and m = ceil(2^(31+s) / divisor), m is in [2^31, 2^32), and the
    quotient comes out too large by less than i / 2^(31+s) < 1 / divisor: never by a whole one.
    """
    if divisor >= 2**31:
        return 2**31  # only 64-bit indices are divided by it, and those plainly
    shift = 31 + (divisor - 1).bit_length()
    return -(-(2**shift) // divisor) + (shift << 32)


@triton.jit
def divide(i, size, size_magic, BIG: tl.constexpr):
    """Return i // size for i >= 0."""
    if BIG:
        quotient = i // size
    else:
        factor = (size_magic & 0xFFFFFFFF).to(tl.uint64)
        product = i.to(tl.uint32).to(tl.uint64) * factor
        quotient = (product >> (size_magic >> 32).to(tl.uint64)).to(tl.int32)
    return quotient


@triton.jit
def unravel(
    i, C, C_magic, P, P_magic, Q, Q_magic, NHWC: tl.constexpr, BIG: tl.constexpr
):  # fmt: skip
    """Split the flat index of a dense tensor into n, c, p, q."""
    if NHWC:
        t = divide(i, C, C_magic, BIG)
        c = i - t * C
        u = divide(t, Q, Q_magic, BIG)
        q = t - u * Q
        n = divide(u, P, P_magic, BIG)
        p = u - n * P
    else:
        t = divide(i, Q, Q_magic, BIG)
        q = i - t * Q
        u = divide(t, P, P_magic, BIG)
        p = t - u * P
        n = divide(u, C, C_magic, BIG)
        c = u - n * C
    return n, c, p, q


@triton.jit
def flat_index(units, VEC: tl.constexpr, BIG: tl.constexpr, UNITS: tl.constexpr):
    """Return this program's flat indices in units of VEC, places in the unit, and the mask.

    They are [UNITS, 1], [1, VEC] and [UNITS, 1]: what is a unit's own is computed once for it, and
    a mask cannot cut through one, so that it is read and written as a vector.
    """
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    unit = tl.program_id(0).to(INDEX) * UNITS + tl.arange(0, UNITS)[:, None]
    return unit, tl.arange(0, VEC)[None, :], unit < units


def vector(nhwc: bool, *tensors: Tensor) -> int:
    """Choose VEC: 16 bytes of channels where every tensor allows it, else 1.

    A thread of NCHW takes one element: its inputs are `stride` apart and make no vector. Of tensors
    in a trace the address is not known; should it be odd, vectors are slower there, but as right.
    """
    if not nhwc:
        return 1
    width = 16 // max(t.itemsize for t in tensors if t.dtype.is_floating_point)
    for t in tensors:
        _, c, h, w = t.stride()
        n = t.stride(0)
        if c != 1 or t.size(1) % width or n % width or h % width or w % width:
            return 1
        if not is_fake(t) and t.data_ptr() % (width * t.itemsize):
            return 1
    return width


class Walk:
    """A dense 4-D tensor to be written in the order of its memory, and the constexprs for it."""

    def __init__(
        self, kernel: str, kind: str, taps: int, out: Tensor, nhwc: bool, *inputs: Tensor,
        also_big: bool = False,
    ) -> None:  # fmt: skip
        """Choose the tile of `kernel`, whose threads read `taps` elements for a result."""
        self.out, self.nhwc = out, nhwc
        self.vec = vector(self.nhwc, out, *inputs)
        self.big = also_big or needs_int64(out, *inputs)
        self.units = out.numel() // self.vec
        layout = "nhwc" if nhwc else "nchw"
        self.tile = choose(
            kernel, walk_tile(), out, (kind, layout, self.vec), (self.units, taps)
        )  # fmt: skip
        self.programs = -(-self.units // self.tile.pixels)

    def sizes(self) -> tuple[int, ...]:
        """Return the arguments units, C, C_magic, P, P_magic, Q, Q_magic."""
        _, C, P, Q = self.out.shape
        C //= self.vec
        return self.units, C, magic(C), P, magic(P), Q, magic(Q)

    def strides(self, t: Tensor) -> tuple[int, ...]:
        """Return the strides of an input in units of `vec`; its channels are then adjacent."""
        n, c, h, w = t.stride()
        if self.vec == 1:
            return n, c, h, w
        return n // self.vec, 1, h // self.vec, w // self.vec

    def meta(self) -> dict:
        return {
            "NHWC": self.nhwc,
            "VEC": self.vec,
            "BIG": self.big,
            "UNITS": self.tile.pixels,
            "num_warps": self.tile.warps,
        }
