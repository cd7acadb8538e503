"""The Triton convolutions compiled ahead for every architecture, without a GPU.

What can be seen in a compiled kernel: tensor-core instructions where they should be, no spilled
registers, shared memory within the architecture's limit, and 16-byte accesses.
"""

from __future__ import annotations

import re

import pytest
import torch

triton = pytest.importorskip("triton")

from cnnkern.triton_kernels import conv2d, conv2d_weight_grad  # noqa: E402
from cnnkern.triton_kernels.ahead import compile_launch, resources  # noqa: E402
from cnnkern.triton_kernels.launch import Recorder  # noqa: E402

# Bytes of shared memory of one block, and the tensor-core instruction that Triton emits.
ARCHS = {
    75: (64 << 10, None),
    80: (163 << 10, r"mma\.sync"),
    86: (99 << 10, r"mma\.sync"),
    89: (99 << 10, r"mma\.sync"),
    90: (227 << 10, r"wgmma\.mma_async"),
    100: (227 << 10, r"tcgen05\.mma"),
    120: (99 << 10, r"mma\.sync"),
}
PASSES = ("fprop", "dgrad", "wgrad")
VECTOR = r"cp\.async\.c[ag]\.shared\.global [^;]*, (?:16|0x10),|ld\.global\S*\.v4\.b32"


def record(sm, which, dtype, algo="auto", nhwc=True, kernel=3, channels=256, groups=1):
    """Return the launches of one pass over 32 images of 56x56 pixels."""
    format = torch.channels_last if nhwc else torch.contiguous_format
    sizes = ((32, channels, 56, 56), (32, 256, 56, 56), (256, channels // groups, kernel, kernel))
    x, g, w = (
        torch.empty(size, dtype=dtype, device="meta", memory_format=format) for size in sizes
    )
    pad = kernel // 2
    conv = ((1, 1), (pad,) * 4, (1, 1), groups, "zeros", algo)
    with Recorder(sm) as launches:
        if which == "fprop":
            conv2d.conv2d(x, w, None, *conv)
        elif which == "dgrad":
            conv2d.conv2d_input_grad(g, w, x.shape, *conv)
        else:
            conv2d_weight_grad.conv2d_weight_grad(g, x, w.shape, *conv)
    return launches


def check(launches, sm, instruction, vectors=False):
    limit, _ = ARCHS[sm]
    compiled = compile_launch(launches[0], sm)
    used, ptx = resources(compiled, sm), compiled.asm["ptx"]
    assert used.spilled_bytes == 0, used
    assert used.shared_bytes <= limit, used
    if instruction:
        assert re.search(instruction, ptx), "no tensor-core instruction"
    if vectors:
        assert re.search(VECTOR, ptx), "no 16-byte loads"
        assert re.search(r"st\.global\S*\.v4", ptx) or vectors == "loads", "no 16-byte stores"


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("sm", ARCHS)
def test_half_precision(sm, which):
    """NHWC and channels_last weights: everything is vectors, but the weight's gradient in KCRS."""
    launches = record(sm, which, torch.float16)
    vectors = True if which != "wgrad" else "loads" if sm >= 80 else False
    check(launches, sm, ARCHS[sm][1], vectors)


@pytest.mark.parametrize("sm", ARCHS)
def test_bfloat16(sm):
    check(record(sm, "fprop", torch.bfloat16), sm, ARCHS[sm][1], vectors=True)


@pytest.mark.parametrize(("which", "algo"), (
    ("fprop", "triton_tf32"), ("dgrad", "triton_tf32x3"), ("wgrad", "triton_tf32"),
))  # fmt: skip
@pytest.mark.parametrize("sm", [sm for sm in ARCHS if sm >= 80])
def test_tf32(sm, which, algo):
    """wgmma and tcgen05 take tf32 along the sum only: its transposed operands are no vectors."""
    launches = record(sm, which, torch.float32, algo)
    vectors = True if which != "wgrad" else "loads" if sm not in (90, 100) else False
    check(launches, sm, ARCHS[sm][1], vectors)


# Arguments of `record`, and whether there is a matrix product for tensor cores.
KINDS = {
    "nchw": ({"nhwc": False}, True),
    "pointwise_nchw": ({"nhwc": False, "kernel": 1}, True),
    "few_channels": ({"channels": 3, "kernel": 7}, True),
    "groups": ({"groups": 64}, True),
    "depthwise": ({"groups": 256}, False),
    "float32": ({"dtype": torch.float32}, False),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sm", ARCHS)
def test_other_kinds(sm, kind):
    """Their results' pass, on every architecture; tensor cores by any of their instructions."""
    options, multiplies = KINDS[kind]
    launches = record(sm, "fprop", **{"dtype": torch.float16, **options})
    check(launches, sm, r"mma\.sync|wgmma|tcgen05\.mma" if multiplies and sm >= 80 else None)


@pytest.mark.parametrize("nhwc", (True, False), ids=("NHWC", "NCHW"))
def test_pointwise(nhwc):
    """1x1 kernels make vectors of both layouts' activations."""
    check(record(80, "fprop", torch.float16, nhwc=nhwc, kernel=1), 80, r"mma\.sync", vectors=True)


@pytest.mark.parametrize("which", PASSES)
def test_nchw(which):
    check(record(80, which, torch.float16, nhwc=False), 80, r"mma\.sync")


@pytest.mark.parametrize("which", PASSES)
def test_few_channels(which):
    check(record(80, which, torch.float16, channels=3, kernel=7), 80, r"mma\.sync")


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("groups", (64, 256))
def test_groups(which, groups):
    instruction = r"mma\.sync" if groups == 64 else None
    check(record(80, which, torch.float16, groups=groups), 80, instruction)


@pytest.mark.parametrize("which", PASSES)
def test_exact_float32(which):
    """Plain FMAs: no tensor core keeps all bits of float32."""
    launches = record(80, which, torch.float32)
    assert "mma" not in compile_launch(launches[0], 80).asm["ptx"]
    check(launches, 80, r"fma\.rn\.f32")
