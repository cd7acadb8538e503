"""Barriers, warp operations and matrix instructions: what threads do together."""

import re

from .parse import PtxError, vector_elements

MATRIX_TYPE = {
    "f16": "M_F16",
    "bf16": "M_BF16",
    "tf32": "M_TF32",
    "s8": "M_S8",
    "u8": "M_U8",
    "f32": "M_F32",
    "s32": "M_S32",
}


class Collectives:
    """The op_ methods of InstructionTranslator that the runtime runs for many lanes."""

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
