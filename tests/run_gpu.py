"""Run the tests marked `gpu`: on a GPU or, where there is none, on the CPU under tests/ptxcpu.

Usage: python tests/run_gpu.py [pytest arguments]

Without a GPU the emulator first has to pass its own tests; then every kernel runs with the checks
of bounds, alignment, barriers and shared-memory races in two thread orders, which take two
processes and two cores. Where neither is to be had it says so and passes, but not under
CNNKERN_CUDA=1.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from cnnkern import _cuda_library

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from gpu import LEFT_OUT  # noqa: E402
from ptxcpu import cli, toolchain  # noqa: E402

PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
OWN_TESTS = [f"--confcutdir={ROOT / 'tests/ptxcpu'}", str(ROOT / "tests/ptxcpu/tests")]
CHECKS = ["--check", "2", "--threads", "1"]
ORDERS = {
    "threads in ascending order": [*CHECKS, "--order", "0"],
    "threads in random order": [*CHECKS, "--order", "2", "--seed", "7"],
}
NOTHING_SELECTED = 5  # pytest's exit status: the arguments may select tests for the CPU only


class Result(NamedTuple):
    name: str
    status: int
    seconds: float
    left_out: list[str]
    last_line: str

    @property
    def passed(self) -> bool:
        return self.status in (0, NOTHING_SELECTED)


def why_not_emulated() -> str | None:
    """Return what the emulator misses to run the kernels; its runtime is built on the way."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    if not _cuda_library.status().startswith("loaded"):
        return f"the CUDA library is {_cuda_library.status()}"
    try:
        cli.fake_runtime()
        toolchain.runtime_library()
        targets = ptx_targets(_cuda_library.PATH)
    except (toolchain.BuildError, OSError) as error:
        return str(error)
    if not any(target <= 80 for target in targets):
        found = ", ".join(f"sm_{t}" for t in targets) or "no target"
        return (
            f"{_cuda_library.PATH.name} has PTX for {found}, and the emulator needs it for sm_80: "
            "build with TORCH_CUDA_ARCH_LIST='8.0+PTX'"
        )
    return None


def ptx_targets(library: Path) -> list[int]:
    """List the targets that a library has PTX for: 80 for sm_80."""
    tool = toolchain.find_tool("cuobjdump")
    if not tool:
        raise toolchain.BuildError("no cuobjdump in the CUDA toolkit nor in triton")
    text = subprocess.run([tool, "--list-ptx", library], capture_output=True, text=True).stdout
    names = {line.rsplit(".", 2)[-2] for line in text.splitlines() if line.endswith(".ptx")}
    return sorted(int(name.removeprefix("sm_").rstrip("af")) for name in names)


def run(name: str, command: list[str], environment: dict[str, str], live: bool = False) -> Result:
    """Run a command and print what it said: line by line as it comes, or all of it at the end."""
    start, lines = time.monotonic(), []
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    for line in process.stdout:
        lines.append(line)
        if live:
            print(line, end="", flush=True)
    status = process.wait()
    if not live:
        print(f"\n---- {name} ----\n{''.join(lines)}", end="", flush=True)
    left_out = [line for line in lines if line.startswith(LEFT_OUT)]
    last = lines[-1].strip() if lines else "no output"
    return Result(name, status, time.monotonic() - start, left_out, last)


def emulate(arguments: list[str]) -> list[Result]:
    """Run both schedules at once, each on one core, after the emulator's own tests."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    paths = [str(ROOT / "tests"), str(ROOT), environment.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    results = []
    if not arguments:
        command = [*PYTEST, *OWN_TESTS]
        results.append(run("the emulator's own tests", command, environment, live=True))
    with ThreadPoolExecutor() as pool:
        runs = []
        for name, options in ORDERS.items():
            command = [sys.executable, "-m", "ptxcpu", "run", *options, "--", *PYTEST, "-m", "gpu"]
            live = not runs
            runs.append(pool.submit(run, name, [*command, *arguments], environment, live))
        return [*results, *(r.result() for r in runs)]


def main(arguments: list[str]) -> int:
    if torch.cuda.is_available():
        print(f"GPU tests: on {torch.cuda.get_device_name()}", flush=True)
        command = [*PYTEST, "-m", "gpu", *arguments]
        result = run("on the GPU", command, dict(os.environ), live=True)
        print(f"GPU tests: on {torch.cuda.get_device_name()}: {result.last_line}")
        return 0 if result.passed else result.status

    # Beside the rest of what was built here, so that `make clean` takes it.
    os.environ.setdefault("PTXCPU_CACHE", str(ROOT / "build/ptxcpu"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(ROOT / "build/triton"))
    missing = why_not_emulated()
    if missing:
        required = os.environ.get("CNNKERN_CUDA") == "1"
        outcome = "FAILED, since CNNKERN_CUDA=1" if required else "NOT RUN"
        print(f"GPU tests: {outcome}: there is no GPU, and {missing}", flush=True)
        return int(required)

    where = "executed on the CPU by tests/ptxcpu, sm_80 PTX, check 2, thread orders 0 and 2"
    print(f"GPU tests: {where}", flush=True)
    results = emulate(arguments)
    print(f"\nGPU tests: {where}")
    for r in results:
        print(f"  {'passed' if r.passed else 'FAILED'}: {r.name}, {r.seconds:.0f} s: {r.last_line}")
    print("".join(results[-1].left_out), end="")
    return int(not all(r.passed for r in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
