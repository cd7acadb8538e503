"""Splits PTX text into statements, keeping PTX line numbers and, where present, CUDA source lines.

The grammar needed here is small: a function header, `{`, `}`, labels, statements ending in `;`.
Directives that end with the line (.version, .file, .loc, ...) are consumed on the way.
"""

import os
import re
from dataclasses import dataclass

LABEL = re.compile(r"\s*([\w$%.]+)\s*:(?!:)")
TOKEN = re.compile(r'"[^"]*"|[{};\n]|[^{};\n"]+')
LINE_DIRECTIVES = (".version", ".target", ".address_size", ".file", ".loc")


class PtxError(Exception):
    """PTX that cannot be parsed, translated or run."""


@dataclass
class Statement:
    kind: str  # "{", "}", "label", "head" (of a function) or "stmt"
    text: str
    line: int  # in the PTX text
    source: str = ""  # "file.cu:34", when the PTX was compiled with -lineinfo


def blank_comments(ptx):
    """Replaces comments by spaces, so that line numbers stay right."""

    def keep_newlines(match):
        return re.sub(r"[^\n]", " ", match.group())

    ptx = re.sub(r"/\*.*?\*/", keep_newlines, ptx, flags=re.S)
    return re.sub(r"//[^\n]*", "", ptx)


def source_files(ptx):
    """The table of `.file` directives, which nvcc puts at the end: index -> base name."""
    found = re.findall(r'^[ \t]*\.file\s+(\d+)\s+"([^"]*)"(?:\s+"([^"]*)")?', ptx, flags=re.M)
    return {int(index): os.path.basename(second or first) for index, first, second in found}


def is_function_head(text):
    return re.search(r"\.(entry|func)\b", text) and "=" not in text


def statements(ptx):
    """Yields the statements of a PTX module in order."""
    files = source_files(ptx)
    text = blank_comments(ptx)
    buffer, start, line, depth, source = "", 1, 1, 0, ""
    section = None  # braces open inside a .section, which is skipped; None outside one
    for match in TOKEN.finditer(text):
        token = match.group()
        if section is not None:
            line += token == "\n"
            if token in "{}":
                section += 1 if token == "{" else -1
                if section == 0:
                    section = None
            continue
        if token == "\n":
            line += 1
            stripped = buffer.strip()
            if stripped.startswith(LINE_DIRECTIVES):
                location = re.match(r"\.loc\s+(\d+)\s+(\d+)", stripped)
                if location:
                    source = f"{files.get(int(location[1]), '?')}:{location[2]}"
                caller = re.search(r"inlined_at\s+(\d+)\s+(\d+)", stripped)
                if caller:
                    source = f"{files.get(int(caller[1]), '?')}:{caller[2]}, inlined {source}"
                buffer = ""
            elif stripped.startswith(".section"):
                buffer, section = "", 0
            else:
                label = LABEL.fullmatch(buffer.rstrip())
                if label:
                    yield Statement("label", label[1], start, source)
                    buffer = ""
                elif stripped:
                    buffer += " "
            continue
        if token == "{" and buffer.strip().startswith(".section"):
            buffer, section = "", 1
            continue
        if not buffer.strip():
            start = line
        if token == "{":
            if not buffer.strip():
                yield Statement("{", "", line)
            elif is_function_head(buffer):
                yield Statement("head", " ".join(buffer.split()), start, source)
                yield Statement("{", "", line)
                buffer, source = "", ""
            else:  # a vector operand or an initialiser
                depth += 1
                buffer += token
        elif token == "}":
            if depth:
                depth -= 1
                buffer += token
            else:
                yield Statement("}", "", line)
                buffer = ""
        elif token == ";":
            label = LABEL.match(buffer)
            while label:
                yield Statement("label", label[1], start, source)
                buffer = buffer[label.end() :]
                label = LABEL.match(buffer)
            if buffer.strip():
                yield Statement("stmt", " ".join(buffer.split()), start, source)
            buffer = ""
        else:
            buffer += token
    if buffer.strip() and not buffer.strip().startswith(LINE_DIRECTIVES):
        raise PtxError(f"PTX ends in the middle of: {buffer.strip()[:80]}")


def split_operands(text):
    """Splits at commas that are not inside brackets."""
    parts, depth, current = [], 0, ""
    for character in text:
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
        if character == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    if current.strip():
        parts.append(current.strip())
    return parts


def vector_elements(operand):
    """`{a, b}` -> ["a", "b"]; a plain operand gives a list of one."""
    return [x.strip() for x in operand[1:-1].split(",")] if operand.startswith("{") else [operand]
