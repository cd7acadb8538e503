"""Time the pools and their gradients against torch's: ``python -m bench.pool2d``.

Passes: fwd, as in inference; train, a forward that keeps what backward needs (of max pools only);
bwd; step, the latter two together. Rates count each element of input and output once, indices not
at all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from bench.results import DTYPES, Report, problem_parser
from bench.shapes import POOLS, Pool, of_batch
from bench.timing import WrongOutputError, alternate, check_same

theirs = torch.ops.aten
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
PASSES = ("fwd", "train", "bwd", "step")
COLUMNS = {
    "name": "name",
    "pass": "pass",
    "layout": "layout",
    "ours_us": "ours us",
    "spread": "10-90 %",
    "torch_nchw_us": "torch nchw",
    "torch_nhwc_us": "torch nhwc",
    "gbs": "GB/s",
    "percent": "% of copy",
    "ratio_same": "same layout",
    "ratio_best": "best torch",
}
Calls = tuple[Callable[[], Tensor], Callable[[], Tensor]]


class Overload:
    """Our ops by their plain names: the default overloads, or those of Triton."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, op: str) -> Callable:
        return getattr(getattr(torch.ops.cnnkern, op), self._name)


def calls(
    pool: Pool, which: str, x: Tensor, grad: Tensor, overload: str = "default"
) -> Calls | None:
    """Give our call and torch's for one pass, None where the pool has no such pass."""
    ours = Overload(overload)
    kernel, stride, padding = [pool.kernel] * 2, [pool.stride] * 2, [pool.padding] * 2
    size = list(x.shape)  # as autograd.py keeps it
    if pool.kind == "max":
        window = (kernel, stride, padding, [1, 1])
        kind = _max_step if which == "step" else _max_calls
        return kind(ours, which, x, grad, window)
    if which == "train":
        return None
    if which == "step":
        forward, backward = (calls(pool, which, x, grad, overload) for which in ("fwd", "bwd"))
        both = zip(forward, backward, strict=True)
        return tuple(lambda f=f, b=b: (f(), b())[1] for f, b in both)
    if pool.kind == "avg":
        args = (kernel, stride, padding, False, True, None)
        if which == "fwd":
            return (
                lambda: ours.avg_pool2d(x, *args),
                lambda: theirs.avg_pool2d.default(x, *args),
            )
        return (
            lambda: ours.avg_pool2d_grad(grad, size, *args),
            lambda: theirs.avg_pool2d_backward.default(grad, x, *args),
        )
    if which == "fwd":
        return (
            lambda: ours.adaptive_avg_pool2d(x, kernel),
            # The function picks a plain mean for an output of 1x1.
            lambda: torch.nn.functional.adaptive_avg_pool2d(x, kernel),
        )
    return (
        lambda: ours.adaptive_avg_pool2d_grad(grad, size),
        lambda: theirs._adaptive_avg_pool2d_backward.default(grad, x),
    )


def _max_calls(ours: Overload, which: str, x: Tensor, grad: Tensor, window) -> Calls:
    if which != "bwd":
        save = "none" if which == "fwd" else "offsets"
        return (
            lambda: ours.max_pool2d(x, *window, False, save)[0],
            lambda: theirs.max_pool2d_with_indices.default(x, *window)[0],
        )
    indices = theirs.max_pool2d_with_indices.default(x, *window)[1]
    offsets, size = None, list(x.shape)
    with suppress(NotImplementedError):  # then the call says so, and the row fails
        offsets = ours.max_pool2d(x, *window, False, "offsets")[1]
    return (
        lambda: ours.max_pool2d_grad(grad, offsets, size, *window),
        lambda: theirs.max_pool2d_with_indices_backward.default(grad, x, *window, False, indices),
    )


def _max_step(ours: Overload, which: str, x: Tensor, grad: Tensor, window) -> Calls:
    size = list(x.shape)

    def our_step() -> Tensor:
        _, offsets = ours.max_pool2d(x, *window, False, "offsets")
        return ours.max_pool2d_grad(grad, offsets, size, *window)

    def their_step() -> Tensor:
        _, indices = theirs.max_pool2d_with_indices.default(x, *window)
        return theirs.max_pool2d_with_indices_backward.default(grad, x, *window, False, indices)

    return our_step, their_step


def measure(report: Report, pool: Pool, which: str) -> None:
    """Time one pass of one problem in both layouts, and add their rows."""
    options = report.options
    dtype = DTYPES[options.dtype]
    generator = torch.Generator().manual_seed(0)
    sizes = (pool.N, pool.C, pool.H, pool.W), (pool.N, pool.C, pool.P, pool.Q)
    x, grad = (torch.randn(s, generator=generator).to(options.device, dtype) for s in sizes)
    samples, baselines, mine = {}, {}, {}
    for layout, memory_format in FORMATS.items():
        operands = [t.contiguous(memory_format=memory_format) for t in (x, grad)]
        pair = calls(pool, which, *operands)
        if pair is None:
            return
        ours, baselines[f"torch_{layout}"] = pair
        if layout in options.layouts:
            mine[layout] = ours
    want = baselines["torch_nchw"]()
    for layout in list(mine):
        title = f"{pool.name} {which} {layout}"
        try:
            check_same(title, mine[layout](), want)
        except (RuntimeError, WrongOutputError) as error:
            report.fail(title, error)
            del mine[layout]
    if not mine:
        return
    report.measure_limits()
    samples = alternate(mine | baselines, report.budget, options.device)
    best = min(samples[name].median for name in baselines)
    passes = 2 if which == "step" else 1
    bytes_moved = passes * (x.numel() + grad.numel()) * x.element_size()
    for layout in mine:
        seconds = samples[layout].median
        report.add(
            pool.name,
            {"ours": samples[layout]} | {name: samples[name] for name in baselines},
            **{"pass": which},
            layout=layout,
            dtype=options.dtype,
            gbs=bytes_moved / seconds / 1e9,
            percent=100 * bytes_moved / seconds / report.machine.bandwidth,
            ratio_same=samples[f"torch_{layout}"].median / seconds,
            ratio_best=best / seconds,
        )


def main() -> int:
    args = problem_parser(__doc__.splitlines()[0], PASSES, tuple(FORMATS)).parse_args()
    problems = [p for p in of_batch(POOLS, args.batch) if p.name.startswith(args.only)]
    report = Report("pool2d", args)
    with torch.inference_mode():
        for pool in problems:
            for which in args.passes:
                measure(report, pool, which)
    return report.finish(COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
