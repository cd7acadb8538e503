"""The small problems of bench.gpu_static, and the program that runs them under the emulator.

    python -m ptxcpu run --report COUNTS -- python -m bench.gpu_static_cases COUNTS CALLS [ONLY]

For each call of an op it notes which lines of COUNTS it wrote. Sizes are a few blocks' worth: the
ratios are those of large problems but for the borders.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import torch

import cnnkern  # noqa: F401  (registers the ops)
from bench.shapes import Conv, Pool, square
from cnnkern.ops import CUDA_OPS

NCHW, NHWC = "nchw", "nhwc"
F32, F16 = torch.float32, torch.float16
# (problem, layouts, dtypes); each runs what "auto" picks and Triton
CASES = (
    (square("lenet conv1 5x5 1->6 @28", 2, 1, 28, 6, 5), (NCHW,), (F32,)),
    (square("lenet conv2 5x5 6->16 @14", 2, 6, 14, 16, 5, padding=0), (NCHW,), (F32,)),
    (square("3x3 64 @14", 1, 64, 14, 64, 3), (NCHW, NHWC), (F32, F16)),
    (square("3x3s2 64 @14", 1, 64, 14, 64, 3, 2), (NHWC,), (F16,)),
    (square("1x1 64->128 @14", 1, 64, 14, 128, 1), (NCHW, NHWC), (F32, F16)),
    (square("3x3g8 64 @14", 1, 64, 14, 64, 3, groups=8), (NCHW, NHWC), (F32,)),
    (square("dw3x3 32 @28", 1, 32, 28, 32, 3, groups=32), (NCHW, NHWC), (F32, F16)),
    (square("dw3x3s2 32 @28", 1, 32, 28, 32, 3, 2, groups=32), (NCHW, NHWC), (F32,)),
    (square("dw3x3 64 @14", 1, 64, 14, 64, 3, groups=64), (NCHW,), (F32, F16)),
    (square("dw3x3 2 @112", 1, 2, 112, 2, 3, groups=2), (NCHW,), (F32, F16)),
    (square("dw7x7 32 @28", 1, 32, 28, 32, 7, groups=32), (NCHW, NHWC), (F32,)),
    (Pool("max 2x2s2 32 @28", "max", 2, 32, 28, 28, 2, 2), (NCHW, NHWC), (F32, F16)),
    (Pool("max 3x3s2p1 32 @28", "max", 2, 32, 28, 28, 3, 2, 1), (NCHW, NHWC), (F32, F16)),
    (Pool("avg 2x2s2 32 @28", "avg", 2, 32, 28, 28, 2, 2), (NCHW, NHWC), (F32, F16)),
    (Pool("avg 3x3s1p1 32 @28", "avg", 2, 32, 28, 28, 3, 1, 1), (NCHW, NHWC), (F32, F16)),
    (Pool("global avg 128 @7", "adaptive_avg", 2, 128, 7, 7, 1), (NCHW, NHWC), (F32, F16)),
)  # fmt: skip
# Algorithms to force beside, in float32: those that the cases' "auto" never picks.
FORCED = {"3x3 64 @14": ("igemm", "mma")}
MEMORY_FORMAT = {NCHW: torch.contiguous_format, NHWC: torch.channels_last}


def calls_of(problem: Conv | Pool, layout: str, dtype: torch.dtype, device: str = "cuda"):
    """Yield (pass, op name, arguments), by default on the emulated device."""

    def tensor(*size):
        made = torch.randn(size).to(device, dtype)
        return made.to(memory_format=MEMORY_FORMAT[layout]) if len(size) == 4 else made

    p = problem
    x = tensor(p.N, p.C, p.H, p.W)
    if isinstance(p, Conv):
        w, b, g = tensor(p.K, p.C // p.groups, p.R, p.S), tensor(p.K), tensor(p.N, p.K, p.P, p.Q)
        geometry = [[p.stride] * 2, [p.padding] * 4, [p.dilation] * 2, p.groups, "zeros"]
        yield "fprop", "conv2d", [x, w, b, *geometry]
        yield "dgrad", "conv2d_input_grad", [g, w, list(x.shape), *geometry]
        yield "wgrad", "conv2d_weight_grad", [g, x, list(w.shape), *geometry]
        if "lenet" in p.name:
            pool = ["relu", "max", [2, 2], [2, 2], [0, 0], False, True, False]
            yield "fused", "conv2d_act_pool2d", [x, w, b, *geometry, "auto", *pool]
        return
    g, size = tensor(p.N, p.C, p.P, p.Q), list(x.shape)
    if p.kind == "adaptive_avg":
        yield "forward", "adaptive_avg_pool2d", [x, [p.P, p.Q]]
        yield "backward", "adaptive_avg_pool2d_grad", [g, size]
        return
    window = [[p.kernel] * 2, [p.stride] * 2, [p.padding] * 2]
    if p.kind == "avg":
        yield "forward", "avg_pool2d", [x, *window]
        yield "backward", "avg_pool2d_grad", [g, size, *window]
        return
    yield "forward", "max_pool2d", [x, *window]
    yield "forward, training", "max_pool2d", [x, *window, [1, 1], False, "offsets"]
    _, offsets = torch.ops.cnnkern.max_pool2d(x, *window, [1, 1], False, "offsets")
    yield "backward", "max_pool2d_grad", [g, offsets, size, *window]


def implementations(op: str, forced: tuple[str, ...]):
    """Yield (algo, function) for everything that has kernels of an op."""
    ops, has = getattr(torch.ops.cnnkern, op), torch._C._dispatch_has_kernel_for_dispatch_key
    if op in CUDA_OPS:
        yield "auto", ops.default
        for algo in forced:
            yield algo, functools.partial(ops.default, algo=algo)
    if has(f"cnnkern::{op}.triton", "CUDA"):
        yield "triton", ops.triton


def bytes_of(*values) -> int:
    """Count the bytes of every tensor once."""
    flat = [v for value in values for v in (value if isinstance(value, tuple) else (value,))]
    return sum(v.numel() * v.element_size() for v in flat if isinstance(v, torch.Tensor))


def run(counts: Path, calls: Path, only: str) -> None:
    with calls.open("w") as file:
        for problem, layouts, dtypes in CASES:
            if not problem.name.startswith(only):
                continue
            for layout in layouts:
                for dtype in dtypes:
                    for what, op, arguments in calls_of(problem, layout, dtype):
                        forced = FORCED.get(problem.name, ()) if dtype == F32 else ()
                        for algo, call in implementations(op, forced):
                            first = _lines(counts)
                            result = call(*arguments)
                            row = {
                                "name": problem.name, "pass": what, "layout": layout,
                                "dtype": str(dtype).removeprefix("torch."),
                                "algo": algo,
                                "bytes": bytes_of(*arguments, result),
                                "launches": [first, _lines(counts)],
                            }  # fmt: skip
                            file.write(json.dumps(row) + "\n")


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "")
