"""Answers that are held to a grammar: whatever a model writes, they are complete and fit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fixtures_tokenizer import write_tokenizer
from support.grammars import STOPS, TOKENIZER, compiled
from support.held_answers import Held, Untrained, text_of, written
from support.schemas import schemas

from mlx_diffusiongemma.control.compiling import compile_grammar
from mlx_diffusiongemma.control.completion import shortest_completion
from mlx_diffusiongemma.errors import GenerationError
from mlx_diffusiongemma.text.tokenizer import Tokenizer

TURN_END = 106


def check_json(schema: dict[str, Any], text: str) -> None:
    jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)


@settings(max_examples=300, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(schemas(), st.integers(0, 999), st.sampled_from([0, 0, 1, 3, 12, 30]), st.booleans())
def test_every_answer_is_json_for_its_schema(
    schema: dict[str, Any], seed: int, extra: int, wide: bool
) -> None:
    grammar = compiled(schema=schema)
    check_json(schema, text_of(list(grammar.shortest)))
    model = Untrained(seed)
    ids = written(grammar, model, len(grammar.shortest) + extra, 64 if wide else 16, thought=seed % 3 * 7)
    check_json(schema, text_of(ids))


TREE = {
    "$defs": {
        "tree": {
            "type": "object",
            "properties": {
                "left": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
                "right": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
            },
            "required": ["left", "right"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/tree",
}
RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 12},
        "kind": {"enum": ["Zürich", 'a"b', "xyz"]},
        "size": {"type": "integer", "minimum": 1000},
        "grid": {
            "type": "array",
            "items": {"type": "array", "items": {"type": "number"}, "minItems": 2},
            "minItems": 3,
        },
        "note": {"type": "string", "pattern": "^(ab|cde){3}$"},
    },
    "required": ["name", "kind", "size", "grid", "note"],
    "additionalProperties": False,
}
GRID = '"grid": [[1, 2], [3.5, 4], [5, 6]], "note": "ababab"}'
WHOLE = r'{"name": "a\n \"quoted\" nam\fe", "kind": "a\"b", "size": 1234, ' + GRID
DEEP = '{"left": {"left": null, "right": {"left": null, "right": null}}, "right": null}'


@pytest.mark.parametrize(
    ("schema", "whole"), [(RECORD, WHOLE), (TREE, DEEP), ({}, '[{"a": [true, {"b": -1.5e-3}]}, ""]')]
)
def test_an_end_is_found_from_every_place(schema: dict[str, Any], whole: str) -> None:
    grammar = compiled(schema=schema)
    ids = grammar.vocabulary.spell(whole.encode())
    check_json(schema, whole)
    for cut in range(len(ids) + 1):
        matcher = grammar.matcher()
        assert matcher.consume_tokens(ids[:cut])
        mask = matcher.compute_bitmask()
        completion = shortest_completion(matcher, grammar, 200)
        assert completion is not None, TOKENIZER.decode(ids[:cut])
        assert matcher.compute_bitmask() == mask  # it was not moved
        check_json(schema, text_of(ids[:cut] + completion))
        assert len(completion) <= 2 * len(grammar.shortest) + 12
        assert shortest_completion(matcher, grammar, 0) is None


def test_completions_are_short() -> None:
    def shortest(**schema: Any) -> str:
        return TOKENIZER.decode(compiled(schema=schema).shortest[:-1])

    assert shortest(type="string") == '""'
    assert shortest(type="array", items={}) == "[]"
    assert shortest(anyOf=[RECORD, {"type": "null"}]) == "null"
    assert shortest(type="object", properties={"a": {"type": "integer"}}) == "{}"
    assert len(shortest(type="string", minLength=40)) == 42
    assert len(shortest(type="array", minItems=9, items={"type": "integer"})) <= 9 + 8 * 2 + 2
    link = {"properties": {"next": {"$ref": "#/$defs/x"}}, "required": ["next"]}
    other = {"properties": {"日本": {"const": None}, "b": {"type": "null"}}, "required": ["日本"]}
    chain = {"$defs": {"x": {"anyOf": [link, other]}}, "$ref": "#/$defs/x"}
    assert json.loads(shortest(**chain)).keys() <= {"日本", "b"}
    keys = [f"key {index}" for index in range(30)]
    many = {"type": "object", "properties": {key: {"type": "string"} for key in keys}, "required": keys}
    assert json.loads(shortest(**many)) == dict.fromkeys(keys, "")


@pytest.mark.parametrize("extra", [0, 2, 40])
@pytest.mark.parametrize(
    "regex",
    ["[0-9]{3}-[0-9]{4}", "(yes|no)( (yes|no))*", ".*the end", "[a-z]*foo[0-9]", "<b>[^<]*</b>", "(🙂|é)+x"],
)
def test_every_answer_matches_the_regex(regex: str, extra: int) -> None:
    grammar = compiled(regex=regex)
    for seed in range(4):
        ids = written(grammar, Untrained(seed), len(grammar.shortest) + extra, 16)
        assert re.fullmatch(regex, text_of(ids))


@pytest.mark.parametrize("extra", [0, 1, 25])
def test_every_answer_matches_the_grammar(extra: int) -> None:
    lark = 'start: expr\nexpr: term (("+" | "*") term)*\nterm: NUM | "(" expr ")"\nNUM: /[0-9]+/'
    for seed in range(8):
        grammar = compiled(grammar=lark)
        text = text_of(written(grammar, Untrained(seed), len(grammar.shortest) + extra, 16))
        assert re.fullmatch("[0-9+*()]+", text)
        compile(re.sub(r"\d+", "1", text), "text", "eval")  # Python's grammar of the same


class Scripted:
    """Writes one canvas after the other, and takes the lowest id where it is asked."""

    def __init__(self, *canvases: list[int]):
        self.canvases = list(canvases)
        self.asked: list[tuple[int, set[int]]] = []

    def canvas(self, length: int) -> list[int]:
        return self.canvases.pop(0)

    def best(self, position: int, allowed: np.ndarray) -> int:
        self.asked.append((position, set(np.flatnonzero(allowed).tolist())))
        return self.asked[-1][1].pop()


CITIES = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
        "required": ["city", "country"],
        "additionalProperties": False,
    },
}


def spelled(text: str, length: int = 16, pad: int = 0) -> list[int]:
    ids = TOKENIZER.encode(text)
    return ids + [pad] * (length - len(ids))


@pytest.mark.parametrize(
    "text", ['[{"city": "Paris", "country": "France"}]', '[{"city":"Paris","country":"France"}]']
)
def test_what_fits_stays_as_it_is(text: str) -> None:
    grammar = compiled(schema=CITIES)
    structure = Held(grammar)
    canvas = spelled(text + "<turn|>", 40)
    assert structure.review(canvas, 0, 64, Scripted().best) is None
    structure.commit(canvas, 0)
    assert (structure.finished, structure.walks, structure.repairs) == (True, 1, 0)
    assert structure.review(canvas, 0, 24, Scripted().best) is None


def test_the_first_forbidden_token_is_replaced_and_what_follows_is_pinned() -> None:
    structure = Held(compiled(schema=CITIES))
    good = TOKENIZER.encode('[{"')
    model = Scripted()
    prefix = structure.review([*good, *spelled("town", 16 - len(good))], 0, 100, model.best)
    assert [position for position, _ in model.asked] == [len(good)]
    assert TOKENIZER.decode(prefix).startswith('[{"city')
    assert structure.repairs == 1


def test_the_answer_may_begin_in_mid_canvas() -> None:
    structure = Held(compiled(choices=["yes", "no"]))
    canvas = [101] * 5 + spelled("yes<turn|>", 11)
    assert structure.review(canvas, 5, 40, Scripted().best) is None
    prefix = structure.review([101] * 5 + spelled("maybe", 11), 5, 40, Scripted().best)
    assert prefix[:5] == [101] * 5
    assert TOKENIZER.decode(prefix[5:]) in ("yes<turn|>", "no<turn|>")


@pytest.mark.parametrize("stop", STOPS)
def test_a_stop_id_ends_only_what_is_complete(stop: int) -> None:
    structure = Held(compiled(regex="[0-9]{2,9}"))
    prefix = structure.review([*TOKENIZER.encode("1"), stop, *[0] * 14], 0, 20, Scripted().best)
    assert TOKENIZER.decode(prefix)[:1] == "1"
    assert prefix[1] not in STOPS
    assert structure.review([*TOKENIZER.encode("12"), stop, *[0] * 13], 0, 20, Scripted().best) is None


def test_special_tokens_are_no_text() -> None:
    grammar = compiled(regex="(?s:.*)")
    allowed = grammar.allowed(grammar.matcher())
    assert not allowed[list(TOKENIZER.hidden_ids - set(STOPS))].any()
    assert allowed[list(STOPS)].all()
    for special in sorted(TOKENIZER.hidden_ids - set(STOPS)):
        structure = Held(grammar)
        prefix = structure.review([*TOKENIZER.encode("a"), special, *[0] * 14], 0, 40, Untrained(0).best)
        assert prefix[1] != special


def test_what_is_hidden_is_no_text_though_a_grammar_would_take_it(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path))
    (hidden,) = (token for token in tokenizer.hidden_ids if tokenizer.decode([token]) == "<unused0>")
    stop = tokenizer.special.turn_close
    assert stop is not None
    grammar = compile_grammar(tokenizer, tokenizer.vocab_size, [stop], regex="(?s:.*)")
    assert grammar.matcher().validate_tokens([hidden]) == 1  # llguidance reads its name as text
    assert not grammar.allowed(grammar.matcher())[hidden]
    prefix = Held(grammar).review([hidden, stop, 0, 0], 0, 9, lambda at, allowed: int(allowed.argmax()))
    assert prefix[0] != hidden


def test_what_ends_beyond_the_limit_is_ended_before() -> None:
    structure = Held(compiled(schema=CITIES))
    canvas = spelled('[{"city": "Paris", "country": "France"}]<turn|>')
    size = canvas.index(TURN_END) + 1
    assert structure.review(canvas, 0, size, Scripted().best) is None
    prefix = structure.review(canvas, 0, size - 1, Scripted().best)
    assert len(prefix) <= size - 1
    check_json(CITIES, text_of(prefix))


def test_a_thought_that_grew_leaves_less_room() -> None:
    """The caller re-denoised the thought before the answer: what was found to fit need not fit now."""
    structure = Held(compiled(schema=CITIES))
    answer = TOKENIZER.encode('[{"city": "Paris Paris Paris')
    assert structure.review(answer, 0, len(answer) + 8, Scripted().best) is None
    prefix = structure.review([101] * 6 + answer, 6, len(answer) + 8, Scripted().best)
    check_json(CITIES, text_of(prefix[6:]))


class Endless(Untrained):
    """Opens a string and never closes it."""

    def __init__(self) -> None:
        super().__init__(0)
        self.opened = False

    def canvas(self, length: int) -> list[int]:
        text = ("" if self.opened else '[{"city": "') + "Paris" * length
        self.opened = True
        return TOKENIZER.encode(text)[:length]


@pytest.mark.parametrize("most", [30, 48, 64, 65, 79])
def test_a_string_is_closed_in_time(most: int) -> None:
    ids = written(compiled(schema=CITIES), Endless(), most, 16)
    (city,) = json.loads(text_of(ids))
    assert city["city"].startswith("Paris")
    assert most - 24 <= len(ids) <= most  # not before it must be


def test_a_choice_that_is_not_allowed_is_an_error() -> None:
    structure = Held(compiled(choices=["yes"]))
    with pytest.raises(GenerationError, match="token 0 was chosen"):
        structure.review([0] * 16, 0, 16, lambda position, allowed: 0)
    with pytest.raises(GenerationError, match=r"cannot follow the canvas \(.*\); simplify"):
        structure.commit([5], 0)
