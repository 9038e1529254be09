"""What an answer can be held to, and what is refused before anything is denoised."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pydantic
import pytest

from mlx_diffusiongemma.control.examples import example
from mlx_diffusiongemma.control.grammar import Grammar, compile_grammar
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.loading import resolve
from mlx_diffusiongemma.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(resolve("demo"))
V, STOPS = 704, (1, 106, 50)


def compiled(**what: Any) -> Grammar:
    grammar = compile_grammar(TOKENIZER, V, STOPS, **what)
    assert grammar is not None
    return grammar


def accepts(grammar: Grammar, text: str) -> bool:
    matcher = grammar.matcher()
    ids = grammar.vocabulary.spell(text.encode())
    return matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()


def refusal(**what: Any) -> str:
    with pytest.raises(InputError) as caught:
        compile_grammar(TOKENIZER, V, STOPS, **what)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 260
    assert message.startswith(next(iter(what)))
    return message


def test_nothing_given_is_no_grammar() -> None:
    assert compile_grammar(TOKENIZER, V, STOPS) is None


VALUE = {"a": [1, {"b": "c, d: e"}], "f": None}


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        (json.dumps(VALUE), True),
        (json.dumps(VALUE, separators=(",", ":")), True),
        (json.dumps(VALUE, indent=1), False),
        (json.dumps(VALUE, separators=(",  ", ": ")), False),
        (" " + json.dumps(VALUE), False),
        (json.dumps(VALUE) + " ", False),
        (json.dumps(VALUE).replace("[", "[ "), False),
    ],
)
def test_json_has_blanks_after_commas_and_colons_only(text: str, fits: bool) -> None:
    assert accepts(compiled(schema={}), text) == fits


class City(pydantic.BaseModel):
    """A city."""

    name: str = pydantic.Field(description="its name", examples=["Oslo"])
    people: int = pydantic.Field(default=3, ge=0, deprecated=True)
    twin: City | None = None


def test_pydantic_models() -> None:
    grammar = compiled(schema=City)
    text = City(name="Zürich", twin=City(name='"', people=0)).model_dump_json()
    assert accepts(grammar, text)
    assert not accepts(grammar, text.replace(":0", ":-1"))
    assert "give a JSON Schema as a dict" in refusal(schema=City(name="a"))


@pytest.mark.parametrize(
    "schema",
    [
        {
            "type": "string",
            "title": "t",
            "description": "d",
            "default": "",
            "examples": [{"not": 1}],
            "$comment": "c",
        },
        {"$schema": "http://json-schema.org/draft-07/schema#", "$id": "urn:x", "type": "string"},
        {"type": "string", "format": "date"},
        {"type": "object", "properties": {"frobnicate": {"type": "string"}, "not": {}}},
        {"$defs": {"if": {"type": "integer"}}, "definitions": {"x": {}}, "$ref": "#/$defs/if"},
        {"type": "object", "patternProperties": {"^x-": {"type": "string"}}, "additionalProperties": False},
        {"const": {"frobnicate": {"if": 3}}},
        {"enum": [{"if": 3}]},
    ],
)
def test_remarks_and_names_are_no_keywords(schema: dict[str, Any]) -> None:
    compiled(schema=schema)


@pytest.mark.parametrize(
    ("schema", "key", "path"),
    [
        ({"type": "string", "frobnicate": 3}, "frobnicate", "at the top"),
        ({"type": "array", "items": {"frobnicate": 3}}, "frobnicate", "/items"),
        ({"properties": {"a": {"anyOf": [{}, {"minLenght": 3}]}}}, "minLenght", "/properties/a/anyOf/1"),
        ({"$defs": {"a": {"Type": "string"}}}, "Type", "/$defs/a"),
        ({"additionalProperties": {"requird": []}}, "requird", "/additionalProperties"),
        ({"patternProperties": {"a": {"mini": 1}}}, "mini", "/patternProperties/a"),
        ({"prefixItems": [{}, {"maks": 1}]}, "maks", "/prefixItems/1"),
        ({"$ref": "#/default", "default": {"frobnicate": 1}}, "frobnicate", "#/default"),
        ({"x-order": 1}, "x-order", "at the top"),
        ({"x-guidance": {"lenient": True}}, "x-guidance", "at the top"),
        ({"type": "integer", "not": {"const": 3}}, "not", "at the top"),
        ({"if": {}}, "if", "at the top"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems", "at the top"),
        ({"a\nb": 1}, "a b", "at the top"),
    ],
)
def test_keywords_that_would_not_be_kept_are_refused(schema: dict[str, Any], key: str, path: str) -> None:
    message = refusal(schema=schema)
    assert repr(key) in message
    assert path in message


def test_an_older_draft_does_not_loosen_a_schema() -> None:
    grammar = compiled(schema={"$schema": "http://json-schema.org/draft-04/schema#", "const": 3})
    assert accepts(grammar, "3")
    assert not accepts(grammar, "4")


LOOP = {"$ref": "#/$defs/a"}


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": []},
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "array", "minItems": 2, "maxItems": 1},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"type": "string", "pattern": r"^[^\s\S]$"},
        {"$defs": {"a": LOOP}, **LOOP},
        {"$defs": {"a": {"type": "array", "minItems": 1, "items": LOOP}}, **LOOP},
        {"$defs": {"a": LOOP}, "type": "object", "properties": {"k": LOOP}, "required": ["k"]},
    ],
)
def test_schemas_that_nothing_satisfies_are_refused(schema: dict[str, Any]) -> None:
    refusal(schema=schema)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (True, "found bool"),
        ('{"type": "string"}', "found str"),
        ([], "found list"),
        (dict, "found type"),
        ({"const": {1, 2}}, "not JSON"),
        ({"const": float("nan")}, "not JSON"),
        ({"const": "\ud800"}, "not JSON"),
        ({"type": "strin"}, "Invalid type"),
        ({"type": "string", "minLength": "3"}, "minLength"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "pattern": "(a"}, "unclosed group"),
        ({"type": "string", "format": "nope"}, "nope"),
        ({"$ref": "#/$defs/none"}, "does not exist"),
        ({"$ref": "https://example.com/schema"}, "https://example.com"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "object", "minProperties": 2}, "minProperties 2"),
        ({"properties": {"a\nb": {}}}, "control character"),
    ],
)
def test_unusable_schemas(schema: Any, said: str) -> None:
    assert said in refusal(schema=schema)


def test_a_schema_in_itself_is_refused() -> None:
    schema: dict[str, Any] = {"type": "array"}
    schema["items"] = schema
    assert "not JSON" in refusal(schema=schema)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"regex": "a", "choices": ["a"]}, "regex and choices"),
        ({"schema": {}, "regex": "a", "grammar": "b"}, "schema and regex and grammar"),
        ({"regex": 3}, "found int"),
        ({"regex": "\ud800"}, "Unicode"),
        ({"regex": "(a"}, "unclosed group"),
        ({"regex": r"[^\s\S]"}, "nothing"),
        ({"regex": r"a[^\s\S]"}, "nothing"),
        ({"regex": r"(?=a)"}, "look-around"),
        ({"regex": "a{99999}"}, "nothing"),
        ({"grammar": ["start: a"]}, "found list"),
        ({"grammar": "start: foo"}, "line 1, column 8"),
        ({"grammar": 'start: "a"\n  | b'}, "unknown name"),
        ({"grammar": 'start: "a" start'}, "nothing"),
        ({"grammar": "start: a\na: a"}, "nothing"),
        ({"grammar": "start: <|tool>"}, "nothing"),
        ({"choices": "yes"}, "found str"),
        ({"choices": {"yes", "no"}}, "found set"),
        ({"choices": []}, "empty"),
        ({"choices": [""]}, "item 0 is empty"),
        ({"choices": ["a", 3]}, "item 1 is int"),
        ({"choices": ["a", "b", "a"]}, "'a' is there twice"),
        ({"choices": ["\ud800"]}, "Unicode"),
    ],
)
def test_bad_input_gets_one_line(what: dict[str, Any], said: str) -> None:
    assert said in refusal(**what)


def test_the_tokenizer_is_prepared_once() -> None:
    first, second = compiled(regex="a"), compiled(choices=["b"])
    assert first.vocabulary is second.vocabulary
    assert compile_grammar(TOKENIZER, V, (106,), regex="a").vocabulary is not first.vocabulary  # type: ignore[union-attr]


def test_a_vocabulary_larger_than_the_tokenizer() -> None:
    grammar = compile_grammar(TOKENIZER, 768, (106,), regex="[ab]+")
    assert grammar is not None
    matcher = grammar.matcher()
    assert matcher.consume_tokens(TOKENIZER.encode("a"))
    allowed = grammar.allowed(matcher)
    assert allowed.shape == (768,)
    assert not allowed[704:].any()
    spelled = {TOKENIZER.decode([token]) for token in np.flatnonzero(allowed).tolist()}
    assert spelled == {"a", "b", "<turn|>"}


def test_two_spellings_of_a_name_are_not_two_names() -> None:
    """`\\n` and `\\u000a`: what is read is the last, whatever type it has."""
    schema = {"properties": {"a\nb": {"type": "integer"}}, "additionalProperties": False}
    assert accepts(compiled(schema=schema), '{"a\\nb": 1}')
    assert not accepts(compiled(schema=schema), '{"a\\nb": 1, "a\\u000ab": 2}')


FAR = (
    r".*a.*a", r".+-.+-.+", r"(.*\n){3}", r".*</b>", r"(.|\n)*</done>", r"(\d+\. .+\n){10}",
    r"(.+, ){4}and .+", r"(.+)-(.+)-(.+)", r"[^@]+@[^@]+\.[a-z]{2,}", r"[^\w\s]{3}é?", r"(ab|c)+?d{2,3}",
    r"\D\S\W[^a-z]", r"x{3}|yy",
)  # fmt: skip


@pytest.mark.parametrize("pattern", FAR)
def test_patterns_whose_end_no_mask_shows_are_found_out(pattern: str) -> None:
    text = example(pattern)
    assert text is not None
    assert re.fullmatch(pattern, text)
    for given in ({"regex": pattern}, {"schema": {"type": "string", "pattern": f"^(?:{pattern})$"}}):
        compiled = compile_grammar(TOKENIZER, 704, (106,), **given)
        assert compiled is not None
        written = TOKENIZER.decode(compiled.shortest[:-1])
        assert re.fullmatch(pattern, written if "regex" in given else json.loads(written))


@pytest.mark.parametrize("pattern", ["a(", "(?P<n", r"\p{L}", "a" * 5000])
def test_there_is_not_always_an_example(pattern: str) -> None:
    assert example(pattern) is None


def fits(schema: Any, text: str) -> bool:
    compiled = compile_grammar(TOKENIZER, 704, (106,), schema=schema)
    assert compiled is not None
    return accepts(compiled, text)


def test_a_named_key_cannot_come_again_in_other_letters() -> None:
    one = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert fits(one, '{"a": 1}')
    assert not fits(one, r'{"a": 1, "\u0061": "x"}')
    other = {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]}
    assert fits({"allOf": [one, other]}, '{"a": 1, "b": 2}')
    assert fits({"type": "object"}, '{"z": 1}')


@pytest.mark.parametrize("low", [-3, 0, 7])
@pytest.mark.parametrize("width", [0.01, 0.5, 1])
@pytest.mark.parametrize("upper", ["maximum", "exclusiveMaximum"])
def test_an_excluded_end_of_a_narrow_range_stays_out(low: int, width: float, upper: str) -> None:
    schema = {"type": "number", "exclusiveMinimum": low, upper: low + width}
    assert not fits(schema, str(low))
    assert not fits(schema, f"{low}.0")
    assert fits(schema, str(round(low + width / 2, 4)))
