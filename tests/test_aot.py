"""Triton kernels compiled ahead of time for every architecture: what ptxas says of them."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from cnnkern import cli

pytest.importorskip("triton")
from cnnkern.triton_kernels import aot

ARCHS = (75, 80, 86, 89, 90, 100, 120)
# What a block may have of shared memory, in KiB: CUDA C++ programming guide, compute capabilities.
SHARED_KIB = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}


def tensor(*size, dtype="float32", nhwc=True):
    return aot.tensor(size, dtype, nhwc and len(size) == 4)


def half(*size):
    return tensor(*size, dtype="float16")


OVERLAPPING = {"kernel_size": [3, 3], "stride": [2, 2], "padding": [1, 1]}
GENERAL = {"kernel_size": [3, 2], "stride": [2, 3], "padding": [1, 1]}
# One for each kind of kernel; the shapes are those of LeNet, or of a ResNet's first stage.
CALLS = {
    "max_pool2d": ("max_pool2d", {
        "input": half(8, 64, 112, 112), **OVERLAPPING, "save": "offsets"}),
    "max_pool2d_float64": ("max_pool2d", {
        "input": tensor(2, 5, 9, 9, dtype="float64", nhwc=False), **GENERAL, "save": "indices"}),
    "max_pool2d_grad": ("max_pool2d_grad", {
        "grad": half(8, 64, 56, 56), "indices": tensor(8, 64, 56, 56, dtype="uint8"),
        "input_size": [8, 64, 112, 112], **OVERLAPPING}),
    "avg_pool2d_grad": ("avg_pool2d_grad", {
        "grad": tensor(2, 5, 5, 4, nhwc=False), "input_size": [2, 5, 9, 9], **GENERAL}),
    "adaptive_avg_pool2d": ("adaptive_avg_pool2d", {
        "input": half(8, 512, 7, 7), "output_size": [1, 1]}),
    "global_max_pool2d": ("adaptive_max_pool2d", {
        "input": tensor(8, 512, 7, 7, nhwc=False), "output_size": [1, 1]}),
    "max_unpool2d": ("max_unpool2d", {
        "input": tensor(8, 64, 28, 28), "indices": tensor(8, 64, 28, 28, dtype="int64"),
        "output_size": [56, 56]}),
    "max_pool2d_gather": ("max_pool2d_gather", {
        "input": half(8, 64, 112, 112), "indices": tensor(8, 64, 56, 56, dtype="uint8"),
        **OVERLAPPING}),
    "act_pool2d_grad": ("act_pool2d_grad", {
        "grad": half(8, 16, 5, 5), "output": half(8, 16, 5, 5), "saved": half(8, 16, 10, 10),
        "offsets": aot.tensor([0], "uint8"), "input_size": [8, 16, 10, 10],
        "activation": "gelu", "pool": "avg"}),
    "lenet1": ("conv2d_act_pool2d", {
        "input": tensor(256, 1, 28, 28, nhwc=False), "weight": tensor(6, 1, 5, 5, nhwc=False),
        "bias": tensor(6), "padding": [2, 2, 2, 2], "activation": "sigmoid", "pool": "avg",
        "save": True}),
    "lenet2_half": ("conv2d_act_pool2d", {
        "input": half(256, 6, 14, 14), "weight": half(16, 6, 5, 5), "bias": half(16),
        "activation": "relu", "pool": "max", "save": True}),
}  # fmt: skip
ON_TENSOR_CORES = ("lenet2_half",)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", CALLS)
def test_kernels_fit_the_architecture(name, arch):
    for _, compiled in aot.compile_call(arch, *CALLS[name]):
        usage = aot.resource_usage(compiled.asm["cubin"])
        assert usage["stack"] == usage["local"] == 0, f"spills: {usage}"
        assert compiled.metadata.shared <= 1024 * SHARED_KIB[arch]
        assert compiled.metadata.global_scratch_size == 0
        if name in ON_TENSOR_CORES and arch >= 80:  # Triton multiplies with FMAs on sm_75
            assert re.search(r"\b(mma\.sync|wgmma|tcgen05\.mma)", compiled.asm["ptx"])


@pytest.mark.parametrize(("name", "access"), (
    ("max_pool2d", "ld.global.v4.b32"),
    ("max_pool2d", "st.global.v4.b32"),
    ("max_pool2d_grad", "st.global.v4.b32"),
    ("max_pool2d_grad", "ld.global.v4.b32"),
    ("max_pool2d_grad", "ld.global.v2.b32"),  # 8 offsets
))  # fmt: skip
def test_channels_last_is_read_and_written_as_vectors(name, access):
    ((_, compiled),) = aot.compile_call(90, *CALLS[name])
    accesses = re.findall(r"\b(?:ld|st)\.global\S*", compiled.asm["ptx"])
    assert access in {a.replace(".L1::evict_first", "") for a in accesses}, set(accesses)


def test_what_is_written_describes_the_launches(tmp_path):
    calls = [
        {"op": "avg_pool2d", "input": {"size": [2, 3, 9, 8]}, "kernel_size": [2, 2],
         "stride": [2, 2]},
        {"op": "avg_pool2d", "input": {"size": [5, 3, 9, 8]}, "kernel_size": [2, 2],
         "stride": [2, 2]},
    ]  # fmt: skip
    (cubin,) = aot.write(80, calls, tmp_path)  # the two differ in nothing that is compiled
    assert cubin.read_bytes()[:4] == b"\x7fELF"
    kernel = json.loads(cubin.with_suffix(".json").read_text())
    assert kernel["kernel"] == "pool2d_kernel"
    assert kernel["block"] == [128, 1, 1]
    names = [parameter["name"] for parameter in kernel["parameters"]]
    assert names[:3] == ["x_ptr", "y_ptr", "saved_ptr"]
    index = json.loads((tmp_path / "calls.json").read_text())
    assert [entry["call"] for entry in index] == calls
    launches = [entry["launches"][0] for entry in index]
    assert {launch["kernel"] for launch in launches} == {cubin.stem}
    assert [launch["grid"] for launch in launches] == [[1, 1, 1], [2, 1, 1]]  # 128 outputs each
    assert launches[1]["values"]["units"] == 5 * 3 * 4 * 4
    pointers = {p["name"] for p in kernel["parameters"] if p["type"].startswith("*")}
    assert set(launches[0]["values"]) == set(names) - pointers


def test_default_calls_are_those_of_lenet():
    ops = {call["op"] for call in aot.default_calls()}
    assert {"conv2d_act_pool2d", "act_pool2d_grad", "conv2d_weight_grad"} <= ops


def test_command(tmp_path):
    calls = tmp_path / "calls.json"
    calls.write_text(json.dumps([
        {"op": "adaptive_avg_pool2d", "input": {"size": [1, 8, 7, 7], "channels_last": True},
         "output_size": [1, 1]}
    ]))  # fmt: skip
    arguments = ["aot", "--arch", "90", "--out", str(tmp_path / "out"), "--calls", str(calls)]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.split()
    assert line.endswith("-sm90.cubin")


@pytest.mark.parametrize(("arch", "call", "message"), (
    ("90", {"op": "conv9d"}, "got 'conv9d'"),
    ("52", {"op": "max_pool2d"}, "got 52"),
    ("90", {"op": "adaptive_avg_pool2d", "input": {"size": [1, 8, 7, 7], "dtype": "int3"}},
     "got 'int3'"),
    ("90", {"op": "adaptive_avg_pool2d", "input": {"size": [1, 8, 7, 7]}}, "output_size"),
    ("90", {"op": "adaptive_avg_pool2d", "input": {"size": [1, 8, 7, 7]}, "output_size": [0, 1]},
     "output_size must be at least 1, got [0, 1]"),
))  # fmt: skip
def test_mistakes_end_in_one_line(arch, call, message, tmp_path):
    calls = tmp_path / "calls.json"
    calls.write_text(json.dumps([call]))
    arguments = ["aot", "--arch", arch, "--out", str(tmp_path / "out"), "--calls", str(calls)]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: aot: ")
    assert message in line
