"""How deep the grammar compiler goes into a JSON Schema. Beyond its stack it takes the process down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .schema_objects import Definitions, definition

_MOST = 800  # it crashed between 2400 and 4500, on a stack of 8 MB
_COMBINING = ("allOf", "anyOf", "oneOf")


def is_too_deep(top: Mapping[str, Any], definitions: Definitions) -> bool:
    """True if the compiler would go too deep into a schema as `schema_reader` writes it.

    It goes into a definition where it first meets it, so the order in which it reads keywords counts.
    """
    met: set[str] = set()
    pending: list[tuple[Any, int]] = [(top, 0)]  # the next one last; a text is a reference
    while pending:
        node, depth = pending.pop()
        if depth > _MOST:
            return True
        if isinstance(node, str):
            if node not in met:
                met.add(node)
                pending.append((definition(node, definitions), depth + 1))
        elif isinstance(node, Mapping):
            pending += [(part, depth + 1) for part in reversed([*_parts(node)])]
    return False


def _parts(node: Mapping[str, Any]) -> Iterator[Any]:
    """The schemas and references in a schema, in the compiler's order."""
    together: dict[str, Any] = {}  # keywords that it reads at once, up to the next that combines schemas
    for key, value in node.items():
        if key in (*_COMBINING, "const", "enum", "$ref"):
            yield from _inner(together, node)
            together = {}
            if key in _COMBINING:
                yield from value
            elif key == "$ref":
                yield value
        else:
            together[key] = value
    yield from _inner(together, node)


def _inner(together: Mapping[str, Any], node: Mapping[str, Any]) -> Iterator[Any]:
    kinds = node.get("type", ("array", "object"))
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if kind == "array":
            yield from together.get("prefixItems", ())
            yield together.get("items")
        elif kind == "object":
            yield from together.get("properties", {}).values()
            yield from together.get("patternProperties", {}).values()
            yield together.get("additionalProperties")
