"""Pools: exact where torch is exact, else against the oracle; ties, NaN, ceil_mode, divisors."""

from __future__ import annotations

import functools

import pytest
import torch
from cases import (
    ADAPTIVES,
    AVG_DIVISORS,
    AVG_POOLS,
    LAYOUTS,
    POOLS,
    assert_close,
    data_grid,
    layout,
    seed_of,
    values,
)

from cnnkern import functional, reference
from cnnkern.ops import is_nhwc

OPS = (
    "max_pool2d", "max_pool2d_grad", "avg_pool2d", "avg_pool2d_grad", "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_grad", "adaptive_max_pool2d", "adaptive_max_pool2d_grad", "max_unpool2d",
    "max_unpool2d_grad",
)  # fmt: skip
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FORMATS = ("contiguous", "channels_last")
TORCH = torch.nn.functional


def prepare(case, dtype, format, device, grid=None):
    x = values(case.input, seed_of(case.name), data_grid(dtype) if grid is None else grid)
    return layout(x.to(device, dtype), format).detach().requires_grad_()


def check_gradient(y, x, format, reduction, oracle, roundings=1):
    """Compare the gradient of x, for a random gradient of y in the same layout."""
    g = values(y.shape, 7, data_grid(x.dtype))
    _, (expected,) = reference.vjp(oracle, (x.cpu(),), g)
    g = layout(g.to(x.device, x.dtype), format)
    (actual,) = torch.autograd.grad(y, x, g)
    assert_close(actual, expected, x.dtype, reduction, roundings, what="gradient")
    if is_nhwc(y) and is_nhwc(g):
        assert actual.is_contiguous(memory_format=torch.channels_last)


# ---- max_pool2d --------------------------------------------------------------------------------


@pytest.mark.sanitize
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", POOLS, ids=str)
def test_max_pool2d(case, dtype, format, target):
    for grid in (data_grid(dtype), 1):  # multiples of 1: most windows have ties
        x = prepare(case, dtype, format, target.device, grid)
        expected, expected_indices = TORCH.max_pool2d(
            x.cpu(), *case.max_arguments, return_indices=True
        )
        y = functional.max_pool2d(x, *case.max_arguments, **target.options)
        assert y.cpu().equal(expected)
        also, indices = functional.max_pool2d(
            x, *case.max_arguments, return_indices=True, **target.options
        )
        assert also.equal(y)
        assert indices.cpu().equal(expected_indices)
        unsaved = functional.max_pool2d(x.detach(), *case.max_arguments, **target.options)
        assert unsaved.equal(y)
        taps = case.kernel[0] * case.kernel[1]
        for result in (y, also):  # a gradient through offsets, and one through indices
            check_gradient(
                result, x, format, taps, lambda x: reference.max_pool2d(x, *case.max_arguments)[0]
            )


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", ((1, 2), (1, 3), (2, 1), (2, 2), (3, 3), (9, 37)), ids=str)
def test_max_pool2d_of_nan_and_infinity(kernel, dtype, format, target):
    x = values((2, 19, 9, 37), 5, 1).to(dtype)
    special = values(x.shape, 6)
    x[special > 1] = float("nan")
    x[special < -0.5] = -float("inf")
    x[0, 0] = -float("inf")
    x[0, 1] = float("nan")
    x[0, 2] = float("inf")
    for padding in (0, tuple(k // 2 for k in kernel)):
        expected = TORCH.max_pool2d(x, kernel, 1, padding, return_indices=True)
        given = layout(x.to(target.device), format)
        actual = functional.max_pool2d(
            given, kernel, 1, padding, return_indices=True, **target.options
        )
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one.cpu(), other, rtol=0, atol=0, equal_nan=True)


def test_max_pool2d_of_signed_zeros_takes_the_first():
    x = torch.tensor([0.0, -0.0, -0.0, 0.0]).view(1, 1, 1, 4)
    y, indices = functional.max_pool2d(x, (1, 2), return_indices=True)
    assert indices.flatten().tolist() == [0, 2]
    assert y.signbit().flatten().tolist() == [False, True]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("size", "kernel", "padding", "dilation"),
    (((1, 1, 2, 3), (2, 1), (1, 0), (3, 1)), ((2, 18, 5, 2), (3, 2), (1, 1), (1, 3))),
    ids=("row", "column"),
)
def test_max_pool2d_window_without_any_element(size, kernel, padding, dilation, format):
    """Taps at rows, or columns, -1 and 2 of 2: nothing to take, so -inf and no gradient."""
    x = layout(values(size, 0).float(), format).detach().requires_grad_()
    y = functional.max_pool2d(x, kernel, 1, padding, dilation)
    assert y.numel() > 0
    assert (y == -float("inf")).all()
    y.sum().backward()
    assert (x.grad == 0).all()


@pytest.mark.parametrize("x_layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", LAYOUTS)
def test_layouts_that_are_not_dense(x_layout, grad_layout, target):
    x = values((2, 9, 8, 10), 0).to(target.device, torch.float32)
    x = layout(x, x_layout).detach().requires_grad_()
    for ours, oracle in (
        (functional.max_pool2d, lambda x: reference.max_pool2d(x, (3, 3), (2, 2), (1, 1))[0]),
        (functional.avg_pool2d, lambda x: reference.avg_pool2d(x, (3, 3), (2, 2), (1, 1))),
    ):
        y = ours(x, 3, 2, 1, **target.options)
        assert_close(y, oracle(x.cpu()), torch.float32, 9)
        check_gradient(y, x, grad_layout, 9, oracle)


# ---- avg_pool2d --------------------------------------------------------------------------------


@functools.cache
def avg_oracle(case, divisor, grid):
    x = values(case.input, seed_of(case.name), grid)
    return reference.avg_pool2d(x, *case.avg_arguments, *divisor)


@pytest.mark.sanitize
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", AVG_POOLS, ids=str)
def test_avg_pool2d(case, dtype, format, target):
    x = prepare(case, dtype, format, target.device)
    taps = case.kernel[0] * case.kernel[1]
    for divisor in AVG_DIVISORS:
        y = functional.avg_pool2d(x, *case.avg_arguments, *divisor, **target.options)
        assert_close(y, avg_oracle(case, divisor, data_grid(dtype)), dtype, taps)
        check_gradient(
            y, x, format, taps,
            lambda x, d=divisor: reference.avg_pool2d(x, *case.avg_arguments, *d),
        )  # fmt: skip


def test_avg_pool2d_divisors_are_torchs():
    """Ones in, so what comes out is taps / divisor: equal to the last bit, over many windows."""
    count = 0
    for H, kernel, stride in ((5, 2, 2), (7, 3, 2), (8, 3, 3), (6, 4, 3), (9, 2, 3), (4, 4, 1)):
        x = torch.ones(1, 1, H, H + 3, dtype=torch.float64)
        for padding in range(kernel // 2 + 1):
            for ceil_mode in (False, True):
                for divisor in AVG_DIVISORS:
                    arguments = (kernel, stride, padding, ceil_mode, *divisor)
                    expected = TORCH.avg_pool2d(x, *arguments)
                    assert functional.avg_pool2d(x, *arguments).equal(expected), (H, *arguments)
                    count += 1
    assert count == 112


# ---- adaptive pools, unpooling, power average --------------------------------------------------


@pytest.mark.sanitize
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ADAPTIVES, ids=str)
def test_adaptive_pools(case, dtype, format, target):
    x = prepare(case, dtype, format, target.device)
    reduction = case.input[2] * case.input[3]
    y = functional.adaptive_avg_pool2d(x, case.output, **target.options)
    assert_close(y, reference.adaptive_avg_pool2d(x.cpu(), case.output), dtype, reduction)
    check_gradient(y, x, format, 9, lambda x: reference.adaptive_avg_pool2d(x, case.output))

    expected = TORCH.adaptive_max_pool2d(x.cpu(), case.output, return_indices=True)
    y, indices = functional.adaptive_max_pool2d(
        x, case.output, return_indices=True, **target.options
    )
    assert y.cpu().equal(expected[0])
    assert indices.cpu().equal(expected[1])
    check_gradient(y, x, format, 9, lambda x: reference.adaptive_max_pool2d(x, case.output)[0])


@pytest.mark.parametrize("format", FORMATS)
def test_adaptive_max_pool2d_of_nan_and_infinity(format, target):
    """Of planes with none, one, two or only NaN, or nothing but -infinity."""
    x = values((1, 9, 9, 16), 5, 1)
    x[0, 1:3, 4, 5] = float("nan")
    x[0, 2:4, 8, 2] = float("nan")
    x[0, 4] = float("nan")
    x[0, 5] = -float("inf")
    x[0, 6, 3, 3:5] = float("inf")
    expected = TORCH.adaptive_max_pool2d(x, 1, return_indices=True)
    given = layout(x.to(target.device), format)
    actual = functional.adaptive_max_pool2d(given, 1, return_indices=True, **target.options)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.sanitize
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), (((2, 2), (2, 2), (0, 0)), ((3, 3), (1, 1), (1, 1)),
                                      ((3, 3), (2, 2), (1, 1)), ((4, 5), (4, 5), (0, 0))), ids=str
)  # fmt: skip
def test_pools_past_the_caches(kernel, stride, padding, format, cpu_isa):
    """On the CPU a batch of 16 MiB or more is fetched early and streamed; an image alone is not."""
    x = layout(values((9, 32, 134, 115), 3).float(), format)
    last = x[8:].contiguous(memory_format=torch.channels_last) if is_nhwc(x) else x[8:].contiguous()
    window = (kernel, stride, padding)
    for pool in (functional.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d):
        arguments = ((33, 23),) if pool is functional.adaptive_avg_pool2d else window
        both = []
        for images in (x.clone(memory_format=torch.preserve_format), last.clone()):
            images.requires_grad_()
            y = pool(images, *arguments)
            g = layout(values((9, *y.shape[1:]), 4).float()[-len(images) :], format)
            both.append((y.detach()[-1], *torch.autograd.grad(y, images, g)))
        (y_batch, grad_batch), (y_alone, grad_alone) = both
        assert torch.equal(y_batch, y_alone), pool
        assert torch.equal(grad_batch[-1], grad_alone[0]), pool


def test_adaptive_output_sizes():
    x = values((2, 3, 6, 9), 0)
    for size in (2, (3, 2), (None, 4), None):
        both = (size, size) if size is None else size
        expected = TORCH.adaptive_avg_pool2d(x, both)
        torch.testing.assert_close(functional.adaptive_avg_pool2d(x, size), expected)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_max_unpool2d(dtype, format, target, nondeterministic_torch):
    x = layout(values((2, 9, 8, 10), 0).to(target.device, dtype), format)
    pooled, indices = functional.max_pool2d(x, 2, 2, return_indices=True, **target.options)
    pooled = pooled.detach().requires_grad_()
    y = functional.max_unpool2d(pooled, indices, 2, 2, output_size=(9, 11), **target.options)
    expected = TORCH.max_unpool2d(pooled.cpu(), indices.cpu(), 2, 2, output_size=(9, 11))
    assert y.cpu().equal(expected)
    g = values(y.shape, 1).to(target.device, dtype)
    (actual,) = torch.autograd.grad(y, pooled, layout(g, format))
    assert actual.equal(g.flatten(2).gather(2, indices.flatten(2)).view_as(pooled))
    plain = functional.max_unpool2d(pooled, indices, 2, **target.options)
    assert plain.shape == (2, 9, 8, 10)


@pytest.mark.parametrize("p", (1, 2, 3, 1.5, float("inf")))
@pytest.mark.parametrize("ceil_mode", (False, True))
def test_lp_pool2d_is_torchs(p, ceil_mode):
    x = values((2, 3, 7, 8), 0).abs().requires_grad_()
    arguments = (p, (3, 2), (2, 3), ceil_mode)
    y = functional.lp_pool2d(x, *arguments)
    if p == float("inf"):  # which torch computes as x**inf
        expected = TORCH.max_pool2d(x, (3, 2), (2, 3), ceil_mode=ceil_mode)
    else:
        expected = TORCH.lp_pool2d(x, *arguments)
    torch.testing.assert_close(y, expected)
    for one, other in zip(*(torch.autograd.grad(t.sum(), x) for t in (y, expected)), strict=True):
        torch.testing.assert_close(one, other)


# ---- one dimension, no batch, derivatives ------------------------------------------------------

ONE_DIMENSION = {
    "max": (functional.max_pool1d, TORCH.max_pool1d, (3, 2, 1, 2)),
    "max_ceil": (functional.max_pool1d, TORCH.max_pool1d, (2, 3, 0, 1, True)),
    "avg": (functional.avg_pool1d, TORCH.avg_pool1d, (3, 2, 1)),
    "avg_ceil": (functional.avg_pool1d, TORCH.avg_pool1d, (4, 3, 2, True, False)),
    "adaptive_avg": (functional.adaptive_avg_pool1d, TORCH.adaptive_avg_pool1d, (4,)),
    "adaptive_max": (functional.adaptive_max_pool1d, TORCH.adaptive_max_pool1d, (4,)),
}


@pytest.mark.parametrize("name", ONE_DIMENSION)
def test_one_dimension_is_torchs(name):
    ours, theirs, arguments = ONE_DIMENSION[name]
    x = values((2, 3, 17), 0).requires_grad_()
    y, expected = ours(x, *arguments), theirs(x, *arguments)
    torch.testing.assert_close(y, expected)
    for one, other in zip(*(torch.autograd.grad(t.sum(), x) for t in (y, expected)), strict=True):
        torch.testing.assert_close(one, other)
    assert ours(x[0], *arguments).equal(y[0])
    if "max" in name:
        _, indices = ours(x, *arguments, return_indices=True)
        assert indices.equal(theirs(x, *arguments, return_indices=True)[1])


SMALL_POOLS = {
    "max": lambda x: functional.max_pool2d(x, 2, 1, 1),
    "max_indices": lambda x: functional.max_pool2d(x, (2, 3), 2, return_indices=True)[0],
    "max_unsaved": lambda x: torch.ops.cnnkern.max_pool2d(x.view(-1, 2, 4, 5), [2, 2], [1, 2])[0],
    "avg": lambda x: functional.avg_pool2d(x, (3, 2), 2, 1, True),
    "adaptive_avg": lambda x: functional.adaptive_avg_pool2d(x, (3, 2)),
    "adaptive_max": lambda x: functional.adaptive_max_pool2d(x, (3, 2)),
    "lp": lambda x: functional.lp_pool2d(x, 2, 2),
}


@pytest.mark.parametrize("name", SMALL_POOLS)
def test_gradcheck_and_double_backward(name):
    x = values((2, 2, 4, 5), 0).requires_grad_()
    for f in (SMALL_POOLS[name], lambda x: SMALL_POOLS[name](x[0])):  # with and without a batch
        torch.autograd.gradcheck(f, x)
        torch.autograd.gradgradcheck(f, x)
        torch.autograd.gradgradcheck(lambda x, f=f: f(x) ** 2, x)


def test_gradcheck_of_max_unpool2d():
    x = values((2, 2, 4, 6), 0)
    pooled, indices = functional.max_pool2d(x, 2, return_indices=True)
    pooled = pooled.detach().requires_grad_()

    def f(pooled):
        return functional.max_unpool2d(pooled, indices, 2) ** 2

    torch.autograd.gradcheck(f, pooled)
    torch.autograd.gradgradcheck(f, pooled)
