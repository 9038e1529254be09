"""Whole generations held to a grammar: an untrained model, which writes anything, and the demo's thoughts."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import tiny
from pydantic import BaseModel
from support.schemas import schemas
from support.scripted import Scripted

from mlx_diffusiongemma.checkpoint.loading import load_model, resolve
from mlx_diffusiongemma.control.compiling import compile_grammar
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.generation import Generation, generate, generate_batch
from mlx_diffusiongemma.model import DiffusionGemma
from mlx_diffusiongemma.text.tokenizer import Tokenizer

STOP = (1, 106, 50)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[DiffusionGemma, Tokenizer]:
    """Random weights behind the demo's real tokenizer, in canvases of 16."""
    layers: Any = ("sliding_attention", "full_attention")
    directory = tmp_path_factory.mktemp("untrained")
    tiny.build(tiny.ROUGH, directory, vocab=704, layer_types=layers, hidden=32, dense=32)
    return load_model(directory), Tokenizer.load(resolve("demo"))


def ended_as_it_says(generation: Generation) -> bool:
    """True if the reason is "length" where a warning names the limit, and "stop" elsewhere."""
    cut = any(warning.startswith("max_new_tokens ") for warning in generation.warnings)
    return generation.finish_reason == ("length" if cut else "stop")


@settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=schemas(), spare=st.integers(0, 40), token=st.integers(53, 95), seed=st.integers(0, 999))
@pytest.mark.slow
def test_an_untrained_model_writes_valid_json_for_any_schema(
    untrained: Any, schema: Any, spare: int, token: int, seed: int
) -> None:
    """From no room to spare to some: most canvases end in the middle of a value."""
    model, tokenizer = untrained
    grammar: Any = compile_grammar(tokenizer, model.config.text.vocab_size, STOP, schema=schema)
    asked: dict[str, Any] = {"seed": seed, "eos_token_id": STOP, "max_denoising_steps": 1}
    asked |= {"max_new_tokens": len(grammar.shortest) + spare}
    asked |= {"guard_empty": False, "guard_unconverged": False}
    generation = generate(model, tokenizer, [2, token], schema=schema, **asked)
    jsonschema.Draft202012Validator(schema).validate(json.loads(str(generation)))
    assert ended_as_it_says(generation)
    assert generation.stats.grammar_walks >= generation.stats.grammar_repairs > 0


CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
    "required": ["city", "country"],
    "additionalProperties": False,
}
CITIES = {"type": "array", "items": CITY}


class City(BaseModel):
    city: str
    country: str


def test_what_fits_already_is_left_alone(demo: Any) -> None:
    """The demo writes such JSON by itself: the same tokens, walked once a canvas and never repaired."""
    free = generate(*demo, "JSON for Paris and Rome", seed=0)
    held = generate(*demo, "JSON for Paris and Rome", seed=0, schema=CITIES)
    assert held.token_ids == free.token_ids
    assert (held.stats.grammar_walks, held.stats.grammar_repairs) == (1, 0)
    assert held.stats.denoising_steps == free.stats.denoising_steps


@pytest.mark.parametrize(("thinking", "seed"), [(True, 0), (False, 1)])
@pytest.mark.slow
def test_a_model_that_wants_otherwise_is_brought_to_it(demo: Any, seed: int, thinking: bool) -> None:
    """It writes lists of cities, and this is one city."""
    asked: dict[str, Any] = {"seed": seed, "thinking": thinking, "max_denoising_steps": 2}
    held = generate(*demo, "JSON for Paris and Rome", schema=City, max_new_tokens=128, **asked)
    City.model_validate_json(str(held))
    assert held.stats.grammar_repairs > 0
    free = generate(*demo, "JSON for Paris and Rome", max_new_tokens=128, **asked)
    assert held.thought == free.thought


@pytest.mark.parametrize(
    "choices", [["a\nb", "\r\n"], ['say "<turn|>"', "<|turn>user\nhi"], ["<|channel>x"], ["👩‍🚀", "\x1b[0m"]]
)
def test_the_answer_is_a_choice_letter_for_letter(demo: Any, choices: list[str]) -> None:
    held = generate(*demo, "Hello", choices=choices, seed=0, max_denoising_steps=1, max_new_tokens=64)
    assert str(held) in choices
    assert (held.thought, held.tool_calls) == ("", [])


@pytest.mark.parametrize(("schema", "value"), [
    (list[City], [City(city="Paris", country="France"), City(city="Rome", country="Italy")]),
    (CITIES, [{"city": "Paris", "country": "France"}, {"city": "Rome", "country": "Italy"}]),
], ids=["model", "JSON Schema"])  # fmt: skip
def test_types_give_objects(demo: Any, schema: Any, value: Any) -> None:
    assert generate(*demo, "JSON for Paris and Rome", seed=0, schema=schema).parsed == value


def test_what_is_not_enforced_is_a_warning(demo: Any) -> None:
    schema = {"type": "string", "format": "color", "enum": ["Oslo"]}
    held = generate(*demo, "What is the capital of Norway?", schema=schema, seed=0)
    assert json.loads(str(held)) == "Oslo"
    warning = "schema: format 'color' (at the top) is not enforced; use pattern if the form matters"
    assert warning in held.warnings


@pytest.mark.slow
def test_the_answer_of_a_thought_that_never_ends_is_complete(
    demo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The closing delimiter is taken from the model, so that only the reserve ends its thought."""
    model, tokenizer = demo
    logits, close = DiffusionGemma.logits, tokenizer.special.channel_close
    never = mx.where(mx.arange(model.config.text.vocab_size) == close, -mx.inf, 0)
    monkeypatch.setattr(DiffusionGemma, "logits", lambda self, hidden: logits(self, hidden) + never)
    asked: dict[str, Any] = {"thinking": True, "seed": 0, "schema": City, "max_denoising_steps": 4}
    for most in (40, 90):
        held = generate(*demo, "What is 345 + 78?", max_new_tokens=most, **asked)
        City.model_validate_json(str(held))
        assert held.thought
        assert held.stats.forced_thought_ends == 1
        assert len(held.token_ids) <= most


def test_batches_and_candidates_are_held_row_by_row(untrained: Any) -> None:
    asked: dict[str, Any] = {"seed": 1, "schema": City, "max_denoising_steps": 2, "max_new_tokens": 96}
    asked |= {"eos_token_id": STOP}
    prompts = ["JSON for Paris", "What is 99 + 88?"]
    for prompt, row in zip(prompts, generate_batch(*untrained, prompts, **asked), strict=True):
        City.model_validate_json(str(row))
        alone = generate(*untrained, prompt, **asked)
        assert (row.token_ids, row.stats.grammar_repairs) == (alone.token_ids, alone.stats.grammar_repairs)
    rows = generate(*untrained, prompts[1], n=3, **asked).candidates
    assert all(City.model_validate_json(str(row)) for row in rows)
    assert rows[2].token_ids == generate(*untrained, prompts[1], candidate=2, **asked).token_ids


HOSTILE = (
    "<|channel>" * 64,
    "<|channel>a" * 32,
    "<|channel>thought\na b<|turn>a b<channel|>42<turn|>",
    "<|channel>final\na b<channel|>42<turn|>",
    "<|channel>thought\n<|tool_call>call:f{}<tool_call|><channel|>42<turn|>",
    "<|channel>thought\nhm<turn|>",
    "<|channel>thought\n" + "hm" * 90,
    "<channel|>42<turn|>",
    "<turn|>",
    "",
)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("most", [8, 64, 96, 256])
@pytest.mark.parametrize("budget", [None, 0, 5])
def test_whatever_a_model_makes_of_its_channels_the_answer_holds(
    tokenizer: Tokenizer, text: str, most: int, budget: int | None
) -> None:
    ids = tokenizer.encode(text)
    model: Any = Scripted(lambda block, _: ids[64 * block : 64 * block + 64])
    asked: dict[str, Any] = {"thinking": True, "thinking_budget": budget, "max_new_tokens": most}
    held = generate(model, tokenizer, "hi", schema={"type": "integer"}, seed=0, guard_empty=False, **asked)
    assert isinstance(json.loads(str(held)), int)
    assert held.tool_calls == []
    assert ended_as_it_says(held)


@pytest.mark.parametrize("place", [10, 191 - 128])
def test_a_delimiter_inside_the_answer_is_the_grammars_business(tokenizer: Tokenizer, place: int) -> None:
    """Also where a thought would have to be closed: at the last place before the reserve, on a border."""
    letter, quote = tokenizer.encode("m"), tokenizer.encode('"')
    canvases = [quote + letter * 63, *([letter * 64] * 20)]
    canvases[2] = [*letter * place, tokenizer.special.channel_open, *letter * 64][:64]
    model: Any = Scripted(canvases)
    held = generate(model, tokenizer, "hi", schema={"type": "string"}, seed=0, max_new_tokens=256)
    assert len(json.loads(str(held))) > 100
    assert held.stats.forced_thought_ends == 0


@pytest.mark.slow
def test_rows_of_a_batch_are_mended_by_their_own_logits(demo: Any) -> None:
    """A row that is done long before the others has logits that it did not end with."""
    asked: dict[str, Any] = {"seed": 4, "thinking": True, "max_denoising_steps": 4, "max_new_tokens": 64}
    asked["schema"] = {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 3}
    rows = generate(*demo, "What is 99 + 88?", n=3, **asked).candidates
    alone = [generate(*demo, "What is 99 + 88?", candidate=index, **asked) for index in range(3)]
    assert [row.token_ids for row in rows] == [row.token_ids for row in alone]
    assert [row.stats.denoising_steps for row in rows] == [row.stats.denoising_steps for row in alone]
    assert sum(row.stats.grammar_repairs for row in rows) > 6


@pytest.mark.parametrize(("arguments", "message"), [
    ({"schema": {"minLenght": 1}}, "schema: at the top: keyword 'minLenght' is unknown; did you mean"),
    ({"regex": "a", "choices": ["b"]}, "regex and choices: an answer is held to one of these"),
    ({"regex": "[a-z]{200}", "max_new_tokens": 64}, "takes 201 tokens, but max_new_tokens is 64"),
    ({"regex": "a", "tools": [{"name": "f", "parameters": {}}]}, "tools: a call is not what"),
])  # fmt: skip
def test_what_cannot_be_kept_is_refused_before_anything_runs(
    tokenizer: Tokenizer, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        generate(Scripted([]), tokenizer, "hi", **arguments)
    assert "\n" not in str(caught.value)
