"""Which CUDA algorithm computes a convolution, asked without a GPU."""

from __future__ import annotations

import pytest
import torch

from cnnkern import _C, functional, selection

PLAIN = {"input": [8, 64, 28, 28], "weight": [64, 64, 3, 3], "padding": [1, 1, 1, 1]}


def select(pass_="fprop", dtype="float32", **options):
    return _C.cuda_conv2d_selection(pass_, dtype, **(PLAIN | options))


def test_every_algorithm_is_explained():
    chosen, reasons = select()
    assert set(reasons) == set(_C.cuda_conv2d_algos())
    assert reasons[chosen] == ""


@pytest.mark.parametrize("arch", (75, 80, 90, 120))
@pytest.mark.parametrize("dtype", ("float32", "float64", "bfloat16", "float16"))
@pytest.mark.parametrize("pass_", ("fprop", "dgrad", "wgrad"))
def test_direct_takes_everything(pass_, dtype, arch):
    for options in (
        {},
        {"channels_last": True},
        {"groups": 4, "weight": [64, 16, 3, 3]},
        {"padding_mode": "reflect"},
        {"input": [1, 1, 28, 28], "weight": [6, 1, 5, 5], "padding": [2, 2, 2, 2]},
    ):
        chosen, reasons = select(pass_, dtype, arch=arch, **options)
        assert reasons["direct"] == "" and reasons[chosen] == ""


def test_what_is_no_problem_is_refused():
    with pytest.raises(RuntimeError, match=r"^cnnkern::conv2d: weight must"):
        select(weight=[64, 3, 3, 3])
    with pytest.raises(ValueError, match="dtype is unknown: 'int8'"):
        select(dtype="int8")


@pytest.mark.parametrize("pass_", ("fprop", "dgrad"))
def test_winograd_is_for_plain_3x3_kernels_in_float32(pass_):
    chosen, reasons = select(pass_)
    assert chosen == "winograd"
    for changed, reason in (
        ({"dtype": "float16"}, "float32 only"),
        ({"weight": [64, 64, 3, 5]}, r"kernel of (3, 3), got (3, 5)"),
        ({"stride": [1, 2]}, "stride (1, 1), got (1, 2)"),
        ({"dilation": [2, 1]}, "dilation (1, 1), got (2, 1)"),
        ({"groups": 4, "weight": [64, 16, 3, 3]}, "groups 1, got 4"),
        ({"padding_mode": "circular"}, "padding_mode 'zeros'"),
        ({"input": [1, 64, 1, 1 << 29], "channels_last": True}, "rows below 2^29"),
    ):
        chosen, reasons = select(pass_, **changed)
        assert chosen != "winograd"
        assert reason in reasons["winograd"]


@pytest.mark.parametrize(
    "changed",
    (
        {"input": [8, 31, 28, 28], "weight": [64, 31, 3, 3]},
        {"weight": [31, 64, 3, 3]},
        {"input": [1, 64, 7, 7]},  # 16 patches fill half a tile
    ),
)
def test_winograd_has_to_save_products(changed):
    chosen, reasons = select(**changed)
    assert chosen != "winograd" and reasons["winograd"] == ""


def test_winograd_has_no_weight_gradient():
    chosen, reasons = select("wgrad")
    assert (chosen, reasons["winograd"]) == ("igemm", "has no gradient of the weight")


@pytest.mark.parametrize("pass_", ("fprop", "dgrad", "wgrad"))
def test_float32_is_on_tensor_cores_only_when_asked_for(pass_):
    assert select(pass_)[0] != "mma"
    assert select(pass_, algo="auto_tf32")[0] == "mma"
    assert select(pass_, algo="auto_tf32", arch=75)[0] != "mma"
    assert select(pass_, "float64", algo="auto_tf32")[0] == select(pass_, "float64")[0]
    assert select(pass_, algo="auto_tf32", groups=64, weight=[64, 1, 3, 3])[0] == "depthwise"


@pytest.mark.parametrize(
    ("channels", "dtype", "arch", "expected"),
    (
        (4, "float16", 80, "grouped"),
        (8, "float16", 80, "grouped"),
        (16, "float16", 80, "mma"),
        (16, "float16", 75, "grouped"),
        (16, "float32", 80, "grouped"),
        (32, "float32", 80, "igemm"),
    ),
)
def test_groups_of_few_channels(channels, dtype, arch, expected):
    problem = {"input": [8, 128, 28, 28], "weight": [128, channels, 3, 3]}
    chosen, _ = select(dtype=dtype, arch=arch, groups=128 // channels, **problem)
    assert chosen == expected


BACKENDS = {"all": torch.backends, "cudnn": torch.backends.cudnn, "conv": torch.backends.cudnn.conv}


@pytest.fixture
def precision():
    """Set torch.backends' precisions of float32, which the end of the test undoes."""
    settings = {}

    def set_(**wanted):
        for name, value in wanted.items():
            settings.setdefault(name, BACKENDS[name].fp32_precision)
            BACKENDS[name].fp32_precision = value

    yield set_
    for name, value in settings.items():
        BACKENDS[name].fp32_precision = value


@pytest.mark.parametrize(
    ("settings", "asks"),
    (
        ({}, False),  # although cudnn.conv says tf32
        ({"conv": "tf32"}, False),
        ({"cudnn": "tf32"}, True),
        ({"all": "tf32"}, True),
        ({"all": "tf32", "conv": "ieee"}, False),
        ({"all": "tf32", "cudnn": "ieee"}, False),
    ),
)
def test_torch_settings_that_ask_for_tf32(settings, asks, precision):
    precision(**settings)
    assert selection.asks_for_tf32() is asks
    x = torch.ones(1, 1, 1, 1)
    assert selection.conv2d_algo("auto", x) == "auto"  # nothing changes on the CPU


@pytest.mark.gpu
def test_torch_setting_puts_convolutions_on_tensor_cores(precision):
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(*size, generator=generator).cuda().requires_grad_()
            for size in ((2, 16, 5, 6), (16, 16, 3, 3)))  # fmt: skip

    def results(convolve=functional.conv2d, **options):
        y = convolve(x, w, padding=1, **options)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), (x, w))]

    def same(a, b):
        return [torch.equal(*pair) for pair in zip(a, b, strict=True)]

    exact, rounded = results(), results(algo="auto_tf32")
    assert not any(same(exact, rounded))
    precision(all="tf32")
    assert all(same(results(), rounded))
    assert all(same(results(torch.compile(functional.conv2d, fullgraph=True, backend="eager")),
                    rounded))  # fmt: skip
    precision(all="ieee")
    assert all(same(results(), exact))


@pytest.mark.gpu
def test_torch_setting_leaves_tritons_precisions_alone(precision):
    """They are named by algo; "auto" and "auto_tf32" are what the public functions make of it."""
    pytest.importorskip("triton")
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(*size, generator=generator).cuda()
            for size in ((2, 16, 5, 6), (16, 16, 3, 3)))  # fmt: skip

    def result(algo):
        conv = [[1, 1], [1, 1, 1, 1], [1, 1], 1, "zeros", algo]
        return torch.ops.cnnkern.conv2d.triton(x, w, None, *conv)

    exact, rounded = result("triton"), result("triton_tf32")
    assert not exact.equal(rounded)
    assert result("auto").equal(exact) and result("auto_tf32").equal(rounded)
    precision(all="tf32")
    assert functional.conv2d(x, w, padding=1, algo="triton").equal(exact)
