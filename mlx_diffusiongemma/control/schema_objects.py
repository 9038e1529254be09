"""Types and extra keys, where a schema leaves them open.

Works on schemas as `schema_reader` writes them: enforced keywords only, every `$ref` into `$defs`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

Definitions = Mapping[str, Any]

_EITHER, _SOURCES = ("anyOf", "oneOf"), ("$ref", "allOf", "anyOf", "oneOf")


def definition(reference: str, definitions: Definitions) -> Any:
    """The schema that a rewritten `$ref` leads to."""
    return definitions.get(reference.rpartition("/")[2], True)


def same_value(node: Mapping[str, Any], definitions: Definitions) -> Iterator[tuple[str, Any]]:
    """The schemas that describe the same value as `node`, each with the keyword that names it."""
    for key in ("allOf", "anyOf", "oneOf"):
        yield from ((key, part) for part in node.get(key, ()))
    if "$ref" in node:
        yield "$ref", definition(node["$ref"], definitions)


# The type that each keyword is about.
_ABOUT = {
    **dict.fromkeys(("pattern", "format", "minLength", "maxLength"), "string"),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), "number"),
    **dict.fromkeys(("items", "prefixItems", "minItems", "maxItems"), "array"),
    **dict.fromkeys(("properties", "patternProperties", "additionalProperties", "required"), "object"),
    **dict.fromkeys(("minProperties", "maxProperties"), "object"),
}


def name_types(nodes: Iterable[dict[str, Any]], definitions: Definitions) -> None:
    """Give a schema without a type the one that all its keywords are about.

    To JSON Schema, {"properties": ...} says nothing about numbers, so that 0 is a valid answer. Nobody means
    that.
    """
    nodes = list(nodes)
    parts: set[int] = set()  # of schemas that say more: those decide
    for node in nodes:
        if "type" in node or _combines(node):
            parts |= {id(part) for _, part in same_value(node, definitions)}
    for node in nodes:
        if id(node) in parts or not node.keys() - {"$ref", "anyOf", "oneOf"}:
            continue
        kinds = _implied(node, definitions)
        if len(kinds) == 1:
            node["type"] = kinds.pop()


def _implied(node: dict[str, Any], definitions: Definitions) -> set[str]:
    """The types that the keywords of `node` are about; none where it says what it is itself."""
    parts = _described(node, definitions)
    anything = any(
        part in (True, {}) for each in parts for key, part in same_value(each, definitions) if key in _EITHER
    )
    if anything or any(part.keys() & {"type", "const", "enum"} for part in parts):
        return set()
    return {_ABOUT[key] for part in parts for key in part if key in _ABOUT}


def close_objects(nodes: Iterable[dict[str, Any]], definitions: Definitions) -> set[int]:
    """Forbid extra keys where a schema names keys and says nothing about others; return the ids of those.

    An extra key could repeat a named one in an escaped spelling, with a value of another type. An object that
    several schemas describe is closed in the schema that combines them.
    """
    nodes = list(nodes)
    combining = {id(node) for node in nodes if _combines(node)}
    members: set[int] = set()
    for node in nodes:
        if id(node) in combining:
            members |= {id(part) for part in _described(node, definitions)[1:]}
    closed: set[int] = set()
    for node in nodes:
        if id(node) in members or not ("properties" in node or id(node) in combining):
            continue
        names = _names(node, definitions)
        if names is not None and _required(node, definitions) <= names.keys():
            _close(node, names, False)
            closed.add(id(node))
    return closed


def close_evaluated(node: dict[str, Any], rest: Any, definitions: Definitions) -> bool:
    """Enforce `unevaluatedProperties: rest`; False where it depends on which alternative holds."""
    if rest in (True, {}) or "additionalProperties" in node:
        return True
    if not any(True for _ in same_value(node, definitions)):
        node["additionalProperties"] = rest
        return True
    names = _names(node, definitions, alternatives=False)
    if names is not None:
        _close(node, names, rest)
    return names is not None


def _close(node: dict[str, Any], names: Iterable[str], rest: Any) -> None:
    own = node.get("properties", {})
    node["properties"] = {**own, **{name: True for name in names if name not in own}}
    node["additionalProperties"] = rest


def _combines(node: Mapping[str, Any]) -> bool:
    """True if several schemas describe the keys of one value. Alternatives alone do not."""
    sources = node.keys() & {"$ref", "allOf", "anyOf", "oneOf"}
    if not sources or node.keys() - {"type"} != sources:
        return bool(sources)
    return len(sources) > 1 or len(node.get("allOf", ())) > 1


def _described(
    node: dict[str, Any], definitions: Definitions, sources: Collection[str] = _SOURCES
) -> list[dict[str, Any]]:
    """`node` and the schemas that describe the same value, at any remove, each once."""
    parts, known = [node], {id(node)}
    for part in parts:
        for key, inner in same_value(part, definitions):
            if key in sources and isinstance(inner, dict) and id(inner) not in known:
                known.add(id(inner))
                parts.append(inner)
    return parts


def _names(
    node: dict[str, Any], definitions: Definitions, alternatives: bool = True
) -> dict[str, None] | None:
    """The keys that `node` and the schemas in it name; None if they name none, or speak of others.

    alternatives: take those of anyOf and oneOf together.
    """
    parts = _described(node, definitions)
    if any(part.keys() & {"additionalProperties", "patternProperties"} for part in parts):
        return None
    if not alternatives:
        always = {id(part) for part in _described(node, definitions, ("$ref", "allOf"))}
        if any("properties" in part and id(part) not in always for part in parts):
            return None
    if not any("properties" in part for part in parts):
        return None
    return {name: None for part in parts for name in part.get("properties", ())}


def _required(node: dict[str, Any], definitions: Definitions) -> set[str]:
    return {name for part in _described(node, definitions) for name in part.get("required", ())}
