"""Replay of calls: Python works out the launches of a geometry once, and later calls repeat them.

The first call of an op with some dtypes, sizes, strides, alignments and options runs its Python
code and takes down which kernels it launched, on which tensors: the arguments, or fresh ones. From
then on a call allocates the same tensors and launches the same compiled kernels with the same
numbers. What an op computes, and how, has to follow from what the key holds; contents do not count.
Nor do tuned tiles: where new ones are to be had, plans start over.
"""

from __future__ import annotations

import functools
import threading

import torch
from torch import Tensor

from cnnkern.triton_kernels import tuning

MAX_PLANS = 1024  # of one op; geometries without end, as of dynamic shapes, start over
_recording = threading.local()


def note_launch(compiled, programs: int, args: tuple, constants: tuple) -> None:
    """Take down a launch, if this thread is working out a plan."""
    tape = getattr(_recording, "tape", None)
    if tape is not None:
        tape.append((compiled, programs, args, constants))


def _fact(value):
    if isinstance(value, Tensor):
        aligned = value.data_ptr() & 15
        return value.dtype, value.device, value.shape, value.stride(), aligned
    return tuple(value) if isinstance(value, list) else value


class Plan:
    """The launches of one call, with every tensor replaced by its number.

    The numbers are the positions of the arguments, and then the fresh tensors'.
    """

    def __init__(self, arguments: tuple, tape: list, result) -> None:
        self.count = len(arguments)
        self.fresh: list[tuple] = []
        self.device = next(a.device for a in arguments if isinstance(a, Tensor))
        self._numbers = {id(a): i for i, a in enumerate(arguments) if isinstance(a, Tensor)}
        self.launches = []
        for compiled, programs, args, constants in tape:
            places = [(i, self._number(a)) for i, a in enumerate(args) if isinstance(a, Tensor)]
            values = [None if isinstance(a, Tensor) else a for a in args]
            self.launches.append((compiled, (programs, 1, 1), places, [*values, *constants]))
        self.single = isinstance(result, Tensor)
        results = (result,) if self.single else result
        self.results = [self._number(t) for t in results]
        del self._numbers

    def _number(self, t: Tensor) -> int:
        if id(t) not in self._numbers:
            self._numbers[id(t)] = self.count + len(self.fresh)
            self.fresh.append((t.shape, t.stride(), t.dtype))
        return self._numbers[id(t)]

    def __call__(self, arguments: tuple):
        tensors = list(arguments)
        for size, stride, dtype in self.fresh:
            tensors.append(torch.empty_strided(size, stride, dtype=dtype, device=self.device))
        if self.device.type == "cpu" or self.device.index == torch.cuda.current_device():
            self._launch(tensors)
        else:
            with torch.cuda.device(self.device):
                self._launch(tensors)
        if self.single:
            return tensors[self.results[0]]
        return tuple(tensors[i] for i in self.results)

    def _launch(self, tensors: list) -> None:
        for compiled, grid, places, values in self.launches:
            values = values.copy()
            for i, number in places:
                values[i] = tensors[number]
            compiled[grid](*values)


def _shares_memory(arguments: tuple, tape: list, result) -> bool:
    """Tell whether two of the tensors are views of one memory, which a plan would make two."""
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    known = {id(t) for t in tensors}
    storages = {t.untyped_storage().data_ptr() for t in tensors}
    for t in (t for _, _, args, _ in tape for t in args if isinstance(t, Tensor)):
        if id(t) not in known:
            known.add(id(t))
            storage = t.untyped_storage().data_ptr()
            if storage and storage in storages:
                return True
            storages.add(storage)
    results = (result,) if isinstance(result, Tensor) else result
    return any(t.numel() and id(t) not in known for t in results)


def planned(function):
    """Make an op's implementation replay the calls that it has seen."""
    plans: dict[tuple, Plan | None] = {}
    tuning.on_new_tiles.append(plans.clear)

    @functools.wraps(function)
    def call(*arguments, **options):
        key = tuple(map(_fact, arguments))
        plan = None if options else plans.get(key)
        if plan is not None:
            return plan(arguments)
        tensors = [id(a) for a in arguments if isinstance(a, Tensor)]
        if options or key in plans or len(set(tensors)) < len(tensors):
            return function(*arguments, **options)  # the same tensor twice is no example of two
        if tuning.is_on():
            tuning.search(function, arguments)
        _recording.tape = tape = []
        try:
            result = function(*arguments)
        finally:
            _recording.tape = None
        if len(plans) >= MAX_PLANS:
            plans.clear()
        shared = _shares_memory(arguments, tape, result)
        plans[key] = None if shared else Plan(arguments, tape, result)
        return result

    return call
