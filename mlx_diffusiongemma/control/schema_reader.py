"""Rewrites a JSON Schema in keywords that the grammar compiler enforces, or says what it cannot enforce.

The compiler ignores keywords that it does not know, reads some numbers inexactly, and reports errors without
their place. What says nothing about validity is dropped here, other spellings (OpenAPI, Gemini, older drafts)
become those of JSON Schema 2020-12, and the rest is an error that names its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ..console.messages import one_line
from .patterns import ends_in_escape, has_look_around, rust_pattern
from .schema_alternatives import simplify_one_of
from .schema_keywords import (
    FORMAT_PATTERNS,
    FORMATS,
    KINDS,
    VALUES,
    cannot,
    is_remark,
    is_understood,
    objection,
)
from .schema_numbers import enforce_bounds, inexact_number
from .schema_objects import close_evaluated, close_objects, name_types
from .schema_places import refuse, shown, where
from .schema_refs import References, step
from .schema_rewrites import APPLIED, list_first_items

_LONG = 100  # characters; nobody asks for a text this long and means it
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class SchemaReader:
    """Rewrites one schema: `read()` once, then the attributes.

    definitions: what references lead to, by name. places: id of a part of the result -> where it stood, as a
    JSON pointer. patterns, formats, lengths: the regular expressions in it, the formats that are enforced,
    and how long texts must be. warnings: what is not enforced, a line each.
    """

    def __init__(self, root: Any):
        self._root, self._references = root, References(root)
        self._names: dict[str, str] = {}  # pointer of a definition -> its name in the result
        self._pending: list[tuple[str, Any, str, str]] = []
        self._nodes: list[dict[str, Any]] = []
        self._ignored: dict[str, str] = {}  # formats -> where each stands first
        self._unknown: dict[str, str] = {}
        self._left_out: dict[str, str] = {}  # alternatives
        self.definitions: dict[str, Any] = {}
        self.places: dict[int, str] = {}
        self.patterns: dict[str, None] = {}
        self.formats: dict[str, None] = {}
        self.lengths: dict[int, None] = {}

    def read(self) -> dict[str, Any]:
        """Return the schema, rewritten, without its definitions."""
        top = self._schema(self._root, "", "")
        while self._pending:
            name, node, pointer, base = self._pending.pop()
            self.definitions[name] = self._schema(node, pointer, base) if pointer else top
        if top is False:
            refuse("", "nothing satisfies it; loosen it")
        if "" in self._names:
            top = self._made("", {"$ref": f"#/$defs/{self._names['']}"})
        for node in self._nodes:
            rest = node.pop("unevaluatedProperties", True)
            if not close_evaluated(node, rest, self.definitions):
                refuse(self.places[id(node)], cannot("unevaluatedProperties"))
        name_types(self._nodes, self.definitions)
        closed = close_objects(self._nodes, self.definitions)
        overlapping = simplify_one_of(self._nodes, self.definitions, closed)
        if overlapping is not None:
            refuse(
                self.places[id(overlapping)],
                "the alternatives of oneOf may overlap; use anyOf, or give each a required property with a "
                "const of its own",
            )
        for node in self._nodes:
            enforce_bounds(node)
            _check_keys(node, self.places[id(node)])
        return {} if top is True else dict(top)

    @property
    def warnings(self) -> Iterator[str]:
        if self._ignored:
            yield f"schema: {_listed('format', self._ignored)} not enforced; use pattern if the form matters"
        if self._unknown:
            yield f"schema: {_listed('keyword', self._unknown)} unknown and ignored"
        if self._left_out:
            yield f"schema: {_listed('alternative', self._left_out)} left out: no grammar follows look-around"

    def _made(self, pointer: str, node: dict[str, Any]) -> dict[str, Any]:
        """`node`, known as a part of the result."""
        self.places[id(node)] = pointer
        self._nodes.append(node)
        return node

    def _schema(self, node: Any, pointer: str, base: str) -> Any:
        """A schema, rewritten: a dict, True or False."""
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            refuse(pointer, f"a schema is an object, true or false, found {shown(node)}")
        base = self._references.base(node, base)
        for key, value in node.items():
            if key not in APPLIED and not is_understood(key, value, node):
                problem = objection(key, value)
                if problem is not None:
                    refuse(pointer, problem)
                self._unknown.setdefault(f"'{one_line(key, 40)}'", pointer)
        result: dict[str, Any] = {}
        for key, value in node.items():
            if key in KINDS and not (key == "required" and value is False):  # draft 3: not required
                result[key] = self._value(key, value, pointer, base)
        list_first_items(result)
        for key in APPLIED:
            if key in node:
                place = self._named_schema(node[key], pointer + step(key), base)
                if not APPLIED[key](result, self._schema(*place)):
                    refuse(pointer, cannot(key))
        if result.pop("not", None) is not None:
            return False
        self._tidy_strings(result, pointer)
        self._tidy_objects(result, node)
        if "anyOf" in result:
            result["anyOf"] = self._followed(result["anyOf"], pointer)
        made = self._made(pointer, result)
        if node.get("nullable") is True:  # OpenAPI 3.0, Gemini
            return self._made(pointer, {"anyOf": [made, self._made(pointer, {"type": "null"})]})
        return made

    def _value(self, key: str, value: Any, pointer: str, base: str) -> Any:
        """The value of an enforced keyword, checked and rewritten."""
        kind, place = KINDS[key], pointer + step(key)
        if kind in VALUES:
            rewrite, wanted = VALUES[kind]
            rewritten = rewrite(value)
            if rewritten is None:
                refuse(pointer, f"{key} is {wanted}, found {shown(value)}")
            return rewritten
        if kind == "constants":
            number = inexact_number(value)
            if number is not None:
                refuse(place, f"{shown(number)} cannot be kept exactly; use at most 15 digits, or a text")
            if key == "enum" and not (isinstance(value, list) and value):
                refuse(pointer, f"enum is a list of at least one value, found {shown(value)}")
            return value
        if kind == "reference":
            return self._reference(value, pointer, base)
        if kind == "named":
            if not isinstance(value, dict):
                refuse(pointer, f"{key} is an object of schemas, found {shown(value)}")
            return {name: self._schema(inner, place + step(name), base) for name, inner in value.items()}
        if kind == "list" or isinstance(value, list):
            if not isinstance(value, list) or not (value or key == "items"):
                refuse(pointer, f"{key} is a list of at least one schema, found {shown(value)}")
            return [self._schema(inner, place + step(index), base) for index, inner in enumerate(value)]
        return self._schema(value, place, base)

    def _reference(self, reference: Any, pointer: str, base: str) -> str:
        target = self._references.target(reference, base) if isinstance(reference, str) else None
        if target is None or not isinstance(target.node, dict | bool):
            refuse(
                pointer,
                f"$ref {shown(reference)} leads to no schema within this one; put it under $defs",
            )
        name = self._names.get(target.pointer)
        if name is None:
            name = self._names[target.pointer] = str(len(self._names))
            self._pending.append((name, target.node, target.pointer, target.base))
        return f"#/$defs/{name}"

    def _named_schema(self, node: Any, pointer: str, base: str) -> tuple[Any, str, str]:
        """A schema, or the one that it only refers to, with its place."""
        target = None
        if (
            isinstance(node, dict)
            and isinstance(node.get("$ref"), str)
            and all(map(is_remark, node.keys() - {"$ref"}))
        ):
            target = self._references.target(node["$ref"], base)
        return (node, pointer, base) if target is None else tuple(target)

    def _tidy_strings(self, node: dict[str, Any], pointer: str) -> None:
        """Take out formats that are not enforced, and put patterns in the compiler's dialect."""
        if "format" in node and node["format"] in FORMATS:
            self.formats[node["format"]] = None
            if node["format"] in FORMAT_PATTERNS:
                form = self._made(pointer, {"pattern": FORMAT_PATTERNS[node.pop("format")]})
                node["allOf"] = [*node.get("allOf", ()), form]
        elif "format" in node:
            self._ignored.setdefault(f"'{one_line(node.pop('format'), 40)}'", pointer)
        if 0 < node.get("minLength", 0) <= _LONG:
            self.lengths[node["minLength"]] = None
        if "pattern" in node:
            node["pattern"] = self._pattern(node["pattern"], pointer)
        if "patternProperties" in node:
            node["patternProperties"] = {
                self._pattern(key, pointer): value for key, value in node["patternProperties"].items()
            }

    def _pattern(self, pattern: str, pointer: str) -> str:
        if ends_in_escape(pattern):
            refuse(pointer, "a pattern ends within an escape; write two backslashes for one")
        if posix := re.search(r"\[\[:\^?[a-z]+:\]", pattern):
            refuse(pointer, f"JSON Schema reads {posix[0]!r} as single characters; write [0-9] or [A-Za-z]")
        rewritten = rust_pattern(pattern)
        self.patterns[rewritten] = None
        return rewritten

    def _tidy_objects(self, node: dict[str, Any], source: dict[str, Any]) -> None:
        """Put properties in the order that Gemini's keyword asks for: they are written in that order."""
        order = source.get("propertyOrdering")
        if isinstance(order, list) and "properties" in node:
            own = node["properties"]
            first = [name for name in dict.fromkeys(map(str, order)) if name in own]
            node["properties"] = {name: own[name] for name in dict.fromkeys([*first, *own])}

    def _followed(self, options: list[Any], pointer: str) -> list[Any]:
        """The alternatives that a grammar can follow, where there are such."""
        kept = [each for each in options if not has_look_around(_pattern(each))]
        if not kept:
            return options
        for index, each in enumerate(options):
            if has_look_around(_pattern(each)):
                self._left_out[f"{pointer}/anyOf/{index}"] = f"{pointer}/anyOf/{index}"
        return kept


def _pattern(node: Any) -> str:
    return node.get("pattern", "") if isinstance(node, dict) else ""


def _listed(noun: str, places: dict[str, str]) -> str:
    """Names with the places where they stand first; a name that is a place stands for itself."""
    first = [
        where(name) if name == pointer else f"{name} ({where(pointer)})"
        for name, pointer in list(places.items())[:5]
    ]
    more = [f"{len(places) - 5} more"] if len(places) > 5 else []
    return f"{noun}{'s' * (len(places) > 1)} {', '.join(first + more)} {'are' if len(places) > 1 else 'is'}"


def _check_keys(node: dict[str, Any], pointer: str) -> None:
    """Refuse objects whose extra keys the compiler would let repeat what is described."""
    needed, least = node.get("required", ()), node.get("minProperties", 0)
    if least > len(needed) + 1:  # extra keys may repeat, and a repeated key counts once
        refuse(
            pointer,
            f"minProperties {least} cannot be enforced with {len(needed)} required names; name more of them",
        )
    is_closed = node.get("additionalProperties") is False and "patternProperties" not in node
    if not is_closed and any(_CONTROL.search(name) for name in (*node.get("properties", ()), *needed)):
        # `\n` and `\u000a` are one name: an extra key could repeat it with a value of another type.
        refuse(
            pointer,
            "a property name has a control character; set additionalProperties to false beside it",
        )
