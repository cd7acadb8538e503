"""The fused block: forward and every gradient against the oracle, and against its own pieces."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from cases import FUSED, assert_close, data_grid, layout, values
from test_conv2d import (
    APPLIES,
    BY_NAME,
    RecordOps,
    arguments,
    needs_cuda_library,
    tolerance_row,
)

from cnnkern import _C, functional, reference
from cnnkern.ops import is_nhwc

OPS = (
    "conv2d_act_pool2d", "act_pool2d_grad", "conv2d_input_grad", "conv2d_weight_grad",
    "conv2d_bias_grad",
)  # fmt: skip
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@functools.cache
def expected_of(case, grid):
    """Return the oracle's output, the gradient it is asked with, and the operands' gradients.

    Last comes the condition of the activation: sigmoid and tanh turn sums of 30 into 1.
    """

    def block(x, w, b):
        return reference.conv2d_act_pool2d(x, w, b, *case.conv.geometry, *case.act_pool)

    t = case.conv.tensors(grid)
    operands = (t["input"], t["weight"], t["bias"])
    g = values(block(*operands).shape, 3, grid)
    output, grads = reference.vjp(block, operands, g)
    sums = reference.conv2d(*operands, *case.conv.geometry)
    bends = case.activation not in ("none", "relu") and sums.numel() > 0
    condition = max(1.0, sums.abs().max().item()) if bends else 1.0
    return output, g, dict(zip(("input", "weight", "bias"), grads, strict=True)), condition


def call(case, x, w, b, **options):
    stride, padding, dilation, groups, mode = case.conv.geometry
    return functional.conv2d_act_pool2d(
        x, w, b, stride, padding, dilation, groups, padding_mode=mode,
        activation=case.activation, pool=case.pool, pool_kernel_size=case.pool_kernel,
        pool_stride=case.pool_stride, pool_padding=case.pool_padding,
        pool_ceil_mode=case.pool_ceil_mode, count_include_pad=case.count_include_pad, **options,
    )  # fmt: skip


@pytest.mark.sanitize
@pytest.mark.parametrize("format", ("contiguous", "channels_last"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", FUSED, ids=str)
def test_forward_and_gradients(case, dtype, format, target):
    output, g, expected, condition = expected_of(case, data_grid(dtype))
    x, w, b, _ = arguments(case.conv, dtype, format, target.device)
    y = call(case, x, w, b, **target.options)
    reductions = case.conv.reductions()
    window = case.pool_kernel[0] * case.pool_kernel[1]
    row = tolerance_row(case.conv, x, "auto")
    assert_close(y, output, dtype, reductions["output"] + window, 2, condition, row=row)
    assert y.is_contiguous(
        memory_format=torch.channels_last if is_nhwc(x) else torch.contiguous_format
    )
    with torch.no_grad():  # nothing is saved, so perhaps another path
        assert call(case, x, w, b, **target.options).equal(y)
    if data_grid(dtype) and not case.narrow:
        return
    operands = {"input": x, "weight": w} | ({} if b is None else {"bias": b})
    g = layout(g.to(target.device, dtype), format)
    grads = torch.autograd.grad(y, list(operands.values()), g)
    for name, grad in zip(operands, grads, strict=True):
        # The value that the activation's derivative is taken at, and that derivative times g, are
        # stored in dtype; at saturation the derivative loses a digit more.
        what, count = f"gradient of {name}", reductions[name]
        assert_close(grad, expected[name], dtype, count, 6, condition, what, 1, row)


@pytest.mark.sanitize
@pytest.mark.parametrize("format", ("contiguous", "channels_last"))
@pytest.mark.parametrize("case", FUSED, ids=str)
def test_every_algorithm(case, format, cpu_isa):
    output, g, expected, condition = expected_of(case, data_grid(torch.float32))
    x, w, b, _ = arguments(case.conv, torch.float32, format)
    reductions = case.conv.reductions()
    for algo in _C.conv2d_algos():
        if not APPLIES[algo](case.conv, x):
            with pytest.raises(RuntimeError, match=f"^cnnkern::conv2d_act_pool2d: .*{algo}"):
                call(case, x, w, b, algo=algo)
            continue
        row = tolerance_row(case.conv, x, algo)
        y = call(case, x, w, b, algo=algo)
        window = case.pool_kernel[0] * case.pool_kernel[1]
        count = reductions["output"] + window
        assert_close(y, output, torch.float32, count, 2, condition, algo, row=row)
        with torch.no_grad():
            assert call(case, x, w, b, algo=algo).equal(y)
        operands = {"input": x, "weight": w} | ({} if b is None else {"bias": b})
        grads = torch.autograd.grad(y, list(operands.values()), layout(g.float(), format))
        for name, grad in zip(operands, grads, strict=True):
            what, count = f"gradient of {name} by {algo}", reductions[name]
            assert_close(grad, expected[name], torch.float32, count, 6, condition, what, 1, row)


@needs_cuda_library
@pytest.mark.gpu
@pytest.mark.parametrize("activation", ("relu", "sigmoid", "tanh", "gelu", "silu"))
@pytest.mark.parametrize("format", ("contiguous", "channels_last"))
def test_every_algorithm_ends_in_the_activation(format, activation):
    for name in ("patches", "depthwise", "groups_narrow"):
        case = BY_NAME[name]
        x, w, b, _ = (t.detach() for t in arguments(case, torch.float32, format, "cuda"))
        _, reasons = _C.cuda_conv2d_selection(
            "fprop", "float32", case.input, case.weight, padding=case.padding, groups=case.groups
        )
        for algo in (algo for algo, reason in reasons.items() if not reason):
            options = {"padding": case.padding, "groups": case.groups, "algo": algo}
            sums = functional.conv2d(x, w, b, **options)
            y = functional.conv2d_act_pool2d(x, w, b, activation=activation, **options)
            expected = reference.ACTIVATIONS[activation](sums.cpu().double())
            assert_close(y, expected, torch.float32, what=algo)


@pytest.mark.parametrize("case", FUSED, ids=str)
def test_it_is_its_pieces(case):
    """The same in float64, whether fused or one functional after the other."""
    x, w, b, _ = arguments(case.conv, torch.float64, "contiguous")
    stride, padding, dilation, groups, mode = case.conv.geometry
    y = functional.conv2d(x, w, b, stride, padding, dilation, groups, padding_mode=mode)
    y = reference.ACTIVATIONS[case.activation](y)
    window = (case.pool_kernel, case.pool_stride, case.pool_padding)
    if case.pool == "max":
        y = functional.max_pool2d(y, *window, ceil_mode=case.pool_ceil_mode)
    elif case.pool == "avg":
        y = functional.avg_pool2d(y, *window, case.pool_ceil_mode, case.count_include_pad)
    fused = call(case, x, w, b)
    torch.testing.assert_close(fused, y)
    operands = [t for t in (x, w, b) if t is not None]
    for one, other in zip(
        torch.autograd.grad(fused.sum(), operands), torch.autograd.grad(y.sum(), operands),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("needs", list(itertools.product((False, True), repeat=3)), ids=str)
def test_only_the_gradients_asked_for_are_computed(needs):
    case = next(case for case in FUSED if case.name == "modern_lenet")
    *operands, _ = arguments(case.conv, torch.float32, "contiguous")
    for t, need in zip(operands, needs, strict=True):
        t.requires_grad_(need)
    y = call(case, *operands)
    assert y.requires_grad == any(needs)
    with RecordOps() as record:
        if any(needs):
            y.sum().backward()
    assert record.names == ["conv2d_act_pool2d_grad"] * any(needs)
    for t, need in zip(operands, needs, strict=True):
        assert (t.grad is not None) == need


@pytest.mark.parametrize("pool", ("none", "max", "avg"))
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_gradcheck_and_double_backward(activation, pool):
    operands = [values((1, 2, 5, 4), 0), values((3, 2, 2, 2), 1), values((3,), 2)]
    operands = [t.requires_grad_() for t in operands]

    def f(*operands):
        return functional.conv2d_act_pool2d(*operands, padding=1, activation=activation, pool=pool)

    torch.autograd.gradcheck(f, operands)
    torch.autograd.gradgradcheck(f, operands)


@pytest.mark.parametrize("save", (False, True))
@pytest.mark.parametrize("pool", ("none", "max", "avg"))
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_backward_whether_or_not_forward_saved(activation, pool, save):
    operands = [values((2, 3, 6, 7), 0), values((5, 3, 3, 3), 1), values((5,), 2)]

    def block(*operands):
        return reference.conv2d_act_pool2d(*operands, activation=activation, pool=pool)

    g = values(block(*operands).shape, 3)
    _, expected = reference.vjp(block, operands, g)
    operands = [t.requires_grad_() for t in operands]
    y, _, _ = torch.ops.cnnkern.conv2d_act_pool2d(
        *operands, activation=activation, pool=pool, save=save
    )
    for actual, e in zip(torch.autograd.grad(y, operands, g), expected, strict=True):
        assert_close(actual, e, torch.float64, 60, roundings=4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_activations_element_by_element(activation, dtype, target):
    """A pointwise convolution with 1 leaves the activation alone, far into its tails."""
    x = torch.cat([torch.linspace(-120, 120, 1937), torch.linspace(-1, 1, 501), torch.zeros(1)])
    x = x.to(target.device, dtype).view(1, 1, 1, -1).requires_grad_()
    y = functional.conv2d_act_pool2d(
        x, torch.ones(1, 1, 1, 1).to(x), activation=activation, **target.options
    )
    expected, (g,) = reference.vjp(
        reference.ACTIVATIONS[activation], (x.cpu(),), torch.ones(y.shape)
    )
    # Two ulps of the result, or of 1 where terms of that size cancel.
    eps = 2 * torch.finfo(dtype).eps
    assert ((y.cpu() - expected).abs() <= eps * expected.abs().clamp(min=1)).all()
    (actual,) = torch.autograd.grad(y.sum(), x)
    # Tanh and sigmoid are derived from the rounded result, and silu' has an x * (1 - sigmoid(x)),
    # where x up to 16 multiplies the rounding of the sigmoid.
    assert ((actual.cpu() - g).abs() <= 5 * eps).all()


@pytest.mark.parametrize("pool", ("none", "max", "avg"))
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_nan_reaches_only_its_windows(activation, pool, target):
    x, w = torch.zeros(1, 3, 8, 40), torch.ones(9, 3, 1, 1)
    x[0, 1, 4, 20] = float("nan")
    x, w = x.to(target.device), w.to(target.device)
    y = functional.conv2d_act_pool2d(x, w, activation=activation, pool=pool, **target.options).cpu()
    where = (4, 20) if pool == "none" else (2, 10)
    assert y[:, :, where[0], where[1]].isnan().all()
    assert int(y.isnan().sum()) == 9


def test_unbatched_input():
    x, w = values((3, 6, 7), 0), values((4, 3, 3, 3), 1)
    y = functional.conv2d_act_pool2d(x, w, activation="relu", pool="max")
    batched = functional.conv2d_act_pool2d(x[None], w, activation="relu", pool="max")
    assert y.equal(batched[0])
