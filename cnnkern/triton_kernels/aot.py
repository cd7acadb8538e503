"""Compile Triton kernels ahead of time, for a GPU that need not be there.

A call of an op is run on tensors without memory (device "meta") while launches are recorded: so the
very code that launches a kernel chooses what is compiled, its tile included, be it tuned or not.
Each recorded launch becomes a cubin and a JSON file that says how to launch it with the CUDA driver
API.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from cnnkern.triton_kernels import MODULES, tuning
from cnnkern.triton_kernels.ahead import compile_launch
from cnnkern.triton_kernels.config import Tile
from cnnkern.triton_kernels.launch import Launch, Recorder

ARCHS = (75, 80, 86, 89, 90, 100, 103, 120)
DTYPES = {str(t).removeprefix("torch."): t for t in (
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.int64,
)}  # fmt: skip


def tensor(size: Sequence[int], dtype: str = "float32", channels_last: bool = False) -> Tensor:
    """Make a tensor that has a shape, a dtype and a layout, but no memory."""
    if dtype not in DTYPES:
        raise ValueError(f"aot: dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=DTYPES[dtype], device="meta", memory_format=layout)


def real_tensor(size: Sequence[int], dtype: str = "float32", channels_last: bool = False) -> Tensor:
    """Make such a tensor on the GPU: random floats, or integers that are 0."""
    made = torch.empty_like(tensor(size, dtype, channels_last), device="cuda")
    return made.normal_() if made.is_floating_point() else made.zero_()


def compile_call(
    arch: int, op: str, arguments: dict[str, Any], tiles: dict[str, Tile] | None = None
) -> list[tuple]:
    """Compile what one call of a raw op launches; return (launch, compiled kernel) in order.

    Args:
        tiles: those to use instead of the table's, as `tuning.tiles_for` finds them.

    Raises:
        ValueError: an op or an architecture that is not known, or what the op itself refuses.
    """
    if arch not in ARCHS:
        raise ValueError(f"aot: arch must be one of {', '.join(map(str, ARCHS))}, got {arch}")
    if op not in MODULES:
        raise ValueError(f"aot: op must be one of {', '.join(sorted(MODULES))}, got {op!r}")
    module = importlib.import_module(f"cnnkern.triton_kernels.{MODULES[op]}")
    try:
        with tuning.compiling_with(tiles or {}), Recorder(arch) as launches:
            getattr(module, op)(**arguments)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"aot: {op}: {error}") from error
    return [(launch, compile_launch(launch, arch)) for launch in launches]


def default_calls(dtype: str = "float32") -> list[dict[str, Any]]:
    """Describe LeNet's two blocks, forward for 1 and 256 images and backward for 256."""
    calls = []
    for n, save in ((1, False), (256, True)):
        for image, weight, padding in (
            ((n, 1, 28, 28), (6, 1, 5, 5), [2, 2, 2, 2]),
            ((n, 6, 14, 14), (16, 6, 5, 5), [0, 0, 0, 0]),
        ):
            for activation, pool in (("sigmoid", "avg"), ("relu", "max")):
                conv = image[2] + 2 * padding[0] - 4
                block = {"activation": activation, "pool": pool}
                full, half = [n, weight[0], conv, conv], [n, weight[0], conv // 2, conv // 2]
                x, w = {"size": list(image), "dtype": dtype}, {"size": list(weight), "dtype": dtype}
                b = {"size": [weight[0]], "dtype": dtype}
                calls.append({"op": "conv2d_act_pool2d", "input": x, "weight": w, "bias": b,
                              "padding": padding, "save": save, **block})  # fmt: skip
                if not save:
                    continue
                g, y = {"size": full, "dtype": dtype}, {"size": half, "dtype": dtype}
                calls.append({
                    "op": "act_pool2d_grad", "grad": y, "output": y,
                    "saved": g if pool == "avg" else {"size": [0], "dtype": dtype},
                    "offsets": {"size": half if pool == "max" else [0], "dtype": "uint8"},
                    "input_size": full, **block,
                })  # fmt: skip
                for op, arguments in (
                    ("conv2d_input_grad", {"weight": w, "input_size": list(image)}),
                    ("conv2d_weight_grad", {"input": x, "weight_size": list(weight)}),
                ):
                    calls.append({"op": op, "grad": g, **arguments, "padding": padding})
                calls.append({"op": "conv2d_bias_grad", "grad": g})
    return [call for i, call in enumerate(calls) if call["op"] in MODULES and call not in calls[:i]]


def write(
    arch: int, calls: Sequence[dict[str, Any]], folder: Path, tiles: dict[str, Tile] | None = None
) -> list[Path]:
    """Compile calls into `folder`: a cubin and a JSON file per kernel, and calls.json.

    A call is a dict of "op" and the op's arguments by name, as in the schemas of `cnnkern.ops`;
    tensors are dicts of "size", "dtype" and "channels_last". calls.json repeats the calls, each
    with its launches: the kernel's file, the grid and the values of its parameters. `tiles` are
    used as by `compile_call`.

    Raises:
        ValueError: as `compile_call`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, None] = {}
    index = []
    for call in calls:
        arguments = {
            name: tensor(**value) if isinstance(value, dict) else value
            for name, value in call.items()
            if name != "op"
        }
        launches = []
        for one, compiled in compile_call(arch, call["op"], arguments, tiles):
            name = f"{compiled.name}-{compiled.hash[:12]}-sm{arch}"
            if name not in written:
                (folder / f"{name}.cubin").write_bytes(compiled.asm["cubin"])
                description = json.dumps(_describe(arch, compiled), indent=1)
                (folder / f"{name}.json").write_text(description + "\n")
                written[name] = None
            launches.append(
                {"kernel": name, "grid": [one.programs, 1, 1], "values": _values(one, compiled)}
            )
        index.append({"call": call, "launches": launches})
    (folder / "calls.json").write_text(json.dumps(index, indent=1) + "\n")
    return [folder / f"{name}.cubin" for name in written]


def resource_usage(cubin: bytes) -> dict[str, int]:
    """Return the registers a thread, and the bytes of stack and local memory, of a cubin's kernel.

    A kernel that spills has a stack.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        text = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", path],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
    found = {key: int(n) for key, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return {"registers": found["REG"], "stack": found["STACK"], "local": found["LOCAL"]}


def _parameters(compiled) -> list[tuple[str, str]]:
    return [(name, kind) for name, kind in compiled.src.signature.items() if kind != "constexpr"]


def _describe(arch: int, compiled) -> dict[str, Any]:
    metadata = compiled.metadata
    names = list(compiled.src.signature)
    return {
        "kernel": compiled.name,
        "arch": arch,
        "triton": triton.__version__,
        "block": [32 * metadata.num_warps, 1, 1],
        "shared_bytes": metadata.shared,
        **resource_usage(compiled.asm["cubin"]),
        # What cuLaunchKernel takes, in order; the last two are scratch memory, here never used.
        "parameters": [
            *({"name": name, "type": kind} for name, kind in _parameters(compiled)),
            {"name": "global_scratch", "type": "*i8"},
            {"name": "profile_scratch", "type": "*i8"},
        ],
        "constants": {names[path[0]]: str(v) for path, v in compiled.src.constants.items()},
    }


def _values(one: Launch, compiled) -> dict[str, int]:
    """Return the integers that a launch passes, by parameter."""
    given = dict(zip(one.kernel.arg_names, one.args, strict=False))
    return {
        name: int(given[name]) for name, kind in _parameters(compiled) if not kind.startswith("*")
    }
