"""What the GPU kernels cost, as far as that can be known without a GPU: counts, not times.

Two tables. Kernels: registers, spills, shared memory, occupancy and the main loop's share of
multiply-adds, of every CUDA C++ kernel, and of the Triton kernels of some problems, for each of
sm_80 and sm_90, from ptxas. Launches: small named problems, run by tests/ptxcpu, which counts
bytes, sectors and bank conflicts exactly.

    python -m bench.gpu_static [--only NAME] [--csv]
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import triton_static
from bench.results import RESULTS
from bench.sass import ARCHS, MATH, TENSOR, Usage, occupancy, usage_of_library
from cnnkern import _cuda_library

ROOT = Path(__file__).resolve().parent.parent
# Bytes a second, and float operations a second by what does them: data sheets, dense, no boost.
GPUS = {
    "a100": {"bytes": 1.555e12, "float32": 19.5e12, "float64": 9.7e12, "tf32": 156e12,
             "tensor": 312e12},
    "h100": {"bytes": 3.35e12, "float32": 66.9e12, "float64": 33.5e12, "tf32": 494e12,
             "tensor": 989e12},
}  # fmt: skip
SECTOR = 32


# ---- kernels -----------------------------------------------------------------------------------


def short_names(mangled: list[str]) -> dict[str, str]:
    """Demangle and drop what every name repeats: namespaces, the return type and arguments."""
    done = subprocess.run(["c++filt", *mangled], capture_output=True, text=True, check=True)
    names = {}
    for raw, name in zip(mangled, done.stdout.splitlines(), strict=True):
        name = name.replace("(anonymous namespace)::", "").replace("cnnkern::", "")
        name = re.sub(r"\(\w+\)(?=-?\d)", "", name.removeprefix("void "))  # casts of constants
        names[raw] = _without_parameters(name)
    return names


def _without_parameters(name: str) -> str:
    depth = 0
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:i]
    return name


def kernel_rows(usages: dict[str, dict[int, Usage]]) -> list[dict]:
    rows = []
    for raw, name in short_names(list(usages)).items():
        for arch, usage in usages[raw].items():
            share, tensor = usage.loop_share(MATH), usage.loop_share(TENSOR)
            held = (usage.registers, usage.shared)
            filled = occupancy(arch, usage.threads, *held) if usage.threads else None
            rows.append(
                {
                    "kernel": name,
                    "arch": f"sm_{arch}",
                    "registers": usage.registers,
                    "spill_bytes": usage.spill_bytes,
                    "shared": usage.shared,
                    "block": usage.threads or "",
                    "occupancy": _round(filled),
                    "loop_instructions": usage.loop.total() or "",
                    "loop_math_share": _round(share),
                    "loop_tensor_share": _round(tensor),
                    "async_copy_bytes": " ".join(map(str, usage.async_bytes)),
                }
            )
    return sorted(rows, key=lambda row: (row["kernel"], row["arch"]))


# ---- launches ----------------------------------------------------------------------------------


def launch_rows(only: str, usages: dict[str, dict[int, Usage]]) -> list[dict]:
    """Run the cases under the emulator and sum up, per op, what its launches did."""
    with tempfile.TemporaryDirectory() as folder:
        counts, calls = Path(folder, "counts.jsonl"), Path(folder, "calls.jsonl")
        paths = [str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        environment.setdefault("PTXCPU_CACHE", str(ROOT / "build/ptxcpu"))
        counts.touch()
        subprocess.run(
            [sys.executable, "-m", "ptxcpu", "run", "--report", counts, "--", "python", "-m",
             "bench.gpu_static_cases", counts, calls, only],
            cwd=ROOT, env=environment, check=True,
        )  # fmt: skip
        launches = [json.loads(line) for line in counts.read_text().splitlines()]
        rows = []
        for line in calls.read_text().splitlines():
            call = json.loads(line)
            first, last = call.pop("launches")
            rows.append(summary(call, launches[first:last], usages))
        return rows


def summary(call: dict, launches: list[dict], usages: dict[str, dict[int, Usage]]) -> dict:
    """Make one row of a call and the counts of its launches."""

    def total(key):
        return sum(launch[key] for launch in launches)

    needed, flops = call.pop("bytes"), total("flops")
    sectors = total("global_load_sectors") + total("global_store_sectors")
    requested = total("global_load_bytes") + total("global_store_bytes")
    requests = total("global_load_requests"), total("global_store_requests")
    classes = [launch["instructions_by_class"] for launch in launches]
    math_share = sum(c.get(k, 0) for c in classes for k in ("fp32", "fp64", "half", "tensor"))
    tensor_flops = sum(n["flops"] * n["tensor_core_share_of_flops"] for n in launches)
    busiest = max(launches, key=lambda launch: launch["thread_instructions"])
    row = call | {
        "launches": len(launches),
        "kernel": short_names([busiest["kernel"]])[busiest["kernel"]],
        "needed_bytes": needed,
        "moved": _round(sectors * SECTOR / needed),
        "requested": _round(requested / needed),
        "load_sectors": _round(total("global_load_sectors") / max(1, requests[0])),
        "store_sectors": _round(total("global_store_sectors") / max(1, requests[1])),
        "sector_use": _round(requested / (sectors * SECTOR)),
        "bank_conflicts": _round(total("shared_bank_conflicts") / max(1, total("shared_requests"))),
        "math_share": _round(math_share / total("thread_instructions")),
        "tensor_share": _round(tensor_flops / flops if flops else 0),
    }
    for arch in ARCHS:
        usage = busiest[f"sm_{arch}"]
        threads = math.prod(busiest["block"])
        shared = busiest["static_shared_bytes"] + busiest["dynamic_shared_bytes"]
        row[f"registers_{arch}"] = usage["registers"]
        row[f"spill_bytes_{arch}"] = usage["spill_bytes"]
        row[f"occupancy_{arch}"] = _round(occupancy(arch, threads, usage["registers"], shared))
        compiled = usages.get(busiest["kernel"], {}).get(arch)  # of Triton's there is only PTX
        row[f"loop_math_{arch}"] = _round(compiled.loop_share(MATH)) if compiled else ""
    unit = "tf32" if call["dtype"] == "float32" else "tensor"
    for gpu, peak in GPUS.items():
        plain = peak["float64" if call["dtype"] == "float64" else "float32"]
        arithmetic = (flops - tensor_flops) / plain + tensor_flops / peak[unit]
        row[f"{gpu}_bound_us"] = _round(1e6 * max(needed / peak["bytes"], arithmetic))
    return row


# ---- output ------------------------------------------------------------------------------------

COLUMNS = {
    "name": "problem", "pass": "pass", "layout": "layout", "dtype": "dtype", "algo": "algo",
    "launches": "launches", "moved": "moved/needed", "load_sectors": "sectors/load",
    "store_sectors": "sectors/store", "sector_use": "sector use", "bank_conflicts": "conflicts",
    "math_share": "math", "loop_math_80": "in loop", "tensor_share": "tensor",
    "registers_80": "regs 80",
    "spill_bytes_80": "spills 80", "occupancy_80": "occ 80", "registers_90": "regs 90",
    "spill_bytes_90": "spills 90", "occupancy_90": "occ 90",
}  # fmt: skip


def show(rows: list[dict], columns: dict[str, str]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in columns.values():
        table.add_column(title, no_wrap=True)
    for row in rows:
        table.add_row(*[str(row[key]) for key in columns])
    Console(width=None if sys.stdout.isatty() else 240).print(table)


def write(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {path.relative_to(ROOT)}")


def _round(value: float | None) -> float | str:
    return "" if value is None else float(f"{value:.3g}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="problems whose name begins with this")
    parser.add_argument("--csv", action="store_true", help="also write bench/results/gpu-*.csv")
    options = parser.parse_args()
    if not _cuda_library.status().startswith("loaded"):
        raise SystemExit(f"gpu_static: the CUDA library is {_cuda_library.status()}")
    usages = usage_of_library(_cuda_library.PATH)
    kernels = kernel_rows(usages | triton_static.usages(options.only))
    show(kernels, {key: key for key in kernels[0]})
    launches = launch_rows(options.only, usages)
    show(launches, COLUMNS)
    print(
        "Needed: every tensor read or written once. Moved: 32 bytes a sector, no cache. Bounds are "
        "the data sheets' peaks against needed bytes and executed operations: no times."
    )
    spills = sorted({row["kernel"] for row in kernels if row["spill_bytes"]})
    for kernel in spills:
        print(f"spills registers: {kernel}")
    if options.csv:
        write(RESULTS / "gpu-kernels.csv", kernels)
        write(RESULTS / "gpu-static.csv", launches)
    return 1 if spills else 0


if __name__ == "__main__":
    sys.exit(main())
