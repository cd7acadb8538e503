"""PTX instructions -> C++ statements.

`InstructionTranslator.instruction` looks up a method `op_NAME` for the opcode's first part. The
methods get an `Instruction` and return C++ text; anything they cannot express raises PtxError and
fails when executed.
"""

import re
from dataclasses import dataclass

from .parse import PtxError, vector_elements
from .ptx_types import C_TYPE, HALF, HALF2, RAW_TYPE, WIDTH, c_identifier

INFIX = {"add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^"}
COMPARE = {
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "lo": "<",
    "ls": "<=",
    "hi": ">",
    "hs": ">=",
}
UNORDERED = {"equ": "eq", "neu": "ne", "ltu": "lt", "leu": "le", "gtu": "gt", "geu": "ge"}
MATH = {
    "rcp": "1/({0})",
    "sqrt": "std::sqrt({0})",
    "rsqrt": "1/std::sqrt({0})",
    "ex2": "std::exp2({0})",
    "lg2": "std::log2({0})",
    "sin": "std::sin({0})",
    "cos": "std::cos({0})",
    "tanh": "std::tanh({0})",
}
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
MATRIX_TYPE = {
    "f16": "M_F16",
    "bf16": "M_BF16",
    "tf32": "M_TF32",
    "s8": "M_S8",
    "u8": "M_U8",
    "f32": "M_F32",
    "s32": "M_S32",
}

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


class InstructionTranslator:
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

    # ------------------------------------------------------------ moves, arithmetic
    def op_mov(self, i):
        destination, source = i.operands
        if destination.startswith("{"):
            parts = vector_elements(destination)
            width = i.width // len(parts)
            unpack = "".join(
                self.assign(x, f"b{width}", f"v_>>{n * width}")
                for n, x in enumerate(parts)
                if x != "_"
            )
            return f"{RAW_TYPE[i.width]} v_={self.raw(source, i.width)}; {unpack}"
        if source.startswith("{"):
            parts = vector_elements(source)
            width = i.width // len(parts)
            packed = "|".join(
                f"(({RAW_TYPE[i.width]}){self.raw(x, width)}<<{n * width})"
                for n, x in enumerate(parts)
            )
            return self.assign(destination, f"b{i.width}", packed)
        return self.assign(
            destination, "pred" if i.type == "pred" else f"b{i.width}", self.raw(source, i.width)
        )

    def op_add(self, i):
        if i.is_half:
            return self.half_operation(i, "{0}" + INFIX[i.name] + "{1}", 2)
        if i.has("cc"):
            raise PtxError("carry chains are not supported")
        sign = INFIX[i.name]
        if i.is_float:
            return self.float_result(
                i, f"{self.value(i.operands[1], i.type)}{sign}{self.value(i.operands[2], i.type)}"
            )
        if i.has("sat"):
            raise PtxError("saturating integer arithmetic is not supported")
        a, b = self.raws(i.operands[1:3], i.width)
        return self.assign(i.operands[0], i.type, f"({RAW_TYPE[i.width]})({a}{sign}{b})")

    op_sub = op_add

    def op_mul(self, i):
        if i.is_half:
            return self.half_operation(i, "{0}*{1}", 2)
        if i.is_float:
            return self.float_result(
                i, f"{self.value(i.operands[1], i.type)}*{self.value(i.operands[2], i.type)}"
            )
        product, wide = self.product(i)
        if i.has("lo"):
            return self.assign(i.operands[0], i.type, product)
        if i.has("hi"):
            return self.assign(i.operands[0], i.type, f"{product}>>{i.width}")
        return self.assign(i.operands[0], wide, product)

    def op_fma(self, i):
        if i.is_half:
            return self.half_operation(i, "std::fma({0},{1},{2})", 3)
        operands = ",".join(self.value(o, i.type) for o in i.operands[1:4])
        return self.float_result(i, f"{'fmaf' if i.type == 'f32' else 'fma'}({operands})")

    def op_mad(self, i):
        if i.is_float:
            return self.op_fma(i)
        if i.has("cc"):
            raise PtxError("carry chains are not supported")
        product, wide = self.product(i)
        if i.has("wide"):
            return self.assign(
                i.operands[0],
                wide,
                f"(u{2 * i.width}){product}+(u{2 * i.width}){self.raw(i.operands[3], 2 * i.width)}",
            )
        if i.has("hi"):
            product = f"({product}>>{i.width})"
        return self.assign(
            i.operands[0],
            i.type,
            f"({RAW_TYPE[i.width]}){product}+{self.raw(i.operands[3], i.width)}",
        )

    def op_mul24(self, i):
        raise PtxError("24-bit multiplication is not supported")

    op_mad24 = op_mul24

    def op_div(self, i):
        a, b = (self.value(o, i.type) for o in i.operands[1:3])
        if i.is_float:
            return self.float_result(i, f"{a}/{b}")
        return self.assign(i.operands[0], i.type, f"divide<{C_TYPE[i.type]}>({a},{b})")

    def op_rem(self, i):
        a, b = (self.value(o, i.type) for o in i.operands[1:3])
        return self.assign(i.operands[0], i.type, f"remainder_of<{C_TYPE[i.type]}>({a},{b})")

    def op_min(self, i):
        if i.has("xorsign"):
            raise PtxError("xorsign is not supported")
        function = f"f{i.name}_nan" if i.has("NaN") else f"f{i.name}_ptx"
        if i.is_half:
            return self.half_operation(i, f"{function}<f64>({{0}},{{1}})", 2)
        values = [self.value(o, i.type) for o in i.operands[1:]]
        if not i.is_float:
            return self.assign(
                i.operands[0], i.type, f"std::{i.name}<{C_TYPE[i.type]}>({values[0]},{values[1]})"
            )
        code = values[0]
        for other in values[1:]:
            code = f"{function}<{C_TYPE[i.type]}>({code},{other})"
        return self.float_result(i, code)

    op_max = op_min

    def op_neg(self, i):
        if i.is_half:
            signs = "0x8000u" if i.type in HALF else "0x80008000u"
            return self.assign(
                i.operands[0], f"b{i.width}", f"{self.raw(i.operands[1], i.width)}^{signs}"
            )
        if i.is_float:
            return self.float_result(i, "-" + self.value(i.operands[1], i.type))
        return self.assign(
            i.operands[0], i.type, f"({RAW_TYPE[i.width]})(0-{self.raw(i.operands[1], i.width)})"
        )

    def op_abs(self, i):
        if i.is_half:
            mask = "0x7fffu" if i.type in HALF else "0x7fff7fffu"
            return self.assign(
                i.operands[0], f"b{i.width}", f"{self.raw(i.operands[1], i.width)}&{mask}"
            )
        value = self.value(i.operands[1], i.type)
        if i.is_float:
            return self.float_result(i, f"std::fabs({value})")
        return self.assign(i.operands[0], i.type, f"({value}<0?0-{value}:{value})")

    def op_and(self, i):
        a, b = self.raws(i.operands[1:3], i.width)
        return self.assign(i.operands[0], i.type, f"{a}{INFIX[i.name]}{b}")

    op_or = op_xor = op_and

    def op_not(self, i):
        return self.assign(
            i.operands[0],
            i.type,
            ("!" if i.type == "pred" else "~") + self.raw(i.operands[1], i.width),
        )

    def op_cnot(self, i):
        return self.assign(i.operands[0], i.type, f"{self.raw(i.operands[1], i.width)}==0")

    def op_shl(self, i):
        return self.assign(
            i.operands[0],
            i.type,
            f"shift_left<{RAW_TYPE[i.width]}>"
            f"({self.raw(i.operands[1], i.width)},{self.raw(i.operands[2], 32)})",
        )

    def op_shr(self, i):
        return self.assign(
            i.operands[0],
            i.type,
            f"shift_right<{C_TYPE[i.type]}>"
            f"({self.value(i.operands[1], i.type)},{self.raw(i.operands[2], 32)})",
        )

    def op_shf(self, i):
        operands = ",".join(self.raws(i.operands[1:4], 32))
        return self.assign(
            i.operands[0], "b32", f"funnel_shift({int(i.has('l'))},{int(i.has('wrap'))},{operands})"
        )

    def op_bfe(self, i):
        function = "bfe_signed" if i.type[0] == "s" else "bfe_unsigned"
        operands = [self.raw(i.operands[1], i.width), *self.raws(i.operands[2:4], 32)]
        return self.assign(
            i.operands[0], f"b{i.width}", f"{function}<{RAW_TYPE[i.width]}>({','.join(operands)})"
        )

    def op_bfi(self, i):
        operands = self.raws(i.operands[1:3], i.width) + self.raws(i.operands[3:5], 32)
        return self.assign(i.operands[0], i.type, f"bfi<{RAW_TYPE[i.width]}>({','.join(operands)})")

    def op_brev(self, i):
        return self.assign(
            i.operands[0],
            i.type,
            f"bit_reverse<{RAW_TYPE[i.width]}>({self.raw(i.operands[1], i.width)})",
        )

    def op_popc(self, i):
        return self.assign(
            i.operands[0], "u32", f"__builtin_popcountll({self.raw(i.operands[1], i.width)})"
        )

    def op_clz(self, i):
        return self.assign(
            i.operands[0], "u32", f"leading_zeros({self.raw(i.operands[1], i.width)},{i.width})"
        )

    def op_bfind(self, i):
        raw = RAW_TYPE[i.width]
        value = self.value(i.operands[1], i.type)
        magnitude = f"({raw})({value}<0?~{value}:{value})" if i.type[0] == "s" else value
        return self.assign(
            i.operands[0], "u32", f"find_leading({magnitude},{i.width},{int(i.has('shiftamt'))})"
        )

    def op_prmt(self, i):
        if i.parts[1:] != ["b32"]:
            raise PtxError("prmt modes are not supported")
        return self.assign(
            i.operands[0], "b32", f"prmt({','.join(self.raws(i.operands[1:4], 32))})"
        )

    def op_lop3(self, i):
        if "|" in i.operands[0]:
            raise PtxError("lop3 with a predicate is not supported")
        return self.assign(
            i.operands[0], "b32", f"lop3({','.join(self.raws(i.operands[1:5], 32))})"
        )

    def op_sad(self, i):
        a, b, c = (self.value(o, i.type) for o in i.operands[1:4])
        return self.assign(i.operands[0], i.type, f"{c}+({a}<{b}?{b}-{a}:{a}-{b})")

    def op_dp4a(self, i):
        a, b, c = self.raws(i.operands[1:4], 32)
        signs = f"{int(i.parts[-2] == 's32')},{int(i.parts[-1] == 's32')}"
        return self.assign(i.operands[0], "b32", f"(u32)dp4a({a},{b},(s32){c},{signs})")

    def op_copysign(self, i):
        sign, magnitude = (self.value(o, i.type) for o in i.operands[1:3])
        return self.assign(i.operands[0], i.type, f"std::copysign({magnitude},{sign})")

    def _math(self, i):
        if i.is_half:
            return self.half_operation(i, MATH[i.name], 1)
        return self.float_result(
            i, f"({C_TYPE[i.type]})({MATH[i.name].format(self.value(i.operands[1], i.type))})"
        )

    op_rcp = op_sqrt = op_rsqrt = op_ex2 = op_lg2 = op_sin = op_cos = op_tanh = _math

    # ------------------------------------------------------------ comparison and selection
    def op_selp(self, i):
        a, b = self.raws(i.operands[1:3], i.width)
        return self.assign(i.operands[0], f"b{i.width}", f"{self.raw(i.operands[3], 1)}?{a}:{b}")

    def op_slct(self, i):
        width = WIDTH[i.types[0]]
        a, b = self.raws(i.operands[1:3], width)
        return self.assign(
            i.operands[0], f"b{width}", f"{self.value(i.operands[3], i.type)}>=0?{a}:{b}"
        )

    @staticmethod
    def comparison(operator, is_float, a="a_", b="b_"):
        unordered = f"({a}!={a}||{b}!={b})"
        if operator == "num":
            return "!" + unordered
        if operator == "nan":
            return unordered
        if operator in UNORDERED:
            return f"({unordered}||{a}{COMPARE[UNORDERED[operator]]}{b})"
        if operator == "ne" and is_float:
            return f"({a}<{b}||{a}>{b})"
        return f"({a}{COMPARE[operator]}{b})"

    def compare(self, i):
        """C++ declaring c_ (and c2_ for the upper half of a pair) as results of a comparison."""
        compare_type = i.type
        if compare_type in HALF + HALF2:
            widen = "f16_to_f32" if "bf" not in compare_type else "bf16_to_f32"
            code = ""
            for suffix, shift in (("", 0), ("2", 16))[: 1 if compare_type in HALF else 2]:
                a, b = (
                    f"{widen}((u16)({self.raw(o, WIDTH[compare_type])}>>{shift}))"
                    for o in i.operands[1:3]
                )
                test = self.comparison(i.parts[1], True, f"a{suffix}_", f"b{suffix}_")
                code += f"f32 a{suffix}_={a},b{suffix}_={b}; bool c{suffix}_={test}; "
            return code
        a, b = (self.value(o, compare_type) for o in i.operands[1:3])
        return f"auto a_={a}; auto b_={b}; bool c_={self.comparison(i.parts[1], i.is_float)}; "

    def op_setp(self, i):
        boolean = next((p for p in i.parts[2:] if p in ("and", "or", "xor")), None)
        code = self.compare(i)
        second = "c2_" if i.type in HALF2 else "!c_"
        results = ["c_", second]
        if boolean:
            operator = {"and": "&&", "or": "||", "xor": "!="}[boolean]
            results = [f"({r}{operator}{self.raw(i.operands[3], 1)})" for r in results]
        destinations = [d.strip() for d in i.operands[0].split("|")]
        code += f"bool x_={results[0]},y_={results[1]}; (void)y_; "
        for destination, result in zip(destinations, ("x_", "y_"), strict=False):
            if destination != "_":
                code += self.assign(destination, "pred", result)
        return code

    def op_set(self, i):
        result_type = i.types[0]
        boolean = next((p for p in i.parts[2:] if p in ("and", "or", "xor")), None)
        code = self.compare(i)
        if boolean:
            operator = {"and": "&&", "or": "||", "xor": "!="}[boolean]
            code += f"c_=c_{operator}{self.raw(i.operands[3], 1)}; "
        true = {
            "f32": "bits(1.0f)",
            "f16": "0x3c00u",
            "f16x2": "0x3c00u",
            "bf16": "0x3f80u",
            "bf16x2": "0x3f80u",
        }.get(result_type, "0xffffffffu")
        if i.type in HALF2:
            true = true if result_type in HALF2 else "0xffffu"
            return code + self.assign(i.operands[0], "b32", f"(c_?{true}:0u)|(c2_?{true}:0u)<<16")
        return code + self.assign(i.operands[0], f"b{WIDTH[result_type]}", f"c_?{true}:0u")

    def op_testp(self, i):
        test = {
            "finite": "std::isfinite({0})",
            "infinite": "std::isinf({0})",
            "number": "!std::isnan({0})",
            "notanumber": "std::isnan({0})",
            "normal": "std::isnormal({0})",
            "subnormal": "(std::fpclassify({0})==FP_SUBNORMAL)",
        }[i.parts[1]]
        return self.assign(i.operands[0], "pred", test.format(self.value(i.operands[1], i.type)))

    # ------------------------------------------------------------ conversion
    def op_cvt(self, i):
        if any("e4m3" in p or "e5m2" in p or "ue8m0" in p for p in i.parts):
            raise PtxError("fp8 conversion is not supported")
        if i.has("pack"):
            return self.convert_pack(i)
        if i.types[0] in HALF2:
            narrow = {"f16x2": "f32_to_f16", "bf16x2": "f32_to_bf16"}[i.types[0]] + (
                "_rz" if i.has("rz") else ""
            )
            high, low = (self.value(o, "f32") for o in i.operands[1:3])
            if i.has("relu"):
                high, low = f"relu<f32>({high})", f"relu<f32>({low})"
            return self.assign(
                i.operands[0], "b32", f"(u32){narrow}({high})<<16|(u32){narrow}({low})"
            )
        if i.types[-1] in ("f32", "f64", *HALF):
            return self.convert_from_float(i, i.types[0], i.types[-1])
        return self.convert_from_integer(i, i.types[0], i.types[-1])

    def convert_from_float(self, i, target, source):
        operand = i.operands[1]
        if source in HALF:
            code = f"{'f16' if source == 'f16' else 'bf16'}_to_f32({self.raw(operand, 16)})"
        else:
            code = self.value(operand, source)
        rounding = next((p for p in i.parts if p in ("rni", "rzi", "rmi", "rpi")), None)
        function = {"rni": "nearbyint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}.get(rounding)
        if target not in ("f32", "f64", "tf32", *HALF):
            return self.assign(
                i.operands[0],
                target,
                f"to_int<{C_TYPE[target]}>(std::{function or 'trunc'}({code}))",
            )
        if function:
            code = f"std::{function}({code})"
        if i.has("sat"):
            code = f"saturate({code})"
        if i.has("relu"):
            code = f"relu<f32>({code})"
        if target == "tf32":
            return self.assign(
                i.operands[0], "b32", f"f32_to_tf32_{'rna' if i.has('rna') else 'rn'}({code})"
            )
        if target in HALF:
            if source == "f64":
                code = f"f64_to_{target}({code})"
            else:
                code = f"f32_to_{target}{'_rz' if i.has('rz') else ''}({code})"
            return self.assign(i.operands[0], "b16", code)
        if i.has("ftz") and target == "f32":
            code = f"flush({code})"
        return self.assign(i.operands[0], target, code)

    def convert_from_integer(self, i, target, source):
        code = self.value(i.operands[1], source)
        if target in ("f32", "f64"):
            return self.assign(i.operands[0], target, f"({C_TYPE[target]})({code})")
        if target in HALF:
            return self.assign(i.operands[0], "b16", f"f64_to_{target}((f64)({code}))")
        if i.has("sat"):
            code = self.clamp(code, target)
        return self.assign(i.operands[0], target, f"({C_TYPE[target]})({code})")

    @staticmethod
    def clamp(code, type_):
        bits = WIDTH[type_]
        low, high = (
            (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if type_[0] == "s" else (0, 2**bits - 1)
        )
        return f"std::min<s64>(std::max<s64>((s64)({code}),{low}ll),{high}ll)"

    def convert_pack(self, i):
        """cvt.pack.sat.TYPE.s32[.b32] d, a, b[, c]: a and b clamped, c shifted up above them."""
        target = i.types[0]
        bits = WIDTH[target]
        a, b = (
            f"(({RAW_TYPE[bits]}){self.clamp(self.value(o, 's32'), target)})"
            for o in i.operands[1:3]
        )
        code = f"(u32){a}<<{bits}|(u32){b}"
        if len(i.operands) > 3:
            code += f"|{self.raw(i.operands[3], 32)}<<{2 * bits}"
        return self.assign(i.operands[0], "b32", code)

    def op_cvta(self, i):
        operand = i.operands[1]
        code = self.raw(operand, i.width)
        if i.has("shared"):
            sign = "-" if i.has("to") else "+"
            code = (
                f"(u64)({code}){sign}(u64)t.block->shared"
                if i.has("to")
                else f"(u64)t.block->shared+(u64)({code})"
            )
        return self.assign(i.operands[0], i.type, code)

    def op_isspacep(self, i):
        code = f"in_shared(t,{self.raw(i.operands[1], 64)})"
        if not any(p.startswith("shared") for p in i.parts):
            if not i.has("global"):
                raise PtxError("isspacep for this space is not supported")
            code = "!" + code
        return self.assign(i.operands[0], "pred", code)

    # ------------------------------------------------------------ memory
    def memory_access(self, i, operand, size, access, data="nullptr"):
        """-> (declarations of a_, code checking the access, pointer expression)"""
        flags = [p.split("::")[0] for p in i.parts[1:]]
        space = next(
            (f for f in flags if f in ("global", "shared", "local", "param", "const")), None
        )
        address = self.address(operand)
        if address.space == "shared" and space is None:
            space = "shared"
        if address.space in ("param", "local"):
            space = address.space
        arguments = f"a_,{size},{i.pc},{access}"
        if space == "shared":
            check = f"check_shared(t,{arguments},{data});PROFILE_MEMORY({i.pc},a_,{size},true);"
            return f"u32 a_=(u32){address.code};", check, "(t.block->shared+a_)"
        declaration = f"u64 a_={address.code};"
        if space in ("param", "local", "const"):
            return declaration, "", "((u8*)a_)"
        if space == "global":
            return (
                declaration,
                f"check_global(t,{arguments});PROFILE_MEMORY({i.pc},a_,{size},false);",
                "((u8*)a_)",
            )
        return (
            declaration,
            f"check_generic(t,{arguments},{data});PROFILE_MEMORY({i.pc},a_,{size},in_shared(t,a_));",
            "((u8*)a_)",
        )

    def vector_length(self, i):
        return next((int(p[1:]) for p in i.parts[1:] if p in ("v2", "v4", "v8")), 1)

    def op_ld(self, i):
        destination, source = i.operands[:2]
        size = i.width // 8
        declare, check, pointer = self.memory_access(
            i, source, size * self.vector_length(i), "READ"
        )
        type_ = i.type if i.type[0] == "s" else f"b{i.width}"
        # All elements are read before a register is written: it may be part of the address.
        elements = vector_elements(destination)
        raw = RAW_TYPE[i.width]
        reads = "".join(
            f"{raw} v{n}_=load_as<{raw}>({pointer}+{n * size});" for n in range(len(elements))
        )
        writes = "".join(
            self.assign(x, type_, f"v{n}_") for n, x in enumerate(elements) if x != "_"
        )
        return declare + check + reads + writes

    op_ldu = op_ld

    def op_st(self, i):
        elements = vector_elements(i.operands[1])
        raw = RAW_TYPE[i.width]
        size = len(elements) * i.width // 8
        declare, check, pointer = self.memory_access(i, i.operands[0], size, "WRITE", "v_")
        values = ",".join(self.raws(elements, i.width))
        return f"{raw} v_[]={{{values}}};{declare}{check}memcpy({pointer},v_,{size});"

    def op_atom(self, i):
        is_atom = i.name == "atom"
        destination = i.operands[0] if is_atom else "_"
        address, *sources = i.operands[1:] if is_atom else i.operands
        operation = i.first(("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"))
        values = vector_elements(sources[0])
        results = vector_elements(destination) if destination != "_" else ["_"] * len(values)
        size = i.width // 8
        if not any(p.startswith("shared") for p in i.parts):
            self.atomic_functions.add(self.function)
        declare, check, pointer = self.memory_access(i, address, size * len(values), "ATOMIC")
        raw = RAW_TYPE[i.width]
        code = declare + check
        for n, (value, result) in enumerate(zip(values, results, strict=False)):
            swap = self.raw(sources[1], i.width) if operation == "cas" else "0"
            code += (
                f"{{{raw} x_=load_as<{raw}>({pointer}+{n * size}),b_={self.raw(value, i.width)};"
                f"store_as<{raw}>({pointer}+{n * size},"
                f"({raw})({self.atomic_result(i.type, operation, swap)}));"
                + (self.assign(result, f"b{i.width}", "x_") if result != "_" else "")
                + "}"
            )
        return code

    op_red = op_atom

    @staticmethod
    def atomic_result(type_, operation, swap):
        """What an atomic stores, given the old value x_ and its operand b_ as raw bits."""
        simple = {
            "exch": "b_",
            "cas": f"x_==b_?{swap}:x_",
            "inc": "x_>=b_?0:x_+1",
            "dec": "(x_==0||x_>b_)?b_:x_-1",
            "and": "x_&b_",
            "or": "x_|b_",
            "xor": "x_^b_",
        }
        if operation in simple:
            return simple[operation]
        if type_ in HALF + HALF2:
            kind = "bf16" if type_.startswith("bf16") else "f16"

            def lane(shift):
                x, b = (f"{kind}_to_f32((u16)({v}>>{shift}))" for v in ("x_", "b_"))
                combined = f"{x}+{b}" if operation == "add" else f"f{operation}_ptx<f32>({x},{b})"
                return f"(u32)f64_to_{kind}((f64)({combined}))"

            return lane(0) if type_ in HALF else f"{lane(0)}|{lane(16)}<<16"
        if type_ in ("f32", "f64"):
            x, b = f"as_{type_}(x_)", f"as_{type_}(b_)"
            return (
                f"bits({x}+{b})"
                if operation == "add"
                else f"bits(f{operation}_ptx<{type_}>({x},{b}))"
            )
        if operation == "add":
            return "x_+b_"
        return f"std::{operation}<{C_TYPE[type_]}>(({C_TYPE[type_]})x_,({C_TYPE[type_]})b_)"

    def op_cp(self, i):
        if i.parts[1] != "async" or i.has("bulk") or i.has("mbarrier"):
            raise PtxError("only plain cp.async is supported")
        if i.has("commit_group"):
            return "async_commit(t);"
        if i.has("wait_group"):
            return f"async_wait(t,{self.raw(i.operands[0], 32)});"
        if i.has("wait_all"):
            return "async_wait_all(t);"
        destination, source = (self.address(o) for o in i.operands[:2])
        size = self.immediate(i.operands[2])[1]
        rest = i.operands[3:]
        if "cache_hint" in ".".join(i.parts):
            rest = rest[:-1]  # the cache policy
        copied = f"{size}u"
        if rest:
            symbol = self.lookup(rest[0].lstrip("!"))
            is_predicate = symbol is not None and symbol.kind == "reg" and symbol.width == 1
            copied = (
                f"({self.raw(rest[0], 1)}?0u:{size}u)" if is_predicate else self.raw(rest[0], 32)
            )
        return (
            f"u32 n_={copied};u64 s_={source.code};if(n_)PROFILE_MEMORY({i.pc},s_,n_,false);"
            f"async_copy(t,{i.pc},(u32){destination.code},s_,{size}u,n_);"
        )

    def op_createpolicy(self, i):
        return self.assign(i.operands[0], "b64", "0")

    # ------------------------------------------------------------ control flow
    def op_bra(self, i):
        return f"goto L_{c_identifier(i.operands[0])};"

    def op_brx(self, i):
        targets = self.branch_tables[i.operands[1]]
        cases = "".join(
            f"case {n}: goto L_{c_identifier(target)};" for n, target in enumerate(targets)
        )
        otherwise = f'default: kernel_fail(t,{i.pc},"branch index out of range");'
        return f"switch({self.raw(i.operands[0], 32)}) {{{cases} {otherwise}}}"

    def op_ret(self, i):
        return "return;"

    def op_exit(self, i):
        return "thread_exit(t);"

    def op_trap(self, i):
        return f'kernel_fail(t,{i.pc},"trap");'

    def op_call(self, i):
        operands = list(i.operands)
        results = (
            vector_elements("{" + operands.pop(0)[1:-1] + "}")
            if operands[0].startswith("(")
            else []
        )
        name = operands[0]
        arguments = (
            vector_elements("{" + operands[1][1:-1] + "}")
            if len(operands) > 1 and operands[1].strip("() ")
            else []
        )
        pointers = [f"((u8*)({self.lookup(x).code}))" for x in results + arguments]
        if name == "vprintf":
            text, values = pointers[1:3]
            return f"device_printf(load_as<const char*>({text}),load_as<const u8*>({values}));"
        if name == "__assertfail":
            message, file, line = pointers[-5:-2]
            texts = f"load_as<const char*>({message}),load_as<const char*>({file})"
            return f"device_assert(t,{i.pc},{texts},load_as<u32>({line}));"
        if name not in self.functions:
            raise PtxError("call of " + name)
        return f"function_{c_identifier(name)}({','.join(['t', *pointers])});"

    # ------------------------------------------------------------ barriers and warp collectives
    def op_bar(self, i):
        if i.has("warp"):
            return f"warp_barrier(t,{i.pc},{self.raw(i.operands[0], 32)});"
        if i.has("cluster"):
            raise PtxError("clusters are not supported")
        aligned = int(i.name == "bar" or i.has("aligned"))
        if i.has("sync"):
            count = self.raw(i.operands[1], 32) if len(i.operands) > 1 else "0"
            return f"barrier_sync(t,{i.pc},{self.raw(i.operands[0], 32)},{count},{aligned});"
        if i.has("arrive"):
            return f"barrier_arrive(t,{i.pc},{','.join(self.raws(i.operands[:2], 32))});"
        operation = i.first(("popc", "and", "or"))
        count = self.raw(i.operands[2], 32) if len(i.operands) > 3 else "0"
        return self.assign(
            i.operands[0],
            "u32" if operation == "popc" else "pred",
            f"barrier_reduce(t,{i.pc},{self.raw(i.operands[1], 32)},{count},"
            f"BARRIER_{operation.upper()},{self.raw(i.operands[-1], 1)})",
        )

    op_barrier = op_bar

    def op_mbarrier(self, i):
        kind = i.parts[1]
        operand = next(o for o in i.operands if o.startswith("["))
        offset = f"(u32){self.address(operand).code}"
        if not any(p.startswith("shared") for p in i.parts):
            offset = f"(u32)({self.address(operand).code}-(u64)t.block->shared)"
        rest = i.operands[i.operands.index(operand) + 1 :]
        if kind == "init":
            return f"mbarrier_init(t,{i.pc},{offset},{self.raw(rest[0], 32)});"
        if kind == "inval":
            return ";"
        if kind == "arrive" and not any(p in i.parts for p in ("noComplete", "expect_tx")):
            count = self.raw(rest[0], 32) if rest else "1u"
            return self.assign(i.operands[0], "b64", f"mbarrier_arrive(t,{i.pc},{offset},{count})")
        if kind in ("test_wait", "try_wait"):
            return self.assign(
                i.operands[0],
                "pred",
                f"mbarrier_test(t,{i.pc},{offset},"
                f"(u32){self.raw(rest[0], 32 if i.has('parity') else 64)})",
            )
        raise PtxError("this mbarrier operation is not supported")

    def op_activemask(self, i):
        return self.assign(i.operands[0], "b32", "active_lanes(t)")

    def op_shfl(self, i):
        if not i.has("sync"):
            raise PtxError("shfl without .sync")
        mode = i.first(("up", "down", "bfly", "idx")).upper()
        destinations = [d.strip() for d in i.operands[0].split("|")]
        value, lane, clamp, mask = self.raws(i.operands[1:5], 32)
        code = (
            f"bool p_; u32 r_=shuffle(t,{i.pc},SHUFFLE_{mode},{value},{lane},{clamp},{mask},&p_); "
        )
        code += self.assign(destinations[0], "b32", "r_")
        return code + (self.assign(destinations[1], "pred", "p_") if len(destinations) > 1 else "")

    def op_vote(self, i):
        mode = i.first(("ballot", "all", "any", "uni"))
        return self.assign(
            i.operands[0],
            "b32" if mode == "ballot" else "pred",
            f"vote(t,{i.pc},VOTE_{mode.upper()},"
            f"{self.raw(i.operands[1], 1)},{self.raw(i.operands[2], 32)})",
        )

    def op_match(self, i):
        value, mask = self.raw(i.operands[1], i.width), self.raw(i.operands[2], 32)
        if i.has("any"):
            return self.assign(i.operands[0], "b32", f"match_any(t,{i.pc},{value},{mask})")
        destinations = [d.strip() for d in i.operands[0].split("|")]
        code = f"bool p_; u32 r_=match_all(t,{i.pc},{value},{mask},&p_);" + self.assign(
            destinations[0], "b32", "r_"
        )
        return code + (self.assign(destinations[1], "pred", "p_") if len(destinations) > 1 else "")

    def op_redux(self, i):
        operation = i.first(("add", "min", "max", "and", "or", "xor"))
        suffix = ("_S" if i.type == "s32" else "_U") if operation in ("min", "max") else ""
        return self.assign(
            i.operands[0],
            "b32",
            f"warp_reduce(t,{i.pc},REDUX_{operation.upper()}{suffix},"
            f"{','.join(self.raws(i.operands[1:3], 32))})",
        )

    # ------------------------------------------------------------ matrix instructions
    def shared_offset_of(self, i, operand):
        code = self.address(operand).code
        return (
            f"(u32){code}"
            if any(p.startswith("shared") for p in i.parts)
            else f"(u32)({code}-(u64)t.block->shared)"
        )

    def op_ldmatrix(self, i):
        if not i.has("b16") or not i.has("m8n8"):
            raise PtxError("only m8n8 b16 matrices are supported")
        registers, memory = i.operands if i.name == "ldmatrix" else reversed(i.operands)
        count, transpose = int(i.first(("x1", "x2", "x4"))[1]), int(i.has("trans"))
        arguments = f"t,{i.pc},{count},{transpose},{self.shared_offset_of(i, memory)}"
        if i.name == "ldmatrix":
            return f"u32 d_[4]; ldmatrix({arguments},d_); {self.scatter(registers)}"
        return f"u32 s_[4]={self.array(registers)}; stmatrix({arguments},s_);"

    op_stmatrix = op_ldmatrix

    def matrix_shape(self, i):
        match = next(m for m in (re.fullmatch(r"m(\d+)n(\d+)k(\d+)", p) for p in i.parts) if m)
        return tuple(int(x) for x in match.groups())

    def op_mma(self, i):
        m, n, k = self.matrix_shape(i)
        _, a_type, b_type, accumulator = i.types
        if (m, n, k) == (8, 8, 4) and set(i.types) == {"f64"}:
            return self.mma_f64(i)
        if (
            (m, n) != (16, 8)
            or not (i.has("row") and i.has("col"))
            or i.has("sp")
            or accumulator not in ("f32", "f16", "s32")
        ):
            raise PtxError("this mma shape is not supported")
        destination, a, b, c = i.operands
        types = f"{MATRIX_TYPE[a_type]},{MATRIX_TYPE[b_type]},{MATRIX_TYPE[accumulator]}"
        return (
            f"u32 a_[]={self.array(a)},b_[]={self.array(b)},c_[]={self.array(c)},d_[4]; "
            f"mma_sync(t,{i.pc},{m},{n},{k},{types},a_,b_,c_,d_); {self.scatter(destination)}"
        )

    def mma_f64(self, i):
        destination, *sources = i.operands
        a, b, c, d = ([x.strip() for x in vector_elements(o)] for o in (*sources, destination))
        values = ",".join(self.raws(a + b + c, 64))
        results = "".join(self.assign(x, "b64", f"d_[{n}]") for n, x in enumerate(d))
        return f"u64 s_[]={{{values}}},d_[2]; mma_f64(t,{i.pc},s_,d_); {results}"

    def op_wmma(self, i):
        m, n, k = self.matrix_shape(i)
        if i.parts[1] == "mma":
            destination, a, b, c = i.operands
            inputs, c_type, d_type = (
                ("f16", i.types[1], i.types[0])
                if len(i.types) == 2
                else (i.types[1], i.types[3], i.types[0])
            )
            types = ",".join(MATRIX_TYPE[x] for x in (inputs, c_type, d_type))
            return (
                f"u32 a_[]={self.array(a)},b_[]={self.array(b)},c_[]={self.array(c)},d_[8]; "
                f"wmma_mma(t,{i.pc},{m},{n},{k},{types},a_,b_,c_,d_); {self.scatter(destination)}"
            )
        if i.type not in ("f16", "bf16", "tf32", "f32"):
            raise PtxError("this wmma type is not supported")
        rows, columns = {"a": (m, k), "b": (k, n)}.get(i.parts[2], (m, n))
        column_major = int(i.has("col"))
        load = i.parts[1] == "load"
        registers, memory = i.operands[:2] if load else i.operands[1::-1]
        address = self.address(memory).code
        if any(p.startswith("shared") for p in i.parts):
            address = f"((u64)t.block->shared+{address})"
        stride = (
            self.raw(i.operands[2], 32)
            if len(i.operands) > 2
            else f"{rows if column_major else columns}u"
        )
        common = (
            f"t,{i.pc},{address},{stride},WmmaTile{{{rows},{columns},{i.width},{column_major}}}"
        )
        if load:
            count = len(vector_elements(registers))
            return f"u32 d_[8]; wmma_load({common},d_,{count}); {self.scatter(registers)}"
        return f"u32 s_[]={self.array(registers)}; wmma_store({common},s_);"
