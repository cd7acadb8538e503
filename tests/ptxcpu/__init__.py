"""ptxcpu: run CUDA kernels (PTX) and Triton kernels on the CPU, with checks. See README.md.

Importing this package is cheap; PyTorch, Triton and compilers are only touched when used.
"""

from .module import LaunchError, Module, build, extract_ptx
from .parse import PtxError
from .report import report
from .toolchain import BuildError

__all__ = ["BuildError", "LaunchError", "Module", "PtxError", "build", "extract_ptx", "report"]
