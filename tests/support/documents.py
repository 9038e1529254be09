"""Reads the snippets in Markdown files: Python code and commands, each with its output."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MEASURED = re.compile(r"\d+\.\d+(?:e[+-]?\d+)?|\d+e-?\d+")  # seconds, speeds, shares
_NUMBER = re.compile(r"\d[\d.,]*(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Snippet:
    """A snippet. kind: "python", or "console" for one command. shown: the output in the file, or None."""

    kind: str
    code: str
    shown: str | None
    line: int


def snippets(file: Path) -> list[Snippet]:
    """Return the snippets of a file in order. A ```text block right after a ```python block is its output."""
    text = file.read_text(encoding="utf-8")
    found: list[Snippet] = []
    fences = list(_FENCE.finditer(text))
    for fence, following in zip_longest(fences, fences[1:]):
        line = text.count("\n", 0, fence.start()) + 1
        kind, code = fence[1], fence[2]
        if kind == "python":
            printed = (
                following is not None
                and following[1] == "text"
                and not text[fence.end() : following.start()].strip()
            )
            found.append(Snippet(kind, code, following[2] if printed and following else None, line))
        elif kind == "console":
            first, *commands = re.split(r"^\$ ", code, flags=re.MULTILINE)
            assert not first, f"{file.name}:{line}: a console block begins with a command"
            for command in commands:
                code, _, shown = command.partition("\n")
                found.append(Snippet(kind, code, shown if shown.strip() else None, line))
        else:
            assert kind == "text", f"{file.name}:{line}: ```{kind}; use python, console or text"
    return found


def has_shape(text: str, shown: str, counted: bool = True) -> bool:
    """True if `text` equals `shown` apart from measured numbers, the width of spaces, and any text for `...`.

    counted: if False, numbers without a fraction may differ, too, as they do on another device.
    """
    free = _MEASURED if counted else _NUMBER
    words = [_pattern(part, free) for part in re.split(r"(\s+|\.\.\.)", shown.strip())]
    return re.fullmatch("".join(words), text.strip(), re.DOTALL) is not None


def _pattern(part: str, free: re.Pattern[str]) -> str:
    if part == "...":
        return ".*"
    if part.isspace():
        return r"\s*\n\s*" if "\n" in part else r"[ \t]+"
    return f"(?:{free.pattern})".join(map(re.escape, free.split(part)))
