"""Regular expressions as text: between the dialects of JSON Schema, the grammar compiler and Python.

They differ in character classes. The compiler (Rust) has classes within classes, the operators `&&`, `--` and
`~~`, and POSIX names. JSON Schema (ECMAScript) takes the same characters literally. Python does so, too, but
warns, because it may change its mind.
"""

from __future__ import annotations

import re

_LOOK_AROUND = re.compile(r"(?<!\\)(?:\\\\)*\(\?<?[=!]")
_FLAGS_LATER = re.compile(r"(?!\A)\(\?[a-zA-Z]+\)")

# Members of POSIX classes, as Python writes them within brackets.
_POSIX = {
    "alnum": "0-9A-Za-z", "alpha": "A-Za-z", "ascii": r"\x00-\x7f", "blank": r"\t\ ",
    "cntrl": r"\x00-\x1f\x7f", "digit": "0-9", "graph": "!-~", "lower": "a-z", "print": r"\ -~",
    "punct": r"!-/:-@\[-`{-~", "space": r"\t\n\v\f\r\ ", "upper": "A-Z", "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}  # fmt: skip
_POSIX_NAME = re.compile(r"\[:([a-z]+):\]")

# An escape, a class or a character. A bracket that would close an empty class is a member. A class that is
# not closed reaches to the end.
_ECMASCRIPT_PARTS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\]|\\\Z)*(?:\]|\Z)|.", re.DOTALL)
_RUST_PARTS = re.compile(r"\\.|\[\^?\]?(?:\\.|\[:\^?[a-z]+:\]|[^\]\\]|\\\Z)*(?:\]|\Z)|.", re.DOTALL)
_OPERATORS = frozenset("[]&~-")


def has_look_around(pattern: str) -> bool:
    """True for a pattern with look-ahead or look-behind, which no grammar can follow."""
    return _LOOK_AROUND.search(pattern) is not None


def ends_in_escape(pattern: str) -> bool:
    """True for a pattern whose last backslash escapes nothing. The compiler would drop it."""
    return (len(pattern) - len(pattern.rstrip("\\"))) % 2 == 1


def rust_pattern(pattern: str) -> str:
    """A pattern of JSON Schema for the grammar compiler: in a class, each character is itself."""
    return "".join(
        "[" + _literal_members(part[1:-1]) + "]" if part[0] == "[" and part[-1] == "]" else part
        for part in _ECMASCRIPT_PARTS.findall(pattern)
    )


def python_pattern(pattern: str) -> str | None:
    """A pattern of the grammar compiler for Python; None for one that Python would read differently."""
    if _FLAGS_LATER.search(pattern):
        return None
    parts = []
    for part in _RUST_PARTS.findall(pattern):
        if part[0] == "[":
            part = _POSIX_NAME.sub(lambda name: _POSIX.get(name[1], name[0]), part)
            bare = re.sub(r"\\.", "", part[1:-1], flags=re.DOTALL)
            if "[" in bare or "&&" in bare or "--" in bare or "~~" in bare:
                return None
            part = part.replace("||", r"|\|")
        parts.append(part)
    return "".join(parts)


def _literal_members(members: str) -> str:
    """The members of a class, so that the compiler reads no operators."""
    negated = members[:1] == "^"
    atoms = re.findall(r"\\.|.", members[negated:], re.DOTALL)
    written, index = ["^"] if negated else [], 0
    while index < len(atoms):
        is_range = atoms[index + 1 : index + 2] == ["-"] and index + 2 < len(atoms)
        ends = (atoms[index], atoms[index + 2]) if is_range else (atoms[index],)
        written.append("-".join("\\" + end if end in _OPERATORS else end for end in ends))
        index += 3 if is_range else 1
    return "".join(written)
