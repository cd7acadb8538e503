"""Every op in a CUDA graph: captured once, replayed on other inputs, compared with the plain call.

What a capture forbids, waiting for the GPU, allocating behind PyTorch's back or running in another
stream, raises while it is being captured; what the host decides by the data is not replayed, and
shows as a wrong result.
"""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from gpu import allocator_with_pools
from samples import on_device, raw_calls
from torch.nn.functional import cross_entropy

import cnnkern
from cnnkern import _C
from cnnkern.lenet import LeNet
from cnnkern.ops import OP_NAMES

pytestmark = pytest.mark.gpu
OPS = ()  # whatever a backend has
CALLS = raw_calls()
DENSE = {"input": (2, 16, 6, 7), "weight": (16, 16, 3, 3), "padding": 1}
CONVS = {
    "depthwise": {"input": (2, 16, 6, 7), "weight": (16, 1, 3, 3), "padding": 1, "groups": 16},
    "grouped": {"input": (2, 16, 6, 7), "weight": (16, 4, 3, 3), "padding": 1, "groups": 4},
}
FORMATS = (torch.contiguous_format, torch.channels_last)
POOLS = {
    "max": (cnnkern.max_pool2d, (3, 2, 1)),
    "avg": (cnnkern.avg_pool2d, (2,)),
    "lp": (cnnkern.lp_pool2d, (2.0, 2)),
    "adaptive_avg": (cnnkern.adaptive_avg_pool2d, ((2, 3),)),
    "adaptive_max": (cnnkern.adaptive_max_pool2d, ((2, 3),)),
}


@pytest.fixture(autouse=True)
def _allocator_with_pools():
    with allocator_with_pools():
        yield


def capture(call):
    """Return the graph of a call and the tensors that a replay fills."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()  # what happens once, such as loading kernels, is not for the graph
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
    return graph, outputs


def check(call, inputs):
    """Compare a replay on new inputs with the plain call on them."""
    graph, outputs = capture(call)
    for _ in range(2):
        with torch.no_grad():
            for x in inputs:
                x.copy_(torch.randn(x.shape))
        expected = call()
        assert not any(map(torch.equal, outputs, expected))
        graph.replay()
        for actual, wanted in zip(outputs, expected, strict=True):
            assert actual.stride() == wanted.stride()
            assert torch.equal(actual, wanted)


def with_gradients(function, inputs):
    """Return a call that gives the output and, for a gradient among the inputs, all gradients."""
    *operands, grad = inputs

    def call():
        output = function(*operands)
        return output.detach(), *torch.autograd.grad(output, operands, grad)

    return call


def tensors(format, dtype, *sizes):
    made = (torch.randn(size).to("cuda", dtype) for size in sizes)
    made = [x.to(memory_format=format) if x.dim() == 4 else x for x in made]
    return [x.requires_grad_() for x in made[:-1]] + made[-1:]


@pytest.mark.parametrize("format", FORMATS, ids=("contiguous", "channels_last"))
@pytest.mark.parametrize("algo", ("auto", *_C.cuda_conv2d_algos(), "triton"))
def test_convolution(algo, format):
    problem = dict(CONVS.get(algo, DENSE))
    size, weight = problem.pop("input"), problem.pop("weight")
    dtype = torch.float16 if algo == "mma" else torch.float32
    inputs = tensors(format, dtype, size, weight, weight[:1], (2, weight[0], *size[2:]))
    call = with_gradients(functools.partial(cnnkern.conv2d, **problem, algo=algo), inputs)
    check(call, inputs)


@pytest.mark.parametrize("name", OP_NAMES)
def test_raw_ops(name, gpu):
    """Each op by itself, in all the regimes that samples.py has calls of."""
    for op, arguments in CALLS:
        if op != name or not gpu.has(name):
            continue
        arguments = on_device(arguments, "cuda")

        def call(arguments=arguments):
            results = gpu.op(name)(*arguments)
            return results if isinstance(results, tuple) else (results,)

        graph, outputs = capture(call)
        for x in arguments:
            if isinstance(x, torch.Tensor) and x.is_floating_point():
                x.copy_(torch.randn(x.shape))
        expected = call()
        assert not torch.equal(outputs[0], expected[0])
        graph.replay()
        assert all(map(torch.equal, outputs, expected))


@pytest.mark.parametrize("pool", POOLS)
def test_pool(pool, gpu):
    function, arguments = POOLS[pool]
    x = torch.randn(2, 5, 9, 8, device="cuda")
    call = functools.partial(function, **gpu.options)
    output = call(x, *arguments)
    inputs = [x.requires_grad_(), torch.randn(output.shape, device="cuda")]
    check(with_gradients(lambda x: call(x, *arguments), inputs), inputs)


def test_unpool(gpu):
    x = torch.randn(2, 5, 8, 6, device="cuda")
    _, positions = cnnkern.max_pool2d(x, 2, return_indices=True, **gpu.options)
    inputs = tensors(torch.contiguous_format, torch.float32, (2, 5, 4, 3), x.shape)
    call = functools.partial(cnnkern.max_unpool2d, **gpu.options)
    check(with_gradients(lambda y: call(y, positions, 2), inputs), inputs)


@pytest.mark.parametrize("pool", ("max", "avg"))
def test_fused_block(pool, gpu):
    inputs = tensors(torch.contiguous_format, torch.float32,
                     (2, 1, 12, 12), (6, 1, 5, 5), (6,), (2, 6, 6, 6))  # fmt: skip
    block = functools.partial(
        cnnkern.conv2d_act_pool2d, padding=2, activation="sigmoid", pool=pool, **gpu.options
    )
    check(with_gradients(block, inputs), inputs)


def test_training_step_of_lenet(gpu):
    torch.manual_seed(0)
    algo = {"algo": gpu.options["algo"]} if gpu.options else {}
    net = LeNet(image_size=12, channels=(2, 3), kernel_size=3, hidden=(8,), **algo).cuda()
    twin = copy.deepcopy(net)
    images = torch.randn(4, 1, 12, 12, device="cuda")
    labels = torch.tensor([3, 1, 4, 1], device="cuda")

    def training(net):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)

        def step():
            optimizer.zero_grad(set_to_none=True)
            loss = cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            return (loss,)

        return step

    step = training(twin)
    graph, (loss,) = capture(training(net))
    step()  # the one before the capture
    for _ in range(3):
        images.copy_(torch.randn(images.shape))
        labels.copy_(labels.flip(0))
        graph.replay()
        torch.testing.assert_close(loss, step()[0])
    for actual, wanted in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(actual, wanted)
