"""The oracle against torch itself, in float64: values, indices and gradients of every case."""

from __future__ import annotations

import pytest
import torch
from cases import (
    ADAPTIVES,
    AVG_DIVISORS,
    AVG_POOLS,
    CONV_TRANSPOSES,
    CONVS,
    FUSED,
    POOLS,
    seed_of,
    values,
)
from torch.nn import functional as F

from cnnkern import reference

# Both sides are float64 and differ in the order of their sums alone.
CLOSE = {"rtol": 1e-11, "atol": 1e-11}


def torch_conv2d(x, w, b, stride, padding, dilation, groups, padding_mode):
    mode = "constant" if padding_mode == "zeros" else padding_mode
    return F.conv2d(F.pad(x, padding, mode=mode), w, b, stride, 0, dilation, groups)


def compare(ours, theirs, *tensors):
    """Compare outputs and the gradients of every tensor."""
    shape = ours(*tensors).shape
    grad = values(shape, 99)
    actual, actual_grads = reference.vjp(ours, tensors, grad)
    expected, expected_grads = reference.vjp(theirs, tensors, grad)
    torch.testing.assert_close(actual, expected, **CLOSE)
    for one, other in zip(actual_grads, expected_grads, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("case", CONVS, ids=str)
def test_conv2d(case):
    t = case.tensors()
    compare(
        lambda x, w, b: reference.conv2d(x, w, b, *case.geometry),
        lambda x, w, b: torch_conv2d(x, w, b, *case.geometry),
        t["input"], t["weight"], t["bias"],
    )  # fmt: skip
    assert list(reference.conv2d(t["input"], t["weight"], None, *case.geometry).shape) == (
        case.output_size()
    )


def test_conv2d_by_hand():
    x = torch.arange(9.0).view(1, 1, 3, 3)
    k = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    expected = torch.tensor([[[[19.0, 25.0], [37.0, 43.0]]]], dtype=torch.float64)
    assert reference.conv2d(x, k).equal(expected)  # D2L section 7.2


@pytest.mark.parametrize("case", CONV_TRANSPOSES, ids=str)
def test_conv_transpose2d(case):
    seed = seed_of(case.name)
    x, w = values(case.input, seed), values(case.weight, seed + 1)
    b = values((case.weight[1] * case.groups,), seed + 2)
    compare(
        lambda x, w, b: reference.conv_transpose2d(x, w, b, *case.arguments),
        lambda x, w, b: F.conv_transpose2d(x, w, b, *case.arguments),
        x, w, b,
    )  # fmt: skip


@pytest.mark.parametrize("grid", (0, 1))  # normal values, and multiples of 1 with many ties
@pytest.mark.parametrize("case", POOLS, ids=str)
def test_max_pool2d(case, grid):
    x = values(case.input, seed_of(case.name), grid)
    ours, theirs = reference.max_pool2d, F.max_pool2d
    compare(lambda x: ours(x, *case.max_arguments)[0], lambda x: theirs(x, *case.max_arguments), x)
    _, indices = theirs(x, *case.max_arguments, return_indices=True)
    assert ours(x, *case.max_arguments)[1].equal(indices)


def test_max_pool2d_of_nan_and_infinity():
    x = torch.tensor([[float("nan"), 1, float("nan"), 2], [-float("inf")] * 4]).double()
    x = x.view(1, 1, 2, 4)
    for kernel in ((1, 2), (1, 3), (1, 4), (2, 2), (2, 1)):
        actual = reference.max_pool2d(x, kernel, (1, 1))
        expected = F.max_pool2d(x, kernel, 1, return_indices=True)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("divisor", AVG_DIVISORS, ids=str)
@pytest.mark.parametrize("case", AVG_POOLS, ids=str)
def test_avg_pool2d(case, divisor):
    x = values(case.input, seed_of(case.name))
    compare(
        lambda x: reference.avg_pool2d(x, *case.avg_arguments, *divisor),
        lambda x: F.avg_pool2d(x, *case.avg_arguments, *divisor),
        x,
    )


@pytest.mark.parametrize("case", ADAPTIVES, ids=str)
def test_adaptive_pools(case):
    x = values(case.input, seed_of(case.name))
    compare(
        lambda x: reference.adaptive_avg_pool2d(x, case.output),
        lambda x: F.adaptive_avg_pool2d(x, case.output),
        x,
    )
    compare(
        lambda x: reference.adaptive_max_pool2d(x, case.output)[0],
        lambda x: F.adaptive_max_pool2d(x, case.output),
        x,
    )
    _, indices = F.adaptive_max_pool2d(x, case.output, return_indices=True)
    assert reference.adaptive_max_pool2d(x, case.output)[1].equal(indices)


def test_max_unpool2d(nondeterministic_torch):
    x = values((2, 3, 8, 10), 0)
    pooled, indices = F.max_pool2d(x, 2, 2, return_indices=True)
    compare(
        lambda x: reference.max_unpool2d(x, indices, (8, 10)),
        lambda x: F.max_unpool2d(x, indices, 2, 2, output_size=(8, 10)),
        pooled,
    )


@pytest.mark.parametrize("case", FUSED, ids=str)
def test_conv2d_act_pool2d(case):
    def torch_block(x, w, b):
        y = torch_conv2d(x, w, b, *case.conv.geometry)
        y = y if case.activation == "none" else getattr(F, case.activation)(y)
        window = (case.pool_kernel, case.pool_stride, case.pool_padding)
        if case.pool == "max":
            return F.max_pool2d(y, *window, 1, case.pool_ceil_mode)
        if case.pool == "avg":
            return F.avg_pool2d(y, *window, case.pool_ceil_mode, case.count_include_pad)
        return y

    t = case.conv.tensors()
    compare(
        lambda x, w, b: reference.conv2d_act_pool2d(x, w, b, *case.conv.geometry, *case.act_pool),
        torch_block,
        t["input"], t["weight"], t["bias"],
    )  # fmt: skip
