"""What holds for every raw op: opcheck, fakes that tell the truth, compilation, autocast.

The calls come from `samples.raw_calls`, which covers every op of the contract.
"""

from __future__ import annotations

import pytest
import torch
from cases import LAYOUTS, layout, values
from samples import call_ids, on_device, raw_calls
from torch._subclasses.fake_tensor import FakeTensorMode

from cnnkern import functional, nn
from cnnkern.ops import OP_NAMES

OPS = ()  # whatever a backend has
CALLS = raw_calls()
BY_OP = dict(reversed(CALLS))  # the first call of each op
# Its backward is not differentiable by itself: double backward takes the unfused ops.
NOT_DIFFERENTIABLE = {"act_pool2d_grad"}


def op_of(name):
    return getattr(torch.ops.cnnkern, name).default


def with_leaves(name, arguments):
    """Let floating tensors require gradients, as opcheck wants for its autograd part."""
    if name in NOT_DIFFERENTIABLE:
        return arguments
    return [
        a.detach().clone().requires_grad_() if is_float(a) else a for a in arguments
    ]  # fmt: skip


def is_float(a):
    return isinstance(a, torch.Tensor) and a.is_floating_point()


def test_samples_cover_every_op():
    assert {name for name, _ in CALLS} == set(OP_NAMES)


@pytest.mark.parametrize(("name", "arguments"), CALLS, ids=call_ids(CALLS))
def test_opcheck(name, arguments):
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    torch.library.opcheck(op_of(name), with_leaves(name, arguments), test_utils=tests)


@pytest.mark.parametrize("name", OP_NAMES)
def test_opcheck_on_a_gpu(name, gpu):
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    for op, arguments in CALLS:
        if op == name and gpu.has(name):
            arguments = with_leaves(name, on_device(arguments, gpu.device))
            torch.library.opcheck(gpu.op(name), arguments, test_utils=tests)


@pytest.mark.parametrize("name", OP_NAMES)
def test_opcheck_of_dynamic_tracing(name):
    torch.library.opcheck(
        op_of(name), with_leaves(name, BY_OP[name]), test_utils="test_aot_dispatch_dynamic"
    )


# ---- fakes -------------------------------------------------------------------------------------


def check_fake(op, arguments):
    """Compare sizes, strides, dtypes and devices of fake and real results."""
    op = op_of(op) if isinstance(op, str) else op
    real = op(*arguments)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        fake = op(*fakes)
    real, fake = (x if isinstance(x, tuple) else (x,) for x in (real, fake))
    for one, other in zip(real, fake, strict=True):
        assert one.shape == other.shape
        assert one.stride() == other.stride()
        assert (one.dtype, one.device) == (other.dtype, other.device)
        assert one.storage_offset() == other.storage_offset() == 0


@pytest.mark.parametrize("layout_name", LAYOUTS)
def test_fake_strides_are_the_real_ones(layout_name):
    for dtype in (torch.float32, torch.float16):
        for name, arguments in raw_calls(dtype, layout_name):
            check_fake(name, arguments)


@pytest.mark.parametrize("layout_name", LAYOUTS)
def test_fake_strides_are_the_real_ones_on_a_gpu(layout_name, gpu):
    for name, arguments in raw_calls(torch.float32, layout_name):
        if gpu.has(name):
            check_fake(gpu.op(name), on_device(arguments, gpu.device))


DEGENERATE = {
    "one_channel": (2, 1, 5, 6),
    "one_image": (1, 3, 5, 6),
    "one_pixel": (2, 3, 1, 1),
    "one_column": (2, 3, 5, 1),
    "one_row": (2, 3, 1, 5),
    "one_of_all": (1, 1, 1, 1),
    "no_image": (0, 3, 4, 4),
}


@pytest.mark.parametrize("layout_name", LAYOUTS)
@pytest.mark.parametrize("size", DEGENERATE)
def test_fake_strides_of_degenerate_sizes(size, layout_name):
    """Where a size is 1 its stride says nothing, and layouts become ambiguous."""
    x = layout(values(DEGENERATE[size], 0), layout_name)
    N, C, H, W = x.shape
    w = values((4, C, 1, 1), 1)
    g = layout(values((N, 4, H, W), 2), layout_name)
    check_fake("conv2d", [x, w])
    check_fake("conv2d_input_grad", [g, w, list(x.shape)])
    check_fake("conv2d_weight_grad", [g, x, list(w.shape)])
    check_fake("max_pool2d", [x, [1, 1], [1, 1], [0, 0], [1, 1], False, "indices"])
    check_fake("avg_pool2d", [x, [1, 1], [1, 1]])
    check_fake("adaptive_avg_pool2d", [x, [2, 2]])
    check_fake("adaptive_max_pool2d", [x, [1, 1]])
    check_fake("conv2d_act_pool2d", [x, w, None])


def test_fake_strides_of_expanded_inputs():
    for x in (
        values((1, 1, 6, 7), 0).expand(2, 4, 6, 7),
        values((2, 4, 1, 1), 0).expand(2, 4, 6, 7),
        values((1, 4, 1, 1), 0).expand(2, 4, 6, 7),
    ):
        check_fake("conv2d", [x, values((3, 4, 3, 3), 1)])
        check_fake("max_pool2d", [x, [2, 2], [2, 2]])
        check_fake("avg_pool2d", [x, [2, 2], [2, 2]])


# ---- compilation -------------------------------------------------------------------------------


def lenet():
    return torch.nn.Sequential(
        nn.ConvBlock(1, 6, 5, padding=2, activation="sigmoid", pool="avg"),
        nn.Conv2d(6, 16, 5),
        torch.nn.ReLU(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 10),
    )


W = values((8, 4, 3, 3), 1).float()
COMPILED = {
    "conv2d": lambda x: functional.conv2d(x, W, None, (1, 2), 1),
    "conv2d_same": lambda x: functional.conv2d(x, W, padding="same", padding_mode="reflect"),
    "conv_transpose2d": lambda x: functional.conv_transpose2d(x, W[:4, :3], stride=2),
    "max_pool2d": lambda x: functional.max_pool2d(x, 3, 2, 1),
    "max_pool2d_ceil": lambda x: functional.max_pool2d(x, 2, 2, ceil_mode=True),
    "avg_pool2d": lambda x: functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "adaptive": lambda x: functional.adaptive_avg_pool2d(x, (3, 2)),
    "adaptive_max": lambda x: functional.adaptive_max_pool2d(x, 2),
    "block": lambda x: functional.conv2d_act_pool2d(x, W, activation="gelu", pool="max"),
}


def check_compiled(f, compiled, x):
    """Compare output and gradient with the eager ones."""
    x, again = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = compiled(x), f(again)
    torch.testing.assert_close(y, expected)
    assert y.stride() == expected.stride()
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, again.grad)


@pytest.mark.parametrize("name", COMPILED)
def test_compile_whole_graph(name):
    torch._dynamo.reset()
    f = COMPILED[name]
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    check_compiled(f, compiled, values((2, 4, 11, 12), 0).float())


@pytest.mark.parametrize("name", ("conv2d", "max_pool2d", "max_pool2d_ceil", "avg_pool2d", "block"))
def test_compile_dynamic_sizes(name):
    torch._dynamo.reset()
    f = COMPILED[name]
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in ((2, 4, 11, 12), (3, 4, 9, 14), (5, 4, 8, 8)):
        check_compiled(f, compiled, values(size, 0).float())


@pytest.mark.parametrize("backend", ("aot_eager", "inductor"))
def test_compile_a_network(backend):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = lenet()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    check_compiled(model, compiled, values((2, 1, 28, 28), 0).float())


# ---- autocast ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_autocast_casts_convolutions_and_leaves_pools_alone(dtype):
    x, w, b = values((2, 4, 8, 9), 0).float(), values((6, 4, 3, 3), 1).float(), torch.ones(6)
    operands = [t.requires_grad_() for t in (x, w, b)]
    with torch.autocast("cpu", dtype):
        y = functional.conv2d(x, w, b)
        block = functional.conv2d_act_pool2d(x, w, b, activation="relu", pool="max")
        up = functional.conv_transpose2d(x, w.transpose(0, 1), b)
        pools = (functional.max_pool2d(x, 2), functional.avg_pool2d(x, 2))
        assert functional.conv2d(x.double(), w.double()).dtype == torch.float64
    assert y.dtype == block.dtype == up.dtype == dtype
    assert all(p.dtype == torch.float32 for p in pools)
    assert y.equal(functional.conv2d(*(t.to(dtype) for t in operands)))
    (y.float().sum() + block.float().sum() + up.float().sum()).backward()
    assert all(t.grad.dtype == torch.float32 for t in operands)
