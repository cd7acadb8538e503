"""PTX types: widths and the C++ types that hold them."""

import re

WIDTH = {
    "b8": 8,
    "u8": 8,
    "s8": 8,
    "b16": 16,
    "u16": 16,
    "s16": 16,
    "f16": 16,
    "bf16": 16,
    "b32": 32,
    "u32": 32,
    "s32": 32,
    "f32": 32,
    "f16x2": 32,
    "bf16x2": 32,
    "tf32": 32,
    "b64": 64,
    "u64": 64,
    "s64": 64,
    "f64": 64,
    "b128": 128,
    "pred": 1,
}
C_TYPE = {
    "b8": "u8",
    "u8": "u8",
    "s8": "s8",
    "b16": "u16",
    "u16": "u16",
    "s16": "s16",
    "f16": "u16",
    "bf16": "u16",
    "b32": "u32",
    "u32": "u32",
    "s32": "s32",
    "f32": "f32",
    "f16x2": "u32",
    "bf16x2": "u32",
    "tf32": "u32",
    "b64": "u64",
    "u64": "u64",
    "s64": "s64",
    "f64": "f64",
    "b128": "u128",
}
RAW_TYPE = {1: "bool", 8: "u8", 16: "u16", 32: "u32", 64: "u64", 128: "u128"}
HALF = ("f16", "bf16")
HALF2 = ("f16x2", "bf16x2")


def c_identifier(name):
    """A PTX name as a C identifier, without collisions; the fake runtime has the same rule."""
    return re.sub(r"\W", lambda m: f"_{ord(m.group()):02x}", name)
