"""Time every algorithm on a GPU against cuDNN and torch.compile: ``python -m bench.cudnn``.

All problems of bench/shapes.py, each dtype, layout and pass; a row is one algorithm of ours in one
layout. Single calls are timed by CUDA events, in turn, with a flushed L2 cache; the first call of
each candidate and the memory it takes are noted apart. cuDNN runs with its search (benchmark=True)
and with its heuristics alone.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench import conv2d, pool2d
from bench.results import DTYPES, Report, parser
from bench.shapes import CONVS, POOLS, Conv, Pool
from bench.timing import (
    TOLERANCE,
    WrongOutputError,
    alternate_events,
    check_same,
    first_call,
    matmul_peak,
)
from cnnkern import _C
from cnnkern.ops import TRITON_ALGOS

FORMATS = conv2d.FORMATS
# A problem that takes no time anywhere, to see that the benchmark itself works.
TINY = (
    Conv("tiny 3x3 8->8 @6", 1, 8, 6, 6, 8, 3, 3, padding=1),
    Pool("tiny max 2x2 8 @6", "max", 1, 8, 6, 6, 2, 2),
)
COLUMNS = {
    "name": "name",
    "pass": "pass",
    "layout": "layout",
    "dtype": "dtype",
    "algo": "algo",
    "ours_us": "ours us",
    "spread": "10-90 %",
    "search_nchw_us": "cudnn nchw",
    "search_nhwc_us": "cudnn nhwc",
    "heuristics_us": "heuristics",
    "compile_us": "compile",
    "percent": "% of roofline",
    "first_ms": "first ms",
    "cudnn_first_ms": "cudnn first",
    "memory_mb": "MB",
    "cudnn_memory_mb": "cudnn MB",
    "ratio_same": "same layout",
    "ratio_best": "best cudnn",
}
Call = Callable[[], Tensor]


def under_cudnn(call: Call, enabled: bool, search: bool) -> Call:
    """Run the call with cuDNN's search on or off; TF32 is off, as it is in ours."""

    def run() -> Tensor:
        with torch.backends.cudnn.flags(enabled=enabled, benchmark=search, allow_tf32=False):
            return call()

    return run


def compiled(call: Call) -> Call:
    return torch.compile(call, dynamic=False)


def conv_calls(conv: Conv, which: str, dtype: torch.dtype) -> Iterator[tuple[str, str, Call, Call]]:
    """Give layout, algorithm, our call and torch's."""
    operands = conv2d.tensors(conv, dtype, "cuda")
    for layout in FORMATS:
        for algo in ("auto", *_C.cuda_conv2d_algos()):
            yield layout, algo, *conv2d.calls(conv, which, operands, layout, algo)
        for algo in ("auto", *TRITON_ALGOS[1:]) if dtype == torch.float32 else ("auto",):
            name = "triton" if algo == "auto" else algo
            yield layout, name, *conv2d.calls(conv, which, operands, layout, algo, "triton")


def pool_calls(pool: Pool, which: str, dtype: torch.dtype) -> Iterator[tuple[str, str, Call, Call]]:
    generator = torch.Generator().manual_seed(0)
    sizes = (pool.N, pool.C, pool.H, pool.W), (pool.N, pool.C, pool.P, pool.Q)
    x, grad = (torch.randn(s, generator=generator).to("cuda", dtype) for s in sizes)
    for layout, memory_format in FORMATS.items():
        operands = [t.contiguous(memory_format=memory_format) for t in (x, grad)]
        for overload in ("default", "triton"):
            pair = pool2d.calls(pool, which, *operands, overload)
            if pair:
                yield layout, "cuda" if overload == "default" else overload, *pair


def measure(report: Report, problem: Conv | Pool, which: str, dtype_name: str) -> None:
    """Time one pass of one problem in one dtype, and add a row for each algorithm and layout."""
    dtype, is_conv = DTYPES[dtype_name], isinstance(problem, Conv)
    found = list((conv_calls if is_conv else pool_calls)(problem, which, dtype))
    if not found:
        return
    theirs = {layout: call for layout, _, _, call in found}
    candidates, first = {}, {}
    for layout, call in theirs.items():
        for search in (True, False):
            name = f"{'search' if search else 'heuristics'}_{layout}"
            candidates[name] = under_cudnn(call, report.options.cudnn, search)
            first[name] = first_call(candidates[name])
        if report.options.compile:
            candidates[f"compile_{layout}"] = compiled(call)
    want = candidates["search_nchw"]()
    mine = {}
    for layout, algo, call, _ in found:
        name = f"{problem.name} {which} {layout} {dtype_name} {algo}"
        try:
            first[name] = first_call(call)
            # By name, these compute float32 in TF32, which has ten bits of mantissa.
            tf32 = algo in ("mma", "triton_tf32") and dtype == torch.float32
            check_same(name, call(), want, 1e-2 if tf32 else TOLERANCE[dtype])
        except (RuntimeError, NotImplementedError, WrongOutputError) as error:
            # An algorithm that says it is not made for a problem has no row there.
            if isinstance(error, WrongOutputError) or "algo '" not in str(error):
                report.fail(name, error)
            continue
        mine[name] = (layout, algo)
        candidates[name] = call
    samples = alternate_events(candidates, report.budget)
    best = min(samples[f"search_{layout}"].median for layout in theirs)
    bound = bound_seconds(report, problem, dtype)
    for name, (layout, algo) in mine.items():
        ours = samples[name]
        others = {f"search_{other}": samples[f"search_{other}"] for other in theirs}
        others["heuristics"] = samples[f"heuristics_{layout}"]
        if report.options.compile:
            others["compile"] = samples[f"compile_{layout}"]
        cudnn = first[f"search_{layout}"]
        report.add(
            problem.name,
            {"ours": ours} | others,
            **{"pass": which},
            layout=layout,
            dtype=dtype_name,
            algo=algo,
            percent=100 * bound / ours.median,
            first_ms=first[name][0] * 1e3,
            cudnn_first_ms=cudnn[0] * 1e3,
            memory_mb=first[name][1] / 2**20,
            cudnn_memory_mb=cudnn[1] / 2**20,
            ratio_same=samples[f"search_{layout}"].median / ours.median,
            ratio_best=best / ours.median,
        )


@functools.cache
def peak(dtype: torch.dtype) -> float:
    return matmul_peak("cuda", dtype)


def bound_seconds(report: Report, problem: Conv | Pool, dtype: torch.dtype) -> float:
    """Bound the time by what has to be computed and what has to be moved."""
    if isinstance(problem, Conv):
        elements, compute = problem.elements, problem.flops / peak(dtype)
    else:
        pixels = problem.H * problem.W + problem.P * problem.Q
        elements, compute = problem.N * problem.C * pixels, 0.0
    return max(compute, elements * dtype.itemsize / report.machine.bandwidth)


def main() -> int:
    options = parser(__doc__.splitlines()[0])
    options.set_defaults(device="cuda")
    options.add_argument("--dtype", default="float32,float16,bfloat16")
    options.add_argument("--compile", action="store_true", help="time torch.compile, too")
    options.add_argument(
        "--no-cudnn", dest="cudnn", action="store_false", help="torch's own kernels in its place"
    )
    options.add_argument("--tiny", action="store_true", help="one small problem of each kind")
    args = options.parse_args()
    if not torch.cuda.is_available():
        options.error("there is no GPU")
    dtypes = args.dtype.split(",")
    if unknown := set(dtypes) - set(DTYPES):
        options.error(f"--dtype knows {', '.join(DTYPES)}, not {', '.join(sorted(unknown))}")
    report = Report("cudnn", args)
    problems = TINY if args.tiny else [p for p in CONVS + POOLS if p.name.startswith(args.only)]
    with torch.inference_mode():
        for problem in problems:
            for which in conv2d.PASSES if isinstance(problem, Conv) else pool2d.PASSES[:3]:
                for dtype in dtypes:
                    measure(report, problem, which, dtype)
    return report.finish(COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
