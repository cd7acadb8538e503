"""Planted bugs: each must be reported, or give wrong numbers where that is all emulation can do."""

import pytest
import torch
from compiling import compile_ptx
from ptxcpu import LaunchError, Module


def module(bug=None, check=1, order=0):
    m = Module(compile_ptx("bugs.cu", defines=[f"BUG_{bug}"] if bug else []))
    m.options(order=order, check=check, seed=5)
    return m


def block_sum(m):
    x, out = torch.randn(4, 256), torch.zeros(4)
    m.launch("block_sum", 4, 256, [x, out])
    return torch.allclose(out, x.sum(1), atol=1e-4)


def async_reverse(m, n=128):
    x, y = torch.randn(n, 4), torch.zeros(n, 4)
    m.launch("async_reverse", -(-n // 64), 64, [x, y, n])
    return torch.equal(y, x.view(-1, 64, 4).flip(1).view(-1, 4)) if n % 64 == 0 else True


def warp_exchange(m):
    x, y = torch.arange(32, dtype=torch.int32), torch.zeros(32, dtype=torch.int32)
    m.launch("warp_exchange", 1, 32, [x, y])
    return torch.equal(y, x ^ 1)


def missed_barrier(m):
    x, y = torch.randn(64), torch.zeros(64)
    m.launch("missed_barrier", 1, 64, [x, y])
    return torch.equal(y, x.view(-1, 2).flip(1).reshape(-1))


def tail_sum(m):
    x, out = torch.randn(20), torch.zeros(1)
    m.launch("tail_sum", 1, 32, [x, out, 20])
    return torch.allclose(out, x.sum(), atol=1e-5)


@pytest.mark.parametrize("check", [0, 1, 2])
def test_correct_kernels_pass(check, order):
    m = module(check=check, order=order)
    assert all(
        test(m) for test in (block_sum, async_reverse, warp_exchange, missed_barrier, tail_sum)
    )


@pytest.mark.parametrize(
    ("bug", "check", "test", "message"),
    [
        ("NO_SYNC", 2, block_sum, "shared-memory race"),
        ("NO_SYNCWARP", 2, warp_exchange, "shared-memory race"),
        ("NO_WAIT", 2, async_reverse, "before the copy"),
        ("DIVERGENT_BARRIER", 1, block_sum, "divergent barrier"),
        ("EARLY_RETURN", 2, missed_barrier, "exited while others wait at a barrier"),
        ("MISALIGNED", 1, async_reverse, "misaligned shared"),
        ("EXITED_LANES", 1, tail_sum, "which has exited"),
    ],
)
def test_bug_is_reported(bug, check, test, message, order):
    with pytest.raises(LaunchError, match=message) as error:
        test(module(bug, check, order))
    assert (
        "PTX line" in str(error.value)
        and "bugs.cu:" in str(error.value)
        and "thread (" in str(error.value)
    )


def test_out_of_bounds_is_reported(order):
    with pytest.raises(LaunchError, match=r"out-of-bounds global read.*offset 1600"):
        async_reverse(module("OUT_OF_BOUNDS", 1, order), n=100)


@pytest.mark.parametrize(
    ("bug", "test"),
    [
        ("WRONG_LANE", block_sum),
        ("NO_SYNC", block_sum),
        ("NO_WAIT", async_reverse),
        ("NO_SYNCWARP", warp_exchange),
    ],
)
def test_bug_gives_wrong_numbers_without_checks(bug, test):
    assert not test(module(bug, check=0))


def test_launch_arguments_are_checked():
    m = module()
    with pytest.raises(LaunchError, match="takes 2 arguments"):
        m.launch("block_sum", 1, 256, [1, 2, 3])
    with pytest.raises(LaunchError, match="block of 2048 threads"):
        m.launch("block_sum", 1, 2048, [torch.zeros(1), torch.zeros(1)])
    with pytest.raises(LaunchError, match="out-of-bounds global read"):
        m.launch("block_sum", 1, 256, [None, torch.zeros(1)])
