"""The fake CUDA runtime with PyTorch and Triton, in subprocesses: needs torch for CUDA and nvcc."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compiling import HOME
from ptxcpu import toolchain

pytestmark = pytest.mark.skipif(
    torch.version.cuda is None or not toolchain.find_tool("nvcc"),
    reason="needs a CUDA build of PyTorch and nvcc",
)


def run(*options, select=None, **variables):
    environment = dict(os.environ, PYTHONPATH=str(HOME), MAX_JOBS="2", **variables)
    environment["TORCH_CUDA_ARCH_LIST"] = "8.0+PTX"
    environment["PTXCPU_TEST_BUILD"] = str(toolchain.cache_dir() / "test-extension")
    environment.setdefault("CUDA_HOME", str(toolchain.cuda_home()))
    environment["PATH"] = str(Path(sys.executable).parent) + os.pathsep + environment["PATH"]
    script = Path(__file__).with_name("emulated_device.py")
    pytest = ["pytest", "-q", "-p", "no:cacheprovider", f"--confcutdir={script.parent}"]
    command = [sys.executable, "-m", "ptxcpu", "run", *options, "--", "python", "-m", *pytest]
    command.append(str(script))
    if select:
        command += ["-k", select]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


def test_extension_and_triton_on_the_emulated_device():
    run("--check", "2", "--order", "2", "--seed", "7")


def test_report(tmp_path):
    run("--report", str(tmp_path / "report.jsonl"), select="test_report or test_extension")
    assert len((tmp_path / "report.jsonl").read_text().splitlines()) >= 4


def test_without_torch_operators():
    run(
        select="test_without_torch_operators or test_identity or test_extension",
        PTXCPU_TORCH_OPS="0",
    )
