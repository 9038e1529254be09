"""Keywords of JSON Schema that are written as others.

Each function changes a schema as `schema_reader` writes it, and returns False where that is not possible.
"""

from __future__ import annotations

from typing import Any

_ANYTHING: tuple[Any, ...] = (True, {}, {"type": "string"})  # for the name of a key, which is always a string


def list_first_items(node: dict[str, Any]) -> None:
    """Older drafts gave the first items as a list, and the others as additionalItems."""
    others = node.pop("additionalItems", None)
    if isinstance(node.get("items"), list):
        first = node.pop("items")
        if first:
            node["prefixItems"] = first
        if others is not None:
            node["items"] = others


def _apply_not(node: dict[str, Any], inner: Any) -> bool:
    if inner in (True, {}):
        node["not"] = inner
    return inner in (True, False, {})


def _apply_names(node: dict[str, Any], inner: Any) -> bool:
    """Enforce `propertyNames` by the other keywords about keys."""
    if inner in _ANYTHING:
        return True
    if inner is False or "string" not in inner.get("type", "string"):
        inner = {"enum": []}
    rest, own = node.get("additionalProperties", True), node.get("properties", {})
    if node.keys() & {"patternProperties", "unevaluatedProperties"} or inner.keys() - {
        "type",
        "enum",
        "const",
        "pattern",
        "minLength",
        "maxLength",
    }:
        return False
    if inner.keys() & {"enum", "const"}:
        if inner.keys() - {"type", "enum", "const"}:
            return False
        names = [name for name in inner.get("enum", [inner.get("const")]) if isinstance(name, str)]
        node["properties"] = {name: own[name] if name in names else False for name in own}
        node["properties"] |= {name: rest for name in names if name not in own}
        node["additionalProperties"] = False
        return True
    if own or rest is False or ("pattern" in inner and len(inner.keys() - {"type"}) > 1):
        return False
    least, most = inner.get("minLength", 0), inner.get("maxLength", "")
    node["patternProperties"] = {inner.get("pattern", rf"^[\s\S]{{{least},{most}}}$"): rest}
    node["additionalProperties"] = False
    return True


def _apply_rest(node: dict[str, Any], inner: Any) -> bool:
    if inner not in (True, {}):
        node["unevaluatedProperties"] = inner  # until it is known what the definitions name
    return True


def _apply_rest_items(node: dict[str, Any], inner: Any) -> bool:
    if inner in (True, {}) or "items" in node:
        return True
    if node.keys() & {"$ref", "allOf", "anyOf", "oneOf"}:
        return False
    node["items"] = inner
    return True


# Keywords that are put into others, with their schema; False where that is not possible.
APPLIED = {
    "not": _apply_not,
    "unevaluatedProperties": _apply_rest,
    "propertyNames": _apply_names,
    "unevaluatedItems": _apply_rest_items,
}
