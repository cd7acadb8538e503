"""What compilers see of the Triton ops: their kernels, in graphs that compute the same.

Inductor compiles and runs them here, on a GPU as under the emulator; there it is only kept from
loading the CUDA driver, which is not there.
"""

from __future__ import annotations

import importlib
import zipfile
from dataclasses import replace

import pytest
import torch
from cases import values
from gpu import RIG_ORDER
from samples import call_ids, on_device, raw_calls
from torch._dynamo.backends.common import aot_autograd
from torch._library.triton import get_triton_kernels_for_op

pytest.importorskip("triton")
import triton.language as tl
from functorch.compile import make_boxed_func

from cnnkern import functional
from cnnkern.triton_kernels import MODULES
from cnnkern.triton_kernels.ahead import compile_launch
from cnnkern.triton_kernels.launch import Recorder

CALLS = raw_calls()
KERNEL = "triton_kernel_wrapper"


@pytest.fixture
def graphs():
    """Return a list that `compile` fills with the graphs that a backend gets."""
    torch._dynamo.reset()
    return []


def compile(function, graphs, **options):
    def note(graph, example_inputs):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=note, bw_compiler=note)
    return torch.compile(function, fullgraph=True, backend=backend, **options)


def targets(graph) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def check_kernels_only(graphs):
    """Assert that there are kernels in every graph, and none of our ops around them."""
    for graph in graphs:
        names = targets(graph)
        assert any(KERNEL in name for name in names), names
        assert not any("cnnkern" in name for name in names), names


def tuple_of(x):
    return x if isinstance(x, tuple) else (x,)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "arguments"), CALLS, ids=call_ids(CALLS))
def test_ops_are_traced_as_kernels(name, arguments, graphs):
    op, arguments = getattr(torch.ops.cnnkern, name).triton, on_device(arguments, "cuda")
    results = compile(lambda *a: op(*a), graphs)(*arguments)
    check_kernels_only(graphs)
    for actual, want in zip(tuple_of(results), tuple_of(op(*arguments)), strict=True):
        assert actual.cpu().equal(want.cpu())
        assert actual.stride() == want.stride()


def block(x, w, b):
    y = functional.conv2d_act_pool2d(
        x, w, b, padding=1, activation="relu", pool="max", algo="triton"
    )
    return functional.conv2d(y.relu(), w[:, :3], padding=1, algo="triton").sigmoid()


def leaves(n=2):
    sizes = (n, 3, 8, 9), (3, 3, 3, 3), (3,)
    return [values(s, i).float().to("cuda").requires_grad_() for i, s in enumerate(sizes)]


def check_against_eager(compiled):
    pairs = []
    for function in (compiled, block):
        given = leaves()
        y = function(*given)
        y.square().sum().backward()
        pairs.append((y, *(t.grad for t in given)))
    for actual, want in zip(*pairs, strict=True):
        torch.testing.assert_close(actual.cpu(), want.cpu(), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_backward_is_traced_as_kernels(graphs):
    check_against_eager(compile(block, graphs))
    assert len(graphs) == 2  # forward and backward
    check_kernels_only(graphs)


@pytest.mark.gpu
def test_inductor_compiles_the_kernels(monkeypatch):
    from torch._inductor import config
    from torch._inductor.runtime import triton_helpers

    torch._dynamo.reset()
    if RIG_ORDER:
        monkeypatch.setattr(triton_helpers, "set_driver_to_gpu", lambda: None)
    with config.patch(compile_threads=1, use_static_triton_launcher=not RIG_ORDER):
        check_against_eager(torch.compile(block, fullgraph=True))


class Network(torch.nn.Module):
    """One kernel of each kind: a convolution, a pool, a fused block."""

    def __init__(self):
        super().__init__()
        sizes = (4, 3, 3, 3), (8, 4, 3, 3)
        self.w, self.v = (torch.nn.Parameter(values(s, i).float()) for i, s in enumerate(sizes))

    def forward(self, x):
        y = functional.conv2d(x, self.w, padding=1, algo="triton")
        y = functional.avg_pool2d(y.relu(), 2, algo="triton")
        return functional.conv2d_act_pool2d(
            y, self.v, padding=1, activation="sigmoid", pool="max", algo="triton"
        )


@pytest.mark.gpu
def test_aotinductor_packages_the_kernels(tmp_path, monkeypatch):
    """Compile, load and run a package, in which no op of ours is called: its kernels are inside."""
    from torch._inductor import aoti_compile_and_package, aoti_load_package
    from torch._inductor.runtime import triton_helpers

    torch._dynamo.reset()
    options = {"aot_inductor.compile_wrapper_opt_level": "O0",
               "aot_inductor.precompile_headers": False}  # fmt: skip
    if RIG_ORDER:
        monkeypatch.setattr(triton_helpers, "set_driver_to_gpu", lambda: None)
        # With PTX in it, which the emulator needs, and without what reads cubins.
        options |= {"aot_inductor.emit_multi_arch_kernel": True, "compile_threads": 1,
                    "use_static_triton_launcher": False}  # fmt: skip
    model, x = Network().to("cuda").eval(), values((2, 3, 8, 8), 5).float().to("cuda")
    with torch.no_grad():
        program, want = torch.export.export(model, (x,)), model(x)
        path = aoti_compile_and_package(
            program, package_path=str(tmp_path / "network.pt2"), inductor_configs=options
        )
        with zipfile.ZipFile(path) as package:
            names = package.namelist()
            (wrapper,) = (package.read(n).decode() for n in names if n.endswith(".wrapper.cpp"))
        for kernel in ("conv2d_gather", "pool2d", "conv2d_act_pool2d"):
            assert f'"{kernel}_kernel"' in wrapper
        assert "cnnkern" not in wrapper
        assert aoti_load_package(path)(x).cpu().equal(want.cpu())


@pytest.mark.gpu
def test_sizes_that_are_not_known_leave_the_op_whole(graphs):
    """Tiles and grids follow from sizes; the op looks them up when it is called."""
    compiled = compile(lambda *a: functional.conv2d(*a, algo="triton"), graphs, dynamic=True)
    for n in (2, 4):
        x, w, b = (t.detach() for t in leaves(n))
        assert compiled(x, w, b).equal(functional.conv2d(x, w, b, algo="triton"))
    assert len(graphs) == 1
    assert targets(graphs[0])[-1] == "cnnkern.conv2d.triton"


@pytest.mark.gpu
def test_exported_programs_keep_the_op():
    class Block(torch.nn.Module):
        def forward(self, *arguments):
            return block(*arguments)

    given = tuple(t.detach() for t in leaves())
    program = torch.export.export(Block(), given)
    names = [str(n.target) for n in program.graph.nodes]
    assert "cnnkern.conv2d.triton" in names and not any(KERNEL in name for name in names)
    assert program.module()(*given).equal(block(*given))


@pytest.mark.gpu
def test_addresses_of_any_alignment(graphs):
    """A trace cannot know them: channels_last pools of odd addresses take vectors all the same."""
    x = values((1 + 2 * 8 * 6 * 6,), 0).float().to("cuda")[1:]
    x = x.view(2, 6, 6, 8).permute(0, 3, 1, 2)
    assert x.data_ptr() % 16 and x.is_contiguous(memory_format=torch.channels_last)
    pool = [[2, 2], [2, 2]]
    op = torch.ops.cnnkern.avg_pool2d.triton
    assert compile(lambda x: op(x, *pool), graphs)(x).equal(op(x, *pool))
    check_kernels_only(graphs)


def test_every_op_is_tested():
    assert {name for name, _ in CALLS} == set(MODULES)


def test_kept_graphs_depend_on_the_kernels():
    """Those of the gradients, too, which are no part of the graph that the key is made of."""
    kernels = get_triton_kernels_for_op("cnnkern::conv2d.triton")
    assert {"conv2d_gather_kernel", "conv2d_weight_grad_kernel"} <= {k.__name__ for k in kernels}


def more_calls():
    """Yield calls of kernels that CALLS do not reach."""
    x, g = values((2, 8, 9, 9), 0).float(), values((2, 8, 9, 9), 1).float()
    yield "adaptive_avg_pool2d", [x, [1, 1]]
    for groups, mode in ((4, "zeros"), (8, "zeros"), (1, "reflect")):
        w = values((8, 8 // groups, 3, 3), 2).float()
        conv = [[1, 1], [1, 1, 1, 1], [1, 1], groups, mode]
        yield "conv2d", [x, w, None, *conv]
        yield "conv2d_input_grad", [g, w, list(x.shape), *conv]
        yield "conv2d_weight_grad", [g, x, list(w.shape), *conv]


MORE_CALLS = tuple(more_calls())


@pytest.mark.parametrize("name", MODULES)
def test_numbers_may_be_the_constant_1(name):
    """Inductor makes each number that is 1 a constant: kernels have to compile with any of them."""
    function = getattr(importlib.import_module(f"cnnkern.triton_kernels.{MODULES[name]}"), name)
    seen = set()
    for op, arguments in (*CALLS, *MORE_CALLS):
        if op != name:
            continue
        with Recorder(80) as launches:
            function(*[a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments])
        for one in launches:
            key = one.kernel.__name__, *one.meta.items()
            if key in seen:
                continue
            seen.add(key)
            values = zip(one.kernel.arg_names, one.args, strict=False)
            constant = [
                tl.constexpr(1) if type(value) is int and "magic" not in parameter else value
                for parameter, value in values
            ]
            compile_launch(replace(one, args=tuple(constant)), 80)
    assert seen


# ---- autocast ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_cuda_autocast(gpu, dtype):
    x, w, b = values((2, 4, 8, 9), 0), values((6, 4, 3, 3), 1), torch.ones(6)
    operands = [t.float().to(gpu.device).requires_grad_() for t in (x, w, b)]
    with torch.autocast("cuda", dtype):
        y = functional.conv2d(*operands, **gpu.options)
        block = functional.conv2d_act_pool2d(
            *operands, activation="relu", pool="max", **gpu.options
        )
        up = functional.conv_transpose2d(
            operands[0], operands[1].transpose(0, 1), operands[2], **gpu.options
        )
        pools = [
            gpu.op("max_pool2d")(operands[0], [2, 2], [2, 2])[0],
            gpu.op("avg_pool2d")(operands[0], [2, 2], [2, 2]),
        ]
        double = functional.conv2d(operands[0].double(), operands[1].double(), **gpu.options)
    assert double.dtype == torch.float64
    assert y.dtype == block.dtype == up.dtype == dtype
    assert all(p.dtype == torch.float32 for p in pools)
    assert y.equal(functional.conv2d(*(t.to(dtype) for t in operands), **gpu.options))
    (y.float().sum() + block.float().sum() + up.float().sum()).backward()
    assert all(t.grad.dtype == torch.float32 and t.grad.isfinite().all() for t in operands)
