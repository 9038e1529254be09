"""Alternatives of a oneOf that exclude each other, so that it means the same as anyOf.

The grammar compiler follows alternatives, and cannot count how many of them hold.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from itertools import combinations
from typing import Any

from .schema_objects import Definitions, same_value

_KINDS = ("null", "boolean", "number", "string", "array", "object")
_DEPTH = 3  # of objects within objects that are compared: each level may multiply the work
_MOST = 300  # alternatives of which every pair is compared

Values = frozenset[str]  # constants, as JSON


@dataclass(frozen=True)
class _Shape:
    """Facts about the values of a schema. Each holds for all of them.

    kinds: type -> its only values, or None for any. properties: key -> what is there, if it is there.
    required: the keys that objects have. names: the only keys that they have, or None. narrowed: `names`
    holds because extra keys are forbidden here, not by the caller's schema.
    """

    kinds: Mapping[str, Values | None] = field(default_factory=lambda: dict.fromkeys(_KINDS))
    properties: Mapping[str, _Shape] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    names: frozenset[str] | None = None
    narrowed: bool = False


def simplify_one_of(
    nodes: Iterable[dict[str, Any]], definitions: Definitions, closed: Collection[int]
) -> dict[str, Any] | None:
    """Turn oneOf into anyOf where no value satisfies two alternatives; return a schema where some may.

    closed: ids of the schemas whose objects were closed here.
    """
    shapes = _Shapes(definitions, closed)
    for node in nodes:
        if "oneOf" not in node:
            continue
        options, shared = node["oneOf"], shapes.own(node)
        if not _all_exclusive([_both(shared, shapes.shape(option)) for option in options]):
            return node
        if "anyOf" in node:
            node["allOf"] = [*node.get("allOf", ()), {"anyOf": node.pop("oneOf")}]
            continue
        renamed = [("anyOf" if key == "oneOf" else key, value) for key, value in node.items()]
        node.clear()  # order matters: the compiler writes properties as it meets them
        node.update(renamed)
    return None


def _all_exclusive(shapes: list[_Shape]) -> bool:
    constants = [_constants_of(shape) for shape in shapes]
    if _all_disjoint(constants):
        return True
    required = frozenset.intersection(*(shape.required.intersection(shape.properties) for shape in shapes))
    objects = all(shape.kinds.keys() == {"object"} for shape in shapes)
    if objects and any(
        _all_disjoint([_constants_of(shape.properties[key]) for shape in shapes]) for key in required
    ):
        return True
    return len(shapes) <= _MOST and all(_exclusive(one, other) for one, other in combinations(shapes, 2))


def _all_disjoint(constants: list[Values | None]) -> bool:
    every = [value for values in constants for value in values or ()]
    return None not in constants and len(every) == len(set(every))


def _constants_of(shape: _Shape) -> Values | None:
    """All values of a shape; None if they are not listed."""
    values = list(shape.kinds.values())
    return None if None in values else frozenset().union(*(each for each in values if each))


def _exclusive(one: _Shape, other: _Shape, depth: int = 0) -> bool:
    """True if no value has both shapes."""
    if depth > _DEPTH:
        return False
    for kind in one.kinds.keys() & other.kinds.keys():
        mine, theirs = one.kinds[kind], other.kinds[kind]
        if mine is not None and theirs is not None:
            if mine & theirs:
                return False
        elif kind != "object" or not _objects_exclusive(one, other, depth):
            return False
    return True


def _objects_exclusive(one: _Shape, other: _Shape, depth: int) -> bool:
    described = one.properties.keys() & other.properties.keys() & (one.required | other.required)
    if any(_exclusive(one.properties[key], other.properties[key], depth + 1) for key in described):
        return True
    # An object of the one shape lacks a key that the other requires. Where only this package forbids extra
    # keys, it must be so both ways, since the caller's schema still allows them.
    first = one.names is not None and not other.required <= one.names
    second = other.names is not None and not one.required <= other.names
    return (first and (second or not one.narrowed)) or (second and not other.narrowed)


class _Shapes:
    """The shapes of schemas, each found once."""

    def __init__(self, definitions: Definitions, closed: Collection[int]):
        self._definitions, self._closed = definitions, closed
        self._known: dict[int, _Shape] = {}

    def shape(self, node: Any) -> _Shape:
        if isinstance(node, bool):
            return _Shape() if node else _Shape(kinds={})
        if id(node) not in self._known:
            self._known[id(node)] = _Shape()  # for references that lead back here
            self._known[id(node)] = self._found(node)
        return self._known[id(node)]

    def _found(self, node: Mapping[str, Any]) -> _Shape:
        shape = self.own(node)
        alternatives: dict[str, list[_Shape]] = {}
        for key, part in same_value(node, self._definitions):
            alternatives.setdefault(key, []).append(self.shape(part))
        for key, shapes in alternatives.items():
            shape = _both(shape, _either(shapes) if key in ("anyOf", "oneOf") else reduce(_both, shapes))
        return shape

    def own(self, node: Mapping[str, Any]) -> _Shape:
        """The shape of a schema without the schemas that it combines."""
        names = node.get("type", _KINDS)
        names = [names] if isinstance(names, str) else names
        kinds: Mapping[str, Values | None] = dict.fromkeys(
            "number" if name == "integer" else name for name in names
        )
        if "const" in node:
            kinds = _both_kinds(kinds, _constants([node["const"]]))
        if "enum" in node:
            kinds = _both_kinds(kinds, _constants(node["enum"]))
        properties = node.get("properties", {})
        is_closed = node.get("additionalProperties") is False and "patternProperties" not in node
        return _Shape(
            kinds,
            {name: self.shape(inner) for name, inner in properties.items()},
            frozenset(node.get("required", ())),
            frozenset(properties) if is_closed else None,
            is_closed and id(node) in self._closed,
        )


def _both(one: _Shape, other: _Shape, depth: int = 0) -> _Shape:
    shared = one.properties.keys() & other.properties.keys() if depth < _DEPTH else ()
    properties = {**one.properties, **other.properties}
    properties |= {key: _both(one.properties[key], other.properties[key], depth + 1) for key in shared}
    closing = [shape for shape in (one, other) if shape.names is not None]
    names = (
        reduce(frozenset.intersection, (shape.names or frozenset() for shape in closing)) if closing else None
    )
    return _Shape(
        _both_kinds(one.kinds, other.kinds),
        properties,
        one.required | other.required,
        names,
        any(shape.narrowed for shape in closing),
    )


def _both_kinds(
    one: Mapping[str, Values | None], other: Mapping[str, Values | None]
) -> Mapping[str, Values | None]:
    kinds: dict[str, Values | None] = {}
    for kind in one.keys() & other.keys():
        mine, theirs = one[kind], other[kind]
        kinds[kind] = theirs if mine is None else mine if theirs is None else mine & theirs
    return {kind: values for kind, values in kinds.items() if values is None or values}


def _either(shapes: list[_Shape], depth: int = 0) -> _Shape:
    kinds: dict[str, Values | None] = {}
    for shape in shapes:
        for kind, values in shape.kinds.items():
            known = kinds.get(kind, frozenset())
            kinds[kind] = None if values is None or known is None else known | values
    objects = [shape for shape in shapes if "object" in shape.kinds] or [_Shape()]
    shared = frozenset.intersection(*(frozenset(shape.properties) for shape in objects))
    shared = shared if depth < _DEPTH else frozenset()
    closing = [shape.names for shape in objects if shape.names is not None]
    return _Shape(
        kinds,
        {key: _either([shape.properties[key] for shape in objects], depth + 1) for key in shared},
        frozenset.intersection(*(shape.required for shape in objects)),
        frozenset().union(*closing) if len(closing) == len(objects) else None,
        any(shape.narrowed for shape in objects),
    )


def _constants(values: Iterable[Any]) -> dict[str, Values]:
    """Constants by type."""
    kinds: dict[str, Values] = {}
    for value in values:
        kind = _kind(value)
        kinds[kind] = kinds.get(kind, frozenset()) | {json.dumps(_normal(value), sort_keys=True)}
    return kinds


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _normal(value: Any) -> Any:
    """A constant where equal numbers are spelled alike."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_normal(each) for each in value]
    return {key: _normal(each) for key, each in value.items()} if isinstance(value, dict) else value
