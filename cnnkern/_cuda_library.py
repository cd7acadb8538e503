"""Load the CUDA kernels, cnnkern/_cuda.so, where torch has CUDA, and tell how that went.

It is a library of its own because it links to torch's CUDA libraries: without it the same package
works beside a torch that has none. It loads without a GPU.
"""

import ctypes
from pathlib import Path

import torch

from cnnkern import _C

PATH = Path(__file__).with_name("_cuda.so")

_library: ctypes.CDLL | None = None


def _load() -> str:
    global _library
    info = _C.build_info()
    built_with, torch_has = info["cuda_version"], torch.version.cuda
    if not built_with:
        return "not built: this cnnkern was built for the CPU only"
    if torch_has is None:
        return f"not loaded: torch {torch.__version__} has no CUDA"
    if torch_has.split(".")[0] != built_with.split(".")[0]:
        return f"not loaded: built with CUDA {built_with}, but torch has CUDA {torch_has}"
    try:
        # Registers its ops as it is loaded. torch.ops.load_library would hide what was missing.
        _library = ctypes.CDLL(str(PATH))
    except OSError as error:
        return f"not loaded: {error}"
    return f"loaded: CUDA {built_with}, built for {' '.join(info['cuda_archs'])}"


_status = _load()


def status() -> str:
    """Return one line: "loaded: ...", "not loaded: ..." or "not built: ..."; the rest says why."""
    return _status


def kernel_arch(device: int = 0) -> str:
    """Return the architecture that this GPU's kernels were compiled for, such as "9.0".

    Runs one kernel. It differs from the GPU's own where that one was not built for.

    Raises:
        RuntimeError: the library is not loaded, or CUDA cannot use the device.
    """
    if _library is None:
        raise RuntimeError(f"cnnkern's CUDA library is {_status}")
    _library.cnnkern_cuda_probe.restype = ctypes.c_char_p
    arch = ctypes.c_int()
    error = _library.cnnkern_cuda_probe(device, ctypes.byref(arch))
    if error:
        raise RuntimeError(f"cnnkern: no kernel runs on device {device}: {error.decode()}")
    return f"{arch.value // 100}.{arch.value // 10 % 10}"
