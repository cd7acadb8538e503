"""The Triton convolutions under Triton's interpreter: a second opinion without a compiler.

float32 only: the interpreter's dot products of 16-bit types are not what a GPU computes. It is
chosen by an environment variable that Triton reads on import, so the cases run in a process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# One for each path of the kernels; the whole table runs compiled.
CASES = (
    "lenet2", "pointwise_tile", "stride_exceeds_kernel", "dilation_stride", "groups_narrow",
    "depthwise", "depthwise_multiplier", "replicate", "batch0",
)  # fmt: skip
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


def test_convolutions():
    pytest.importorskip("triton")
    paths = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *CASES],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.stdout.endswith("done\n"), result.stderr
