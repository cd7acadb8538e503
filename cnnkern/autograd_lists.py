"""Autograd of the ops on lists of tensors: linear layers, alone and after fused blocks."""

from __future__ import annotations

import torch

from cnnkern.autograd import _unfused
from cnnkern.ops import DEFAULT, _library, read_network


def _linear_layers(input, weights, biases, activation):
    """Compute mlp from differentiable pieces: what double backward goes through."""
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        if i and activation != "none":
            input = getattr(torch, activation)(input)
        input = torch.nn.functional.linear(input, w, b)
    return input


def _grads_through(pieces, tensors, needs, grad):
    with torch.enable_grad():
        wanted = [t for t, need in zip(tensors, needs, strict=True) if need]
        grads = iter(torch.autograd.grad(pieces(), wanted, grad, create_graph=True))
    return [next(grads) if need else None for need in needs]


class _Lists(torch.autograd.Function):
    """An op on lists of tensors, which autograd wants one by one; `spec` sorts them.

    Its first result alone has a gradient.
    """

    @staticmethod
    def forward(ctx, keyset, spec, input, *params):
        with torch._C._AutoDispatchBelowAutograd():
            results = spec.call(keyset, input, params)
        ctx.spec = spec
        ctx.mark_non_differentiable(*results[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, *params, *results)
        return tuple(results)

    @staticmethod
    def backward(ctx, grad, *_):
        needs = ctx.needs_input_grad[2:]
        if grad is None:
            return None, None, *[None] * len(needs)
        spec, (input, *saved) = ctx.spec, ctx.saved_tensors
        params, results = saved[: len(needs) - 1], saved[len(needs) - 1 :]
        if torch.is_grad_enabled():  # create_graph=True: through the pieces
            pieces = lambda: spec.pieces(input, params)  # noqa: E731
            return None, None, *_grads_through(pieces, (input, *params), needs, grad)
        grads = spec.grads(grad, input, params, results, needs)
        return None, None, *[g if need else None for g, need in zip(grads, needs, strict=True)]


class _Mlp:
    """mlp: weights, then biases; the last layer's output is moved to the front."""

    op = torch.ops.cnnkern.mlp.default

    def __init__(self, weights, biases, activation="none"):
        self.layers, self.activation = len(weights), activation

    def lists(self, params):
        return params[: self.layers], params[self.layers :]

    def call(self, keyset, input, params):
        *hidden, output = self.op.redispatch(keyset, input, *self.lists(params), self.activation)
        return [output, *hidden]

    def results(self, results):
        return [*results[1:], results[0]]

    def pieces(self, input, params):
        return _linear_layers(input, *self.lists(params), self.activation)

    def grads(self, grad, input, params, results, needs):
        output, *hidden = results
        weights, _ = self.lists(params)
        need_params = any(needs[1:])
        grads = torch.ops.cnnkern.mlp_grad.default(
            grad, input, weights, [*hidden, output], self.activation, needs[0], need_params
        )
        return [grads[0], *grads[1::2], *grads[2::2]] if need_params else [grads[0], *params]


class _ConvMlp:
    """conv_mlp: each block's weight and bias, then each layer's."""

    op = torch.ops.cnnkern.conv_mlp.default

    def __init__(self, params, network, save=False):
        self.network, self.save = network, save

    def call(self, keyset, input, params):
        return self.op.redispatch(keyset, input, params, self.network, True)

    def results(self, results):
        return list(results if self.save else results[:1])

    def pieces(self, input, params):
        (algo, activation, pool), blocks = read_network(self.network)
        for i, (conv, of_pool) in enumerate(blocks):
            conv, act_pool = [*conv, "zeros", algo], [activation, pool, *of_pool]
            input = _unfused(DEFAULT, input, *params[2 * i : 2 * i + 2], conv, act_pool)
        layers = params[2 * len(blocks) :]
        return _linear_layers(input.flatten(1), layers[::2], layers[1::2], activation)

    def grads(self, grad, input, params, results, needs):
        return torch.ops.cnnkern.conv_mlp_grad.default(
            grad, input, params, results, self.network, needs[0]
        )


def _register_lists(kind, is_list) -> None:
    def kernel(keyset, input, *args):
        keyset = keyset & torch._C._after_autograd_keyset
        if torch.is_grad_enabled():
            params = [t for index in is_list for t in args[index]]
            if torch._C._any_requires_grad(input, *params):
                spec = kind(*args)
                return spec.results(_Lists.apply(keyset, spec, input, *params))
        with torch._C._AutoDispatchBelowAutograd():
            return kind.op.redispatch(keyset, input, *args)

    _library.impl(kind.op, kernel, "Autograd", with_keyset=True)


_register_lists(_Mlp, (0, 1))
_register_lists(_ConvMlp, (0,))
