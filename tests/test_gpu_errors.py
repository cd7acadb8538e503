"""CUDA tensors that are refused, and launches that fail: the words of the CPU, or CUDA's own.

The rows and the pattern of the messages are those of test_errors.
"""

from __future__ import annotations

import re

import pytest
import torch
from cases import layout, values
from gpu import RIG_ORDER
from samples import on_device, raw_calls
from test_errors import CALLS, GEOMETRY_CASES, TENSORS, refused

from cnnkern import _cuda_library, functional, reference
from cnnkern.ops import CUDA_OPS

OPS = ()  # whatever a backend has
HAS_CUDA_LIBRARY = _cuda_library.status().startswith("loaded")
on_the_rig = pytest.mark.skipif(not RIG_ORDER, reason="only the emulator fails on demand")
pytestmark = pytest.mark.gpu


def moved(arguments: dict, device: str) -> dict:
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }


def call_with(gpu, name, position, value):
    arguments = on_device(list(CALLS[name]), gpu.device)
    arguments[position] = value
    return gpu.op(name)(*arguments)


def refusal(op, *args, **arguments) -> str:
    """Return what an op says when it refuses a call, or nothing where it does not."""
    try:
        op(*args, **arguments)
    except RuntimeError as error:
        return str(error)
    return ""


def test_geometry(gpu):
    """Every row of test_errors, through the raw op: the same words as on the CPU."""
    count = 0
    for name, base, (change, *_) in GEOMETRY_CASES:
        if not gpu.has(name):
            continue
        text = refusal(gpu.op(name), **moved(base | change, gpu.device))
        if "algo" in change:  # each device has algorithms of its own
            assert text.startswith(f"cnnkern::{name}: algo ") and "'fastest'" in text
        else:
            assert text == refusal(getattr(torch.ops.cnnkern, name).default, **(base | change))
            assert text.startswith(f"cnnkern::{name}: ")
        count += 1
    assert count >= 25


def wrong_tensors(t):
    """Yield tensors that differ from a valid argument in dtype, number of axes, or size."""
    for dtype in (torch.int32, torch.uint8, torch.complex64, torch.float32):
        yield t.to(dtype)
    yield t[..., 0] if t.dim() > 1 else t[None]
    yield torch.cat([t, t])
    if t.dim() == 4:
        yield t[:, :, 1:]


def test_tensors(gpu):
    """One argument at a time is wrong: the same words as on the CPU, or none on both."""
    refused = 0
    for name, position, _ in TENSORS:
        if not gpu.has(name):
            continue
        for wrong in wrong_tensors(CALLS[name][position]):
            arguments = list(CALLS[name])
            arguments[position] = wrong
            text = refusal(gpu.op(name), *on_device(arguments, gpu.device))
            assert text == refusal(getattr(torch.ops.cnnkern, name).default, *arguments)
            refused += bool(text)
    assert refused > 100


def test_tensors_on_two_devices(gpu):
    for name, position, argument in TENSORS:
        if gpu.has(name) and sum(n == name for n, _, _ in TENSORS) > 1:
            text = refusal(lambda *a: call_with(gpu, *a), name, position, CALLS[name][position])
            assert re.fullmatch(
                rf"cnnkern::{name}: (\w+) must be on the same device as (\w+)", text
            )  # fmt: skip
            assert argument in text


def test_tensors_that_are_not_strided(gpu):
    for name, position, _ in TENSORS:
        if gpu.has(name) and CALLS[name][position].dim() == 4:
            sparse = torch.ones(CALLS[name][position].shape).to_sparse().to(gpu.device)
            with refused(name, "sparse", errors=RuntimeError):
                call_with(gpu, name, position, sparse)


def test_algorithms_by_a_wrong_name(gpu):
    x, w = (t.to(gpu.device) for t in (torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)))
    for algo in ("fastest", "", "Triton"):
        with refused("conv2d", "algo", repr(algo), errors=RuntimeError):
            functional.conv2d(x, w, algo=algo)


# ---- alignment, streams ------------------------------------------------------------------------


@pytest.mark.parametrize("format", ("contiguous", "channels_last"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
def test_views_at_an_odd_offset(dtype, format, gpu):
    """Sizes that invite 16-byte accesses, at an address that forbids them."""

    def odd(t):
        dense = layout(t.to(gpu.device, dtype), format)
        memory = torch.empty(dense.numel() + 1, dtype=dtype, device=gpu.device)
        view = memory[1:].as_strided(dense.size(), dense.stride(), 1)
        return view.copy_(dense)

    x, w, g = (
        values(s, i, 1 / 16) for i, s in enumerate(((1, 16, 8, 8), (16, 16, 3, 3), (1, 16, 6, 6)))
    )
    expected, (gx, gw) = reference.vjp(lambda x, w: reference.conv2d(x, w, None), (x, w), g)
    near = {"rtol": 0, "atol": 0.02 if dtype == torch.float16 else 1e-4}
    if gpu.has("conv2d", "conv2d_input_grad", "conv2d_weight_grad"):
        ours, theirs = [odd(t).requires_grad_() for t in (x, w)], (expected, gx, gw)
        y = functional.conv2d(*ours, **gpu.options)
        for one, other in zip((y, *torch.autograd.grad(y, ours, odd(g))), theirs, strict=True):
            torch.testing.assert_close(one.cpu().double(), other, rtol=1e-3, atol=near["atol"])
    if gpu.has("max_pool2d", "avg_pool2d"):
        y = functional.max_pool2d(odd(x), 2, **gpu.options)
        assert y.cpu().double().equal(torch.nn.functional.max_pool2d(x, 2))
        y = functional.avg_pool2d(odd(x), 2, **gpu.options)
        torch.testing.assert_close(y.cpu().double(), torch.nn.functional.avg_pool2d(x, 2), **near)


def test_the_current_stream_is_used(gpu):
    x, w = (t.to(gpu.device) for t in (torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3)))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = functional.conv2d(x, w, **gpu.options)
    stream.synchronize()
    assert (y == 18).all()


# ---- launches that fail, devices that lack something -------------------------------------------


@on_the_rig
@pytest.mark.skipif(not HAS_CUDA_LIBRARY, reason="no CUDA C++ kernels")
def test_a_failed_launch_is_told_in_cudas_words(monkeypatch):
    """By the op that failed; and the next one is right again."""
    for name, arguments in raw_calls(torch.float32):
        if name not in CUDA_OPS:
            continue
        arguments = on_device(arguments, "cuda")
        op = getattr(torch.ops.cnnkern, name).default
        with monkeypatch.context() as environment:
            environment.setenv("PTXCPU_FAIL_LAUNCH", "_kernel")
            with refused(name, "CUDA: ", "too many resources", errors=RuntimeError):
                op(*arguments)
        op(*arguments)


@on_the_rig
@pytest.mark.skipif(not HAS_CUDA_LIBRARY, reason="no CUDA C++ kernels")
def test_what_an_old_gpu_lacks_is_refused_by_name_and_replaced_by_auto(monkeypatch):
    monkeypatch.setenv("PTXCPU_CAPABILITY", "75")
    x, w = torch.ones(1, 64, 8, 8), torch.ones(64, 64, 3, 3)
    x, w = (layout(t, "channels_last").to("cuda", torch.float16) for t in (x, w))
    assert (functional.conv2d(x, w)[:, :, :1, :1] == 64 * 9).all()
    with pytest.raises(RuntimeError) as names:
        functional.conv2d(x, w, algo="?")
    if "'mma'" in str(names.value):
        with pytest.raises(RuntimeError, match=r"conv2d: algo 'mma' .*(sm_80|8\.0)"):
            functional.conv2d(x, w, algo="mma")


def test_kernel_arch():
    arch = _cuda_library.kernel_arch()
    assert re.fullmatch(r"\d+\.\d", arch)
    assert tuple(map(int, arch.split("."))) <= torch.cuda.get_device_capability()
