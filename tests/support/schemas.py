"""Random JSON Schemas, each of which has a valid value."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

KEYS = st.sampled_from(
    ["a", "b", "name", "größe", 'quo"te', "back\\slash", "", " ", "a b", "日本", "x/y~z", "{", "]"]
)
TEXTS = st.sampled_from(
    ["", "a", "Zürich", 'say "hi"', "back\\slash", "line\nbreak", "\t", "日本語", "😀", "}],{", "é"]
)
PATTERNS = st.sampled_from(
    ["^[a-z]{2,4}$", "^(ab|cde){2}$", r"^\d{3}-\d{4}$", "^[A-Z]", "x$", "^é+$", "foo", '^"\\\\$']
)
BOUNDS = st.integers(-50, 50)


@st.composite
def _strings(draw: Any) -> dict[str, Any]:
    if draw(st.booleans()):
        return {"type": "string", "pattern": draw(PATTERNS)}
    least = draw(st.integers(0, 12))
    schema: dict[str, Any] = {"type": "string"}
    if draw(st.booleans()):
        schema["minLength"] = least
    if draw(st.booleans()):
        schema["maxLength"] = least + draw(st.integers(0, 6))
    return schema


@st.composite
def _numbers(draw: Any) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": draw(st.sampled_from(["integer", "number"]))}
    low = draw(BOUNDS)
    if draw(st.booleans()):
        schema[draw(st.sampled_from(["minimum", "exclusiveMinimum"]))] = low
    if draw(st.booleans()):
        schema[draw(st.sampled_from(["maximum", "exclusiveMaximum"]))] = low + draw(st.integers(3, 2000))
    if schema["type"] == "integer" and len(schema) == 1 and draw(st.booleans()):
        schema["multipleOf"] = draw(st.integers(1, 9))
    return schema


VALUES = st.one_of(
    TEXTS, st.integers(-999, 999), st.booleans(), st.none(), st.lists(TEXTS, max_size=2), st.just({})
)
LEAVES = st.one_of(
    _strings(),
    _numbers(),
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"type": ["string", "null"]}, {}]),
    VALUES.map(lambda value: {"const": value}),
    st.lists(TEXTS, min_size=1, max_size=4, unique=True).map(lambda values: {"enum": values}),
    st.lists(st.integers(-20, 20), min_size=1, max_size=3, unique=True).map(
        lambda values: {"enum": [*values, None]}
    ),
    st.sampled_from(["date", "date-time", "time", "uuid", "ipv4", "email", "uri", "nonsense"]).map(
        lambda name: {"type": "string", "format": name, "example": 3, "x-more": {"not": {}}}
    ),
    st.sampled_from([{"pattern": "^x"}, {"minItems": 1}, {"minimum": 3}, {"required": ["a"]}]),
)


@st.composite
def _arrays(draw: Any, inner: Any) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "items": draw(inner)}
    least = draw(st.integers(0, 3))
    if draw(st.booleans()):
        schema["minItems"] = least
    if draw(st.booleans()):
        schema["maxItems"] = least + draw(st.integers(0, 2))
    if draw(st.integers(0, 4)) == 0:
        schema["prefixItems"] = [draw(inner)]
    return schema


@st.composite
def _objects(draw: Any, inner: Any) -> dict[str, Any]:
    keys = draw(st.lists(KEYS, max_size=4, unique=True))
    schema: dict[str, Any] = {"type": "object", "properties": {key: draw(inner) for key in keys}}
    required = [key for key in keys if draw(st.booleans())]
    if required:
        schema["required"] = required
    extra = draw(st.sampled_from([False, False, True, {"type": "integer"}]))
    if extra is not True:
        schema["additionalProperties"] = extra
    return schema


@st.composite
def _one_of(draw: Any, inner: Any) -> dict[str, Any]:
    """Draw a oneOf of null and of objects that differ in a constant."""
    options = [
        {
            "type": "object",
            "properties": {"kind": {"const": kind}, "value": draw(inner)},
            "required": ["kind"],
        }
        for kind in draw(st.lists(TEXTS, min_size=1, max_size=3, unique=True))
    ]
    return {"oneOf": [*options, {"type": "null"}], "discriminator": {"propertyName": "kind"}}


@st.composite
def _all_of(draw: Any, inner: Any) -> dict[str, Any]:
    """Draw an allOf: an object that must be valid under two schemas."""
    parts = [
        {"properties": {key: draw(inner)}, "required": [key] if draw(st.booleans()) else []}
        for key in ("a", "b")
    ]
    rest = draw(
        st.sampled_from([{}, {"unevaluatedProperties": False}, {"propertyNames": {"type": "string"}}])
    )
    return {"type": "object", "allOf": parts, **rest}


@st.composite
def _maps(draw: Any, inner: Any) -> dict[str, Any]:
    names = draw(st.sampled_from([{"enum": ["a", "é"]}, {"pattern": "^[a-c]$"}, {"minLength": 2}, True]))
    return {"type": "object", "propertyNames": names, "additionalProperties": draw(inner)}


def _nested(inner: Any) -> Any:
    several = st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
    return st.one_of(_arrays(inner), _objects(inner), several, _one_of(inner), _all_of(inner), _maps(inner))


@st.composite
def schemas(draw: Any) -> dict[str, Any]:
    """Draw a schema of strings, numbers, arrays, objects and alternatives, sometimes with definitions."""
    schema: dict[str, Any] = draw(st.recursive(LEAVES, _nested, max_leaves=6))
    kind = draw(st.integers(0, 5))
    if kind == 0:  # a tree whose values have the schema
        node = {"$ref": "#/$defs/node"}
        properties = {"value": schema, "children": {"type": "array", "items": node}, "next": node}
        needed = draw(st.sampled_from([["value"], ["value", "children"], []]))
        tree = {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}
        return {"$defs": {"node": tree}, **node}
    if kind == 1:  # a chain that ends where the other alternative is chosen
        link = {"type": "object", "properties": {"next": {"$ref": "#/$defs/x~1y"}}, "required": ["next"]}
        return {
            "$defs": {"x/y": {"anyOf": [{**link, "additionalProperties": False}, schema]}},
            "$ref": "#/$defs/x~1y",
        }
    return schema
