"""Moves, arithmetic, comparison and selection, instruction by instruction."""

from .parse import PtxError, vector_elements
from .ptx_types import C_TYPE, HALF, HALF2, RAW_TYPE, WIDTH

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


class Arithmetic:
    """The op_ methods of InstructionTranslator that work on registers alone."""

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
                i.operands[0], i.type, f"{i.name}<{C_TYPE[i.type]}>({values[0]},{values[1]})"
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
