"""The activations of the fused block and their derivatives, in the type that sums are kept in.

NaN stays NaN. float32's tanh has a polynomial around 0, where the quotient of exponentials cancels.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

ROOT_HALF = tl.constexpr(0.7071067811865476)
ROOT_HALF_OVER_PI = tl.constexpr(0.3989422804014327)


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def tanh(x):
    if x.dtype == tl.float64:
        y = libdevice.tanh(x)
    else:
        a = tl.abs(x)
        e = tl.exp(-2 * a)
        # Cephes' tanhf, for |x| < 0.625.
        z = x * x
        t = -5.70498872745e-3 * z + 2.06390887954e-2
        t = t * z - 5.37397155531e-2
        t = t * z + 1.33314422036e-1
        t = t * z - 3.33332819422e-1
        y = tl.where(a < 0.625, t * z * a + a, (1 - e) / (1 + e))
        y = tl.where(x < 0, -y, y)
    return y


@triton.jit
def activate(x, ACT: tl.constexpr):
    if ACT == "relu":
        x = tl.where(x < 0, 0.0, x)
    elif ACT == "sigmoid":
        x = sigmoid(x)
    elif ACT == "tanh":
        x = tanh(x)
    elif ACT == "gelu":
        x = 0.5 * x * (1 + tl.erf(x * ROOT_HALF))
    elif ACT == "silu":
        x = x / (1 + tl.exp(-x))
    return x


@triton.jit
def derivative(x, ACT: tl.constexpr):
    """Differentiate at x: the input of gelu and silu, the result of relu, sigmoid and tanh."""
    if ACT == "relu":
        d = tl.where(x > 0, 1.0, x - x)  # 0, or NaN
    elif ACT == "sigmoid":
        d = x * (1 - x)
    elif ACT == "tanh":
        d = 1 - x * x
    elif ACT == "gelu":
        d = 0.5 * (1 + tl.erf(x * ROOT_HALF)) + x * tl.exp(-0.5 * x * x) * ROOT_HALF_OVER_PI
    elif ACT == "silu":
        s = sigmoid(x)
        d = s * (1 + x * (1 - s))
    else:
        d = x - x + 1
    return d
