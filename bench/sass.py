"""What ptxas makes of a library's PTX: registers, spills, shared memory, and the main loop.

The main loop is the innermost loop with the most multiply-adds; its share of them is an upper bound
of the part of the peak that the kernel can reach.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from ptxcpu import toolchain

ARCHS = (80, 90)
MATH = ("FFMA", "FADD", "FMUL", "DFMA", "HFMA2", "HMMA", "DMMA", "IMMA", "HGMMA", "FMNMX")
TENSOR = ("HMMA", "DMMA", "IMMA", "HGMMA")
# Of one SM: registers, warps, blocks, bytes of shared memory; a block takes 1 KiB beside its own.
REGISTERS, WARPS, BLOCKS = 65536, 64, 32
SHARED = {80: 164 * 1024, 90: 228 * 1024}


@dataclass
class Usage:
    """One kernel, compiled for one architecture."""

    arch: int
    registers: int
    spill_bytes: int
    shared: int  # static, in bytes
    threads: int | None  # of a block, as the kernel's launch bounds promise
    loop: Counter  # instructions of the main loop by opcode
    async_bytes: tuple[int, ...] = ()  # of cp.async, the sizes that occur

    def loop_share(self, opcodes) -> float | None:
        total = self.loop.total()
        return sum(self.loop[o] for o in opcodes) / total if total else None


def occupancy(arch: int, threads: int, registers: int, shared: int) -> float:
    """Return the share of an SM's warps that blocks of this size can fill."""
    warps, of_warp = -(-threads // 32), -(-registers // 8) * 8 * 32
    # Each of the SM's four parts has a quarter of the registers.
    blocks = min(BLOCKS, WARPS // warps, REGISTERS // 4 // of_warp * 4 // warps)
    if shared:
        blocks = min(blocks, SHARED[arch] // (-(-shared // 128) * 128 + 1024))
    return blocks * warps / WARPS


def tool(name: str, *arguments, cwd=None) -> str:
    path = toolchain.find_tool(name)
    if not path:
        raise SystemExit(f"gpu_static: no {name} in the CUDA toolkit, on the PATH or in triton")
    done = subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        raise SystemExit(f"gpu_static: {name}: {done.stderr.strip()}")
    return done.stdout + done.stderr


def usage_of_library(library: Path, kernel: str = "") -> dict[str, dict[int, Usage]]:
    """Compile every kernel's sm_80 PTX for each of ARCHS: {mangled name: {arch: usage}}.

    With part of a kernel's name, only the translation units that have such a kernel.
    """
    found: dict[str, dict[int, Usage]] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        tool("cuobjdump", "-xptx", "all", library.resolve(), cwd=folder)
        texts = {path: path.read_text() for path in sorted(Path(folder).glob("*.ptx"))}
        entry = re.compile(rf"\.entry \w*{kernel}")
        sources = [p for p, text in texts.items() if ".target sm_80" in text and entry.search(text)]
        jobs = [(source, arch) for source in sources for arch in ARCHS]
        for kernels in pool.map(lambda job: _usage(*job), jobs):
            for name, usage in kernels.items():
                found.setdefault(name, {})[usage.arch] = usage
    return found


def _usage(source: Path, arch: int) -> dict[str, Usage]:
    cubin, ptx = source.with_suffix(f".{arch}.cubin"), source.read_text()
    report = tool("ptxas", "-v", "-O3", f"-arch=sm_{arch}", source, "-o", cubin)
    sass = tool("cuobjdump", "-sass", cubin)
    loops, copies = main_loops(sass), async_copies(sass)
    kernels = {}
    for section in re.split(r"(?=Compiling entry function)", report)[1:]:
        name = re.match(r"Compiling entry function '([^']+)'", section)[1]
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", section)
        shared = re.search(r"(\d+) bytes smem", section)
        bounds = re.search(rf"\.entry {re.escape(name)}\(.*?\)\s*\.maxntid (\d+)(?:, (\d+))?", ptx,
                           re.DOTALL)  # fmt: skip
        kernels[name] = Usage(
            arch,
            int(re.search(r"Used (\d+) registers", section)[1]),
            sum(map(int, spills.groups())) if spills else 0,
            int(shared[1]) if shared else 0,
            int(bounds[1]) * int(bounds[2] or 1) if bounds else None,
            loops.get(name, Counter()),
            copies.get(name, ()),
        )
    return kernels


def main_loops(sass: str) -> dict[str, Counter]:
    """Find each function's main loop in a disassembly: its instructions by opcode."""
    loops = {}
    for section in sass.split("Function : ")[1:]:
        name = section.split(maxsplit=1)[0]
        code = [
            (int(address, 16), text)
            for address, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;/]+);", section)
        ]
        loops[name] = _main_loop(code)
    return loops


def async_copies(sass: str) -> dict[str, tuple[int, ...]]:
    """Find how many bytes each function's asynchronous copies move a thread."""
    copies = {}
    for section in sass.split("Function : ")[1:]:
        found = re.findall(r"\bLDGSTS(\S*)", section)
        bits = {next((p for p in name.split(".") if p in ("64", "128")), "32") for name in found}
        copies[section.split(maxsplit=1)[0]] = tuple(sorted(int(b) // 8 for b in bits))
    return copies


def _main_loop(code: list[tuple[int, str]]) -> Counter:
    spans = []
    for address, text in code:
        target = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        # A branch to itself only fills the end of the code.
        if target and int(target[1], 16) < address:
            spans.append((int(target[1], 16), address))
    best: Counter = Counter()
    for start, end in spans:
        if any((start, end) != (a, b) and start <= a and b <= end for a, b in spans):
            continue  # not innermost
        opcodes = Counter(_opcode(text) for address, text in code if start <= address <= end)
        if sum(opcodes[o] for o in MATH) > sum(best[o] for o in MATH):
            best = opcodes
    return best


def _opcode(text: str) -> str:
    words = text.split()
    return words[1 if words[0].startswith("@") else 0].split(".")[0]
