"""Graders of JSON in a reply. The JSON is parsed strictly, and values of different types differ."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from typing import Any

from ...errors import InputError
from ..task import INSTALL, Grader
from .text import graded, nfc, shortened


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {shortened(twice)} twice")
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _whole(text: str) -> float:
    return int(float(text)) if float(text).is_integer() else float(text)


def strict_json(text: str, number: Callable[[str], float] = float) -> Any:
    """Parse a JSON document. Raises `ValueError` for bad JSON, for NaN or Infinity and for repeated keys."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=number)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def same_json(one: Any, other: Any) -> bool:
    """True if two JSON values are equal and of the same types: 1, 1.0 and true all differ.

    Neither the order of keys nor the Unicode form of strings (composed or not) matters.
    """
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_json(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return bool(nfc(one) == nfc(other) if isinstance(one, str) else one == other)


def difference(value: Any, expected: Any) -> str:
    """Describe the first difference of two JSON values in a few words. Empty if they are equal."""
    if isinstance(value, dict) and isinstance(expected, dict):
        for name in dict.fromkeys([*expected, *value]):
            if name not in value or name not in expected:
                return f"key {shortened(name)} {'was not asked for' if name in value else 'is missing'}"
            if inner := difference(value[name], expected[name]):
                return f"{shortened(name)}: {inner}"
        return ""
    return "" if same_json(value, expected) else f"{shortened(value)} is not {shortened(expected)}"


def document(expected: Any) -> Grader:
    """Return a grader of a JSON document, which must equal `expected` (see `same_json`)."""

    def judge(text: str) -> tuple[str, dict[str, Any]]:
        try:
            return difference(strict_json(text), expected), {}
        except ValueError as error:
            return str(error), {}

    return graded(judge)


def extracted(expected: Any, schema: dict[str, Any]) -> Grader:
    """Return a grader of a JSON document, which must equal `expected`. 3 equals 3.0, as in JSON Schema.

    Its details say whether the answer, without a code fence, parses, is valid under `schema`, and is right.
    """
    try:
        validator = import_module("jsonschema").Draft202012Validator(schema)
    except ImportError:
        raise InputError(f"this suite needs jsonschema, which is not installed; {INSTALL}") from None
    wanted = strict_json(json.dumps(expected), _whole)

    def judge(text: str) -> tuple[str, dict[str, Any]]:
        try:
            value = strict_json(text, _whole)
        except ValueError as error:
            return str(error), {"parses": False, "valid": False, "right": False}
        try:
            valid, wrong = validator.is_valid(value), difference(value, wanted)
        except RecursionError:
            return "nested too deeply", {"parses": True, "valid": False, "right": False}
        reason = wrong if valid or not wrong else f"not valid under the schema; {wrong}"
        return reason, {"parses": True, "valid": valid, "right": not wrong}

    return graded(judge)
