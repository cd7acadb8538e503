"""Linear layers, and blocks before them, as one op of the CPU; and the modules that take it."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import assert_close, values
from test_contract import check_fake
from test_determinism import assert_same_bits
from test_errors import refused
from torch import nn

from cnnkern import reference
from cnnkern.fused import ConvMLP
from cnnkern.lenet import LeNet
from cnnkern.nn import ConvBlock
from cnnkern.ops import network_text

OPS = ()  # the CPU's
ops = torch.ops.cnnkern
ACTIVATIONS = ("none", "relu", "sigmoid", "tanh")
# Images, then features of each layer: LeNet's, fewer than a vector, no multiple of a tile.
LAYERS = {
    "lenet": (37, 400, 120, 84, 10),
    "one_image": (1, 400, 120, 84, 10),
    "one_of_all": (1, 1, 1),
    "narrow": (5, 3, 2, 5),
    "one_layer": (18, 33, 7),
    "tails": (19, 65, 131, 17, 1),
    "no_image": (0, 6, 5, 4),
}


def layers(sizes, dtype=torch.float32):
    """Return input, weights and biases."""
    images, *features = sizes
    x = values((images, features[0]), 0, 1 / 16).to(dtype)
    pairs = list(zip(features[1:], features[:-1], strict=True))
    weights = [values(pair, i, 1 / 64).to(dtype) for i, pair in enumerate(pairs)]
    return x, weights, [values((k,), 9, 1 / 16).to(dtype) for k, _ in pairs]


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_mlp_and_its_gradients(name, activation, dtype, cpu_isa):
    x, weights, biases = layers(LAYERS[name], dtype)
    leaves = [t.requires_grad_() for t in (x, *weights, *biases)]
    outputs = ops.mlp(x, weights, biases, activation)
    count = len(weights)

    def last(x, *params):
        return reference.mlp(x, params[:count], params[count:], activation)[-1]

    grad = values(outputs[-1].shape, 5, 1 / 16).to(dtype)
    _, expected = reference.vjp(last, leaves, grad)
    # Each layer rounds, and amplifies what the one before it rounded.
    bound = {"reduction": max(LAYERS[name]), "roundings": 2 * count, "condition": 2 * count}
    wanted = reference.mlp(x, weights, biases, activation)
    for output, want in zip(outputs, wanted, strict=True):
        assert_close(output.detach(), want.detach(), dtype, **bound)
    grads = torch.autograd.grad(outputs[-1], leaves, grad)
    for one, want in zip(grads, expected, strict=True):
        assert_close(one, want, dtype, **bound)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_to_the_second_derivative(activation):
    x, weights, biases = layers((3, 5, 4, 2), torch.float64)
    leaves = [t.requires_grad_() for t in (x, *weights, *biases)]

    def last(x, *params):
        return ops.mlp(x, params[:2], params[2:], activation)[-1]

    if activation != "relu":  # whose kinks finite differences may cross
        torch.autograd.gradcheck(last, leaves)
    torch.autograd.gradgradcheck(last, leaves)


def network(activation="sigmoid", pool="avg", size=(12, 11), **options):
    return LeNet(2, 5, size, channels=(3, 4), kernel_size=3, hidden=(9, 6), pool=pool,
                 activation=activation, **options)  # fmt: skip


def layer_by_layer(net, x):
    """Compute the same without the op."""
    y = x
    for block in net.features:
        y = block(y)
    y = y.flatten(1)
    for layer in net.classifier:
        y = layer(y)
    return y


def gradients(y, net, x):
    return torch.autograd.grad(y.square().sum(), [x, *net.parameters()])


@pytest.mark.parametrize("format", (torch.contiguous_format, torch.channels_last))
@pytest.mark.parametrize("images", (0, 1, 3, 40))
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pool", ("none", "avg", "max"))
def test_a_network_is_its_layers(pool, activation, images, format):
    torch.manual_seed(0)
    net = network(activation, pool)
    x = values((images, 2, 12, 11), 0, 1 / 16).float().to(memory_format=format).requires_grad_()
    y, expected = net(x), layer_by_layer(net, x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    for one, want in zip(gradients(y, net, x), gradients(expected, net, x), strict=True):
        torch.testing.assert_close(one, want, rtol=1e-4, atol=1e-5)
        assert one.stride() == want.stride()
    with torch.no_grad():
        assert torch.equal(net(x), y)


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize(("algo", "images"), (("auto", 32), ("auto", 45), ("chwn", 3)))
@pytest.mark.parametrize("width", (11, 12))  # windows that leave a column, or none
@pytest.mark.parametrize("pool", ("none", "avg", "max"))
def test_images_in_lanes_between_blocks(pool, width, algo, images, dtype, cpu_isa):
    """Whole blocks of images and what is left of one, from forward to backward."""
    torch.manual_seed(0)
    net = network("sigmoid", pool, (12, width), algo=algo).to(dtype)
    x = values((images, 2, 12, width), 0, 1 / 16).to(dtype).requires_grad_()
    y, expected = net(x), layer_by_layer(net, x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    for one, want in zip(gradients(y, net, x), gradients(expected, net, x), strict=True):
        torch.testing.assert_close(one, want, rtol=1e-4, atol=1e-5)


# Blocks of 5x5 kernels and windows of 2x2, then the images' size: outputs are whole tiles.
WINOGRAD = {
    "lenet2": ([ConvBlock(1, 6, 5, padding=2), ConvBlock(6, 16, 5)], (1, 28, 28)),
    "first": ([ConvBlock(4, 7, 5)], (4, 6, 6)),
    "wide": ([ConvBlock(5, 20, 5)], (5, 8, 20)),
    "padded": ([ConvBlock(6, 6, 5, padding=(2, 1))], (6, 10, 8)),
    "twice": ([ConvBlock(4, 5, 5), ConvBlock(5, 9, 5)], (4, 16, 20)),
}  # fmt: skip


@pytest.mark.sanitize
@pytest.mark.parametrize("name", WINOGRAD)
@pytest.mark.parametrize("images", (32, 45))
@pytest.mark.parametrize(
    ("activation", "pool"), (("Sigmoid", "avg"), ("Tanh", "avg"), ("ReLU", "max"))
)
def test_training_by_winograd(activation, pool, images, name, cpu_isa):
    """The block's forward pass and its gradients, next to float64."""
    torch.manual_seed(0)
    blocks, size = copy.deepcopy(WINOGRAD[name])
    for block in blocks:
        block.set_activation_and_pool(activation.lower(), pool)
    x = torch.randn(images, *size, requires_grad=True)
    features = nn.Sequential(*blocks)(x).flatten(1).size(1)
    net = ConvMLP(blocks, [nn.Linear(features, 8), getattr(nn, activation)(), nn.Linear(8, 3)])
    exact = copy.deepcopy(net).double()
    x64 = x.detach().double().requires_grad_()
    y, want = net(x), layer_by_layer(exact, x64)
    found, wanted = [y, *gradients(y, net, x)], [want, *gradients(want, exact, x64)]
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()
    for block in blocks:
        block.algo = "chwn"
    assert not torch.equal(net(x), y)


def called(net, x, monkeypatch):
    """Return the output, and whether the network took its own op."""
    calls = []
    op = ops.conv_mlp.default
    with monkeypatch.context() as m:
        m.setattr(ops.conv_mlp, "default", lambda *args: calls.append(1) or op(*args))
        y = net(x)
    return y, bool(calls)


def test_a_network_may_change_between_calls(monkeypatch):
    torch.manual_seed(0)
    net, x = network(), torch.rand(2, 2, 12, 11)

    def check(is_one_op):
        with torch.no_grad():
            y, taken = called(net, x, monkeypatch)
            torch.testing.assert_close(y, layer_by_layer(net, x))
        assert taken == is_one_op

    check(True)
    with torch.no_grad():
        net.features[0].weight.mul_(2)
        net.classifier[0].weight = nn.Parameter(torch.randn(9, net.classifier[0].in_features))
    check(True)
    net.features[0].set_activation_and_pool("sigmoid", "max")
    check(False)  # the blocks differ
    net.features[1].set_activation_and_pool("sigmoid", "max")
    check(True)
    net.features[1].padding_mode = "reflect"
    check(False)
    net.features[1].padding_mode = "zeros"
    net.classifier[1] = nn.GELU()
    check(False)
    net.classifier[1] = nn.Sigmoid()
    hook = net.features[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    check(False)
    hook.remove()
    check(True)
    weight = net.classifier[0].weight
    del net.classifier[0].weight
    net.classifier[0].weight = 2 * weight.detach()  # no parameter
    check(False)
    net.classifier[0].weight = weight
    net.classifier[0]._forward_hooks = {0: lambda module, inputs, output: 2 * output}
    check(False)
    net.classifier[0]._forward_hooks = {}
    check(True)
    net.features[0].bias = None
    check(False)


def test_a_network_runs_layer_by_layer_where_the_op_does_not_apply(monkeypatch):
    net, x = network(), torch.rand(2, 2, 12, 11)
    with torch.autocast("cpu", torch.bfloat16):
        y, taken = called(net, x, monkeypatch)
    assert y.dtype == torch.bfloat16 and not taken
    half = copy.deepcopy(net).bfloat16()
    assert not called(half, x.bfloat16(), monkeypatch)[1]
    wide = LeNet(2, 5, 12, channels=(3,), hidden=(3000,))
    assert not called(wide, torch.rand(1, 2, 12, 12), monkeypatch)[1]


def test_blocks_of_their_own_geometry(monkeypatch):
    blocks = (
        ConvBlock(4, 6, (3, 2), (1, 2), (1, 0, 2, 1), (2, 1), 2, activation="tanh", pool="max",
                  pool_kernel_size=(2, 3), pool_stride=1, pool_padding=(1, 1)),
        ConvBlock(6, 3, 2, activation="tanh", pool="max", pool_ceil_mode=True),
    )  # fmt: skip
    x = torch.rand(3, 4, 11, 12)
    features = nn.Sequential(*blocks)(x).flatten(1).size(1)
    net = ConvMLP(blocks, [nn.Linear(features, 7), nn.Tanh(), nn.Linear(7, 2)])
    y, taken = called(net, x, monkeypatch)
    assert taken
    torch.testing.assert_close(y, layer_by_layer(net, x))


def test_images_alone_and_threads(cpu_isa, restore_threads):
    """An image's scores are its own, and no thread count changes a bit of them or of a gradient.

    In training, Winograd may compute those of many images: their last bits are not the same.
    """
    torch.manual_seed(0)
    net, x = LeNet(), torch.rand(70, 1, 28, 28, requires_grad=True)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y = net(x)
        results.append([y, *gradients(y, net, x)])
        assert_same_bits(results[0], results[-1], f"{threads} threads")
    with torch.no_grad():
        alone = torch.cat([net(x[i : i + 1]) for i in range(70)])
        assert_same_bits([alone], [net(x)])
    torch.testing.assert_close(alone, results[0][0], rtol=1e-5, atol=1e-6)


def test_second_derivatives_of_a_network():
    net = network("tanh").double()
    x = torch.rand(2, 2, 12, 11, dtype=torch.float64, requires_grad=True)
    for forward in (net, lambda x: layer_by_layer(net, x)):
        (slope,) = torch.autograd.grad(forward(x).square().sum(), x, create_graph=True)
        found = torch.autograd.grad(slope.square().sum(), list(net.parameters()))
        if forward is net:
            first = found
    for one, other in zip(first, found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("backend", ("aot_eager", "inductor"))
def test_compile(backend):
    torch._dynamo.reset()
    net = network()
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    x = torch.rand(4, 2, 12, 11, requires_grad=True)
    y, expected = compiled(x), net(x)
    torch.testing.assert_close(y, expected)
    for one, want in zip(gradients(y, net, x), gradients(expected, net, x), strict=True):
        torch.testing.assert_close(one, want)


# ---- the contract ------------------------------------------------------------------------------

CONV = [1, 1, 1, 1, 1, 1, 1, 1, 1]
GEOMETRY = [*CONV, 2, 2, 2, 2, 0, 0, 0, 1]


def calls(dtype=torch.float64, pool="avg"):
    x, weights, biases = layers((3, 12, 5, 4), dtype)
    outputs = ops.mlp(x, weights, biases, "tanh")
    g = values((3, 4), 1, 1 / 16).to(dtype)
    image = values((3, 2, 4, 5), 2, 1 / 16).to(dtype)
    w, b = values((6, 2, 3, 3), 3, 1 / 16).to(dtype), values((6,), 4, 1 / 16).to(dtype)
    params = [w, b, values((5, 24), 5, 1 / 16).to(dtype), biases[0], weights[1], biases[1]]
    network = network_text("auto", "tanh", pool, GEOMETRY)
    results = ops.conv_mlp(image, params, network, True)
    return [
        ("mlp", [x, weights, biases, "tanh"]),
        ("mlp_grad", [g, x, weights, outputs, "tanh", True, True]),
        ("mlp_grad", [g, x, weights, outputs, "tanh", False, False]),
        ("conv_mlp", [image, params, network, True]),
        ("conv_mlp", [image, params, network, False]),
        ("conv_mlp_grad", [g, image, params, results, network, True]),
        ("conv_mlp_grad", [g, image, params, results, network, False]),
    ]


@pytest.mark.parametrize("pool", ("avg", "max"))
def test_contract(pool):
    for name, arguments in calls(pool=pool):
        op = getattr(ops, name).default
        tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
        torch.library.opcheck(op, arguments, test_utils=tests)
        check_fake_lists(op, arguments)


def check_fake_lists(op, arguments):
    """As check_fake, of ops that take and return lists."""
    flat, spec = torch.utils._pytree.tree_flatten(arguments)

    def call(*flat):
        return tuple(op(*torch.utils._pytree.tree_unflatten(list(flat), spec)))

    check_fake(call, flat)


def test_errors():
    x, weights, biases = layers((3, 6, 5, 4))
    with refused("mlp", "input must be [N, features]", errors=RuntimeError):
        ops.mlp(x[0], weights, biases)
    with refused("mlp", "weights must be [outputs, 6], got [4, 5]", errors=RuntimeError):
        ops.mlp(x, weights[::-1], biases)
    with refused("mlp", "biases must be [5], got [4]", errors=RuntimeError):
        ops.mlp(x, weights, biases[::-1])
    with refused("mlp", "biases must be as many as weights, got 1 and 2", errors=RuntimeError):
        ops.mlp(x, weights, biases[:1])
    with refused("mlp", "weights must not be empty", errors=RuntimeError):
        ops.mlp(x, [], [])
    with refused("mlp", "activation must be", "'gelu'", errors=RuntimeError):
        ops.mlp(x, weights, biases, "gelu")
    with refused("mlp", "input must be float32 or float64", errors=RuntimeError):
        ops.mlp(x.half(), weights, biases)
    with refused("mlp", "weights must have the dtype of input", errors=RuntimeError):
        ops.mlp(x, [w.double() for w in weights], biases)
    outputs = ops.mlp(x, weights, biases)
    with refused("mlp_grad", "grad must be [3, 4], got [3, 5]", errors=RuntimeError):
        ops.mlp_grad(outputs[0], x, weights, outputs)
    with refused("mlp_grad", "outputs must be [3, 5], got [3, 4]", errors=RuntimeError):
        ops.mlp_grad(outputs[1], x, weights, outputs[::-1])
    arguments = dict(calls())
    image, params, network, _ = arguments["conv_mlp"]
    for text in (
        "",
        "auto tanh",
        f"{network} 1",
        f"{network} x",
        network_text("auto", "tanh", "avg", ()),
    ):
        with refused("conv_mlp", "17 numbers a block", errors=RuntimeError):
            ops.conv_mlp(image, params, text)
    for wrong in (params[:2], params[1:], []):
        with refused("conv_mlp", "params must be", "1 blocks", errors=RuntimeError):
            ops.conv_mlp(image, wrong, network)
    with refused("conv_mlp", "params must have the dtype of input", errors=RuntimeError):
        ops.conv_mlp(image, [params[0].float(), *params[1:]], network)
    with refused("conv_mlp", "bias must be [6], got [5]", errors=RuntimeError):
        ops.conv_mlp(image, [params[0], params[3], *params[2:]], network)
    with refused("conv_mlp", "weights must be [outputs, 24], got [4, 5]", errors=RuntimeError):
        ops.conv_mlp(image, [*params[:2], *params[4:]], network)
    g, _, _, results, *_ = arguments["conv_mlp_grad"]
    with refused("conv_mlp_grad", "results must be 5, got 4", errors=RuntimeError):
        ops.conv_mlp_grad(g, image, params, results[1:], network)


def test_what_is_kept_from_call_to_call_follows_the_arguments():
    """One thread, networks and sizes in turn: each time the result of the layers."""
    torch.manual_seed(0)
    nets = [network("tanh", pool) for pool in ("avg", "max", "none")]
    nets += [network("relu", "max", algo="direct"), network("relu", "max").double()]
    for images in (1, 2, 1, 40):
        for net in nets:
            x = torch.rand(images, 2, 12, 11, dtype=net.features[0].weight.dtype)
            for format in (torch.contiguous_format, torch.channels_last):
                with torch.no_grad():
                    y = net(x.contiguous(memory_format=format))
                    torch.testing.assert_close(y, layer_by_layer(net, x))
                    with pytest.raises(RuntimeError):
                        net(x[:, :1])
