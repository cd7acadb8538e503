"""conv_transpose2d: forward and every gradient, over the case table, against the oracle."""

from __future__ import annotations

import pytest
import torch
from cases import CONV_TRANSPOSES, assert_close, data_grid, layout, seed_of, values

from cnnkern import functional, reference
from cnnkern.ops import is_nhwc

OPS = ("conv2d", "conv2d_input_grad", "conv2d_weight_grad", "conv2d_bias_grad")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("format", ("contiguous", "channels_last"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CONV_TRANSPOSES, ids=str)
def test_forward_and_gradients(case, dtype, format, target):
    seed, grid = seed_of(case.name), data_grid(dtype)
    C, Kg, R, S = case.weight
    sizes = (case.input, case.weight, (Kg * case.groups,))
    operands = [values(size, seed + i, grid) for i, size in enumerate(sizes)]
    expected = reference.conv_transpose2d(*operands, *case.arguments)
    g = values(expected.shape, seed + 3, grid)
    _, expected_grads = reference.vjp(
        lambda x, w, b: reference.conv_transpose2d(x, w, b, *case.arguments), operands, g
    )

    x, w, b = (t.to(target.device, dtype) for t in operands)
    x, w, g = (layout(t, format).detach() for t in (x, w, g.to(target.device, dtype)))
    operands = [t.requires_grad_() for t in (x, w, b)]
    y = functional.conv_transpose2d(*operands, *case.arguments, **target.options)
    # The sum is stored, the bias added and the result stored again.
    assert_close(y, expected, dtype, C // case.groups * R * S, roundings=2)
    if is_nhwc(x):
        assert is_nhwc(y) or y.shape[1] == 1
    windows = max(1, x.shape[0] * y.shape[2] * y.shape[3])
    reductions = (Kg * R * S, windows, windows)
    for name, actual, e, reduction in zip(
        ("input", "weight", "bias"), torch.autograd.grad(y, operands, g), expected_grads,
        reductions, strict=True,
    ):  # fmt: skip
        assert_close(actual, e, dtype, reduction, 2, what=f"gradient of {name}")


@pytest.mark.parametrize("case", CONV_TRANSPOSES, ids=str)
def test_it_is_the_adjoint_of_conv2d(case):
    """<conv_transpose2d(x), y> = <x, conv2d(y)>, where conv2d reads what the transpose wrote."""
    x, w = values(case.input, 0), values(case.weight, 1)
    up = functional.conv_transpose2d(x, w, None, *case.arguments)
    y = values(up.shape, 2)
    down = functional.conv2d(y, w, None, case.stride, case.padding, case.dilation, case.groups)
    assert down.shape[2] >= x.shape[2] and down.shape[3] >= x.shape[3]
    down = down[:, :, : x.shape[2], : x.shape[3]]
    torch.testing.assert_close((up * y).sum(), (x * down).sum())


def test_gradcheck_and_double_backward():
    x, w, b = values((2, 4, 3, 2), 0), values((4, 1, 2, 3), 1), values((2,), 2)
    operands = [t.requires_grad_() for t in (x, w, b)]

    def f(x, w, b):
        return functional.conv_transpose2d(x, w, b, (2, 1), (1, 0), (1, 1), 2, (1, 2))

    torch.autograd.gradcheck(f, operands)
    torch.autograd.gradgradcheck(f, operands)


def test_unbatched_input():
    x, w = values((4, 3, 5), 0), values((4, 2, 3, 3), 1)
    y = functional.conv_transpose2d(x, w, stride=2)
    assert y.equal(functional.conv_transpose2d(x[None], w, stride=2)[0])
