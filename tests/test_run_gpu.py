"""What run_gpu.py says where the GPU tests cannot run, what it exits with, and what it runs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import run_gpu
import torch
from cases import CONVS, FUSED
from gpu import LAYOUTS, NARROW, RIG_MACS_IN_BOTH_LAYOUTS, left_to_a_real_gpu

from cnnkern import _cuda_library


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CNNKERN_CUDA", raising=False)
    monkeypatch.setattr(run_gpu, "why_not_emulated", lambda: "no toolkit")
    return monkeypatch


def test_without_a_toolkit_it_says_so_and_passes(no_gpu, capsys):
    assert run_gpu.main([]) == 0
    assert capsys.readouterr().out == (
        "GPU tests: NOT RUN: there is no GPU, and no toolkit\n"
    )  # fmt: skip


def test_where_cuda_is_required_it_fails(no_gpu, capsys):
    no_gpu.setenv("CNNKERN_CUDA", "1")
    assert run_gpu.main([]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_why_not(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert run_gpu.why_not_emulated() == f"torch {torch.__version__} has no CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_cuda_library, "_status", "not built: for the CPU only")
    assert run_gpu.why_not_emulated() == "the CUDA library is not built: for the CPU only"
    monkeypatch.setattr(_cuda_library, "_status", "loaded: CUDA 13.0")
    monkeypatch.setattr(run_gpu.cli, "fake_runtime", lambda: None)
    monkeypatch.setattr(run_gpu.toolchain, "runtime_library", lambda: None)
    monkeypatch.setattr(run_gpu, "ptx_targets", lambda path: [120])
    reason = run_gpu.why_not_emulated()
    assert "PTX for sm_120" in reason
    assert "TORCH_CUDA_ARCH_LIST='8.0+PTX'" in reason
    monkeypatch.setattr(run_gpu, "ptx_targets", lambda path: [80, 120])
    assert run_gpu.why_not_emulated() is None


def test_targets_are_read_from_the_list_of_cuobjdump(monkeypatch):
    text = "PTX file    1: a.sm_80.ptx\nPTX file    2: b.sm_80.ptx\nPTX file    3: b.sm_120a.ptx\n"
    monkeypatch.setattr(run_gpu.toolchain, "find_tool", lambda name: name)
    done = subprocess.CompletedProcess([], 0, stdout=text)
    monkeypatch.setattr(run_gpu.subprocess, "run", lambda *args, **kwargs: done)
    assert run_gpu.ptx_targets("library.so") == [80, 120]


@pytest.mark.parametrize(("status", "passed"), ((0, True), (1, False), (5, True), (2, False)))
def test_a_run_that_selects_nothing_passes(status, passed, capsys):
    code = f"print('said'); raise SystemExit({status})"
    result = run_gpu.run("name", [sys.executable, "-c", code], {})
    assert result.passed is passed
    assert result.last_line == "said"
    assert "---- name ----\nsaid" in capsys.readouterr().out


@pytest.mark.parametrize("case", CONVS + FUSED, ids=str)
def test_the_emulator_runs_every_case(case):
    def kept_in(order):
        return [
            (dtype, format)
            for dtype in (torch.float32, torch.float64, *NARROW)
            for format in LAYOUTS
            if not left_to_a_real_gpu(
                "test", {"case": case, "dtype": dtype, "format": format}, order
            )
        ]

    kept, orders = kept_in(None), (kept_in("0"), kept_in("2"))
    for item in kept:
        assert [item in order for order in orders].count(True) == 1 + (item[0] == torch.float32)
    dtypes = [dtype for dtype, _ in kept]
    large = getattr(case, "conv", case).macs > RIG_MACS_IN_BOTH_LAYOUTS
    assert dtypes.count(torch.float32) == (1 if large else 2)
    assert dtypes.count(torch.float64) == 1
    assert sum(dtype in NARROW for dtype in dtypes) == 1
    assert {format for _, format in kept} == set(LAYOUTS)


def test_a_case_that_is_too_large_is_left_to_a_real_gpu():
    case = next(case for case in CONVS if case.name == "channels128")
    wide = dataclasses.replace(case, input=(2, *case.input[1:]))
    assert "multiply-adds" in left_to_a_real_gpu("test", {"case": wide})
