"""Choices with unusual characters: the answer is one of them, letter for letter."""

from __future__ import annotations

import json

import pytest
from support.grammars import BYTES, STOPS, TOKENIZER, V, accepts, compiled, refusal, shortest
from support.held_answers import Untrained, random_answer, text_of, written

from mlx_diffusiongemma.control.completion import shortest_completion

# Control characters that JSON can spell as a number only. A schema refuses them.
NEVER_WRITTEN = {*map(chr, range(32)), "\x7f"} - set("\b\f\n\r\t")
UNUSUAL = {
    "line breaks": ["a\nb", "\n", "\r\n", "\r", "a\n\n\nb", "\x0b\x0c", "\x85", "\u2028"],
    "quotes": ['"', "'", '""', '"a" | "b"', "`", "“x”", "'\"'"],
    "backslashes": ["\\", "\\\\", "\\n", "\\u0041", 'a\\"b', "\\d+", "\\x00"],
    "controls": ["\x00", "\x01", "\x1b[31m", "\x7f", "\x80", "a\x00b"],
    "emoji": ["😀", "👩‍🚀", "👨‍👩‍👧‍👦", "🇳🇴", "é😀", "❤️", "❤"],
    "prefixes": ["a", "ab", "abc", "b", "a ", "abcd e"],
    "blanks": [" a", "a ", "  ", " ", "\t", "a", "\u00a0", "\u3000"],
    "special tokens": [
        "<turn|>",
        "<|turn>user\n",
        "<bos>",
        "<eos>",
        "<pad>",
        "<unk>",
        "say <turn|> now",
        "<|",
    ],
    "tokens' own spellings": ["▁", "▁a", "a▁b", " ▁ ", "<0x41>", "A", "<unused0>", "##a"],
    "scripts": ["größer", "日本語", "Ελλάδα", "مرحبا", "é", "e\u0301", "ﬁ", "\ufeff", "\u200b", "Ꭰ", "𝔘"],
    "syntax": ["/", "//", "/a/", "%ignore", "#", "$", "start: a", "|", "{", "}", "[", "(?i)a", ".*", "a{3}"],
    "long": ["a" * 3000, "a" * 2999 + "b", "ab" * 700, "long " * 200],
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_every_choice_can_be_the_answer_and_nothing_else(name: str) -> None:
    choices = UNUSUAL[name]
    grammar = compiled(choices=choices)
    for choice in choices:
        assert accepts(grammar, choice)
        by_bytes, matcher = [BYTES[byte] for byte in choice.encode()], grammar.matcher()
        assert matcher.consume_tokens(by_bytes)
        assert matcher.is_accepting()
        assert TOKENIZER.decode(by_bytes) == choice
        assert accepts(grammar, choice + "a") == (choice + "a" in choices)
        assert accepts(grammar, choice[:-1]) == (choice[:-1] in choices)
    assert shortest(grammar) in choices
    assert all(random_answer(grammar, seed, 40) in choices for seed in range(20))


@pytest.mark.parametrize("name", UNUSUAL)
def test_each_choice_alone_is_the_answer(name: str) -> None:
    """Alone, the compiler forces it as the tokenizer spells it: not for the spelling of a special token."""
    for choice in UNUSUAL[name]:
        if len(choice) < 100:
            grammar = compiled(choices=[choice])
            assert shortest(grammar) == choice
            ids = written(grammar, Untrained(0), len(grammar.shortest) + 8, 16)
            assert text_of(ids) == choice
            schema = {"type": "array", "items": {"const": choice}, "minItems": 1}
            if set(choice) & NEVER_WRITTEN:
                assert "control character" in refusal(schema=schema)
                continue
            in_json = compiled(schema=schema)
            assert json.loads(shortest(in_json)) == [choice]
            assert set(json.loads(random_answer(in_json, 1, 30))) == {choice}


def test_every_answer_is_a_choice() -> None:
    choices = ["yes", "yes please", 'no\n"', "größer als 😀", "<|turn>", "a/b\\c", "x<turn|>", "▁"]
    grammar = compiled(choices=choices)
    answers = {text_of(written(grammar, Untrained(seed), 24, 16)) for seed in range(80)}
    assert answers == set(choices)


def test_special_tokens_themselves_are_never_written() -> None:
    for choice in ("<turn|>", "a<turn|>b", "<bos>"):
        grammar = compiled(choices=[choice])
        matcher = grammar.matcher()
        for token in grammar.shortest[:-1]:
            hidden = set(grammar.allowed(matcher).nonzero()[0].tolist()) & TOKENIZER.hidden_ids
            assert not hidden - set(STOPS)
            assert not hidden or matcher.is_accepting()
            assert matcher.consume_token(token)


def test_thousands_of_choices() -> None:
    choices = [f"choice {index} {index * 7919 % 1000003}" for index in range(5000)]
    grammar = compiled(choices=choices)
    assert shortest(grammar) == min(choices, key=len)
    assert accepts(grammar, choices[-1])
    assert not accepts(grammar, choices[-1] + "0")
    matcher = grammar.matcher()
    assert matcher.consume_tokens(TOKENIZER.encode("choice 49"))
    end = shortest_completion(matcher, grammar, 40)
    assert end is not None
    assert "choice 49" + text_of(end) in choices


def test_a_long_choice_says_how_many_tokens_it_takes() -> None:
    """Not that it contradicts itself: whether it fits is asked with the settings."""
    grammar = compiled(choices=["ab " * 10_000, "cd " * 9_000])
    assert shortest(grammar) == "cd " * 9_000


def test_a_vocabulary_without_the_choices_letters_spells_their_bytes() -> None:
    grammar = compiled(choices=["Ж", "語"])
    assert set(grammar.shortest[:-1]) <= set(BYTES.values())
    assert grammar.allowed(grammar.matcher()).shape == (V,)
