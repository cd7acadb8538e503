"""What ptxas makes of the Triton kernels: the rows that bench.gpu_static adds to the library's.

The problems are those of bench.gpu_static_cases with 32 images, each compiled for every
architecture as it would be for its first call there. A kernel that several problems share has one
row, with the first one's name. On sm_90 one HGMMA multiplies what takes sm_80 dozens of HMMA, so
its share of the loop is smaller without being worse.
"""

from __future__ import annotations

import importlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bench.gpu_static_cases import CASES, calls_of
from bench.sass import ARCHS, Usage, main_loops, tool
from cnnkern.triton_kernels import MODULES
from cnnkern.triton_kernels.ahead import compile_launch, resources
from cnnkern.triton_kernels.launch import Recorder

IMAGES = 32


def usages(only: str) -> dict[str, dict[int, Usage]]:
    """Compile the kernels of the problems whose name begins with `only`: {name: {arch: usage}}."""
    found: dict[str, dict[int, Usage]] = {}
    for arch in ARCHS:
        seen = set()
        for name, op, arguments in _calls(only):
            module = importlib.import_module(f"cnnkern.triton_kernels.{MODULES[op]}")
            with Recorder(arch) as launches:
                getattr(module, op)(*arguments)
            for one in launches:
                compiled = compile_launch(one, arch)
                if compiled.hash not in seen:
                    seen.add(compiled.hash)
                    title = f"triton {compiled.name.removesuffix('_kernel')}: {name}"
                    found.setdefault(title, {})[arch] = _usage(compiled, arch)
    return found


def _calls(only: str) -> Iterator[tuple[str, str, list]]:
    for problem, layouts, dtypes in CASES:
        if not problem.name.startswith(only):
            continue
        for layout in layouts:
            for dtype in dtypes:
                calls = calls_of(replace(problem, N=IMAGES), layout, dtype, "meta")
                for what, op, arguments in calls:
                    kind = str(dtype).removeprefix("torch.")
                    yield f"{problem.name} {what} {layout} {kind}", op, arguments


def _usage(compiled, arch: int) -> Usage:
    used = resources(compiled, arch)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        loops = main_loops(tool("cuobjdump", "-sass", cubin))
    threads = 32 * compiled.metadata.num_warps
    loop = loops.get(compiled.name, Counter())
    return Usage(arch, used.registers, used.spilled_bytes, used.shared_bytes, threads, loop)
