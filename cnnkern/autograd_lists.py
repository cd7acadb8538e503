"""Autograd of the ops on lists of tensors: linear layers, alone and after fused blocks."""

from __future__ import annotations

import itertools

import torch

from cnnkern.autograd import _unfused
from cnnkern.ops import DEFAULT, _library, block_options


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


def _split(tensors, *counts):
    """Cut a sequence into pieces of these lengths."""
    tensors = iter(tensors)
    return [list(itertools.islice(tensors, count)) for count in counts]


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
    """conv_mlp: the blocks' weights, their biases, the layers' weights, their biases."""

    op = torch.ops.cnnkern.conv_mlp.default

    def __init__(self, conv_weights, conv_biases, geometry, algo, activation, pool, weights, biases,
                 save=False):  # fmt: skip
        self.counts = [len(conv_weights)] * 2 + [len(weights)] * 2
        self.options, self.save = [geometry, algo, activation, pool], save

    def call(self, keyset, input, params):
        conv_weights, conv_biases, *linear = _split(params, *self.counts)
        return self.op.redispatch(
            keyset, input, conv_weights, conv_biases, *self.options, *linear, True
        )

    def results(self, results):
        return list(results if self.save else results[:1])

    def pieces(self, input, params):
        geometry, algo, activation, pool = self.options
        conv_weights, conv_biases, *linear = _split(params, *self.counts)
        for i, (w, b) in enumerate(zip(conv_weights, conv_biases, strict=True)):
            conv, of_pool = block_options(geometry, i)
            conv, act_pool = [*conv, "zeros", algo], [activation, pool, *of_pool]
            input = _unfused(DEFAULT, input, w, b, conv, act_pool)
        return _linear_layers(input.flatten(1), *linear, activation)

    def grads(self, grad, input, params, results, needs):
        conv_weights, _, weights, _ = _split(params, *self.counts)
        grads = torch.ops.cnnkern.conv_mlp_grad.default(
            grad, input, conv_weights, results, *self.options, weights, needs[0]
        )
        convs = 1 + 2 * len(conv_weights)
        return [grads[0], *grads[1:convs:2], *grads[2:convs:2], *grads[convs::2],
                *grads[convs + 1 :: 2]]  # fmt: skip


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
_register_lists(_ConvMlp, (0, 1, 6, 7))
