"""Where "auto" takes Triton on CUDA: large products on tensor cores that it has better instructions
for. No GPU is needed: its architecture is a number, its tensors are fakes."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")
from cnnkern import functional, nn, selection

LARGE = {
    "pass_": "fprop", "dtype": "float16", "input": [32, 256, 28, 28], "weight": [256, 256, 3, 3],
    "padding": [1, 1, 1, 1], "channels_last": True, "weight_channels_last": True, "arch": 90,
}  # fmt: skip


@pytest.mark.parametrize("change", (
    {}, {"arch": 100}, {"dtype": "bfloat16"}, {"pass_": "dgrad"}, {"pass_": "wgrad"},
    {"weight": [256, 256, 1, 1]}, {"weight_channels_last": False},
    {"weight": [256, 64, 3, 3], "groups": 4},
))  # fmt: skip
def test_large_products_go_to_triton(change):
    chosen, reasons = selection.cuda_conv2d(**LARGE | change)
    assert chosen == "triton" and reasons["triton"] == ""


@pytest.mark.parametrize(("change", "reason"), (
    ({"arch": 80}, "not on sm_80"),
    ({"arch": 120}, "not on sm_120"),
    ({"dtype": "float32"}, "not for float32"),
    ({"dtype": "float64"}, "not for float64"),
    ({"channels_last": False}, "channels_last"),
    ({"weight": [256, 32, 3, 3], "groups": 8}, "not for 32 and 32"),
    ({"weight": [68, 256, 3, 3]}, "not for 256 and 68"),
    ({"input": [1, 256, 28, 28]}, "not for 14"),
    ({"stride": [4, 4]}, "not for 26"),
))  # fmt: skip
def test_the_rest_stays_with_cuda(change, reason):
    chosen, reasons = selection.cuda_conv2d(**LARGE | change)
    assert chosen != "triton" and chosen in reasons
    assert reasons["triton"].endswith(reason) or reason in reasons["triton"]
    assert reasons[chosen] == ""


class Ops(TorchDispatchMode):
    """Note which of our ops are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == "cnnkern":
            self.names.append(str(op).removeprefix("cnnkern."))
        return op(*args, **(kwargs or {}))


def called(
    monkeypatch, function, arch=90, dtype=torch.float16, layout=torch.channels_last, **fakes
):
    """Return the ops that a function calls on tensors of a GPU that is not there."""
    monkeypatch.setattr(selection, "compute_capability", lambda device: arch)
    sizes = {"x": (32, 256, 28, 28), "w": (256, 256, 3, 3)} | fakes
    with FakeTensorMode(), Ops() as ops:
        function(*[
            torch.empty(
                size, dtype=dtype, device="cuda", memory_format=layout if len(size) == 4 else None
            )
            for size in sizes.values()
        ])  # fmt: skip
    return ops.names


def test_public_functions_follow_the_rule(monkeypatch):
    for function, name in (
        (functional.conv2d, "conv2d"),
        (functional.conv_transpose2d, "conv2d_input_grad"),
        (functional.conv2d_act_pool2d, "conv2d_act_pool2d"),
    ):
        assert called(monkeypatch, function) == [f"{name}.triton"]
        for other in (
            {"arch": 80}, {"dtype": torch.float32}, {"layout": torch.contiguous_format},
            {"x": (1, 256, 28, 28)},
        ):  # fmt: skip
            assert called(monkeypatch, function, **other) == [f"{name}.default"]


def test_stride_counts(monkeypatch):
    """Of a transposed convolution it makes results more, of a plain one fewer."""
    small = {"x": (8, 256, 28, 28)}
    for function, name in ((functional.conv2d, "default"), (functional.conv_transpose2d, "triton")):
        (op,) = called(monkeypatch, lambda x, w, f=function: f(x, w, stride=2), **small)
        assert op.endswith(name)


def test_a_name_is_obeyed(monkeypatch):
    for algo, overload in (("mma", "default"), ("triton", "triton")):
        f = lambda x, w, algo=algo: functional.conv2d(x, w, algo=algo)  # noqa: E731
        assert called(monkeypatch, f) == [f"conv2d.{overload}"]
        assert called(monkeypatch, f, arch=80) == [f"conv2d.{overload}"]


@pytest.mark.gpu  # without one torch turns autocast off
def test_autocast_counts(monkeypatch):
    def f(x, w):
        with torch.autocast("cuda", torch.bfloat16):
            return functional.conv2d(x, w)

    assert called(monkeypatch, f, dtype=torch.float32)[0] == "conv2d.triton"


def test_layers_follow_the_rule(monkeypatch):
    layer = nn.Conv2d(256, 256, 3, padding=1)

    def f(x, w):
        torch.func.functional_call(layer, {"weight": w, "bias": w[:, 0, 0, 0]}, (x,))

    assert called(monkeypatch, f) == ["conv2d.triton"]


def test_what_is_no_problem_is_refused_as_ever(monkeypatch):
    for sizes, options in (({"w": (256, 256, 3)}, {}), ({}, {"groups": 0}), ({}, {"stride": 0})):
        with pytest.raises(RuntimeError, match=r"^cnnkern::conv2d: "):
            called(monkeypatch, lambda x, w, o=options: functional.conv2d(x, w, **o), **sizes)


@pytest.mark.gpu
def test_compiled_code_follows_the_rule(monkeypatch):
    """What runs is the right result, by either way, and compilers can follow the choice."""
    monkeypatch.setattr(selection, "TILES", 1)
    x = torch.randn(1, 64, 6, 6).to("cuda", torch.float16, memory_format=torch.channels_last)
    w = torch.randn(64, 64, 1, 1).to("cuda", torch.float16, memory_format=torch.channels_last)
    results = []
    for arch in (90, 80):
        torch._dynamo.reset()
        monkeypatch.setattr(selection, "WARPGROUP_ARCHS", (arch,))
        compiled = torch.compile(functional.conv2d, fullgraph=True, backend="aot_eager")
        results += [compiled(x, w), functional.conv2d(x, w)]
    for result in results[1:]:
        torch.testing.assert_close(result.cpu(), results[0].cpu(), rtol=2e-3, atol=2e-2)
