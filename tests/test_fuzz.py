"""Random geometries, valid and not: equal to the oracle, or an error that starts with cnnkern::.

CNNKERN_FUZZ scales the number of cases. A failure prints the call that repeats it:
`PYTHONPATH=tests python -c "import test_fuzz; test_fuzz.CONV2D.run({...})"`.
"""

from __future__ import annotations

import os
import random

import pytest
import torch
from cases import LAYOUTS, assert_close, data_grid, layout, values

from cnnkern import _C, functional, reference

CASES = int(400 * float(os.environ.get("CNNKERN_FUZZ", "1")))  # per family
DTYPES = ("float32", "float64", "bfloat16", "float16")
WILD = (0, -1, -(2**31), 2**31, 2**62)  # what no extent may be


class Family:
    """One function: how to draw a case, whether it is valid, how to call it and its oracle."""

    tensors: tuple[str, ...] = ("input",)
    exact = False  # the output, not the gradients
    roundings = 2

    def draw(self, rng):
        raise NotImplementedError

    def valid(self, case) -> bool:
        raise NotImplementedError

    def call(self, case, *tensors):
        raise NotImplementedError

    def oracle(self, case, *tensors):
        raise NotImplementedError

    def case(self, seed: int) -> dict:
        rng = random.Random(f"{type(self).__name__} {seed}")
        case = self.draw(rng)
        case |= {"dtype": rng.choice(DTYPES), "isa": rng.choice(_C.cpu_isas()), "seed": seed}
        case |= {"layout": rng.choice(list(LAYOUTS)), "grad_layout": rng.choice(list(LAYOUTS))}
        if rng.random() < 0.3:  # break it, perhaps
            key = rng.choice([k for k in self.breakable if k in case])
            value = list(case[key]) if isinstance(case[key], tuple) else [case[key]]
            wild = WILD[:2] if key in self.tensors else WILD
            value[rng.randrange(len(value))] = rng.choice([*wild, 7, 1, 2])
            if key in self.tensors:  # sizes of tensors, which must exist
                value = [max(0, v) for v in value]
            case[key] = tuple(value) if isinstance(case[key], tuple) else value[0]
        return case

    def run(self, case: dict) -> bool:
        """Check one case, and tell whether it was a valid one."""
        dtype, grid = getattr(torch, case["dtype"]), data_grid(getattr(torch, case["dtype"]))
        exact = [values(case[name], case["seed"] + i, grid) for i, name in enumerate(self.tensors)]
        ours = [t.to(dtype) for t in exact]
        ours = [layout(t, case["layout"]) if t.dim() == 4 else t for t in ours]
        ours = [t.detach().requires_grad_() for t in ours]
        _C.set_cpu_isa(case["isa"])
        if not self.valid(case):
            with pytest.raises((RuntimeError, ValueError, TypeError), match=r"^cnnkern::"):
                self.call(case, *ours)
            return False
        shape = self.oracle(case, *exact).shape
        g = values(shape, case["seed"] + 9, grid)
        expected, expected_grads = reference.vjp(lambda *t: self.oracle(case, *t), exact, g)
        y = self.call(case, *ours)
        reduction = max(4, *(t.numel() for t in exact), y.numel())
        if self.exact:
            assert y.double().equal(expected), "output"
        else:
            assert_close(y, expected, dtype, reduction, self.roundings, terms=1)
        g = layout(g.to(dtype), case["grad_layout"])
        for name, actual, e in zip(
            self.tensors, torch.autograd.grad(y, ours, g), expected_grads, strict=True
        ):
            what = f"gradient of {name}"
            assert_close(actual, e, dtype, reduction, self.roundings, what=what, terms=1)
        return True


def ints(rng, low, high):
    return rng.randint(low, high), rng.randint(low, high)


def all_in(values, low, high=2**31 - 1) -> bool:
    return all(low <= v <= high for v in values)


class Conv2d(Family):
    tensors = ("input", "weight", "bias")
    breakable = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")

    def draw(self, rng):
        groups = rng.choice((1, 1, 1, 2, 3, 5))
        C, K = groups * rng.randint(1, 6), groups * rng.randint(1, 6)
        if rng.random() < 0.2:  # depthwise
            groups = C = K = rng.randint(1, 24)
        mode = rng.choice(("zeros", "zeros", "reflect", "replicate", "circular"))
        return {
            "input": (rng.randint(0, 3), C, *ints(rng, 1, 20)),
            "weight": (K, C // groups, *ints(rng, 1, 5)),
            "bias": (K,),
            "stride": ints(rng, 1, 4),
            "padding": (*ints(rng, 0, 6), *ints(rng, 0, 6)),
            "dilation": ints(rng, 1, 3),
            "groups": groups,
            "padding_mode": mode,
        }

    def valid(self, case):
        (_, C, H, W), (K, Cg, R, S) = case["input"], case["weight"]
        left, right, top, bottom = case["padding"]
        groups, mode = case["groups"], case["padding_mode"]
        if not (all_in(case["stride"] + case["dilation"] + (groups,), 1) and K and R and S and C):
            return False
        if not all_in(case["padding"], 0) or C % groups or K % groups or Cg != C // groups:
            return False
        if case["bias"] != (K,) or (mode != "zeros" and not (H and W)):
            return False
        if mode == "reflect" and (max(left, right) >= W or max(top, bottom) >= H):
            return False
        if mode == "circular" and (max(left, right) > W or max(top, bottom) > H):
            return False
        rows = H + top + bottom - case["dilation"][0] * (R - 1)
        columns = W + left + right - case["dilation"][1] * (S - 1)
        return rows >= 1 and columns >= 1

    def options(self, case):
        return (case[k] for k in ("stride", "padding", "dilation", "groups"))

    def call(self, case, x, w, b):
        return functional.conv2d(x, w, b, *self.options(case), padding_mode=case["padding_mode"])

    def oracle(self, case, x, w, b):
        return reference.conv2d(x, w, b, *self.options(case), case["padding_mode"])


class ConvTranspose2d(Family):
    tensors = ("input", "weight", "bias")
    breakable = (*Conv2d.breakable, "output_padding")

    def draw(self, rng):
        groups = rng.choice((1, 1, 2, 3))
        C, Kg = groups * rng.randint(1, 5), rng.randint(1, 5)
        stride, dilation = ints(rng, 1, 4), ints(rng, 1, 3)
        return {
            "input": (rng.randint(0, 2), C, *ints(rng, 1, 9)),
            "weight": (C, Kg, *ints(rng, 1, 4)),
            "bias": (Kg * groups,),
            "stride": stride,
            "padding": ints(rng, 0, 3),
            "output_padding": tuple(
                rng.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True)
            ),
            "groups": groups,
            "dilation": dilation,
        }

    def valid(self, case):
        (_, C, *size), (Cw, Kg, *kernel) = case["input"], case["weight"]
        stride, padding, extra, dilation = (
            case[k] for k in ("stride", "padding", "output_padding", "dilation")
        )
        groups = case["groups"]
        if not all_in(stride + dilation + (groups, C, Kg, *kernel, *size), 1) or Cw != C:
            return False
        if not all_in(padding + extra, 0) or C % groups or case["bias"] != (Kg * groups,):
            return False
        if any(extra[i] >= max(stride[i], dilation[i]) for i in range(2)):
            return False
        full = [
            (size[i] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 + extra[i] for i in (0, 1)
        ]
        return all(full[i] - 2 * padding[i] >= 1 for i in range(2)) and max(full) < 2**31

    def options(self, case):
        return (case[k] for k in ("stride", "padding", "output_padding", "groups", "dilation"))

    def call(self, case, x, w, b):
        return functional.conv_transpose2d(x, w, b, *self.options(case))

    def oracle(self, case, x, w, b):
        return reference.conv_transpose2d(x, w, b, *self.options(case))


class MaxPool2d(Family):
    breakable = ("input", "kernel_size", "stride", "padding", "dilation")
    exact = True
    dilated = True

    def draw(self, rng):
        kernel = ints(rng, 1, 5)
        return {
            "input": (rng.randint(0, 3), rng.randint(1, 20), *ints(rng, 1, 20)),
            "kernel_size": kernel,
            "stride": ints(rng, 1, 5),
            "padding": tuple(rng.randint(0, k // 2) for k in kernel),
            "dilation": ints(rng, 1, 3) if self.dilated else (1, 1),
            "ceil_mode": rng.random() < 0.4,
        }

    def valid(self, case):
        kernel, stride, padding, dilation = (
            case[k] for k in ("kernel_size", "stride", "padding", "dilation")
        )
        if not all_in(kernel + stride + dilation + case["input"][1:], 1):
            return False
        if any(p < 0 or 2 * p > k for p, k in zip(padding, kernel, strict=True)):
            return False
        room = [case["input"][2 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1
                for i in range(2)]  # fmt: skip
        return all(r + (s - 1 if case["ceil_mode"] else 0) >= 0
                   for r, s in zip(room, stride, strict=True))  # fmt: skip

    def options(self, case):
        return (case[k] for k in ("kernel_size", "stride", "padding", "dilation", "ceil_mode"))

    def call(self, case, x):
        return functional.max_pool2d(x, *self.options(case))

    def oracle(self, case, x):
        return reference.max_pool2d(x, *self.options(case))[0]


class AvgPool2d(MaxPool2d):
    breakable = ("input", "kernel_size", "stride", "padding", "divisor_override")
    exact = dilated = False

    def draw(self, rng):
        return super().draw(rng) | {
            "count_include_pad": rng.random() < 0.5,
            "divisor_override": rng.choice((None, None, 1, 3, -4)),
        }

    def valid(self, case):
        return case["divisor_override"] != 0 and super().valid(case)

    def options(self, case):
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
        return (case[k] for k in (*names, "divisor_override"))

    def call(self, case, x):
        return functional.avg_pool2d(x, *self.options(case))

    def oracle(self, case, x):
        return reference.avg_pool2d(x, *self.options(case))


class AdaptiveAvgPool2d(Family):
    breakable = ("input", "output_size")

    def draw(self, rng):
        return {
            "input": (rng.randint(0, 3), rng.randint(1, 20), *ints(rng, 1, 12)),
            "output_size": ints(rng, 1, 6),
        }

    def valid(self, case):
        return all_in(case["output_size"] + case["input"][1:], 1)

    def call(self, case, x):
        return functional.adaptive_avg_pool2d(x, case["output_size"])

    def oracle(self, case, x):
        return reference.adaptive_avg_pool2d(x, case["output_size"])


class AdaptiveMaxPool2d(AdaptiveAvgPool2d):
    exact = True

    def call(self, case, x):
        return functional.adaptive_max_pool2d(x, case["output_size"])

    def oracle(self, case, x):
        return reference.adaptive_max_pool2d(x, case["output_size"])[0]


class Block(Conv2d):
    """Without gelu, silu and max of sigmoids, for which rounding decides which is the largest."""

    breakable = (*Conv2d.breakable, "pool_kernel_size", "pool_stride", "pool_padding")
    roundings = 4
    pool = MaxPool2d()

    def draw(self, rng):
        case = super().draw(rng)
        pool = self.pool.draw(rng)
        kind = rng.choice(("none", "max", "avg"))
        return case | {
            "activation": rng.choice(("none", "relu")),
            "pool": kind,
            "pool_kernel_size": pool["kernel_size"],
            "pool_stride": pool["stride"],
            "pool_padding": pool["padding"],
            "pool_ceil_mode": pool["ceil_mode"],
            "count_include_pad": rng.random() < 0.5,
        }

    def pool_options(self, case):
        names = ("kernel_size", "stride", "padding", "ceil_mode")
        return {k: case[f"pool_{k}"] for k in names}

    def valid(self, case):
        if not super().valid(case):
            return False
        if case["pool"] == "none":  # then the window is not looked at, sane or not
            return True
        (N, _, H, W), (K, _, R, S) = case["input"], case["weight"]
        left, right, top, bottom = case["padding"]
        P = (H + top + bottom - case["dilation"][0] * (R - 1) - 1) // case["stride"][0] + 1
        Q = (W + left + right - case["dilation"][1] * (S - 1) - 1) // case["stride"][1] + 1
        pool = self.pool_options(case) | {"input": (N, K, P, Q), "dilation": (1, 1)}
        return self.pool.valid(pool)

    def act_pool(self, case):
        return {k: case[k] for k in ("activation", "pool", "count_include_pad")} | {
            f"pool_{k}": v for k, v in self.pool_options(case).items()
        }

    def call(self, case, x, w, b):
        return functional.conv2d_act_pool2d(
            x, w, b, *self.options(case), padding_mode=case["padding_mode"], **self.act_pool(case)
        )

    def oracle(self, case, x, w, b):
        return reference.conv2d_act_pool2d(
            x, w, b, *self.options(case), case["padding_mode"], **self.act_pool(case)
        )


CONV2D, CONV_TRANSPOSE2D, BLOCK = Conv2d(), ConvTranspose2d(), Block()
MAX_POOL2D, AVG_POOL2D = MaxPool2d(), AvgPool2d()
ADAPTIVE_AVG_POOL2D, ADAPTIVE_MAX_POOL2D = AdaptiveAvgPool2d(), AdaptiveMaxPool2d()
FAMILIES = [name for name, value in list(globals().items()) if isinstance(value, Family)]


@pytest.mark.sanitize
@pytest.mark.parametrize("name", FAMILIES)
def test_random_geometries(name):
    family, isa, valid = globals()[name], _C.cpu_isa(), 0
    try:
        for seed in range(CASES):
            case = family.case(seed)
            try:
                valid += family.run(case)
            except (Exception, pytest.fail.Exception) as error:
                raise AssertionError(f"test_fuzz.{name}.run({case!r})\n{error}") from error
    finally:
        _C.set_cpu_isa(isa)
    assert valid > CASES // 3  # most cases test values
    assert valid < CASES or CASES < 100  # and some test errors
