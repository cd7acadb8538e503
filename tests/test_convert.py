"""A network written with torch.nn gives the same results and gradients on our kernels."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as TF

import cnnkern
from cnnkern import nn as ours
from cnnkern import reference
from cnnkern.convert import MODULES


class Block(nn.Module):
    """The residual block of "Dive into Deep Learning", section 8.6, as anyone would write it."""

    def __init__(self, inside, outside, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shortcut = nn.Conv2d(inside, outside, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(Block(8, 8), Block(8, 16, 2))
        self.mixer = nn.Conv2d(16, 16, 3, padding=1, groups=16, padding_mode="reflect")
        self.classifier = nn.Linear(32, 10)

    def forward(self, x):
        x = TF.max_pool2d(self.stem(x), 3, 2, 1)
        x = self.mixer(self.body(x))
        pooled = [TF.adaptive_avg_pool2d(x, 1), TF.adaptive_max_pool2d(x, 1)]
        return self.classifier(torch.cat(pooled, 1).flatten(1))


def run(model, x):
    """Return the output and all gradients."""
    x = x.clone().requires_grad_()
    y = model(x)
    weights = torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape)
    return [y, *torch.autograd.grad((y * weights).sum(), [x, *model.parameters()])]


def assert_same(got, want):
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-9)


@pytest.fixture
def resnet():
    torch.manual_seed(0)
    return ResNet().double()


@pytest.fixture
def images():
    return torch.randn(
        2, 3, 33, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


def test_converted_resnet(resnet, images):
    want = run(copy.deepcopy(resnet), images)
    converted = cnnkern.convert(resnet)
    assert_same(run(converted, images), want)
    assert type(converted.mixer) is ours.Conv2d
    assert type(resnet.mixer) is nn.Conv2d
    assert all(a is b for a, b in zip(resnet.parameters(), converted.parameters(), strict=True))
    assert list(converted.state_dict()) == list(resnet.state_dict())


def test_overridden_resnet(resnet, images):
    want = run(copy.deepcopy(resnet), images)
    with cnnkern.override():
        got = run(resnet, images)
    assert_same(got, want)
    with torch.profiler.profile() as profile, cnnkern.override(), torch.no_grad():
        resnet(images)
    assert not torch_kernels(profile)


def torch_kernels(profile) -> set[str]:
    """Name the convolutions and pools of torch's own that ran."""
    kernels = ("aten::conv", "aten::_conv", "aten::max_pool", "aten::adaptive", "aten::_adaptive")
    return {event.key for event in profile.key_averages() if event.key.startswith(kernels)}


def test_inplace_keeps_the_objects_hooks_and_mode(resnet):
    calls = []
    mixer = resnet.mixer
    mixer.register_forward_hook(lambda *args: calls.append("hook"))
    resnet.eval()
    assert cnnkern.convert(resnet, inplace=True) is resnet
    assert resnet.mixer is mixer
    assert type(mixer) is ours.Conv2d
    assert not mixer.training
    resnet(torch.randn(1, 3, 32, 32, dtype=torch.float64))
    assert calls == ["hook"]


def test_a_copy_keeps_hooks(resnet):
    calls = []
    resnet.mixer.register_forward_hook(lambda *args: calls.append("hook"))
    cnnkern.convert(resnet)(torch.randn(1, 3, 32, 32, dtype=torch.float64))
    assert calls == ["hook"]


def test_subclasses_are_left_alone():
    class Mine(nn.Conv2d):
        pass

    model = cnnkern.convert(nn.Sequential(Mine(1, 1, 3), nn.Conv2d(1, 1, 3)))
    assert type(model[0]) is Mine
    assert type(model[1]) is ours.Conv2d


def test_the_root_and_shared_modules_are_converted():
    assert type(cnnkern.convert(nn.Conv2d(1, 1, 3))) is ours.Conv2d
    conv = nn.Conv2d(1, 1, 3)
    model = cnnkern.convert(nn.Sequential(conv, conv))
    assert model[0] is model[1]


def test_fused_runs():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.Sigmoid(), nn.AvgPool2d(2)),
        *(nn.Conv2d(4, 4, 3), nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
        *(nn.Conv2d(4, 4, 1), nn.GELU(), nn.Conv2d(4, 4, 1)),
    ).double()
    x = torch.randn(2, 3, 17, 18, dtype=torch.float64)
    fused = cnnkern.convert(model, fuse=True)
    kinds = [type(module) for module in fused]
    block, gap = ours.ConvBlock, nn.Identity
    assert kinds == [block, gap, gap, block, gap, block, gap, ours.Conv2d]
    assert list(fused.state_dict()) == list(model.state_dict())
    assert_same(run(fused, x), run(model, x))


@pytest.mark.parametrize("spoil", ["hook", "shared", "tanh_gelu", "dilated", "indices"])
def test_runs_that_must_not_be_fused(spoil):
    conv, act, pool = nn.Conv2d(1, 1, 3, padding=1), nn.GELU(), nn.MaxPool2d(2)
    modules = [conv, act, pool]
    if spoil == "hook":
        act.register_forward_hook(lambda module, args, output: output + 1)
    elif spoil == "shared":
        modules += [conv]
    elif spoil == "tanh_gelu":
        act.approximate = "tanh"
    elif spoil == "dilated":
        modules = [conv, nn.MaxPool2d(2, dilation=2)]
    else:
        modules = [conv, nn.MaxPool2d(2, return_indices=True)]
    model = nn.Sequential(*modules)
    fused = cnnkern.convert(model, fuse=True)
    assert type(fused[0]) is ours.Conv2d
    x = torch.randn(1, 1, 12, 12)
    torch.testing.assert_close(fused(x), model(x))


CALLS = {
    "Conv1d": ((4, 6, 3), {"padding": 1}, (2, 4, 9)),
    "Conv2d": ((4, 6, 3), {"stride": 2, "padding": (1, 2), "groups": 2}, (2, 4, 9, 8)),
    "ConvTranspose2d": ((4, 6, 3), {"stride": 2, "output_padding": 1}, (2, 4, 5, 6)),
    "MaxPool1d": ((3,), {"stride": 2, "padding": 1, "return_indices": True}, (2, 4, 9)),
    "MaxPool2d": ((3,), {"stride": 2, "ceil_mode": True, "return_indices": True}, (2, 4, 8, 9)),
    "AvgPool1d": ((3,), {"padding": 1, "count_include_pad": False}, (2, 4, 9)),
    "AvgPool2d": ((3,), {"stride": 2, "padding": 1, "divisor_override": 4}, (2, 4, 8, 9)),
    "AdaptiveAvgPool1d": ((3,), {}, (2, 4, 8)),
    "AdaptiveAvgPool2d": (((3, None),), {}, (2, 4, 8, 9)),
    "AdaptiveMaxPool1d": ((3,), {"return_indices": True}, (2, 4, 8)),
    "AdaptiveMaxPool2d": (((None, 2),), {"return_indices": True}, (2, 4, 8, 9)),
    "LPPool2d": ((2, 3), {"stride": 2, "ceil_mode": True}, (2, 4, 8, 9)),
}


@pytest.mark.parametrize("unbatched", [False, True], ids=["batched", "unbatched"])
@pytest.mark.parametrize("name", CALLS)
def test_every_module(name, unbatched):
    torch.manual_seed(0)
    args, kwargs, size = CALLS[name]
    theirs = getattr(nn, name)(*args, **kwargs).double()
    x = torch.randn(size[1:] if unbatched else size, dtype=torch.float64)
    mine = cnnkern.convert(theirs)
    assert type(mine) is MODULES[type(theirs)]
    assert repr(mine) == repr(theirs)
    want = theirs(x)
    with cnnkern.override():
        overridden = theirs(x)
    for got in (mine(x), overridden):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [None, (7, 9), (2, 3, 7, 9)], ids=str)
def test_max_unpool2d(size):
    H, W = (8, 6) if size is None else size[-2:]
    pooled, indices = nn.MaxPool2d(2, return_indices=True)(torch.randn(2, 3, H, W))
    theirs = nn.MaxUnpool2d(2)
    mine = cnnkern.convert(theirs)
    # Torch's own refuses to run under use_deterministic_algorithms.
    want = reference.max_unpool2d(pooled, indices, (H, W)).float()
    assert mine(pooled, indices, output_size=size).equal(want)
    with cnnkern.override():
        assert theirs(pooled, indices, output_size=size).equal(want)


def test_transposed_output_size():
    theirs = nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1)
    x = torch.randn(1, 2, 5, 5)
    mine = cnnkern.convert(theirs)
    torch.testing.assert_close(mine(x, output_size=[10, 9]), theirs(x, output_size=[10, 9]))


def test_override_catches_torch_itself():
    x, w = torch.randn(1, 2, 6, 6), torch.randn(3, 2, 3, 3)
    with torch.profiler.profile() as profile, cnnkern.override():
        torch.conv2d(x, w, None, 1, "same")
        torch.max_pool2d(x, 2)
        torch._C._nn.max_pool2d_with_indices(x, 2)
        torch.conv_transpose2d(x, w.transpose(0, 1))
        torch.conv1d(x[0, :, 0], w[:, :, 0])
    assert not torch_kernels(profile)


def test_override_leaves_other_tensors_to_torch():
    x, w = torch.randn(1, 1, 4, 4).cfloat(), torch.randn(1, 1, 3, 3).cfloat()
    with cnnkern.override():
        got = TF.conv2d(x, w)
    assert got.equal(TF.conv2d(x, w))
