"""Operands of PTX instructions as C++ expressions: registers, immediates, symbols, addresses."""

import re
from dataclasses import dataclass

from .parse import PtxError
from .ptx_types import C_TYPE, RAW_TYPE, WIDTH, c_identifier

SPECIAL_REGISTERS = {
    "%tid.x": "t.tx",
    "%tid.y": "t.ty",
    "%tid.z": "t.tz",
    "%ntid.x": "t.block->nx",
    "%ntid.y": "t.block->ny",
    "%ntid.z": "t.block->nz",
    "%ctaid.x": "t.block->bx",
    "%ctaid.y": "t.block->by",
    "%ctaid.z": "t.block->bz",
    "%nctaid.x": "t.block->gx",
    "%nctaid.y": "t.block->gy",
    "%nctaid.z": "t.block->gz",
    "%laneid": "t.lane",
    "%warpid": "t.warp",
    "%nwarpid": "t.block->warps",
    "WARP_SZ": "32u",
    "%smid": "0u",
    "%nsmid": "108u",
    "%gridid": "0ull",
    "%clock": "0u",
    "%clock64": "0ull",
    "%globaltimer": "0ull",
    "%dynamic_smem_size": "t.block->dynamic_size",
    "%total_smem_size": "t.block->shared_size",
    "%lanemask_eq": "(1u<<t.lane)",
    "%lanemask_lt": "((1u<<t.lane)-1)",
    "%lanemask_le": "((2u<<t.lane)-1)",
    "%lanemask_gt": "(~((2u<<t.lane)-1))",
    "%lanemask_ge": "(~((1u<<t.lane)-1))",
    "%is_explicit_cluster": "0u",
    "%cluster_ctarank": "0u",
    "%cluster_nctarank": "1u",
}


@dataclass
class Symbol:
    kind: str  # reg, range (%r<100>), shared, global, param or local
    code: str  # C++ expression: the register, or the address (for shared: the offset)
    width: int = 64


@dataclass
class Address:
    space: str  # "register", or the space of the symbol it names
    code: str  # u64 expression


class Operands:
    """Mixed into Translator, whose scopes say what a name means."""

    # ------------------------------------------------------------ symbols and operands
    def lookup(self, name):
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        match = re.fullmatch(r"(.*?)(\d+)", name)
        if match:
            for scope in reversed(self.scopes):
                declared = scope.get(match[1] + "<")
                if declared:
                    symbol = Symbol("reg", f"{c_identifier(name)}_{declared.code}", declared.width)
                    self.declared[symbol.code] = symbol.width
                    scope[name] = symbol
                    return symbol
        return None

    @staticmethod
    def immediate(operand):
        """-> ("f32" | "f64" | "int", bits) or None"""
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", operand):
            return "f32", int(operand[2:], 16)
        if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", operand):
            return "f64", int(operand[2:], 16)
        match = re.fullmatch(r"(-?)(0[xX][0-9a-fA-F]+|\d+)U?", operand)
        if match:
            value = int(match[2], 8) if re.fullmatch(r"0\d+", match[2]) else int(match[2], 0)
            return "int", -value if match[1] else value
        return None

    def raw(self, operand, width):
        """A C++ expression for the operand's bits, as an unsigned integer of this width."""
        if operand in SPECIAL_REGISTERS:
            return f"({RAW_TYPE[width]})({SPECIAL_REGISTERS[operand]})"
        immediate = self.immediate(operand)
        if immediate:
            _, value = immediate
            if width == 1:
                return str(int(value != 0))
            if width == 128:
                return f"(u128)(s128){value}"
            return f"({RAW_TYPE[width]})0x{value & ((1 << width) - 1):x}ull"
        negated = operand.startswith("!")
        symbol = self.lookup(operand.lstrip("!"))
        if symbol is None:
            raise PtxError("unknown operand " + operand)
        if symbol.kind == "reg":
            code = symbol.code if symbol.width == width else f"({RAW_TYPE[width]}){symbol.code}"
            return f"(!{code})" if negated else code
        return f"({RAW_TYPE[width]})(u64)({symbol.code})"

    def value(self, operand, type_):
        """A C++ expression for the operand's value, typed: f32, f64, signed or unsigned."""
        if operand.startswith("-") and not self.immediate(operand):
            return f"(-{self.value(operand[1:], type_)})"
        code = self.raw(operand, WIDTH[type_])
        if type_ == "f32":
            return f"as_f32({code})"
        if type_ == "f64":
            return f"as_f64({code})"
        return f"({C_TYPE[type_]}){code}" if type_[0] == "s" else code

    def assign(self, operand, type_, code):
        """A C++ statement storing a value of this type; signed values are extended."""
        if operand == "_":
            return f"(void)({code});"
        symbol = self.lookup(operand)
        if symbol is None or symbol.kind != "reg":
            raise PtxError("bad destination " + operand)
        if type_ in ("f32", "f64"):
            code = f"bits(({C_TYPE[type_]})({code}))"
        elif type_ == "pred":
            code = f"(bool)({code})"
        elif type_[0] == "s":
            code = f"({RAW_TYPE[symbol.width]})(s64)({C_TYPE[type_]})({code})"
        else:
            code = f"({C_TYPE.get(type_, 'u64')})({code})"
        return f"{symbol.code}=({RAW_TYPE[symbol.width]})({code});"

    def address(self, operand):
        """`[base+offset]` -> Address"""
        match = re.fullmatch(r"\[\s*(.+?)\s*(?:([+-])\s*(-?(?:0x[0-9a-fA-F]+|\d+)))?\s*\]", operand)
        if not match:
            raise PtxError("bad address " + operand)
        base, sign, offset = match.groups()
        offset = int(offset or "0", 0) * (-1 if sign == "-" else 1)
        immediate = self.immediate(base)
        if immediate:
            return Address("immediate", f"((u64){immediate[1]}ull+(s64){offset})")
        symbol = self.lookup(base)
        if symbol is None:
            raise PtxError("bad address " + operand)
        space = "register" if symbol.kind == "reg" else symbol.kind
        return Address(space, f"((u64)({symbol.code})+(s64){offset})")
