"""What is particular to the Triton pools: division by multiplication, and positions of any kind."""

from __future__ import annotations

import random

import pytest
import torch
from cases import assert_close, layout, values

pytest.importorskip("triton")
from cnnkern import reference
from cnnkern.triton_kernels import conv2d_act_pool2d, index, max_unpool2d, pool2d, pool2d_grad
from cnnkern.triton_kernels.conv2d_act_pool2d import fits_one_kernel
from cnnkern.triton_kernels.index import magic

ops = torch.ops.cnnkern


def test_magic_numbers_divide_exactly():
    draw = random.Random(0)
    divisors = [
        1,
        2,
        3,
        5,
        7,
        641,
        2**30,
        2**31 - 1,
        *(2**k + d for k in range(2, 31) for d in (-1, 1)),
    ]
    divisors += [draw.randrange(1, 2**31) for _ in range(300)]
    for divisor in divisors:
        packed = magic(divisor)
        factor, shift = packed & 0xFFFFFFFF, packed >> 32
        assert factor * (2**31 - 1) < 2**63
        multiples = [draw.randrange(2**31 // divisor + 1) * divisor for _ in range(20)]
        near = [m + d for m in (*multiples, (2**31 - 1) // divisor * divisor) for d in (-1, 0, 1)]
        for i in (0, 1, divisor - 1, 2**31 - 1, *near):
            if 0 <= i < 2**31:
                assert i * factor >> shift == i // divisor, (i, divisor)


def positions(shape, plane, format):
    """Return int64 positions of which many repeat and some lie outside the plane."""
    generator = torch.Generator().manual_seed(3)
    at = torch.randint(plane, shape, generator=generator) // 3
    at[:, :, 0, 0], at[:, :, 1, 1] = -5, plane
    return layout(at, format)


@pytest.mark.gpu
@pytest.mark.parametrize("format", ("contiguous", "channels_last", "sliced"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_positions_that_repeat_or_lie_outside(dtype, format):
    """The last of several is kept, or all are added up in float32; outside is nowhere."""
    x = layout(values((2, 9, 7, 6), 0, 1 / 16).to(dtype), format)
    H, W = 9, 8
    at = positions(x.shape, H * W, format)
    kept, total = torch.zeros(2, 9, H * W, dtype=dtype), torch.zeros(2, 9, H * W).double()
    read = torch.zeros(x.shape, dtype=dtype)
    plane = values((2, 9, H, W), 1, 1 / 16).to(dtype)
    for n, c, p, q in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        i = int(at[n, c, p, q])
        if 0 <= i < H * W:
            kept[n, c, i] = x[n, c, p, q]
            total[n, c, i] += x[n, c, p, q].double()
            read[n, c, p, q] = plane[n, c].flatten()[i]
    given, there = layout(x.to("cuda"), format), layout(at.to("cuda"), format)
    y = ops.max_unpool2d.triton(given, there, [H, W])
    assert y.cpu().flatten(2).equal(kept)
    y = ops.adaptive_max_pool2d_grad.triton(given, there, [2, 9, H, W])
    assert_close(y.flatten(2), total, dtype, 8)
    y = ops.max_unpool2d_grad.triton(layout(plane.to("cuda"), format), there)
    assert y.cpu().equal(read)


@pytest.mark.gpu
@pytest.mark.parametrize("format", ("contiguous", "channels_last"))
def test_indices_of_64_bits(format, monkeypatch):
    """As tensors of 2^31 elements have them, on small ones."""
    for module in (index, max_unpool2d, conv2d_act_pool2d):
        monkeypatch.setattr(module, "needs_int64", lambda *tensors: True)
    window = (3, 2), (2, 3), (1, 1)
    x = values((2, 8, 9, 10), 0, 1 / 16)
    given = layout(x.float().to("cuda"), format)
    y, saved = pool2d.max_pool2d(given, *window, save="offsets")
    expected, at = reference.max_pool2d(x, *window)
    assert y.cpu().double().equal(expected)
    g = values(y.shape, 1, 1 / 16)
    _, (gradient,) = reference.vjp(lambda x: reference.max_pool2d(x, *window)[0], (x,), g)
    g = layout(g.float().to("cuda"), format)
    actual = pool2d_grad.max_pool2d_grad(g, saved, x.shape, *window)
    assert_close(actual, gradient, torch.float32, 6)
    at = layout(at.to("cuda"), format)
    actual = max_unpool2d.adaptive_max_pool2d_grad(g, at, list(x.shape))
    assert_close(actual, gradient, torch.float32, 6)
    assert max_unpool2d.max_unpool2d_grad(given, at).equal(y)
    block = (1, 1), (1, 1, 1, 1), (1, 1), 1, "zeros"
    w = values((5, 8, 3, 3), 2, 1 / 16)
    y, _, _ = conv2d_act_pool2d.conv2d_act_pool2d(
        given, w.float().to("cuda"), None, *block, activation="relu", pool="max"
    )
    expected = reference.conv2d_act_pool2d(x, w, None, *block, "relu", "max")
    assert_close(y, expected, torch.float32, 76)


def test_one_kernel_takes_lenet_and_leaves_the_rest():
    def fits(conv=(1, 16, 10, 10), channels=6, act="relu", pool="max", kernel=(2, 2), stride=(2, 2),
             groups=1, mode="zeros", padding=(0, 0), ceil_mode=False):  # fmt: skip
        x, w = torch.empty(1, channels, 14, 14), torch.empty(16, channels // groups, 5, 5)
        return fits_one_kernel(
            x, w, conv, groups, mode, act, pool, kernel, stride, padding, ceil_mode
        )

    assert fits()
    assert fits(act="sigmoid", pool="avg")
    assert fits(conv=(1, 16, 11, 10))  # a row that no window takes, and nothing to save of it
    assert not fits(conv=(1, 16, 11, 10), act="sigmoid", pool="avg")
    for change in (
        {"pool": "none"}, {"kernel": (3, 3), "stride": (3, 3)}, {"stride": (1, 2)},
        {"channels": 16}, {"groups": 2}, {"mode": "reflect"}, {"padding": (1, 1)},
        {"ceil_mode": True},
    ):  # fmt: skip
        assert not fits(**change), change
