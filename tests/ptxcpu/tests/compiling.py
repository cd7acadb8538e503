"""nvcc's PTX of the kernels in this folder, kept in the cache."""

import subprocess
from pathlib import Path

import pytest
from ptxcpu import toolchain

KERNELS = Path(__file__).resolve().parent / "kernels"
HOME = Path(__file__).resolve().parents[2]  # what contains ptxcpu


def compile_ptx(source, architecture="compute_80", defines=()):
    """Compile a file of kernels/ to PTX, once."""
    nvcc = toolchain.find_tool("nvcc")
    if nvcc is None:
        pytest.skip("nvcc not found")
    path = KERNELS / source
    key = toolchain.digest(path.read_bytes(), architecture, *defines)
    output = toolchain.cache_dir() / f"test-{path.stem}-{key}.ptx"
    if not output.exists():
        flags = ["-O3", "-std=c++17", "-lineinfo", f"-arch={architecture}", "-ptx"]
        flags += [f"-D{d}" for d in defines]
        subprocess.run([nvcc, *flags, str(path), "-o", str(output)], check=True)
    return output.read_text()
