"""Places in a JSON Schema, in the words of error messages."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from ..console.messages import one_line
from ..errors import InputError


def where(pointer: str) -> str:
    """A place in a schema, a JSON pointer, in the words of an error message."""
    return f"at {one_line(pointer, 100, keep_end=True)}" if pointer else "at the top"


def refuse(pointer: str, problem: str) -> NoReturn:
    """Raise the error of one place in a schema."""
    raise InputError(f"schema: {where(pointer)}: {problem}")


def shown(value: Any) -> str:
    """JSON of a value in a schema, cut to a few words."""
    return one_line(json.dumps(value), 40)
