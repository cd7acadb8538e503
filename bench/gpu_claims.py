"""What the counts of bench.gpu_static have to show, and the README's table of it.

Nothing is run here: the rows come from bench/results/gpu-kernels.csv and gpu-static.csv.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass

from bench.results import RESULTS

KERNELS, LAUNCHES = RESULTS / "gpu-kernels.csv", RESULTS / "gpu-static.csv"
Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Claim:
    """All rows whose name matches `pattern` keep `column` on one side of the limit.

    A limit that is missed says by how much `today`, which must not get worse.
    """

    what: str
    table: str  # "kernels" or "launches"
    pattern: str
    column: str
    limit: float
    at_least: bool = False
    layout: str = ""  # of launches; else both
    today: float | None = None

    def rows(self, tables: dict[str, Rows]) -> Rows:
        def fits(row):
            name = row["kernel"] if self.table == "kernels" else f"{row['name']}: {row['kernel']}"
            if row.get("algo") == "triton" or self.layout not in ("", row.get("layout")):
                return False
            return re.search(self.pattern, name)

        return [row for row in tables[self.table] if fits(row)]

    def worst(self, tables: dict[str, Rows]) -> float:
        values = [self.value(row) for row in self.rows(tables)]
        return (min if self.at_least else max)(values)

    def value(self, row: dict[str, str]) -> float:
        if self.column == "async_copy_bytes":  # the smallest of those that occur
            return min(map(float, row[self.column].split()), default=0.0)
        return float(row[self.column])

    def holds(self, tables: dict[str, Rows]) -> bool:
        worst, limit = self.worst(tables), self.limit if self.today is None else self.today
        return worst >= limit if self.at_least else worst <= limit

    def bound(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


DEPTHWISE, OVERLAPPING = r"^dw", r"^(max|avg) 3x3"
APART, POOLS = r"^((max|avg) 2x2|global avg)", r"^(max|avg|global avg) "
CLAIMS = (
    Claim("bytes spilled, every kernel", "kernels", "", "spill_bytes", 0),
    Claim("`igemm`: FFMA in the main loop", "kernels", r"igemm_kernel<\d+, float, ",
          "loop_math_share", 0.75, at_least=True),
    Claim("`mma`: bytes of an asynchronous copy, aligned channels", "kernels",
          r"_mma_kernel<\w+, (\d+, )?true>", "async_copy_bytes", 16, at_least=True),
    Claim("`mma`: bank conflicts an access", "launches", r"_mma_kernel<", "bank_conflicts", 0),
    Claim("depthwise, channels_last: bytes moved / needed", "launches", DEPTHWISE, "moved", 1.3,
          layout="nhwc"),
    Claim("depthwise, contiguous: bytes moved / needed", "launches", DEPTHWISE, "moved", 1.3,
          layout="nchw"),
    Claim("depthwise: bytes used of the sectors moved", "launches", DEPTHWISE, "sector_use", 0.98,
          at_least=True),
    Claim("depthwise: bank conflicts an access", "launches", DEPTHWISE, "bank_conflicts", 0,
          today=0.84),
    Claim("overlapping pools: bytes moved / needed", "launches", OVERLAPPING, "moved", 1.3),
    Claim("pools of 2x2, global ones of 7x7: bytes moved / needed", "launches", APART, "moved",
          1.05),
    Claim("pools: bytes used of the sectors moved", "launches", POOLS, "sector_use", 0.95,
          at_least=True),
)  # fmt: skip


def read() -> dict[str, Rows]:
    """Read both tables of counts."""
    tables = {}
    for name, path in (("kernels", KERNELS), ("launches", LAUNCHES)):
        with path.open(newline="") as file:
            tables[name] = list(csv.DictReader(file))
    return tables


def table(markdown: Callable[[list[str], list[list[str]]], str]) -> str:
    """Give the README's table."""
    tables = read()
    body = [
        [claim.what, claim.bound(), f"{claim.worst(tables):.3g}", str(len(claim.rows(tables)))]
        for claim in CLAIMS
    ]
    return markdown(["counted", "wanted", "worst", "of"], body)
