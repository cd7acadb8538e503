"""What Python does on the emulated device, recorded where its stream is capturing a CUDA graph.

Kernels of Triton and operators of PyTorch run as Python functions here; in a graph they are host
nodes. None may hold a tensor: a graph keeps addresses, and its memory is PyTorch's affair.
"""

import ctypes
import os

_HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_recorded = []  # graphs refer to these for as long as they live, which nobody tells


def is_capturing():
    """Tell whether work of the current stream is being recorded."""
    if not os.environ.get("PTXCPU_ACTIVE"):
        return False
    import torch

    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def record(work):
    """Add a function to the graph that the current stream captures."""
    import torch

    runtime = ctypes.CDLL(None)

    def node(_data):
        try:
            work()
        except Exception as error:  # whatever the operator raises; C cannot be raised through
            runtime.ptxcpu_report_failure(str(error).encode())

    callback = _HOST_FUNCTION(node)
    _recorded.append(callback)
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    if runtime.cudaLaunchHostFunc(stream, callback, None):
        refuse()


def refuse():
    """Raise what a call raises that waits for a capturing stream."""
    import torch

    torch.cuda.current_stream().synchronize()
    raise AssertionError("a capturing stream cannot be waited for")
