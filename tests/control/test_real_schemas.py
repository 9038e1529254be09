"""Schemas of the kinds that applications send: they compile, and every answer validates.

real_schemas.json holds what the documentation of OpenAI, Gemini, Anthropic, Ollama and LangChain shows, tools
of MCP servers, OpenAPI components, and what pydantic, zod, typebox and valibot write.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support.grammars import accepts, compiled, refusal, shortest
from support.held_answers import Untrained, random_answer, text_of, written

SCHEMAS: dict[str, Any] = json.loads(
    Path(__file__).parents[1].joinpath("support/real_schemas.json").read_text("utf-8")
)
FORMATS = jsonschema.FormatChecker(["date", "email", "ipv4", "ipv6", "uuid"])

# Says that something is not enforced.
WITH_WARNINGS = {
    "gemini enum", "gemini nullable", "openapi pet", "openapi order", "openapi discriminator",
    "openapi problem details", "zod 4 strings", "zod 4 with metadata", "pydantic 2.12 decimal",
    "pydantic 2.12 uuid4", "vs code settings",
}  # fmt: skip


# Refused, with the reason: references by $id, and alternatives that only forbidden extra keys tell apart.
REFUSED = {"typebox recursive": "$ref", "typebox module": "$ref", "one of by what is required": "may overlap"}
ACCEPTED = [name for name in SCHEMAS if name not in REFUSED]


def oracle(schema: Any) -> Any:
    """jsonschema's validator for a schema. It also knows nullable and types in capitals."""
    text = json.dumps(schema)
    base = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    if '"items": [' in text:
        base = jsonschema.Draft7Validator
    if '"exclusiveMinimum": true' in text:
        base = jsonschema.Draft4Validator

    def nullable(keyword: str) -> Any:
        def check(validator: Any, value: Any, instance: Any, node: Any) -> Iterator[Any]:
            if instance is not None or not node.get("nullable"):
                lower = value.lower() if keyword == "type" and isinstance(value, str) else value
                yield from base.VALIDATORS[keyword](validator, lower, instance, node)

        return check

    def multiple_of(validator: Any, value: Any, instance: Any, node: Any) -> Iterator[Any]:
        # As decimals, as far as floats have them.
        is_number = validator.is_type(instance, "number") and abs(instance) < 1e12
        if is_number and Fraction(str(instance)) % Fraction(str(value)):
            yield jsonschema.ValidationError(f"{instance} is not a multiple of {value}")

    keywords = {"type": nullable("type"), "enum": nullable("enum"), "multipleOf": multiple_of}
    return jsonschema.validators.extend(base, keywords)(schema, format_checker=FORMATS)


def test_few_of_many_are_refused() -> None:
    assert len(ACCEPTED) >= 90
    for name, reason in REFUSED.items():
        assert reason in refusal(schema=SCHEMAS[name])


@pytest.mark.filterwarnings(
    "ignore:Possible nested set:FutureWarning"
)  # jsonschema searches with Python's re
@pytest.mark.parametrize("name", ACCEPTED)
def test_every_answer_validates(name: str) -> None:
    grammar, validator = compiled(schema=SCHEMAS[name]), oracle(SCHEMAS[name])
    assert bool(grammar.warnings) == (name in WITH_WARNINGS)
    validator.validate(json.loads(shortest(grammar)))
    for seed, most in enumerate((8, 30)):
        validator.validate(json.loads(random_answer(grammar, seed, most)))
    ids = written(grammar, Untrained(0), len(grammar.shortest) + 20, 32)
    validator.validate(json.loads(text_of(ids)))


# What a good model would answer: the grammar must not be narrower than these.
ANSWERS: dict[str, list[Any]] = {
    "openai math steps": [{"steps": [{"explanation": "Add 3.", "output": "x = 5"}], "final_answer": "5"}],
    "openai user interface, recursive": [
        {"type": "div", "label": "", "children": [
            {"type": "button", "label": "OK", "children": [], "attributes": [{"name": "id", "value": "a"}]}],
         "attributes": []}],
    "openai linked list": [{"linked_list": {"value": 1, "next": {"value": 2.5, "next": None}}}],
    "openai moderation": [{"is_violating": True, "category": "violence", "explanation_if_violating": None}],
    "openai weather function, strict": [{"location": "Bogotá"}, {"location": "Oslo", "units": "celsius"}],
    "openai query function": [
        {"table_name": "orders", "columns": ["id"],
         "conditions": [{"column": "id", "operator": ">=", "value": {"column_name": "status"}}],
         "order_by": "asc"}],
    "gemini recipes": [[{"recipeName": "Cookies", "ingredients": ["flour", "sugar"]}], []],
    "gemini enum": ["Keyboard"],
    "gemini nullable": [{"name": "a", "rating": None, "note": None}, {"name": "a", "rating": 5, "price": 1}],
    "vertex forecast": [{"forecast": [{"Day": "Mon", "Humidity": None, "Temperature": -3, "Wind Speed": 7}]}],
    "mcp fetch": [{"url": "https://example.com/a?b=c#d", "max_length": 999999, "raw": True}],
    "mcp edit_file": [{"path": "/a", "edits": [{"oldText": "a\n", "newText": "\"b\""}], "dryRun": False}],
    "mcp elicitation": [{"name": "A", "email": "a.b@example.com", "role": "pm", "size": "m"}],
    "openapi pet": [{"id": 1, "name": "dog", "photoUrls": ["a"], "tags": [{"name": "b"}], "status": "sold"}],
    "openapi order": [{"id": 9007199254740993, "quantity": 7, "shipDate": "2024-02-29T12:00:00Z"}],
    "openapi discriminator": [{"petType": "dog", "packSize": 0}, {"petType": "cat", "huntingSkill": "lazy"}],
    "openapi inheritance": [
        {"name": "A", "born": "1990-12-31", "id": "123e4567-e89b-12d3-a456-426614174000",
         "reports": [{"name": "B", "id": "123e4567-e89b-12d3-a456-426614174000"}]}],
    "openapi 3.0 bounds": [{"score": 1, "code": "NO"}, {"score": 0.5, "code": "SE"}],
    "openapi problem details": [{"type": "about:blank", "status": 404, "balance": 30}],
    "langchain joke": [{"setup": "Why?", "punchline": "Because.", "rating": 7}],
    "instructor extraction, maybe": [{"result": {"age": 25, "name": "J"}, "error": False, "message": None}],
    "pydantic v1 model": [{"foo_bar": {"count": 1, "size": 2.5}, "Gender": "other", "snap": 49}],
    "invoice": [
        {"invoice_number": "INV-12345", "date": "2024-01-31", "currency": "NOK",
         "lines": [{"description": "Coffee", "quantity": 2, "unit_price": 6.25, "vat": 0.25}], "total": 1}],
    "geojson point or line": [
        {"type": "Point", "coordinates": [1.5, 59]}, {"type": "LineString", "coordinates": [[0, 1], [2, 3]]}],
    "tree of comments": [{"author": "a", "text": "b", "replies": [{"author": "c", "text": "d"}]}],
    "draft 4 person": [{"age": 1, "names": ["a", "b"]}],
    "semver and slug": [{"version": "1.2.3-rc.1", "slug": "a-b", "color": "#fff000", "brackets": "[12]"}],
    "letters beyond ASCII": [
        {"größe": "groß", "名前": "花", "emoji": "😀", "quote\"d": True, "new\nline": None,
         "<turn|>": "<turn|>"}],
    "zod 4 user": [
        {"id": "123e4567-e89b-12d3-a456-426614174000", "email": "a.b@example.com", "age": 41, "url": None,
         "role": "user", "created": "2024-02-29T12:00:00.123Z", "d": "2023-02-28", "tags": ["a", "b"],
         "meta": {"a": [1, {}]}, "t": ["a", 1.5], "s": []}],
    "zod 4 record of an enum": [{"a": 1, "b": 2}],
    "zod 4 partial record": [{"b": 2}, {}],
    "zod 4 numbers": [{"a": 0.07, "b": -1e3, "c": -5, "d": 0.999, "e": 9007199254740991, "f": 3, "g": 10}],
    "zod 4 exclusive or": ["a", 1.5],
    "typebox intersection": [{"a": "x", "b": 1}],
    "valibot recursive": [{"n": "a", "c": [{"n": "b", "c": []}]}],
    "pydantic 2.12 dict by enum": [{"red": 1}, {"red": 1, "blue": 2}],
    "pydantic 2.12 discriminated union": [{"kind": "cat", "n": 9}, {"kind": "wolf", "m": None}],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")
@pytest.mark.parametrize("name", ANSWERS)
def test_good_answers_are_possible(name: str) -> None:
    grammar, validator = compiled(schema=SCHEMAS[name]), oracle(SCHEMAS[name])
    for answer in ANSWERS[name]:
        validator.validate(answer)
        assert accepts(grammar, json.dumps(answer, ensure_ascii=False)), answer
