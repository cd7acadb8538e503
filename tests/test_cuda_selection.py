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
