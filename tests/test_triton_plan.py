"""Replay of Triton launches: later calls launch the same on their own tensors, or do not replay."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from cnnkern.triton_kernels import plan


class Kernel:
    """Stand in for a compiled kernel: note what it was launched with."""

    def __init__(self):
        self.launches = []

    def __getitem__(self, grid):
        return lambda *values: self.launches.append((grid, values))


@pytest.fixture
def op():
    """Return a planned op of two tensors, its kernel, and the list of calls that ran its code."""
    kernel, calls = Kernel(), []

    def function(x, y, sizes, factor):
        calls.append((x, y))
        partial, out = x.new_empty(4), x.new_empty(2, 3).t()
        plan.note_launch(kernel, 7, (x, y, partial, None, factor), ("constant",))
        plan.note_launch(kernel, 1, (partial, out), ())
        return out, x.new_empty(0)

    return plan.planned(function), kernel, calls


def tensors(dtype=torch.float32):
    return torch.zeros(4, 4, dtype=dtype), torch.zeros(4, 4, dtype=dtype)


def test_later_calls_launch_on_their_own_tensors(op):
    call, kernel, calls = op
    call(*tensors(), [1, 2], 3)
    x, y = tensors()
    out, empty = call(x, y, [1, 2], 3)
    assert len(calls) == 1
    (grid, first), (_, second) = kernel.launches
    assert grid == (7, 1, 1)
    assert first[0] is x
    assert first[1] is y
    assert first[3:] == (None, 3, "constant")
    assert second[0] is first[2]
    assert second[1] is out
    assert (out.shape, out.stride(), empty.numel()) == ((3, 2), (1, 3), 0)
    again, _ = call(x, y, [1, 2], 3)
    assert again is not out


@pytest.mark.parametrize("change", ("dtype", "stride", "size", "alignment", "option", "list"))
def test_other_calls_are_worked_out_anew(op, change):
    call, _, calls = op
    call(*tensors(), [1, 2], 3)
    x, y = tensors(torch.float64 if change == "dtype" else torch.float32)
    x = {"stride": x.t(), "size": x[:3], "alignment": torch.zeros(17)[1:].view(4, 4)}.get(change, x)
    call(x, y, [2, 2] if change == "list" else [1, 2], 4 if change == "option" else 3)
    assert len(calls) == 2


def test_one_tensor_twice_is_no_plan_for_two(op):
    call, kernel, calls = op
    x, y = tensors()
    call(x, x, [], 0)
    call(x, y, [], 0)
    assert len(calls) == 2
    call(y, x, [], 0)
    call(y, y, [], 0)
    assert len(calls) == 2
    assert [(a is b) for _, (a, b, *_) in kernel.launches[::2]] == [False, True]


def test_views_are_not_replayed():
    calls = []

    def function(x):
        calls.append(x)
        plan.note_launch(Kernel(), 1, (x[1:],), ())
        return x.new_empty(0)

    call = plan.planned(function)
    for _ in range(3):
        call(torch.zeros(4))
    assert len(calls) == 3
