"""Grammars: the compiled ones, and those that are refused before anything is denoised."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from support.grammars import STOPS, TOKENIZER, V, accepts, compiled, refusal

from mlx_diffusiongemma.control.compiling import compile_grammar


def test_nothing_given_is_no_grammar() -> None:
    assert compile_grammar(TOKENIZER, V, STOPS) is None


VALUE = {"a": [1, {"b": "c, d: e"}], "f": None}


@pytest.mark.parametrize(("text", "fits"), [
    (json.dumps(VALUE), True),
    (json.dumps(VALUE, separators=(",", ":")), True),
    (json.dumps(VALUE, indent=1), False),
    (json.dumps(VALUE, separators=(",  ", ": ")), False),
    (" " + json.dumps(VALUE), False),
    (json.dumps(VALUE) + " ", False),
    (json.dumps(VALUE).replace("[", "[ "), False),
])  # fmt: skip
def test_json_has_blanks_after_commas_and_colons_only(text: str, fits: bool) -> None:
    assert accepts(compiled(schema={}), text) == fits


@pytest.mark.parametrize(("what", "said"), [
    ({"regex": "a", "choices": ["a"]}, "regex and choices"),
    ({"schema": {}, "regex": "a", "grammar": "b"}, "schema and regex and grammar"),
    ({"regex": 3}, "found int"),
    ({"regex": "\ud800"}, "Unicode"),
    ({"regex": "(a"}, "regex: unclosed group; correct it"),
    ({"regex": "b" * 300 + "(a"}, "regex: unclosed group; correct it"),
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
    ({"regex": "[&&a]"}, "nothing"),
    ({"choices": "yes"}, "found str; give a list of texts"),
    ({"choices": {"yes", "no"}}, "found set; give a list of texts"),
    ({"choices": iter(["a"])}, "give a list of texts"),
    ({"choices": []}, "empty; give at least one text"),
    ({"choices": ["a", ""]}, "item 1 is empty"),
    ({"choices": ["a", 3]}, "item 1 is int"),
    ({"choices": ["a", None]}, "item 1 is NoneType"),
    ({"choices": ["a", "b", "a"]}, "'a' is there twice"),
    ({"choices": ["\x1b[31m", "\x1b[31m"]}, r"'\x1b[31m' is there twice"),
    ({"choices": ["ok", "\ud800"]}, "item 1: not valid Unicode"),
    ({"choices": [b"a"]}, "item 0 is bytes"),
])  # fmt: skip
def test_bad_input_gets_one_line(what: dict[str, Any], said: str) -> None:
    assert said in refusal(**what)


def test_the_tokenizer_is_prepared_once() -> None:
    first, second = compiled(regex="a"), compiled(choices=["b"])
    assert first.vocabulary is second.vocabulary
    assert compile_grammar(TOKENIZER, V, (106,), regex="a").vocabulary is not first.vocabulary  # type: ignore[union-attr]


def test_a_vocabulary_larger_than_the_tokenizer() -> None:
    grammar = compile_grammar(TOKENIZER, 768, (106,), regex="[ab]+")
    matcher = grammar.matcher()
    assert matcher.consume_tokens(TOKENIZER.encode("a"))
    allowed = grammar.allowed(matcher)
    assert allowed.shape == (768,)
    assert not allowed[704:].any()
    spelled = {TOKENIZER.decode([token]) for token in np.flatnonzero(allowed).tolist()}
    assert spelled == {"a", "b", "<turn|>"}
