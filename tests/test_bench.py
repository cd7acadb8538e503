"""The benchmarks run from end to end; what they print here is not shown."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu import RIG_ORDER

from cnnkern import _C

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from bench.results import Report, parser  # noqa: E402


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.gpu
@pytest.mark.skipif(RIG_ORDER == "2", reason="the script is the same in every order of threads")
def test_cudnn_on_one_tiny_problem(tmp_path):
    path = tmp_path / "cudnn.csv"
    done = run(
        "bench.cudnn", "--tiny", "--quick", "--no-cudnn", "--dtype", "float32", "--csv", path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.DictReader(path.open()))
    assert {row["algo"] for row in rows} >= {"auto", "direct", "cuda", "triton"}
    assert {row["pass"] for row in rows} == {"fwd", "dgrad", "wgrad", "train", "bwd"}
    done = run("bench.chart", "--cudnn", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tiny max 2x2 8 @6" in path.with_suffix(".svg").read_text()


def test_lenet_needs_no_more_memory_than_in_torch(tmp_path):
    path = tmp_path / "memory.csv"
    done = run("bench.memory", "--only", "LeNet", "--csv", path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.DictReader(path.open()))
    assert [row["layout"] for row in rows] == ["nchw", "nhwc"]
    for row in rows:
        assert 0 < float(row["ConvBlock"]) < float(row["convert()"]) < float(row["torch.nn"]), row


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_conv2d_rows_say_how_they_were_measured(tmp_path, dtype):
    path, isa = tmp_path / "conv2d.csv", _C.cpu_isas()[-1]
    options = (
        "--only=lenet conv2",
        "--batch=2",
        "--threads=1",
        "--layout=nhwc",
        "--pass=fwd,wgrad",
    )
    done = run("bench.conv2d", *options, "--dtype", dtype, "--quick", "--busy", "--csv", path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.DictReader(path.open()))
    assert [row["pass"] for row in rows] == ["fwd", "wgrad"]
    for row in rows:
        assert row["name"] == "lenet conv2 5x5 6->16 @14 N=2" and row["layout"] == "nhwc"
        assert row["dtype"] == dtype and row["threads"] == "1"
        other = "avx512" if isa.endswith("_bf16") else isa
        assert row["isa"] == (isa if dtype == "bfloat16" else other)


@pytest.mark.parametrize("what", ("threads", "batch"))
def test_scaling(tmp_path, what):
    path = tmp_path / "scaling.csv"
    options = ("--only=lenet conv1", "--layout=nchw", "--pass=fwd", "--threads=2")
    done = run("bench.scaling", what, *options, "--quick", "--busy", "--csv", path)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = csv.DictReader(path.open())
    assert row["subject"] == f"scaling-{what}" and row["threads"] == "2" and float(row["ratio"]) > 0


@pytest.mark.skipif("avx2" not in _C.cpu_isas(), reason="this CPU has no AVX2")
def test_pool2d_in_avx2(tmp_path):
    path = tmp_path / "pool2d.csv"
    options = ("--only=lenet", "--batch=1", "--layout=nchw", "--pass=fwd", "--isa=avx2")
    done = run("bench.pool2d", *options, "--quick", "--busy", "--csv", path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.DictReader(path.open()))
    assert [row["name"] for row in rows] == ["lenet avg 2x2 6 @28 N=1", "lenet avg 2x2 16 @10 N=1"]
    assert {row["isa"] for row in rows} == {"avx2"}


def test_torch_is_limited_to_the_same_instruction_set():
    """ATen says what it uses; oneDNN names it in its log."""
    script = (
        "import torch; from bench.results import limit_isa; limit_isa('scalar');"
        "x = torch.ones(1, 16, 8, 8); print(torch.backends.cpu.get_cpu_capability());"
        "torch.nn.functional.conv2d(x, torch.ones(16, 16, 3, 3))"
    )
    environment = os.environ | {"ONEDNN_VERBOSE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "DEFAULT" in done.stdout and "avx" not in done.stdout.lower()


def test_unknown_passes_are_refused():
    done = run("bench.conv2d", "--pass", "fwd,back")
    assert done.returncode == 2 and "knows fwd, dgrad, wgrad, not back" in done.stderr


def test_results_are_named_after_what_was_measured():
    options = parser("").parse_args(["--busy", "--threads", str(torch.get_num_threads())])
    options.dtype = "bfloat16"
    report = Report("conv2d", options)
    threads, isa = torch.get_num_threads(), _C.cpu_isa()
    assert report.path().name.endswith(f"-{isa}-{threads}t-bfloat16.csv")
