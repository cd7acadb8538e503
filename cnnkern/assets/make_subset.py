"""Make the embedded subset of Fashion-MNIST: ``python make_subset.py FOLDER [OUTPUT]``.

FOLDER holds the four IDX files of the full set, such as Debian's dataset-fashion-mnist package
installs. The first images of each class are taken, in the order in which they stand in the set.
"""

import gzip
import struct
import sys
from pathlib import Path

import torch
from torch import Tensor

from cnnkern.data import FILES, Split, load_dataset

PER_CLASS = {"train": 350, "test": 100}  # about 2 MB, gzipped


def stratified(split: Split, classes: int, per_class: int) -> Split:
    """Keep the first ``per_class`` images of each class, in their order.

    Raises:
        ValueError: a class has fewer.
    """
    chosen = []
    for label in range(classes):
        found = (split.labels == label).nonzero().flatten()[:per_class]
        if len(found) < per_class:
            raise ValueError(f"class {label} has {len(found)} images, asked for {per_class}")
        chosen.append(found)
    order = torch.cat(chosen).sort().values
    return Split(split.images[order], split.labels[order])


def write_idx(path: Path, values: Tensor) -> None:
    """Write a uint8 tensor as a gzipped IDX file, the same bytes at every run."""
    header = struct.pack(f">HBB{values.dim()}I", 0, 8, values.dim(), *values.shape)
    path.write_bytes(gzip.compress(header + values.contiguous().numpy().tobytes(), 9, mtime=0))


def make_subset(source: Path, target: Path, per_class: dict[str, int]) -> None:
    """Write the four files of the subset of a Fashion-MNIST folder."""
    full = load_dataset("fashion-mnist", source)
    for name, stems in (("train", FILES[:2]), ("test", FILES[2:])):
        split = stratified(getattr(full, name), len(full.classes), per_class[name])
        write_idx(target / f"{stems[0]}.gz", split.images.squeeze(1))
        write_idx(target / f"{stems[1]}.gz", split.labels.to(torch.uint8))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    output = Path(sys.argv[2]) if len(sys.argv) == 3 else Path(__file__).parent
    make_subset(Path(sys.argv[1]), output, PER_CLASS)
