"""Tuning of Triton kernels on a GPU, with its own clock or a stub that says which tile wins."""

# ruff: noqa: F811  (a fixture of another file)
from __future__ import annotations

import functools
import itertools

import pytest
import torch
from cases import assert_close, values
from gpu import allocator_with_pools

pytest.importorskip("triton")
from test_triton_tuning import cache  # noqa: F401  (of the test's own, for every test)

from cnnkern import reference
from cnnkern.triton_kernels import conv2d, conv2d_weight_grad, tuning
from cnnkern.triton_kernels.config import RANGES, Ranges, Tile

pytestmark = pytest.mark.gpu


def test_the_gpus_clock(cache, monkeypatch):
    """Calls are timed in a graph, once warm; the tile that is kept is fast and its result right."""
    monkeypatch.setitem(RANGES, "pool2d", Ranges((1, 1), (128, 256), (1, 1), (4, 4), (2, 2)))
    pool = torch.ops.cnnkern.avg_pool2d.triton
    x, window = values((2, 8, 9, 9), 0).float().to("cuda"), ([2, 2], [2, 2])
    want, times = pool(x, *window), {}

    def timer(call):
        (tile,) = call.keywords["forced"].values()
        times[tile] = tuning.gpu_time(call)
        return times[tile]

    with allocator_with_pools(), tuning.tune(timer):
        pool(x, *window)
    assert {tile.pixels for tile in times} == {128, 256}
    assert all(0 < time < 60_000 for time in times.values())
    ((_, tiles),) = tuning.read(cache).items()
    (kept,) = tiles.values()
    assert times[kept] <= min(times.values()) / tuning.GAIN  # the first of two that are as fast
    assert pool(x, *window).cpu().equal(want.cpu())


def test_tiles_that_do_not_fit_the_gpu_are_out(cache):
    """Six stages of 64 KiB of shared memory; a convolution that fits is timed after it."""
    from triton.runtime.errors import OutOfResources

    arguments = tuple(
        values(size, 0).to("cuda", torch.float16, memory_format=torch.channels_last)
        for size in ((1, 128, 6, 6), (128, 128, 3, 3))
    )
    asked, raised = {}, []
    tuning._run(conv2d.conv2d, arguments, {}, asked)
    ((key, table),) = asked.items()

    def timer(call):
        try:
            call()
        except OutOfResources as error:
            raised.append(error)
            raise
        return 1.0

    with tuning.tune(timer):
        time = functools.partial(tuning._time, conv2d.conv2d, arguments, key)
        times = [
            tuning._time_or_infinity(time, tile) for tile in (Tile(128, 128, 128, 8, 6), table)
        ]
    assert times == [float("inf"), 1.0]
    assert len(raised) == 1 and "shared memory" in str(raised[0])


def test_forward_and_backward_are_tuned_and_right(cache):
    """A clock by which the tile that is timed second wins: one that is not the table's."""
    x, w, b = values((2, 24, 6, 7), 0), values((40, 24, 3, 3), 1), values((40,), 2)
    on_gpu = [t.float().to("cuda").requires_grad_() for t in (x, w, b)]
    conv = ((1, 1), (1, 1, 1, 1), (1, 1), 1, "zeros", "triton")
    times: dict[str, itertools.chain] = {}

    def timer(call):
        (problem,) = tuple(call.keywords["forced"])
        times.setdefault(problem, itertools.chain((2, 1), itertools.repeat(3)))
        return next(times[problem])

    with tuning.tune(timer):
        y = torch.ops.cnnkern.conv2d.triton(*on_gpu, *conv)
        g = values(y.shape, 3)
        grads = torch.autograd.grad(y, on_gpu, g.float().to("cuda"))
    (tiles,) = tuning.read(cache).values()
    assert {key.split("/")[0] for key in tiles} == {
        "conv2d_gather", "conv2d_weight_grad", "conv2d_pixel_sum"
    }  # fmt: skip
    y_want, wants = reference.vjp(lambda *t: reference.conv2d(*t, *conv[:2]), (x, w, b), g)
    for actual, want in zip((y, *grads), (y_want, *wants), strict=True):
        assert_close(actual, want, torch.float32, 24 * 9)


def test_the_machine_has_a_name():
    name = tuning.machine(torch.device("cuda", 0))
    assert name.startswith(torch.cuda.get_device_name(0))
    assert f"torch {torch.__version__}" in name and "triton 3" in name


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_large_tiles_are_right(dtype, monkeypatch):
    """Those of problems too large for the emulator, on one that is not; its weight is packed."""
    monkeypatch.setattr(conv2d, "PIXELS_TO_PACK", 1)
    monkeypatch.setattr(conv2d, "conv2d_tile", lambda *a: Tile(128, 128, 64, 8, 3))
    monkeypatch.setattr(
        conv2d_weight_grad, "conv2d_weight_tile", lambda *a: Tile(128, 128, 32, 8, 3)
    )
    x, w = values((2, 64, 6, 6), 0, 1 / 16), values((72, 64, 3, 3), 1, 1 / 16)
    g = values((2, 72, 6, 6), 2, 1 / 16)
    conv = ((1, 1), (1, 1, 1, 1))
    wanted, (dx, dw) = reference.vjp(lambda x, w: reference.conv2d(x, w, None, *conv), (x, w), g)
    x, g = (t.to("cuda", dtype, memory_format=torch.channels_last) for t in (x, g))
    w = w.to("cuda", dtype)
    assert_close(conv2d.conv2d(x, w, None, *conv), wanted, dtype, 64 * 9)
    assert_close(conv2d.conv2d_input_grad(g, w, list(x.shape), *conv), dx, dtype, 72 * 9)
    actual = conv2d_weight_grad.conv2d_weight_grad(g, x, list(w.shape), *conv)
    assert_close(actual, dw, dtype, 72)
