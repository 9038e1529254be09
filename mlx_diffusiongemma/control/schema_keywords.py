"""Keywords of JSON Schema: which are enforced, ignored or refused, and which values they may have."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from difflib import get_close_matches
from typing import Any, NoReturn

from ..console.messages import one_line
from ..errors import InputError

_FAR = 9 * 10**17  # the largest bound that the compiler accepts

# Keywords and the type that each is about, in the order in which the compiler reads types and keywords.
NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
ABOUT = {
    **dict.fromkeys(NUMBERS, "number"),
    **dict.fromkeys(("pattern", "format", *COUNTS[:2]), "string"),
    **dict.fromkeys(("prefixItems", "items", "additionalItems", *COUNTS[2:4]), "array"),
    **dict.fromkeys(("properties", "patternProperties", "additionalProperties", "required"), "object"),
    **dict.fromkeys(("unevaluatedProperties", *COUNTS[4:]), "object"),
}
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
COMBINING = ("const", "enum", "allOf", "anyOf", "oneOf", "$ref")
NAMED, LISTED = ("properties", "patternProperties"), ("prefixItems", "allOf", "anyOf", "oneOf")

# Keywords that say nothing about which values are valid.
_REMARKS = frozenset((
    "$schema", "$id", "id", "$anchor", "$comment", "$vocabulary", "$defs", "definitions", "components",
    "title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly",
    "contentEncoding", "contentMediaType", "contentSchema", "discriminator", "externalDocs", "xml",
    "propertyOrdering", "enumNames", "enumDescriptions", "markdownDescription", "errorMessage", "tsType",
    "strict",
))  # fmt: skip

# Keywords that limit answers in a way that no grammar here can -> what to write instead.
_REFUSED = {
    "not": "list what is allowed instead (enum, pattern or anyOf)",
    **dict.fromkeys(("if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies"),
                    "give the cases as anyOf"),
    **dict.fromkeys(("contains", "minContains", "maxContains"), "describe every item with items"),
    "uniqueItems": "allow repetitions (false), or limit maxItems",
    "propertyNames": "use patternProperties, with additionalProperties false",
    "unevaluatedProperties": "use additionalProperties",
    "unevaluatedItems": "use prefixItems and items",
    **dict.fromkeys(("$dynamicRef", "$recursiveRef"), "use $ref"),
    **dict.fromkeys(("extends", "disallow", "divisibleBy"), "use the keywords of JSON Schema 2020-12"),
}  # fmt: skip
_HARMLESS: dict[str, tuple[Any, ...]] = {  # values that limit nothing, or that `_Reader` handles
    **dict.fromkeys(("not", "unevaluatedProperties"), (True, False, {})),
    "unevaluatedItems": (True, {}),
    **dict.fromkeys(("uniqueItems", "dependentRequired", "dependentSchemas", "dependencies"), (False, {})),
}
_CONTROL = re.compile(r"(?<!\\)(?:\\\\)*\\u00(?:[01]|7f)")  # in JSON, those without short escapes
_KNOWN = {name.lower(): name for name in (*ABOUT, *COMBINING, *_REFUSED, "type")}
_LONG_ONES = [name for name in _KNOWN if len(name) > 3]

# Formats that are enforced -> an example. Any other `format` is ignored, with a warning.
FORMATS = {
    "date": "2025-01-01", "date-time": "2025-01-01T00:00:00Z", "time": "00:00:00Z", "duration": "P1D",
    "email": "a@a.aa", "hostname": "a.aa", "ipv4": "0.0.0.0", "ipv6": "::", "uri": "https://a.aa",
    "uuid": "00000000-0000-4000-8000-000000000000",
}  # fmt: skip

# RFC 3339 without forms that calendars do not have or that few parsers accept: the year 0, February 29 in
# other years than leap years, second 60, small letters, more than nine digits after the seconds.
_BY_FOUR = r"(?:0[48]|[2468][048]|[13579][26])"
_DATE = (
    r"(?:(?:[1-9]\d{3}|0[1-9]\d{2}|00[1-9]\d|000[1-9])-"
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
    rf"|(?:\d\d{_BY_FOUR}|{_BY_FOUR}00)-02-29)"
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
FORMAT_PATTERNS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}


def where(pointer: str) -> str:
    """Return a place in a schema, given as a JSON pointer, in words for an error message."""
    return f"at {one_line(pointer, 100, keep_end=True)}" if pointer else "at the top"


def refuse(pointer: str, problem: str) -> NoReturn:
    """Raise `InputError` for a problem at one place in a schema."""
    raise InputError(f"schema: {where(pointer)}: {problem}")


def shown(value: Any) -> str:
    """Return a value of a schema as JSON of at most 40 characters."""
    return one_line(json.dumps(value), 40)


def cannot(key: str) -> str:
    """Return the message about keyword `key`, which no grammar here can enforce."""
    return f"keyword {key!r} cannot be enforced; {_REFUSED[key]}"


def names_of(types: str | list[Any]) -> list[Any]:
    """Return `types` as a list. Names in capitals, as Gemini writes them, become lower case."""
    listed = [types] if isinstance(types, str) else types
    return [name.lower() if isinstance(name, str) and name.isupper() else name for name in listed]


def _are_types(value: Any) -> bool:
    return isinstance(value, str | list) and value != [] and all(name in TYPES for name in names_of(value))


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


# Keyword -> a check of its value, and what the value must be. The compiler checks the rest.
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "type": (_are_types, f"one of {', '.join(TYPES)}"),
    **dict.fromkeys(("pattern", "format", "$ref"), (lambda value: isinstance(value, str), "a text")),
    **dict.fromkeys(COUNTS, (lambda value: type(value) is int and value >= 0, "a whole number from 0")),
    **dict.fromkeys(NUMBERS, (lambda value: isinstance(value, int | float), "a number")),
    "required": (_are_names, "a list of the names that an object must have"),
    **dict.fromkeys(NAMED, (lambda value: isinstance(value, dict), "an object of schemas")),
    **dict.fromkeys(
        (*LISTED, "enum"),
        (lambda value: isinstance(value, list) and value != [], "a list with something in it"),
    ),
    "nullable": (lambda value: isinstance(value, bool), "true or false"),
}


def is_understood(key: str, value: Any) -> bool:
    """Return True for a keyword that is enforced, refused, or says nothing about validity."""
    known = key in _VALUES or key in ABOUT or key in COMBINING or key in _REFUSED or key in _REMARKS
    return known or key.startswith(("x-", "ui:", "meta:")) or (key == "name" and isinstance(value, str))


def objection(key: str, value: Any) -> str | None:
    """Return the problem with a keyword and its value, or None if there is none."""
    if key in _VALUES and not _VALUES[key][0](value):
        return f"{key} is {_VALUES[key][1]}, found {shown(value)}"
    if key in _REFUSED and key != "propertyNames" and value not in _HARMLESS.get(key, ()):
        return cannot(key)
    if is_understood(key, value):
        return None
    name, plain = f"'{one_line(key, 40)}'", key.replace("_", "").replace("-", "").lower()
    close = [plain] if plain in _KNOWN else get_close_matches(plain, _LONG_ONES, n=1, cutoff=0.8)
    if close:
        return f"keyword {name} is unknown; did you mean {_KNOWN[close[0]]!r}?"
    if isinstance(value, dict) and value.keys() & {"$ref", "anyOf", "properties", "schema", "type"}:
        return f"{name} holds a schema, but is not a keyword; put it under properties, or give it alone"
    return None


def check_constants(value: Any, place: str) -> None:
    """Refuse numbers that the compiler would change by rounding, and texts with control characters."""

    def check(digits: str) -> None:
        _, figures, exponent = Decimal(digits).normalize().as_tuple()
        is_exact = len(figures) <= 15 and abs(int(exponent)) <= 22
        if digits.lstrip("-").isdecimal():
            is_exact = abs(int(digits)) <= 2**53
        if not is_exact:
            refuse(place, f"{one_line(digits, 40)} cannot be kept exactly; use at most 15 digits, or a text")

    text = json.dumps(value)
    json.loads(text, parse_int=check, parse_float=check)
    if _CONTROL.search(text):
        refuse(place, "a text has a control character, which is never written; leave it out")


def inward(bound: int | float, low: bool, exclusive: bool = False) -> int | float:
    """Return the number nearest to `bound` that the compiler reads exactly and that `bound` allows.

    low: True for a minimum, False for a maximum.
    """
    bound = max(bound, -_FAR) if low else min(bound, _FAR)
    context = Context(prec=15, Emin=-8, Emax=400, rounding=ROUND_CEILING if low else ROUND_FLOOR)
    if exclusive and bound == int(bound) and (0 <= bound < 10**14 if low else -(10**14) < bound <= 0):
        # The compiler includes 0 in the open range from 0 to 0.1.
        return float((context.next_plus if low else context.next_minus)(Decimal(int(bound))))
    if isinstance(bound, int) and abs(bound) <= 2**53:
        return bound
    number = context.create_decimal(repr(bound))
    return int(number) if number == int(number) else float(number)
