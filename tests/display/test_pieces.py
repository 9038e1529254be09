"""Texts of single tokens: together they are the text, and characters made of bytes stay whole."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.fixtures_tokenizer import SPECIAL, write_tokenizer

from mlx_diffusiongemma.checkpoint.loading import resolve
from mlx_diffusiongemma.display.pieces import Pieces
from mlx_diffusiongemma.text.tokenizer import Tokenizer

DEMO = Tokenizer.load(resolve("demo"))
BYTES = {value: token for token, value in DEMO.byte_values.items()}
WORDS = [DEMO.encode(text)[0] for text in ("a", " the", "\n", "city", "<turn|>")]


def tokens(raw: bytes) -> list[int]:
    return [BYTES[value] for value in raw]


@pytest.fixture(scope="module", params=[False, True], ids=["gemma", "strips-first-space"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    return Tokenizer.load(write_tokenizer(directory, strip_first_space=request.param))


TEXTS = ("call th ou", "two  spaces\n\nand lines", "é日本 🎉 naïve", "(x) == <y>", "a\tb", "\u2028 \u202e")


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_together_are_the_text(tokenizer: Tokenizer, text: str) -> None:
    for each in (tokenizer, DEMO):
        ids = each.encode(text)
        pieces = Pieces(each)(ids)
        assert len(pieces) == len(ids)
        assert "".join(pieces).removeprefix(" ") == each.decode(ids)


def test_special_tokens_are_spelled(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.encode(name)[-1] for name in SPECIAL]
    assert Pieces(tokenizer)(ids) == SPECIAL


def test_a_space_before_a_word_is_kept_wherever_it_stands(tokenizer: Tokenizer) -> None:
    (word,) = tokenizer.encode(" th")[-1:]
    assert Pieces(tokenizer)([word, word]) == [" th", " th"]


CUT = "🎉".encode()[:3]


@pytest.mark.parametrize(("ids", "pieces"), [
    ([*tokens("é🎉".encode()), WORDS[0]], ["é", "", "🎉", "", "", "", "a"]),
    ([*tokens(CUT), WORDS[0]], ["\ufffd", "", "", "a"]),
    (tokens(CUT + "é".encode()), ["\ufffd", "", "", "é", ""]),
    (tokens(CUT), ["\ufffd", "", ""]),
    (tokens(b"\xff\x80A"), ["\ufffd", "\ufffd", "A"]),
    ([], []),
])  # fmt: skip
def test_a_character_stands_with_its_first_byte_even_if_cut(ids: list[int], pieces: list[str]) -> None:
    assert Pieces(DEMO)(ids) == pieces


def test_what_was_left_open_does_not_reach_the_next_call() -> None:
    pieces = Pieces(DEMO)
    assert pieces(tokens(b"\xf0\x9f")) == ["\ufffd", ""]
    assert pieces(tokens(b"\x8e")) == ["\ufffd"]


EACH, WHOLE = [*BYTES.values()], tokens("é日🎉".encode())


@example(tokens(b"\xed\xa0"))
@example(tokens(b"\xed\xa0\xed\xa0\x80A\xed\xa0\xc3\xa9\xed"))
@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(WORDS) | st.sampled_from(EACH) | st.sampled_from(WHOLE), max_size=12))
def test_against_decoding_runs_of_bytes(ids: list[int]) -> None:
    """Python's decoder over each run as a whole, and each word by itself."""
    expected = ""
    for is_byte, run in groupby(ids, key=DEMO.byte_values.__contains__):
        if is_byte:
            expected += bytes(DEMO.byte_values[token] for token in run).decode("utf-8", "replace")
        else:
            expected += "".join(DEMO.decode([token]) for token in run)
    pieces = Pieces(DEMO)(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == expected
    assert all(len(piece) <= 1 for token, piece in zip(ids, pieces, strict=True) if token in DEMO.byte_values)
