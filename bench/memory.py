"""Compare the memory of a training step with torch.nn's: ``python -m bench.memory``.

A process per network and package; what counts is how far two steps (forward, loss, backward, SGD)
raise the process's resident memory above that of the model and the data: activations, gradients,
what autograd keeps, and workspaces. malloc has to give freed blocks back at once, so that its own
hoard is not counted. Linux only.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import cnnkern
from bench.lenet import networks
from bench.results import RESULTS, parser

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
VGG11 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")  # Simonyan and Zisserman
MIB = 1024  # the kernel's unit is the KiB
PACKAGES = ("torch.nn", "convert()", "ConvBlock")
FIELDS = ("name", "batch", "layout", *PACKAGES, "torch")
FILE = RESULTS / "memory.csv"


def vgg11(fused: bool) -> nn.Sequential:
    """Build VGG-11 with 10 classes for 3x224x224, with our fused blocks or with torch.nn."""
    layers: list[nn.Module] = []
    channels = 3
    for i, width in enumerate(VGG11):
        if width == "M":
            continue
        pooled = VGG11[i + 1 : i + 2] == ("M",)
        if fused:
            options = {"activation": "relu", "pool": "max" if pooled else "none"}
            layers.append(cnnkern.nn.ConvBlock(channels, width, 3, padding=1, **options))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if pooled else []
        channels = width
    head = [nn.Flatten(), nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Linear(4096, 10)]
    return nn.Sequential(*layers, *head)


def lenet(package: str) -> nn.Module:
    mine, book = networks("sigmoid", "avg")
    return {"torch.nn": book, "convert()": cnnkern.convert(book), "ConvBlock": mine}[package]


def vgg(package: str) -> nn.Module:
    net = vgg11(fused=package == "ConvBlock")
    return cnnkern.convert(net) if package == "convert()" else net


# name: (network, batch, image)
CASES = {
    "LeNet": (lenet, 256, (1, 28, 28)),
    "VGG-11": (vgg, 8, (3, 224, 224)),
}


def resident(key: str) -> int:
    """Read VmRSS (now) or VmHWM (the highest since the last reset), in KiB."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1])


def peak(name: str, package: str, layout: str, threads: int) -> float:
    """Return what a training step adds to the process, in MiB."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    build, batch, size = CASES[name]
    net, images = build(package), torch.rand(batch, *size)
    if layout == "nhwc":
        net = net.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    before = resident("VmRSS")
    CLEAR.write_text("5")  # resets VmHWM
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return (resident("VmHWM") - before) / MIB


def main() -> int:
    args = parser(__doc__.splitlines()[0]).parse_args()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # of the processes that are started
    context = multiprocessing.get_context("spawn")
    rows = []
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for name in (name for name in CASES if name.startswith(args.only)):
            for layout in ("nchw", "nhwc"):
                calls = [pool.submit(peak, name, p, layout, args.threads) for p in PACKAGES]
                used = [f"{call.result():.1f}" for call in calls]
                rows.append((name, CASES[name][1], layout, *used, torch.__version__))
    table = Table(*FIELDS, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*map(str, row))
    console = Console()
    console.print("What a training step adds to the process, MiB:")
    console.print(table)
    if args.csv is not None:
        path = Path(args.csv or FILE)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([FIELDS, *rows])
        console.print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
