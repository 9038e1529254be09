"""JSON that has to be valid under a schema and to say the right thing.

The package does without a JSON Schema library, so the keywords that the suites use are checked here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from mlx_diffusiongemma.evaluation.graders.json_text import difference, lenient_json, same_json, strict_json
from mlx_diffusiongemma.evaluation.graders.text import shortened
from mlx_diffusiongemma.evaluation.task import Grade, Grader, Reply

Schema = dict[str, Any]


def extracted(expected: Any, schema: Schema) -> Grader:
    """The answer is a JSON document with the value `expected`, which is valid under `schema`. Key order is
    free and 3 is 3.0, as in JSON Schema; strings count to the letter, up to Unicode normalization. Lenient:
    in the only fence, or between words.

    details: parses, whether the whole answer is one document; valid and right, of the document in the answer.
    """
    wanted = _numbered(expected)

    def grade(reply: Reply) -> Grade:
        parses, reason = True, ""
        try:
            value = strict_json(reply.answer)
        except ValueError as error:
            parses, reason = False, str(error)
            try:
                value = lenient_json(reply.answer)
            except ValueError:
                return Grade(False, False, reason, {"parses": False, "valid": False, "right": False})
        violated = violation(value, schema)
        wrong = difference(_numbered(value), wanted)
        if not wrong:
            reason = "" if parses else "more than the document"
        else:
            reason = f"invalid: {violated}" if violated else wrong
        details = {"parses": parses, "valid": not violated, "right": not wrong}
        return Grade(parses and not wrong, not wrong, reason, details)

    return grade


def violation(value: Any, schema: Schema) -> str:
    """Where a JSON value first breaks a schema, and which keyword; empty when it is valid.

    KeyError for a keyword that is not known here. Patterns have to be anchored at both ends.
    """
    return next(_violations(value, schema, schema, ""), "")


def _numbered(value: Any) -> Any:
    """The value with integers for whole floats, which JSON Schema does not tell apart."""
    if isinstance(value, dict):
        return {name: _numbered(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_numbered(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _equal(one: Any, other: Any) -> bool:
    return same_json(_numbered(one), _numbered(other))


def _types(value: Any) -> set[str]:
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, float):
        return {"number", "integer"} if value.is_integer() else {"number"}
    names = {int: {"number", "integer"}, str: {"string"}, list: {"array"}, dict: {"object"}}
    return names.get(type(value), {"null"})


def _has_type(value: Any, wanted: str | list[str]) -> bool:
    return not _types(value).isdisjoint([wanted] if isinstance(wanted, str) else wanted)


# keyword: the type of value that it says something about ("" for any), and what it asks
_CHECKS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "type": ("", _has_type),
    "enum": ("", lambda value, choices: any(_equal(value, choice) for choice in choices)),
    "const": ("", _equal),
    "minimum": ("number", lambda value, limit: value >= limit),
    "maximum": ("number", lambda value, limit: value <= limit),
    "exclusiveMinimum": ("number", lambda value, limit: value > limit),
    "multipleOf": ("number", lambda value, factor: value % factor == 0),  # of integers
    "minLength": ("string", lambda value, limit: len(value) >= limit),
    "maxLength": ("string", lambda value, limit: len(value) <= limit),
    # a pattern's $ would also match before a final newline
    "pattern": ("string", lambda value, pattern: re.fullmatch(pattern, value) is not None),
    "minItems": ("array", lambda value, limit: len(value) >= limit),
    "maxItems": ("array", lambda value, limit: len(value) <= limit),
    "required": ("object", lambda value, names: all(name in value for name in names)),
}
_ELSEWHERE = {"$defs", "properties", "prefixItems"}  # read by their neighbours below


def _violations(value: Any, schema: Schema | bool, root: Schema, path: str) -> Iterator[str]:
    if isinstance(schema, bool):
        if not schema:
            yield f"{path or '/'} is not allowed"
        return
    for keyword, argument in schema.items():
        if keyword == "$ref":
            yield from _violations(value, root["$defs"][argument.removeprefix("#/$defs/")], root, path)
        elif keyword == "anyOf":
            if all(any(True for _ in _violations(value, choice, root, path)) for choice in argument):
                yield f"{path or '/'} breaks anyOf"
        elif keyword not in _ELSEWHERE and keyword not in ("items", "additionalProperties"):
            kind, holds = _CHECKS[keyword]
            if (not kind or kind in _types(value)) and not holds(value, argument):
                yield f"{path or '/'} breaks {keyword}"
    if isinstance(value, dict):
        named, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        for name, item in value.items():
            inner = f"{path}/{name if name in named else shortened(name, 40)}"
            yield from _violations(item, named.get(name, others), root, inner)
    elif isinstance(value, list):
        first, rest = schema.get("prefixItems", []), schema.get("items", True)
        for index, item in enumerate(value):
            inner_schema = first[index] if index < len(first) else rest
            yield from _violations(item, inner_schema, root, f"{path}/{index}")
