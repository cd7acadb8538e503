"""Which CUDA algorithm computes a convolution, asked without a GPU."""

from __future__ import annotations

import pytest

from cnnkern import _C

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
