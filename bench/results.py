"""Rows of a benchmark: printed as a table, kept as CSV with all that a reader has to know."""

from __future__ import annotations

import argparse
import csv
import functools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bench.timing import Machine, Sample, geometric_mean, idle_share, measure_machine
from cnnkern import _C

RESULTS = Path(__file__).parent / "results"
DTYPES = {str(d).removeprefix("torch."): d for d in
          (torch.float32, torch.float64, torch.bfloat16, torch.float16)}  # fmt: skip
# What tells two rows of a file apart; a row measured again replaces the old one.
KEYS = (
    "subject",
    "name",
    "pass",
    "layout",
    "dtype",
    "algo",
    "activation",
    "device",
    "isa",
    "threads",
)


# What ATen and oneDNN call the instruction sets that `--isa` limits them to, beside our kernels.
ATEN_ISAS = {
    "scalar": "default",
    "avx2": "avx2",
    "avx512": "avx512",
    "avx512_bf16": "avx512",
    "amx_bf16": "avx512",
}
ONEDNN_ISAS = {
    "scalar": "SSE41",
    "avx2": "AVX2",
    "avx512": "AVX512_CORE",
    "avx512_bf16": "AVX512_CORE_BF16",
    "amx_bf16": "AVX512_CORE_AMX",
}
# Whose code other types than bfloat16 have.
ISAS_WITHOUT_BF16 = {"avx512_bf16": "avx512", "amx_bf16": "avx512"}


def parser(description: str) -> argparse.ArgumentParser:
    """Make the options that all benchmarks have."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--isa", choices=_C.cpu_isas(), help="all that we and torch may use")
    made.add_argument("--only", default="", help="rows whose name begins with this")
    made.add_argument("--quick", action="store_true", help="a fifth of the time a row")
    made.add_argument("--busy", action="store_true", help="write CSV though the machine is busy")
    made.add_argument("--csv", nargs="?", const="", help="also write CSV (default: bench/results/)")
    return made


def problem_parser(
    description: str, passes: Sequence[str], layouts: Sequence[str]
) -> argparse.ArgumentParser:
    """Make the options of benchmarks of one op, whose passes and layouts are rows."""
    made = parser(description)
    for name, known in (("pass", passes), ("layout", layouts)):
        made.add_argument(
            f"--{name}",
            dest=f"{name}es" if name == "pass" else f"{name}s",
            type=_subset_of(known),
            default=list(known),
            help=f"some of {','.join(known)}",
        )
    made.add_argument("--dtype", choices=DTYPES, default="float32")
    made.add_argument("--batch", type=int, help="images, instead of the problems' own number")
    return made


def _subset_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(
                f"knows {', '.join(known)}, not {', '.join(sorted(unknown))}"
            )
        return names

    return parse


def limit_isa(name: str) -> None:
    """Keep our kernels, ATen's and oneDNN's to one instruction set, before torch's first op.

    Raises:
        RuntimeError: torch has settled on another.
    """
    _C.set_cpu_isa(name)
    os.environ["ATEN_CPU_CAPABILITY"] = ATEN_ISAS[name]
    os.environ["ONEDNN_MAX_CPU_ISA"] = ONEDNN_ISAS[name]
    settled = torch.backends.cpu.get_cpu_capability().lower()
    if settled != ATEN_ISAS[name]:
        raise RuntimeError(f"torch uses {settled} kernels, not {ATEN_ISAS[name]}")


class Report:
    """Collect the rows of one run."""

    def __init__(self, subject: str, options: argparse.Namespace) -> None:
        if options.isa:
            limit_isa(options.isa)
        torch.set_num_threads(options.threads)
        self.subject, self.options = subject, options
        self.dtype = DTYPES.get(getattr(options, "dtype", ""), torch.float32)
        self.budget = 0.2 if options.quick else 1.0
        self._check_idle()
        self.machine = self._measure_machine()
        self.rows: list[dict] = []
        self.failures: list[str] = []

    def _measure_machine(self, quick: bool = False) -> Machine:
        return measure_machine(self.options.device, self.options.isa, self.dtype, quick)

    def measure_limits(self) -> None:
        """Measure a processor's peak rates anew, for the rows to come.

        Cores and memory that are shared with strangers give now more and now less.
        """
        if self.options.device == "cpu":
            self.machine = self._measure_machine(quick=True)

    def _check_idle(self) -> None:
        """Keep numbers out of the files that a busy machine has spoilt.

        OpenMP's waiting threads spin, so a neighbour slows torch down out of all proportion.
        """
        if self.options.device == "cuda" or (idle := idle_share()) >= 0.9:
            return
        message = f"the machine is busy ({idle:.0%} idle): ratios mean little"
        if self.options.csv is not None and not self.options.busy:
            raise SystemExit(f"{message}; wait, or write them all the same with --busy")
        print(f"warning: {message}", file=sys.stderr)

    def add(self, name: str, samples: dict[str, Sample], **columns) -> None:
        """Add a row: `ours` among the samples against the others, and what else describes it."""
        ours, row = samples["ours"], {"subject": self.subject, "name": name}
        row |= {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in columns.items()}
        row |= {"ours_us": _us(ours.median), "ours_p10": _us(ours.low), "ours_p90": _us(ours.high)}
        row["spread"] = f"{_show(row['ours_p10'])}-{_show(row['ours_p90'])}"
        for other, sample in samples.items():
            if other != "ours":
                row[f"{other}_us"] = _us(sample.median)
        self.rows.append(row | self._origin())

    def fail(self, name: str, error: Exception) -> None:
        """Note a row that could not be measured."""
        self.failures.append(f"{name}: {str(error).splitlines()[0][:200]}")

    def _origin(self) -> dict:
        info = self.machine
        cuda = self.options.device == "cuda"
        return {
            "device": info.device,
            "isa": "cuda" if cuda else self._isa(),
            "threads": info.threads,
            "peak_gflops": round(info.flops / 1e9, 1),
            "peak_source": info.flops_source,
            "peak_gbs": round(info.bandwidth / 1e9, 1),
            "torch": torch.__version__,
            "commit": _commit(),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        }

    def _isa(self) -> str:
        """Name the instruction set; those of bfloat16's products are avx512 for all other types."""
        isa = _C.cpu_isa()
        return isa if self.dtype == torch.bfloat16 else ISAS_WITHOUT_BF16.get(isa, isa)

    def finish(self, columns: dict[str, str], ratio: str = "ratio_best") -> int:
        """Print the table and the geometric means, write the CSV, and give the exit status."""
        info, console = self.machine, Console(width=None if sys.stdout.isatty() else 200)
        console.print(
            f"{info.device}, {info.threads} threads, {self._origin()['isa']}, torch "
            f"{torch.__version__}: {self._range('peak_gflops')} GFLOP/s by {info.flops_source}, "
            f"copies {self._range('peak_gbs')} GB/s. Ratios above 1: ours is faster.",
            highlight=False,
        )
        table = Table(box=None, header_style="bold", pad_edge=False)
        # A column that no row fills is left out.
        columns = {k: v for k, v in columns.items() if any(k in row for row in self.rows)}
        for key, title in columns.items():
            side = "left" if isinstance(self.rows[0].get(key), str) else "right"
            table.add_column(title, justify=side, no_wrap=True)
        for row in self.rows:
            style = "" if row.get(ratio, 1) >= 1 else "dim"
            table.add_row(*[_show(row.get(key, "")) for key in columns], style=style)
        console.print(table)
        groups: dict[str, list[float]] = {}
        for row in self.rows:
            group = " ".join(filter(None, (row.get("pass", ""), row.get("layout", ""))))
            groups.setdefault(group, []).append(row[ratio])
        for group, values in groups.items():
            console.print(
                f"geometric mean of {ratio}, {group}: {geometric_mean(values):.2f} "
                f"(faster in {sum(v >= 1 for v in values)} of {len(values)})",
                highlight=False,
            )
        for failure in self.failures:
            console.print(f"not timed: {failure}", style="red", highlight=False, markup=False)
        if self.options.csv is not None and self.rows:
            console.print(f"wrote {self._write()}", highlight=False)
        return 1 if self.failures else 0

    def _range(self, key: str) -> str:
        values = [row[key] for row in self.rows] or [self._origin()[key]]
        low, high = min(values), max(values)
        return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"

    def path(self) -> Path:
        """Name the file after what is measured, unless the options name it."""
        if self.options.csv:
            return Path(self.options.csv)
        origin = self._origin()
        slug = re.sub(r"[^a-z0-9]+", "-", origin["device"].lower()).strip("-")
        parts = [self.subject, slug, origin["isa"], f"{origin['threads']}t"]
        if self.dtype != torch.float32:
            parts.append(str(self.dtype).removeprefix("torch."))
        return RESULTS / f"{'-'.join(parts)}.csv"

    def _write(self) -> Path:
        path = self.path()
        rows = {tuple(str(r.get(k, "")) for k in KEYS): r for r in [*read(path), *self.rows]}
        names = list(dict.fromkeys(key for row in rows.values() for key in row))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(rows.values())
        return path


def read(path: Path) -> list[dict]:
    """Read the rows of a CSV file; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 2)


def _show(value: object) -> str:
    if isinstance(value, float) and 0 < abs(value) < 5e-3:
        return f"{value:.1e}"
    if isinstance(value, float):
        return f"{value:.2f}" if value < 100 else f"{value:.0f}"
    return str(value)


@functools.cache
def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=RESULTS.parent, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip()
