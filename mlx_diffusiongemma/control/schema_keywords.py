"""The keywords of JSON Schema: enforced, ignored, refused."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from ..console.messages import one_line
from .schema_numbers import is_number
from .schema_places import shown

# Kept in full, by the kind of value that each takes.
KINDS = {
    "type": "type", "const": "constants", "enum": "constants", "$ref": "reference", "pattern": "text",
    "format": "text", "minimum": "number", "maximum": "number", "exclusiveMinimum": "bound",
    "exclusiveMaximum": "bound", "multipleOf": "step", "minLength": "count", "maxLength": "count",
    "minItems": "count", "maxItems": "count", "minProperties": "count", "maxProperties": "count",
    "required": "names", "properties": "named", "patternProperties": "named", "items": "items",
    "additionalProperties": "schema", "additionalItems": "schema", "prefixItems": "list", "allOf": "list",
    "anyOf": "list", "oneOf": "list",
}  # fmt: skip

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")


def _type(value: Any) -> Any:
    names = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    lower = [name.lower() if isinstance(name, str) and name.isupper() else name for name in names]  # Gemini
    if not lower or any(name not in TYPES for name in lower):
        return None
    return lower if isinstance(value, list) else lower[0]


def _count(value: Any) -> int | None:
    return int(value) if is_number(value) and value >= 0 and value == int(value) else None


def _names(value: Any) -> list[str] | None:
    is_list = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return list(dict.fromkeys(value)) if is_list else None


# Kinds of values without schemas in them: a function to the value that is used, None for anything else; and
# what that is, in words.
VALUES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "type": (_type, f"one of {', '.join(TYPES)}"),
    "text": (lambda value: value if isinstance(value, str) else None, "a text"),
    "number": (lambda value: value if is_number(value) else None, "a number"),
    "bound": (lambda value: value if is_number(value) or isinstance(value, bool) else None, "a number"),
    "step": (lambda value: value if is_number(value) and value > 0 else None, "a number above 0"),
    "count": (_count, "a whole number from 0"),
    "names": (_names, "a list of the names that an object must have"),
}

# What the grammar compiler holds a string to, with an example. Any other `format` is an annotation.
FORMATS = {
    "date": "2025-01-01",
    "date-time": "2025-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "P1D",
    "email": "a@a.aa",
    "hostname": "a.aa",
    "ipv4": "0.0.0.0",
    "ipv6": "::",
    "uri": "https://a.aa",
    "uuid": "00000000-0000-4000-8000-000000000000",
}

# RFC 3339 without what no calendar and few readers have: the year 0, February 29 in other years than leap
# years, second 60, small letters, more than nine digits of a second.
_BY_FOUR = r"(?:0[48]|[2468][048]|[13579][26])"
_DATE = (
    r"(?:(?:[1-9]\d{3}|0[1-9]\d{2}|00[1-9]\d|000[1-9])-"
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
    rf"|(?:\d\d{_BY_FOUR}|{_BY_FOUR}00)-02-29)"
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
FORMAT_PATTERNS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}

# They say nothing about which values are valid.
REMARKS = frozenset((
    # JSON Schema: identity, containers of definitions, notes, content (annotations since 2019-09)
    "$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary", "$comment",
    "$defs", "definitions", "title", "description", "default", "deprecated", "readOnly", "writeOnly",
    "examples", "contentEncoding", "contentMediaType", "contentSchema",
    # OpenAPI, with the container that `$ref` leads to
    "example", "discriminator", "externalDocs", "xml", "components",
    # forms and editors
    "propertyOrder", "enumNames", "enumTitles", "enumDescriptions", "markdownDescription",
    "markdownEnumDescriptions", "enumItemLabels", "deprecationMessage", "errorMessage", "errorMessages",
    "patternErrorMessage", "defaultSnippets", "doNotSuggest", "suggestSortText", "completionDetail",
    "allowComments", "allowTrailingCommas",
    # code generators and validators
    "tsType", "tsEnumNames", "javaType", "$async",
))  # fmt: skip
REMARK_PREFIXES = ("x-", "ui:", "meta:")

# They limit the answers in a way that no grammar here can; and how to say it otherwise.
REFUSED = {
    "not": "list what is allowed instead (enum, pattern or anyOf)",
    "if": "give the cases as anyOf",
    "then": "give the cases as anyOf",
    "else": "give the cases as anyOf",
    "contains": "describe every item with items or prefixItems",
    "minContains": "use minItems",
    "maxContains": "use maxItems",
    "uniqueItems": "allow repetitions (false), or limit maxItems",
    "dependentRequired": "give the cases as anyOf",
    "dependentSchemas": "give the cases as anyOf",
    "dependencies": "give the cases as anyOf",
    "propertyNames": "use patternProperties, with additionalProperties false",
    "unevaluatedProperties": "use additionalProperties",
    "unevaluatedItems": "use prefixItems and items",
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
    # older drafts, validators' own keywords, JSON Type Definition
    "extends": "use allOf",
    "disallow": "list what is allowed instead (enum, pattern or anyOf)",
    "divisibleBy": "use multipleOf",
    "instanceof": "use type",
    "typeof": "use type",
    "range": "use minimum and maximum",
    "exclusiveRange": "use exclusiveMinimum and exclusiveMaximum",
    "regexp": "use pattern",
    "formatMinimum": "use pattern",
    "formatMaximum": "use pattern",
    "formatExclusiveMinimum": "use pattern",
    "formatExclusiveMaximum": "use pattern",
    "transform": "use pattern",
    "uniqueItemProperties": "allow repetitions",
    "allRequired": "use required",
    "anyRequired": "give the cases as anyOf",
    "oneRequired": "give the cases as anyOf",
    "patternRequired": "use required",
    "prohibited": "set additionalProperties to false",
    "deepProperties": "use properties",
    "deepRequired": "use required",
    "optionalProperties": "use properties; what required does not name is optional",
    "elements": "use items",
}

# Words that people expect to exist. An object under one of them is a remark.
EXPECTED = {
    "min": "use minimum, minLength or minItems",
    "max": "use maximum, maxLength or maxItems",
    "length": "use minLength and maxLength",
    "regex": "use pattern",
    "choices": "use enum",
    "options": "use enum",
}

_SPELLED = {name.lower(): name for name in (*KINDS, *REFUSED, "nullable")}
_SCHEMA_LIKE = frozenset(
    ("$ref", "allOf", "anyOf", "const", "enum", "items", "oneOf", "properties", "schema", "type")
)


def is_remark(key: str) -> bool:
    """True for a keyword that says nothing about validity."""
    return key in REMARKS or key.startswith(REMARK_PREFIXES)


def is_understood(key: str, value: Any, node: dict[str, Any]) -> bool:
    """True for a keyword that is enforced, or that says nothing about validity."""
    return key in KINDS or is_remark(key) or _says_nothing(key, value, node)


def objection(key: str, value: Any) -> str | None:
    """Return the problem with a keyword that is not understood; None if it is merely unknown."""
    name = f"'{one_line(key, 40)}'"
    if key in REFUSED:
        return cannot(key)
    if key in EXPECTED and not isinstance(value, dict):
        return f"keyword {name} is unknown; {EXPECTED[key]}"
    if key == "nullable":
        return f"nullable is true or false, found {shown(value)}"
    meant = _misspelled(key)
    if meant is not None:
        return f"keyword {name} is unknown; did you mean {meant!r}?"
    if isinstance(value, dict) and not _SCHEMA_LIKE.isdisjoint(value):
        return f"{name} holds a schema, but is not a keyword; put it under properties, or give it alone"
    return None


def cannot(key: str) -> str:
    """Words for a keyword that limits the answers in a way that no grammar here can."""
    return f"keyword {key!r} cannot be enforced; {REFUSED[key]}"


def _says_nothing(key: str, value: Any, node: dict[str, Any]) -> bool:
    """True for a keyword that means nothing with this value, or beside these keywords."""
    if key == "nullable":
        return isinstance(value, bool)  # true is not ignored
    if key == "uniqueItems":
        return value is False
    if key in ("dependentRequired", "dependentSchemas", "dependencies"):
        return value == {}
    if key in ("then", "else"):
        return "if" not in node
    if key == "if":
        return not node.keys() & {"then", "else"}
    if key in ("minContains", "maxContains"):
        return "contains" not in node
    if key == "propertyOrdering":
        return isinstance(value, list)
    return (key == "strict" and isinstance(value, bool)) or (key == "name" and isinstance(value, str))


def _misspelled(key: str) -> str | None:
    """The keyword that an unknown one was probably meant to be."""
    plain = key.replace("_", "").replace("-", "").lower()
    close = get_close_matches(plain, [name for name in _SPELLED if len(name) > 3], n=1, cutoff=0.8)
    return _SPELLED.get(plain) or (_SPELLED[close[0]] if close else None)
