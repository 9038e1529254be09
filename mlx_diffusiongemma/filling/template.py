"""Parse a text with holes into literals and holes, without tokenizing it.

    [[12]]          a hole of exactly 12 tokens
    [[..40]]        1 to 40 tokens
    [[city]]        1 to 16 tokens, with a name
    [[city:12]]  [[city:..40]]

`\\[[` is a literal `[[`. `\\\\[[` is a backslash and then a hole. Double brackets around anything but words,
digits, dots, colons, dashes and spaces are literal text, such as the JSON [[1, 2], [3, 4]].
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ..errors import InputError

NAMED_LENGTH = 16  # maximum number of tokens of a hole that has only a name

_BRACKETS = re.compile(r"(?P<escape>\\\\|\\(?=\[\[))(?=\[\[)|(?P<open>\[\[(?P<inside>[\w .:-]*)\]\])")
_INSIDE = re.compile(r"(?P<name>[^\W\d]\w*)?(?P<colon>:)?(?:(?P<open>\.\.)?(?P<length>[0-9]{1,9}))?")
_SHOWN = 40


@dataclass(frozen=True)
class Hole:
    """A hole of exactly `length` tokens if `exact`, otherwise of 1 to `length` tokens."""

    length: int
    exact: bool
    name: str | None = None


def parse_template(text: Any) -> list[str | Hole]:
    """Return the parts of a template in order. Literals are not empty, and never follow each other.

    Raises:
        InputError: `text` is not a string, has no hole, has a hole of 0 tokens, repeats a name, or has double
            brackets that look like a hole but are not.
    """
    if not isinstance(text, str):
        raise InputError(f"template: found {type(text).__name__}; give a text with holes")
    if not text.strip():
        raise InputError("template: empty; give a text with holes such as [[12]] or [[city]]")
    parts: list[str | Hole] = []
    literal, position = "", 0
    while position < len(text):
        match = _BRACKETS.search(text, position)
        end = match.start() if match else len(text)
        literal += text[position:end]
        if match is None:
            break
        position = match.end()
        if match["escape"] is None:
            parts += [literal] if literal else []
            parts.append(_hole(match["inside"]))
            literal = ""
        elif match["escape"] == "\\":
            literal, position = literal + "[[", position + 2
        else:
            literal += "\\"
    parts += [literal] if literal else []
    names = [part.name for part in parts if isinstance(part, Hole) and part.name]
    repeated = next((name for name, times in Counter(names).items() if times > 1), None)
    if repeated:
        raise InputError(f"template: the hole [[{repeated}]] occurs twice; give each its own name")
    if not any(isinstance(part, Hole) for part in parts):
        raise InputError("template: no hole found; write one as [[12]], [[..40]] or [[city]]")
    return parts


def _hole(inside: str) -> Hole:
    match = _INSIDE.fullmatch(inside)
    name, length = (match["name"], match["length"]) if match else (None, None)
    if match is None or not (name or length) or bool(match["colon"]) != bool(name and length):
        shown = inside if len(inside) <= _SHOWN else inside[:_SHOWN] + "..."
        raise InputError(
            f"template: [[{shown}]] is not a hole; write [[12]], [[..40]], [[city]], [[city:12]] or "
            "[[city:..40]], and \\[[ for brackets that are text"
        )
    if length is None:
        return Hole(NAMED_LENGTH, exact=False, name=name)
    if int(length) == 0:
        raise InputError(f"template: the hole [[{inside}]] has no tokens; give it at least 1")
    return Hole(int(length), exact=match["open"] is None, name=name)
