"""Tuning of Triton tiles: the search, what it keeps, and how it deals with files of any kind.

The clock is a stub, and the op a function that asks for tiles, so no GPU is needed; the tests
marked `gpu` tune real kernels by a stub clock.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace

import pytest
import torch
from cases import assert_close, values
from typer.testing import CliRunner

pytest.importorskip("triton")
from cnnkern import cli, reference
from cnnkern.triton_kernels import conv2d, conv2d_weight_grad, plan, tuning
from cnnkern.triton_kernels.config import RANGES, Tile

TABLE = Tile(64, 64, 32, 4, 3)
HERE, THERE = "this GPU", "another GPU"


class OnGpu(torch.Tensor):
    """A CPU tensor that says it is on a GPU: tiles are chosen, no kernel is run."""

    device = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keep tiles in a folder of the test's own; return the file."""
    file = tmp_path / "cache" / "tiles.json"
    monkeypatch.setattr(tuning, "path", lambda: file)
    tuning._forget()
    yield file
    monkeypatch.undo()
    tuning._forget()


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(tuning, "machine", lambda device: HERE)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())


@pytest.fixture
def x():
    return torch.zeros(8).as_subclass(OnGpu)


class Op:
    """An op that asks for the tile of one problem, or of two, and notes what it ran with."""

    def __init__(self, *sizes):
        self.sizes, self.ran = sizes or (100,), []

    def __call__(self, x):
        for size in self.sizes:
            self.ran.append(tuning.choose("conv2d_gather", TABLE, x, ("any",), (size,)))
        return x


def distance(best, tile):
    return 1 + sum(abs(a - b) for a, b in zip(astuple(tile), astuple(best), strict=True))


def clock(best, op):
    """Return a timer that finds `best` the fastest, and any other the slower the farther off."""

    def time(call):
        call()
        return distance(best, op.ran[-1])

    return time


def keys(size):
    return f"conv2d_gather/float32/any/{size}"


# ---- the search --------------------------------------------------------------------------------


def test_the_search_climbs_to_the_fastest():
    for best in (TABLE, Tile(128, 128, 64, 8, 4), Tile(16, 64, 16, 1, 1), Tile(256, 16, 32, 4, 6)):
        found = tuning.climb(TABLE, RANGES["conv2d_gather"], functools.partial(distance, best))
        assert found == best


def test_a_gain_within_noise_is_none():
    times = itertools.chain([1.0], itertools.repeat(0.99))
    assert tuning.climb(TABLE, RANGES["conv2d_gather"], lambda tile: next(times)) == TABLE


def test_tiles_that_do_not_run_are_out():
    def time(tile):
        if tile.channels > TABLE.channels:
            raise RuntimeError("out of shared memory")
        return 1 / tile.channels

    assert tuning.climb(TABLE, RANGES["conv2d_gather"], time) == TABLE
    with pytest.raises(RuntimeError, match="shared memory"):  # the table's own has to run
        tuning.climb(replace(TABLE, channels=128), RANGES["conv2d_gather"], time)


def test_neighbours_stay_in_range():
    for name, ranges in RANGES.items():
        start = Tile(*(getattr(ranges, f)[0] for f in Tile.__dataclass_fields__))
        for tile in tuning.neighbours(start, ranges):
            tuning._tile(name, list(astuple(tile)))
            assert tile.sums_a_thread <= ranges.sums_a_thread


# ---- from a call to the cache and back ---------------------------------------------------------


def test_the_fastest_tile_is_kept_and_used(x, here, cache):
    op, best = Op(), Tile(128, 64, 64, 4, 3)
    call = plan.planned(op)
    call(x)
    assert op.ran == [TABLE]
    with tuning.tune(clock(best, op)):
        call(x)
        assert op.ran[-1] == best
        op.ran.clear()
        call(x)
        assert op.ran == []  # it is a plan
    call(x)
    assert op.ran == []
    tuning._forget()  # as another process begins
    call(x)
    assert op.ran == [best]
    assert tuning.read(cache) == {HERE: {keys(128): best}}


def test_without_tune_nothing_is_timed(x, here):
    op = Op()
    plan.planned(op)(x)
    assert op.ran == [TABLE]


def test_every_problem_of_a_call_is_tuned_once(x, here, cache):
    op, timed = Op(100, 1000), []

    def timer(call):
        call()
        timed.append(op.ran[-2:])
        return 1.0

    with tuning.tune(timer):
        plan.planned(op)(x)
        both = len(timed)
        plan.planned(Op(120))(x)  # 65 to 128 are one problem
    assert len(timed) == both
    assert set(tuning.read(cache)[HERE]) == {keys(128), keys(1024)}
    # While one problem's tiles are timed, the other's stays.
    assert all(TABLE in pair for pair in timed)


def test_a_search_in_a_thread_is_its_own(x, here):
    """Calls of other threads see no tile that is on trial; backward, on one, is tuned, too."""
    op, seen = Op(), []

    def timer(call):
        call()
        with ThreadPoolExecutor(1) as pool:
            other = Op()
            pool.submit(other, x).result()
            seen.extend(other.ran)
        return 1.0

    with tuning.tune(timer), ThreadPoolExecutor(1) as pool:
        pool.submit(plan.planned(op), x).result()
    assert seen and set(seen) == {TABLE}


def test_tensors_of_the_cpu_are_not_tuned():
    def timer(call):
        raise AssertionError("timed")

    op = Op()
    with tuning.tune(timer):
        plan.planned(op)(torch.zeros(8))
    assert op.ran == [TABLE]


# ---- files -------------------------------------------------------------------------------------


def written(tiles, format=tuning.FORMAT):
    return json.dumps({"format": format, "machines": tiles})


BAD_FILES = {
    "nothing": "",
    "cut": written({HERE: {keys(128): [64, 64, 32, 4, 3]}})[:-9],
    "other_json": "[1, 2]",
    "other_format": written({}, "cnnkern tiles 9"),
    "no_machines": json.dumps({"format": tuning.FORMAT}),
    "unknown_kernel": written({HERE: {"gemm/1": [64, 64, 32, 4, 3]}}),
    "too_few_numbers": written({HERE: {keys(128): [64, 64, 32, 4]}}),
    "no_power_of_two": written({HERE: {keys(128): [96, 64, 32, 4, 3]}}),
    "out_of_range": written({HERE: {keys(128): [64, 64, 32, 64, 3]}}),
    "no_integer": written({HERE: {keys(128): [64, 64, 32.0, 4, 3]}}),
    "no_number": written({HERE: {keys(128): [64, 64, "32", 4, 3]}}),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_cache_is_told_and_not_used(name, x, here, cache):
    cache.parent.mkdir()
    cache.write_text(BAD_FILES[name])
    op = Op()
    with pytest.warns(UserWarning, match=f"tuned tiles are not used: .*{cache.name}: no file of"):
        op(x)
    assert op.ran == [TABLE]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # told once
        op(x)
    with pytest.raises(ValueError, match="no file of tuned tiles"):
        tuning.import_tiles(cache)
    with pytest.warns(UserWarning, match="not used"), tuning.tune(lambda call: 1.0):
        plan.planned(op)(x)
    assert tuning.read(cache) == {HERE: {keys(128): TABLE}}  # replaced


def test_a_cache_that_cannot_be_written_is_told(x, here, cache):
    cache.parent.write_text("a file where the folder should be")
    op, best = Op(), replace(TABLE, warps=8)
    with pytest.warns(UserWarning, match="tiles are not"), tuning.tune(clock(best, op)):
        plan.planned(op)(x)
    assert op.ran[-1] == best  # but used


def test_export_and_import(x, here, cache, tmp_path):
    best, theirs = replace(TABLE, warps=8), replace(TABLE, stages=5)
    shipped = tmp_path / "shipped.json"
    shipped.write_text(
        written({THERE: {keys(64): astuple(theirs)}, HERE: {keys(64): astuple(best)}})
    )
    op = Op(64, 128)
    call = plan.planned(op)
    with tuning.tune(clock(TABLE, op)):
        call(x)
    tuning.import_tiles(shipped)
    op.ran.clear()
    call(x)
    assert op.ran == [best, TABLE]  # the plan is made anew
    out = tmp_path / "out.json"
    assert tuning.export_tiles(out) == 3
    expected = {THERE: {keys(64): theirs}, HERE: {keys(64): best, keys(128): TABLE}}
    assert tuning.read(out) == tuning.read(cache) == expected
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "out.json", "shipped.json"]


PROCESS = """
import sys
from pathlib import Path
from cnnkern.triton_kernels import tuning
from cnnkern.triton_kernels.config import Tile
tuning.path = lambda: Path(sys.argv[1])
for i in range(40):
    tuning._keep({"GPU": {f"conv2d_gather/{sys.argv[2]}/{i}": Tile(64, 64, 32, 4, 3)}})
"""


def test_processes_that_write_at_once_lose_nothing(cache):
    writers = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(cache), name], env=os.environ)
        for name in ("a", "b")
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    assert len(tuning.read(cache)["GPU"]) == 80


def test_command(tmp_path, cache):
    given, out = tmp_path / "given.json", tmp_path / "out.json"
    given.write_text(written({THERE: {keys(64): astuple(TABLE)}}))
    arguments = ["tune", "--import", str(given), "--export", str(out)]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert "0 tiles for this machine" in result.stdout and "1 tiles exported" in result.stdout
    assert tuning.read(out) == tuning.read(cache)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what it says without a GPU")
def test_command_without_a_gpu():
    result = CliRunner().invoke(cli.app, ["tune"])
    assert (result.exit_code, result.stderr) == (1, "error: tune: there is no GPU\n")


def test_mistakes_end_in_one_line(tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    for arguments in (["--import", str(bad)], ["--export", str(tmp_path / "no" / "where.json")]):
        result = CliRunner().invoke(cli.app, ["tune", *arguments])
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


# ---- on a GPU ----------------------------------------------------------------------------------


@pytest.mark.gpu
def test_forward_and_backward_are_tuned_and_right(cache):
    """A clock by which the tile that is timed second wins: one that is not the table's."""
    x, w, b = values((2, 24, 6, 7), 0), values((40, 24, 3, 3), 1), values((40,), 2)
    on_gpu = [t.float().to("cuda").requires_grad_() for t in (x, w, b)]
    conv = ((1, 1), (1, 1, 1, 1), (1, 1), 1, "zeros", "triton")
    times: dict[str, itertools.chain] = {}

    def timer(call):
        (problem,) = tuple(call.keywords["forced"])
        times.setdefault(problem, itertools.chain((2, 1), itertools.repeat(3)))
        return next(times[problem])

    with tuning.tune(timer):
        y = torch.ops.cnnkern.conv2d.triton(*on_gpu, *conv)
        g = values(y.shape, 3)
        grads = torch.autograd.grad(y, on_gpu, g.float().to("cuda"))
    (tiles,) = tuning.read(cache).values()
    assert {key.split("/")[0] for key in tiles} == {
        "conv2d_gather", "conv2d_weight_grad", "conv2d_pixel_sum"
    }  # fmt: skip
    y_want, wants = reference.vjp(lambda *t: reference.conv2d(*t, *conv[:2]), (x, w, b), g)
    for actual, want in zip((y, *grads), (y_want, *wants), strict=True):
        assert_close(actual, want, torch.float32, 24 * 9)


@pytest.mark.gpu
def test_the_machine_has_a_name():
    name = tuning.machine(torch.device("cuda", 0))
    assert name.startswith(torch.cuda.get_device_name(0))
    assert f"torch {torch.__version__}" in name and "triton 3" in name


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_large_tiles_are_right(dtype, monkeypatch):
    """Those of problems too large for the emulator, on one that is not; its weight is packed."""
    monkeypatch.setattr(conv2d, "PIXELS_TO_PACK", 1)
    monkeypatch.setattr(conv2d, "conv2d_tile", lambda *a: Tile(128, 128, 64, 8, 3))
    monkeypatch.setattr(
        conv2d_weight_grad, "conv2d_weight_tile", lambda *a: Tile(128, 128, 32, 8, 3)
    )
    x, w = values((2, 64, 6, 6), 0, 1 / 16), values((72, 64, 3, 3), 1, 1 / 16)
    g = values((2, 72, 6, 6), 2, 1 / 16)
    conv = ((1, 1), (1, 1, 1, 1))
    wanted, (dx, dw) = reference.vjp(lambda x, w: reference.conv2d(x, w, None, *conv), (x, w), g)
    x, g = (t.to("cuda", dtype, memory_format=torch.channels_last) for t in (x, g))
    w = w.to("cuda", dtype)
    assert_close(conv2d.conv2d(x, w, None, *conv), wanted, dtype, 64 * 9)
    assert_close(conv2d.conv2d_input_grad(g, w, list(x.shape), *conv), dx, dtype, 72 * 9)
    actual = conv2d_weight_grad.conv2d_weight_grad(g, x, list(w.shape), *conv)
    assert_close(actual, dw, dtype, 72)
