"""The memory of large CPU outputs: used again, bounded, and still right."""

import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import cnnkern
from cnnkern import _C

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the cache is for Linux")
MIB = 2**20


@pytest.fixture(autouse=True)
def empty():
    gc.collect()
    cnnkern.empty_cpu_cache()
    yield
    cnnkern.empty_cpu_cache()


def pooled(mib: float) -> torch.Tensor:
    """Return an output of that many MiB."""
    return cnnkern.max_pool2d(torch.zeros(1, int(mib * MIB / 4 / 32**2), 32, 32), 1)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_freed_output_is_the_next_one(memory_format, dtype):
    x = torch.randn(8, 64, 72, 72).to(dtype).contiguous(memory_format=memory_format)
    want = torch.nn.functional.max_pool2d(x, 3, 1, 1)
    y = cnnkern.max_pool2d(x, 3, 1, 1)
    torch.testing.assert_close(y, want, rtol=0, atol=0)
    assert (
        y.stride() == want.stride()
        and y.untyped_storage().nbytes() == 8 * 64 * 72**2 * dtype.itemsize
    )
    where = y.data_ptr()
    del y
    assert _C.cpu_cached_bytes() >= x.nbytes
    again = cnnkern.max_pool2d(-x, 3, 1, 1)
    assert again.data_ptr() == where and _C.cpu_cached_bytes() == 0
    torch.testing.assert_close(again, torch.nn.functional.max_pool2d(-x, 3, 1, 1), rtol=0, atol=0)


def test_memory_in_use_is_not_given_away():
    outputs = [pooled(8).fill_(i) for i in range(4)]
    view = outputs[1][:, 3:5]
    del outputs[1]  # the view holds its memory
    outputs += [pooled(8).fill_(4)]
    assert (view == 1).all() and [int(y.max()) for y in outputs] == [0, 2, 3, 4]


def test_a_block_serves_what_nearly_fills_it():
    pooled(10)
    pooled(8)
    assert _C.cpu_cached_bytes() == 10 * MIB
    pooled(7)  # of no use for so little is a block of 10
    assert _C.cpu_cached_bytes() == 7 * MIB


def test_no_more_is_kept_than_was_in_use():
    for mib in (6, 9, 14, 22, 35, 6, 9, 14, 22, 35):
        pooled(mib)
        assert _C.cpu_cached_bytes() <= 35 * MIB


def test_new_blocks_take_the_place_of_kept_ones():
    outputs = [pooled(8) for _ in range(8)]
    outputs.clear()
    assert _C.cpu_cached_bytes() == 64 * MIB
    pooled(20)  # where three of 8 were
    assert _C.cpu_cached_bytes() == 60 * MIB


def test_small_outputs_are_none_of_its_business():
    pooled(3)
    assert _C.cpu_cached_bytes() == 0


def test_gradients_of_a_step_come_from_it():
    x = torch.randn(4, 64, 80, 80, requires_grad=True)
    w = torch.randn(64, 1, 3, 3)
    for _ in range(3):
        y = cnnkern.conv2d(x, w, padding=1, groups=64)
        (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
        want = torch.nn.grad.conv2d_input(x.shape, w, torch.ones_like(y), padding=1, groups=64)
        torch.testing.assert_close(grad, want, rtol=1e-5, atol=1e-5)
        del y, grad
    assert _C.cpu_cached_bytes() >= 2 * x.nbytes


def test_threads_share_it():
    x = torch.randn(4, 64, 72, 72)
    want = torch.nn.functional.max_pool2d(x, 3, 1, 1)

    def right(_):
        return all(torch.equal(cnnkern.max_pool2d(x, 3, 1, 1), want) for _ in range(20))

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(right, range(16)))


@pytest.mark.parametrize("on", [True, False])
def test_the_environment_turns_it_off(on):
    code = (
        "import torch, cnnkern; from cnnkern import _C; y = torch.zeros(2, 64, 256, 256);"
        "cnnkern.max_pool2d(y, 1); print(_C.cpu_cached_bytes())"
    )
    env = {"PATH": "", "CNNKERN_CPU_CACHE": str(int(on))}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
    )
    assert int(run.stdout) == on * 2 * 64 * 256 * 256 * 4


def test_a_large_output_is_a_tensor_like_any():
    y = pooled(8)
    view, copy = y.view(-1), y.clone()
    y.add_(1).share_memory_()
    torch.testing.assert_close(y, copy + 1)
    assert view.numel() == y.numel() and y.resize_(4, 4).shape == (4, 4)
    with pytest.raises(RuntimeError, match="not resizable"):
        pooled(8).resize_(2**23)
