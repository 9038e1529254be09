"""Rewrite a JSON Schema for the grammar compiler, or say which part of it cannot be enforced.

llguidance enforces most keywords. It ignores keywords that it does not know, rounds long numbers, reads
classes of characters in its own dialect, and names no place in its errors. `_Reader` drops keywords that only
describe, replaces spellings of OpenAPI, Gemini and zod by the compiler's keywords, and raises an error with
the place of everything else.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from llguidance import LLMatcher

from ..console.messages import one_line
from ..errors import InputError
from .patterns import ends_in_escape, has_control, has_look_around, rust_pattern
from .schema_keywords import (
    ABOUT,
    COMBINING,
    FORMAT_PATTERNS,
    FORMATS,
    LISTED,
    NAMED,
    NUMBERS,
    TYPES,
    cannot,
    check_constants,
    inward,
    is_understood,
    names_of,
    objection,
    refuse,
    shown,
    where,
)
from .schema_objects import Part, close_objects, inlined, name_keys
from .schema_types import json_schema_of

# One blank is allowed after a comma or a colon, and no other white space, because an uncertain model could
# write blanks for ever. `{"a": 1, "b": 2}` and `{"a":1,"b":2}` both match. Without escapes of code points,
# each text has one spelling, so an extra key cannot repeat a named key with a value of another type.
_OPTIONS = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "json_allowed_escapes": 'nrbtf\\"',
}
_TOO_DEEP = "schema: nested too deeply, or a long chain of references; make it flatter"
_DEEPEST = 200  # schemas within schemas. Beyond 2400 the compiler runs out of stack and ends the process.
_UNPROVEN = "oneOf constraints|circular references|stack level|too large"  # reports about oneOf
_LONG = 100  # characters; no example is made for a larger minLength
_MOST_CHECKED = 2_000_000  # characters; at most this much is compiled to find the part at fault


@dataclass(frozen=True)
class CheckedSchema:
    """A schema that the grammar compiler enforces in full.

    plain: the schema in the compiler's keywords. Every reference leads into its `$defs`.
    patterns: regular expressions in the schema.
    examples: texts that match its formats and lengths.
    warnings: parts that are not enforced, one line each.
    parts: all schemas in the schema, inner ones first, with their places in the caller's schema.
    """

    plain: dict[str, Any]
    patterns: tuple[str, ...]
    examples: tuple[str, ...]
    warnings: tuple[str, ...]
    parts: list[Part]

    def located(self, report: str) -> tuple[str, str]:
        """Return place and report of the innermost part that the compiler refuses if it is compiled alone.

        If there is none, return "at the top" and `report`.
        """
        left = _MOST_CHECKED
        for node, pointer in self.parts:
            has_reference = '"$ref"' in json.dumps(node)
            lark = lark_of({**node, "$defs": self.plain["$defs"]} if has_reference else node)
            left -= 1000 + len(lark)
            if left < 0:
                break
            if inner := LLMatcher.validate_grammar(lark):
                return where(pointer), inner
        return where(""), report


def lark_of(plain: dict[str, Any]) -> str:
    """Return a grammar in Lark's syntax for a schema in the compiler's keywords."""
    return f"start: %json {json.dumps({**plain, 'x-guidance': _OPTIONS})}"


def checked_schema(schema: Any) -> CheckedSchema:
    """Return `schema`, rewritten for the grammar compiler.

    schema: a JSON Schema (a dict, True or False), or a type that pydantic describes.
    Raises `InputError` with the place of a part that is not a schema or cannot be enforced.
    """
    given = json_schema_of(schema)
    try:
        text = json.dumps(given, allow_nan=False, ensure_ascii=False)
        text.encode()
        plain = json.loads(text)
    except (TypeError, ValueError) as error:
        raise InputError(f"schema: not JSON ({one_line(error)}); use plain JSON values") from None
    except RecursionError:
        raise InputError(_TOO_DEEP) from None
    try:
        return _Reader(plain).checked()
    except RecursionError:
        raise InputError(_TOO_DEEP) from None


class _Reader:
    """Rewrites one schema.

    It visits parts depth first, in the compiler's order, so its limit of depth also protects the compiler.
    """

    def __init__(self, root: Any):
        self._root = root
        self._definitions: dict[str, Any] = {}
        self._names: dict[str, str] = {}  # pointer of a definition -> its name in the result
        self._parts: list[Part] = []
        self._exclusive: list[Part] = []  # parts whose anyOf was oneOf
        self._patterns: dict[str, None] = {}
        self._examples: dict[str, None] = {}
        self._formats: dict[str, str] = {}  # a format that is not enforced -> its first place
        self._keywords: dict[str, str] = {}  # an unknown keyword -> its first place
        self._dropped: dict[str, str] = {}  # an alternative that was left out -> its place

    def checked(self) -> CheckedSchema:
        """Return the rewritten schema."""
        plain = {"$ref": self._definition("", self._root, 0), "$defs": self._definitions}
        if self._definitions["0"] is False:
            refuse("", "nothing satisfies it; loosen it")
        sealed = {id(node) for node, _ in self._parts if node.pop("unevaluatedProperties", True) is False}
        for node, pointer in self._exclusive:  # before `close_objects` changes alternatives
            options = [inlined(each, self._definitions) for each in node["anyOf"]]
            others = {key: value for key, value in node.items() if key != "anyOf"}
            alone = lark_of({**others, "oneOf": options, "$defs": self._definitions})
            if re.search(_UNPROVEN, LLMatcher.validate_grammar(alone)):
                refuse(
                    pointer,
                    "the alternatives of oneOf may overlap; use anyOf, or give each a required property "
                    "with a const of its own",
                )
        close_objects(self._parts, self._definitions, sealed)
        warnings = (
            _warning("format", self._formats, "not enforced; use pattern if the form matters"),
            _warning("keyword", self._keywords, "unknown and ignored"),
            _warning("alternative", self._dropped, "left out: no grammar follows look-around"),
        )
        return CheckedSchema(
            plain, tuple(self._patterns), tuple(self._examples), tuple(filter(None, warnings)), self._parts
        )

    def _definition(self, pointer: str, node: Any, depth: int) -> str:
        """Return a reference to the schema `node`. The first call for its `pointer` rewrites it."""
        name = self._names.get(pointer)
        if name is None:
            name = self._names[pointer] = str(len(self._names))
            self._definitions[name] = {}
            self._definitions[name] = self._schema(node, pointer, depth)
        return f"#/$defs/{name}"

    def _made(self, node: dict[str, Any], pointer: str) -> dict[str, Any]:
        """Add `node` to the parts of the result, and return it."""
        self._parts.append((node, pointer))
        return node

    def _schema(self, node: Any, pointer: str, depth: int) -> Any:
        """Return the rewritten schema `node`: a dict, True or False."""
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            refuse(pointer, f"a schema is an object, true or false, found {shown(node)}")
        if depth > _DEEPEST:
            raise RecursionError
        for key, value in node.items():
            problem = objection(key, value)
            if problem is not None:
                refuse(pointer, problem)
            if not is_understood(key, value):
                self._keywords.setdefault(f"'{one_line(key, 40)}'", pointer)
        if node.get("not", False) in (True, {}):
            return False
        if pointer and "$id" in node and '"$ref": "#' in json.dumps(node):
            refuse(pointer, "references within a schema with $id cannot be followed; leave $id out")
        result = self._enforced(node, pointer, depth)
        names = self._schema(node.get("propertyNames", True), f"{pointer}/propertyNames", depth + 1)
        if not name_keys(result, inlined(names, self._definitions)):
            refuse(pointer, cannot("propertyNames"))
        self._tidy(result, pointer)
        about = {ABOUT[key] for key in result if key in ABOUT}
        if len(about) == 1 and not result.keys() & {"type", *COMBINING}:
            result["type"] = about.pop()  # otherwise {"minLength": 1} would allow numbers, which nobody means
        made = self._made(result, pointer)
        if node.get("nullable") is True:  # OpenAPI 3.0, Gemini
            return self._made({"anyOf": [made, self._made({"type": "null"}, pointer)]}, pointer)
        return made

    def _enforced(self, node: dict[str, Any], pointer: str, depth: int) -> dict[str, Any]:
        """Return the enforced keywords of a schema, without those about types that it does not allow."""
        result: dict[str, Any] = {}
        kinds = set(TYPES)
        if "type" in node:
            kinds = set(names_of(node["type"]))
            listed = sorted(kinds, key=TYPES.index)
            result["type"] = listed if isinstance(node["type"], list) else listed[0]
        kinds |= {"number"} if "integer" in kinds else set()
        keys = list(node)
        skipped = "prefixItems" if isinstance(node.get("items"), list) else "additionalItems"  # by draft
        simple = [key for key in ABOUT if key in node and (ABOUT[key] in kinds or key == "format")]
        simple = [key for key in simple if key != skipped]
        combining = [key for key in keys if key in COMBINING]
        if "anyOf" in node and "oneOf" in node:
            refuse(pointer, "oneOf beside anyOf cannot be enforced; put one of them into allOf")
        # Properties are written in the order of the schema.
        late = combining and "properties" in node and keys.index(combining[0]) < keys.index("properties")
        for key in combining + simple if late else simple + combining:
            value, place = node[key], f"{pointer}/{key}"
            if key in NAMED:
                value = {each: self._schema(value[each], place + _step(each), depth + 1) for each in value}
            elif key in LISTED or (key == "items" and isinstance(value, list)):
                value = [self._schema(each, f"{place}/{at}", depth + 1) for at, each in enumerate(value)]
            elif key in ("items", "additionalItems", "additionalProperties"):
                value = self._schema(value, place, depth + 1)
            elif key == "$ref":
                value = self._definition(*_target(self._root, value, pointer), depth + 1)
            elif key in ("const", "enum"):
                check_constants(value, place)
            result["anyOf" if key == "oneOf" else key] = value
        if "oneOf" in node:
            self._exclusive.append((result, pointer))
        return result

    def _tidy(self, node: dict[str, Any], pointer: str) -> None:
        """Change keywords of `node` and their values to those that the compiler understands."""
        for key in NUMBERS[2:4]:
            if isinstance(node.get(key), bool):  # draft 4
                plain = key.removeprefix("exclusive").lower()
                if node.pop(key) and plain in node:
                    node[key] = node.pop(plain)
        for key in NUMBERS[:4]:
            if key in node:
                node[key] = inward(node[key], "inimum" in key, key.startswith("exclusive"))
        if 0 < node.get("minLength", 0) <= _LONG:
            self._examples["a" * node["minLength"]] = None
        if "pattern" in node:
            node["pattern"] = self._pattern(node["pattern"], pointer)
        if "patternProperties" in node:
            patterns = node["patternProperties"]
            node["patternProperties"] = {self._pattern(each, pointer): patterns[each] for each in patterns}
        form = node.pop("format", None)
        if form in FORMATS:
            self._examples[FORMATS[form]] = None
            rule = {"pattern": FORMAT_PATTERNS[form]} if form in FORMAT_PATTERNS else {"format": form}
            if node.keys() & rule:
                node["allOf"] = [*node.get("allOf", ()), rule]
            else:
                node |= rule
        elif form is not None:
            self._formats.setdefault(f"'{one_line(form, 40)}'", pointer)
        if isinstance(node.get("items"), list):  # draft 7
            node["prefixItems"] = node.pop("items")
            if "additionalItems" in node:
                node["items"] = node.pop("additionalItems")
        if "anyOf" in node:  # pydantic's Decimal has an alternative with look-around
            options = {f"{pointer}/anyOf/{at}": each for at, each in enumerate(node["anyOf"])}
            dropped = [place for place, each in options.items() if _is_look_around(each)]
            if len(dropped) < len(options):
                self._dropped |= {place: place for place in dropped}
                node["anyOf"] = [options[place] for place in options if place not in dropped]
        if node.get("minProperties", 0) > len(node.get("required", ())) + 1:
            refuse(  # extra keys may repeat, and a repeated key counts once
                pointer,
                f"minProperties {node['minProperties']} cannot be enforced; require names of properties",
            )

    def _pattern(self, pattern: str, pointer: str) -> str:
        if ends_in_escape(pattern):
            refuse(pointer, "a pattern ends within an escape; write two backslashes for one")
        if posix := re.search(r"\[\[:\^?[a-z]+:\]", pattern):
            refuse(pointer, f"JSON Schema reads {posix[0]!r} as single characters; write [0-9] or [A-Za-z]")
        if has_control(pattern):
            refuse(pointer, "a pattern has a control character, which is never written; leave it out")
        rewritten = rust_pattern(pattern)
        self._patterns[rewritten] = None
        return rewritten


def _is_look_around(node: Any) -> bool:
    return isinstance(node, dict) and node.keys() == {"type", "pattern"} and has_look_around(node["pattern"])


def _step(name: str) -> str:
    """Return `name` as a step of a JSON pointer."""
    return "/" + name.replace("~", "~0").replace("/", "~1")


def _target(root: Any, reference: str, pointer: str) -> tuple[str, Any]:
    """Return the pointer in `reference` and the schema in `root` that it leads to."""
    node, target = root if reference[:1] == "#" else None, unquote(reference[1:])
    node = node if target[:1] in ("", "/") else None
    for part in target.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        else:
            node = node.get(key) if isinstance(node, dict) else None
    if not isinstance(node, dict | bool):
        refuse(pointer, f"$ref {shown(reference)} leads to no schema within this one; put it under $defs")
    return target, node


def _warning(noun: str, places: dict[str, str], problem: str) -> str:
    """Return a warning with names and the places where each first occurs, or "" if there are none."""
    first = [f"{name} ({where(place)})" if name != place else where(name) for name, place in places.items()]
    listed = ", ".join(first[:5] + ([f"{len(first) - 5} more"] if len(first) > 5 else []))
    number = f"s {listed} are" if len(first) > 1 else f" {listed} is"
    return f"schema: {noun}{number} {problem}" if first else ""
