"""The fused block's gradient as one op of the CPU: against the ops it is in one, and its promises.

Its values against the oracle are in test_conv2d_act_pool2d.py, where autograd takes it.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import FUSED, assert_close, layout, values
from samples import ACT_POOLS, CONV
from test_contract import check_fake
from test_conv2d import APPLIES, arguments
from test_determinism import assert_same_bits
from test_errors import refused

OPS = ()  # the CPU's
ops = torch.ops.cnnkern
MANY = "images_avg", "images_relu", "images_none"  # images are lanes without being asked to


def gradient_call(case, algo="auto", dtype=torch.float32, format="contiguous"):
    """Return the arguments of the gradient of a case, from what its forward pass saves."""
    x, w, b, _ = (None if t is None else t.detach() for t in arguments(case.conv, dtype, format))
    stride, padding, dilation, groups, mode = case.conv.geometry
    conv = [stride, padding, dilation, groups, mode, algo]
    act_pool = [
        case.activation, case.pool, case.pool_kernel, case.pool_stride, case.pool_padding,
        case.pool_ceil_mode, case.count_include_pad,
    ]  # fmt: skip
    output, saved, offsets = ops.conv2d_act_pool2d(x, w, b, *conv, *act_pool, True)
    g = layout(values(output.shape, 3).to(dtype), format)
    return [g, x, w, output, saved, offsets, *conv, *act_pool]


def named(*names):
    return [case for case in FUSED if case.name in names]


@pytest.mark.sanitize
@pytest.mark.parametrize("format", ("contiguous", "channels_last"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
@pytest.mark.parametrize("case", FUSED, ids=str)
def test_it_is_its_pieces(case, dtype, format, cpu_isa):
    """The input's gradient to the last bit: so it is also that of an image alone."""
    x = arguments(case.conv, dtype, format)[0]
    for algo in ("auto", "chwn")[: 1 + bool(APPLIES["chwn"](case.conv, x))]:
        call = gradient_call(case, algo, dtype, format)
        g, x, w, output, saved, offsets, *rest = call
        conv, act_pool = rest[:6], rest[6:]
        size = ops.conv2d(x, w, None, *conv).shape
        dz = ops.act_pool2d_grad(g, output, saved, offsets, size, *act_pool)
        dx, dw, db = ops.conv2d_act_pool2d_grad(*call)
        pieces = ops.conv2d_input_grad(dz, w, x.shape, *conv)
        assert torch.equal(dx, pieces), algo
        assert dx.stride() == pieces.stride()
        count = case.conv.reductions()["weight"]
        for name, one, other in (
            ("weight", dw, ops.conv2d_weight_grad(dz, x, w.shape, *conv)),
            ("bias", db, ops.conv2d_bias_grad(dz)),
        ):
            assert_close(one, other.double(), dtype, count, 2, 1, f"gradient of {name} by {algo}")


@pytest.mark.parametrize("needs", list(itertools.product((False, True), repeat=3)), ids=str)
@pytest.mark.parametrize("case", named("relu_max_overlap", *MANY), ids=str)
def test_what_is_not_asked_for_is_empty(case, needs):
    call = gradient_call(case, "chwn")
    for grad, all_of_it, need in zip(
        ops.conv2d_act_pool2d_grad(*call, *needs), ops.conv2d_act_pool2d_grad(*call), needs,
        strict=True,
    ):  # fmt: skip
        if need:
            assert torch.equal(grad, all_of_it)
        else:
            assert grad.shape == (0,)


def sample_calls():
    x, w = values((2, 4, 7, 8), 0), values((6, 2, 3, 3), 1)
    for act_pool in ACT_POOLS:
        output, saved, offsets = ops.conv2d_act_pool2d(x, w, None, *CONV, *act_pool, True)
        g = values(output.shape, 2)
        yield [g, x, w, output, saved, offsets, *CONV, *act_pool]
    for case in named(*MANY):
        for format in ("contiguous", "channels_last"):
            yield gradient_call(case, format=format)


@pytest.mark.parametrize("call", list(sample_calls()))
def test_contract(call):
    op = ops.conv2d_act_pool2d_grad.default
    torch.library.opcheck(op, call, test_utils=["test_schema", "test_faketensor"])
    for needs in itertools.product((False, True), repeat=3):
        check_fake(op, [*call, *needs])


@pytest.mark.parametrize("case", named("lenet2", "modern_lenet", *MANY), ids=str)
def test_threads_do_not_change_a_bit(case, restore_threads):
    call = gradient_call(case, "chwn")
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(ops.conv2d_act_pool2d_grad(*call))
    for result in results[1:]:
        assert_same_bits(result, results[0])


@pytest.mark.parametrize("case", named("lenet2", "modern_lenet", *MANY), ids=str)
def test_an_image_alone_has_the_gradient_that_it_has_in_a_batch(case, cpu_isa):
    (C, H, W), b = case.conv.input[1:], None
    x, w = values((37, C, H, W), 0).float(), values(case.conv.weight, 1).float()
    options = gradient_call(case)[6:]

    def gradient(x, g=None):
        output, *saved = ops.conv2d_act_pool2d(x, w, b, *options, True)
        g = values(output.shape, 3).float() if g is None else g
        return g, ops.conv2d_act_pool2d_grad(g, x, w, output, *saved, *options)[0]

    g, whole = gradient(x)
    for i in (0, 20, 36):
        one = slice(i, i + 1)
        assert torch.equal(gradient(x[one], g[one])[1], whole[one])


@pytest.mark.parametrize("case", named("images_relu", "relu_max_overlap"), ids=str)
def test_offsets_out_of_range(case):
    for value in (255, 0):  # of no window; of this one, but in the padding
        call = gradient_call(case)
        call[5][-1, -1, 0, 0] = value
        with refused("conv2d_act_pool2d_grad|act_pool2d_grad", "offsets", errors=RuntimeError):
            ops.conv2d_act_pool2d_grad(*call)


@pytest.mark.parametrize("name", ("images_avg", "images_relu", "tanh_avg", "relu_max_overlap"))
@pytest.mark.parametrize("argument", ("grad", "input", "weight", "output", "saved", "offsets"))
def test_tensors_that_do_not_match(name, argument):
    op, (case,) = "conv2d_act_pool2d_grad", named(name)
    position = ("grad", "input", "weight", "output", "saved", "offsets").index(argument)
    call = gradient_call(case)
    good = call[position]
    wrongs = [good[:, :-1], good.double()] if good.dim() == 4 else [good.double(), good.new_ones(3)]
    for wrong in wrongs:
        call[position] = wrong
        # Of two tensors that differ, either may be the one to blame.
        parts = ("dtype",) if wrong.dtype != good.dtype and argument != "offsets" else ()
        with refused(op, *parts, errors=RuntimeError):
            ops.conv2d_act_pool2d_grad(*call)
