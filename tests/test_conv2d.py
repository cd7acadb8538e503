"""conv2d, conv1d, corr2d: forward and every gradient, over the case table, against the oracle.

It is long because every algorithm of every backend goes through the same check.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import (
    CONVS,
    LARGE_TILES,
    LAYOUTS,
    assert_close,
    conv_expected,
    data_grid,
    layout,
    values,
)
from torch.utils._python_dispatch import TorchDispatchMode

from cnnkern import _C, _cuda_library, functional, reference
from cnnkern.ops import is_nhwc

OPS = ("conv2d", "conv2d_input_grad", "conv2d_weight_grad", "conv2d_bias_grad")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FORMATS = ("contiguous", "channels_last")
BY_NAME = {case.name: case for case in CONVS}
# What each forced algorithm must accept, and refuse with a reason otherwise.
APPLIES = {
    "direct": lambda case, x: True,
    "chwn": lambda case, x: case.stride == (1, 1),
    "igemm": lambda case, x: True,
    "depthwise": lambda case, x: is_depthwise(case, x),
    "winograd": lambda case, x: is_plain_3x3(case),
    "dots": lambda case, x: (
        x.dtype == torch.bfloat16 and _C.cpu_isa() in ("avx512_bf16", "amx_bf16")
    ),
}


def is_depthwise(case, x):
    if case.weight[0] != x.size(1):
        return False
    grouped = case.weight[1] in (2, 4, 8) and x.dtype == torch.float32
    return case.weight[1] == 1 or grouped


def is_plain_3x3(case):
    return case.weight[2:] == (3, 3) and case.stride == (1, 1) and case.groups == 1


def arguments(case, dtype, layout_name, device="cpu"):
    """Return input, weight, bias, grad, leaves of autograd where they are operands."""
    t = case.tensors(data_grid(dtype))
    out = []
    for name, value in t.items():
        if value is not None:
            value = value.to(device, dtype)
            value = value if name == "bias" else layout(value, layout_name).detach()
            value.requires_grad_(name != "grad")
        out.append(value)
    return out


def call(case, x, w, b, **options):
    stride, padding, dilation, groups, mode = case.geometry
    return functional.conv2d(
        x, w, b, stride, padding, dilation, groups, padding_mode=mode, **options
    )


def tolerance_row(case, x, algo):
    """Name the row of TOLERANCE: that of the algorithm, where float32 comes by other arithmetic."""
    if x.dtype != torch.float32:
        return x.dtype
    if algo == "mma":
        return "tf32"
    dense = is_plain_3x3(case) and min(case.weight[:2]) >= 12
    by_winograd = x.is_cpu and (algo == "winograd" or (algo == "auto" and dense))
    return "winograd" if by_winograd else x.dtype


def check(case, dtype, x, w, b, g, **options):
    """Compare the output and the gradient of every operand with the oracle."""
    expected, reductions = conv_expected(case, data_grid(dtype)), case.reductions()
    row = tolerance_row(case, x, options.get("algo", "auto"))
    y = call(case, x, w, b, **options)
    assert_close(y, expected["output"], dtype, reductions["output"], row=row)
    kept = torch.channels_last if is_nhwc(x) else torch.contiguous_format
    assert y.is_contiguous(memory_format=kept)
    operands = {"input": x, "weight": w, "bias": b}
    operands = {name: t for name, t in operands.items() if t is not None}
    grads = torch.autograd.grad(y, list(operands.values()), g)
    for name, grad in zip(operands, grads, strict=True):
        what = f"gradient of {name}"
        assert_close(grad, expected[name], dtype, reductions[name], what=what, row=row)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_forward_and_gradients(case, dtype, format, target):
    check(case, dtype, *arguments(case, dtype, format, target.device), **target.options)


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_every_algorithm(case, dtype, cpu_isa):
    for algo in _C.conv2d_algos():
        for format in FORMATS:
            operands = arguments(case, dtype, format)
            if APPLIES[algo](case, operands[0]):
                check(case, dtype, *operands, algo=algo)
            else:
                with pytest.raises(RuntimeError, match=f"^cnnkern::conv2d: .*{algo}"):
                    call(case, *operands[:3], algo=algo)


@pytest.mark.sanitize
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("size", "outputs"), [((2, 70, 143, 145), 35), ((2, 352, 39, 38), 336)], ids=["shares", "sums"]
)
def test_winograd_weight_grad_in_chunks(size, outputs, format, cpu_isa):
    """More tiles than are transformed at a time: by one thread for itself, or for all threads."""
    N, C, H, W = size
    x = layout(values(size, 0).float(), format)
    g = layout(values((N, outputs, H, W), 1).float(), format)
    tail = ([1, 1], [1, 1, 1, 1], [1, 1], 1, "zeros")
    ops = torch.ops.cnnkern
    ours = ops.conv2d_weight_grad(g, x, [outputs, C, 3, 3], *tail, "winograd")
    some = slice(None, None, 7)
    exact = g[:, some].double(), x.double(), [len(range(outputs)[some]), C, 3, 3]
    want = ops.conv2d_weight_grad(*exact, *tail, "direct")
    assert_close(ours[some], want, torch.float32, N * H * W, row="winograd")


def test_winograd_is_off_by_less_than_1e_5():
    """Of the length of what comes out, with the normal numbers that networks start with."""
    generator = torch.Generator().manual_seed(0)
    sizes = (2, 128, 28, 28), (96, 128, 3, 3), (2, 96, 28, 28)
    x, w, g = (torch.randn(size, generator=generator) for size in sizes)
    tail = ([1, 1], [1, 1, 1, 1], [1, 1], 1, "zeros")
    ops = torch.ops.cnnkern
    for op, a, b, more in (
        (ops.conv2d, x, w, (None,)),
        (ops.conv2d_input_grad, g, w, (x.shape,)),
        (ops.conv2d_weight_grad, g, x, (w.shape,)),
    ):
        ours = op(a, b, *more, *tail, "winograd")
        exact = op(a.double(), b.double(), *more, *tail, "direct")
        assert (ours - exact).norm() < 1e-5 * exact.norm(), op


def check_igemm(x, w, format, *tail):
    """Compare all three passes with the direct ones in float64."""
    ops = torch.ops.cnnkern
    x, w = layout(x, format).float(), w.float()
    want = ops.conv2d(x.double(), w.double(), None, *tail, "direct")
    assert_close(ops.conv2d(x, w, None, *tail, "igemm"), want, torch.float32, w[0].numel())
    g = layout(values(tuple(want.shape), 2).float(), format)
    ours = ops.conv2d_input_grad(g, w, x.shape, *tail, "igemm")
    want = ops.conv2d_input_grad(g.double(), w.double(), x.shape, *tail, "direct")
    assert_close(ours, want, torch.float32, w.numel() // w.shape[1])
    ours = ops.conv2d_weight_grad(g, x, w.shape, *tail, "igemm")
    want = ops.conv2d_weight_grad(g.double(), x.double(), w.shape, *tail, "direct")
    assert_close(ours, want, torch.float32, g.numel() // g.shape[1])


@pytest.mark.sanitize
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("kernel", "stride"), ((1, 1), (3, 2)))
def test_igemm_past_the_caches(kernel, stride, format, cpu_isa):
    """Outputs that are streamed, and shares of a weight gradient that are several chunks each."""
    x, w = values((2, 64, 128, 129), 0), values((64, 64, kernel, kernel), 1)
    tail = ([stride] * 2, [kernel // 2] * 4, [1, 1], 1, "zeros")
    check_igemm(x, w, format, *tail)


@pytest.mark.sanitize
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kernel", (1, 3))
@pytest.mark.parametrize("size", (16, 33, 47, 63, 79, 111, 193))
def test_igemm_panels(size, kernel, format, cpu_isa):
    """Of one vector, or two, ... and of both of two widths, of channels as of pixels."""
    x, w = values((1, size, 1, size), 0), values((size, size, kernel, kernel), 1)
    tail = ([1, 1], [kernel // 2] * 4, [1, 1], 1, "zeros")
    check_igemm(x, w, format, *tail)


def test_winograd_keeps_to_the_tile_of_a_nan():
    x = torch.zeros(1, 12, 12, 12)
    x[0, 3, 5, 5] = float("nan")
    y = functional.conv2d(x, torch.ones(12, 12, 3, 3), padding=1)
    assert y[:, :, 4:8, 4:8].isnan().all() and y.isnan().sum() == 12 * 16


needs_cuda_library = pytest.mark.skipif(
    not _cuda_library.status().startswith("loaded"),
    reason="algo= names CUDA kernels, and without their library Triton serves every op",
)


@needs_cuda_library
@pytest.mark.gpu
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_every_algorithm_on_a_gpu(case, dtype, format):
    operands = arguments(case, dtype, format, "cuda")
    for algo in _C.cuda_conv2d_algos():
        refusal = None
        try:
            call(case, *operands[:3], algo=algo)
        except RuntimeError as error:
            refusal = str(error)
        if refusal is None:
            check(case, dtype, *operands, algo=algo)
        else:
            assert algo != "direct" and refusal.startswith(f"cnnkern::conv2d: algo '{algo}' ")


@needs_cuda_library
@pytest.mark.gpu
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("algo", "dtype", "case"), LARGE_TILES, ids=[f"{algo}-{case}" for algo, _, case in LARGE_TILES]
)
def test_large_tiles(algo, dtype, case, format):
    check(case, dtype, *arguments(case, dtype, format, "cuda"), algo=algo)


@needs_cuda_library
@pytest.mark.gpu
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("algo", "dtype", "name"),
    (
        ("mma", torch.float16, "vgg"),
        ("igemm", torch.float32, "vgg"),
        ("depthwise", torch.float16, "depthwise_planes"),
        ("depthwise", torch.float32, "depthwise_stride"),
    ),
)
def test_views_at_odd_offsets_are_read(algo, dtype, name, format):
    def shifted(t):
        memory = torch.empty(t.numel() + 1, dtype=t.dtype, device="cuda")
        return memory[1:].as_strided(t.shape, t.stride(), 1).copy_(t.detach())

    case = BY_NAME[name]
    x, w, b, g = arguments(case, dtype, format, "cuda")
    x, w, g = shifted(x).requires_grad_(), shifted(w).requires_grad_(), shifted(g)
    assert x.data_ptr() % 16 == dtype.itemsize
    check(case, dtype, x, w, b, g, algo=algo)


@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("x_layout", LAYOUTS)
@pytest.mark.parametrize("name", ("primes", "depthwise", "pointwise", "stride2", "circular"))
def test_layouts_that_are_not_dense(name, x_layout, grad_layout):
    case = BY_NAME[name]
    x, w, b, _ = arguments(case, torch.float32, x_layout)
    *_, g = arguments(case, torch.float32, grad_layout)
    check(case, torch.float32, x, w, b, g)


@pytest.mark.parametrize("name", ("asymmetric", "depthwise_multiplier", "pointwise_pad"))
def test_layouts_that_are_not_dense_on_a_gpu(name, gpu):
    case = BY_NAME[name]
    for x_layout, grad_layout in zip(LAYOUTS, reversed(LAYOUTS), strict=True):
        x, w, b, _ = arguments(case, torch.float32, x_layout, gpu.device)
        *_, g = arguments(case, torch.float32, grad_layout, gpu.device)
        check(case, torch.float32, x, w, b, g, **gpu.options)


def test_expanded_operands(target):
    x = values((1, 3, 6, 1), 0).to(target.device, torch.float32).expand(4, 3, 6, 7)
    w = values((5, 1, 1, 3), 1).to(target.device, torch.float32).expand(5, 3, 3, 3)
    x, w = x.requires_grad_(), w.requires_grad_()
    y = functional.conv2d(x, w, padding=1, **target.options)
    y.sum().backward()  # an expanded gradient, too
    expected, (gx, gw) = reference.vjp(
        lambda x, w: reference.conv2d(x, w, None, padding=(1, 1, 1, 1)),
        (x.cpu(), w.cpu()),
        torch.ones(y.shape),
    )
    assert_close(y, expected, torch.float32, 27)
    assert_close(x.grad, gx, torch.float32, 45)
    assert_close(w.grad, gw, torch.float32, 4 * 42)


class RecordOps(TorchDispatchMode):
    """Note the name of every cnnkern op that runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "cnnkern":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("needs", list(itertools.product((False, True), repeat=3)), ids=str)
def test_only_the_gradients_asked_for_are_computed(needs):
    case = BY_NAME["primes"]
    *operands, g = arguments(case, torch.float32, "contiguous")
    for t, need in zip(operands, needs, strict=True):
        t.requires_grad_(need)
    y = call(case, *operands)
    assert y.requires_grad == any(needs)
    with RecordOps() as record:
        if any(needs):
            y.backward(g)
    names = ("conv2d_input_grad", "conv2d_weight_grad", "conv2d_bias_grad")
    expected = [name for name, need in zip(names, needs, strict=True) if need]
    assert sorted(record.names) == sorted(expected)
    assert [t.grad is not None for t in operands] == list(needs)


GRADCHECKED = {
    "plain": {},
    "strided": {"stride": (2, 1), "padding": (1, 0, 2, 1), "dilation": (1, 2)},
    "grouped": {"groups": 2, "padding": 1},
    "reflect": {"padding": (1, 2, 0, 1), "padding_mode": "reflect"},
    "replicate": {"padding": (1, 2, 3, 0), "padding_mode": "replicate", "stride": 2},
    "circular": {"padding": (1, 2, 0, 1), "padding_mode": "circular"},
}


@pytest.mark.parametrize("name", GRADCHECKED)
def test_gradcheck_and_double_backward(name):
    options = GRADCHECKED[name]
    C = 2 // options.get("groups", 1)
    x, w, b = values((2, 2, 4, 5), 0), values((2, C, 2, 3), 1), values((2,), 2)
    operands = [t.requires_grad_() for t in (x, w, b)]
    torch.autograd.gradcheck(lambda *t: functional.conv2d(*t, **options), operands)
    torch.autograd.gradgradcheck(lambda *t: functional.conv2d(*t, **options), operands)


def test_third_derivative():
    x, w = values((1, 1, 4, 4), 0).requires_grad_(), values((1, 1, 2, 2), 1).requires_grad_()

    def third(conv):
        y = conv(conv(x, w) ** 2, w).sum()
        (g,) = torch.autograd.grad(y, w, create_graph=True)
        (gg,) = torch.autograd.grad((g**2).sum(), w, create_graph=True)
        return torch.autograd.grad(gg.sum(), x)[0]

    torch.testing.assert_close(third(functional.conv2d), third(reference.conv2d))


# ---- what the functional layer adds ------------------------------------------------------------


def test_corr2d():
    x, k = torch.arange(9.0).view(3, 3), torch.arange(4.0).view(2, 2)
    assert functional.corr2d(x, k).equal(torch.tensor([[19.0, 25.0], [37.0, 43.0]]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", (0, 2, (3,), "same", "valid"), ids=str)
def test_conv1d_is_torchs(padding, dtype):
    x, w, b = (
        values(size, i, 1 / 16).to(dtype).requires_grad_()
        for i, size in enumerate(((2, 4, 23), (6, 2, 4), (6,)))
    )
    stride = 1 if padding == "same" else 2
    y = functional.conv1d(x, w, b, stride, padding, 2, 2)
    g = values(y.shape, 3, 1 / 16).to(dtype)
    expected, expected_grads = reference.vjp(
        lambda *t: torch.nn.functional.conv1d(*t, stride, padding, 2, 2), (x, w, b), g
    )
    assert_close(y, expected, dtype, 8)
    for actual, e in zip(torch.autograd.grad(y, (x, w, b), g), expected_grads, strict=True):
        assert_close(actual, e, dtype, 46)
    assert functional.conv1d(x[0], w, b, stride, padding, 2, 2).equal(y[0])


@pytest.mark.parametrize(
    ("padding", "four"),
    (
        (2, (2, 2, 2, 2)),
        ((1,), (1, 1, 1, 1)),
        ((1, 3), (3, 3, 1, 1)),
        ((1, 2, 3, 4), (1, 2, 3, 4)),
        ("valid", (0, 0, 0, 0)),
        # A total of dilation*(kernel - 1) = (6, 3); torch puts the odd one right and below.
        ("same", (1, 2, 3, 3)),
    ),
    ids=str,
)
def test_spellings_of_padding(padding, four):
    x, w = values((2, 3, 9, 8), 0), values((4, 3, 3, 4), 1)
    y = functional.conv2d(x, w, padding=padding, dilation=(3, 1))
    expected = reference.conv2d(x, w, None, padding=four, dilation=(3, 1))
    assert_close(y, expected, torch.float64, 36)
    if padding == "same":
        theirs = torch.nn.functional.conv2d(x, w, padding="same", dilation=(3, 1))
        assert_close(y, theirs, torch.float64, 36)


def test_unbatched_input():
    x, w, b = values((3, 6, 7), 0), values((4, 3, 3, 3), 1), values((4,), 2)
    y = functional.conv2d(x, w, b, padding=1)
    assert y.shape == (4, 6, 7)
    assert y.equal(functional.conv2d(x[None], w, b, padding=1)[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_reach_only_their_windows(dtype, target):
    x, w = torch.zeros(1, 9, 9, 40, dtype=dtype), torch.ones(9, 9, 3, 3, dtype=dtype)
    x[0, 0, 4, 20], x[0, 1, 0, 0] = float("nan"), float("inf")
    y = functional.conv2d(x.to(target.device), w.to(target.device), padding=1, **target.options)
    y = y.cpu()
    nan, inf = torch.zeros(9, 40, dtype=torch.bool), torch.zeros(9, 40, dtype=torch.bool)
    nan[3:6, 19:22], inf[0:2, 0:2] = True, True
    assert y.isnan().equal(nan.expand(1, 9, 9, 40))
    assert y.isinf().equal(inf.expand(1, 9, 9, 40))
    assert (y[~(nan | inf).expand(1, 9, 9, 40)] == 0).all()


@pytest.mark.sanitize
@pytest.mark.usefixtures("bf16_isa")
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("input", "weight"),
    (
        ((3, 270, 15, 31), (514, 270, 1, 1)),
        ((1, 18, 37, 41), (34, 18, 3, 3)),
        ((3, 20, 24, 14), (66, 20, 3, 3)),
        ((2, 24, 6, 300), (40, 24, 3, 3)),
        ((7, 72, 7, 7), (70, 72, 3, 3)),
        ((5, 72, 7, 7), (70, 72, 3, 3)),
        ((2, 3, 29, 31), (6, 3, 5, 5)),
    ),
)
def test_dots_weight_grad_in_chunks(input, weight, format):
    """Items of some channels; shares of chunks of a row's part, some rows, some images; one chunk.

    Pairs of pixels span rows of odd and of even width.
    """
    x = layout(values(input, 0).bfloat16(), format)
    pad = [weight[2] // 2] * 4
    g = layout(values((input[0], weight[0], *input[2:]), 1).bfloat16(), format)
    tail = (list(weight), [1, 1], pad, [1, 1], 1, "zeros")
    ours = torch.ops.cnnkern.conv2d_weight_grad(g, x, *tail, "dots")
    want = torch.ops.cnnkern.conv2d_weight_grad(g.double(), x.double(), *tail, "direct")
    assert_close(ours, want, torch.bfloat16, g[:, 0].numel())


@pytest.mark.sanitize
@pytest.mark.usefixtures("bf16_isa")
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("input", "weight", "stride", "dilation", "padding"),
    (
        ((2, 3, 41, 37), (34, 3, 7, 7), 2, 1, 3),
        ((3, 20, 24, 14), (66, 20, 3, 3), 1, 1, 1),
        ((2, 70, 19, 18), (40, 70, 3, 3), 1, 2, 2),
        ((3, 48, 15, 1), (17, 48, 5, 3), 2, 1, 2),
        ((1, 512, 7, 7), (520, 512, 3, 3), 1, 1, 1),
        ((2, 64, 9, 130), (33, 64, 3, 3), 1, 1, 0),
        ((3, 1024, 9, 5), (96, 1024, 1, 1), 1, 1, 0),
        ((1, 2048, 5, 7), (31, 2048, 1, 1), 2, 1, 0),
        ((1, 64, 23, 57), (150, 64, 1, 1), 1, 1, 0),
    ),
)
def test_dots_in_chunks(input, weight, stride, dilation, padding, format):
    """Chunks of a tap's channels or several taps'; inputs copied and as they lie; many weights.

    Rows of tiles go over rows of outputs, or end with each; phases of a gradient share a copy; a
    single image's one row is cut.
    """
    x, w = layout(values(input, 0).bfloat16(), format), values(weight, 1).bfloat16()
    bias = values(weight[:1], 2).bfloat16()
    tail = ([stride] * 2, [padding] * 4, [dilation] * 2, 1, "zeros")
    ops = torch.ops.cnnkern
    want = ops.conv2d(x.double(), w.double(), bias.double(), *tail, "direct")
    assert_close(ops.conv2d(x, w, bias, *tail, "dots"), want, x.dtype, w[0].numel())
    g = layout(values(tuple(want.shape), 3).bfloat16(), format)
    want = ops.conv2d_input_grad(g.double(), w.double(), x.shape, *tail, "direct")
    ours = ops.conv2d_input_grad(g, w, x.shape, *tail, "dots")
    assert_close(ours, want, x.dtype, w[:, 0].numel())


@pytest.mark.sanitize
@pytest.mark.usefixtures("bf16_isa")
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("kernel", "stride"), ((1, 1), (3, 2)))
def test_dots_past_the_caches(kernel, stride, format):
    """Outputs that are streamed."""
    x = layout(values((2, 64, 208, 209), 0).bfloat16(), format)
    w = values((96, 64, kernel, kernel), 1).bfloat16()
    tail = ([stride] * 2, [kernel // 2] * 4, [1, 1], 1, "zeros")
    ops = torch.ops.cnnkern
    want = ops.conv2d(x.double(), w.double(), None, *tail, "direct")
    assert_close(ops.conv2d(x, w, None, *tail, "dots"), want, x.dtype, w[0].numel())
    g = layout(values(tuple(want.shape), 2).bfloat16(), format)
    ours = ops.conv2d_input_grad(g, w, x.shape, *tail, "dots")
    want = ops.conv2d_input_grad(g.double(), w.double(), x.shape, *tail, "direct")
    assert_close(ours, want, x.dtype, w[:, 0].numel())


@pytest.mark.usefixtures("bf16_isa")
@pytest.mark.parametrize("format", FORMATS)
def test_nan_and_infinity_reach_only_their_windows_by_dots(format):
    """The second half of an odd count's last pair is a zero whatever lies behind the first."""
    x, w = torch.zeros(1, 5, 9, 21).bfloat16(), torch.ones(6, 5, 3, 3).bfloat16()
    x[0, 0, 4, 20], x[0, 1, 0, 0] = float("nan"), float("inf")
    x, w = layout(x, format).requires_grad_(), w.requires_grad_()
    y = functional.conv2d(x, w, padding=1, algo="dots")
    nan, inf = torch.zeros(2, 9, 21, dtype=torch.bool)
    nan[3:6, 19:], inf[0:2, 0:2] = True, True
    assert y.isnan().equal(nan.expand(1, 6, 9, 21))
    assert y.isinf().equal(inf.expand(1, 6, 9, 21))
    (grad,) = torch.autograd.grad(y, w, torch.ones_like(y))
    nan, inf = torch.zeros(2, 6, 5, 3, 3, dtype=torch.bool)
    nan[:, 0, :, 1:], inf[:, 1, :2, :2] = True, True  # taps that meet them inside the output
    assert grad.isnan().equal(nan) and grad.isinf().equal(inf)


@pytest.mark.usefixtures("bf16_isa")
@pytest.mark.parametrize("stride", (1, 2))
@pytest.mark.parametrize("width", (1, 2, 4, 8))
def test_nan_and_infinity_reach_only_their_windows_by_pairs_of_rows(width, stride):
    """An output reads one row of some pairs, and another of the same vector has other channels."""
    x, w = torch.zeros(1, 24, 9, 21), torch.ones(24, width, 3, 3)
    x[0, 8, 4, 20], x[0, 16, 5, 1] = float("nan"), float("inf")
    full = torch.zeros(2, 24, 9, 21, dtype=torch.bool)
    full[0, 8 : 8 + width, 3:6, 19:], full[1, 16 : 16 + width, 4:7, :3] = True, True
    want = full[:, :, ::stride, ::stride]
    x = layout(x.bfloat16(), "channels_last")
    groups = 24 // width
    y = functional.conv2d(x, w.bfloat16(), stride=stride, padding=1, groups=groups, algo="dots")
    assert y[0].isnan().equal(want[0]) and y[0].isinf().equal(want[1])
    grad = torch.zeros(1, 24, 9, 21)
    grad[0, 8, 4, 20], grad[0, 16, 5, 1] = float("nan"), float("inf")
    dx = torch.ops.cnnkern.conv2d_input_grad(
        layout(grad.bfloat16(), "channels_last"), w.bfloat16(), x.shape,
        [1, 1], [1] * 4, [1, 1], groups, "zeros", "dots",
    )  # fmt: skip
    assert dx[0].isnan().equal(full[0]) and dx[0].isinf().equal(full[1])


@needs_cuda_library
@pytest.mark.gpu
@pytest.mark.parametrize("format", FORMATS)
def test_nan_and_infinity_reach_only_their_windows_by_winograd(format):
    x, w = torch.zeros(1, 5, 9, 20), torch.ones(6, 5, 3, 3)
    x[0, 0, 4, 9], x[0, 4, 0, 0], x[0, 3, 8, 16] = float("nan"), float("inf"), float("-inf")
    x, w = layout(x, format).to("cuda"), w.to("cuda")
    y = functional.conv2d(x, w, padding=1, algo="winograd").cpu()
    bad = torch.zeros(9, 20, dtype=torch.bool)
    bad[3:6, 8:11], bad[0:2, 0:2], bad[7:9, 15:18] = True, True, True
    assert (~y.isfinite()).equal(bad.expand(1, 6, 9, 20))  # infinity minus infinity is NaN
    assert (y[~bad.expand(1, 6, 9, 20)] == 0).all()


@needs_cuda_library
@pytest.mark.gpu
@pytest.mark.parametrize("format", FORMATS)
def test_nan_reaches_only_its_taps(format):
    """The last column meets the last tap alone: not zeros beside it, which fill up a vector."""
    x, w = torch.ones(1, 2, 5, 8), torch.ones(3, 2, 3, 3)
    x[0, 1, 2, 7] = float("nan")
    x = layout(x, format).to("cuda")
    w = w.to("cuda").requires_grad_()
    functional.conv2d(x, w, algo="direct").sum().backward()
    bad = torch.zeros(3, 2, 3, 3, dtype=torch.bool)
    bad[:, 1, :, 2] = True
    assert w.grad.cpu().isnan().equal(bad)
    assert (w.grad.cpu()[~bad] == 3 * 6).all()


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
def test_nan_and_infinity_stay_in_their_groups(dtype, target):
    x, w = torch.zeros(2, 12, 7, 9, dtype=dtype), torch.ones(18, 2, 3, 3, dtype=dtype)
    x[0, 3, 3, 4], x[1, 8, 0, 0] = float("nan"), float("inf")
    y = functional.conv2d(
        x.to(target.device), w.to(target.device), padding=1, groups=6, **target.options
    ).cpu()
    nan, inf = torch.zeros_like(y, dtype=torch.bool), torch.zeros_like(y, dtype=torch.bool)
    nan[0, 3:6, 2:5, 3:6], inf[1, 12:15, :2, :2] = True, True
    assert y.isnan().equal(nan)
    assert y.isinf().equal(inf)
    assert (y[~(nan | inf)] == 0).all()


@pytest.mark.parametrize(("algo", "bits"), (("triton_tf32", 11), ("triton_tf32x3", 21)))
def test_precisions_of_float32_on_tensor_cores(algo, bits, gpu):
    """TF32 keeps 10 bits and rounds; three products of it come close to float32."""
    if gpu.algo != "triton":
        return  # the CUDA kernels have names of their own
    case = BY_NAME["vgg"]
    x, w, b, g = arguments(case, torch.float32, "channels_last", gpu.device)
    expected = conv_expected(case)
    y = call(case, x, w, b, algo=algo)
    results = {"output": y} | dict(
        zip(("input", "weight"), torch.autograd.grad(y, (x, w), g), strict=True)
    )
    for name, result in results.items():
        error = (result.detach().cpu().double() - expected[name]).abs().max()
        assert error <= 2**-bits * expected[name].abs().max() * 2, name
        assert bits > 20 or error > 0, name
