"""What is meant where a schema leaves it open: the type, and whether objects may have extra keys.

Works on schemas as `schema_reader` writes them: enforced keywords only, every `$ref` into `$defs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Definitions = Mapping[str, Any]

_DEPTH = 16  # of schemas within schemas that describe the same value


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
        if kinds and len(kinds) == 1:
            node["type"] = kinds.pop()


def _implied(node: Any, definitions: Definitions, depth: int = 0) -> set[str] | None:
    """The types that the keywords of `node` are about; None where it says what it is itself."""
    if isinstance(node, bool) or depth > _DEPTH or node.keys() & {"type", "const", "enum"}:
        return None
    kinds = {_ABOUT[key] for key in node if key in _ABOUT}
    for key, part in same_value(node, definitions):
        inner = _implied(part, definitions, depth + 1)
        if inner is None or (not inner and key in ("anyOf", "oneOf")):
            return None
        kinds |= inner
    return kinds


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
            _mark_members(node, definitions, members)
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


def _mark_members(node: Mapping[str, Any], definitions: Definitions, members: set[int]) -> None:
    for _, part in same_value(node, definitions):
        if isinstance(part, dict) and id(part) not in members:
            members.add(id(part))
            _mark_members(part, definitions, members)


def _names(
    node: Any, definitions: Definitions, alternatives: bool = True, depth: int = 0
) -> dict[str, None] | None:
    """The keys that `node` and the schemas in it name; None if some schema decides about the others.

    alternatives: take those of anyOf and oneOf together.
    """
    if isinstance(node, bool):
        return {} if depth else None
    if depth > _DEPTH or node.keys() & {"additionalProperties", "patternProperties", "unevaluatedProperties"}:
        return None
    names, named = dict.fromkeys(node.get("properties", ())), "properties" in node
    for key, part in same_value(node, definitions):
        inner = _names(part, definitions, alternatives, depth + 1)
        if inner is None or (inner and not alternatives and key in ("anyOf", "oneOf")):
            return None
        names |= inner
    return names if named or names or depth else None


def _required(node: Any, definitions: Definitions, depth: int = 0) -> set[str]:
    if isinstance(node, bool) or depth > _DEPTH:
        return set()
    inner = (_required(part, definitions, depth + 1) for _, part in same_value(node, definitions))
    return set(node.get("required", ())).union(*inner)
