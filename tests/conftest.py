"""What every test gets: poisoned memory, the markers, and the targets that kernels run on.

`torch.use_deterministic_algorithms(True)` fills every fresh tensor with NaN, inside the ops too,
and `_C.poison_cpu_outputs` those that the CPU's ops return, so an element that a kernel forgets to
write is seen. Both are on for all tests.

Tests that take a GPU target carry the marker `gpu`. tests/run_gpu.py runs them, on a GPU or, where
there is none, on the CPU under tests/ptxcpu; see gpu.py for what is left out there.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from cases import CONVS, POOLS
from gpu import (
    CPU_TARGETS,
    GPU_TARGETS,
    INTERPRETED,
    LEFT_OUT,
    RIG_ORDER,
    Target,
    left_to_a_real_gpu,
    left_to_the_compiler,
)

import cnnkern  # noqa: F401  (registers the ops)
from cnnkern import _C
from cnnkern.ops import OP_NAMES

GPU_COMMAND = "python tests/run_gpu.py"
# Other types have the code of avx512 there.
BF16_ISAS = ("avx512_bf16", "amx_bf16")
LEFT_TO_A_GPU = pytest.StashKey[Counter]()


def pytest_configure(config):
    for line in (
        "sanitize: a quick run of every kernel, for the address sanitizer",
        f"gpu: runs kernels on CUDA tensors; {GPU_COMMAND} runs these without a GPU, too",
    ):
        config.addinivalue_line("markers", line)


def pytest_report_header():
    if RIG_ORDER:
        return "GPU: none; kernels are executed on the CPU by tests/ptxcpu"
    if torch.cuda.is_available():
        return f"GPU: {torch.cuda.get_device_name()}"
    return f"GPU: none, so the tests marked gpu are left out; {GPU_COMMAND} runs them on the CPU"


def pytest_make_parametrize_id(val):
    if isinstance(val, torch.dtype):
        return str(val).removeprefix("torch.")
    if isinstance(val, Target | type(CONVS[0]) | type(POOLS[0])):
        return str(val)
    return None


def pytest_generate_tests(metafunc):
    """Give a test the targets that have a kernel for each of its file's OPS."""
    for fixture, targets in (("target", (*CPU_TARGETS, *GPU_TARGETS)), ("gpu", GPU_TARGETS)):
        if fixture in metafunc.fixturenames:
            ops = getattr(metafunc.module, "OPS", OP_NAMES)
            params = [
                pytest.param(t, id=str(t), marks=pytest.mark.gpu if t.is_gpu else ())
                for t in targets
                if t.has(*ops)
            ]
            metafunc.parametrize(fixture, params, indirect=True)


@pytest.hookimpl(trylast=True)  # after -k and -m
def pytest_collection_modifyitems(config, items):
    """Deselect what needs a GPU where there is none, and what is too much for an emulated one."""
    reasons = {item: why_left_out(item) for item in items}
    config.hook.pytest_deselected(items=[item for item in items if reasons[item]])
    items[:] = [item for item in items if not reasons[item]]
    config.stash[LEFT_TO_A_GPU] = Counter(filter(None, reasons.values()))
    if RIG_ORDER == "2":
        # Two schedules run at once: from opposite ends, each finds half of the kernels translated.
        items.reverse()


def why_left_out(item) -> str | None:
    params = item.callspec.params if hasattr(item, "callspec") else {}
    if not isinstance(params.get("gpu", CPU_TARGETS[0]), Target):
        return "no backend for GPUs"
    isa = params.get("cpu_isa", getattr(params.get("target"), "isa", None))
    if isa in BF16_ISAS and params.get("dtype", torch.bfloat16) != torch.bfloat16:
        return "the code of avx512"
    if not item.get_closest_marker("gpu"):
        return left_to_the_compiler(item.originalname, params) if INTERPRETED else None
    if RIG_ORDER:
        return left_to_a_real_gpu(item.originalname, params)
    return None if torch.cuda.is_available() else "no GPU"


def pytest_terminal_summary(terminalreporter, config):
    if RIG_ORDER:
        for reason, count in config.stash[LEFT_TO_A_GPU].items():
            terminalreporter.line(f"{LEFT_OUT}{count} tests: {reason}")


@pytest.fixture(autouse=True)
def _poison_fresh_memory():
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    _C.poison_cpu_outputs(True)
    yield
    _C.poison_cpu_outputs(False)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def target(request):
    """Run the test once on every device, instruction set and backend."""
    before = _C.cpu_isa()
    if request.param.isa:
        _C.set_cpu_isa(request.param.isa)
    yield request.param
    _C.set_cpu_isa(before)


@pytest.fixture
def gpu(request):
    """Run the test once on every backend that has kernels for GPUs."""
    return request.param


@pytest.fixture(params=_C.cpu_isas())
def cpu_isa(request):
    """Run the test once on every instruction set of the CPU."""
    before = _C.cpu_isa()
    _C.set_cpu_isa(request.param)
    yield request.param
    _C.set_cpu_isa(before)


@pytest.fixture(params=BF16_ISAS)
def bf16_isa(request):
    """Run the test on every instruction set that multiplies bfloat16."""
    if request.param not in _C.cpu_isas():
        pytest.skip(f"this CPU has no {request.param}")
    before = _C.cpu_isa()
    _C.set_cpu_isa(request.param)
    yield request.param
    _C.set_cpu_isa(before)


@pytest.fixture
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def nondeterministic_torch():
    """Allow torch's own ops, where they are the comparison, to be nondeterministic."""
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(True)
