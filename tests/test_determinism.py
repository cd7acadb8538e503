"""Bitwise equality: over repeated runs, thread counts, and of an image alone and in a batch."""

from __future__ import annotations

import pytest
import torch
from cases import CONVS, layout, values
from samples import call_ids, on_device, raw_calls

from cnnkern import functional

OPS = ()  # whatever a backend has
CALLS = raw_calls(torch.float32)
LARGE = (
    "lenet1",
    "vgg",
    "channels128",
    "reduction1152",
    "wide",
    "depthwise_stride",
    "stride2_tile",
    "stride2_copy",
    "columns_bands",
    "tiles_cut",
    "outputs257",
)


def outputs(op, arguments):
    out = op(*arguments)
    return out if isinstance(out, tuple) else (out,)


def assert_same_bits(one, other, what=""):
    """Compare bytes, so that NaN equals itself and -0.0 does not equal 0.0."""
    for a, b in zip(one, other, strict=True):
        assert a.shape == b.shape
        assert a.contiguous().view(torch.uint8).equal(b.contiguous().view(torch.uint8)), what


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_runs_and_thread_counts(dtype, cpu_isa, restore_threads):
    for format in ("contiguous", "channels_last"):
        calls = raw_calls(dtype, format)
        for what, (name, arguments) in zip(call_ids(calls), calls, strict=True):
            op = getattr(torch.ops.cnnkern, name)
            torch.set_num_threads(1)
            first = outputs(op, arguments)
            assert_same_bits(first, outputs(op, arguments), what)
            for threads in (2, 3, 5):
                torch.set_num_threads(threads)
                assert_same_bits(first, outputs(op, arguments), f"{what}, {threads} threads")


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_runs_on_a_gpu(dtype, gpu):
    for format in ("contiguous", "channels_last"):
        calls = raw_calls(dtype, format)
        for what, (name, arguments) in zip(call_ids(calls), calls, strict=True):
            if gpu.has(name):
                arguments = on_device(arguments, gpu.device)
                first = outputs(gpu.op(name), arguments)
                assert_same_bits(first, outputs(gpu.op(name), arguments), what)


@pytest.mark.parametrize("format", ("contiguous", "channels_last"))
@pytest.mark.parametrize("case", [c for c in CONVS if c.name in LARGE], ids=str)
def test_thread_counts_where_there_is_work_to_split(case, format, cpu_isa, restore_threads):
    t = {k: v.float() for k, v in case.tensors().items() if v is not None}
    x, w, g = (layout(t[name], format) for name in ("input", "weight", "grad"))

    def run():
        ops = torch.ops.cnnkern
        return (
            ops.conv2d(x, w, t.get("bias"), *case.geometry),
            ops.conv2d_input_grad(g, w, list(x.shape), *case.geometry),
            ops.conv2d_weight_grad(g, x, list(w.shape), *case.geometry),
            ops.conv2d_bias_grad(g),
        )

    torch.set_num_threads(1)
    first = run()
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        for name, a, b in zip(("fprop", "dgrad", "wgrad", "bias"), first, run(), strict=True):
            assert_same_bits((a,), (b,), f"{name}, {threads} threads")


@pytest.mark.parametrize("format", ("contiguous", "channels_last"))
@pytest.mark.parametrize("case", [c for c in CONVS if c.name in LARGE], ids=str)
def test_an_image_is_the_same_alone_and_in_a_batch(case, format, cpu_isa):
    _, C, H, W = case.input
    x = layout(values((3, C, H, W), 0).float(), format)
    w = values(case.weight, 1).float()
    b = values(case.weight[:1], 2).float()
    whole = torch.ops.cnnkern.conv2d(x, w, b, *case.geometry)
    g = layout(values(whole.shape, 3).float(), format)
    whole_grad = torch.ops.cnnkern.conv2d_input_grad(g, w, list(x.shape), *case.geometry)
    for i in range(3):
        alone = torch.ops.cnnkern.conv2d(x[i : i + 1], w, b, *case.geometry)
        assert_same_bits((whole[i : i + 1],), (alone,), f"fprop of image {i}")
        grad = torch.ops.cnnkern.conv2d_input_grad(g[i : i + 1], w, [1, C, H, W], *case.geometry)
        assert_same_bits((whole_grad[i : i + 1],), (grad,), f"dgrad of image {i}")


@pytest.mark.parametrize("format", ("contiguous", "channels_last"))
@pytest.mark.parametrize(
    "case",
    [c for c in CONVS if c.name in ("lenet1", "lenet2", "grey", "window_images", "images35")],
    ids=str,
)
def test_an_image_is_the_same_alone_and_in_a_large_batch(case, format, cpu_isa):
    """A batch of these has images as lanes, which one image cannot fill."""
    x = layout(values((37, *case.input[1:]), 0).float(), format)
    w, b = values(case.weight, 1).float(), values(case.weight[:1], 2).float()
    ops = torch.ops.cnnkern
    whole = ops.conv2d(x, w, b, *case.geometry)
    g = layout(values(whole.shape, 3).float(), format)
    whole_grad = ops.conv2d_input_grad(g, w, list(x.shape), *case.geometry)
    for i in (0, 20, 36):
        one = slice(i, i + 1)
        assert_same_bits((whole[one],), (ops.conv2d(x[one], w, b, *case.geometry),), "fprop")
        grad = ops.conv2d_input_grad(g[one], w, [1, *case.input[1:]], *case.geometry)
        assert_same_bits((whole_grad[one],), (grad,), "dgrad")


def test_pools_and_block_are_the_same_alone_and_in_a_batch(cpu_isa):
    x, w = values((33, 9, 14, 19), 0).float(), values((10, 9, 3, 3), 1).float()
    for f in (
        lambda x: functional.max_pool2d(x, 3, 2, 1),
        lambda x: functional.avg_pool2d(x, 3, 2, 1),
        lambda x: functional.adaptive_avg_pool2d(x, 3),
        lambda x: functional.conv2d_act_pool2d(x, w, activation="silu", pool="avg"),
        lambda x: functional.conv2d_act_pool2d(x, w, activation="tanh", pool="max"),
    ):
        whole = f(x)
        for i in (0, 15, 32):
            assert_same_bits((whole[i : i + 1],), (f(x[i : i + 1]),))


def test_layouts_agree_on_values(cpu_isa):
    """Not to the last bit, but a max pool has no arithmetic and so must."""
    x = values((2, 17, 11, 23), 0, 1 / 4).float()
    one = functional.max_pool2d(x, 3, 2, 1, return_indices=True)
    other = functional.max_pool2d(layout(x, "channels_last"), 3, 2, 1, return_indices=True)
    assert_same_bits(one, other)
