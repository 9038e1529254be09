"""JSON in a reply: parsed as strictly as a standard allows, compared with its types."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

from mlx_diffusiongemma.evaluation.graders.text import LENIENT_LIMIT, fences, nfc, shortened
from mlx_diffusiongemma.evaluation.task import Grade, Grader, Reply

MAX_DEPTH = 100  # so that what walks the value never meets Python's recursion limit
MAX_DIGITS = 300  # so that an integer fits a double and Python's own limit is never met


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {ascii(twice)[:40]} twice")
    return value


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"integer of {len(digits)} digits")
    return int(digits)


def _real(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"number {digits[:20]} is beyond a double")
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_real, parse_constant=_constant
)
# behind a document: the rest of a larger one, or something like another one
_ANOTHER = re.compile(r'\A\s*[\]},:]|[\[{]\s*(?:["\[{\]}0-9-]|true|false|null)')


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level:
        depth += 1
        level = [
            item
            for parent in level
            if isinstance(parent, (dict, list))
            for item in (parent.values() if isinstance(parent, dict) else parent)
        ]
    return depth


def strict_json(text: str) -> Any:
    """The value of a text that is one JSON document and nothing else, but for whitespace around it.

    ValueError, with a short reason: for anything else, for a key twice in an object, NaN, Infinity, numbers
    that a double cannot hold, and nesting deeper than MAX_DEPTH.
    """
    text = text.strip()
    value, end = _decoded(text, 0)
    if end < len(text):
        raise ValueError(f"no JSON: Extra data at character {end}")
    return value


def _decoded(text: str, start: int) -> tuple[Any, int]:
    """The value of the document at `start`, and where it ends."""
    if not text:
        raise ValueError("empty")
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if _depth(value) > MAX_DEPTH:
        raise ValueError("nested too deeply")
    return value, end


def lenient_json(text: str) -> Any:
    """Like strict_json; the document may also stand in the only code fence, or, when it is an object or an
    array, between words: before it without brackets, after it without a bracket that may belong to another
    document. Its content is parsed no less strictly."""
    try:
        return strict_json(text)
    except ValueError:
        if len(text) > LENIENT_LIMIT:
            raise
        inside = fences(text)
        if len(inside) > 1:
            raise ValueError(f"{len(inside)} code fences") from None
        if inside:
            return strict_json(inside[0])
        starts = [at for at in (text.find("{"), text.find("[")) if at >= 0]
        if not starts:
            raise
        value, end = _decoded(text, min(starts))
        if _ANOTHER.search(text[end:]):
            raise ValueError("more than one document") from None
        return value


def same_json(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal in type, too: 1, 1.0 and true are three values. Key order is free, as
    is how Unicode writes an accent in a string."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_json(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return bool(nfc(one) == nfc(other) if isinstance(one, str) else one == other)


def document(expected: Any) -> Grader:
    """The answer is a JSON document equal to `expected`, in types, too; key order and whitespace are free."""

    def grade(reply: Reply) -> Grade:
        try:
            value = strict_json(reply.answer)
        except ValueError as error:
            try:
                value = lenient_json(reply.answer)
            except ValueError:
                return Grade(False, False, str(error))
            if same_json(value, expected):
                return Grade(False, True, "more than the document")
        if same_json(value, expected):
            return Grade(True, True)
        return Grade(False, False, difference(value, expected))

    return grade


def difference(value: Any, expected: Any) -> str:
    """Where two JSON values first differ, in a few words; empty when they are the same."""
    if isinstance(value, dict) and isinstance(expected, dict):
        for name in expected:
            if name not in value:
                return f"key {shortened(name)} is missing"
            if not same_json(value[name], expected[name]):
                return f"{shortened(name)}: {difference(value[name], expected[name])}"
        more = [name for name in value if name not in expected]
        return f"key {shortened(more[0])} was not asked for" if more else ""
    return "" if same_json(value, expected) else f"{shortened(value)} is not {shortened(expected)}"
