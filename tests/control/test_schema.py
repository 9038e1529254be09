"""JSON Schemas as callers send them: what is enforced, understood, ignored and refused."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.grammars import accepts, compiled, refusal, shortest

from mlx_diffusiongemma.control.schema import checked_schema
from mlx_diffusiongemma.control.schema_keywords import FORMATS
from mlx_diffusiongemma.errors import InputError


def plain(schema: Any) -> dict[str, Any]:
    """Return the schema that the compiler gets."""
    checked = checked_schema(schema)
    assert checked.warnings == ()
    return checked.plain["$defs"]["0"]


# Keywords that say nothing about validity, each with a value that its inventors use.
REMARKS: dict[str, Any] = {
    "$schema": "http://json-schema.org/draft-04/schema#", "$id": "https://example.com/a", "id": "a",
    "$anchor": "here", "$comment": "c", "$vocabulary": {"https://example.com/vocabulary": True},
    "$defs": {"unused": {"not": {"type": "null"}}}, "definitions": {"unused": {"if": {}, "then": False}},
    "title": "t", "description": "d", "default": 7, "deprecated": True, "readOnly": True, "writeOnly": False,
    "examples": [{"not": 1}], "contentEncoding": "base64", "contentMediaType": "application/json",
    "contentSchema": {"not": {}}, "example": {"if": 1}, "externalDocs": {"url": "https://example.com"},
    "xml": {"name": "a"}, "discriminator": {"propertyName": "kind", "mapping": {"a": "#/$defs/unused"}},
    "nullable": False, "components": {"schemas": {"Unused": {"uniqueItems": True}}},
    "propertyOrdering": ["b", "a"], "enumNames": ["A"], "markdownDescription": "*a*", "tsType": "Date",
    "errorMessage": {"type": "wrong"}, "strict": True, "name": "person", "x-guidance": {"lenient": True},
    "ui:widget": "textarea", "uniqueItems": False, "dependentRequired": {}, "dependencies": {}, "not": False,
    "unevaluatedItems": True, "unevaluatedProperties": {}, "additionalItems": False, "format": "int64",
    "propertyNames": {"type": "string", "title": "zod writes this for every record"},
}  # fmt: skip


def test_remarks_are_ignored() -> None:
    for key, value in REMARKS.items():
        if key != "format":
            assert plain({key: value, "type": "string"}) == {"type": "string"}, key
    inner = {"type": "object", "properties": {"a": {**REMARKS, "minimum": 3, "type": "integer"}}}
    assert not accepts(compiled(schema=inner), '{"a": 2}')


@pytest.mark.parametrize(("schema", "place", "said"), [
    ({"not": {"const": 3}}, "the top", "'not' cannot be enforced; list what is allowed"),
    ({"items": {"uniqueItems": True}}, "/items", "'uniqueItems' cannot be enforced; allow repetitions"),
    ({"if": {}, "then": False}, "the top", "'if' cannot be enforced; give the cases as anyOf"),
    ({"then": False, "if": {}}, "the top", "'then' cannot be enforced"),
    ({"contains": {"const": 1}}, "the top", "'contains' cannot be enforced"),
    ({"dependentRequired": {"a": ["b"]}}, "the top", "'dependentRequired' cannot be enforced"),
    ({"dependencies": {"a": ["b"]}}, "the top", "'dependencies' cannot be enforced"),
    ({"propertyNames": {"anyOf": [{}, {}]}}, "the top", "'propertyNames' cannot be enforced"),
    ({"properties": {"a": {}}, "propertyNames": {"enum": ["a"]}}, "the top", "'propertyNames' cannot"),
    ({"extends": {}}, "the top", "use the keywords of JSON Schema 2020-12"),
    ({"oneOf": [{"const": "a"}], "anyOf": [{}]}, "the top", "put one of them into allOf"),
    ({"unevaluatedItems": False, "allOf": [{"items": {}}]}, "the top", "'unevaluatedItems' cannot"),
    ({"unevaluatedProperties": False, "anyOf": [{"properties": {"a": {}}}, {}]}, "the top",
     "'unevaluatedProperties' cannot be enforced; use additionalProperties"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$dynamicRef": "#a"}}}, "/$defs/a", "use $ref"),
    ({"properties": {"a": {"anyOf": [{}, {"minLenght": 3}]}}}, "/properties/a/anyOf/1", "'minLength'?"),
    ({"additionalProperties": {"requird": []}}, "/additionalProperties", "did you mean 'required'?"),
    ({"prefixItems": [{}, {"any_of": []}]}, "/prefixItems/1", "did you mean 'anyOf'?"),
    ({"patternProperties": {"^a/b~": {"Type": "string"}}}, "/patternProperties/^a~1b~0", "'type'?"),
    ({"type": "object", "city": {"type": "string"}}, "the top", "put it under properties"),
    ({"name": {"type": "string"}}, "the top", "'name' holds a schema"),
    ({"name": "a", "schema": {"type": "string"}}, "the top", "'schema' holds a schema"),
    ({"type": "json_schema", "json_schema": {"schema": {}}}, "the top", 'found "json_schema"'),
    ({"properties": {"\x1b[31m": {"not": {"const": 1}}}}, r"/properties/\x1b[31m", "'not'"),
    # Found by the compiler.
    ({"properties": {"a": {"pattern": "(?=a)b"}}}, "/properties/a", "look-around"),
    ({"properties": {"a": {"items": {"pattern": "(a"}}}}, "/properties/a/items", "unclosed group"),
    ({"$defs": {"b": {"pattern": "(a"}}, "items": {"$ref": "#/$defs/b"}}, "/$defs/b", "unclosed group"),
    ({"items": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}, "/items", "may overlap; use anyOf"),
    ({"properties": {"a": {"minimum": 2, "maximum": 1, "type": "integer"}}, "required": ["a"]},
     "/properties/a", "greater than"),
    ({"items": {"allOf": [{"type": "string"}, {"const": 1}]}, "minItems": 1}, "/items", "incompatible"),
    ({"properties": {"a": {"minimum": 1e30}}}, "/properties/a", "above 9e17"),
    ({"items": {"properties": {"a": {}, "b": {}, "c": {}}, "maxProperties": 2}}, "/items",
     "make them required"),
    ({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}], "minimum": 3}}, "$ref": "#/$defs/a"},
     "/$defs/a/allOf/0", "leads back to itself"),
])  # fmt: skip
def test_what_cannot_be_enforced_is_refused_at_its_place(
    schema: dict[str, Any], place: str, said: str
) -> None:
    message = refusal(schema=schema)
    assert message.startswith(f"schema: at {place}: ")
    assert said in message


@pytest.mark.parametrize(("schema", "said"), [
    ({"items": {"type": "str"}}, "at /items: type is one of null, boolean, integer, number, string, arr"),
    ({"type": []}, "at the top: type is one of"),
    ({"type": "string", "minLength": "3"}, 'at the top: minLength is a whole number from 0, found "3"'),
    ({"maxItems": -1}, "maxItems is a whole number from 0, found -1"),
    ({"minItems": 1.5}, "minItems is a whole number from 0, found 1.5"),
    ({"items": {"minimum": True}}, "at /items: Expected f64 for 'minimum', got true"),
    ({"minimum": "3"}, 'minimum is a number, found "3"'),
    ({"items": {"multipleOf": 0}}, "at /items: invalid multiple of"),
    ({"pattern": 3}, "pattern is a text, found 3"),
    ({"properties": {"a": {"required": True}}}, "at /properties/a: required is a list of the names"),
    ({"required": ["a", 3]}, "required is a list of the names that an object must have"),
    ({"properties": ["a"]}, 'properties is an object of schemas, found ["a"]'),
    ({"properties": {"a": "string"}}, 'at /properties/a: a schema is an object, true or false, found "s'),
    ({"anyOf": []}, "anyOf is a list with something in it, found []"),
    ({"allOf": {}}, "allOf is a list with something in it, found {}"),
    ({"enum": "a"}, 'enum is a list with something in it, found "a"'),
    ({"nullable": "true"}, 'nullable is true or false, found "true"'),
    ({"$ref": "#/$defs/none"}, '$ref "#/$defs/none" leads to no schema within this one'),
    ({"$ref": "https://example.com/a"}, "leads to no schema within this one; put it under $defs"),
    ({"$ref": "#here", "$defs": {"a": {"$anchor": "here"}}}, "leads to no schema within this one"),
    ({"items": {"$ref": 3}}, "at /items: $ref is a text, found 3"),
    ({"$ref": "#/required", "required": ["a"]}, "leads to no schema"),
    ({"$defs": {"a": {"$id": "b", "items": {"$ref": "#/a"}}}, "$ref": "#/$defs/a"}, "leave $id out"),
    ({"const": {1, 2}}, "not JSON (Object of type set"),
    ({"const": float("nan")}, "not JSON (Out of range float"),
    ({"enum": [0, "\ud800"]}, "not JSON ('utf-8' codec"),
    (False, "nothing satisfies it"),
    ({"not": {}}, "nothing satisfies it"),
    ({"type": "object", "minProperties": 2}, "minProperties 2 cannot be enforced"),
    ({"items": {"const": {"a": ["\x01"]}}}, "at /items/const: a text has a control character"),
    ({"enum": ["\x7f"]}, "at /enum: a text has a control character"),
    ({"items": {"pattern": "a\x01"}}, "at /items: a pattern has a control character"),
    ({"pattern": r"^[\x07]$"}, "a pattern has a control character"),
    ({"pattern": r"\\\v"}, "a pattern has a control character"),
])  # fmt: skip
def test_wrong_values_are_refused(schema: Any, said: str) -> None:
    assert said in refusal(schema=schema)


def test_what_is_not_enforced_is_listed_in_one_warning() -> None:
    schema = {"properties": {f"p{i}": {"type": "string", "format": f"f{i}"} for i in range(7)}}
    schema["properties"]["int"] = {"type": "integer", "format": "f0"}
    (warning,) = compiled(schema=schema).warnings
    assert warning.startswith("schema: formats 'f0' (at /properties/p0), 'f1' (at /properties/p1), ")
    assert "'f4' (at /properties/p4), 2 more are not enforced" in warning
    (warning,) = compiled(schema={"format": "int64", "type": "integer"}).warnings
    assert warning == "schema: format 'int64' (at the top) is not enforced; use pattern if the form matters"
    schema = {"widget": "textarea", "items": {"widget": 1, "a\x1b": 2}, "type": "array"}
    (warning,) = compiled(schema=schema).warnings
    assert warning == r"schema: keywords 'widget' (at the top), 'a\x1b' (at /items) are unknown and ignored"


@pytest.mark.parametrize("name", FORMATS)
def test_every_enforced_format_holds(name: str) -> None:
    grammar = compiled(schema={"type": "string", "format": name})
    assert grammar.warnings == ()
    assert accepts(grammar, json.dumps(FORMATS[name]))
    assert len(grammar.shortest) <= len(grammar.vocabulary.spell(json.dumps(FORMATS[name]).encode())) + 1
    assert not accepts(grammar, '"?"')
    assert accepts(compiled(schema={"type": ["string", "integer"], "format": name}), "3")


DATE, DATE_TIME = compiled(schema={"format": "date"}), compiled(schema={"format": "date-time"})


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 12), st.integers(1, 31))
def test_dates_are_those_of_the_calendar(year: int, month: int, day: int) -> None:
    text = f"{year:04}-{month:02}-{day:02}"
    try:
        datetime.date.fromisoformat(text)
        valid = True
    except ValueError:
        valid = False
    assert accepts(DATE, f'"{text}"') == valid
    assert accepts(DATE_TIME, f'"{text}T23:59:59.5+02:00"') == valid


# Schemas in older or other spellings, with a validator of their dialect (None: no validator knows it; then
# values are those that should fit), and values to judge.
DRAFT_4, DRAFT_7 = jsonschema.Draft4Validator, jsonschema.Draft7Validator
LATEST = jsonschema.Draft202012Validator
NUMBERS = [0, 1, 2, 3, 3.5, 4]
OBJECTS = [{}, {"a": 1}, {"b": 1}, {"a": 1, "b": 2}, {"c": 1}, {"a": "x"}, {"ccc": 1}]
ARRAYS = [[], [1], ["x"], ["x", 1], ["x", "y"], ["x", 1, True], [1, 1]]
AB = {"a": {"type": "integer"}, "b": {"type": "integer"}}
SPELLINGS: list[tuple[Any, dict[str, Any], list[Any]]] = [
    (DRAFT_4, {"type": "number", "minimum": 2, "exclusiveMinimum": True, "maximum": 4}, NUMBERS),
    (DRAFT_4, {"type": "number", "minimum": 2, "exclusiveMinimum": False, "maximum": 4}, NUMBERS),
    (DRAFT_4, {"type": "integer", "maximum": 3, "exclusiveMaximum": True}, NUMBERS),
    (DRAFT_7, {"type": "array", "items": [{"type": "string"}, {"type": "integer"}]}, ARRAYS),
    (DRAFT_7, {"items": [{"type": "string"}], "additionalItems": False}, ARRAYS),
    (DRAFT_7, {"items": [{"type": "string"}], "additionalItems": {"type": "integer"}}, ARRAYS),
    (DRAFT_7, {"items": {"type": "string"}, "additionalItems": False}, ARRAYS),
    (LATEST, {"propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "integer"}}, OBJECTS),
    (LATEST, {"propertyNames": {"const": "a"}, "required": ["a"]}, OBJECTS),
    (LATEST, {"propertyNames": {"$ref": "#/$defs/k"}, "$defs": {"k": {"enum": ["a"]}}}, OBJECTS),
    (LATEST, {"propertyNames": {"pattern": "^[ab]$"}, "additionalProperties": {"type": "integer"}}, OBJECTS),
    (LATEST, {"propertyNames": {"minLength": 2}}, OBJECTS),
    (LATEST, {"propertyNames": {"maxLength": 1, "type": "string"}}, OBJECTS),
    (LATEST, {"properties": AB, "unevaluatedProperties": False}, OBJECTS),
    (LATEST, {"allOf": [{"properties": {"a": AB["a"]}}, {"$ref": "#/$defs/b"}],
              "unevaluatedProperties": False,
              "$defs": {"b": {"properties": {"b": AB["b"]}, "required": ["b"]}}}, OBJECTS),
    (LATEST, {"properties": AB, "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
              "unevaluatedProperties": False}, OBJECTS),
    (LATEST, {"properties": {"a": {"not": {}}, "b": {}}, "additionalProperties": False}, OBJECTS),
    (LATEST, {"items": {"not": True}}, ARRAYS),
]  # fmt: skip


@pytest.mark.parametrize(("validator", "schema", "values"), SPELLINGS)
def test_other_spellings_mean_the_same(validator: Any, schema: dict[str, Any], values: list[Any]) -> None:
    grammar = compiled(schema=schema)
    for value in values:
        assert accepts(grammar, json.dumps(value)) == validator(schema).is_valid(value), value


@pytest.mark.parametrize("schema", [
    {"type": "string", "enum": ["a"], "nullable": True},
    {"type": "STRING", "enum": ["a"], "nullable": True},
    {"nullable": True, "$ref": "#/$defs/a"},
    {"nullable": True, "anyOf": [{"const": "a"}]},
    {"nullable": True, "allOf": [{"type": "string"}, {"const": "a"}]},
])  # fmt: skip
def test_nullable_lets_null_in(schema: dict[str, Any]) -> None:
    grammar = compiled(schema={"items": schema, "type": "array", "$defs": {"a": {"const": "a"}}})
    values = {'["a"]': True, "[null]": True, '["b"]': False, "[1]": False}
    assert {text: accepts(grammar, text) for text in values} == values


def test_types_in_capitals_are_geminis() -> None:
    items = {"type": "ARRAY", "items": {"type": "STRING"}}
    grammar = compiled(schema={"type": "OBJECT", "properties": {"b": {"type": "NUMBER"}, "a": items}})
    assert accepts(grammar, '{"b": 1.5, "a": ["x"]}')
    assert not accepts(grammar, '{"b": 1.5, "a": [1]}')
    assert not accepts(grammar, '{"a": ["x"], "b": 1.5}')  # properties are written in the order of the schema
    assert 'found "Object"' in refusal(schema={"type": "Object"})


STRING = {"type": "string"}
REFERENCES: list[dict[str, Any]] = [
    {"$ref": "#/$defs/a", "$defs": {"a": STRING}},
    {"$ref": "#/definitions/a~1b~0c%25", "definitions": {"a/b~c%": STRING}},
    {"$ref": "#/components/schemas/A", "components": {"schemas": {"A": STRING}}},
    {"$ref": "#/$defs/a/anyOf/0", "$defs": {"a": {"anyOf": [STRING]}}},
    {"$id": "https://example.com/a", "$ref": "#/$defs/b", "$defs": {"b": STRING}},
    {"$ref": "#/$defs/a", "$defs": {"a": {"id": "user", "$ref": "#/$defs/b"}, "b": STRING}},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/c"}, "c": STRING}},
    {"$ref": "#/$defs/a", "description": "d", "$defs": {"a": STRING, "broken": {"type": "Date", "not": {}}}},
]  # fmt: skip


@pytest.mark.parametrize("schema", REFERENCES)
def test_references_are_pointers(schema: dict[str, Any]) -> None:
    grammar = compiled(schema=schema)
    assert accepts(grammar, '"a"')
    assert not accepts(grammar, "1")


@pytest.mark.parametrize(
    ("reference", "rest"),
    [("#", {}), ("#/$defs/t", {"$defs": {"t": {"$ref": "#"}}}), ("#/properties/a/items", {})],
)
def test_recursive_schemas(reference: str, rest: dict[str, Any]) -> None:
    items = {"type": "array", "items": {"$ref": reference}}
    schema = {"properties": {"a": items}, "additionalProperties": False, **rest}
    if "properties" in reference:
        items["items"] = {
            "type": "object",
            "properties": {"a": {"type": "array", "items": {"$ref": reference}}},
        }
    grammar = compiled(schema=schema)
    assert accepts(grammar, '{"a": [{"a": [{"a": []}, {}]}]}')
    assert not accepts(grammar, '{"a": [{"a": [{"a": 1}]}]}')


@pytest.mark.parametrize("schema", [
    {"$ref": "#"},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    {"items": {"$ref": "#"}, "minItems": 1, "type": "array"},
    {"properties": {"a": {"$ref": "#"}}, "required": ["a"], "type": "object"},
    {"properties": {"a": False}, "required": ["a"], "type": "object"},
    {"type": "string", "minLength": 3, "maxLength": 2},
    {"type": "array", "minItems": 2, "maxItems": 1},
    {"type": "string", "pattern": r"^[^\s\S]$"},
    {"type": "string", "enum": [1]},
])  # fmt: skip
def test_schemas_that_nothing_satisfies_are_refused(schema: dict[str, Any]) -> None:
    refusal(schema=schema)


def test_deep_schemas() -> None:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(60):
        schema = {"type": "array", "items": schema, "minItems": 1}
    assert json.loads(shortest(compiled(schema=schema)))
    for _ in range(2000):
        schema = {"items": schema}
        if _ in (80, 300, 1999):
            assert "nested too deeply" in refusal(schema=schema)
    schema["items"] = schema
    assert "not JSON" in refusal(schema=schema)


@pytest.mark.parametrize("link", [
    lambda inner: inner,
    lambda inner: {"type": "object", "properties": {"a": inner}},
    lambda inner: {"allOf": [{"type": "array", "items": inner}]},
    lambda inner: {"anyOf": [{"additionalProperties": inner, "type": ["array", "object"]}]},
])  # fmt: skip
@pytest.mark.parametrize("circle", [False, True])
def test_long_chains_of_references(link: Callable[[Any], Any], circle: bool) -> None:
    """The compiler would run out of stack, and take the process down."""
    for length, fits in ((60, True), (5000, False)):
        links = {f"d{at}": link({"$ref": f"#/$defs/d{at + 1}"}) for at in range(length)}
        last: dict[str, Any] = {"anyOf": [{"type": "null"}, *([{"$ref": "#/$defs/d0"}] if circle else [])]}
        schema = {"$ref": "#/$defs/d0", "$defs": {**links, f"d{length}": last}}
        if fits:
            compiled(schema=schema)
        else:
            assert "a long chain of references; make it flatter" in refusal(schema=schema)


@pytest.mark.parametrize("schema", [
    {"type": "object", "items": {"anyOf": []}, "properties": {"a": None}},
    {"type": "array", "additionalItems": {"anyOf": []}, "anyOf": [None]},
    {"type": "array", "prefixItems": [{"anyOf": []}], "items": [None]},
])  # fmt: skip
def test_a_chain_counts_in_the_order_in_which_the_compiler_goes(schema: dict[str, Any]) -> None:
    """Its links stand in a list, last one first (here []). None is the first link."""
    links = {f"d{at}": kinds(a=None) for at in range(5000)}
    for at in range(4999):
        links[f"d{at}"]["properties"]["a"] = {"$ref": f"#/$defs/d{at + 1}"}
    references = json.dumps([{"$ref": f"#/$defs/{name}"} for name in reversed(links)])
    text = json.dumps(schema).replace("null", '{"$ref": "#/$defs/d0"}').replace("[]", references)
    with contextlib.suppress(InputError):  # what counts is that the process lives
        compiled(schema={**json.loads(text), "$defs": links})


def test_references_that_multiply() -> None:
    links: dict[str, Any] = {f"d{at}": {"allOf": [{"$ref": f"#/$defs/d{at + 1}"}] * 10} for at in range(20)}
    links["d20"] = {"properties": {"a": {}}, "required": ["a"]}
    assert accepts(compiled(schema={"$ref": "#/$defs/d0", "$defs": links}), '{"a": 1}')
    wide = {f"d{at}": kinds(a=None, b=None) for at in range(30)}
    for at in range(29):
        wide[f"d{at}"]["properties"] = {key: {"$ref": f"#/$defs/d{at + 1}"} for key in ("a", "b")}
    options = [{"$ref": "#/$defs/d0"}, {"allOf": [{"$ref": "#/$defs/d0"}, {"$ref": "#/$defs/d1"}]}]
    assert "may overlap" in refusal(schema={"oneOf": options, "$defs": wide})


def test_many_alternatives_are_told_apart_by_a_constant() -> None:
    options = [kinds(kind=f"k{index}", x=None) for index in range(300)]
    grammar = compiled(schema={"oneOf": options})
    assert accepts(grammar, '{"kind": "k299", "x": 1}')
    assert not accepts(grammar, '{"kind": "k300", "x": 1}')
    assert "may overlap" in refusal(schema={"oneOf": [*options, kinds(kind="k7")]})


def test_one_wrong_part_of_many_is_found() -> None:
    parts = {f"p{at}": {"type": "string", "pattern": "(a" if at == 900 else "a"} for at in range(1000)}
    message = refusal(schema={"properties": parts})
    assert message == "schema: at /properties/p900: unclosed group; correct it"


def test_more_than_the_compiler_follows_at_once_is_said() -> None:
    schema = {"type": "object", "properties": {f"p{at}": {} for at in range(3000)}}
    assert "allows too many things in one place (2000 at most)" in refusal(schema=schema)


# The compiler rounds twice: these became their neighbours.
@pytest.mark.parametrize(
    "number", [2**53 + 1, -(10**30) - 1, 0.012088995980580643, 1e-30, 7.469482071652783e38]
)
def test_constants_that_would_change_are_refused(number: float) -> None:
    message = refusal(schema={"items": {"enum": [1, {"a": [number]}]}})
    assert message.startswith(f"schema: at /items/enum: {number}")
    assert "cannot be kept exactly" in message
    assert refusal(schema={"const": number}).startswith(f"schema: at /const: {number}")


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.one_of(st.decimals(-(10**9), 10**9, places=6).map(float), st.integers(-(2**53), 2**53)))
def test_constants_are_exact(number: float) -> None:
    assert json.loads(shortest(compiled(schema={"const": number}))) == number


@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    st.one_of(st.floats(-1e6, 1e6), st.integers(-(2**63), 2**63)),
    st.sampled_from([0, 2.0**-40, 0.3, 1, 1000, 2**40]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["number", "integer"]),
)
def test_bounds_hold(low: float, width: float, open_low: bool, open_high: bool, kind: str) -> None:
    """Also where the compiler reads a bound as its neighbour. A range may be refused, or become narrower."""
    lower = "exclusiveMinimum" if open_low else "minimum"
    upper = "exclusiveMaximum" if open_high else "maximum"
    schema = {"type": kind, lower: low, upper: low + width}
    try:
        grammar = compiled(schema=schema)
    except ValueError:
        assert width < 1 or abs(low) > 2**52 or kind == "integer"
        return
    value, start, end = Fraction(shortest(grammar)), Fraction(str(low)), Fraction(str(low + width))
    assert start < value if open_low else start <= value
    assert value < end if open_high else value <= end
    for bound, is_open in ((low, open_low), (low + width, open_high)):
        if is_open and isinstance(bound, int):
            assert not accepts(grammar, str(bound))


@pytest.mark.parametrize("rest", [{"maximum": 0.1}, {"exclusiveMaximum": 1}, {"allOf": [{"maximum": 1e-7}]}])
def test_an_exclusive_bound_is_excluded_from_a_narrow_range(rest: dict[str, Any]) -> None:
    """The compiler would take it, and no others beside it."""
    for open_low in ({"exclusiveMinimum": 0}, {"minimum": 0, "exclusiveMinimum": True}):
        grammar = compiled(schema={"type": "number", **open_low, **rest})
        assert [accepts(grammar, text) for text in ("0", "0.0", "0.00000001")] == [False, False, True]
    mirrored = {"type": "number", "exclusiveMaximum": -1, "minimum": -1.5}
    assert [accepts(compiled(schema=mirrored), text) for text in ("-1", "-1.5")] == [False, True]


@pytest.mark.parametrize("bound", [2**54 + 3, 2**59 + 1, 9007199254740995])
def test_large_bounds_are_not_rounded_outward(bound: int) -> None:
    below = compiled(schema={"type": "integer", "minimum": 0, "maximum": bound})
    above = compiled(schema={"type": "integer", "minimum": -bound, "maximum": 0})
    for value in range(bound + 1, bound + 100):
        assert not accepts(below, str(value))
        assert not accepts(above, str(-value))
    assert accepts(below, str(bound - 1000))
    assert accepts(above, str(1000 - bound))


@pytest.mark.parametrize(("schema", "inside"), [
    ({"type": "number", "minimum": -3.4028234663852886e38, "maximum": 3.4028234663852886e38}, "1.5"),
    ({"type": "integer", "minimum": 0, "maximum": 2**64 - 1}, "900000000000000000"),
    ({"type": "number", "maximum": 1e300}, "-3"),
    ({"type": "integer", "exclusiveMinimum": 0, "maximum": 9007199254740991}, "9007199254740991"),
])  # fmt: skip
def test_wide_bounds_are_those_that_can_be_enforced(schema: dict[str, Any], inside: str) -> None:
    assert accepts(compiled(schema=schema), inside)


INTEGER = {"type": "integer"}
CHAIN = {f"d{at}": {"type": "object", "properties": {"a": {"$ref": "#"}}} for at in range(500)}
MANY = {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in CHAIN], "$defs": CHAIN}  # not a chain
FITTING: list[tuple[dict[str, Any], dict[str, bool]]] = [
    # An extra key could be a named one in an escaped spelling, with a value of another type.
    (
        {"properties": {"a": INTEGER}},
        {'{"a": 1}': True, r'{"a": 1, "\u0061": "x"}': False, '{"z": 1}': False},
    ),
    ({"type": "object"}, {'{"z": 1}': True}),
    # Names and values are not keywords.
    (
        {"properties": {"not": {"const": {"if": 1}}, "minLenght": {}}},
        {'{"not": {"if": 1}, "minLenght": 0}': True},
    ),
    *(({"anyOf": [schema, {"const": 1}]}, {'{"a": [1, null]}': True}) for schema in (True, {})),
    ({"$ref": "#/$defs/a", "$defs": {"a": True}}, {'{"a": [1, null]}': True}),
    ({"properties": {"a": False, "b": True}}, {'{"b": 1}': True, '{"a": 1}': False}),
    (MANY, {'{"a": {"a": {}}}': True}),
    ({"properties": {"a": {}}, "required": ["z"]}, {'{"a": 1, "z": 1, "y": 1}': True}),
    (
        {"properties": {"a": INTEGER, "b\n": {}}, "additionalProperties": {}},
        {'{"a": 1, "z": 1}': True, r'{"a": 1, "\u0061": "x"}': False, r'{"b\n": 1, "b\u000a": 2}': False},
    ),
    (
        {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}], "required": ["a"]},
        {'{"a": 1, "b": 2}': True, '{"a": 1}': True, '{"a": 1, "z": 1}': False},
    ),
    ({"allOf": [{"properties": {"a": {}}}, {"additionalProperties": {}}]}, {'{"a": 1, "z": 1}': True}),
    (
        {"properties": {"a": {}}, "anyOf": [{"properties": {"b": {"const": 1}}}, {"required": ["a"]}]},
        {'{"a": 1, "b": 1}': True, '{"b": 2}': False, '{"a": 1, "b": 2}': True, '{"z": 1}': False},
    ),
    (  # The base is open within the combination, and closed by itself.
        {
            "$defs": {"base": {"properties": {"a": {}}}},
            "anyOf": [{"allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": {}}, "required": ["b"]}]}],
        },
        {'{"a": 1, "b": 2}': True, '{"a": 1, "b": 2, "c": 3}': False},
    ),
    ({"properties": {"a\nb": INTEGER}}, {r'{"a\nb": 1}': True, r'{"a\nb": 1, "a\u000ab": 2}': False}),
]


@pytest.mark.parametrize(("schema", "texts"), FITTING)
def test_which_texts_fit(schema: dict[str, Any], texts: dict[str, bool]) -> None:
    grammar = compiled(schema=schema)
    assert {text: accepts(grammar, text) for text in texts} == texts
    for text, fits in texts.items():
        assert not fits or LATEST(schema).is_valid(json.loads(text))


def kinds(**constants: Any) -> dict[str, Any]:
    properties = {key: {"const": value} if value is not None else {} for key, value in constants.items()}
    return {"type": "object", "properties": properties, "required": list(properties)}


CLOSED = {"additionalProperties": False}
EXCLUSIVE: list[list[Any]] = [
    [{"type": "string"}, {"type": "integer"}, {"type": "null"}, {"type": ["array", "boolean"]}],
    [{"const": "a", "title": "A"}, {"const": "b"}, {"enum": [1, 2.5]}, {"enum": ["c", None]}],
    [kinds(kind="a", x=None), kinds(kind="b"), kinds(kind="c", y=None)],
    [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}, {"type": "null"}],
    [{"allOf": [{"$ref": "#/$defs/a"}, {"properties": {"more": {}}}]}, {"$ref": "#/$defs/b"}],
    [{**kinds(a=None), **CLOSED}, {**kinds(b=None), **CLOSED}],
    [{**kinds(a=None), **CLOSED}, {**kinds(a=None, b=None), **CLOSED}],
    [kinds(kind="a"), {"anyOf": [kinds(kind="b"), kinds(kind="c")]}],
    [True, False],
    [{"type": "object", "properties": {"a": False}}, kinds(a=None)],
    [{"properties": {"a": STRING}, "required": ["a"]}, {"properties": {"a": {"type": "integer"}}}],
]
OVERLAPPING: list[list[Any]] = [
    [{"type": "integer"}, {"type": "number"}],
    [{"const": 1}, {"const": 1.0}],
    [{"enum": ["a", "b"]}, {"enum": ["b"]}],
    [kinds(a=None), kinds(a=None, b=None)],  # the one allows a key b, until it is closed here
    [kinds(a=None), kinds(b=None)],
    [kinds(kind=1), kinds(kind=2)],  # numbers are not compared
    [{"properties": {"kind": {"const": "a"}}}, {"properties": {"kind": {"const": "b"}}}],  # {} has both
    [{"type": "string"}, {"format": "date"}],
    [{"properties": {"a": STRING}}, {"properties": {"a": {"type": "integer"}}}],
    [kinds(kind="a"), {"type": "object", "additionalProperties": {}}],
    [{"const": {"a": [1]}}, {"const": {"a": [1.0]}}],
]
DEFINITIONS = {"a": kinds(type="a"), "b": kinds(type="b")}
VALUES = ["a", "b", "c", 1, 1.0, 2.5, 3, None, [], True, {}]
VALUES += [{"a": 1}, {"b": 1}, {"a": 1, "b": 1}, {"a": [1]}, {"a": "x"}, {"kind": "a"}, {"kind": "a", "x": 1}]
VALUES += [{"kind": kind} for kind in "bd"] + [{"kind": "c", "y": 1}, {"type": "a", "more": 1}]
VALUES += [{"type": kind} for kind in "abc"]


@pytest.mark.parametrize("options", EXCLUSIVE)
def test_alternatives_that_exclude_each_other(options: list[Any]) -> None:
    schema = {"oneOf": options, "$defs": DEFINITIONS}
    grammar = compiled(schema=schema)
    fitting = [value for value in VALUES if accepts(grammar, json.dumps(value))]
    assert fitting
    for value in fitting:
        LATEST(schema).validate(value)
    for option in options:  # none is lost
        if option is not False:
            assert any(LATEST({**schema, "oneOf": [option]}).is_valid(value) for value in fitting)


@pytest.mark.parametrize("options", OVERLAPPING)
def test_alternatives_that_may_overlap_are_refused(options: list[Any]) -> None:
    message = refusal(schema={"properties": {"a": {"oneOf": options}}})
    assert message.startswith("schema: at /properties/a: the alternatives of oneOf may overlap; use anyOf")


def test_what_stands_beside_a_one_of_counts() -> None:
    kinds = [{"properties": {"kind": {"const": kind}, "x": {"const": kind}}} for kind in "ab"]
    grammar = compiled(schema={"type": "object", "required": ["kind"], "oneOf": kinds})
    texts = '{"kind": "a"}', '{"kind": "b", "x": "b"}', '{"kind": "a", "x": "b"}', '{"x": "a"}'
    assert [accepts(grammar, text) for text in texts] == [True, True, False, False]
    refusal(schema={"type": "object", "oneOf": kinds})


@pytest.mark.parametrize(("schema", "shortest_answer"), [
    ({"properties": {"a": {}}}, "{}"),
    ({"properties": {"a": {}}, "anyOf": [{"required": ["a"]}, {"properties": {"b": {}}}]}, "{}"),
    ({"allOf": [{"properties": {"a": {}}}, {"required": ["b"]}]}, None),
    ({"items": {"type": "integer"}, "minItems": 1}, "[0]"),
    ({"minimum": 3}, "3"),
    ({"minLength": 0}, '""'),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"items": {}}}}, "[]"),
    ({"anyOf": [{"properties": {}}, {"type": "null"}], "title": "optional"}, "{}"),
    ({"minLength": 1, "minimum": 7}, "7"),
    ({"enum": [5], "minLength": 1}, "5"),
])  # fmt: skip
def test_a_schema_without_a_type_has_that_of_its_keywords(schema: Any, shortest_answer: str | None) -> None:
    answer = shortest(compiled(schema=schema))
    LATEST(schema).validate(json.loads(answer))
    assert answer == shortest_answer or (shortest_answer is None and answer.startswith("{"))


def test_an_alternative_with_look_around_is_left_out() -> None:
    """pydantic 2.11 to 2.13 describe a Decimal so."""
    around = {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"}
    grammar = compiled(schema={"properties": {"price": {"anyOf": [{"type": "number"}, around]}}})
    (warning,) = grammar.warnings
    assert warning.startswith("schema: alternative at /properties/price/anyOf/1 is left out")
    assert accepts(grammar, '{"price": 1.5}')
    assert not accepts(grammar, '{"price": "1.5"}')
    (warning,) = compiled(schema={"anyOf": [around] * 9 + [{"type": "null"}]}).warnings
    assert "at /anyOf/4, 4 more are left out" in warning
    assert "look-around" in refusal(schema={"anyOf": [around]})
