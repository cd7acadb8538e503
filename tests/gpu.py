"""The targets that tests run on, and what is left to a real GPU where only an emulated one is.

tests/ptxcpu executes GPU kernels on the CPU, thousands of times slower than a GPU. There the tables
stay whole, case by case and backend by backend, but for the largest cases. Each case runs in
float32 in both layouts (a larger one in one), in float64 in one layout, and in one of the two types
of 16 bits in one layout; which one goes by the case's name. float32 runs in both orders of
threads, the other types in one, since their kernels differ in what they multiply with alone.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import zlib
from dataclasses import dataclass

import torch

import cnnkern  # noqa: F401  (registers the ops)
from cnnkern import _C

# None on a real GPU or without any; else the order that the emulator runs threads in.
RIG_ORDER = os.environ.get("PTXCPU_ORDER") if os.environ.get("PTXCPU_ACTIVE") else None
# Multiply-adds of one pass; forward and both gradients take one core about 1.5 us for each.
RIG_MACS = 10_000_000
RIG_MACS_IN_BOTH_LAYOUTS = 1_000_000
# Triton's interpreter runs the kernels on CPU tensors, a program at a time, in NumPy.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
INTERPRETED_MACS = 10_000
LAYOUTS, NARROW = ("contiguous", "channels_last"), (torch.bfloat16, torch.float16)
LEFT_OUT = "left out: "  # how a summary line begins


@dataclass(frozen=True)
class Target:
    """A device, and the instruction set or the backend of the kernels that run there."""

    device: str
    isa: str | None = None
    algo: str = "auto"

    def __str__(self):
        return self.isa or (self.device if self.algo == "auto" else self.algo)

    @property
    def is_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def options(self) -> dict:
        """Keyword arguments that make a public function run here."""
        return {} if self.algo == "auto" else {"algo": self.algo}

    def op(self, name: str):
        """Return the overload of a raw op that runs here."""
        return getattr(getattr(torch.ops.cnnkern, name), self._overload)

    def has(self, *ops: str) -> bool:
        """Tell whether every one of these ops has a kernel here."""
        has, key = torch._C._dispatch_has_kernel_for_dispatch_key, self.device.upper()
        suffix = "" if self._overload == "default" else f".{self._overload}"
        return all(has(f"cnnkern::{op}{suffix}", key) for op in ops)

    @property
    def _overload(self) -> str:
        return "default" if self.algo == "auto" else self.algo


@contextlib.contextmanager
def allocator_with_pools():
    """Let PyTorch keep the memory of CUDA graphs; the emulator switches that off."""
    torch.cuda.init()
    before = torch._C._cuda_cudaCachingAllocator_is_enabled()
    gc.collect()  # what was allocated in one way must not be freed in the other: PyTorch aborts
    torch._C._cuda_cudaCachingAllocator_enable(True)
    try:
        yield
    finally:
        gc.collect()
        torch._C._cuda_cudaCachingAllocator_enable(before)


CPU_TARGETS = tuple(Target("cpu", isa) for isa in _C.cpu_isas())
if INTERPRETED:
    CPU_TARGETS = (Target("cpu", algo="triton"),)
GPU_TARGETS = (Target("cuda"),)
if importlib.util.find_spec("triton"):
    GPU_TARGETS += (Target("cuda", algo="triton"),)


def left_to_a_real_gpu(name: str, params: dict, order: str | None = RIG_ORDER) -> str | None:
    """Return why the emulator does not run this test, or None where it does."""
    case, dtype, format = (params.get(key) for key in ("case", "dtype", "format"))
    macs = getattr(getattr(case, "conv", case), "macs", 0)
    if macs > RIG_MACS:
        return f"more than {RIG_MACS} multiply-adds"
    if not dtype or format not in LAYOUTS:
        return None
    turn = turn_of(name, case)
    if dtype in NARROW and dtype != NARROW[turn % 2]:
        return "the other type of 16 bits"
    in_both = dtype == torch.float32 and macs <= RIG_MACS_IN_BOTH_LAYOUTS
    if not in_both and format != LAYOUTS[(turn // 2 + (dtype in NARROW)) % 2]:
        return "the type's other layout"
    if dtype != torch.float32 and order == ("0", "2")[turn // 4 % 2]:
        return "run in the other order of threads"
    return None


def left_to_the_compiler(name: str, params: dict) -> str | None:
    """Return why Triton's interpreter does not run this test, or None where it does."""
    case, dtype, format = (params.get(key) for key in ("case", "dtype", "format"))
    if getattr(getattr(case, "conv", case), "macs", 0) > INTERPRETED_MACS:
        return f"more than {INTERPRETED_MACS} multiply-adds"
    if dtype not in (None, torch.float32):
        return "what is not float32"
    if format in LAYOUTS and format != LAYOUTS[turn_of(name, case) % 2]:
        return "the other layout"
    return None


def turn_of(name: str, case) -> int:
    """Return a number by which cases take turns in what they run."""
    return zlib.crc32(f"{name} {case}".encode())
