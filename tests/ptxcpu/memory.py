"""Conversions, loads and stores, atomics, and control flow."""

from .parse import PtxError, vector_elements
from .ptx_types import C_TYPE, HALF, HALF2, RAW_TYPE, WIDTH, c_identifier


class Memory:
    """The op_ methods of InstructionTranslator for types, addresses and branches."""

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
        return f"min<s64>(max<s64>((s64)({code}),{low}ll),{high}ll)"

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
        return f"{operation}<{C_TYPE[type_]}>(({C_TYPE[type_]})x_,({C_TYPE[type_]})b_)"

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
