"""Keys of objects, and schemas that describe one value together.

The schemas here are rewritten ones (see `schema.py`). They have enforced keywords only, and every `$ref`
leads into the definitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .schema_keywords import NAMED, cannot, refuse

Part = tuple[dict[str, Any], str]  # a schema, and its place in the caller's schema as a JSON pointer


def name_keys(node: dict[str, Any], names: Any) -> bool:
    """Add keywords to `node` that enforce its `propertyNames`. Return False if no keywords can.

    names: the rewritten schema of `propertyNames`.
    """
    if names in (True, {}, {"type": "string"}):
        return True
    if not isinstance(names, dict) or names.get("type", "string") != "string" or node.keys() & NAMED:
        return False
    keys, rest = names.keys() - {"type"}, node.get("additionalProperties", True)
    if keys in ({"enum"}, {"const"}):
        allowed = names.get("enum", [names.get("const")])
        node["properties"] = {name: rest for name in allowed if isinstance(name, str)}
    elif keys == {"pattern"} or keys <= {"minLength", "maxLength"}:
        lengths = f"{names.get('minLength', 0)},{names.get('maxLength', '')}"
        node["patternProperties"] = {names.get("pattern", rf"^[\s\S]{{{lengths}}}$"): rest}
    else:
        return False
    node["additionalProperties"] = False
    return True


def inlined(node: Any, definitions: dict[str, Any]) -> Any:
    """Replace a node that is only a `$ref` by its definition.

    The branches of a node that is only an `anyOf` are replaced in the same way.
    """
    if isinstance(node, dict) and node.keys() == {"$ref"}:
        return inlined(definitions[node["$ref"].rpartition("/")[2]], definitions)
    if isinstance(node, dict) and node.keys() == {"anyOf"}:
        return {"anyOf": [inlined(each, definitions) for each in node["anyOf"]]}
    return node


def _described(node: dict[str, Any], definitions: dict[str, Any], *lists: str) -> list[dict[str, Any]]:
    """Return all schemas that `node` applies to one value, `node` first.

    Follows `$ref` and the keywords in `lists` ("allOf", "anyOf"). No schema is returned twice.
    """
    parts, known = [node], {id(node)}
    for part in parts:
        inner = [definitions[part["$ref"].rpartition("/")[2]]] if "$ref" in part else []
        for each in inner + [each for key in lists for each in part.get(key, ())]:
            if isinstance(each, dict) and id(each) not in known:
                known.add(id(each))
                parts.append(each)
    return parts


def _combines(node: dict[str, Any]) -> bool:
    """Return True if `node` combines several schemas for one value, beyond a choice of alternatives."""
    sources = node.keys() & {"$ref", "allOf", "anyOf"}
    several = len(sources) > 1 or len(node.get("allOf", ())) > 1 or node.keys() - {"type"} != sources
    return bool(sources) and several


def close_objects(parts: Sequence[Part], definitions: dict[str, Any], sealed: set[int]) -> None:
    """Forbid extra keys where a schema names keys and says nothing about others.

    If several schemas describe an object, extra keys are forbidden in the schema that combines them.

    sealed: `id`s of the schemas with `unevaluatedProperties: false`. Raises `InputError` if the keys of such
        a schema depend on an alternative, a pattern or `additionalProperties`.
    """
    combining = {id(node): node for node, _ in parts if id(node) in sealed or _combines(node)}
    members: set[int] = set()
    for node in combining.values():
        members |= {id(each) for each in _described(node, definitions, "allOf", "anyOf")[1:]}
    for node, pointer in parts:
        is_sealed, own = id(node) in sealed, node.get("properties", {})
        if not is_sealed and (id(node) in members or not ("properties" in node or id(node) in combining)):
            continue
        described = _described(node, definitions, "allOf", "anyOf")
        names = {name: True for each in described for name in each.get("properties", ())}
        required = {name for each in described for name in each.get("required", ())}
        is_open = any(each.keys() & {"additionalProperties", "patternProperties"} for each in described)
        if is_sealed:
            always = [id(each) for each in _described(node, definitions, "allOf")]
            if is_open or any("properties" in each and id(each) not in always for each in described):
                refuse(pointer, cannot("unevaluatedProperties"))
        if is_sealed or ((names or "properties" in node) and not is_open and required <= names.keys()):
            node["properties"] = {**own, **names, **own}
            node["additionalProperties"] = False
