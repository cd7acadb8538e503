"""One build serves every torch: run the ops, forward and backward, and compare with torch's own.

A plain script, since the torch that it is for is another than the one the tests run in:
    PYTHONPATH=. .venv-abi/bin/python tests/stable_abi_smoke.py --another-torch
With --another-torch it is an error to run with the very torch that the library was built against.
"""

import sys

import torch
import torch.nn.functional as TORCH

import cnnkern
from cnnkern import _C, _cuda_library

OURS = cnnkern.functional
# Each takes the namespace of functions, ours or torch's, and the tensors.
CONVS = {
    "conv2d": lambda f, x, w, b: f.conv2d(x, w, b, stride=2, padding=1),
    "conv2d, depthwise": lambda f, x, w, b: f.conv2d(x, w[:, :1], b, groups=4, dilation=2),
}
POOLS = {
    "max_pool2d": lambda f, x: f.max_pool2d(x, 3, 2, 1),
    "avg_pool2d": lambda f, x: f.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "adaptive_avg_pool2d": lambda f, x: f.adaptive_avg_pool2d(x, (3, 2)),
    "adaptive_max_pool2d": lambda f, x: f.adaptive_max_pool2d(x, (3, 2)),
}


def output_and_gradients(call, functions, tensors):
    """Run forward, and backward from a weighted sum of the output."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    output = call(functions, *leaves)
    weights = torch.linspace(-1, 1, output.numel()).to(output.dtype).reshape(output.shape)
    return output.detach(), *torch.autograd.grad((output * weights).sum(), leaves)


def same_as_torch(call, tensors) -> bool:
    ours = output_and_gradients(call, OURS, tensors)
    torchs = output_and_gradients(call, TORCH, tensors)
    return all(torch.allclose(a, e) for a, e in zip(ours, torchs, strict=True))


def refuses_a_bad_argument() -> bool:
    """C++ exceptions, too, have to cross from this library into that torch."""
    try:
        OURS.conv2d(torch.zeros(1, 3, 5, 5), torch.zeros(2, 3, 3, 3), stride=0)
    except RuntimeError as error:
        return str(error).startswith("cnnkern::conv2d: stride must be at least 1")
    return False


def uses_large_memory_again() -> bool:
    """From torch 2.11 on, which lets a library bring the memory of a tensor."""
    y = OURS.avg_pool2d(torch.ones(2, 64, 128, 128), 1)
    right, size = bool((y == 1).all()), y.nbytes
    del y
    old = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11)
    kept = _C.cpu_cached_bytes()
    return right and kept == (0 if old or sys.platform != "linux" else size)


def main() -> None:
    built, running = _C.build_info()["torch"], torch.__version__
    if "--another-torch" in sys.argv and built == running:
        sys.exit(f"stable ABI: built against torch {built} and run in the same one: proves nothing")
    torch.manual_seed(0)
    failed = []
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 4, 11, 9, dtype=torch.float64).to(memory_format=layout)
        w, b = torch.randn(4, 4, 3, 3, dtype=x.dtype), torch.randn(4, dtype=x.dtype)
        failed += [name for name, call in CONVS.items() if not same_as_torch(call, (x, w, b))]
        failed += [name for name, call in POOLS.items() if not same_as_torch(call, (x,))]
    if not refuses_a_bad_argument():
        failed.append("a bad argument")
    if not uses_large_memory_again():
        failed.append("large memory")
    print(f"stable ABI: built against torch {built}, running in {running}")
    print(f"stable ABI: the CUDA library is {_cuda_library.status()}")
    if failed:
        sys.exit(f"stable ABI: wrong: {'; '.join(failed)}")
    print(f"stable ABI: {2 * len(CONVS | POOLS) + 2} checks passed")


if __name__ == "__main__":
    main()
