"""Tiles found by timing, kept in the user's cache: what a kernel runs with instead of the table's.

A kernel asks `choose` for its tile, and names the problem by a key: the kernel, dtype, layout, and
its sizes rounded up to powers of two. Inside ``with tune():`` the first call of a geometry times
tiles for every key that is new, by running the whole op, and writes them down; any other call only
looks them up. It is a context and no argument of the ops, since what is to be tuned includes the
gradients, which autograd calls, on threads of its own; so it holds for all threads.

The file maps GPU and versions to keys to tiles. Sums follow a tile's steps, so results may differ
in the last bits from one set of tiles to another; with one set they stay the same bits.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, fields, replace
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from cnnkern.ops import OP_NAMES, TRITON
from cnnkern.triton_kernels.config import RANGES, Ranges, Tile

FORMAT = "cnnkern tiles 1"
GAIN = 0.98  # of the time; a tile that is faster by less is no better
Timer = Callable[[Callable[[], object]], float]
Tiles = dict[str, dict[str, Tile]]

on_new_tiles: list[Callable[[], None]] = []  # called when calls have to look up their tiles anew
_timer: Timer | None = None  # of the search that is on, in all threads
_trial = threading.local()
_lock = threading.RLock()
_tiles: Tiles | None = None
_ahead: dict[str, Tile] = {}  # for launches that are recorded, not made


# ---- choosing ----------------------------------------------------------------------------------


def choose(kernel: str, table: Tile, like: Tensor, kind: tuple, sizes: tuple[int, ...]) -> Tile:
    """Return the tile for a problem: the one on trial, the one found by timing, or the table's."""
    dtype = str(like.dtype).removeprefix("torch.")
    key = "/".join(map(str, (kernel, dtype, *kind, *map(_bucket, sizes))))
    asked = getattr(_trial, "asked", None)
    if asked is not None:
        asked[key] = table
        if key in _trial.forced:
            return _trial.forced[key]
    if like.device.type != "cuda":
        return _ahead.get(key, table)
    return _known().get(machine(like.device), {}).get(key, table)


def _bucket(size: int) -> int:
    return 1 << (size - 1).bit_length() if size > 0 else 0


@cache
def machine(device: torch.device) -> str:
    """Name what tiles are good for: the GPU, and the versions of all that makes its code."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)}{_suffix(10 * major + minor)}"


def _suffix(arch: int) -> str:
    """Return how the names of machines of an architecture end, with the versions of this one."""
    import cnnkern

    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    versions = f"torch {torch.__version__}, triton {triton}, cnnkern {cnnkern.__version__}"
    return f", sm_{arch}, {versions}"


def tiles_for(arch: int, gpu: str | None = None, file: Path | None = None) -> dict[str, Tile]:
    """Return the tiles that were found on GPUs of an architecture, with this machine's versions.

    Args:
        gpu: the name of the GPU, which matters where several of that architecture were tuned.
        file: an exported file; by default the user's cache.

    Raises:
        OSError, ValueError: as `read`; or there are tiles for several GPUs, or none for that one.
    """
    suffix = _suffix(arch)
    found = {
        name.removesuffix(suffix): tiles
        for name, tiles in (_read_or_warn() if file is None else read(file)).items()
        if name.endswith(suffix)
    }
    names = ", ".join(map(repr, sorted(found))) or "none"
    if gpu is not None and gpu not in found:
        raise ValueError(f"tuned tiles: there are none for {gpu!r}{suffix}, only for {names}")
    if gpu is None and len(found) > 1:
        raise ValueError(f"tuned tiles: the gpu has to be named, one of {names}")
    return found[gpu] if gpu is not None else next(iter(found.values()), {})


@contextlib.contextmanager
def compiling_with(tiles: dict[str, Tile]) -> Iterator[None]:
    """Launch recorded kernels with these tiles, where there is one, instead of the table's."""
    global _ahead
    before, _ahead = _ahead, tiles
    try:
        yield
    finally:
        _ahead = before


# ---- searching ---------------------------------------------------------------------------------


def gpu_time(call: Callable[[], object]) -> float:
    """Time a call in a CUDA graph, without the host's share of it."""
    import triton.testing

    return triton.testing.do_bench_cudagraph(call, return_mode="median")


@contextlib.contextmanager
def tune(timer: Timer = gpu_time) -> Iterator[None]:
    """Find the fastest tiles for the Triton kernels that run inside, and keep them.

    The first call of each geometry, gradients included, takes as long as compiling and timing some
    dozens of tiles; what it finds is used from then on, by later processes, too. Inside a CUDA
    graph's capture nothing is timed.

    Args:
        timer: returns how long a call takes, in any unit.
    """
    global _timer
    before, _timer = _timer, timer
    _forget()
    try:
        yield
    finally:
        _timer = before


def tune_calls(calls: Sequence[dict]) -> None:
    """Tune a list of calls of raw ops, described as for `aot.write`, on tensors of random numbers.

    Raises:
        ValueError: there is no GPU, or what is described is no valid call.
    """
    from cnnkern.triton_kernels.aot import real_tensor

    if not torch.cuda.is_available():
        raise ValueError("tune: there is no GPU")
    with tune():
        for call in calls:
            arguments = {
                name: real_tensor(**value) if isinstance(value, dict) else value
                for name, value in call.items()
                if name != "op"
            }
            op = call.get("op")
            if op not in OP_NAMES:
                raise ValueError(f"tune: op must be one of {', '.join(OP_NAMES)}, got {op!r}")
            try:
                getattr(TRITON, op)(**arguments)
            except (RuntimeError, TypeError) as error:
                raise ValueError(f"tune: {op}: {error}") from error


def is_on() -> bool:
    """Tell whether calls are to be tuned now."""
    return _timer is not None and not _is_capturing()


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def search(function: Callable, arguments: tuple) -> None:
    """Time tiles for the kernels of a call, where none is known, and keep the fastest."""
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    if device.type != "cuda":
        return
    with _lock, torch.cuda.device(device):
        known = _known().get(machine(device), {})
        asked: dict[str, Tile] = {}
        _run(function, arguments, forced={}, asked=asked)
        found = {}
        for key, table in asked.items():
            if key not in known:
                ranges = RANGES[key.split("/")[0]]
                found[key] = climb(table, ranges, partial(_time, function, arguments, key))
        if found:
            _keep({machine(device): found})


def _time(function: Callable, arguments: tuple, key: str, tile: Tile) -> float:
    return _timer(partial(_run, function, arguments, forced={key: tile}))


def _run(function: Callable, arguments: tuple, forced: dict[str, Tile], asked=None) -> None:
    """Call a function with some problems' tiles forced, and note the table's for all it asks."""
    _trial.forced, _trial.asked = forced, {} if asked is None else asked
    try:
        function(*arguments)
    finally:
        del _trial.forced, _trial.asked


def climb(start: Tile, ranges: Ranges, time: Callable[[Tile], float]) -> Tile:
    """Halve or double one number of the tile at a time, as long as that makes it faster.

    Some dozen tiles are timed, not the thousands that there are.
    """
    timed = {start: time(start)}
    best = start
    while True:
        for tile in neighbours(best, ranges):
            if tile not in timed:
                timed[tile] = _time_or_infinity(time, tile)
        fastest = min(timed, key=timed.__getitem__)
        if timed[fastest] >= GAIN * timed[best]:
            return best
        best = fastest


def _time_or_infinity(time: Callable[[Tile], float], tile: Tile) -> float:
    """Time a tile; one that does not compile, or not fit the GPU, is out."""
    from triton.errors import TritonError

    try:
        return time(tile)
    except torch.AcceleratorError:  # a RuntimeError after which the GPU is of no more use
        raise
    except (TritonError, RuntimeError):
        return float("inf")


def neighbours(tile: Tile, ranges: Ranges) -> Iterator[Tile]:
    """Give the tiles that differ from one in one number, by a factor of 2 or a stage."""
    for field in fields(tile):
        value = getattr(tile, field.name)
        least, most = getattr(ranges, field.name)
        steps = (value - 1, value + 1) if field.name == "stages" else (value // 2, value * 2)
        for changed in steps:
            other = replace(tile, **{field.name: changed})
            if least <= changed <= most and other.sums_a_thread <= ranges.sums_a_thread:
                yield other


# ---- keeping -----------------------------------------------------------------------------------


def path() -> Path:
    """Return the file in the user's cache, as XDG_CACHE_HOME may place it."""
    import pooch

    return Path(pooch.os_cache("cnnkern")) / "triton-tiles.json"


def read(file: str | Path) -> Tiles:
    """Read a file of tiles.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is none of ours, or damaged.
    """
    file = Path(file)
    try:
        content = json.loads(file.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {FORMAT!r}")
        return {
            where: {key: _tile(key, numbers) for key, numbers in tiles.items()}
            for where, tiles in content["machines"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{file}: no file of tuned tiles: {error!r}") from error


def _tile(key: str, numbers: list[int]) -> Tile:
    tile, ranges = Tile(*numbers), RANGES[key.split("/")[0]]
    for field, value in zip(fields(tile), numbers, strict=True):
        least, most = getattr(ranges, field.name)
        power = field.name == "stages" or value & (value - 1) == 0
        if not (type(value) is int and least <= value <= most and power):
            raise ValueError(f"{key} cannot have {field.name} {value}")
    return tile


def export_tiles(file: str | Path) -> int:
    """Write all tiles that were found or imported here to a file; return how many."""
    tiles = _known()
    _write(Path(file), tiles)
    return sum(map(len, tiles.values()))


def import_tiles(file: str | Path) -> int:
    """Take over the tiles of an exported file; return how many are for the GPUs of this machine.

    Those for other GPUs or versions are kept, too: they are used where they belong.

    Raises:
        OSError, ValueError: as `read`.
    """
    tiles = read(file)
    _keep(tiles)
    _forget()
    here = {machine(torch.device("cuda", i)) for i in range(torch.cuda.device_count())}
    return sum(len(tiles.get(name, {})) for name in here)


def _known() -> Tiles:
    global _tiles
    if _tiles is None:
        _tiles = _read_or_warn()
    return _tiles


def _forget() -> None:
    """Look up all tiles anew, in the file as it is now."""
    global _tiles
    _tiles = None
    for hook in on_new_tiles:
        hook()


def _read_or_warn() -> Tiles:
    try:
        return read(path())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warnings.warn(f"cnnkern: tuned tiles are not used: {error}", stacklevel=2)
        return {}


def _keep(found: Tiles) -> None:
    """Add tiles to the user's cache, to what other processes wrote meanwhile."""
    file = path()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _alone(file.with_suffix(".lock")):
            tiles = _merged(_read_or_warn(), found)
            _write(file, tiles)
    except OSError as error:
        warnings.warn(f"cnnkern: tuned tiles are not kept: {error}", stacklevel=2)
        tiles = _merged(_known(), found)
    global _tiles
    _tiles = tiles


def _merged(tiles: Tiles, found: Tiles) -> Tiles:
    return tiles | {where: tiles.get(where, {}) | new for where, new in found.items()}


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait for other processes that write; where there are no file locks, the last one wins."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(file: Path, tiles: Tiles) -> None:
    """Replace the file in one step, so that a reader sees the old or the new one, whole."""
    content = {
        "format": FORMAT,
        "machines": {
            where: {key: list(astuple(tile)) for key, tile in sorted(found.items())}
            for where, found in sorted(tiles.items())
        },
    }
    new = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        new.write_text(json.dumps(content, indent=1) + "\n")
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)
