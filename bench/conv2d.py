"""Time the convolution and its two gradients against torch's: ``python -m bench.conv2d``.

Each problem runs in NCHW and in channels_last, ours and torch's in turn. The gradients are the raw
ops, torch's `convolution_backward` asked for that one gradient. The roofline is the time that the
direct method's operations take at the measured peak, or that its operands take at the bandwidth of
a copy, whichever is longer. Errors are those of the result as a vector, against float64.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from bench.results import DTYPES, Report, problem_parser
from bench.shapes import CONVS, Conv, of_batch
from bench.timing import WrongOutputError, alternate, check_same

ours, theirs = torch.ops.cnnkern, torch.ops.aten
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
PASSES = ("fwd", "dgrad", "wgrad")
COLUMNS = {
    "name": "name",
    "pass": "pass",
    "layout": "layout",
    "ours_us": "ours us",
    "spread": "10-90 %",
    "torch_nchw_us": "torch nchw",
    "torch_nhwc_us": "torch nhwc",
    "gflops": "GFLOP/s",
    "percent": "% of peak",
    "roofline": "% of roofline",
    "ratio_same": "same layout",
    "ratio_best": "best torch",
    "error": "error",
    "torch_error": "torch's",
}


def tensors(conv: Conv, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make input, weight, bias and output gradient, seeded."""
    generator = torch.Generator().manual_seed(0)
    sizes = (
        (conv.N, conv.C, conv.H, conv.W),
        (conv.K, conv.C // conv.groups, conv.R, conv.S),
        (conv.K,),
        (conv.N, conv.K, conv.P, conv.Q),
    )
    return tuple(torch.randn(s, generator=generator).to(device, dtype) for s in sizes)


def calls(
    conv: Conv, which: str, operands, layout: str, algo: str, overload: str = "default"
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Give our call and torch's for one pass in one layout."""
    # Torch gets its weights in the layout it likes best; ours takes them as they are.
    x, w, grad = (operands[i].contiguous(memory_format=FORMATS[layout]) for i in (0, 1, 3))
    weight, bias = operands[1], operands[2]
    x_size, weight_size = list(x.shape), list(weight.shape)  # as autograd.py keeps them
    stride, pad, dilation = [conv.stride] * 2, conv.padding, [conv.dilation] * 2
    our_tail = (stride, [pad] * 4, dilation, conv.groups, "zeros", algo)
    tail = (stride, [pad] * 2, dilation, False, [0, 0], conv.groups)
    conv2d, input_grad, weight_grad = (
        getattr(op, overload)
        for op in (ours.conv2d, ours.conv2d_input_grad, ours.conv2d_weight_grad)
    )
    if which == "fwd":
        return (
            lambda: conv2d(x, weight, bias, *our_tail),
            lambda: theirs.convolution.default(x, w, bias, *tail),
        )
    if which == "dgrad":
        return (
            lambda: input_grad(grad, weight, x_size, *our_tail),
            lambda: theirs.convolution_backward.default(
                grad, x, w, None, *tail, [True, False, False]
            )[0],
        )
    return (
        lambda: weight_grad(grad, x, weight_size, *our_tail),
        lambda: theirs.convolution_backward.default(grad, x, w, None, *tail, [False, True, False])[
            1
        ],
    )


def l2_error(got: Tensor, exact: Tensor) -> float:
    """Tell how long the error is, as a part of the result's length."""
    return (torch.linalg.vector_norm(got - exact) / torch.linalg.vector_norm(exact)).item()


def measure(report: Report, conv: Conv, which: str) -> None:
    """Time one pass of one problem in the layouts asked for, and add their rows."""
    options = report.options
    dtype = DTYPES[options.dtype]
    operands = tensors(conv, dtype, options.device)
    pairs = {layout: calls(conv, which, operands, layout, options.algo) for layout in FORMATS}
    mine = {layout: pairs[layout][0] for layout in options.layouts}
    baselines = {f"torch_{layout}": call for layout, (_, call) in pairs.items()}
    # Sums of weight gradients run over every pixel of the batch: their own scale is the yardstick.
    want = baselines["torch_nchw"]()
    exact = calls(conv, which, [t.double() for t in operands], "nchw", options.algo)[1]()
    errors = {}
    for layout in list(mine):
        title = f"{conv.name} {which} {layout}"
        try:
            got = mine[layout]()
            check_same(title, got, want)
            errors[layout] = l2_error(got, exact)
        except (RuntimeError, WrongOutputError) as error:
            report.fail(title, error)
            del mine[layout]
    if not mine:
        return
    report.measure_limits()
    samples = alternate(mine | baselines, report.budget * (2 + len(mine)) / 3, options.device)
    best = min(samples[name].median for name in baselines)
    for layout in mine:
        sample = samples[layout]
        rate = conv.flops / sample.median
        traffic = conv.elements * dtype.itemsize / report.machine.bandwidth
        report.add(
            conv.name,
            {"ours": sample} | {name: samples[name] for name in baselines},
            **{"pass": which},
            layout=layout,
            dtype=options.dtype,
            algo=options.algo,
            gflops=rate / 1e9,
            percent=100 * rate / report.machine.flops,
            roofline=100 * max(conv.flops / report.machine.flops, traffic) / sample.median,
            ratio_same=samples[f"torch_{layout}"].median / sample.median,
            ratio_best=best / sample.median,
            error=errors[layout],
            torch_error=l2_error(want, exact),
        )


def main() -> int:
    options = problem_parser(__doc__.splitlines()[0], PASSES, tuple(FORMATS))
    options.add_argument("--algo", default="auto", help="our algorithm")
    args = options.parse_args()
    problems = [c for c in of_batch(CONVS, args.batch) if c.name.startswith(args.only)]
    report = Report("conv2d", args)
    with torch.inference_mode():
        for conv in problems:
            for which in args.passes:
                measure(report, conv, which)
    return report.finish(COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
