"""Time convolutions by threads and by batch: ``python -m bench.scaling threads`` or ``batch``.

``threads``: how many times faster a call is on all threads than on one, ours and torch's.
``batch``: microseconds an image, from 32 images a call to 1024.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import torch

from bench.conv2d import FORMATS, PASSES, calls, tensors
from bench.results import DTYPES, Report, problem_parser
from bench.shapes import CONVS, Conv
from bench.timing import Sample, alternate

BATCHES = (32, 128, 512, 1024)
MOST_ELEMENTS = 1 << 27  # that the largest batch of a problem may have: 512 MiB
THREADS_COLUMNS = {
    "name": "name",
    "pass": "pass",
    "layout": "layout",
    "one_us": "1 thread",
    "ours_us": "all threads",
    "percent": "% of peak",
    "torch_ratio": "torch times",
    "ratio": "times",
}
BATCH_COLUMNS = {"name": "name", "pass": "pass", "layout": "layout"} | {
    f"n{n}": f"N={n}" for n in BATCHES
} | {"ratio": "N=32 / N=1024"}  # fmt: skip


def with_threads(call: Callable[[], object], threads: int) -> Callable[[], object]:
    def run() -> object:
        torch.set_num_threads(threads)
        return call()

    return run


def threads(report: Report, conv: Conv, which: str, layout: str) -> None:
    """Time one pass on one thread and on all, ours and torch's in turn."""
    options = report.options
    operands = tensors(conv, DTYPES[options.dtype], options.device)
    ours, torchs = calls(conv, which, operands, layout, "auto")
    candidates = {
        f"{name}_{count}": with_threads(call, count)
        for name, call in (("ours", ours), ("torch", torchs))
        for count in (1, options.threads)
    }
    samples = alternate(candidates, report.budget)
    one, everything = samples["ours_1"], samples[f"ours_{options.threads}"]
    torch_one, torch_all = samples["torch_1"], samples[f"torch_{options.threads}"]
    report.add(
        conv.name,
        {"ours": everything, "one": one, "torch_one": torch_one, "torch": torch_all},
        **{"pass": which},
        layout=layout,
        dtype=options.dtype,
        percent=100 * conv.flops / everything.median / report.machine.flops,
        torch_ratio=torch_one.median / torch_all.median,
        ratio=one.median / everything.median,
    )


def batch(report: Report, conv: Conv, which: str, layout: str) -> None:
    """Time one pass with each number of images, all in turn."""
    options = report.options
    candidates = {}
    for n in BATCHES:
        of_n = replace(conv, N=n)
        operands = tensors(of_n, DTYPES[options.dtype], options.device)
        candidates[n] = calls(of_n, which, operands, layout, "auto")[0]
    samples: dict[int, Sample] = alternate(candidates, 2 * report.budget)
    cost = {n: samples[n].median / n for n in BATCHES}
    report.add(
        conv.name,
        {"ours": samples[BATCHES[-1]]},
        **{"pass": which},
        layout=layout,
        dtype=options.dtype,
        **{f"n{n}": 1e6 * cost[n] for n in BATCHES},
        ratio=cost[BATCHES[0]] / cost[BATCHES[-1]],
    )


def main() -> int:
    options = problem_parser(__doc__.splitlines()[0], PASSES, tuple(FORMATS))
    options.add_argument("what", choices=("threads", "batch"))
    args = options.parse_args()
    if args.device != "cpu" or args.batch is not None:
        options.error("scaling is measured on the CPU, of the problems' own batches")
    report = Report(f"scaling-{args.what}", args)
    problems = [c for c in CONVS if c.name.startswith(args.only) and " N=" not in c.name]
    if args.what == "batch":
        most = {c: replace(c, N=BATCHES[-1]).elements for c in problems}
        problems = [c for c in problems if most[c] <= MOST_ELEMENTS]
    row, columns = {
        "threads": (threads, THREADS_COLUMNS),
        "batch": (batch, BATCH_COLUMNS),
    }[args.what]
    with torch.inference_mode():
        for conv in problems:
            for which in args.passes:
                for layout in args.layouts:
                    row(report, conv, which, layout)
    torch.set_num_threads(args.threads)
    return report.finish(columns, "ratio")


if __name__ == "__main__":
    sys.exit(main())
