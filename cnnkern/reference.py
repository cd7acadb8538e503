"""The specification: every op as the sum, maximum or mean that defines it, in float64.

Slow and obvious, in plain indexing: a loop over the taps (r, s) of the kernel, at each of which all
windows read one strided slice of the padded input. It is the oracle of the tests; autograd
differentiates it, so it defines the gradients too, and every gradient op of the contract is the
vector-Jacobian product (`vjp`) of the function it is named after. Arguments are those of
`cnnkern.ops`: padding is (left, right, top, bottom), everything else (height, width).

Letters: input N C H W, weight K C/groups R S, output N K P Q.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ACTIVATIONS = {
    "none": lambda x: x,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "silu": lambda x: x * torch.sigmoid(x),
}


def _double(t: Tensor) -> Tensor:
    return t.to(torch.float64)


# ---- convolution -------------------------------------------------------------------------------


def pad_zeros(x: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    """Surround the last two dimensions with zeros."""
    *outer, H, W = x.shape
    padded = x.new_zeros(*outer, top + H + bottom, left + W + right)
    padded[..., top : top + H, left : left + W] = x
    return padded


def padded_index(i: int, size: int, mode: str) -> int:
    """Return which element of [0, size) the padded coordinate i repeats."""
    if 0 <= i < size:
        return i
    if mode == "reflect":  # the border element itself is not repeated: c b | a b c | b a
        return -i if i < 0 else 2 * (size - 1) - i
    if mode == "replicate":
        return 0 if i < 0 else size - 1
    if mode == "circular":
        return i + size if i < 0 else i - size
    raise ValueError(f"unknown padding_mode '{mode}'")


def pad(x: Tensor, padding, mode: str) -> Tensor:
    """Extend `x` [N, C, H, W] by (left, right, top, bottom)."""
    left, right, top, bottom = padding
    if mode == "zeros":
        return pad_zeros(x, left, right, top, bottom)
    H, W = x.shape[2:]
    rows = torch.tensor([padded_index(i, H, mode) for i in range(-top, H + bottom)])
    columns = torch.tensor([padded_index(i, W, mode) for i in range(-left, W + right)])
    return x[:, :, rows[:, None].to(x.device), columns.to(x.device)]


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride=(1, 1),
    padding=(0, 0, 0, 0),
    dilation=(1, 1),
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """y[n, k, p, q] = bias[k] + sum of x[n, c, p*stride + r*dilation, ...] w[k, c, r, s],
    over c, r and s.

    x is the padded input. It is a cross-correlation: the kernel is not flipped. With groups, output
    channel k sees only the C/groups input channels of its own group.
    """
    x = pad(_double(input), padding, padding_mode)
    (N, C, H, W), (K, _, R, S) = x.shape, weight.shape
    P = (H - dilation[0] * (R - 1) - 1) // stride[0] + 1
    Q = (W - dilation[1] * (S - 1) - 1) // stride[1] + 1
    x = x.reshape(N, groups, C // groups, H, W)
    w = _double(weight).reshape(groups, K // groups, C // groups, R, S)
    y = x.new_zeros(N, groups, K // groups, P, Q)
    for r in range(R):
        for s in range(S):
            tap = x[
                ..., _every(r * dilation[0], stride[0], P), _every(s * dilation[1], stride[1], Q)
            ]
            y = y + torch.einsum("ngcpq,gkc->ngkpq", tap, w[..., r, s])
    y = y.reshape(N, K, P, Q)
    return y if bias is None else y + _double(bias).view(1, K, 1, 1)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride=(1, 1),
    padding=(0, 0),
    output_padding=(0, 0),
    groups: int = 1,
    dilation=(1, 1),
) -> Tensor:
    """Add x[n, c, h, w] * weight[c, k, r, s] to y[n, k, h*stride + r*dilation, ...], then crop.

    The adjoint of conv2d. weight is [C, K/groups, R, S]; `padding` is cropped from every side,
    `output_padding` is added below and on the right.
    """
    (N, C, H, W), (_, Kg, R, S) = input.shape, weight.shape
    x = _double(input).reshape(N, groups, C // groups, H, W)
    w = _double(weight).reshape(groups, C // groups, Kg, R, S)
    full = [
        (size - 1) * stride[i] + dilation[i] * (k - 1) + 1 + output_padding[i]
        for i, (size, k) in enumerate(((H, R), (W, S)))
    ]
    y = x.new_zeros(N, groups, Kg, *full)
    for r in range(R):
        for s in range(S):
            rows = _every(r * dilation[0], stride[0], H)
            columns = _every(s * dilation[1], stride[1], W)
            y[..., rows, columns] += torch.einsum("ngchw,gck->ngkhw", x, w[..., r, s])
    y = y.reshape(N, groups * Kg, *full)
    y = y[:, :, padding[0] : full[0] - padding[0], padding[1] : full[1] - padding[1]]
    return y if bias is None else y + _double(bias).view(1, -1, 1, 1)


def _every(start: int, step: int, count: int) -> slice:
    """Take `count` elements from `start` on, `step` apart."""
    return slice(start, start + step * (count - 1) + 1, step)


# ---- pools -------------------------------------------------------------------------------------


def pool_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> int:
    """Count the windows; with `ceil` a last, partial one if it starts left of the right padding."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (-(-room // stride) if ceil else room // stride) + 1
    return count - 1 if ceil and (count - 1) * stride >= size + padding else count


def _pool_sizes(input, kernel_size, stride, padding, dilation, ceil_mode):
    return tuple(
        pool_size(input.shape[2 + i], kernel_size[i], stride[i], padding[i], dilation[i], ceil_mode)
        for i in range(2)
    )


def max_pool2d(
    input: Tensor, kernel_size, stride, padding=(0, 0), dilation=(1, 1), ceil_mode: bool = False
) -> tuple[Tensor, Tensor]:
    """Return each window's maximum and where it is, as h*W + w.

    Only taps inside the input count. The first of equal values is taken, row by row, but a NaN
    beats everything, the last one if there are several. A dilated window may have no tap inside
    the input: -inf, and the index -1 here, where torch gives an index outside the plane.
    """
    x = _double(input)
    N, C, H, W = x.shape
    P, Q = _pool_sizes(x, kernel_size, stride, padding, dilation, ceil_mode)
    best = x.new_full((N, C, P, Q), -math.inf)
    indices = torch.full((N, C, P, Q), -1, dtype=torch.int64, device=x.device)
    rows = torch.arange(P, device=x.device) * stride[0] - padding[0]
    columns = torch.arange(Q, device=x.device) * stride[1] - padding[1]
    with torch.no_grad():
        for r in range(kernel_size[0]):
            for s in range(kernel_size[1]):
                h = (rows + r * dilation[0])[:, None]
                w = (columns + s * dilation[1])[None, :]
                inside = (h >= 0) & (h < H) & (w >= 0) & (w < W)
                value = x[:, :, h.clamp(0, H - 1), w.clamp(0, W - 1)]
                take = inside & ((indices < 0) | (value > best) | value.isnan())
                best = torch.where(take, value, best)
                indices = torch.where(take, h * W + w, indices)
    return gather(x, indices), indices


def gather(x: Tensor, indices: Tensor) -> Tensor:
    """Read the elements h*W + w of each plane: max_unpool2d_grad, and the values of max pools."""
    values = x.flatten(2).gather(2, indices.clamp(min=0).flatten(2)).reshape(indices.shape)
    return torch.where(indices < 0, -math.inf, values)


def avg_pool2d(
    input: Tensor,
    kernel_size,
    stride,
    padding=(0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Divide each window's sum by its number of taps.

    Those are the taps in the input and, with count_include_pad, in its padding; never those that
    ceil_mode hangs over the padding. divisor_override takes the place of that number.
    """
    x = _double(input)
    H, W = x.shape[2:]
    P, Q = _pool_sizes(x, kernel_size, stride, padding, (1, 1), ceil_mode)
    x = pad_zeros(x, padding[1], padding[1] + stride[1], padding[0], padding[0] + stride[0])
    y = 0
    for r in range(kernel_size[0]):
        for s in range(kernel_size[1]):
            y = y + x[..., _every(r, stride[0], P), _every(s, stride[1], Q)]
    if divisor_override is not None:
        return y / divisor_override
    counts = [
        torch.tensor([_taps(i * stride[d] - padding[d], kernel_size[d], size, padding[d],
                            count_include_pad) for i in range(count)])
        for d, (size, count) in enumerate(((H, P), (W, Q)))
    ]  # fmt: skip
    return y / (counts[0][:, None] * counts[1][None, :]).to(x.device)


def _taps(start: int, kernel: int, size: int, padding: int, include_pad: bool) -> int:
    end = min(start + kernel, size + padding)
    return end - start if include_pad else min(end, size) - max(start, 0)


def adaptive_windows(size: int, count: int) -> list[slice]:
    """Cut [0, size) into `count` windows of nearly equal length, which may overlap by one."""
    return [slice(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def adaptive_avg_pool2d(input: Tensor, output_size) -> Tensor:
    """Average each window of an even division of the plane into P x Q."""
    x = _double(input)
    rows = adaptive_windows(x.shape[2], output_size[0])
    columns = adaptive_windows(x.shape[3], output_size[1])
    lines = [torch.stack([x[:, :, r, c].mean((2, 3)) for c in columns], -1) for r in rows]
    return torch.stack(lines, -2)


def adaptive_max_pool2d(input: Tensor, output_size) -> tuple[Tensor, Tensor]:
    """Return the maximum of each window of an even division, and where it is, as h*W + w."""
    x = _double(input)
    N, C, H, W = x.shape
    indices = torch.zeros(N, C, *output_size, dtype=torch.int64, device=x.device)
    for p, rows in enumerate(adaptive_windows(H, output_size[0])):
        for q, columns in enumerate(adaptive_windows(W, output_size[1])):
            window = x.detach()[:, :, rows, columns]
            _, at = max_pool2d(window, window.shape[2:], (1, 1))
            h, w = at // window.shape[3], at % window.shape[3]
            indices[:, :, p, q] = ((h + rows.start) * W + w + columns.start)[:, :, 0, 0]
    return gather(x, indices), indices


def max_unpool2d(input: Tensor, indices: Tensor, output_size) -> Tensor:
    """Put each element at its index h*W + w of a plane of zeros; indices must not repeat."""
    N, C = input.shape[:2]
    plane = output_size[0] * output_size[1]
    y = _double(input).new_zeros(N, C, plane)
    y = y.scatter(2, indices.flatten(2), _double(input).flatten(2))
    return y.reshape(N, C, *output_size)


# ---- the fused block, and gradients ------------------------------------------------------------


def conv2d_act_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride=(1, 1),
    padding=(0, 0, 0, 0),
    dilation=(1, 1),
    groups: int = 1,
    padding_mode: str = "zeros",
    activation: str = "none",
    pool: str = "none",
    pool_kernel_size=(2, 2),
    pool_stride=(2, 2),
    pool_padding=(0, 0),
    pool_ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Pool the activation of a convolution."""
    x = conv2d(input, weight, bias, stride, padding, dilation, groups, padding_mode)
    x = ACTIVATIONS[activation](x)
    window = (pool_kernel_size, pool_stride, pool_padding)
    if pool == "max":
        return max_pool2d(x, *window, (1, 1), pool_ceil_mode)[0]
    if pool == "avg":
        return avg_pool2d(x, *window, pool_ceil_mode, count_include_pad)
    return x


def mlp(input: Tensor, weights, biases, activation: str = "none") -> list[Tensor]:
    """Return the output of each of some linear layers, with activations between them."""
    outputs, x = [], _double(input)
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = (x[:, None] * _double(weight)).sum(2) + _double(bias)
        if i + 1 < len(weights):
            x = ACTIVATIONS[activation](x)
        outputs.append(x)
    return outputs


def vjp(function, tensors, grad: Tensor | None = None) -> tuple[Tensor, list[Tensor | None]]:
    """Return function(*tensors) and, per tensor, the gradient of <grad, output>.

    None among `tensors` stays None. Without `grad` only the output is computed.
    """
    leaves = [None if t is None else _double(t).detach().requires_grad_() for t in tensors]
    output = function(*leaves)
    if grad is None:
        return output.detach(), []
    wanted = [t for t in leaves if t is not None]
    grads = iter(torch.autograd.grad(output, wanted, _double(grad)))
    return output.detach(), [None if t is None else next(grads) for t in leaves]
