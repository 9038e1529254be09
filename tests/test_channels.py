"""Channels: token ids -> thought, answer and tool calls, however the ids are cut into blocks."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_diffusiongemma.channels import ChannelDelta, ChannelParser, TextStream, ToolCall
from mlx_diffusiongemma.tokenizer import Tokenizer
from mlx_diffusiongemma.tool_calls import parse_tool_call

from .fixtures_tokenizer import SPECIAL, write_tokenizer

settings.register_profile("channels", deadline=None, database=None, derandomize=True, max_examples=100)
property_test = settings.get_profile("channels")

THOUGHT = "<|channel>thought\n"
HELD = "\ufffd"


@pytest.fixture(scope="session", params=[False, True], ids=["gemma", "llama"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Gemma's conventions, and those of tokenizers that drop the space before a text."""
    directory = tmp_path_factory.mktemp("tokenizer")
    return Tokenizer.load(write_tokenizer(directory, strip_first_space=request.param))


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("gemma")))


def parse(tokenizer: Tokenizer, ids: list[int], cuts: list[int] | None = None) -> ChannelDelta:
    """All deltas of `ids`, fed in the stretches between `cuts`, as one."""
    parser = ChannelParser(tokenizer)
    bounds = [0, *sorted(cuts or []), len(ids)]
    deltas = [parser.feed(ids[start:end]) for start, end in pairwise(bounds)] + [parser.finish()]
    assert parser.finish() == ChannelDelta()
    return sum(deltas, start=ChannelDelta())


def parse_all_ways(tokenizer: Tokenizer, ids: list[int]) -> ChannelDelta:
    """The one delta that whole, single and pairwise feeding agree on."""
    whole = parse(tokenizer, ids)
    assert parse(tokenizer, ids, list(range(len(ids)))) == whole
    assert parse(tokenizer, ids, list(range(1, len(ids), 2))) == whole
    return whole


def contents(delta: ChannelDelta) -> tuple[str, str, list[ToolCall]]:
    return delta.thought, delta.answer, list(delta.tool_calls)


# --- channels and what strays into them -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "thought", "answer"),
    [
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
    ],
)  # fmt: skip
def test_channels(gemma: Tokenizer, output: str, thought: str, answer: str) -> None:
    delta = parse_all_ways(gemma, gemma.encode(output))
    assert contents(delta) == (thought, answer, [])


def test_in_thought(gemma: Tokenizer) -> None:
    parser = ChannelParser(gemma)
    states = []
    for token in gemma.encode("\n<|channel>\n\n<channel|>a<|channel>de\nb<|turn>"):
        parser.feed([token])
        states.append(parser.in_thought)
    #                 \n    <|channel> \n\n  <channel|>  a   <|channel>  de   \n     b    <|turn>
    assert states == [False, True, True, False, False, True, True, False, False, False]


@pytest.mark.parametrize(
    ("output", "count"),
    [
        ("abc<turn|><pad>", 3),
        (f"{THOUGHT}abc<channel|>ab", 2),
        ("<|channel>final\nab<channel|>c", 3),
        ("<|turn>model\nab<channel|>", 2),
        ("<|turn>ou ou\n", 3),  # no header after all
        ("<|turn>mo", 0),
        ('a<|tool_call>f{a:<|"|>b<|"|>}<tool_call|>b', 8),  # the quotes are delimiters
        (f"{THOUGHT}a<|tool_call>f{{}}<tool_call|>b<channel|>", 3),
    ],
)
def test_answer_tokens(gemma: Tokenizer, output: str, count: int) -> None:
    ids = gemma.encode(output)
    for cut in range(len(ids)):
        assert parse(gemma, ids, [cut]).answer_tokens == count
    assert parse_all_ways(gemma, ids).answer_tokens == count


def test_ids_of_any_integer_type(gemma: Tokenizer) -> None:
    ids = gemma.encode(f"{THOUGHT}é😀<channel|>b")
    for array in (np.array(ids, np.int64), mx.array(ids, mx.int32)):
        assert ChannelParser(gemma).feed(array) == ChannelDelta("é😀", "b", answer_tokens=1)


def test_text_is_handed_out_as_soon_as_it_is_known(gemma: Tokenizer) -> None:
    parser = ChannelParser(gemma)
    ids = gemma.encode(f"{THOUGHT}a😀<channel|>call")
    deltas = [parser.feed([token]) for token in ids]
    assert [delta.thought for delta in deltas][-8:] == ["", "a", "", "", "", "😀", "", ""]
    assert [delta.answer for delta in deltas][-2:] == ["", "call"]


def test_unused_entries_leave_no_text(gemma: Tokenizer) -> None:
    unused = [token for token in gemma.hidden_ids if gemma.decode([token]) == "<unused0>"]
    assert contents(parse_all_ways(gemma, unused + gemma.encode("call"))) == ("", "call", [])


def test_ids_beyond_the_vocabulary_leave_no_text(gemma: Tokenizer) -> None:
    a, b = gemma.encode("ab")
    assert parse_all_ways(gemma, [a, gemma.vocab_size, b]).answer == "ab"


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
    half = byte_ids(gemma, "😀".encode()[:3])
    a = gemma.encode("a")
    close, turn = gemma.special.channel_close or -1, gemma.special.turn_open or -1
    assert parse_all_ways(gemma, half).answer == HELD
    assert parse_all_ways(gemma, half + a).answer == HELD + "a"
    assert parse_all_ways(gemma, half + byte_ids(gemma, "é".encode())).answer == HELD + "é"
    thought = gemma.encode(f"{THOUGHT}a") + half
    assert contents(parse_all_ways(gemma, [*thought, close, *a])) == ("a" + HELD, "a", [])
    assert contents(parse_all_ways(gemma, thought)) == ("a" + HELD, "", [])
    turned = [*half, turn, *gemma.encode("model\na")]
    assert contents(parse_all_ways(gemma, turned)) == ("", HELD + "a", [])
    unfinished = half + gemma.encode(f"{THOUGHT}a")
    assert contents(parse_all_ways(gemma, unfinished)) == ("a", HELD, [])
    # noise between the bytes of a character does not break it
    pad = gemma.special.pad or 0
    assert (
        parse_all_ways(gemma, [half[0], pad, *half[1:], close, *byte_ids(gemma, "😀".encode()[3:])]).answer
        == "😀"
    )


def test_first_piece_keeps_or_drops_its_space_as_the_tokenizer_does(tokenizer: Tokenizer) -> None:
    spaced = tokenizer.encode("a ou")[-1:]
    text = tokenizer.decode(spaced * 3)
    assert text.strip() == "ou ou ou"
    assert contents(parse_all_ways(tokenizer, spaced * 3)) == ("", text, [])
    # an answer that a thought interrupts is one text
    thought = tokenizer.encode(f"{THOUGHT}a<channel|>")
    assert contents(parse_all_ways(tokenizer, spaced + thought + spaced * 2)) == ("a", text, [])


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
    assert parse(gemma, ids, cuts) == ChannelDelta(kept, answer, (), len(gemma.encode(answer)))


@given(data=st.data())
@property_test
def test_any_ids_however_cut(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """No order of ids raises, shows a special token, or depends on the cuts."""
    special = st.sampled_from(sorted(tokenizer.special.ids()))
    text = st.sampled_from(["thought\n", "model\n", "call:ou{", "}", "ou", " th", "é", "日"]).map(
        tokenizer.encode
    )
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
    for start, end in pairwise(
        [0, *sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=5))), len(ids)]
    ):
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


# --- tool calls -------------------------------------------------------------------------------------------


def written(value: Any, space: str = "") -> str:
    """`value` as the model writes it."""
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, dict):
        return (
            "{"
            + f",{space}".join(f"{key}{space}:{written(item, space)}" for key, item in value.items())
            + "}"
        )
    if isinstance(value, list):
        return f"[{space}" + f"{space},".join(written(item, space) for item in value) + f"{space}]"
    return json.dumps(value)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581<"), max_size=8)
keys = st.from_regex(r"[A-Za-z_][\w.-]{0,6}", fullmatch=True).filter(str.isascii)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@given(
    arguments=st.dictionaries(keys, values, max_size=4),
    space=st.sampled_from(["", " ", "\n\t "]),
    data=st.data(),
)
@property_test
def test_arguments_round_trip(
    gemma: Tokenizer, arguments: dict[str, Any], space: str, data: st.DataObject
) -> None:
    raw = f"call:{space}get_weather{space}{written(arguments, space)}"
    ids = gemma.encode(f"a<|tool_call>{raw}<tool_call|>b")
    cuts = data.draw(st.lists(st.integers(0, len(ids)), max_size=4))
    delta = parse(gemma, ids, cuts)
    assert contents(delta) == ("", "ab", [ToolCall("get_weather", arguments, raw)])
    (call,) = delta.tool_calls
    assert json.dumps(call.arguments) == json.dumps(arguments)  # tells 1, 1.0 and True apart


@pytest.mark.parametrize(
    ("raw", "name", "arguments"),
    [
        ("call:now{}", "now", {}),
        ("now{}", "now", {}),  # without call:
        ("call{}", "call", {}),
        (" call : now { } \n", "now", {}),
        ("call:maps:route-2.b/c{n:1}", "maps:route-2.b/c", {"n": 1}),
        ('call:f{a:<|"|>say "hi", {x:[1]}\n<|"|>,b:2}', "f", {"a": 'say "hi", {x:[1]}\n', "b": 2}),
        ('call:f{a:<|"|><|"|>,b:<|"|>12<|"|>,c:"12"}', "f", {"a": "", "b": "12", "c": "12"}),
        ('call:f{a:<|"|> x <|"|>}', "f", {"a": " x "}),
        ('call:f{<|"|>a key<|"|>:1}', "f", {"a key": 1}),
        ('call:f{"a":"say \\"hi\\" \\u00e9\n","b":[""]}', "f", {"a": 'say "hi" é\n', "b": [""]}),
        ("call:f{n:-3,x:1.5e3,big:9007199254740993}", "f", {"n": -3, "x": 1500.0, "big": 9007199254740993}),
        ("call:f{ok:true,no:false,none:null}", "f", {"ok": True, "no": False, "none": None}),
        ("call:f{xs:[1,[2,{y:[]}],{}]}", "f", {"xs": [1, [2, {"y": []}], {}]}),
        ("call:f{a:1,a:2,}", "f", {"a": 2}),
        ("call:f{a:" + "[" * 60 + "]" * 60 + "}", "f", None),
    ],
)  # fmt: skip
def test_good_call(raw: str, name: str, arguments: dict[str, Any] | None) -> None:
    call = parse_tool_call(raw)
    assert (call.name, call.raw, call.error) == (name, raw, None)
    assert arguments is None or json.dumps(call.arguments) == json.dumps(arguments)


@pytest.mark.parametrize(
    ("raw", "name", "error"),
    [
        ("", "", "name is missing"),
        ("{a:1}", "", "name is missing"),
        ('<|"|>f<|"|>{}', "", "name is missing"),
        ("call:f", "f", "expected { after the name, found the end"),
        ("call:f(a:1)", "f", "expected { after the name, found '(a'"),
        ("call:get weather{}", "get", "expected { after the name, found 'weather'"),
        ("call:f{", "f", "expected word or string, found the end"),
        ("call:f{a", "f", "expected :, found the end"),
        ("call:f{a:", "f", "found the end"),
        ("call:f{a:1", "f", "expected ,, found the end"),
        ("call:f{a:1}}", "f", "expected the end of the call, found '}'"),
        ("call:f{a:1}call:g{}", "f", "expected the end of the call, found 'call'"),
        ("call:f{a=1}", "f", "expected :"),
        ("call:f{a:1 b:2}", "f", "expected ,, found 'b'"),
        ("call:f{a:Paris}", "f", "'Paris' is no number"),
        ("call:f{a:007}", "f", "'007' is no number"),
        ("call:f{a:True}", "f", "'True' is no number"),
        ("call:f{a:NaN}", "f", "'NaN' is not a finite number"),
        ("call:f{a:1e999}", "f", "'1e999' is not a finite number"),
        ("call:f{a:" + "1" * 5000 + "}", "f", "is no number"),
        ("call:f{a:12:30}", "f", "expected ,, found ':'"),
        ("call:f{a:]}", "f", "found ']'"),
        ("call:f{,}", "f", "expected word or string, found ','"),
        ("call:f{a:[1,2}", "f", "found '}'"),
        ('call:f{a:<|"|>open}', "f", "a string is not closed"),
        ('call:f{a:<|"|>x<|"|>y<|"|>}', "f", "expected ,, found 'y'"),
        ('call:f{a:"open}', "f", "cannot read '\"open}'"),
        ('call:f{a:"\\x"}', "f", "no valid JSON string"),
        ("call:f{a:" + "[" * 5000 + "}", "f", "nested deeper"),
    ],
)
def test_malformed_call(gemma: Tokenizer, raw: str, name: str, error: str) -> None:
    call = parse_tool_call(raw)
    assert (call.name, call.arguments, call.raw) == (name, {}, raw)
    assert error in (call.error or "")
    assert "\n" not in (call.error or "")
    ids = gemma.encode(f"a<|tool_call>{raw}<tool_call|>b")
    assert contents(parse(gemma, ids)) == ("", "ab", [call])


@given(raw=st.text(st.sampled_from('{}[]:,"~\\ \ncall1.-ef') | st.characters(), max_size=30))
@property_test
def test_parsing_a_call_never_raises(raw: str) -> None:
    raw = raw.replace("~", '<|"|>')
    call = parse_tool_call(raw)
    assert call.raw == raw
    assert call.name or call.error


F = '<|tool_call>call:f{a:<|"|>x<|"|>}'
G = "<|tool_call>call:g{}"


@pytest.mark.parametrize(
    ("output", "names", "thought", "answer"),
    [
        (f"{F}<tool_call|>{G}<tool_call|><|tool_response>", ["f", "g"], "", ""),
        (f"ca{F}<tool_call|>ll{G}<tool_call|>ou", ["f", "g"], "", "callou"),
        (f"{THOUGHT}a{F}<tool_call|>b<channel|>c", ["f"], "ab", "c"),  # inside a thought
        (f"{THOUGHT}a<channel|>{F}<tool_call|><|tool_response>", ["f"], "a", ""),
        (f"{F}<pad><|think|><tool_call|>b", ["f"], "", "b"),  # noise
    ],
)
def test_calls_between_text(
    gemma: Tokenizer, output: str, names: list[str], thought: str, answer: str
) -> None:
    delta = parse_all_ways(gemma, gemma.encode(output))
    assert [call.name for call in delta.tool_calls] == names
    assert [call.error for call in delta.tool_calls] == [None] * len(names)
    assert (delta.thought, delta.answer) == (thought, answer)


ENDS = ["", G + "<tool_call|>", "<turn|>", "<eos>", "<|tool_response>", "<|channel>", "<channel|>", "<|turn>"]


@pytest.mark.parametrize("end", ENDS)
def test_unterminated_call(gemma: Tokenizer, end: str) -> None:
    first, *others = parse_all_ways(gemma, gemma.encode(F + end)).tool_calls
    assert first == ToolCall(
        "f", {"a": "x"}, 'call:f{a:<|"|>x<|"|>}', "the call is not closed by <tool_call|>"
    )
    assert [call.name for call in others] == (["g"] if end.startswith(G) else [])
    at_once = ChannelParser(gemma).feed(gemma.encode(F + end)).tool_calls
    assert list(at_once) == ([first, *others] if end else [])
    cut = parse_all_ways(gemma, gemma.encode(F)[:-2] + gemma.encode(end)).tool_calls[0]
    assert (cut.name, cut.arguments) == ("f", {})
    assert cut.error == 'the call is not closed by <tool_call|>; a string is not closed by <|"|>'


def test_call_with_text_split_over_bytes(gemma: Tokenizer) -> None:
    ids = gemma.encode('<|tool_call>call:f{city:<|"|>Zürich 日本<|"|>}<tool_call|>')
    for cut in range(len(ids)):
        (call,) = parse(gemma, ids, [cut]).tool_calls
        assert call.arguments == {"city": "Zürich 日本"}


# --- the bundled demo -------------------------------------------------------------------------------------


@pytest.mark.parametrize("feed", [lambda ids: [ids], lambda ids: [[token] for token in ids]])
def test_demo_output(feed: Callable[[list[int]], list[list[int]]]) -> None:
    tokenizer = Tokenizer.load(Path(__file__).parents[1] / "mlx_diffusiongemma" / "demo" / "checkpoint")
    raw = 'call:get_weather{city:<|"|>Oslo<|"|>}'
    output = f"{THOUGHT}It is 3 °C.<channel|>Hi 😀<|tool_call>{raw}<tool_call|><|tool_response>"
    parser, thought, answer, calls = ChannelParser(tokenizer), "", "", []
    for ids in feed(tokenizer.encode(output)):
        delta = parser.feed(ids)
        thought, answer, calls = thought + delta.thought, answer + delta.answer, [*calls, *delta.tool_calls]
    assert parser.finish() == ChannelDelta()
    assert (thought, answer) == ("It is 3 °C.", "Hi 😀")
    assert calls == [ToolCall("get_weather", {"city": "Oslo"}, raw)]
