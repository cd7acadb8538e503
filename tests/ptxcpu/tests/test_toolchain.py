"""Where the emulator looks for CUDA: the toolkit that the extension was built with."""

import pytest
from ptxcpu import toolchain

find = toolchain.cuda_home.__wrapped__  # the answer is kept, once found


def make_toolkit(home, release):
    for name in ("bin/nvcc", "include/cuda_runtime.h"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).touch()
    (home / "bin/nvcc").write_text(f"#!/bin/sh\necho 'release {release}, V1'\n")
    (home / "bin/nvcc").chmod(0o755)
    return home


@pytest.fixture
def search(monkeypatch, tmp_path):
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(toolchain, "site_folder", lambda module: tmp_path / "nvidia")
    monkeypatch.setattr(toolchain, "torch_cuda_major", lambda: "13")
    return monkeypatch


def test_the_toolkit_of_pypi_is_found(search, tmp_path):
    home = make_toolkit(tmp_path / "nvidia/cu13", "13.0")
    assert find() == home


def test_the_one_on_the_path_comes_first(search, tmp_path):
    make_toolkit(tmp_path / "nvidia/cu13", "13.0")
    home = make_toolkit(tmp_path / "other", "13.1")
    search.setenv("PATH", f"{home / 'bin'}:/usr/bin:/bin")
    assert find() == home


def test_another_major_version_than_torchs_is_passed_over(search, tmp_path):
    old = make_toolkit(tmp_path / "old", "12.8")
    search.setenv("PATH", f"{old / 'bin'}:/usr/bin:/bin")
    home = make_toolkit(tmp_path / "nvidia/cu13", "13.0")
    assert find() == home


def test_a_named_one_is_taken_as_it_is(search):
    search.setenv("CUDA_PATH", "/nowhere")
    assert str(find()) == "/nowhere"
