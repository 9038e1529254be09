"""Checks a JSON Schema before it is compiled: what would be ignored is refused instead."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from ..errors import InputError
from ..prompts import one_line

_ENFORCED = {
    "$ref", "additionalItems", "additionalProperties", "allOf", "anyOf", "const", "enum", "exclusiveMaximum",
    "exclusiveMinimum", "format", "items", "maxItems", "maxLength", "maxProperties", "maximum", "minItems",
    "minLength", "minProperties", "minimum", "multipleOf", "oneOf", "pattern", "patternProperties",
    "prefixItems", "properties", "required", "type",
}  # fmt: skip
# They say nothing about which values are valid. `discriminator` is what pydantic adds to some `oneOf`.
_REMARKS = {
    "$anchor", "$comment", "$defs", "$id", "$schema", "contentEncoding", "contentMediaType", "default",
    "definitions", "deprecated", "description", "discriminator", "examples", "id", "readOnly", "title",
    "writeOnly",
}  # fmt: skip
_NAMED = ("$defs", "definitions", "patternProperties", "properties")  # name -> schema
_LISTED = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_SINGLE = ("additionalItems", "additionalProperties", "items")
_COMBINING = {"$ref", "allOf", "anyOf", "oneOf"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def checked_schema(schema: Any) -> tuple[dict[str, Any], list[str]]:
    """A JSON Schema (a dict or a pydantic model class) as plain JSON, and the patterns in it.

    Raises InputError for another type, for what is not JSON, and for a keyword that would not be kept.
    """
    if isinstance(schema, type) and hasattr(schema, "model_json_schema"):
        try:
            schema = schema.model_json_schema()
        except Exception as error:  # pydantic's own, for types that JSON has not
            raise InputError(f"schema: {schema.__name__} has no JSON Schema ({one_line(error)})") from None
    if not isinstance(schema, dict):
        raise InputError(
            f"schema: found {type(schema).__name__}; give a JSON Schema as a dict, or a pydantic model class"
        )
    try:
        text = json.dumps(schema, allow_nan=False, ensure_ascii=False)
        text.encode()
        plain: dict[str, Any] = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"schema: not JSON ({one_line(error)}); use plain JSON values") from None
    patterns = [pattern for path, node in _nodes(plain) for pattern in _checked(path, node)]
    nodes = [node for _, node in _nodes(plain)]
    apart = not any(node.keys() & _COMBINING and ("properties" in node or "allOf" in node) for node in nodes)
    for node in nodes:
        _tighten(node, apart)
    # Under an older draft's name llguidance would ignore the keywords that came later.
    return {name: value for name, value in plain.items() if name != "$schema"}, patterns


def _nodes(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema in `schema`, with its path, also those that only a `$ref` makes one."""
    pending: list[tuple[str, Any]] = [("", schema)]
    seen: set[int] = set()
    while pending:
        path, node = pending.pop()
        if not isinstance(node, dict) or id(node) in seen:
            continue
        seen.add(id(node))
        yield path or "the top", node
        for key in _NAMED:
            if isinstance(node.get(key), dict):
                pending += [(f"{path}/{key}/{name}", inner) for name, inner in node[key].items()]
        for key in _LISTED:
            if isinstance(node.get(key), list):
                pending += [(f"{path}/{key}/{index}", inner) for index, inner in enumerate(node[key])]
        pending += [(f"{path}/{key}", node[key]) for key in _SINGLE if key in node]
        reference = node.get("$ref")
        if isinstance(reference, str) and reference.startswith("#/"):
            pending.append((reference, _target(schema, reference)))


def _tighten(node: dict[str, Any], apart: bool) -> None:
    """Makes `node` allow somewhat less where llguidance would allow more than it says.

    apart: no object's keys are described in several places.
    """
    named, required = node.get("properties"), node.get("required", [])
    is_open = isinstance(named, dict) and not {"patternProperties", "additionalProperties"} & node.keys()
    if apart and is_open and isinstance(required, list) and set(map(str, required)) <= set(named or ()):
        # An extra key could repeat a named one in an escaped spelling, with a value of another type.
        node["additionalProperties"] = False
    low: Any = node.get("exclusiveMinimum")
    high: Any = node.get("exclusiveMaximum", node.get("maximum"))
    if node.get("type") == "number" and _is_number(low) and _is_number(high) and 0 < high - low <= 1:
        node["minimum"] = low + (high - low) / 1024  # of such a range it would allow the excluded end
        del node["exclusiveMinimum"]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _target(schema: Any, reference: str) -> Any:
    """What a local `$ref` points to; None, which the compiler reports, when that is nothing."""
    for part in reference[2:].split("/"):
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(schema, list) and name.isdecimal() and int(name) < len(schema):
            schema = schema[int(name)]
        else:
            schema = schema.get(name) if isinstance(schema, dict) else None
    return schema


def _checked(path: str, node: dict[str, Any]) -> list[str]:
    """The patterns of one schema. Raises InputError for what would be ignored or could not be kept."""
    where = one_line(ValueError(path))[:80]
    for key in node:
        if key not in _ENFORCED and key not in _REMARKS:
            name = one_line(ValueError(key))[:40]
            raise InputError(f"schema: keyword {name!r} at {where} is unknown or not supported; take it out")
    required = node.get("required")
    needed = required if isinstance(required, list) else []
    least = node.get("minProperties")
    if isinstance(least, int | float) and least > len(set(map(str, needed))) + 1:
        # Extra keys may repeat, and a repeated key counts once.
        raise InputError(
            f"schema: minProperties {least} at {where} cannot be kept beside {len(needed)} required names; "
            "name more of them"
        )
    properties = node.get("properties")
    names = [*(properties if isinstance(properties, dict) else ()), *needed]
    closed = node.get("additionalProperties") is False and "patternProperties" not in node
    if not closed and any(isinstance(name, str) and _CONTROL.search(name) for name in names):
        # `\n` and `\u000a` are one name: an extra key could repeat it with a value of another type.
        raise InputError(
            f"schema: a property name with a control character at {where}; "
            "set additionalProperties to false beside it"
        )
    found = node.get("patternProperties")
    patterns = [*(found if isinstance(found, dict) else ()), node.get("pattern")]
    return [pattern for pattern in patterns if isinstance(pattern, str)]
