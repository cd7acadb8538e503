"""Build cnnkern._C: the pybind11 module and, in the same library, the CPU ops on torch's stable ABI."""

from pathlib import Path

import torch
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).parent
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # torch >= 2.10
CXX_FLAGS = ["-O3", "-std=c++17", "-ffp-contract=fast", "-fno-math-errno", "-fvisibility=hidden",
             "-Wall", "-Wno-psabi", "-Wno-ignored-attributes", "-Wno-unknown-pragmas", STABLE_ABI]  # fmt: skip


def cpu_extension() -> CppExtension:
    return CppExtension(
        "cnnkern._C",
        sorted(str(p.relative_to(ROOT)) for p in [ROOT / "csrc/module.cpp", *ROOT.glob("csrc/cpu/*.cpp")]),
        include_dirs=[str(ROOT / "csrc"), str(ROOT / "csrc/cpu")],
        extra_compile_args=[*CXX_FLAGS, f'-DCNNKERN_BUILT_WITH_TORCH="{torch.__version__}"'],
    )


setup(ext_modules=[cpu_extension()], cmdclass={"build_ext": BuildExtension})
