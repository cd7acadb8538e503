"""Train the book's LeNet with many seeds and keep what each reaches: ``python -m bench.accuracy``.

One run says little: the last epoch's test accuracy has a standard deviation of 0.012 over seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.results import RESULTS

FIELDS = ("seed", "epochs", "loss", "train_acc", "test_acc")


def train(seed: int, epochs: int) -> dict[str, float]:
    """Run one training as a user would, and return its row."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = ["--seed", str(seed), "--epochs", str(epochs), "--quiet", "--json", str(report)]
        subprocess.run([sys.executable, "-m", "cnnkern", "train", *command], check=True)
        result = json.loads(report.read_text())
    return {"seed": seed, "epochs": epochs} | {key: round(result[key], 4) for key in FIELDS[2:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=21)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--csv", type=Path, default=RESULTS / "lenet-accuracy.csv")
    options = parser.parse_args()
    rows = [train(seed, options.epochs) for seed in range(options.seeds)]
    with options.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    for key in FIELDS[2:]:
        values = [row[key] for row in rows]
        print(f"{key}: median {statistics.median(values):.3f}, {min(values)} to {max(values)}")


if __name__ == "__main__":
    main()
