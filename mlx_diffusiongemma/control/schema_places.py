"""Places in a JSON Schema, in the words of error messages."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from ..errors import InputError


def where(pointer: str) -> str:
    """A place in a schema, a JSON pointer, in the words of an error message."""
    text = printable(pointer)
    return f"at {text if len(text) <= 100 else '...' + text[-97:]}" if text else "at the top"


def printable(text: str) -> str:
    """`text` with escapes for what a terminal would obey."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def refuse(pointer: str, problem: str) -> NoReturn:
    """Raise the error of one place in a schema."""
    raise InputError(f"schema: {where(pointer)}: {problem}")


def shown(value: Any) -> str:
    """A value of a schema, cut to a few characters."""
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
