"""Translates a PTX module to C++: declarations, functions, symbols and operands.

Every virtual register becomes a C++ variable holding raw bits; `instructions.py` writes the
statements. Kernels become `static void kernel_NAME(Thread& t, u8* P)` plus an exported KernelInfo
describing them.
"""

import math
import re
from dataclasses import dataclass, field

from .instructions import InstructionTranslator, classify, count_flops
from .operands import Operands, Symbol
from .parse import PtxError, split_operands, statements
from .ptx_types import RAW_TYPE, WIDTH, c_identifier

EXTERNAL_FUNCTIONS = ("vprintf", "__assertfail")


@dataclass
class Variable:
    name: str
    type: str
    count: int | None  # None for `[]`
    align: int

    @property
    def size(self):
        return (self.count or 1) * WIDTH[self.type] // 8


@dataclass
class Kernel:
    name: str
    params: list  # (type, offset, size)
    param_bytes: int
    max_threads: int
    static_shared: int = 0


@dataclass
class Location:
    line: int
    function: str
    text: str
    source: str
    opcode: list = field(default_factory=list)


class Translator(Operands, InstructionTranslator):
    """Translates one module; then `cpp()` is the source, `kernels` describes the kernels."""

    def __init__(self, ptx, registers=None, external_variables=False):
        self.external_variables = (
            external_variables  # the module's variables are defined in another library
        )
        self.kernels = {}
        self.globals = {}  # name -> (C name, bytes)
        self.unsupported = []  # instructions that fail when executed
        self.locations = []
        self.registers = registers or {}
        self.output = []
        self.functions = {}
        self.scopes = [{}]
        self.unique = 0
        # module-scope name -> Variable, placed in the kernels that use them
        self.shared_variables = {}
        self.function_words = (
            set()
        )  # identifiers used by .func bodies, whose shared variables go to all kernels
        self.common_shared = 0
        self.shared_offset = 0
        self.function = ""
        self.declared = {}
        self.local_arrays = []
        self.branch_tables = {}
        self.last_label = None
        self.atomic_functions = set()  # functions with atomics outside shared memory
        self.device_functions = set()
        self.translate(list(statements(ptx)))

    # ------------------------------------------------------------ declarations
    @staticmethod
    def variable(text):
        """Parses a declaration such as `.align 16 .b8 name[40]`."""
        text = re.sub(
            r"\.ptr(\s+\.(global|shared|const|local|generic))?(\s+\.align\s+\d+)?", "", text
        )
        align = re.search(r"\.align\s+(\d+)", text)
        match = re.search(
            r"\.(b8|u8|s8|b16|u16|s16|b32|u32|s32|b64|u64|s64|f16|bf16|f32|f64|b128|pred)\s+"
            r"([\w$%.]+)((?:\s*\[\s*\d*\s*\])*)",
            text,
        )
        if not match:
            raise PtxError("cannot parse declaration " + text)
        count = 1
        for extent in re.findall(r"\[\s*(\d*)\s*\]", match[3]):
            count = None if extent == "" else count * int(extent)
        return Variable(
            match[2], match[1], count, int(align[1]) if align else max(1, WIDTH[match[1]] // 8)
        )

    def parameters(self, text):
        return [self.variable(p) for p in split_operands(text[1:-1])] if text else []

    def declare_shared(self, text):
        variable = self.variable(text)
        if variable.count is None:
            self.scopes[0][variable.name] = Symbol("shared", "t.block->dynamic_offset")
        elif len(self.scopes) > 1:
            self.place_shared(variable)
        else:
            self.shared_variables[variable.name] = variable
            if variable.name in self.function_words:
                self.place_shared(variable)
                self.common_shared = self.shared_offset

    def place_shared(self, variable):
        offset = -(-self.shared_offset // variable.align) * variable.align
        self.scopes[0][variable.name] = Symbol("shared", f"{offset}u")
        self.shared_offset = offset + variable.size

    def declare_global(self, text):
        head, _, initialiser = text.partition("=")
        variable = self.variable(head)
        name = "global_" + c_identifier(variable.name)
        data = bytearray(variable.size)
        width = WIDTH[variable.type] // 8
        for i, item in enumerate(split_operands(initialiser.strip().strip("{}"))):
            value = self.immediate(item)
            if not value:
                raise PtxError(f"initialiser {item} of {variable.name} is not a number")
            data[i * width : (i + 1) * width] = (value[1] & ((1 << 8 * width) - 1)).to_bytes(
                width, "little"
            )
        body = ",".join(map(str, data)) if any(data) else "0"
        declaration = (
            f"u8 {name}[{max(1, len(data))}] __attribute__((aligned({max(variable.align, 16)})))"
        )
        definition = "" if self.external_variables else f"\n{declaration}={{{body}}};"
        self.output.append(f"PTX_API {declaration};{definition}")
        self.scopes[0][variable.name] = Symbol("global", name)
        self.globals[variable.name] = (name, len(data))

    # ------------------------------------------------------------ functions
    def translate(self, program):
        inside_function = False
        for s in program:
            if s.kind == "head":
                inside_function = ".func" in s.text
            elif s.kind == "stmt" and inside_function:
                self.function_words.update(re.findall(r"[\w$]+", s.text))
        index = 0
        while index < len(program):
            s = program[index]
            index += 1
            if s.kind == "head":
                depth, first = 1, index + 1
                index = first
                while depth:
                    depth += {"{": 1, "}": -1}.get(program[index].kind, 0)
                    index += 1
                self.translate_function(s, program[first : index - 1])
            elif s.kind == "stmt":
                self.module_statement(s.text)

    def module_statement(self, text):
        if re.search(r"\.(entry|func)\b", text):
            match = re.match(r".*?\.func\s*(\([^()]*\))?\s*([\w$]+)\s*(\(.*\))?", text)
            if match and match[2] not in EXTERNAL_FUNCTIONS:
                self.functions.setdefault(match[2], "prototype")
                self.output.append(self.signature(match[2], match[1], match[3]) + ";")
        elif re.search(r"\.shared\b", text):
            self.declare_shared(text)
        elif re.search(r"\.(global|const)\b", text):
            self.declare_global(text)
        elif not text.startswith((".pragma", ".alias")):
            self.unsupported.append("module statement " + text[:100])

    def signature(self, name, results, parameters):
        arguments = ["Thread& t"]
        arguments += [f"u8* r{i}" for i in range(len(self.parameters(results)))]
        arguments += [f"u8* p{i}" for i in range(len(self.parameters(parameters)))]
        declared = f"function_{c_identifier(name)}({', '.join(arguments)})"
        return f"static __attribute__((noinline)) void {declared}"

    def translate_function(self, head, body):
        match = re.match(
            r".*?\.(entry|func)\s*(\([^()]*\))?\s*([\w$]+)\s*(\(.*?\))?([^()]*)$", head.text
        )
        kind, results, name, parameters, rest = match.groups()
        self.function, self.declared, self.local_arrays, self.branch_tables = name, {}, [], {}
        scope = {}
        if kind == "entry":
            kernel = self.begin_kernel(name, parameters, rest, scope, body)
            header = f"static void kernel_{c_identifier(name)}(Thread& t, u8* P)"
        else:
            self.functions[name] = "defined"
            self.device_functions.add(name)
            header = self.signature(name, results, parameters)
            for prefix, group in (("r", results), ("p", parameters)):
                for i, variable in enumerate(self.parameters(group)):
                    scope[variable.name] = Symbol("param", f"{prefix}{i}")
        self.scopes = [self.scopes[0], scope]
        code = [self.body_statement(s) for s in body]
        self.scopes = self.scopes[:1]
        self.output.append(header + " {")
        self.output += [
            f"  {RAW_TYPE[width]} {register}=0;" for register, width in self.declared.items()
        ]
        self.output += ["  " + x for x in self.local_arrays]
        self.output += ["  " + x for x in code if x]
        self.output.append("}")
        if kind == "entry":
            kernel.static_shared = -(-self.shared_offset // 16) * 16
        else:
            self.common_shared = self.shared_offset

    def begin_kernel(self, name, parameters, rest, scope, body):
        self.shared_offset = self.common_shared
        offset, layout = 0, []
        for variable in self.parameters(parameters):
            offset = -(-offset // variable.align) * variable.align
            scope[variable.name] = Symbol("param", f"P+{offset}")
            layout.append((variable.type, offset, variable.size))
            offset += variable.size
        words = set()
        for s in body:
            words.update(re.findall(r"[\w$]+", s.text))
        for variable in self.shared_variables.values():
            if variable.name in words and variable.name not in self.function_words:
                self.place_shared(variable)
        bound = re.search(r"\.(?:maxntid|reqntid)\s+([\d, ]+)", rest)
        max_threads = math.prod(int(x) for x in bound[1].split(",")) if bound else 1024
        kernel = self.kernels[name] = Kernel(name, layout, offset, min(1024, max_threads))
        return kernel

    def body_statement(self, s):
        try:
            if s.kind == "{":
                self.scopes.append({})
            elif s.kind == "}":
                self.scopes.pop()
            elif s.kind == "label":
                self.last_label = s.text
                return f"L_{c_identifier(s.text)}:;"
            elif s.text.startswith("."):
                self.body_directive(s.text)
            else:
                return self.guarded_instruction(s)
            return ""
        except (PtxError, KeyError, IndexError, ValueError, StopIteration) as error:
            self.unsupported.append(f"{s.text} (PTX line {s.line}): {type(error).__name__} {error}")
            pc = self.new_location(s, ["unsupported"])
            return f'kernel_fail(t,{pc},"unsupported PTX instruction");'

    def body_directive(self, text):
        if text.startswith(".reg"):
            match = re.match(r"\.reg\s*\.(\w+)\s+(.*)", text)
            width = WIDTH[match[1]]
            for name in split_operands(match[2]):
                self.unique += 1
                many = re.fullmatch(r"(.+)<(\d+)>", name)
                if many:
                    self.scopes[-1][many[1] + "<"] = Symbol("range", str(self.unique), width)
                else:
                    symbol = Symbol("reg", f"{c_identifier(name)}_{self.unique}", width)
                    self.scopes[-1][name] = symbol
                    self.declared[symbol.code] = width
        elif re.match(r"(\.extern )?\.shared", text):
            self.declare_shared(text)
        elif text.startswith((".local", ".param")):
            variable = self.variable(text)
            self.unique += 1
            name = f"local_{c_identifier(variable.name)}_{self.unique}"
            self.local_arrays.append(f"alignas(16) u8 {name}[{max(1, variable.size)}];")
            self.scopes[-1][variable.name] = Symbol("local", name)
        elif text.startswith(".branchtargets"):
            self.branch_tables[self.last_label] = split_operands(text[len(".branchtargets") :])
        elif not text.startswith((".pragma", ".callprototype", ".calltargets")):
            raise PtxError("unknown directive")

    def new_location(self, s, opcode):
        self.locations.append(Location(s.line, self.function, s.text, s.source, opcode))
        return len(self.locations) - 1

    def guarded_instruction(self, s):
        match = re.match(r"@(!?)([\w%$.]+)\s+(.*)", s.text)
        guard = ("!" if match[1] else "") + self.raw(match[2], 1) if match else ""
        opcode, operands = re.match(
            r"([a-z_][\w.:]*)\s*(.*)", match[3] if match else s.text
        ).groups()
        parts = opcode.split(".")
        pc = self.new_location(s, parts)
        try:
            code = f"COUNT({pc});" + self.instruction(parts, split_operands(operands), pc)
        except (PtxError, KeyError, IndexError, ValueError, StopIteration) as error:
            self.unsupported.append(f"{s.text} (PTX line {s.line}): {type(error).__name__} {error}")
            code = f'kernel_fail(t,{pc},"unsupported PTX instruction");'
        return f"if({guard}) {{{code}}}" if guard else f"{{{code}}}"

    # ------------------------------------------------------------ output
    def cpp(self):
        """The complete C++ source of the module."""

        def c_string(text):
            return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

        def describe(p):
            source = f" [{p.source}]" if p.source else ""
            return c_string(f"PTX line {p.line} of {p.function}: {p.text[:100]}{source}")

        kinds = {}
        tables = [
            ("const char* const locations", [describe(p) for p in self.locations] or ['""']),
            (
                "const u32 kinds",
                [str(kinds.setdefault(".".join(p.opcode), len(kinds))) for p in self.locations]
                or ["0"],
            ),
            ("const u8 classes", [str(classify(p.opcode)) for p in self.locations] or ["0"]),
            ("const f32 flops", [str(count_flops(p.opcode)) for p in self.locations] or ["0"]),
        ]
        lines = ['#include "device.h"', "using namespace ptxcpu;", *self.output]
        lines += [f"static {declaration}[]={{{','.join(items)}}};" for declaration, items in tables]
        ranges = "".join(f"{{(u64){name},{size}u}}," for name, size in self.globals.values())
        if not self.external_variables:
            lines.append(
                "PTX_API const Range module_globals[];\n"
                f"const Range module_globals[]={{{ranges}{{0,0}}}};"
            )
        for k in self.kernels.values():
            name = c_identifier(k.name)
            layout = ",".join(f"{offset},{size}" for _, offset, size in k.params) or "0"
            known = self.registers.get(k.name, {})
            registers = ",".join(str(known.get(arch, (-1, -1))[0]) for arch in ("sm_80", "sm_90"))
            spills = ",".join(str(known.get(arch, (-1, -1))[1]) for arch in ("sm_80", "sm_90"))
            lines.append(f"static const u32 params_{name}[]={{{layout}}};")
            lines.append(
                f"PTX_API const KernelInfo info_{name};\n"
                f"const KernelInfo info_{name}={{{c_string(k.name)},"
                f"kernel_{name},{k.static_shared}u,{k.max_threads}u,{len(k.params)}u,params_{name},"
                f"{int(not self.atomic_functions & (self.device_functions | {k.name}))},"
                f"{len(self.locations)}u,locations,kinds,classes,flops,"
                f"{{{registers}}},{{{spills}}}}};"
            )
        return "\n".join(lines) + "\n"
