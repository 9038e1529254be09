"""Channels: token ids -> thought, answer and tool calls, however the ids are cut into blocks."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fixtures_tokenizer import SPECIAL, write_tokenizer
from support.parsing import THOUGHT, contents, parse, parse_all_ways, property_test

from mlx_diffusiongemma.text.channels import ChannelDelta, ChannelParser, TextStream
from mlx_diffusiongemma.text.tokenizer import Tokenizer

HELD = "\ufffd"


@pytest.fixture(scope="session", params=[False, True], ids=["gemma", "llama"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Gemma's conventions, and those of tokenizers that drop the space before a text."""
    directory = tmp_path_factory.mktemp("tokenizer")
    return Tokenizer.load(write_tokenizer(directory, strip_first_space=request.param))


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("gemma")))


# --- channels and what strays into them -------------------------------------------------------------------


@pytest.mark.parametrize(("output", "thought", "answer"), [
    ("", "", ""),
    ("call", "", "call"),
    (f"{THOUGHT}though\n<channel|>call<turn|>", "though\n", "call"),
    (f"{THOUGHT}<channel|>call", "", "call"),  # an empty thought
    ("<|channel>thought<channel|>call", "", "call"),
    ("<|channel><channel|>call", "", "call"),
    (f"{THOUGHT}call", "call", ""),  # a thought that never ends
    ("<|channel>thou", "", ""),  # cut off in the header
    ("call<channel|>", "", "call"),  # closes nothing
    ("<channel|>call", "", "call"),
    ("call<channel|>ou<channel|>", "", "callou"),
    ("<|turn>model\ncall", "", "call"),  # a second turn header
    (f"<|turn>model\n{THOUGHT}a<channel|>b", "a", "b"),
    (f"{THOUGHT}a<channel|>b<|turn>model\nc", "a", "bc"),
    (f"{THOUGHT}a<|turn>model\nc", "a", "c"),
    ("call<|turn>model", "", "call"),
    ("call<|turn>", "", "call"),
    ("<|turn>ou ou\nou", "", "ou ou\nou"),  # no header after all
    (f"{THOUGHT}a<channel|>b{THOUGHT}c<channel|>d", "ac", "bd"),
    (f"{THOUGHT}a{THOUGHT}c<channel|>d", "ac", "d"),
    ("<|channel>final\ncall<channel|>ou", "", "callou"),
    (f"{THOUGHT}a<channel|><|channel>answer\nb", "a", "b"),
    ("<|channel>\ncall<channel|>", "call", ""),
    ("<|channel>thought \t\ncall", "call", ""),
    ("<|channel>call ou\nou", "call ou\nou", ""),  # a channel without a header
    ("<|channel>日本\nou", "日本\nou", ""),
    ("<|channel>" + "c" * 40 + "\nou", "c" * 40 + "\nou", ""),
    (f"{THOUGHT}\ncall<channel|>\n\nou", "\ncall", "\n\nou"),  # only the header's newline goes
    (f"{THOUGHT}\n\n\nou", "\n\n\nou", ""),
    ("\n\ncall \n", "", "\n\ncall \n"),
    ("call<turn|><eos><pad><pad><|tool_response><tool_response|>", "", "call"),
    ("<bos>ca<mask>ll<unk><|think|><|image|>ou<|image><image|><|audio|>", "", "callou"),
    ('a<|"|>b<tool_call|>c<tool|><|tool>', "", "abc"),
])  # fmt: skip
def test_channels(gemma: Tokenizer, output: str, thought: str, answer: str) -> None:
    delta = parse_all_ways(gemma, gemma.encode(output))
    assert contents(delta) == (thought, answer, [])


@pytest.mark.parametrize(("output", "count"), [
    ("abc<turn|><pad>", 3),
    (f"{THOUGHT}abc<channel|>ab", 2),
    ("<|channel>final\nab<channel|>c", 3),
    ("<|turn>model\nab<channel|>", 2),
    ("<|turn>ou ou\n", 3),  # no header after all
    ("<|turn>mo", 0),
    ('a<|tool_call>f{a:<|"|>b<|"|>}<tool_call|>b', 8),  # the quotes are delimiters
    (f"{THOUGHT}a<|tool_call>f{{}}<tool_call|>b<channel|>", 3),
])  # fmt: skip
def test_answer_tokens(gemma: Tokenizer, output: str, count: int) -> None:
    assert parse_all_ways(gemma, gemma.encode(output)).answer_tokens == count


def test_ids_of_any_integer_type(gemma: Tokenizer) -> None:
    ids = gemma.encode(f"{THOUGHT}é😀<channel|>b")
    expected = ChannelDelta("é😀", "b", answer_tokens=1, thought_tokens=len(gemma.encode("é😀")))
    for array in (np.array(ids, np.int64), mx.array(ids, mx.int32)):
        assert ChannelParser(gemma).feed(array) == expected


def test_text_is_handed_out_as_soon_as_it_is_known(gemma: Tokenizer) -> None:
    parser = ChannelParser(gemma)
    ids = gemma.encode(f"{THOUGHT}a😀<channel|>call")
    deltas = [parser.feed([token]) for token in ids]
    assert [delta.thought for delta in deltas][-8:] == ["", "a", "", "", "", "😀", "", ""]
    assert [delta.answer for delta in deltas][-2:] == ["", "call"]


def test_unused_entries_and_ids_beyond_the_vocabulary_leave_no_text(gemma: Tokenizer) -> None:
    a, b = gemma.encode("ab")
    (unused,) = (token for token in gemma.hidden_ids if gemma.decode([token]) == "<unused0>")
    assert parse_all_ways(gemma, [unused, a, gemma.vocab_size, b]).answer == "ab"


def test_vocabulary_without_delimiters(tmp_path: Path) -> None:
    file = write_tokenizer(tmp_path) / "tokenizer.json"
    content = file.read_text(encoding="utf-8")
    for name in SPECIAL[5:]:
        content = content.replace(json.dumps(name), json.dumps(name.replace("|", "#")))
    file.write_text(content, encoding="utf-8")
    plain = Tokenizer.load(tmp_path)
    assert plain.special.channel_open is None
    assert parse_all_ways(plain, plain.encode("call <|channel>ou")).answer == "call <|channel>ou"


# --- text over bytes, pieces and blocks -------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["日本語", "a😀b", "👩‍🚀é\u0301", "é€", "\r\x00", "  two  spaces ", "\n\n\n\n", "\u0394"]
)
def test_text_split_anywhere(tokenizer: Tokenizer, text: str) -> None:
    for header in ("", THOUGHT):
        ids = tokenizer.encode(header + text)
        expected = tokenizer.decode(ids[1:] if header else ids).removeprefix("thought\n")
        assert expected.replace(" ", "") == text.replace(" ", "")
        for cut in range(len(ids) + 1):
            delta = parse(tokenizer, ids, [cut])
            # a thought of white space alone counts as empty
            thought = expected if expected.strip() else ""
            assert (delta.thought, delta.answer) == ((thought, "") if header else ("", expected))
        parse_all_ways(tokenizer, ids)


def byte_ids(tokenizer: Tokenizer, data: bytes) -> list[int]:
    ids = {value: token for token, value in tokenizer.byte_values.items()}
    return [ids[value] for value in data]


@given(data=st.binary(max_size=12), cuts=st.lists(st.integers(0, 12), max_size=4))
@property_test
def test_bytes_are_replaced_only_where_invalid(gemma: Tokenizer, data: bytes, cuts: list[int]) -> None:
    cuts = [min(cut, len(data)) for cut in cuts]
    assert parse(gemma, byte_ids(gemma, data), cuts).answer == data.decode("utf-8", "replace")


def test_incomplete_characters(gemma: Tokenizer) -> None:
    *half, rest = byte_ids(gemma, "😀".encode())
    close, turn, pad = (gemma.encode(text)[0] for text in ("<channel|>", "<|turn>", "<pad>"))
    a, thought = gemma.encode("a"), gemma.encode(f"{THOUGHT}a")
    for ids, expected in [
        (half, ("", HELD)),
        (half + a, ("", HELD + "a")),
        (half + byte_ids(gemma, "é".encode()), ("", HELD + "é")),
        ([*thought, *half, close, *a], ("a" + HELD, "a")),
        (thought + half, ("a" + HELD, "")),
        ([*half, turn, *gemma.encode("model\na")], ("", HELD + "a")),
        (half + thought, ("a", HELD)),
        ([half[0], pad, *half[1:], close, rest], ("", "😀")),  # noise between bytes does not break it
    ]:
        assert contents(parse_all_ways(gemma, ids)) == (*expected, [])


def test_first_piece_keeps_or_drops_its_space_as_the_tokenizer_does(tokenizer: Tokenizer) -> None:
    spaced = tokenizer.encode("a ou")[-1:]
    text = tokenizer.decode(spaced * 3)
    assert text.strip() == "ou ou ou"
    assert contents(parse_all_ways(tokenizer, spaced * 3)) == ("", text, [])
    # an answer that a thought interrupts is one text
    interrupted = spaced + tokenizer.encode(f"{THOUGHT}a<channel|>") + spaced * 2
    assert contents(parse_all_ways(tokenizer, interrupted)) == ("a", text, [])


plain_text = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\u2581<"), max_size=12
) | st.sampled_from(["thought\n", "model\n", " call", "\n\n", "日本 😀", "<|channel", "channel|>"])


@given(thought=plain_text | st.none(), answer=plain_text, data=st.data())
@property_test
def test_joined_deltas_are_what_was_written(
    gemma: Tokenizer, thought: str | None, answer: str, data: st.DataObject
) -> None:
    opened = [] if thought is None else gemma.encode(f"{THOUGHT}{thought}<channel|>")
    ids = opened + gemma.encode(answer)
    cuts = data.draw(st.lists(st.integers(0, len(ids)), max_size=6))
    kept = thought if thought and thought.strip() else ""  # a thought of white space alone counts as empty
    header = next((at for at in range(2, len(opened)) if "\n" in gemma.decode(opened[1:at])), 0)
    counts = len(gemma.encode(answer)), len(opened[header:-1])
    assert parse(gemma, ids, cuts) == ChannelDelta(kept, answer, (), *counts)


@given(data=st.data())
@property_test
def test_any_ids_however_cut(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """No order of ids raises, shows a special token, or depends on the cuts."""
    special = st.sampled_from(sorted(tokenizer.special.ids()))
    words = st.sampled_from(["thought\n", "model\n", "call:ou{", "}", "ou", " th", "é", "日"])
    text = words.map(tokenizer.encode)
    anything = st.integers(0, tokenizer.vocab_size + 3)
    parts = st.lists((special | anything).map(lambda token: [token]) | text, max_size=20)
    ids = [token for part in data.draw(parts) for token in part]
    whole = parse_all_ways(tokenizer, ids)
    assert parse(tokenizer, ids, data.draw(st.lists(st.integers(0, len(ids)), max_size=6))) == whole
    for name in SPECIAL:
        assert name not in whole.thought + whole.answer


@given(data=st.data())
@property_test
def test_stream_equals_decoding_in_one_go(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Over ids whose bytes are whole characters; `tokenizers` spoils good bytes beside bad ones."""
    ordinary = set(range(tokenizer.vocab_size)) - tokenizer.hidden_ids - set(tokenizer.byte_values)
    characters = st.characters(exclude_categories=["Cs"], min_codepoint=33)
    spelled = characters.map(lambda character: byte_ids(tokenizer, character.encode()))
    parts = st.lists(st.sampled_from(sorted(ordinary)).map(lambda token: [token]) | spelled, max_size=12)
    ids = [token for part in data.draw(parts) for token in part]
    stream, joined = TextStream(tokenizer), ""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=5)))
    for start, end in pairwise([0, *cuts, len(ids)]):
        joined += stream.feed(ids[start:end])
    assert joined + stream.finish() == tokenizer.decode(ids)


def test_work_grows_linearly(gemma: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    original = Tokenizer.decode

    def counting(self: Tokenizer, ids: list[int], **options: Any) -> str:
        decoded.append(len(ids))
        return original(self, ids, **options)

    monkeypatch.setattr(Tokenizer, "decode", counting)
    parser = ChannelParser(gemma)
    for token in gemma.encode("ou é日 call" * 200):
        parser.feed([token])
    assert max(decoded) <= 2
