"""What is built and shipped: the libraries' links and facts, the metadata, the search for CUDA."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

import cnnkern
from cnnkern import _C, _cuda_library

ROOT = Path(__file__).parent.parent


def elf(option: str, path) -> str:
    return subprocess.run(
        ["readelf", "--wide", option, path], check=True, capture_output=True, text=True
    ).stdout


def needed(path) -> set[str]:
    return set(re.findall(r"\(NEEDED\).*\[(.*?)\.so", elf("--dynamic", path)))


@pytest.fixture
def setup_py(monkeypatch):
    """Import setup.py, without a build; the test starts with none of its settings."""
    for name in ("CNNKERN_CUDA", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("cnnkern_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cuda_torch(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def make_toolkit(home: Path, release="13.0", cudart="lib/libcudart.so.13") -> Path:
    """Lay out a toolkit as the packages on PyPI do, with an nvcc that only tells its version."""
    for name in ("bin/nvcc", "include/cuda_runtime.h", cudart):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).touch()
    archs = "compute_80\ncompute_86\ncompute_89\ncompute_90"
    (home / "bin/nvcc").write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "release {release}, V88" || echo "{archs}"\n'
    )
    (home / "bin/nvcc").chmod(0o755)
    return home


# ---- what was built ----------------------------------------------------------------------------


def test_cpu_library_links_to_the_stable_part_of_torch_only():
    of_torch = {name for name in needed(_C.__file__) if "torch" in name or "c10" in name}
    assert {"libtorch_cpu"} <= of_torch <= {"libtorch_cpu", "libc10"}


def test_cpu_library_keeps_its_functions_to_itself():
    symbols = elf("--dyn-syms", _C.__file__).splitlines()
    exported = [s.split()[-1] for s in symbols if " FUNC " in s and " UND " not in s]
    assert "PyInit__C" in exported
    assert not [name for name in exported if "cnnkern" in name]


def test_build_info():
    info = _C.build_info()
    assert set(info) >= {"compiler", "torch", "cuda_version", "cuda_archs"}
    assert re.match(r"\d+\.\d+", info["torch"])
    assert bool(info["cuda_version"]) == bool(info["cuda_archs"])


def test_cuda_library_is_loaded_where_torch_has_its_cuda():
    built_with, torch_has = _C.build_info()["cuda_version"], torch.version.cuda
    status = _cuda_library.status()
    if not built_with:
        assert status == "not built: this cnnkern was built for the CPU only"
    elif torch_has is None:
        assert status == f"not loaded: torch {torch.__version__} has no CUDA"
    elif torch_has.split(".")[0] != built_with.split(".")[0]:
        assert status == f"not loaded: built with CUDA {built_with}, but torch has CUDA {torch_has}"
    else:
        assert status.startswith(f"loaded: CUDA {built_with}, built for ")
        assert {"libtorch_cuda", "libcudart"} <= needed(_cuda_library.PATH)


def test_kernel_runs_on_the_gpu_or_says_why_not():
    if torch.cuda.is_available() and _cuda_library.status().startswith("loaded"):
        arch = tuple(map(int, _cuda_library.kernel_arch().split(".")))
        assert arch <= torch.cuda.get_device_capability()
    else:
        with pytest.raises(RuntimeError, match=r"runs on device 0: .*CUDA|not (built|loaded)"):
            _cuda_library.kernel_arch()


@pytest.mark.parametrize(
    ("built_with", "torch_has", "status"),
    (
        ("", "13.0", "not built: this cnnkern was built for the CPU only"),
        ("13.0", None, "not loaded: torch .* has no CUDA"),
        ("12.8", "13.0", "not loaded: built with CUDA 12.8, but torch has CUDA 13.0"),
        ("13.0", "13.2", "not loaded: .*no_such_library.so: cannot open shared object file"),
    ),
)
def test_status_of_a_library_that_cannot_be_loaded(built_with, torch_has, status, monkeypatch):
    facts = {"cuda_version": built_with, "cuda_archs": ["9.0"]}
    monkeypatch.setattr(_cuda_library._C, "build_info", lambda: facts)
    monkeypatch.setattr(torch.version, "cuda", torch_has)
    monkeypatch.setattr(_cuda_library, "PATH", Path("no_such_library.so"))
    assert re.match(status, _cuda_library._load())


def test_stable_abi_smoke_passes_here_and_refuses_to_prove_nothing():
    script = [sys.executable, ROOT / "tests/stable_abi_smoke.py"]
    run = subprocess.run(script, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "checks passed" in run.stdout
    if _C.build_info()["torch"] == torch.__version__:
        run = subprocess.run([*script, "--another-torch"], capture_output=True, text=True)
        assert run.returncode == 1
        assert "proves nothing" in run.stderr


# ---- what is shipped ---------------------------------------------------------------------------


def test_metadata():
    data = importlib.metadata.metadata("cnnkern")
    assert data["Version"] == cnnkern.__version__
    assert data["License-Expression"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    runtime = [r for r in importlib.metadata.requires("cnnkern") if "extra ==" not in r]
    assert {re.match(r"[a-z]+", r)[0] for r in runtime} == {"torch", "numpy", "typer", "pooch"}
    assert {"plot", "images", "test", "bench", "dev"} <= set(data.get_all("Provides-Extra"))


def test_typed_and_carries_its_data():
    package = Path(cnnkern.__file__).parent
    assert (package / "py.typed").is_file()
    assert list(package.glob("assets/*.gz"))


def test_sdist_has_all_that_a_build_reads(tmp_path):
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", tmp_path,
         "sdist", "--dist-dir", tmp_path],
        cwd=ROOT, check=True, capture_output=True, env=os.environ | {"CNNKERN_CUDA": "0"},
    )  # fmt: skip
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        shipped = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.*")}
    wanted |= {str(p.relative_to(ROOT)) for p in ROOT.glob("cnnkern/*.py")}
    wanted |= {f"cnnkern/assets/{p.name}" for p in ROOT.glob("cnnkern/assets/*.*")}
    wanted |= {"LICENSE", "setup.py", "pyproject.toml", "cnnkern/py.typed", "CHANGELOG.md"}
    assert not wanted - shipped


# ---- where a build looks for CUDA --------------------------------------------------------------


@pytest.mark.usefixtures("cuda_torch")
def test_toolkit_of_pypi_is_found_without_any_setting(setup_py, tmp_path, monkeypatch):
    home = make_toolkit(tmp_path / "nvidia/cu13")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(setup_py.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(setup_py.sysconfig, "get_path", lambda name: str(tmp_path))
    toolkit = setup_py.cuda_toolkit()
    assert toolkit == (home, "13.0", home / "lib/libcudart.so.13")
    assert setup_py.cuda_archs(toolkit) == "8.0+PTX 8.6 8.9 9.0+PTX"
    monkeypatch.setattr(sys, "argv", ["setup.py", "build_ext", "--inplace"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: ((9, 0), (8, 0), (9, 0))[i])
    assert setup_py.cuda_archs(toolkit) == "8.0+PTX 9.0"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0+PTX;9.0")
    assert setup_py.cuda_archs(toolkit) == "8.0+PTX 9.0"


@pytest.mark.usefixtures("cuda_torch")
def test_toolkit_on_the_path_comes_first(setup_py, tmp_path, monkeypatch):
    home = make_toolkit(tmp_path / "cuda", cudart="lib64/libcudart.so.13")
    monkeypatch.setenv("PATH", str(home / "bin"))
    assert setup_py.cuda_toolkit().home == home


@pytest.mark.parametrize(
    ("layout", "reason"),
    (
        ({"release": "12.8"}, r"nvcc is 12\.8"),
        ({"release": "none"}, "nvcc is broken"),
        ({"cudart": "lib/libcudart.so.12"}, r"has no cuda_runtime\.h or libcudart\.so\.13"),
        (None, "no bin/nvcc in"),
    ),
)
@pytest.mark.usefixtures("cuda_torch")
def test_cpu_build_without_a_fit_toolkit(layout, reason, setup_py, tmp_path, monkeypatch, capsys):
    if layout is not None:
        make_toolkit(tmp_path, **layout)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert setup_py.cuda_toolkit() is None
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert re.match(f"cnnkern: building for the CPU only: no toolkit for .*{reason}", text)
    monkeypatch.setenv("CNNKERN_CUDA", "1")
    with pytest.raises(SystemExit, match=f"CNNKERN_CUDA=1, but .*{reason}"):
        setup_py.cuda_toolkit()


@pytest.mark.usefixtures("cuda_torch")
def test_cpu_build_on_demand_and_beside_a_cpu_torch(setup_py, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit(tmp_path)))
    monkeypatch.setenv("CNNKERN_CUDA", "0")
    assert setup_py.cuda_toolkit() is None
    assert capsys.readouterr().err == "cnnkern: building for the CPU only: CNNKERN_CUDA=0\n"
    monkeypatch.delenv("CNNKERN_CUDA")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert setup_py.cuda_toolkit() is None
    assert "has no CUDA" in capsys.readouterr().err
    monkeypatch.setenv("CNNKERN_CUDA", "yes")
    with pytest.raises(SystemExit, match="CNNKERN_CUDA must be 0, 1 or auto, got 'yes'"):
        setup_py.cuda_toolkit()
