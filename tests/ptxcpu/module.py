"""Loads translated PTX modules and launches their kernels on host memory."""

import ctypes
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from . import toolchain
from .parse import PtxError, blank_comments
from .ptx_types import c_identifier
from .translate import Translator


class LaunchError(RuntimeError):
    """A kernel failed a check, deadlocked, or could not be launched."""


class Range(ctypes.Structure):
    _fields_ = [("base", ctypes.c_uint64), ("size", ctypes.c_uint64)]


class LaunchConfig(ctypes.Structure):
    """Mirrors LaunchConfig in runtime/scheduler.cpp."""

    _fields_ = [
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_shared", ctypes.c_uint32),
        ("order", ctypes.c_int32),
        ("check", ctypes.c_int32),
        ("workers", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
        ("allocations", ctypes.POINTER(Range)),
        ("allocation_count", ctypes.c_uint64),
        ("profile", ctypes.c_int32),
    ]


def dim3(extent):
    """4 or (4, 2) -> three unsigned ints"""
    extent = (extent,) if isinstance(extent, int) else tuple(extent)
    return (ctypes.c_uint32 * 3)(*(*extent, 1, 1, 1)[:3])


def default_workers():
    return int(os.environ.get("PTXCPU_THREADS") or min(2, os.cpu_count() or 1))


def ptxas_usage(ptx, architecture):
    """{kernel: (registers, spill bytes)} from ptxas; empty if there is none or it rejects it."""
    ptxas = toolchain.find_tool("ptxas")
    if not ptxas:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [ptxas, "-v", f"-arch={architecture}", str(source), "-o", os.devnull]
        output = subprocess.run(
            command, capture_output=True, text=True, env=toolchain.clean_environment()
        ).stderr
    usage = {}
    for section in re.split(r"(?=Compiling entry function)", output):
        name = re.match(r"Compiling entry function '([^']+)'", section)
        registers = re.search(r"Used (\d+) registers", section)
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", section)
        if name and registers:
            usage[name[1]] = (int(registers[1]), int(spills[1]) + int(spills[2]) if spills else 0)
    return usage


def register_usage(ptx):
    """{kernel: {"sm_80": (registers, spill bytes), "sm_90": ...}}"""
    architectures = ("sm_80", "sm_90")
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda a: ptxas_usage(ptx, a), architectures)
    usage = {}
    for architecture, kernels in zip(architectures, results, strict=True):
        for name, numbers in kernels.items():
            usage.setdefault(name, {})[architecture] = numbers
    return usage


def optimisation(source):
    """Keeps the time and memory bounded that large, unrolled kernels take to compile.

    Tests launch a kernel a few times on little data: compiling it is most of what it costs.
    """
    return "-O1" if len(source) < 3_000_000 else "-O0"


def build(ptx, profile=False, base=None):
    """Translates and compiles PTX, or finds it in the cache. Returns (library path, description).

    base: a library that holds the module's variables; they are not defined again then.
    """
    # Headers are a third of the time: those of C++14 have half the length.
    flags = ["-std=c++14", "-g0", "-U_FORTIFY_SOURCE"]
    if profile:
        flags.append("-DPTXCPU_PROFILE")
    key = toolchain.digest(toolchain.translator_version(), ptx, profile, base or "")
    library, description = (
        toolchain.cache_dir() / f"module-{key}{suffix}" for suffix in (".so", ".json")
    )
    if library.exists() and description.exists():
        return library, json.loads(description.read_text())
    with toolchain.locked(library.stem):
        if not (library.exists() and description.exists()):
            translator = Translator(
                ptx, register_usage(ptx) if profile else None, external_variables=base is not None
            )
            source = library.with_suffix(".cpp")
            text = translator.cpp()
            source.write_text(text)
            facts = {
                "kernels": {n: asdict(k) for n, k in translator.kernels.items()},
                "globals": translator.globals,
                "unsupported": translator.unsupported,
            }
            description.write_text(json.dumps(facts))
            libraries = [base] if base else []
            flags.insert(0, optimisation(text))
            for folder in toolchain.precompiled_headers(*flags), toolchain.PACKAGE / "runtime":
                flags += ["-I", folder]
            toolchain.compile_library(
                library, [source], [*flags, *libraries, toolchain.runtime_library()]
            )
    return library, json.loads(description.read_text())


def kernel_spans(ptx):
    """{kernel: (start, end)}: where each .entry stands in PTX without comments."""
    spans = {}
    for head in re.finditer(
        r"^(?:\.(?:visible|weak|extern)\s+)*\.entry\s+([\w$]+)", ptx, flags=re.M
    ):
        depth = 0
        for brace in re.compile(r"[{}]").finditer(ptx, head.end()):
            depth += 1 if brace.group() == "{" else -1
            if depth == 0:
                spans[head[1]] = (head.start(), brace.end())
                break
    return spans


def only_kernel(ptx, kernel=None):
    """The module with one kernel alone (or none); the others become blank lines."""
    ptx = blank_comments(ptx)
    pieces, position = [], 0
    for name, (start, end) in kernel_spans(ptx).items():
        if name != kernel:
            pieces += [ptx[position:start], "\n" * ptx.count("\n", start, end)]
            position = end
    return "".join(pieces) + ptx[position:]


def stored_ptx(path):
    """The PTX inside a fat binary, extracted once into the cache. Returns the path of the text."""
    text = toolchain.cache_dir() / f"ptx-{toolchain.digest(Path(path).read_bytes())}.ptx"
    if not text.exists():
        temporary = text.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(extract_ptx(path))
        os.replace(temporary, text)
    return text


def extract_ptx(path):
    """The PTX in a fat binary (or host object), for the highest target up to sm_80."""
    cuobjdump = toolchain.find_tool("cuobjdump")
    if not cuobjdump:
        raise toolchain.BuildError(
            "cuobjdump not found: set CUOBJDUMP, or install the CUDA toolkit's or Triton's copy"
        )
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [cuobjdump, "-xptx", "all", str(Path(path).resolve())],
            cwd=folder,
            capture_output=True,
            env=toolchain.clean_environment(),
        )
        texts = [p.read_text() for p in sorted(Path(folder).glob("*.ptx"))]
    usable = {}
    for text in texts:
        target = re.search(r"^\.target\s+sm_(\d+)", text, flags=re.M)
        if target and int(target[1]) <= 80:
            usable[int(target[1])] = text
    if not usable:
        found = "PTX for newer targets only" if texts else "no PTX"
        raise PtxError(
            f"{found}: compile with -gencode arch=compute_80,code=compute_80 "
            "(TORCH_CUDA_ARCH_LIST=8.0+PTX)"
        )
    return usable[max(usable)]


class Module:
    """A PTX module ready to run. Kernels take tensors, arrays, numbers, None and raw bytes."""

    def __init__(self, ptx, profile=False, verbose=False):
        self.profile = profile
        self.path, facts = build(ptx, profile)
        self.kernels, self.globals, self.unsupported = (
            facts["kernels"],
            facts["globals"],
            facts["unsupported"],
        )
        self.order, self.seed, self.check, self.workers = 0, 1, 1, default_workers()
        if verbose and self.unsupported:
            print(
                "ptxcpu: unsupported PTX, an error only if it is executed:\n  "
                + "\n  ".join(self.unsupported[:20]),
                file=sys.stderr,
            )
        self._runtime = ctypes.CDLL(str(toolchain.runtime_library()))
        self._runtime.ptxcpu_error.restype = self._runtime.ptxcpu_profile.restype = ctypes.c_char_p
        self._library = ctypes.CDLL(str(self.path))

    def options(self, order=0, seed=1, check=1, workers=None):
        """order: 0 ascending, 1 last-in first-out, 2 random by seed. check: 0, 1, 2 (README)."""
        self.order, self.seed, self.check = order, seed, check
        self.workers = workers or default_workers()

    def global_address(self, name):
        """Host address of a __device__ or __constant__ variable."""
        return ctypes.addressof(ctypes.c_char.in_dll(self._library, self.globals[name][0]))

    def _pack(self, kernel, args):
        params = kernel["params"]
        args = list(args) + [0] * (len(params) - len(args))  # Triton appends scratch pointers
        if len(args) > len(params):
            raise LaunchError(f"{kernel['name']} takes {len(params)} arguments, not {len(args)}")
        buffer, ranges = bytearray(max(16, kernel["param_bytes"])), []
        for (type_, offset, size), value in zip(params, args, strict=True):
            if isinstance(value, (bytes, bytearray)):
                data = bytes(value)
            elif hasattr(value, "data_ptr"):
                storage = value.untyped_storage()
                ranges.append((storage.data_ptr(), storage.nbytes()))
                data = struct.pack("<Q", value.data_ptr())
            elif hasattr(value, "__array_interface__"):
                address = value.__array_interface__["data"][0]
                ranges.append((address, value.nbytes))
                data = struct.pack("<Q", address)
            elif type_ == "f64" or (isinstance(value, float) and size == 8):
                data = struct.pack("<d", value)
            elif type_ == "f32" or isinstance(value, float):
                data = struct.pack("<f", value)
            else:
                data = (int(value or 0) & ((1 << (8 * size)) - 1)).to_bytes(size, "little")
            buffer[offset : offset + len(data)] = data
        ranges += [(self.global_address(name), size) for name, (_, size) in self.globals.items()]
        return buffer, sorted({r for r in ranges if r[1]})

    def prepare(self, kernel, grid, block, args, shared=0):
        """Return a function that launches; it keeps the addresses of arrays, not the arrays."""
        info = self.kernels[kernel]
        buffer, ranges = self._pack(info, args)
        config = LaunchConfig(
            dim3(grid),
            dim3(block),
            shared,
            self.order,
            self.check,
            self.workers,
            self.seed,
            (Range * max(1, len(ranges)))(*ranges),
            len(ranges),
            int(self.profile),
        )
        description = ctypes.c_char.in_dll(self._library, "info_" + c_identifier(kernel))
        parameters = (ctypes.c_char * len(buffer)).from_buffer(buffer)

        def run():
            run = self._runtime.ptxcpu_launch
            if run(ctypes.byref(description), ctypes.byref(config), parameters):
                raise LaunchError(f"ptxcpu: {kernel}: {self._runtime.ptxcpu_error().decode()}")
            return json.loads(self._runtime.ptxcpu_profile().decode()) if self.profile else None

        return run

    def launch(self, kernel, grid, block, args, shared=0):
        """Runs a kernel or raises LaunchError; returns the counts of a profiling module."""
        return self.prepare(kernel, grid, block, args, shared)()
