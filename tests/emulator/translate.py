"""Turns MLX's generated Metal source into C++17 for the headers beside this file.

Metal is C++ with address spaces, which become types here: a pointer into device, constant or threadgroup
memory a `Pointer<T>`, a reference into it a `Ref<T>`, and a threadgroup array a pointer to memory that
the threads of a group share. Lines keep their numbers, for messages. What stays untranslated does not
compile, so that nothing unknown passes quietly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TYPE = r"(?:unsigned\s+)?[A-Za-z_][\w:]*(?:<[^<>;{}]*>)?"
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
ADDRESS = re.compile(
    rf"(const\s+)?\b(device|constant|threadgroup)\s+(const\s+)?({TYPE})\s*(const\s*)?([*&])(\s*const\b)?"
)
THREADGROUP = re.compile(rf"\bthreadgroup\s+({TYPE})\s+([^;]*);")
THREADGROUP_NAME = re.compile(r"\s*(\w+)\s*(?:\[((?:(?!\]\s*\[).)*)\])?\s*", re.DOTALL)  # of one dimension
AUTO = re.compile(r"\bauto\s+\w+\s*=(?!=)")
DOUBLE = re.compile(r"(?<![\w.])(\d+\.\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+)(?![\w.])")
SIGNATURE = re.compile(r"\[\[kernel\]\] void (\w+)\(\n(.*?)\) \{\n", re.DOTALL)
BUFFER = re.compile(rf"(const )?(device|constant) ({TYPE})([*&]) (\w+) \[\[buffer\(\d+\)\]\]")
ATTRIBUTE = re.compile(r"\w+ (\w+) \[\[(\w+)\]\]")
INSTANCE = re.compile(r"\ntemplate \[\[host_name\(\"(\w+)\"\)\]\] \[\[kernel\]\] decltype\((.*)\) \2;\n")
MAX_ARRAYS = 64  # kMaxArrays in group.h


@dataclass(frozen=True)
class Parameter:
    """A buffer that the kernel is called with."""

    name: str
    type: str  # Metal's name of the element type
    space: str  # "device" or "constant"
    scalar: bool  # passed as a reference
    writable: bool


@dataclass(frozen=True)
class Translation:
    source: str
    parameters: list[Parameter]


def translate(metal: str) -> Translation:
    """C++ source and the kernel's buffers in order. Raises AssertionError for what it cannot translate."""
    metal = COMMENT.sub(lambda comment: " " + "\n" * comment[0].count("\n"), metal)
    metal = re.sub(r"^\s*#\s*include\s*<metal\w*>", "", metal, flags=re.MULTILINE)
    signature = SIGNATURE.search(metal)
    assert signature, "the source holds no kernel as MLX writes it"
    kernel = signature[1]
    instance = INSTANCE.search(metal)
    if instance:
        kernel = instance[2]
        metal = INSTANCE.sub("\n\n", metal)

    parameters: list[Parameter] = []
    arguments: list[str] = []
    for line in signature[2].split(",\n"):
        buffer, attribute = BUFFER.search(line), ATTRIBUTE.search(line)
        if buffer:
            const, space, kind, mark, name = buffer.groups()
            passed = "value" if mark == "&" else "pointer"
            qualified = f"const {kind}" if const and mark == "*" else kind
            arguments.append(f"emulator::{passed}_argument<{qualified}>({len(parameters)})")
            parameters.append(Parameter(name, kind, space, mark == "&", not const))
        else:
            assert attribute, f"unknown kernel parameter: {line.strip()}"
            arguments.append(f"emulator::attribute::{attribute[2]}()")

    body = re.sub(r"\[\[[^\]]*\]\]", "", metal)
    body = ADDRESS.sub(_address, body)
    body = _threadgroup_memory(body)
    body = re.sub(r"\b(?:const\s+)?constant\b(?:\s+const\b)?", "const", body)
    assert not re.search(rf"\bthread\s+(?:const\s+)?{TYPE}\s*\*", body), (
        "pointers to a thread's own memory cannot be checked: pass the array itself by reference"
    )
    body = re.sub(r"\bthread\b", "", body)
    body = _values_of_auto(body)
    body = DOUBLE.sub(r"\1f", body)
    source = (
        f'#include "metal_stdlib.h"\n#line 1 "kernel.metal"\n{body}\n'
        f"void emulator::run_kernel() {{ ::{kernel}({', '.join(arguments)}); }}\n"
    )
    return Translation(source, parameters)


def _address(match: re.Match[str]) -> str:
    before, space, after, kind, behind, mark, _ = match.groups()
    const = bool(before or after or behind) or space == "constant"
    if mark == "&" and const:
        place = f"const {kind}&"
    elif mark == "&":
        place = f"emulator::Ref<{kind}>"
    else:
        place = f"emulator::Pointer<{'const ' if const else ''}{kind}>"
    return place + "\n" * match[0].count("\n") + " "


def _threadgroup_memory(body: str) -> str:
    count = 0

    def declared(match: re.Match[str]) -> str:
        nonlocal count
        kind, names = match.groups()
        declarations = []
        for entry in _split(names):
            name = THREADGROUP_NAME.fullmatch(entry)
            assert name, f"threadgroup memory declared as {entry.strip()!r}"
            number, count = count, count + 1
            if name[2] is None:
                what, size = "Ref", ""
                made = "threadgroup_scalar"
            else:
                what, size = "Pointer", f", {name[2]}"
                made = "threadgroup_array"
            declarations.append(
                f'emulator::{what}<{kind}> {name[1]} = emulator::{made}<{kind}>({number}, "{name[1]}"{size});'
            )
        return " ".join(declarations) + "\n" * (match[0].count("\n") - names.count("\n"))

    body = THREADGROUP.sub(declared, body)
    assert count <= MAX_ARRAYS, f"{count} threadgroup arrays, more than {MAX_ARRAYS}"
    return body


def _split(names: str) -> list[str]:
    """`a[f(1, 2)], b` at the commas outside of brackets."""
    parts, depth = [""], 0
    for letter in names:
        depth += (letter in "([{<") - (letter in ")]}>")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _values_of_auto(body: str) -> str:
    """`auto x = e;` as `auto x = emulator::value(e);`: in Metal `auto` is never the place of an element."""
    for match in reversed(list(AUTO.finditer(body))):
        end, depth = match.end(), 0
        while depth > 0 or body[end] != ";":
            depth += (body[end] in "([{") - (body[end] in ")]}")
            end += 1
        body = f"{body[: match.end()]} emulator::value({body[match.end() : end]}){body[end:]}"
    return body
