"""Tuning of Triton tiles: the search, what it keeps, and how it deals with files of any kind.

The clock is a stub, and the op a function that asks for tiles, so no GPU is needed.
test_triton_tuning_gpu has kernels tuned.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
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
from typer.testing import CliRunner

pytest.importorskip("triton")
from cases import values
from samples import raw_calls

from cnnkern import cli
from cnnkern.triton_kernels import MODULES, plan, tuning
from cnnkern.triton_kernels import __name__ as PACKAGE
from cnnkern.triton_kernels.config import RANGES, Tile
from cnnkern.triton_kernels.launch import Recorder

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


def test_every_kernel_with_a_table_is_tuned():
    """Each asks for its tile when it is launched, so that a search finds it."""
    x, w = values((2, 16, 8, 8), 0).float(), values((16, 1, 3, 3), 1).float()
    conv = [[1, 1], [1, 1, 1, 1], [1, 1]]
    more = (
        ("adaptive_avg_pool2d", [x, [1, 1]]),
        ("conv2d", [x, w, None, *conv, 16]),
        ("conv2d_act_pool2d", [x[:, :3], w.expand(-1, 3, -1, -1), None, *conv, 1, "zeros", "auto",
                               "relu", "max"]),
    )  # fmt: skip
    asked = {}
    for op, arguments in (*raw_calls(torch.float32), *more):
        arguments = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments]
        function = getattr(importlib.import_module(f"{PACKAGE}.{MODULES[op]}"), op)
        with Recorder(80):
            tuning._run(function, arguments, {}, asked)
    assert {key.split("/")[0] for key in asked} == set(RANGES)


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


# ---- for GPUs that are not there -----------------------------------------------------------------


def machine_names(*gpus, arch=90):
    return [f"{gpu}{tuning._suffix(arch)}" for gpu in gpus]


def test_tiles_for_an_architecture(cache, tmp_path):
    h100, h200 = machine_names("H100", "H200")
    (a100,) = machine_names("A100", arch=80)
    tiles = [replace(TABLE, warps=w) for w in (1, 2, 8)]
    old = h100.replace("cnnkern ", "cnnkern 0.0.")
    assert tuning.tiles_for(90) == {}
    tuning._keep({name: {keys(64): tile} for name, tile in zip((a100, h100, old), tiles)})  # noqa: B905
    assert tuning.tiles_for(80) == {keys(64): tiles[0]}
    assert tuning.tiles_for(90) == tuning.tiles_for(90, "H100") == {keys(64): tiles[1]}
    shipped = tmp_path / "shipped.json"
    shipped.write_text(written({h100: {}, h200: {keys(64): astuple(tiles[0])}}))
    assert tuning.tiles_for(90, "H200", shipped) == {keys(64): tiles[0]}
    with pytest.raises(ValueError, match="one of 'H100', 'H200'"):
        tuning.tiles_for(90, file=shipped)
    with pytest.raises(ValueError, match=r"none for 'A100', sm_90.* only for 'H100', 'H200'"):
        tuning.tiles_for(90, "A100", shipped)


def test_kernels_are_compiled_ahead_with_tuned_tiles(cache, tmp_path):
    """By the command, from the cache or a file; what was not tuned has the table's tile."""
    size = [2, 32, 9, 9]
    pool = {"op": "avg_pool2d", "input": {"size": size}, "kernel_size": [2, 2], "stride": [2, 2]}
    calls = tmp_path / "calls.json"
    calls.write_text(json.dumps([pool, {**pool, "kernel_size": [3, 3]}]))
    (name,) = machine_names("H100")
    tile = Tile(1, 512, 1, 2, 2)
    shipped = tmp_path / "shipped.json"
    shipped.write_text(written({name: {"pool2d/float32/avg/nchw/1/1024/4": astuple(tile)}}))

    def blocks(*options):
        """Return the threads of a block and the blocks of each call."""
        out = tmp_path / "out"
        arguments = ["aot", "--arch", "90", "--out", str(out), "--calls", str(calls), *options]
        result = CliRunner().invoke(cli.app, arguments)
        assert result.exit_code == 0, result.output
        launches = [c["launches"][0] for c in json.loads((out / "calls.json").read_text())]
        kernels = [json.loads((out / f"{one['kernel']}.json").read_text()) for one in launches]
        return [(k["block"][0], one["grid"][0]) for k, one in zip(kernels, launches, strict=True)]

    table, tuned = [(128, 8), (128, 8)], [(64, 2), (128, 8)]
    assert blocks() == table
    assert blocks("--tiles", str(shipped)) == tuned
    tuning.import_tiles(shipped)
    assert blocks() == tuned
    arguments = ["aot", "--arch", "90", "--out", str(tmp_path), "--gpu", "H200"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 1 and result.stderr.startswith("error: tuned tiles: there are none")
