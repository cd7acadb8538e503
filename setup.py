"""Build cnnkern._C (pybind11 module and CPU ops) and, where CUDA is there, cnnkern/_cuda.so.

Environment: CNNKERN_CUDA=0 builds for the CPU only, =1 fails where CUDA cannot be built (default:
build it if it can be); TORCH_CUDA_ARCH_LIST; MAX_JOBS; CNNKERN_SANITIZE=1 for ASan and UBSan.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import torch
from setuptools import Extension, setup

ROOT = Path(__file__).parent
# PTX of the newest for GPUs to come, and of 8.0 for tests/ptxcpu, which runs kernels on the CPU.
RELEASE_ARCHS = "7.5 8.0+PTX 8.6 8.9 9.0 10.0 12.0+PTX"
SANITIZE = os.environ.get("CNNKERN_SANITIZE", "0") != "0"
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # torch >= 2.10
WARNINGS = ["-Wall", "-Wno-psabi", "-Wno-ignored-attributes", "-Wno-unknown-pragmas"]
# -g0: the CFLAGS that Python was built with ask for debug information, which triples the library.
RELEASE_FLAGS = ["-O3", "-g0"]
# Kernels are unrolled calls of lambdas, and every check of every vector is code: with all checks
# the build takes three times as long. Left out are scopes of stack variables; what ASan reports
# once the memory is touched; alignment, which x86 does not ask for; and vptr, which needs the type
# information of torch and pybind11, which hide theirs. ASan's checks are calls, not code in place.
SANITIZE_FLAGS = ["-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined",
                  "-fno-sanitize-address-use-after-scope",
                  "--param=asan-instrumentation-with-call-threshold=0",
                  "-fno-sanitize=null,object-size,pointer-overflow,alignment,vptr",
                  "-fno-sanitize-recover=undefined"]  # fmt: skip


class Toolkit(NamedTuple):
    home: Path
    version: str
    cudart: Path


class NoCuda(Exception):
    """CUDA cannot be built; the text says why."""


def toolkit_homes() -> list[Path]:
    """List where a toolkit may be: named, on the PATH, from PyPI beside torch, the system's."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if named:
        return [Path(named)]
    on_path = shutil.which("nvcc")
    # In pip's isolated build environment `nvidia` is the environment's, purelib still the user's.
    spec = importlib.util.find_spec("nvidia")
    packages = [*(spec.submodule_search_locations if spec else ()),
                os.path.join(sysconfig.get_path("purelib"), "nvidia")]  # fmt: skip
    homes = [Path(p, f"cu{torch.version.cuda.split('.')[0]}") for p in packages]
    if on_path:
        homes.insert(0, Path(on_path).resolve().parent.parent)
    return [*homes, Path("/usr/local/cuda")]


def find_toolkit() -> Toolkit:
    """Return the first toolkit of the CUDA major version that torch was built with."""
    major = torch.version.cuda.split(".")[0]
    homes, refused = list(dict.fromkeys(toolkit_homes())), []
    for home in homes:
        nvcc = home / "bin" / "nvcc"
        if not nvcc.is_file():
            continue
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
        version = re.search(r"release (\d+\.\d+)", text)
        # Named in full, since the packages on PyPI have no libcudart.so to link to by -lcudart.
        cudart = [home / lib / f"libcudart.so.{major}" for lib in ("lib64", "lib")]
        cudart = [path for path in cudart if path.is_file()]
        if not version or version[1].split(".")[0] != major:
            refused.append(f"{nvcc} is {version[1] if version else 'broken'}")
        elif not (home / "include" / "cuda_runtime.h").is_file() or not cudart:
            refused.append(f"{home} has no cuda_runtime.h or libcudart.so.{major}")
        else:
            return Toolkit(home, version[1], cudart[0])
    found = "; ".join(refused) or f"no bin/nvcc in {', '.join(map(str, homes))}"
    raise NoCuda(f"no toolkit for torch's CUDA {torch.version.cuda}: {found}")


def cuda_toolkit() -> Toolkit | None:
    """Return what to build the CUDA library with, or None for a CPU build; say which, and why."""
    wanted = os.environ.get("CNNKERN_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        raise SystemExit(f"cnnkern: CNNKERN_CUDA must be 0, 1 or auto, got {wanted!r}")
    try:
        if wanted == "0":
            raise NoCuda("CNNKERN_CUDA=0")
        if sys.platform != "linux":
            raise NoCuda(f"the CUDA library is built on Linux, not on {sys.platform}")
        if torch.version.cuda is None:
            raise NoCuda(f"torch {torch.__version__} has no CUDA")
        toolkit = find_toolkit()
    except NoCuda as reason:
        if wanted == "1":
            raise SystemExit(f"cnnkern: CNNKERN_CUDA=1, but {reason}") from None
        print(f"cnnkern: building for the CPU only: {reason}", file=sys.stderr)
        return None
    print(f"cnnkern: building with CUDA {toolkit.version} of {toolkit.home}", file=sys.stderr)
    return toolkit


def cuda_archs(toolkit: Toolkit) -> str:
    """Return the architectures to compile for, as TORCH_CUDA_ARCH_LIST, separated by spaces.

    A build in place or an editable one is for this machine: its GPUs, and 8.0+PTX for the tests.
    """
    named = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if named:
        return " ".join(named.replace(";", " ").split())
    if {"--inplace", "-i", "develop", "editable_wheel"} & set(sys.argv):
        here = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        return " ".join(["8.0+PTX", *(f"{a}.{b}" for a, b in sorted(here - {(8, 0)}))])
    nvcc = toolkit.home / "bin" / "nvcc"
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    archs = {a.removesuffix("+PTX"): a for a in RELEASE_ARCHS.split()}
    built = [archs[a] for a in archs if f"compute_{a.replace('.', '')}" in known]
    return " ".join(built).removesuffix("+PTX") + "+PTX"


def sources(*patterns: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern))


def extension(name: str, files: list[str], cxx: list[str], nvcc: list[str], **kwargs) -> Extension:
    from torch.utils.cpp_extension import include_paths, library_paths

    mode = SANITIZE_FLAGS if SANITIZE else RELEASE_FLAGS
    cxx = ["-std=c++17", "-ffp-contract=fast", "-fno-math-errno", "-fvisibility=hidden",
           "-fvisibility-inlines-hidden", *WARNINGS, STABLE_ABI, *cxx, *mode]  # fmt: skip
    link = kwargs.pop("extra_link_args", [])
    return Extension(
        name,
        files,
        include_dirs=[str(ROOT / "csrc"), *kwargs.pop("include_dirs"), *include_paths()],
        library_dirs=library_paths(),
        # Never torch_python, whose ABI changes with every release.
        libraries=["c10", "torch_cpu", *kwargs.pop("libraries", [])],
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        extra_link_args=[*link, *(f for f in mode if f.startswith("-fsanitize"))],
        language="c++",
        **kwargs,
    )


def cpu_extension(facts: list[str]) -> Extension:
    import pybind11

    return extension(
        "cnnkern._C",
        sources("csrc/module.cpp", "csrc/cpu/*.cpp"),
        facts,
        [],
        include_dirs=[str(ROOT / "csrc/cpu"), pybind11.get_include()],
    )


def cuda_extension(toolkit: Toolkit) -> Extension:
    # torch's flags turn off the operators of __half and __nv_bfloat16; our kernels use them.
    types = ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_CONVERSIONS", "HALF2_OPERATORS")
    nvcc = ["-O3", "-std=c++17", "-lineinfo", "-Xcompiler=-fvisibility=hidden"]
    nvcc += [f"-U__CUDA_NO_{t}__" for t in types]
    return extension(
        "cnnkern._cuda",
        sources("csrc/cuda/*.cpp", "csrc/cuda/*.cu"),
        ["-DUSE_CUDA"],  # the stable ABI's headers declare what needs CUDA only with it
        nvcc,
        include_dirs=[str(ROOT / "csrc/cuda"), str(toolkit.home / "include")],
        libraries=["c10_cuda", "torch_cuda"],
        extra_link_args=[str(toolkit.cudart), "-Wl,--no-undefined"],
    )


def build_ext_command() -> type:
    # Imported this late because it settles on a CUDA_HOME when it is imported.
    from torch.utils.cpp_extension import BuildExtension

    class BuildExt(BuildExtension):
        """torch's, with one fixed build folder per library, so that a second build is quick."""

        def build_extension(self, ext: Extension) -> None:
            # Both libraries write a build.ninja; in one folder the second would undo the first.
            kind = "sanitize" if SANITIZE else "release"
            self.build_temp = str(ROOT / "build" / kind / ext.name)
            super().build_extension(ext)

        def get_ext_filename(self, ext_name: str) -> str:
            # No Python in it: one file for every Python, and nothing to import by name.
            if ext_name.split(".")[-1] == "_cuda":
                return os.path.join(*ext_name.split(".")) + ".so"
            return super().get_ext_filename(ext_name)

    return BuildExt


def main() -> None:
    os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))
    toolkit = cuda_toolkit()
    facts = [f'-DCNNKERN_BUILT_WITH_TORCH="{torch.__version__}"']
    extensions = []
    if toolkit:
        archs = cuda_archs(toolkit)
        os.environ.update(CUDA_HOME=str(toolkit.home), TORCH_CUDA_ARCH_LIST=archs)
        facts += [f'-DCNNKERN_CUDA_VERSION="{toolkit.version}"', f'-DCNNKERN_CUDA_ARCHS="{archs}"']
        extensions.append(cuda_extension(toolkit))
    extensions.insert(0, cpu_extension(facts))
    setup(ext_modules=extensions, cmdclass={"build_ext": build_ext_command()})


if __name__ == "__main__":
    main()
