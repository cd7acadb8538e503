"""The Triton kernels under Triton's interpreter: a second opinion without a compiler.

float32 only: the interpreter's dot products of 16-bit types are not what a GPU computes. It is
chosen by an environment variable that Triton reads on import, so the cases run in a process. With
it set, the tests of the tables have a target more, of which gpu.py leaves out the largest cases.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TABLES = ("conv2d", "conv2d_act_pool2d", "conv_transpose2d", "pool2d")
SELECTED = (
    "triton and (test_forward_and_gradients or test_max_unpool2d "
    "or test_max_pool2d and (odd_rest or dilation_ceil) or test_avg_pool2d and ceil_padded "
    "or test_adaptive_pools and (uneven or global))"
)
# Larger ones, for paths of the kernels that the small cases of the table do not take.
CASES = ("lenet2", "pointwise_tile", "groups_narrow", "depthwise")
PROGRAM = """
import sys

import torch
from test_conv2d import BY_NAME, arguments, check

from cnnkern.triton_kernels import conv2d, conv2d_fold, conv2d_weight_grad

torch.use_deterministic_algorithms(True)

def run(names, format):
    for name in names:
        case = BY_NAME[name]
        check(case, torch.float32, *arguments(case, torch.float32, format), algo="triton")

run(sys.argv[1:], "contiguous")
run(("pointwise_tile", "channels9", "depthwise"), "channels_last")
for module in (conv2d, conv2d_fold, conv2d_weight_grad):
    module.needs_int64 = lambda *tensors: True  # no test has tensors that need it
run(("pointwise_tile", "groups_narrow", "depthwise", "circular"), "contiguous")
print("done")
"""


def interpreted(*arguments):
    pytest.importorskip("triton")
    paths = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=600
    )


def test_tables():
    files = [str(TESTS / f"test_{name}.py") for name in TABLES]
    pytest_ = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", "-k", SELECTED)
    result = interpreted(*pytest_, *files)
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(re.search(r"(\d+) passed", result.stdout).group(1)) >= 40


def test_convolutions():
    result = interpreted("-c", PROGRAM, *CASES)
    assert result.stdout.endswith("done\n"), result.stderr
