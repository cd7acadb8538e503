"""What every Triton kernel here shares: how it is compiled, launched and told apart by dtype.

Integers are not specialised on their value: a kernel is compiled once per dtype and set of
constexprs, not once more for each stride that is 1 or a multiple of 16. What a kernel may rely on
is said by a constexpr; `VEC` alone makes addresses vectorisable, by counting in units of it.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from cnnkern.ops import TRITON_ALGOS
from cnnkern.selection import compute_capability
from cnnkern.triton_kernels.plan import note_launch

MAX_GRID = 2**31 - 1
PRECISIONS = {
    "auto": "ieee", "auto_tf32": "tf32",
    **dict(zip(TRITON_ALGOS, ("ieee", "tf32", "tf32x3"), strict=True)),
}  # fmt: skip
MODES = {"zeros": 0, "reflect": 1, "replicate": 2, "circular": 3}
# What is summed in a wider type than the tensors'.
ACCUMULATORS = {torch.float64: tl.float64}


def jit(function):
    """Compile with `triton.jit`, specialised on constexprs and the alignment of pointers only."""
    numbers = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if not name.endswith("_ptr") and "constexpr" not in str(parameter.annotation)
    ]
    return triton.jit(function, do_not_specialize=numbers)


@dataclass
class Launch:
    kernel: object
    programs: int
    args: tuple
    meta: dict


class Recorder:
    """Inside ``with Recorder(sm) as launches``, launches are noted instead of made.

    Tensors may then be on the meta device, as no kernel reads them, and are taken to be on a GPU of
    compute capability `sm`, such as 80. It is how kernels are compiled ahead and overhead measured.
    """

    active: Recorder | None = None

    def __init__(self, sm: int) -> None:
        self.sm, self.launches = sm, []

    def __enter__(self) -> list[Launch]:
        Recorder.active = self
        return self.launches

    def __exit__(self, *_) -> None:
        Recorder.active = None


_state = threading.local()


@contextlib.contextmanager
def traced():
    """Make launches nodes of the graph that is being traced, which compilers see the kernels of."""
    _state.traced = True
    try:
        yield
    finally:
        _state.traced = False


def arch(t: Tensor) -> int:
    """Return the compute capability of a tensor's GPU as 80, 90, ...; the interpreter is an 80."""
    if Recorder.active is not None:
        return Recorder.active.sm
    return compute_capability(t.device) if t.is_cuda else 80


def launch(kernel, programs: int, like: Tensor, *args, **meta) -> None:
    """Run `programs` programs of a kernel on the device of `like`; none is no launch."""
    if programs == 0:
        return
    if Recorder.active is not None:
        Recorder.active.launches.append(Launch(kernel, programs, args, meta))
        return
    if getattr(_state, "traced", False):
        torch.library.wrap_triton(kernel)[(programs,)](*args, **meta)
        return
    if programs > MAX_GRID:
        raise RuntimeError(
            f"cnnkern: {kernel.__name__} would need {programs} programs, above CUDA's 2^31 - 1"
        )
    with torch.cuda.device(like.device) if like.is_cuda else contextlib.nullcontext():
        compiled = kernel[(programs,)](*args, **meta)
    note_launch(compiled, programs, args, tuple(meta[n] for n in kernel.arg_names[len(args) :]))


def accumulator(dtype: torch.dtype):
    """Return the Triton dtype in which values of `dtype` are summed."""
    return ACCUMULATORS.get(dtype, tl.float32)


def precision(op: str, algo: str) -> str:
    """Return what tl.dot calls the precision that an algo stands for."""
    if algo not in PRECISIONS:
        names = ", ".join(repr(name) for name in PRECISIONS)
        raise RuntimeError(
            f"cnnkern::{op}: algo must be one of {names} of the Triton kernels, got {algo!r}"
        )
    return PRECISIONS[algo]


def span(t: Tensor) -> int:
    """Count the elements between the first and the last one in memory."""
    return sum((size - 1) * abs(stride) for size, stride in zip(t.shape, t.stride(), strict=True))


def needs_int64(*tensors: Tensor) -> bool:
    """Tell whether an offset inside one of the tensors, or a count, does not fit 32 bits."""
    # Tiles reach beyond the tensor before they are masked.
    return any(t.numel() and max(span(t), t.numel()) >= 2**31 - 2**24 for t in tensors)


def planes_are_rows(*tensors: Tensor) -> bool:
    """Tell whether each row of a plane follows the one before, so that a plane is one long row."""
    return all(t.stride(2) == t.size(3) * t.stride(3) for t in tensors)


def vectors(x: Tensor, y: Tensor, x_channels: int, y_channels: int, pointwise: bool):
    """Find along what the memory of both tensors runs, and in aligned groups of how many elements.

    Returns (VEC, MAJOR): "channels" with 16 bytes or 1 element; "pixels" with 16 bytes, for
    operations that take the planes of both as rows; or "any", 1.
    """
    vec = 16 // max(x.element_size(), y.element_size())
    x_n, x_c, x_h, x_w = x.stride()
    y_n, y_c, y_h, y_w = y.stride()
    if x_c == y_c == 1:
        aligned = (x_n, x_h, x_w, y_n, y_h, y_w, x_channels, y_channels)
        return vec if all(n % vec == 0 for n in aligned) else 1, "channels"
    if pointwise and x_w == y_w == 1:
        aligned = (x.size(2) * x.size(3), x_n, x_c, y_n, y_c)
        if all(n % vec == 0 for n in aligned):
            return vec, "pixels"
    return 1, "any"


def is_depthwise(groups: int, x_channels: int, y_channels: int) -> bool:
    """Tell whether groups are so narrow, 1 channel to at most 8, that a dot product is padding."""
    return groups > 1 and min(x_channels, y_channels) == 1 and max(x_channels, y_channels) <= 8
