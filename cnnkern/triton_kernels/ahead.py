"""Compile the kernels of a call ahead of it, for any architecture, with no GPU there."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cnnkern.triton_kernels.launch import Launch

_TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.uint8: "u8",
    torch.int64: "i64",
}
_OPTIONS = ("num_warps", "num_stages")


def compile_launch(launch: Launch, sm: int):
    """Compile a recorded launch for compute capability `sm`; return Triton's CompiledKernel.

    Pointers are taken to be multiples of 16 bytes, as those of whole tensors are.
    """
    signature, constexprs, attributes = {}, {}, {}
    meta = {k: v for k, v in launch.meta.items() if k not in _OPTIONS}
    names = launch.kernel.arg_names
    for i, (name, value) in enumerate(zip(names, (*launch.args, *meta.values()), strict=True)):
        if name in meta:
            value = meta[name]
            signature[name], constexprs[(i,)] = "constexpr", value
        elif isinstance(value, triton.language.constexpr):
            signature[name], constexprs[(i,)] = "constexpr", value.value
        elif isinstance(value, Tensor):
            signature[name] = f"*{_TYPES[value.dtype]}"
            attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if isinstance(value, float) else _integer(value)
    source = ASTSource(launch.kernel, signature, constexprs, attributes)
    options = {k: v for k, v in launch.meta.items() if k in _OPTIONS}
    return triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)


def _integer(value: int) -> str:
    return "i32" if -(2**31) <= value < 2**31 else "i64"


@dataclass(frozen=True)
class Resources:
    registers: int
    spilled_bytes: int
    shared_bytes: int


def resources(compiled, sm: int) -> Resources:
    """Ask ptxas for the registers of a thread and the bytes it spills."""
    suffix = "-blackwell" if sm >= 100 else ""
    ptxas = Path(triton.__file__).parent / f"backends/nvidia/bin/ptxas{suffix}"
    target = re.search(r"\.target (\w+)", compiled.asm["ptx"]).group(1)
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder, "kernel.ptx")
        ptx.write_text(compiled.asm["ptx"])
        text = subprocess.run(
            [ptxas, "-v", f"-arch={target}", ptx, "-o", ptx.with_suffix(".cubin")],
            capture_output=True, text=True, check=True,
        ).stderr  # fmt: skip
    return Resources(
        int(re.search(r"Used (\d+) registers", text).group(1)),
        int(re.search(r"(\d+) bytes spill stores", text).group(1)),
        compiled.metadata.shared,
    )
