"""The benchmarks run from end to end; what they print here is not shown."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.gpu
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
