"""What is refused, through the public functions and the raw ops, and how the messages read.

Every message must open with the op and name the argument and its value.

It is long because every op and argument has its rows.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from cases import values
from samples import raw_calls

from cnnkern import functional
from cnnkern.ops import OP_NAMES

ops = torch.ops.cnnkern
CALLS = dict(reversed(raw_calls()))  # the first call of each op
REFUSALS = (RuntimeError, ValueError, TypeError)


def refused(op: str, *parts, errors=REFUSALS):
    """Expect a message that opens with the op and has the parts in this order."""
    pattern = f"^cnnkern::{op}\\b.*" + ".*".join(re.escape(str(p)) for p in parts)
    return pytest.raises(errors, match=re.compile(pattern, re.DOTALL))


def tensor(*size, dtype=torch.float32):
    return values(size, 0).to(dtype)


# ---- tensors that no op takes ------------------------------------------------------------------

TENSORS = [
    (name, i, argument.name)
    for name in OP_NAMES
    for i, argument in enumerate(getattr(ops, name).default._schema.arguments)
    if isinstance(CALLS[name][i], torch.Tensor)
]
INDICES = ("indices", "offsets")


def call_with(name, position, value):
    arguments = list(CALLS[name])
    arguments[position] = value
    return getattr(ops, name)(*arguments)


@pytest.mark.parametrize("dtype", (torch.int64, torch.uint8, torch.bool, torch.complex64))
@pytest.mark.parametrize(("name", "position", "argument"), TENSORS)
def test_dtypes(name, position, argument, dtype):
    if argument in INDICES:  # uint8 or int64 are right there, and float is not
        dtype = torch.float32 if dtype in (torch.int64, torch.uint8) else dtype
    # Zeros are valid as indices: it is the dtype that must be refused.
    wrong = torch.zeros(CALLS[name][position].shape, dtype=dtype)
    with refused(name, argument, errors=RuntimeError):
        call_with(name, position, wrong)


@pytest.mark.parametrize(("name", "position", "argument"), TENSORS)
def test_mixed_dtypes(name, position, argument):
    floats = [a for n, p, a in TENSORS if n == name and a not in INDICES]
    if argument in INDICES or len(floats) == 1:
        return  # nothing to be mixed with
    with refused(name, "dtype", errors=RuntimeError):
        call_with(name, position, CALLS[name][position].float())


def strange(kind, shape):
    x = torch.ones(shape)
    if kind == "sparse":
        return x.to_sparse()
    if kind == "sparse compressed":
        return torch.ones(4, 4).to_sparse_csr()
    if kind == "quantized":
        return torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)
    return x.to_mkldnn()


@pytest.mark.parametrize("kind", ("sparse", "sparse compressed", "quantized", "mkldnn"))
@pytest.mark.parametrize(("name", "position", "argument"), TENSORS)
def test_tensors_that_are_not_strided(name, position, argument, kind):
    if len(CALLS[name][position].shape) not in (4, 1):
        return  # an empty result of another op
    with refused(name, kind, errors=RuntimeError):
        call_with(name, position, strange(kind, CALLS[name][position].shape))


@pytest.mark.parametrize("kind", ("sparse", "quantized", "mkldnn"))
def test_functions_refuse_them_too(kind):
    x, w = strange(kind, (1, 2, 5, 5)), tensor(3, 2, 3, 3)
    for op, call in (
        ("conv2d", lambda: functional.conv2d(x, w)),
        ("max_pool2d", lambda: functional.max_pool2d(x, 2)),
        ("avg_pool2d", lambda: functional.avg_pool2d(x, 2)),
        ("conv2d_act_pool2d", lambda: functional.conv2d_act_pool2d(x, w, pool="max")),
    ):
        with refused(op, kind):
            call()


@pytest.mark.parametrize(("name", "position", "argument"), TENSORS)
def test_mixed_devices(name, position, argument):
    if sum(n == name for n, _, _ in TENSORS) == 1:
        return
    with refused(name, "device", errors=RuntimeError):
        call_with(name, position, CALLS[name][position].to("meta"))


@pytest.mark.parametrize(("name", "position", "argument"), TENSORS)
def test_ranks(name, position, argument):
    if CALLS[name][position].dim() != 4 and argument != "bias":
        return
    for wrong in (CALLS[name][position][0], CALLS[name][position][None]):
        with refused(name, list(wrong.shape) if wrong.dim() else "[]", errors=RuntimeError):
            call_with(name, position, wrong)


@pytest.mark.parametrize("thing", (None, 3, [[1.0]], np.zeros((1, 2, 5, 5), np.float32)))
def test_things_that_are_no_tensor(thing):
    w = tensor(3, 2, 3, 3)
    for op, call in (
        ("conv2d", lambda: functional.conv2d(thing, w)),
        ("conv_transpose2d", lambda: functional.conv_transpose2d(thing, w)),
        ("max_pool2d", lambda: functional.max_pool2d(thing, 2)),
        ("avg_pool1d", lambda: functional.avg_pool1d(thing, 2)),
        ("adaptive_avg_pool2d", lambda: functional.adaptive_avg_pool2d(thing, 2)),
        ("conv2d_act_pool2d", lambda: functional.conv2d_act_pool2d(thing, w)),
    ):
        with refused(op, "input", type(thing).__name__, errors=TypeError):
            call()


# ---- geometry that both layers refuse ----------------------------------------------------------

HUGE = 2**62
CONV_ERRORS = [
    ({"stride": [0, 1]}, "stride", "[0, 1]"),
    ({"stride": [1, -2]}, "stride", "[1, -2]"),
    ({"stride": [2**31, 1]}, "stride", 2**31),
    ({"stride": [HUGE, HUGE]}, "stride", HUGE),
    ({"dilation": [0, 1]}, "dilation", "[0, 1]"),
    ({"dilation": [1, HUGE]}, "dilation", HUGE),
    ({"padding": [0, 0, -1, 0]}, "padding", "[0, 0, -1, 0]"),
    ({"padding": [0, 2**31, 0, 0]}, "padding", 2**31),
    ({"padding": [HUGE] * 4}, "padding", HUGE),
    ({"padding": [2**31 - 1] * 4}, "output", 2**32 + 3),
    ({"groups": 0}, "groups", 0),
    ({"groups": -2}, "groups", -2),
    ({"groups": 3}, "groups", 3),
    ({"groups": HUGE}, "groups", HUGE),
    ({"groups": 1}, "weight", "[6, 2, 3, 3]"),
    ({"weight": tensor(6, 3, 3, 3)}, "weight", "[6, 3, 3, 3]"),
    ({"weight": tensor(6, 2, 0, 3)}, "weight", "[6, 2, 0, 3]"),
    ({"weight": tensor(0, 2, 3, 3)}, "weight", "[0, 2, 3, 3]"),
    ({"weight": tensor(6, 2, 8, 3), "bias": None}, "weight", "(8, 3)"),
    ({"input": tensor(1, 0, 7, 8)}, "input", "[1, 0, 7, 8]"),
    ({"input": tensor(1, 4, 2, 8)}, "kernel (3, 3)", "(2, 8)"),
    ({"dilation": [4, 1]}, "kernel (3, 3)", "[4, 1]", "(7, 8)"),
    ({"bias": tensor(5)}, "bias", "[5]"),
    ({"bias": tensor(6, 1)}, "bias", "[6, 1]"),
    ({"padding_mode": "mirror"}, "padding_mode", "'mirror'"),
    ({"padding": [8, 0, 0, 0], "padding_mode": "reflect"}, "padding", "[8, 0, 0, 0]"),
    ({"padding": [0, 0, 8, 0], "padding_mode": "circular"}, "padding", "[0, 0, 8, 0]"),
    ({"input": tensor(1, 4, 0, 8), "padding_mode": "replicate", "padding": [0, 0, 2, 2]},
     "input", "[1, 4, 0, 8]"),
    ({"algo": "fastest"}, "algo", "'fastest'"),
]  # fmt: skip
BLOCK_ERRORS = [
    *CONV_ERRORS,
    ({"activation": "elu"}, "activation", "'elu'"),
    ({"pool": "min"}, "pool", "'min'"),
    ({"pool": "max", "pool_kernel_size": [0, 2]}, "kernel_size", "[0, 2]"),
    ({"pool": "max", "pool_stride": [-1, 2]}, "stride", "[-1, 2]"),
    ({"pool": "avg", "pool_padding": [2, 0]}, "padding", "[2, 0]"),
    ({"pool": "avg", "pool_kernel_size": [6, 2]}, "kernel_size", "[6, 2]"),
]
POOL_ERRORS = [
    ({"kernel_size": [0, 2]}, "kernel_size", "[0, 2]"),
    ({"kernel_size": [2, -1]}, "kernel_size", "[2, -1]"),
    ({"kernel_size": [HUGE, 2]}, "kernel_size", HUGE),
    ({"kernel_size": [10, 2], "padding": [1, 0]}, "kernel_size", "[10, 2]", "[2, 4, 7, 8]"),
    ({"stride": [0, 1]}, "stride", "[0, 1]"),
    ({"stride": [1, -1]}, "stride", "[1, -1]"),
    ({"stride": [HUGE, 1]}, "stride", HUGE),
    ({"padding": [-1, 0]}, "padding", "[-1, 0]"),
    ({"padding": [2, 1]}, "padding", "[2, 1]", "[3, 2]"),
    ({"padding": [HUGE, 0]}, "padding", HUGE),
    ({"input": tensor(2, 4, 0, 8)}, "input", "[2, 4, 0, 8]"),
    ({"input": tensor(2, 0, 7, 8)}, "input", "[2, 0, 7, 8]"),
]
MAX_ERRORS = [
    *POOL_ERRORS,
    ({"dilation": [0, 1]}, "dilation", "[0, 1]"),
    ({"dilation": [5, 1]}, "dilation", "[5, 1]"),
    ({"dilation": [1, HUGE]}, "dilation", HUGE),
]
AVG_ERRORS = [*POOL_ERRORS, ({"divisor_override": 0}, "divisor_override", 0)]
ADAPTIVE_ERRORS = [
    ({"output_size": [0, 2]}, "output_size", "[0, 2]"),
    ({"output_size": [2, -3]}, "output_size", "[2, -3]"),
    ({"output_size": [HUGE, 2]}, "output_size", HUGE),
    ({"input": tensor(2, 4, 0, 8)}, "input", "[2, 4, 0, 8]"),
    ({"input": tensor(2, 0, 7, 8)}, "input", "[2, 0, 7, 8]"),
]
X = tensor(2, 4, 7, 8)
CONV = {"input": X, "weight": tensor(6, 2, 3, 3), "bias": tensor(6), "groups": 2}
WINDOW = {"input": X, "kernel_size": [3, 2], "stride": [2, 2], "padding": [1, 1]}
GEOMETRY = {
    "conv2d": (CONV, CONV_ERRORS),
    "conv2d_act_pool2d": (CONV, BLOCK_ERRORS),
    "max_pool2d": (WINDOW, MAX_ERRORS),
    "avg_pool2d": (WINDOW, AVG_ERRORS),
    "adaptive_avg_pool2d": ({"input": X, "output_size": [2, 3]}, ADAPTIVE_ERRORS),
    "adaptive_max_pool2d": ({"input": X, "output_size": [2, 3]}, ADAPTIVE_ERRORS),
}
GEOMETRY_CASES = [(op, base, case) for op, (base, cases) in GEOMETRY.items() for case in cases]


@pytest.mark.parametrize("layer", ("functional", "raw", "meta"))
@pytest.mark.parametrize(
    ("op", "base", "case"), GEOMETRY_CASES,
    ids=[f"{op}-{'-'.join(case[0])}-{i}" for i, (op, _, case) in enumerate(GEOMETRY_CASES)],
)  # fmt: skip
def test_geometry(op, base, case, layer):
    change, *parts = case
    arguments = base | change
    if layer == "meta":  # the fake refuses the same, with the same words
        if {"algo", "bias", "activation"} & set(change) or change.get("pool") == "min":
            return  # names of kernels, and what a fake has no need to read
        arguments = {k: v.to("meta") if isinstance(v, torch.Tensor) else v
                     for k, v in arguments.items()}  # fmt: skip
    call = getattr(functional if layer == "functional" else ops, op)
    with refused(op, *parts, errors=RuntimeError):
        call(**arguments)


def test_the_bases_are_valid():
    for op, (base, _) in GEOMETRY.items():
        getattr(functional, op)(**base)
        getattr(ops, op)(**base)


# ---- what only the public functions see --------------------------------------------------------

NOT_INTS = (1.5, 2.0, float("inf"), float("nan"), "2", None, (1, 2.5), (1, None), [[1], [1]], True)


@pytest.mark.parametrize("value", NOT_INTS, ids=repr)
@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("conv2d", "stride"), ("conv2d", "padding"), ("conv2d", "dilation"), ("conv2d", "groups"),
        ("conv2d_act_pool2d", "stride"), ("conv2d_act_pool2d", "pool_kernel_size"),
        ("conv_transpose2d", "stride"), ("conv_transpose2d", "output_padding"),
        ("conv_transpose2d", "padding"), ("max_pool2d", "kernel_size"), ("max_pool2d", "dilation"),
        ("max_pool2d", "padding"), ("avg_pool2d", "kernel_size"), ("avg_pool2d", "padding"),
        ("adaptive_avg_pool2d", "output_size"), ("adaptive_max_pool2d", "output_size"),
    ],
)  # fmt: skip
def test_sizes_that_are_not_ints(op, name, value):
    if name == "output_size" and value in (None, (1, None)):
        return  # None keeps the input's size
    base = {"input": X}
    if "conv" in op:
        base["weight"] = tensor(4, 4, 3, 3)
    if "pool2d" in op and op.startswith(("max", "avg")):
        base["kernel_size"] = 2
    with refused(op, name, errors=(TypeError, ValueError)):
        getattr(functional, op)(**(base | {name: value}))


@pytest.mark.parametrize("value", (1.5, float("inf"), "2", None), ids=repr)
@pytest.mark.parametrize(("op", "name"), [("conv2d", "stride"), ("max_pool2d", "kernel_size")])
def test_raw_ops_refuse_them_in_torchs_words(op, name, value):
    base = CONV if op == "conv2d" else WINDOW
    with refused(op, name):
        getattr(ops, op).default(**(base | {name: value}))


@pytest.mark.parametrize(
    ("padding", "parts"),
    [
        ((1, 2, 3), ("padding", "(1, 2, 3)")),
        ((1, 2, 3, 4, 5), ("padding", "(1, 2, 3, 4, 5)")),
        ((), ("padding", "()")),
        ("full", ("padding", "'full'")),
        ("", ("padding", "''")),
    ],
    ids=str,
)
def test_paddings(padding, parts):
    w = tensor(6, 4, 3, 3)
    for op in ("conv2d", "conv2d_act_pool2d"):
        with refused(op, *parts, errors=ValueError):
            getattr(functional, op)(X, w, padding=padding)
    with refused("conv2d", "padding", "'same'", "stride", 2, errors=ValueError):
        functional.conv2d(X, w, padding="same", stride=2)


def test_ranks_of_functions():
    for op, call in {
        "conv2d": lambda x: functional.conv2d(x, tensor(6, 4, 3, 3)),
        "conv_transpose2d": lambda x: functional.conv_transpose2d(x, tensor(4, 4, 3, 3)),
        "max_pool2d": lambda x: functional.max_pool2d(x, 2),
        "adaptive_max_pool2d": lambda x: functional.adaptive_max_pool2d(x, 2),
    }.items():
        for x in (tensor(7, 8), tensor(1, 2, 4, 7, 8), torch.tensor(1.0)):
            with refused(op, "input", x.dim(), errors=RuntimeError):
                call(x)
    for x, k in ((tensor(3), tensor(2, 2)), (tensor(3, 3), tensor(1, 2, 2))):
        with refused("corr2d", "matrices", list(x.shape), errors=RuntimeError):
            functional.corr2d(x, k)
    with refused("conv1d", "weight", "[6, 4, 3, 3]", errors=RuntimeError):
        functional.conv1d(tensor(2, 4, 9), tensor(6, 4, 3, 3))
    for w in (tensor(6, 4), tensor(6, 4, 3)):
        with refused("conv2d", "weight", list(w.shape), errors=RuntimeError):
            functional.conv2d(X, w)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"stride": 0}, ("stride", 0)),
        ({"padding": -1}, ("padding", -1)),
        ({"dilation": (1, 0)}, ("dilation", "(1, 0)")),
        ({"groups": 0}, ("groups", 0)),
        ({"groups": 3}, ("groups", 3)),
        ({"output_padding": (0, 1)}, ("output_padding", "(0, 1)")),
        ({"output_padding": 2, "stride": 2}, ("output_padding", 2)),
        ({"output_padding": -1}, ("output_padding", -1)),
        ({"padding": 9}, ("padding", 9)),
        ({"input": tensor(2, 4, 7, 0)}, ("input", "[2, 4, 7, 0]")),
        # Here the padded empty input has enough columns for the gradient op to accept it.
        (
            {"input": tensor(2, 4, 7, 0), "output_padding": (0, 1), "dilation": 2},
            ("input", "[2, 4, 7, 0]"),
        ),
        ({"weight": tensor(5, 2, 3, 3)}, ("weight", "[5, 2, 3, 3]")),
        ({"bias": tensor(3)}, ("bias", "[3]")),
        ({"bias": tensor(2, dtype=torch.float64)}, ("bias", "dtype", "float64")),
        ({"stride": HUGE}, (HUGE,)),
        ({"padding": HUGE}, (HUGE,)),
        ({"dilation": 2**31}, (2**31,)),
    ],
    ids=str,
)
def test_conv_transpose2d(change, parts):
    base = {"input": X, "weight": tensor(4, 2, 3, 3)}
    functional.conv_transpose2d(**base)
    with refused("conv_transpose2d", *parts, errors=RuntimeError):
        functional.conv_transpose2d(**(base | change))


# ---- gradients and indices ---------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n, position, a in TENSORS if (position, a) == (0, "grad")])
def test_gradients_of_another_size(name):
    if name == "conv2d_bias_grad":
        return  # any size is right
    grad = CALLS[name][0]
    for wrong in (grad[:, :, 1:], grad[:, 1:], grad[:1], torch.cat([grad, grad], 3)):
        any_plane = name in ("max_unpool2d_grad", "adaptive_avg_pool2d_grad")
        if any_plane and wrong.shape[:2] == grad.shape[:2]:
            continue
        with refused(name, list(wrong.shape), errors=RuntimeError):
            call_with(name, 0, wrong)


@pytest.mark.parametrize("device", ("cpu", "meta"))
def test_positions_of_another_batch(device):
    """They would be scattered to planes that the result does not have."""
    grad, size = torch.ones(3, 4, 3, 2, device=device), [2, 4, 7, 8]
    parts = "[2, 4, 3, 2]", "[3, 4, 3, 2]"
    with refused("adaptive_max_pool2d_grad", "indices", *parts, errors=RuntimeError):
        ops.adaptive_max_pool2d_grad(grad, torch.zeros_like(grad, dtype=torch.int64), size)
    with refused("adaptive_avg_pool2d_grad", "grad", *parts, errors=RuntimeError):
        ops.adaptive_avg_pool2d_grad(grad, size)


@pytest.mark.sanitize
@pytest.mark.parametrize("format", (torch.contiguous_format, torch.channels_last))
# Looked up in a table, or one at a time: a window of at most 16 elements, or of more.
@pytest.mark.parametrize(("kernel", "stride", "pad"), ((3, 1, 1), (2, 2, 0), (3, 2, 1), (5, 2, 2)))
def test_offsets_outside_the_window_or_the_image(kernel, stride, pad, format):
    height, width, channels = 6, 9, 5
    window = ([kernel] * 2, [stride] * 2, [pad] * 2, [1, 1])
    x = tensor(1, channels, height, width).contiguous(memory_format=format)
    out, saved = torch.ops.cnnkern.max_pool2d(x, *window, False, "offsets")
    rows, columns = out.shape[2:]
    for p, q in ((0, 0), (0, 1), (1, 0), (1, 1), (rows - 1, 1), (rows - 1, columns - 1)):
        for offset in range(kernel * kernel + 2):
            wrong = saved.clone()
            wrong[0, offset % channels, p, q] = offset
            h, w = p * stride - pad + offset // kernel, q * stride - pad + offset % kernel
            call = (out, wrong, x.shape, *window)
            if offset < kernel * kernel and 0 <= h < height and 0 <= w < width:
                torch.ops.cnnkern.max_pool2d_grad(*call)
                continue
            with refused("max_pool2d_grad", "indices", f"got {offset}", errors=RuntimeError):
                torch.ops.cnnkern.max_pool2d_grad(*call)


@pytest.mark.sanitize
@pytest.mark.parametrize("device", ("cpu", "meta"))
@pytest.mark.parametrize(("name", "side"), (("max_pool2d_grad", 1), ("max_pool2d_gather", 100)))
def test_offsets_of_a_window_that_uint8_cannot_count(name, side, device):
    data = torch.randn(1, 16, side, side, device=device)
    offsets = torch.zeros(1, 16, 1, 1, dtype=torch.uint8, device=device)
    size = ([1, 16, 100, 100],) if name == "max_pool2d_grad" else ()
    with refused(name, "indices", "uint8", "[100, 100]", errors=RuntimeError):
        getattr(torch.ops.cnnkern, name)(data, offsets, *size, [100, 100], [100, 100])


@pytest.mark.parametrize("device", ("cpu", "meta"))
@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"activation": "mish"}, ("activation", "mish")),
        ({"pool": "median"}, ("pool", "median")),
        ({"pool": "max", "pool_kernel_size": [17, 17]}, ("pool_kernel_size", "[17, 17]")),
    ],
    ids=str,
)
def test_fused_options(change, parts, device):
    x, w = (torch.randn(s, device=device) for s in ((1, 1, 20, 20), (1, 1, 1, 1)))
    with refused("conv2d_act_pool2d", *parts, errors=RuntimeError):
        torch.ops.cnnkern.conv2d_act_pool2d(x, w, None, **change)


INDEXED = [(name, position) for name, position, argument in TENSORS if argument in INDICES]


@pytest.mark.parametrize("value", (-1, 56, 10_000, 2**40, -(2**62)))
@pytest.mark.parametrize(("name", "position"), INDEXED)
def test_indices_outside_the_plane(name, position, value):
    indices = CALLS[name][position]
    if indices.dtype == torch.uint8:
        if indices.numel() == 0 or value < 0:
            return
        indices, value = indices.clone(), 255  # the window has fewer elements
    else:
        indices = indices.clone()
    indices[-1, -1, -1, -1] = value
    with refused(name, errors=RuntimeError):
        call_with(name, position, indices)


def test_max_unpool2d():
    y, indices = functional.max_pool2d(X, 2, return_indices=True)
    with refused("max_unpool2d", "[2, 4, 3, 4]", errors=RuntimeError):
        functional.max_unpool2d(y, indices[:, :, 1:], 2)
    with refused("max_unpool2d", "output_size", "(20, 8)", errors=ValueError):
        functional.max_unpool2d(y, indices, 2, output_size=(20, 8))
    with refused("max_unpool2d", "output_size", errors=(ValueError, TypeError)):
        functional.max_unpool2d(y, indices, 2, output_size=(8,))


def test_window_too_large_for_offsets():
    x = tensor(1, 1, 20, 20)
    with refused("max_pool2d", "offsets", "[17, 16]", errors=RuntimeError):
        ops.max_pool2d(x, [17, 16], [1, 1], save="offsets")
    with refused("max_pool2d", "save", "'all'", errors=RuntimeError):
        ops.max_pool2d(x, [2, 2], [1, 1], save="all")


def test_lp_pool2d():
    for p, error in (
        (0, ValueError),
        (float("nan"), ValueError),
        ("2", TypeError),
        (None, TypeError),
    ):
        with refused("lp_pool2d", "norm_type", repr(p), errors=error):
            functional.lp_pool2d(X, p, 2)


def test_triton_kernels_need_cuda_tensors():
    x, w = tensor(1, 4, 6, 6), tensor(4, 4, 3, 3)
    for op, first, call in (
        ("conv2d", "input", lambda: functional.conv2d(x, w, algo="triton")),
        ("conv2d_input_grad", "grad", lambda: functional.conv_transpose2d(x, w, algo="triton")),
        ("conv2d", "input", lambda: functional.conv2d(x, w, algo="triton_tf32")),
        ("max_pool2d", "input", lambda: functional.max_pool2d(x, 2, algo="triton")),
    ):
        message = f"^cnnkern::{op}: algo='triton' needs CUDA tensors, got {first} on the CPU"
        with pytest.raises(RuntimeError, match=message):
            call()


def test_algorithms_of_pools():
    with pytest.raises(RuntimeError, match=r"^cnnkern::avg_pool2d: algo must be .* got 'direct'"):
        functional.avg_pool2d(tensor(1, 4, 6, 6), 2, algo="direct")
