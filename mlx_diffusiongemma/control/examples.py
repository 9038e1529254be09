"""A short text that a regular expression matches, for a search that knows only what may come next."""

from __future__ import annotations

import re
import string
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from .patterns import python_pattern

# Python's parser of patterns; its module was renamed. The dialect differs little from the grammar compiler's.
_parser: Any = import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")

_MOST = 4096  # characters
_LONGEST = 20_000  # characters of a pattern
_CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " \n\t"


def example(pattern: str) -> str | None:
    """Return a short text that `pattern` matches; None if Python cannot read it or if no short text matches.

    Assertions are ignored, so callers must check that the text matches.
    """
    readable = python_pattern(pattern) if len(pattern) <= _LONGEST else None
    if readable is None:
        return None
    try:
        return _all(_parser.parse(readable))
    except (re.error, RecursionError, OverflowError, ValueError):
        return None


def _text(operation: Any, value: Any) -> str:
    name = str(operation)
    if name == "LITERAL":
        return chr(value)
    if name == "ANY":
        return "a"
    if name in ("IN", "NOT_LITERAL"):
        members = value if name == "IN" else [(operation, value)]
        matches = re.compile(_class(members), re.DOTALL).fullmatch
        return next((character for character in _CHARACTERS if matches(character)), _first(members))
    if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        least, _, inner = value
        return _repeated(_all(inner), least) if least else ""
    if name == "BRANCH":
        return min((_all(option) for option in value[1]), key=len)
    if name == "SUBPATTERN":
        return _all(value[-1])
    if name == "ATOMIC_GROUP":
        return _all(value)
    return ""  # an assertion


def _repeated(text: str, times: int) -> str:
    """Repeat `text`. Raises OverflowError before it gets long: repetitions multiply."""
    if len(text) * times > _MOST:
        raise OverflowError("no short text matches")
    return text * times if text else ""


def _all(items: Any) -> str:
    text = ""
    for operation, value in items:
        text += _text(operation, value)
        if len(text) > _MOST:
            raise OverflowError("no short text matches")
    return text


_CATEGORIES = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}


def _class(members: Sequence[Any]) -> str:
    """A character class, written again."""
    negated, parts = "", []
    for operation, value in members:
        name = str(operation)
        if name in ("NEGATE", "NOT_LITERAL"):
            negated = "^"
        if name in ("LITERAL", "NOT_LITERAL"):
            parts.append(re.escape(chr(value)))
        elif name == "RANGE":
            parts.append("-".join(re.escape(chr(end)) for end in value))
        elif name == "CATEGORY":
            kind = str(value).removeprefix("CATEGORY_")
            spelled = _CATEGORIES[kind.removeprefix("NOT_")]
            parts.append(spelled.upper() if kind.startswith("NOT_") else spelled)
    return f"[{negated}{''.join(parts)}]"


def _first(members: Sequence[Any]) -> str:
    """A member of a class that holds none of the usual characters."""
    operation, value = members[0]
    return chr(value if isinstance(value, int) else value[0]) if str(operation) != "NEGATE" else "é"
