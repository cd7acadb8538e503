"""Valid calls of every raw op, for the tests that hold for all ops: opcheck, strides, errors.

Positional arguments as in the schemas of `cnnkern.ops`, all of them given. The tensors are small;
their dtype and layout are the caller's.
"""

from __future__ import annotations

import torch
from cases import layout, values

from cnnkern import reference

# Stride, dilation, groups and asymmetric padding at once.
CONV = [[2, 1], [1, 0, 2, 1], [1, 2], 2, "zeros", "auto"]
POOL = [[3, 2], [2, 2], [1, 1], [1, 2]]
AVG = [[3, 2], [2, 1], [1, 1], True, False, None]
X, W = (2, 4, 7, 8), (6, 2, 3, 3)
ACT_POOLS = (
    ["none", "none", [2, 2], [2, 2], [0, 0], False, True],
    ["relu", "max", [2, 2], [2, 2], [0, 0], False, True],
    ["gelu", "max", [3, 2], [1, 2], [1, 1], True, True],
    ["sigmoid", "avg", [2, 2], [1, 2], [1, 0], True, False],
    ["silu", "none", [2, 2], [2, 2], [0, 0], False, True],
)


def raw_calls(dtype: torch.dtype = torch.float64, layout_name: str = "contiguous") -> list:
    """Return (op name, arguments) for each op, more than once where it has several regimes."""

    def tensor(*size):
        x = values(size, sum(size), 1 / 16).to(dtype)
        return layout(x, layout_name) if len(size) == 4 else x

    x, w, b = tensor(*X), tensor(*W), tensor(W[0])
    y = tensor(*reference.conv2d(x, w, None, *CONV[:-1]).shape)
    calls = [
        ("conv2d", [x, w, b, *CONV]),
        ("conv2d", [x, w, None, *CONV]),
        ("conv2d_input_grad", [y, w, list(X), *CONV]),
        ("conv2d_weight_grad", [y, x, list(W), *CONV]),
        ("conv2d_bias_grad", [y]),
    ]

    pooled, indices = reference.max_pool2d(x, *POOL)
    indices = layout(indices, layout_name)
    g = tensor(*pooled.shape)
    offsets = layout(_offsets(indices), layout_name)
    for save in ("none", "offsets", "indices"):
        calls.append(("max_pool2d", [x, *POOL, False, save]))
    for saved in (offsets, indices):
        calls.append(("max_pool2d_grad", [g, saved, list(X), *POOL]))
        calls.append(("max_pool2d_gather", [x, saved, *POOL]))

    a = tensor(*reference.avg_pool2d(x, *AVG).shape)
    calls += [("avg_pool2d", [x, *AVG]), ("avg_pool2d_grad", [a, list(X), *AVG])]

    _, adaptive = reference.adaptive_max_pool2d(x, (3, 2))
    adaptive, d = layout(adaptive, layout_name), tensor(*X[:2], 3, 2)
    _, unique = reference.max_pool2d(x, (2, 2), (2, 2))
    unique, u = layout(unique, layout_name), tensor(*unique.shape)
    calls += [
        ("adaptive_avg_pool2d", [x, [3, 2]]),
        ("adaptive_avg_pool2d_grad", [d, list(X)]),
        ("adaptive_max_pool2d", [x, [3, 2]]),
        ("adaptive_max_pool2d_grad", [d, adaptive, list(X)]),
        ("max_unpool2d", [u, unique, [7, 8]]),
        ("max_unpool2d_grad", [x, unique]),
    ]

    for act_pool in ACT_POOLS:
        for save in (False, True):
            calls.append(("conv2d_act_pool2d", [x, w, b, *CONV, *act_pool, save]))
        output, saved, chosen = torch.ops.cnnkern.conv2d_act_pool2d(x, w, b, *CONV, *act_pool, True)
        g = tensor(*output.shape)
        calls.append(("act_pool2d_grad", [g, output, saved, chosen, list(y.shape), *act_pool]))
    return calls


def _offsets(indices: torch.Tensor) -> torch.Tensor:
    """Turn indices h*W + w of the pool above into offsets r*S + s inside the window."""
    (_, S), stride, padding, dilation = POOL
    P, Q = indices.shape[2:]
    h, w = indices // X[3], indices % X[3]
    r = (h - (torch.arange(P) * stride[0] - padding[0])[:, None]) // dilation[0]
    s = (w - (torch.arange(Q) * stride[1] - padding[1])) // dilation[1]
    return (r * S + s).to(torch.uint8)


def call_ids(calls) -> list[str]:
    """Number the calls of each op."""
    seen: dict[str, int] = {}
    ids = []
    for name, _ in calls:
        seen[name] = seen.get(name, -1) + 1
        ids.append(f"{name}-{seen[name]}")
    return ids


def on_device(arguments: list, device: str) -> list:
    """Move the tensors and keep their strides, which `to` makes dense."""

    def move(t):
        return torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device=device).copy_(t)

    return [move(a) if isinstance(a, torch.Tensor) else a for a in arguments]
