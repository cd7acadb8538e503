"""What every test gets: poisoned memory, the markers, and the targets that kernels run on.

`torch.use_deterministic_algorithms(True)` fills every fresh tensor with NaN, inside the ops too, so
an element that a kernel forgets to write is seen. It is on for all tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from cases import CONVS, POOLS

import cnnkern  # noqa: F401  (registers the ops)
from cnnkern import _C


@dataclass(frozen=True)
class Target:
    """A device and, on the CPU, the instruction set that its kernels are forced to."""

    device: str
    isa: str | None = None

    def __str__(self):
        return self.isa or self.device


def _has_cuda_kernels() -> bool:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return torch.cuda.is_available() and has("cnnkern::conv2d", "CUDA")


TARGETS = [Target("cpu", isa) for isa in _C.cpu_isas()]
if _has_cuda_kernels():
    TARGETS.append(Target("cuda"))


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "sanitize: a quick run of every kernel, for the address sanitizer"
    )


def pytest_make_parametrize_id(val):
    if isinstance(val, torch.dtype):
        return str(val).removeprefix("torch.")
    if isinstance(val, Target | type(CONVS[0]) | type(POOLS[0])):
        return str(val)
    return None


@pytest.fixture(autouse=True)
def _poison_fresh_memory():
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=TARGETS, ids=str)
def target(request):
    """Run the test once on every device and instruction set."""
    before = _C.cpu_isa()
    if request.param.isa:
        _C.set_cpu_isa(request.param.isa)
    yield request.param
    _C.set_cpu_isa(before)


@pytest.fixture(params=_C.cpu_isas())
def cpu_isa(request):
    """Run the test once on every instruction set of the CPU."""
    before = _C.cpu_isa()
    _C.set_cpu_isa(request.param)
    yield request.param
    _C.set_cpu_isa(before)


@pytest.fixture
def nondeterministic_torch():
    """Allow torch's own ops, where they are the comparison, to be nondeterministic."""
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(True)
