"""Run by test_device.py under `ptxcpu run`: a PyTorch extension and Triton on "cuda" tensors."""

import contextlib
import ctypes
import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch.utils import cpp_extension

KERNELS = Path(__file__).resolve().parent / "kernels"


@pytest.fixture(scope="session")
def ops():
    build = Path(os.environ["PTXCPU_TEST_BUILD"])
    build.mkdir(parents=True, exist_ok=True)
    cpp_extension.load(
        "ptxcpu_test_extension",
        [str(KERNELS / "extension.cpp"), str(KERNELS / "extension_kernels.cu")],
        extra_cuda_cflags=["-lineinfo"],
        build_directory=str(build),
        is_python_module=False,
    )
    return torch.ops.ptxcpu_test


def test_identity():
    assert torch.cuda.is_available() and torch.cuda.device_count() == 1
    properties = torch.cuda.get_device_properties(0)
    assert (properties.major, properties.minor, properties.multi_processor_count) == (8, 0, 108)
    assert torch.cuda.mem_get_info()[1] == properties.total_memory


def test_memory_streams_events():
    x = torch.randn(3, 5)
    y = x.cuda()
    assert torch.equal(y.cpu(), x) and torch.equal(y.clone().cpu(), x) and y.is_cuda
    assert torch.zeros(4, device="cuda").cpu().tolist() == [0] * 4
    assert torch.full((3,), 2.5, device="cuda", dtype=torch.bfloat16).cpu().tolist() == [2.5] * 3
    assert torch.empty(10, device="cuda").isnan().all()  # fresh memory is poisoned
    stream, start, end = (
        torch.cuda.Stream(),
        torch.cuda.Event(enable_timing=True),
        torch.cuda.Event(enable_timing=True),
    )
    with torch.cuda.stream(stream):
        start.record()
        end.record()
        assert torch.cuda.current_stream() == stream
    torch.cuda.synchronize()
    assert start.elapsed_time(end) > 0


@pytest.mark.skipif("PTXCPU_TORCH_OPS" not in os.environ, reason="needs PTXCPU_TORCH_OPS=0")
def test_without_torch_operators():
    x = torch.ones(5, device="cuda")
    assert (
        torch.zeros_like(x).fill_(3).cpu().tolist() == [3] * 5
        and x.clone().cpu().tolist() == [1] * 5
    )
    with pytest.raises(RuntimeError, match=r"PyTorch's own kernel .* cannot be emulated"):
        x + x
    assert x.zero_().cpu().tolist() == [0] * 5


@pytest.mark.skipif("PTXCPU_TORCH_OPS" in os.environ, reason="switched off")
def test_torch_operators_run_on_the_cpu():
    x, w = (
        torch.randn(2, 3, 8, 8, device="cuda", requires_grad=True),
        torch.randn(4, 3, 3, 3, device="cuda", requires_grad=True),
    )
    (F.max_pool2d(F.relu(F.conv2d(x, w)), 2) * 2 + 1).sum().backward()
    xc, wc = (t.detach().cpu().requires_grad_() for t in (x, w))
    (F.max_pool2d(F.relu(F.conv2d(xc, wc)), 2) * 2 + 1).sum().backward()
    torch.testing.assert_close(x.grad, xc.grad.cuda())
    torch.testing.assert_close(w.grad.cpu(), wc.grad)
    model = torch.nn.Linear(4, 2).cuda()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3, 4, device="cuda")).sum().backward()
    optimizer.step()
    assert torch.arange(12, device="cuda").view(3, 4).t().contiguous().cpu().tolist()[1] == [
        1,
        5,
        9,
    ]


def test_extension(ops):
    x = torch.randn(1000)
    torch.testing.assert_close(ops.scale(x.cuda(), 3.0).cpu(), x * 3 + 0.5)
    torch.testing.assert_close(ops.scale(x.cuda(), 2.0, 0, 100 * 1024).cpu(), x * 2 + 0.5)
    y, blocks = ops.scale_ex(x.cuda())
    torch.testing.assert_close(y.cpu(), x * 2 + 0.5)
    assert blocks == 16


def test_extension_failures(ops):
    x = torch.randn(1000).cuda()
    with pytest.raises(
        RuntimeError, match=r"out-of-bounds global read of 4 bytes.*thread.*extension_kernels\.cu:"
    ):
        ops.scale(x, 3.0, 1)
    with pytest.raises(RuntimeError, match="163 KiB"):
        ops.scale(x, 3.0, 0, 170 * 1024)
    y, _ = ops.scale_ex(x, 1)  # this operator does not look for errors
    with pytest.raises(RuntimeError, match="out-of-bounds global read"):
        y.cpu()
    y, _ = ops.scale_ex(x, 1)
    with pytest.raises(RuntimeError, match="out-of-bounds global read"):
        torch.cuda.synchronize()
    torch.testing.assert_close(
        ops.scale(x, 3.0).cpu(), x.cpu() * 3 + 0.5
    )  # and the process goes on


@triton.jit
def plain_add_kernel(x, y, z, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(z + i, tl.load(x + i, mask=i < n) + tl.load(y + i, mask=i < n), mask=i < n)


@triton.autotune(
    configs=[triton.Config({"BLOCK": 128}), triton.Config({"BLOCK": 256}, num_warps=8)], key=["n"]
)
@triton.jit
def add_kernel(x, y, z, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(z + i, tl.load(x + i, mask=i < n) + tl.load(y + i, mask=i < n), mask=i < n)


def test_triton_with_extension(ops):
    x, y = torch.randn(1000, device="cuda"), torch.randn(1000, device="cuda")
    z = torch.empty_like(x)

    def grid(meta):
        return (triton.cdiv(1000, meta["BLOCK"]),)

    add_kernel[grid](ops.scale(x, 2.0), y, z, 1000)
    torch.testing.assert_close(z.cpu(), x.cpu() * 2 + 0.5 + y.cpu())
    assert triton.testing.do_bench(lambda: add_kernel[grid](x, y, z, 1000), warmup=1, rep=2) > 0
    with pytest.raises(RuntimeError, match="out-of-bounds global read"):
        add_kernel[grid](x, y, z, 1001)


@pytest.fixture
def pools():
    """Let PyTorch's allocator keep memory, as capturing needs."""
    torch.cuda.init()
    torch._C._cuda_cudaCachingAllocator_enable(True)
    yield
    torch._C._cuda_cudaCachingAllocator_enable(False)


@contextlib.contextmanager
def capturing_is_refused(code, reason):
    """The body is captured, which has to raise; the graph is lost, the process is not."""
    with (
        pytest.raises(RuntimeError, match="error 901: invalidated by an earlier error"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
        pytest.raises(RuntimeError, match=f"error {code}: .*{reason}"),
    ):
        yield
    assert torch.ones(3, device="cuda").sum().item() == 3


@pytest.mark.skipif("PTXCPU_TORCH_OPS" in os.environ, reason="switched off")
def test_graphs_record_and_replay(ops, pools):
    x, total = torch.zeros(1000, device="cuda"), torch.zeros(1000, device="cuda")
    ops.scale(x, 2.0)  # sets the factor that scale_ex uses
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, _ = ops.scale_ex(x)  # a memset and a kernel
        z = torch.empty_like(y)
        plain_add_kernel[(4,)](x, y, z, 1000, BLOCK=256)
        w = torch.clamp(z, min=0) * 2
        total += w
    assert not total.any()  # nothing has run yet
    for _ in range(3):
        x.copy_(torch.randn(1000))
        before = total.clone()
        graph.replay()
        torch.testing.assert_close(y, x * 2 + 0.5)
        torch.testing.assert_close(z, x + y)
        torch.testing.assert_close(total, before + z.clamp(min=0) * 2)


def test_graphs_fork_and_join(ops, pools):
    x, side = torch.ones(10, device="cuda"), torch.cuda.Stream()
    ops.scale(x, 2.0)

    def fork():
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            return ops.scale_ex(x)[0]

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = fork()
        torch.cuda.current_stream().wait_stream(side)
    graph.replay()
    assert y.cpu().tolist() == [2.5] * 10
    unjoined = pytest.raises(RuntimeError, match="error 904: a forked stream was not joined")
    with unjoined, torch.cuda.graph(torch.cuda.CUDAGraph()):
        fork()


@pytest.mark.skipif("PTXCPU_TORCH_OPS" in os.environ, reason="switched off")
def test_graphs_refuse_what_waits(ops, pools):
    x, event = torch.ones(10, device="cuda"), torch.cuda.Event()
    for call in (
        torch.cuda.synchronize,
        lambda: torch.cuda.current_stream().synchronize(),
        lambda: x.sum().item(),
        x.cpu,
        lambda: x.copy_(torch.ones(10)),
    ):
        with capturing_is_refused(900, "is not permitted when a stream is capturing"):
            call()
    with capturing_is_refused(907, "cudaEventQuery of a captured event"):
        event.record()
        event.query()
    torch._C._cuda_cudaCachingAllocator_enable(False)
    with capturing_is_refused(900, "allocating memory"):
        torch.empty(10, device="cuda")


@pytest.mark.skipif("PTXCPU_TORCH_OPS" in os.environ, reason="switched off")
def test_graphs_report_failures_of_a_replay(pools):
    x = torch.ones(1000, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plain_add_kernel[(4,)](x, x, x, 1001, BLOCK=256)
    with pytest.raises(RuntimeError, match="out-of-bounds global read"):
        graph.replay()


def test_capture_of_the_runtime(pools):
    """The codes that the runtime's own functions return."""
    cuda, illegal_state = ctypes.CDLL(None), 401
    stream, graph, status = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int()
    memory = torch.ones(4, device="cuda")
    address = ctypes.c_void_p(memory.data_ptr())
    assert cuda.cudaStreamBeginCapture(None, 0) == 900  # the legacy stream
    assert cuda.cudaStreamCreate(ctypes.byref(stream)) == 0  # a blocking one
    assert cuda.cudaStreamEndCapture(stream, ctypes.byref(graph)) == illegal_state
    assert cuda.cudaStreamBeginCapture(stream, 0) == 0
    assert cuda.cudaStreamBeginCapture(stream, 0) == illegal_state
    assert cuda.cudaMemsetAsync(address, 0, ctypes.c_size_t(16), stream) == 0
    assert cuda.cudaStreamIsCapturing(stream, ctypes.byref(status)) == 0 and status.value == 1
    assert cuda.cudaStreamEndCapture(stream, ctypes.byref(graph)) == 0 and graph.value
    assert memory.cpu().tolist() == [1] * 4

    nodes, executable = ctypes.c_size_t(), ctypes.c_void_p()
    assert cuda.cudaGraphGetNodes(graph, None, ctypes.byref(nodes)) == 0 and nodes.value == 1
    instantiate = cuda.cudaGraphInstantiateWithFlags
    assert instantiate(ctypes.byref(executable), graph, ctypes.c_ulonglong()) == 0
    assert cuda.cudaGraphDestroy(graph) == 0
    assert cuda.cudaGraphLaunch(executable, stream) == 0
    assert cuda.cudaGraphExecDestroy(executable) == 0
    assert memory.cpu().tolist() == [0] * 4

    assert cuda.cudaStreamBeginCapture(stream, 0) == 0
    assert cuda.cudaMemsetAsync(address, 0, ctypes.c_size_t(16), None) == 906  # in the legacy one
    assert cuda.cudaStreamIsCapturing(stream, ctypes.byref(status)) == 0 and status.value == 2
    assert cuda.cudaStreamEndCapture(stream, ctypes.byref(graph)) == 901 and not graph.value


@pytest.mark.skipif("PTXCPU_REPORT" not in os.environ, reason="needs --report")
def test_report(ops):
    ops.scale(torch.randn(1000, device="cuda"), 2.0)
    line = json.loads(Path(os.environ["PTXCPU_REPORT"]).read_text().splitlines()[-1])
    assert "scale_kernel" in line["kernel"] and line["sm_80"]["registers"] > 0
    assert line["global_load_unique_bytes"] == 4000 + 4
    assert (
        line["global_load_requests"] == 32 + 32 and line["global_load_sectors"] == 125 + 32
    )  # x, and bias_value
    assert line["global_store_sectors"] == 125
