"""Autograd of every op, registered on import: which op is the gradient of which.

The formulas take the ops of one overload, so that gradients run where the op itself ran.
A gradient that nobody asks for is not computed. The maps are linear but for the max choices and the
activations, so most gradients are pairs of transposed ops and can be differentiated for ever.
"""

from __future__ import annotations

import torch

from cnnkern.checks import act_pool2d_saves, conv2d_output_size, max_pool2d_save
from cnnkern.ops import DEFAULT, TRITON, _library

_CONV_ARGS = 6  # stride, padding, dilation, groups, padding_mode, algo


def _register(name: str, setup, backward) -> None:
    for ops in (DEFAULT, TRITON):
        _register_overload(ops, getattr(ops, name), setup, backward)


def _register_overload(ops, op, setup, backward) -> None:
    """Do what torch.library.register_autograd does, with the schema read here and not in each call.

    That costs a call of ten or twenty arguments more than a small convolution.
    """
    # The dispatcher drops trailing arguments that have their default.
    defaults = [a.default_value if a.has_default_value() else None for a in op._schema.arguments]

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            *args, keyset = args
            with torch._C._AutoDispatchBelowAutograd():
                output = op.redispatch(keyset, *args)
            setup(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx, *grads):
            grads = backward(ops, ctx, *grads)
            return (*grads, None) if isinstance(grads, tuple) else (grads, None)

    Function.__name__ = Function.__qualname__ = op.name()

    def kernel(keyset, *args):
        keyset = keyset & torch._C._after_autograd_keyset
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return Function.apply(*args, *defaults[len(args) :], keyset)
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset, *args)

    _library.impl(op, kernel, "Autograd", with_keyset=True)


# ---- convolution -------------------------------------------------------------------------------


def _conv2d_setup(ctx, inputs, output):
    input, weight, _, *ctx.conv = inputs
    need_input, need_weight = ctx.needs_input_grad[:2]
    ctx.input_size, ctx.weight_size = list(input.shape), list(weight.shape)
    # Each operand is needed for the other one's gradient only.
    ctx.save_for_backward(input if need_weight else None, weight if need_input else None)


def _conv2d_backward(ops, ctx, grad):
    input, weight = ctx.saved_tensors
    need_input, need_weight, need_bias = ctx.needs_input_grad[:3]
    return (
        ops.conv2d_input_grad(grad, weight, ctx.input_size, *ctx.conv) if need_input else None,
        ops.conv2d_weight_grad(grad, input, ctx.weight_size, *ctx.conv) if need_weight else None,
        ops.conv2d_bias_grad(grad) if need_bias else None,
        *[None] * _CONV_ARGS,
    )


def _conv2d_input_grad_setup(ctx, inputs, output):
    grad, weight, _, *ctx.conv = inputs
    need_grad, need_weight = ctx.needs_input_grad[:2]
    ctx.weight_size = list(weight.shape)
    ctx.save_for_backward(grad if need_weight else None, weight if need_grad else None)


def _conv2d_input_grad_backward(ops, ctx, grad_input):
    grad, weight = ctx.saved_tensors
    need_grad, need_weight = ctx.needs_input_grad[:2]
    return (
        ops.conv2d(grad_input, weight, None, *ctx.conv) if need_grad else None,
        ops.conv2d_weight_grad(grad, grad_input, ctx.weight_size, *ctx.conv)
        if need_weight
        else None,
        *[None] * (1 + _CONV_ARGS),
    )


def _conv2d_weight_grad_setup(ctx, inputs, output):
    grad, input, _, *ctx.conv = inputs
    need_grad, need_input = ctx.needs_input_grad[:2]
    ctx.input_size = list(input.shape)
    ctx.save_for_backward(grad if need_input else None, input if need_grad else None)


def _conv2d_weight_grad_backward(ops, ctx, grad_weight):
    grad, input = ctx.saved_tensors
    need_grad, need_input = ctx.needs_input_grad[:2]
    return (
        ops.conv2d(input, grad_weight, None, *ctx.conv) if need_grad else None,
        ops.conv2d_input_grad(grad, grad_weight, ctx.input_size, *ctx.conv) if need_input else None,
        *[None] * (1 + _CONV_ARGS),
    )


def _conv2d_bias_grad_setup(ctx, inputs, output):
    ctx.size = inputs[0].shape


def _conv2d_bias_grad_backward(ops, ctx, grad_bias):
    return grad_bias.view(1, -1, 1, 1).expand(ctx.size)


_register("conv2d", _conv2d_setup, _conv2d_backward)
_register("conv2d_input_grad", _conv2d_input_grad_setup, _conv2d_input_grad_backward)
_register("conv2d_weight_grad", _conv2d_weight_grad_setup, _conv2d_weight_grad_backward)
_register("conv2d_bias_grad", _conv2d_bias_grad_setup, _conv2d_bias_grad_backward)

# ---- average pools -----------------------------------------------------------------------------


def _avg_pool2d_setup(ctx, inputs, output):
    ctx.input_size, ctx.pool = list(inputs[0].shape), inputs[1:]


def _avg_pool2d_backward(ops, ctx, grad):
    return ops.avg_pool2d_grad(grad, ctx.input_size, *ctx.pool), *[None] * len(ctx.pool)


def _avg_pool2d_grad_setup(ctx, inputs, output):
    ctx.pool = inputs[2:]


def _avg_pool2d_grad_backward(ops, ctx, grad_input):
    return ops.avg_pool2d(grad_input, *ctx.pool), *[None] * (1 + len(ctx.pool))


def _adaptive_avg_pool2d_setup(ctx, inputs, output):
    ctx.input_size = list(inputs[0].shape)


def _adaptive_avg_pool2d_backward(ops, ctx, grad):
    return ops.adaptive_avg_pool2d_grad(grad, ctx.input_size), None


def _adaptive_avg_pool2d_grad_setup(ctx, inputs, output):
    ctx.output_size = inputs[0].shape[2:]


def _adaptive_avg_pool2d_grad_backward(ops, ctx, grad_input):
    return ops.adaptive_avg_pool2d(grad_input, ctx.output_size), None


_register("avg_pool2d", _avg_pool2d_setup, _avg_pool2d_backward)
_register("avg_pool2d_grad", _avg_pool2d_grad_setup, _avg_pool2d_grad_backward)
_register("adaptive_avg_pool2d", _adaptive_avg_pool2d_setup, _adaptive_avg_pool2d_backward)
_register(
    "adaptive_avg_pool2d_grad", _adaptive_avg_pool2d_grad_setup, _adaptive_avg_pool2d_grad_backward
)

# ---- max pools ---------------------------------------------------------------------------------


def _max_pool2d_setup(ctx, inputs, output):
    input, kernel_size, stride, padding, dilation, ctx.ceil_mode, ctx.save = inputs
    ctx.pool = kernel_size, stride, padding, dilation
    ctx.input_size = list(input.shape)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    # A caller who saved no choices gets them recomputed from the input.
    ctx.save_for_backward(input if ctx.save == "none" else output[1])


def _max_pool2d_backward(ops, ctx, grad, _):
    nones = [None] * 6
    if grad is None:
        return None, *nones
    (indices,) = ctx.saved_tensors
    if ctx.save == "none":
        save = max_pool2d_save(ctx.pool[0])
        with torch.no_grad():
            _, indices = ops.max_pool2d(indices, *ctx.pool, ctx.ceil_mode, save)
    return ops.max_pool2d_grad(grad, indices, ctx.input_size, *ctx.pool), *nones


def _max_pool2d_grad_setup(ctx, inputs, output):
    _, indices, _, *ctx.pool = inputs
    ctx.save_for_backward(indices)


def _max_pool2d_grad_backward(ops, ctx, grad_input):
    (indices,) = ctx.saved_tensors
    return ops.max_pool2d_gather(grad_input, indices, *ctx.pool), *[None] * 6


def _max_pool2d_gather_setup(ctx, inputs, output):
    input, indices, *ctx.pool = inputs
    ctx.input_size = list(input.shape)
    ctx.save_for_backward(indices)


def _max_pool2d_gather_backward(ops, ctx, grad):
    (indices,) = ctx.saved_tensors
    return ops.max_pool2d_grad(grad, indices, ctx.input_size, *ctx.pool), *[None] * 5


def _adaptive_max_pool2d_setup(ctx, inputs, output):
    ctx.input_size = list(inputs[0].shape)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _adaptive_max_pool2d_backward(ops, ctx, grad, _):
    if grad is None:
        return None, None
    (indices,) = ctx.saved_tensors
    return ops.adaptive_max_pool2d_grad(grad, indices, ctx.input_size), None


def _indices_setup(ctx, inputs, output):
    """Keep the indices and the size of the first argument, for a gather or scatter by index."""
    ctx.size = inputs[0].shape
    ctx.save_for_backward(inputs[1])


def _gather_backward(ops, ctx, grad):
    return ops.max_unpool2d_grad(grad, ctx.saved_tensors[0]), None, None


def _scatter_backward(ops, ctx, grad):
    return ops.adaptive_max_pool2d_grad(grad, ctx.saved_tensors[0], ctx.size), None


_register("max_pool2d", _max_pool2d_setup, _max_pool2d_backward)
_register("max_pool2d_grad", _max_pool2d_grad_setup, _max_pool2d_grad_backward)
_register("max_pool2d_gather", _max_pool2d_gather_setup, _max_pool2d_gather_backward)
_register("adaptive_max_pool2d", _adaptive_max_pool2d_setup, _adaptive_max_pool2d_backward)
_register("adaptive_max_pool2d_grad", _indices_setup, _gather_backward)
_register("max_unpool2d", _indices_setup, _gather_backward)
_register("max_unpool2d_grad", _indices_setup, _scatter_backward)

# ---- the fused block ---------------------------------------------------------------------------


def _unfused(ops, input, weight, bias, conv, act_pool):
    """Compute conv2d_act_pool2d from differentiable pieces: what double backward goes through."""
    activation, pool, kernel_size, stride, padding, ceil_mode, count_include_pad = act_pool
    x = ops.conv2d(input, weight, bias, *conv)
    if activation != "none":
        x = getattr(torch.nn.functional, activation)(x)
    if pool == "max":
        x, _ = ops.max_pool2d(x, kernel_size, stride, padding, (1, 1), ceil_mode, "offsets")
    elif pool == "avg":
        x = ops.avg_pool2d(x, kernel_size, stride, padding, ceil_mode, count_include_pad)
    return x


def _conv2d_act_pool2d_setup(ctx, inputs, output):
    input, weight, bias = inputs[:3]
    ctx.conv, ctx.act_pool, ctx.saved_forward = inputs[3:9], inputs[9:16], inputs[16]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, weight, bias, *output)


def _conv2d_act_pool2d_backward(ops, ctx, grad, *_):
    nones = [None] * 14
    if grad is None:
        return None, None, None, *nones
    input, weight, bias, output, saved, offsets = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    if torch.is_grad_enabled():  # create_graph=True: through the pieces, which know their gradients
        with torch.enable_grad():
            wanted = [t for t, need in zip((input, weight, bias), needs, strict=True) if need]
            result = _unfused(ops, input, weight, bias, ctx.conv, ctx.act_pool)
            grads = iter(torch.autograd.grad(result, wanted, grad, create_graph=True))
        return *[next(grads) if need else None for need in needs], *nones
    activation, pool = ctx.act_pool[:2]
    if not ctx.saved_forward and (act_pool2d_saves(activation, pool) or pool == "max"):
        output, saved, offsets = ops.conv2d_act_pool2d(
            input, weight, bias, *ctx.conv, *ctx.act_pool, True
        )
    if grad.device.type == "cpu" and ops is DEFAULT:
        grads = torch.ops.cnnkern.conv2d_act_pool2d_grad.default(
            grad, input, weight, output, saved, offsets, *ctx.conv, *ctx.act_pool, *needs
        )
        return *[g if need else None for g, need in zip(grads, needs, strict=True)], *nones
    conv_size = conv2d_output_size("conv2d_act_pool2d", input.shape, weight.shape, *ctx.conv[:-1])
    grad_conv = ops.act_pool2d_grad(grad, output, saved, offsets, conv_size, *ctx.act_pool)
    return (
        ops.conv2d_input_grad(grad_conv, weight, input.shape, *ctx.conv) if needs[0] else None,
        ops.conv2d_weight_grad(grad_conv, input, weight.shape, *ctx.conv) if needs[1] else None,
        ops.conv2d_bias_grad(grad_conv) if needs[2] else None,
        *nones,
    )


_register("conv2d_act_pool2d", _conv2d_act_pool2d_setup, _conv2d_act_pool2d_backward)
