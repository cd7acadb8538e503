"""The layers against torch.nn's: same init, state_dict, repr and results; copying and pickling."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from cases import values

from cnnkern import nn

# name -> (positional arguments, keyword arguments, input size)
CONVOLUTIONS = {
    "Conv2d": ((3, 8, 3), {"padding": 1}, (2, 3, 9, 10)),
    "Conv2d_all": (
        (4, 8, (3, 5)),
        {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2, "bias": False},
        (2, 4, 11, 12),
    ),
    "Conv2d_same": ((3, 8, 3), {"padding": "same"}, (2, 3, 9, 10)),
    "Conv2d_same_even": ((3, 8, (4, 2)), {"padding": "same", "dilation": 2}, (2, 3, 9, 10)),
    "Conv2d_valid": ((3, 8, 3), {"padding": "valid"}, (2, 3, 9, 10)),
    "Conv2d_reflect": ((3, 8, 5), {"padding": 2, "padding_mode": "reflect"}, (2, 3, 9, 10)),
    "Conv2d_replicate": (
        (3, 8, 4),
        {"padding": "same", "padding_mode": "replicate"},
        (2, 3, 9, 10),
    ),
    "Conv2d_circular": (
        (3, 8, (4, 3)),
        {"padding": (3, 1), "padding_mode": "circular", "stride": 2},
        (2, 3, 9, 10),
    ),
    "Conv2d_unbatched": ((3, 8, 3), {"padding": 1}, (3, 9, 10)),
    "Conv1d": ((3, 8, 5), {"stride": 2, "padding": 2}, (2, 3, 19)),
    "Conv1d_same": ((4, 8, 4), {"padding": "same", "groups": 4, "dilation": 3}, (2, 4, 19)),
    "Conv1d_circular": ((3, 8, 5), {"padding": 2, "padding_mode": "circular"}, (2, 3, 19)),
    "ConvTranspose2d": ((4, 6, 3), {"stride": 2, "padding": 1}, (2, 4, 5, 6)),
    "ConvTranspose2d_all": (
        (4, 6, (3, 2)),
        {"stride": (2, 3), "output_padding": (1, 2), "groups": 2, "dilation": (2, 1)},
        (2, 4, 5, 6),
    ),
}
POOLS = {
    "MaxPool1d": ((3, 2, 1), {}, (2, 3, 17)),
    "MaxPool2d": ((3, 2, 1), {}, (2, 3, 11, 12)),
    "MaxPool2d_ceil": ((2,), {"ceil_mode": True, "dilation": (2, 1)}, (2, 3, 11, 12)),
    "MaxPool2d_indices": ((2,), {"return_indices": True}, (2, 3, 11, 12)),
    "AvgPool1d": ((3, 2, 1), {"count_include_pad": False}, (2, 3, 17)),
    "AvgPool2d": ((3, 2, 1), {"ceil_mode": True}, (2, 3, 11, 12)),
    "AvgPool2d_divisor": ((3,), {"divisor_override": 4}, (2, 3, 11, 12)),
    "AdaptiveAvgPool2d": ((3,), {}, (2, 3, 11, 12)),
    "AdaptiveAvgPool2d_none": (((None, 4),), {}, (2, 3, 11, 12)),
    "AdaptiveMaxPool2d": (((3, 5),), {"return_indices": True}, (2, 3, 11, 12)),
    "LPPool2d": ((2, 3), {"stride": 2}, (2, 3, 11, 12)),
}


def pair(name, table):
    """Build ours and torch's from the same seed."""
    args, kwargs, size = table[name]
    kind = name.split("_")[0]
    modules = []
    for library in (nn, torch.nn):
        torch.manual_seed(3)
        modules.append(getattr(library, kind)(*args, **kwargs))
    return *modules, values(size, 5).float()


def tuple_of(out):
    return out if isinstance(out, tuple) else (out,)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_are_torchs(name):
    ours, theirs, x = pair(name, CONVOLUTIONS)
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert ours.state_dict()[key].equal(value), f"{key}: another init under the same seed"
    x, again = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = ours(x), theirs(again)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-4, atol=1e-4)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_state_dict_goes_both_ways(name):
    ours, theirs, x = pair(name, CONVOLUTIONS)
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(1)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-4)
    torch.nn.init.ones_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    assert theirs.weight.equal(ours.weight)


@pytest.mark.parametrize("name", POOLS)
def test_pools_are_torchs(name):
    ours, theirs, x = pair(name, POOLS)
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    for y, expected in zip(tuple_of(ours(x)), tuple_of(theirs(x)), strict=True):
        torch.testing.assert_close(y, expected)
    for y, expected in zip(tuple_of(ours(x[0])), tuple_of(theirs(x[0])), strict=True):
        torch.testing.assert_close(y, expected)


def test_unpool_undoes_pool(nondeterministic_torch):
    x = values((2, 3, 8, 9), 0).float()
    y, indices = nn.MaxPool2d(2, return_indices=True)(x)
    ours = nn.MaxUnpool2d(2)(y, indices, output_size=[8, 9])
    assert ours.equal(torch.nn.MaxUnpool2d(2)(y, indices, output_size=[8, 9]))
    assert repr(nn.MaxUnpool2d(2)) == repr(torch.nn.MaxUnpool2d(2))


def test_conv_transpose2d_output_size():
    ours, theirs, x = pair("ConvTranspose2d", CONVOLUTIONS)
    for size in ([9, 11], [10, 12], [9, 12]):
        y = ours(x, output_size=size)
        assert list(y.shape[2:]) == size
        torch.testing.assert_close(y, theirs(x, output_size=size))


def test_corr2d():
    """D2L section 7.2: an edge detector, found again by gradient descent."""
    torch.manual_seed(0)
    X = torch.ones(6, 8)
    X[:, 2:6] = 0
    layer = nn.Corr2d((1, 2))
    assert layer.weight.shape == (1, 2)
    assert layer.bias.tolist() == [0]
    Y = X[:, :-1] - X[:, 1:]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.2)
    for _ in range(500):
        optimizer.zero_grad()
        (layer(X) - Y).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(layer.weight, torch.tensor([[1.0, -1.0]]), rtol=0, atol=1e-2)


ALL = {
    "conv": lambda: nn.Conv2d(3, 4, 3, padding="same"),
    "conv1d": lambda: nn.Conv1d(9, 4, 3),
    "transpose": lambda: nn.ConvTranspose2d(3, 4, 3),
    "block": lambda: nn.ConvBlock(3, 4, 3, activation="gelu", pool="max"),
    "max": lambda: nn.MaxPool2d(2),
    "avg": lambda: nn.AvgPool2d(2),
    "adaptive": lambda: nn.AdaptiveAvgPool2d(2),
    "corr": lambda: nn.Corr2d(2),
}


def copies(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    yield copy.deepcopy(module)
    yield pickle.loads(pickle.dumps(module))
    yield torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("name", ALL)
def test_copies_compute_the_same(name):
    module = ALL[name]()
    x = values({"conv1d": (2, 9, 10), "corr": (9, 10)}.get(name, (2, 3, 9, 10)), 0).float()
    for other in copies(module):
        assert repr(other) == repr(module)
        assert other(x).equal(module(x))


def test_block_is_conv2d_with_more():
    torch.manual_seed(0)
    block = nn.ConvBlock(3, 8, 3, padding=1, activation="relu", pool="max", pool_kernel_size=3)
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(3, 8, 3, padding=1)
    assert block.state_dict().keys() == plain.state_dict().keys()
    assert block.weight.equal(plain.weight) and block.bias.equal(plain.bias)
    x = values((2, 3, 9, 10), 0).float()
    expected = torch.nn.functional.max_pool2d(plain(x).relu(), 3)
    torch.testing.assert_close(block(x), expected)
    assert "activation='relu', pool='max', pool_kernel_size=3" in repr(block)


def test_four_sided_padding_and_algo():
    layer = nn.Conv2d(3, 4, 3, padding=(1, 2, 3, 0), algo="direct")
    assert layer.algo == "direct" and "algo='direct'" in repr(layer)
    x = values((1, 3, 5, 6), 0).float()
    expected = torch.nn.functional.conv2d(
        torch.nn.functional.pad(x, (1, 2, 3, 0)), layer.weight, layer.bias
    )
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("name", ("Conv2d", "Conv2d_reflect", "ConvTranspose2d"))
def test_other_dtypes_and_layouts(name):
    for dtype in (torch.float64, torch.bfloat16):
        ours, _, x = pair(name, CONVOLUTIONS)
        expected = ours.to(dtype)(x.to(dtype))
        last = ours.to(memory_format=torch.channels_last)
        y = last(x.to(dtype).contiguous(memory_format=torch.channels_last))
        assert y.dtype == dtype
        assert y.is_contiguous(memory_format=torch.channels_last)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(y, expected, rtol=4 * eps, atol=16 * eps)
