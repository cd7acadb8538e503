"""Finds compilers and CUDA tools, and builds shared libraries once, in the cache folder."""

import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
TRANSLATOR = ("arithmetic", "collectives", "instructions", "memory", "module", "operands", "parse",
              "ptx_types", "translate")  # fmt: skip
RUNTIME_SOURCES = ("scheduler.cpp", "warp.cpp", "matrix.cpp", "profile.cpp")
COMMON_FLAGS = [
    "-std=c++17",
    "-fPIC",
    "-march=native",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-w",
]
# A library of variables refers to nothing, and must still bring the runtime.
LIBRARY_FLAGS = ["-shared", "-Wl,--no-as-needed"]


class BuildError(RuntimeError):
    """A compiler or tool is missing or failed."""


def cache_dir():
    path = Path(os.environ.get("PTXCPU_CACHE") or Path.home() / ".cache" / "ptxcpu")
    path.mkdir(parents=True, exist_ok=True)
    return path


def torch_cuda_major():
    """The CUDA major version that torch was built with, without importing torch; None without."""
    folder = site_folder("torch")
    text = (folder / "version.py").read_text() if folder else ""
    version = re.search(r"^cuda\b[^=]*=\s*'(\d+)", text, flags=re.M)
    return version[1] if version else None


def toolkit_major(home):
    """The major version of a folder's nvcc; None if it has no working nvcc or no headers."""
    nvcc = home / "bin" / "nvcc"
    if not nvcc.is_file() or not (home / "include" / "cuda_runtime.h").is_file():
        return None
    text = subprocess.run(
        [nvcc, "--version"], capture_output=True, text=True, env=clean_environment()
    ).stdout
    release = re.search(r"release (\d+)\.", text)
    return release[1] if release else None


@cache
def cuda_home():
    """The CUDA toolkit: named, on the PATH, PyPI's beside torch, the system's; or None.

    It is of the major version that torch was built with, whose runtime is the one to imitate.
    """
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if named:
        return Path(named)
    on_path, packages = shutil.which("nvcc"), site_folder("nvidia")
    homes = [Path(on_path).resolve().parent.parent] if on_path else []
    homes += sorted(packages.glob("cu*")) if packages else []
    homes.append(Path("/usr/local/cuda"))
    wanted = torch_cuda_major()
    for home in homes:
        found = toolkit_major(home)
        if found and wanted in (None, found):
            return home
    return None


def site_folder(module):
    """Where an installed package lives, without importing it; None if it is not installed."""
    spec = importlib.util.find_spec(module)
    return (
        Path(next(iter(spec.submodule_search_locations)))
        if spec and spec.submodule_search_locations
        else None
    )


def find_tool(name):
    """A CUDA utility: $NAME, the CUDA toolkit's, on PATH, or Triton's copy; None without any."""
    candidates = [os.environ.get(name.upper()), shutil.which(name)]
    if cuda_home():
        candidates.insert(1, cuda_home() / "bin" / name)
    triton = site_folder("triton")
    if triton:
        candidates.append(triton / "backends" / "nvidia" / "bin" / name)
    return next((str(c) for c in candidates if c and os.access(c, os.X_OK)), None)


def cuda_include():
    """The folder with cuda_runtime.h: the toolkit's or that of NVIDIA's packages beside torch."""
    folders = [cuda_home() / "include"] if cuda_home() else []
    wheels = site_folder("nvidia")
    if wheels:
        folders += sorted(wheels.glob("*/include"))
    for folder in folders:
        if (folder / "cuda_runtime.h").exists():
            return folder
    raise BuildError("cuda_runtime.h not found: set CUDA_HOME or put nvcc on PATH")


def digest(*parts):
    h = hashlib.sha1()
    for part in parts:
        h.update(part if isinstance(part, bytes) else str(part).encode())
        h.update(b"\0")
    return h.hexdigest()[:20]


@cache
def version(*patterns):
    """Changes whenever the compiler, the kind of CPU or any file matching the patterns does."""
    cpu = ""
    with contextlib.suppress(OSError):
        cpu = next(
            (x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("flags")), ""
        )
    files = [f for pattern in patterns for f in sorted(PACKAGE.glob(pattern))]
    return digest(compiler(), cpu, *(f.read_bytes() for f in files))


def runtime_version():
    return version("runtime/*")


def translator_version():
    return version("runtime/*", *(f"{name}.py" for name in TRANSLATOR))


def fake_runtime_version():
    return version("runtime/device.h", "runtime/scalar.h", "fakecudart/*")


def compiler():
    return os.environ.get("CXX", "g++")


def die_with_parent():
    """Ends this process, and a compiler it runs, when the program that started it ends (Linux)."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


def clean_environment():
    """The environment for compilers, without the fake runtime preloaded."""
    environment = dict(os.environ)
    environment.pop("LD_PRELOAD", None)
    return environment


@contextlib.contextmanager
def locked(name):
    """Serialises builds of one target between processes."""
    with open(cache_dir() / (name + ".lock"), "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def compile_library(output, sources, flags):
    return compile_file(output, sources, [*LIBRARY_FLAGS, *flags])


def compile_file(output, sources, flags):
    """Compiles to a temporary name and renames, so that a reader never sees half a file."""
    temporary = output.with_suffix(f".{os.getpid()}.tmp")
    command = [
        compiler(),
        *COMMON_FLAGS,
        *map(str, sources),
        *map(str, flags),
        "-o",
        str(temporary),
    ]
    # a session of its own, so that an interrupt can end the compiler's children too
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=clean_environment(),
        start_new_session=True,
    ) as process:
        try:
            messages, _ = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise BuildError(f"{' '.join(command)}\n{messages[:4000]}")
    os.replace(temporary, output)
    return output


@cache
def runtime_library():
    """Builds the runtime on first use; returns its path."""
    output = cache_dir() / f"runtime-{runtime_version()}.so"
    if not output.exists():
        with locked(output.stem):
            if not output.exists():
                sources = [PACKAGE / "runtime" / name for name in RUNTIME_SOURCES]
                compile_library(output, sources, ["-O3", "-pthread"])
    return output


@cache
def precompiled_headers(*flags):
    """Compiles device.h for kernels of these flags on first use; returns the folder to include.

    Where a compiler can't use it, it goes on to the header itself.
    """
    folder = cache_dir() / f"headers-{digest(runtime_version(), *flags)}"
    output = folder / "device.h.gch"
    if not output.exists():
        with locked(folder.name):
            folder.mkdir(exist_ok=True)
            if not output.exists():
                compile_file(output, [PACKAGE / "runtime" / "device.h"], flags)
    return folder
