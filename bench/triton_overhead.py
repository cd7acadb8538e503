"""Count the Python time of a call of a Triton op: its kernels are not launched.

Usage: python bench/triton_overhead.py

Prints microseconds a call of what runs below the dispatcher: finding the plan of the call, making
the results, and handing over to Triton's launcher. It needs neither a GPU nor compiles anything.
"""

from __future__ import annotations

import importlib
import time

import torch
from triton.runtime.jit import JITFunction

from cnnkern.triton_kernels import MODULES
from cnnkern.triton_kernels.plan import planned

CALLS = 20_000
ONE, NONE, TWO = [1, 1], [0, 0], [2, 2]
CONV = [ONE, [1, 1, 1, 1], ONE, 1, "zeros", "auto"]
X, Y, W, B = (torch.empty(size) for size in ((8, 64, 28, 28), (8, 64, 14, 14), (64, 64, 3, 3), 64))
OPS = {
    "conv2d": [X, W, B, *CONV],
    "conv2d_input_grad": [X, W, list(X.shape), *CONV],
    "conv2d_weight_grad": [X, X.clone(), list(W.shape), *CONV],
    "conv2d_bias_grad": [X],
    "max_pool2d": [X, TWO, TWO, NONE, ONE, False, "offsets"],
    "avg_pool2d": [X, TWO, TWO, NONE, False, True, None],
    "avg_pool2d_grad": [Y, list(X.shape), TWO, TWO, NONE, False, True, None],
    "conv2d_act_pool2d": [X, W, B, *CONV, "relu", "max", TWO, TWO, NONE, False, True, True],
}


class Compiled:
    """A kernel whose launch does nothing."""

    def __getitem__(self, grid):
        return lambda *args: None


def microseconds(function, arguments) -> float:
    """Return the best of five averages."""
    function(*arguments)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(CALLS // 5):
            function(*arguments)
        best = min(best, time.perf_counter() - start)
    return best / (CALLS // 5) * 1e6


def main() -> None:
    JITFunction.__getitem__ = lambda self, grid: lambda *args, **meta: Compiled()
    print(f"{'op':20} {'first':>8} {'later':>8}  us a call")
    for name, arguments in OPS.items():
        module = importlib.import_module(f"cnnkern.triton_kernels.{MODULES[name]}")
        op = getattr(module, name)
        first, later = (microseconds(f, arguments) for f in (op, planned(op)))
        print(f"{name:20} {first:8.1f} {later:8.1f}")


if __name__ == "__main__":
    main()
