"""PTX instructions -> C++ statements.

`InstructionTranslator.instruction` looks up a method `op_NAME` for the opcode's first part. The
methods get an `Instruction` and return C++ text; anything they cannot express raises PtxError and
fails when executed.
"""

import re
from dataclasses import dataclass

from .arithmetic import Arithmetic
from .collectives import Collectives
from .memory import Memory
from .parse import PtxError, vector_elements
from .ptx_types import C_TYPE, HALF, HALF2, WIDTH

NO_EFFECT = (
    "membar",
    "fence",
    "prefetch",
    "prefetchu",
    "discard",
    "applypriority",
    "griddepcontrol",
    "nanosleep",
    "pmevent",
    "brkpt",
    "setmaxnreg",
)

# Instruction classes of the profiler; the order is that of CLASS_NAMES in runtime/profile.cpp.
CLASSES = [
    "uncounted",
    "fp32",
    "fp64",
    "half",
    "integer",
    "convert",
    "special",
    "tensor",
    "global_load",
    "global_store",
    "shared_load",
    "shared_store",
    "async_copy",
    "local",
    "atomic",
    "warp",
    "barrier",
    "control",
    "other",
]


@dataclass
class Instruction:
    parts: list  # the opcode split at dots: ["ld", "global", "v4", "f32"]
    operands: list
    pc: int  # index into the location table

    def __post_init__(self):
        self.name = self.parts[0]
        self.type = next((p for p in reversed(self.parts) if p in WIDTH), None)
        self.types = [p for p in self.parts[1:] if p in WIDTH]

    def has(self, part):
        return part in self.parts[1:]

    @property
    def width(self):
        return WIDTH[self.type]

    @property
    def is_float(self):
        return self.type in ("f32", "f64")

    @property
    def is_half(self):
        return self.type in HALF + HALF2

    def first(self, candidates):
        return next(p for p in self.parts[1:] if p in candidates)


def classify(parts):
    """The profiler class of an opcode, as an index into CLASSES."""
    name, rest = parts[0], parts[1:]
    spaces = [p.split("::")[0] for p in rest]
    if name in ("mov", "cvta", "unsupported", "bra.uni") or "param" in spaces:
        return 0
    if name in ("ld", "ldu", "st"):
        load = name != "st"
        if "shared" in spaces:
            kind = "shared_load" if load else "shared_store"
        elif "local" in spaces or "const" in spaces:
            kind = "local"
        else:
            kind = "global_load" if load else "global_store"
    elif name == "ldmatrix":
        kind = "shared_load"
    elif name == "stmatrix":
        kind = "shared_store"
    elif name in ("mma", "wmma"):
        kind = (
            "tensor"
            if name == "mma" or rest[0] == "mma"
            else "global_load"
            if rest[0] == "load"
            else "global_store"
        )
    elif name == "cp":
        kind = "async_copy"
    elif name in ("atom", "red"):
        kind = "atomic"
    elif name in ("shfl", "vote", "match", "redux", "activemask", "elect") or (
        name == "bar" and rest[0] == "warp"
    ):
        kind = "warp"
    elif name in ("bar", "barrier", "mbarrier"):
        kind = "barrier"
    elif name in ("bra", "brx", "ret", "exit", "call", "trap"):
        kind = "control"
    elif name in ("ex2", "lg2", "sin", "cos", "tanh", "rcp", "sqrt", "rsqrt"):
        kind = "special"
    elif name == "cvt":
        kind = "convert"
    elif name in NO_EFFECT:
        kind = "other"
    elif any(t in rest for t in HALF + HALF2):
        kind = "half"
    elif "f32" in rest:
        kind = "fp32"
    elif "f64" in rest:
        kind = "fp64"
    else:
        kind = "integer"
    return CLASSES.index(kind)


def count_flops(parts):
    """Floating-point operations of one thread in one execution; 32 lanes share matrix work."""
    if parts[0] == "mma" or parts[:2] == ["wmma", "mma"]:
        shape = next(
            (
                re.fullmatch(r"m(\d+)n(\d+)k(\d+)", p)
                for p in parts
                if re.fullmatch(r"m\d+n\d+k\d+", p)
            ),
            None,
        )
        return 2 * int(shape[1]) * int(shape[2]) * int(shape[3]) // 32 if shape else 0
    per_lane = {"fma": 2, "mad": 2, "add": 1, "sub": 1, "mul": 1, "div": 1, "min": 1, "max": 1}.get(
        parts[0], 0
    )
    if any(p in HALF2 for p in parts):
        return 2 * per_lane
    return per_lane if any(p in ("f32", "f64", *HALF) for p in parts) else 0


class InstructionTranslator(Arithmetic, Memory, Collectives):
    """Mixed into Translator, which provides raw, value, assign, address and lookup."""

    def instruction(self, parts, operands, pc):
        i = Instruction(parts, operands, pc)
        if i.name in NO_EFFECT:
            return ";"
        method = getattr(self, "op_" + i.name, None)
        if method is None:
            raise PtxError("unknown opcode " + ".".join(parts))
        return method(i)

    # ------------------------------------------------------------ helpers
    def raws(self, operands, width):
        return [self.raw(o, width) for o in operands]

    def float_result(self, i, code):
        if i.has("sat"):
            code = f"saturate<{C_TYPE[i.type]}>({code})"
        if i.has("ftz") and i.type == "f32":
            code = f"flush({code})"
        return self.assign(i.operands[0], i.type, code)

    def half_operation(self, i, template, count):
        """Evaluates `template` in double for f16/bf16 scalars and pairs, rounding once."""
        is_f16 = i.type in ("f16", "f16x2")
        widen, narrow = ("f16_to_f32", "f64_to_f16") if is_f16 else ("bf16_to_f32", "f64_to_bf16")

        def lane(shift):
            width = 16 if i.type in HALF else 32
            inputs = [
                f"(f64){widen}((u16)({self.raw(o, width)}>>{shift}))"
                for o in i.operands[1 : count + 1]
            ]
            code = template.format(*inputs)
            if i.has("sat"):
                code = f"saturate<f64>({code})"
            if i.has("relu"):
                code = f"relu<f64>({code})"
            return f"{narrow}({code})"

        if i.type in HALF:
            return self.assign(i.operands[0], "b16", lane(0))
        return self.assign(i.operands[0], "b32", f"(u32){lane(0)}|(u32){lane(16)}<<16")

    def product(self, i):
        """The double-width integer product of operands 1 and 2, and its type."""
        wide = ("s" if i.type[0] == "s" else "u") + str(2 * i.width)
        return (
            f"(({wide}){self.value(i.operands[1], i.type)}"
            f"*({wide}){self.value(i.operands[2], i.type)})",
            wide,
        )

    def array(self, operand):
        elements = vector_elements(operand)
        return "{" + ",".join(self.raws(elements, 32)) + "}"

    def scatter(self, operand, array="d_"):
        return "".join(
            self.assign(x, "b32", f"{array}[{n}]") for n, x in enumerate(vector_elements(operand))
        )
