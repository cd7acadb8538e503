"""The one timer of the benchmarks, and the machine's own limits.

Candidates take turns in one process with the same threads, so that a neighbour's noise or a falling
clock hits all of them. A candidate whose output is wrong is not timed. Times are seconds.

A turn of calls too short for the clock begins with some that are not timed. The first ones find
another candidate's code and data in the caches and the branch predictors, and on the cores its
waiting threads, which spin: on a 2-core Zen 4 the first inference of one image by LeNet takes two
to four times as long as the fifth, ours and ONNX Runtime's alike, and a turn's mean would tell more
of the candidate before it.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import math
import platform
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cnnkern import _C

HERE = Path(__file__).parent
SHORTEST_SAMPLE = 300e-6  # calls shorter than this are timed several at once
UNTIMED = 10  # of these, at the beginning of a turn
ROUNDS = (5, 200)
# The C compiler's options for an instruction set of ours; others are this machine's own.
TARGETS = {"scalar": ("-march=x86-64",), "avx2": ("-march=x86-64-v3",)}
# Of a processor's family and model, in servers.
MICROARCHITECTURES = {
    ("6", "85"): "Skylake",
    ("6", "106"): "Ice Lake",
    ("6", "143"): "Sapphire Rapids",
    ("25", "1"): "Zen 3",
    ("25", "17"): "Zen 4",
}
# Largest error allowed, as a part of the largest value: rounding of long sums, and Winograd's.
TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 4e-2,
}


class WrongOutputError(AssertionError):
    """A candidate computes something else than the baseline."""


@dataclass(frozen=True)
class Sample:
    """Seconds a call: the median, and the 10 % and 90 % quantiles of all rounds."""

    median: float
    low: float
    high: float
    rounds: int


def check_same(name: str, got: Tensor, want: Tensor, tolerance: float | None = None) -> None:
    """Refuse an output that is not the baseline's, up to rounding.

    Raises:
        WrongOutputError: another shape or dtype, NaN, or an error above the tolerance.
    """
    if got.shape != want.shape or got.dtype != want.dtype:
        raise WrongOutputError(f"{name}: {got.dtype} {list(got.shape)}, not {list(want.shape)}")
    if want.numel() == 0:
        return
    limit = TOLERANCE[want.dtype] if tolerance is None else tolerance
    scale = want.abs().max().double().item()
    error = (got - want).abs().max().double().item() / max(scale, 1e-30)
    if not error <= limit:
        raise WrongOutputError(f"{name}: off by {error:.1e} of the largest value (limit {limit})")


def alternate(
    candidates: dict[str, Callable[[], object]],
    budget: float = 1.0,
    device: str = "cpu",
) -> dict[str, Sample]:
    """Time the candidates in turn until `budget` seconds have passed, at least five rounds."""
    sync = torch.cuda.synchronize if device == "cuda" else _nothing
    counts = {name: _calls_a_sample(call, sync) for name, call in candidates.items()}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates)
    gc.collect()
    gc.disable()
    try:
        start, rounds = time.perf_counter(), 0
        while rounds < ROUNDS[0] or (rounds < ROUNDS[1] and time.perf_counter() - start < budget):
            for name in order:
                times[name].append(_time(candidates[name], counts[name], sync))
            order.reverse()
            rounds += 1
    finally:
        gc.enable()
    return {name: _summarise(values) for name, values in times.items()}


def alternate_events(
    candidates: dict[str, Callable[[], object]], budget: float = 1.0
) -> dict[str, Sample]:
    """Time single calls in turn on the GPU by CUDA events, each with an L2 cache of foreign data.

    The call's launch is queued behind the flush, so what Python spends on it is hidden unless it
    takes longer than that.
    """
    l2 = torch.cuda.get_device_properties().L2_cache_size
    foreign = torch.empty(max(2 * l2, 1 << 20), dtype=torch.uint8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for call in candidates.values():
        call()
    start, rounds = time.perf_counter(), 0
    while rounds < ROUNDS[0] or (rounds < ROUNDS[1] and time.perf_counter() - start < budget):
        spans = {name: [torch.cuda.Event(enable_timing=True) for _ in "ab"] for name in candidates}
        for name, call in candidates.items():
            foreign.zero_()
            spans[name][0].record()
            call()
            spans[name][1].record()
        torch.cuda.synchronize()
        for name, (begin, end) in spans.items():
            times[name].append(begin.elapsed_time(end) / 1e3)
        rounds += 1
    return {name: _summarise(values) for name, values in times.items()}


def first_call(call: Callable[[], object]) -> tuple[float, int]:
    """Run a call that has not run before; return seconds until its result, and bytes allocated."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, start = torch.cuda.memory_allocated(), time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start, torch.cuda.max_memory_allocated() - before


def _nothing() -> None:
    pass


def _calls_a_sample(call: Callable[[], object], sync: Callable[[], None]) -> int:
    """Warm up, and tell how many calls make a sample that the clock can measure."""
    call()
    once = _time(call, 1, sync)
    if once < SHORTEST_SAMPLE:
        once = min(once, _time(call, 5, sync))
    return max(1, math.ceil(SHORTEST_SAMPLE / once))


def _time(call: Callable[[], object], count: int, sync: Callable[[], None]) -> float:
    for _ in range(UNTIMED if count > 1 else 0):
        call()
    sync()
    start = time.perf_counter()
    for _ in range(count):
        call()
    sync()
    return (time.perf_counter() - start) / count


def _summarise(values: list[float]) -> Sample:
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return Sample(statistics.median(values), tenths[0], tenths[-1], len(values))


def geometric_mean(values: list[float]) -> float:
    """Average ratios: the exponential of the mean logarithm."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


# ---- the machine -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What this process can reach with its threads, and how that was measured."""

    device: str
    threads: int
    flops: float  # float32, a second
    flops_source: str
    bandwidth: float  # bytes read and written a second, by a large copy


def measure_machine(
    device: str = "cpu",
    isa: str | None = None,
    dtype: torch.dtype = torch.float32,
    quick: bool = False,
) -> Machine:
    """Measure the peak rates with the threads that torch is set to use, in two seconds or `quick`.

    `isa` limits the processor's to that instruction set. bfloat16 has a rate of its own where there
    are products of pairs or tiles of it; elsewhere float32's holds.
    """
    name = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
    flops = None
    if device == "cpu":
        loops = {"avx512_bf16": "dot", "amx_bf16": "tile"} if dtype == torch.bfloat16 else {}
        loop = loops.get(isa or _C.cpu_isa(), "fma")
        source = f"{loop} loop"
        flops = _loop_peak(torch.get_num_threads(), isa, loop, quick)
    if flops is None:  # a GPU, or no C compiler: the best matrix product stands in
        flops, source = matmul_peak(device), "torch.mm"
    return Machine(name, torch.get_num_threads(), flops, source, _copy_bandwidth(device, quick))


def cpu_name() -> str:
    """Name the processor as the operating system does, and its microarchitecture if known.

    A virtual machine's name may be that of several, with other instruction sets.
    """
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    fields = dict(re.findall(r"^([^\t:]+)\s*: (.*)$", text.split("\n\n")[0], re.MULTILINE))
    name = fields.get("model name", "").strip() or platform.processor() or platform.machine()
    model = (fields.get("cpu family"), fields.get("model"))
    return f"{name} ({MICROARCHITECTURES[model]})" if model in MICROARCHITECTURES else name


def idle_share(seconds: float = 0.5) -> float:
    """Tell which part of all processors' time nobody uses; 1 where the system does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 1.0

    def read() -> list[int]:
        return [int(field) for field in stat.read_text().split("\n", 1)[0].split()[1:9]]

    before = read()
    time.sleep(seconds)
    spent = [b - a for a, b in zip(before, read(), strict=True)]
    return (spent[3] + spent[4]) / max(sum(spent), 1)  # idle, and waiting for a disk


def _loop_peak(threads: int, isa: str | None, name: str, quick: bool) -> float | None:
    if (loaded := _peak_library(isa)) is None:
        return None
    loop, flops = getattr(loaded, f"{name}_loop"), getattr(loaded, f"{name}_flops")
    loop.argtypes, loop.restype = (ctypes.c_long, ctypes.c_float), ctypes.c_float
    flops.restype = ctypes.c_long
    iterations, best = 1_000_000, 0.0
    runs, pause = (8, 0.02) if quick else (16, 0.1)  # the threads may share a core at first
    with ThreadPoolExecutor(threads) as pool:  # ctypes lets go of the GIL
        for _ in range(runs):
            time.sleep(pause)
            start = time.perf_counter()
            list(pool.map(lambda _: loop(iterations, 0.5), range(threads)))
            seconds = time.perf_counter() - start
            best = max(best, threads * iterations * flops() / seconds)
    return best


@functools.cache
def _peak_library(isa: str | None) -> ctypes.CDLL | None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "peak.so"
        target = TARGETS.get(isa, ("-march=native",))
        command = [compiler, "-O3", *target, "-ffp-contract=fast", "-shared", "-fPIC"]
        try:
            subprocess.run(
                [*command, "-o", str(library), str(HERE / "peak.c")],
                check=True,
                capture_output=True,
            )
        except subprocess.CalledProcessError:
            return None
        return ctypes.CDLL(str(library))


def matmul_peak(device: str, dtype: torch.dtype = torch.float32) -> float:
    """Measure what torch's matrix product reaches, in operations a second.

    The matrices grow until a product takes milliseconds.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    size, seconds = 256, 0.0
    while seconds < 4e-3 and size < 16384:
        size *= 2
        a = torch.randn(size, size, device=device).to(dtype)
        seconds = alternate({"mm": lambda a=a: torch.mm(a, a)}, 0.1, device)["mm"].low
    return 2 * size**3 / seconds


def _copy_bandwidth(device: str, quick: bool) -> float:
    source, target = _copy_operands(device)
    budget = 0.1 if quick else 0.4
    seconds = alternate({"copy": lambda: target.copy_(source)}, budget, device)["copy"].low
    return 2 * source.numel() * 4 / seconds


@functools.cache
def _copy_operands(device: str, megabytes: int = 128) -> tuple[Tensor, Tensor]:
    source = torch.ones(megabytes << 18, device=device)
    return source, torch.empty_like(source)
