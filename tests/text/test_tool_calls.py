"""Tool calls in the model's notation: alone, between text, unterminated and malformed."""

from __future__ import annotations

import ast
import json
import re
import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fixtures_tokenizer import write_tokenizer
from support.parsing import THOUGHT, contents, parse, parse_all_ways, property_test

from mlx_diffusiongemma.text.channels import ChannelParser, ToolCall
from mlx_diffusiongemma.text.tokenizer import Tokenizer
from mlx_diffusiongemma.text.tool_calls import parse_tool_call, parse_tool_calls


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("gemma")))


def written(value: Any, space: str = "") -> str:
    """`value` as the model writes it."""
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, dict):
        pairs = (f"{key}{space}:{written(item, space)}" for key, item in value.items())
        return "{" + f",{space}".join(pairs) + "}"
    if isinstance(value, list):
        return f"[{space}" + f"{space},".join(written(item, space) for item in value) + f"{space}]"
    return json.dumps(value)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581<"), max_size=8)
loose_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
keys = st.from_regex(r"[A-Za-z_][\w.-]{0,6}", fullmatch=True).filter(str.isascii)


def objects(keys: st.SearchStrategy[str], texts: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    values = st.recursive(
        st.none() | st.booleans() | numbers | texts,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=8,
    )
    return st.dictionaries(keys, values, max_size=4)


@given(arguments=objects(keys, texts), space=st.sampled_from(["", " ", "\n\t "]), data=st.data())
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


@pytest.mark.parametrize(("raw", "name", "arguments"), [
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
    ("call:f{a:1,b:2,}", "f", {"a": 1, "b": 2}),
    ("callback{}", "callback", {}),  # a name that merely begins like call:
    ("call:call{a:[true,[false,null],-0.5E-3]}", "call", {"a": [True, [False, None], -0.0005]}),
    ('call:f{a:<|"|>}{][,:call:g<|"|>,b:{c:<|"|>1<|"|>}}', "f", {"a": "}{][,:call:g", "b": {"c": "1"}}),
    ('call:f{a:"\\ud83d\\ude00"}', "f", {"a": "\U0001f600"}),
    ("call:f{a:" + "[" * 60 + "]" * 60 + "}", "f", None),
    # parentheses
    ('call:f(city="Paris", days=3)', "f", {"city": "Paris", "days": 3}),
    ('call:f(command:<|"|>ls -a | grep (x)<|"|>)', "f", {"command": "ls -a | grep (x)"}),
    ("call:f()", "f", {}),
    ('f ( {"a": [1]} )', "f", {"a": [1]}),
    ("call:f({{a:1}})", "f", {"a": 1}),
    # single quotes
    ("call:f{a:'Paris','b c':''}", "f", {"a": "Paris", "b c": ""}),
    ("call:f{a:'say \"hi\", {it\\'s}',b:\"it's\"}", "f", {"a": "say \"hi\", {it's}", "b": "it's"}),
    ("call:f{a:'\\u00e9\\n\\\\'}", "f", {"a": "é\n\\"}),
    # doubled braces, from templates that were given arguments as text
    ('call:f{{"a": "x", "b": {{"c": 2}}, "d": {"e": 1}}}', "f", {"a": "x", "b": {"c": 2}, "d": {"e": 1}}),
    ("call:f{{}}", "f", {}),
    # missing commas
    ("call:f{a:1 b:true\nc:[2]d:{e:3}f:4}", "f", {"a": 1, "b": True, "c": [2], "d": {"e": 3}, "f": 4}),
    ('call:f{a:<|"|>x<|"|>b:<|"|>y<|"|>c:3<|"|>d<|"|>:4}', "f", {"a": "x", "b": "y", "c": 3, "d": 4}),
    ("call:f{\"a\":\"x\" \"b\":'y' 'c':1}", "f", {"a": "x", "b": "y", "c": 1}),
    ("call:f{a:[1 2\n[3]{b:4}5]}", "f", {"a": [1, 2, [3], {"b": 4}, 5]}),
    ('call:f{a:["x" "y"],b:[<|"|>x<|"|><|"|>y<|"|>]}', "f", {"a": ["x", "y"], "b": ["x", "y"]}),
    # Python's words, = for :, a comma at the end
    ("call:f{a:True,b:False,c:None,d:[None,],}", "f", {"a": True, "b": False, "c": None, "d": [None]}),
    ("call:f{a=1, b = {c=2}}", "f", {"a": 1, "b": {"c": 2}}),
])  # fmt: skip
def test_good_call(raw: str, name: str, arguments: dict[str, Any] | None) -> None:
    call = parse_tool_call(raw)
    assert (call.name, call.raw, call.error) == (name, raw, None)
    assert arguments is None or json.dumps(call.arguments) == json.dumps(arguments)


@pytest.mark.parametrize(("raw", "name", "error"), [
    ("", "", "name is missing"),
    ("{a:1}", "", "name is missing"),
    ('<|"|>f<|"|>{}', "", "name is missing"),
    ("call:f", "f", "expected { after the name, found the end"),
    ("call:get weather{}", "get", "expected { after the name, found 'weather'"),
    ("call:f{", "f", "expected word or string, found the end"),
    ("call:f{a", "f", "expected : after 'a', found the end"),
    ("call:f{a:", "f", "found the end"),
    ("call:f{a:1", "f", "expected a comma, found the end"),
    ("call:f{a:1}}", "f", "expected the end of the call, found '}'"),
    ("call:f{a:1} and more", "f", "expected the end of the call, found 'and'"),
    ("call:f{a:Paris}", "f", "'Paris' is not a number"),
    ("call:f{a:007}", "f", "'007' is not a number"),
    ("call:f{a:NaN}", "f", "'NaN' is not a finite number"),
    ("call:f{a:1e999}", "f", "'1e999' is not a finite number"),
    ("call:f{a:" + "1" * 5000 + "}", "f", "is not a number"),
    ("call:f{a:12:30}", "f", "expected a comma, found ':'"),
    ("call:f{a:]}", "f", "found ']'"),
    ("call:f{,}", "f", "expected word or string, found ','"),
    ("call:f{a:[1,2}", "f", "found '}'"),
    ('call:f{a:<|"|>open}', "f", "a string is not closed"),
    ('call:f{a:<|"|>x<|"|>y<|"|>}', "f", "expected a comma, found 'y'"),
    ('call:f{a:"open}', "f", 'a string is not closed by "'),
    ("call:f{a:'open}", "f", "a string is not closed by '"),
    ('call:f{a:"open\\"}', "f", 'a string is not closed by "'),
    ('call:f{a:"\\x"}', "f", "is not a valid string"),
    ("call:f{a:'\\x'}", "f", "is not a valid string"),
    ('call:f{a:"\\ud83d"}', "f", "is not a valid string"),  # half of a surrogate pair
    # more than one reading
    ("call:f{a:'it's'}", "f", "' before 's' may end the string or belong to it"),
    ("call:f{a:'dogs' bones'}", "f", "expected a comma, found 'bones'"),
    ('call:f{a:"say "hi""}', "f", "\" before 'hi' may end the string or belong to it"),
    ('call:f{a:"x""b":1}', "f", "\" before 'b' may end the string or belong to it"),
    ('call:f{a:["x""y"]}', "f", "\" before 'y' may end the string or belong to it"),
    ('call:f{a:["x" 5 "y"]}', "f", "expected a comma, found '5'"),
    ("call:f{a:1,a:2}", "f", "'a' is given twice"),
    ("call:f{a:{b:1 b:1}}", "f", "'b' is given twice"),
    ("call:f{a:12 30:5}", "f", "expected a comma, found '30'"),
    ("call:f{a:1b:2}", "f", "'1b' is not a number"),
    ("call:f{at:New York}", "f", "'New' is not a number"),
    ("call:f{a:true, b}", "f", "expected : after 'b', found '}'"),
    ('call:f("Paris")', "f", "expected : after 'Paris', found ')'"),
    ("call:f(Paris, 3)", "f", "expected : after 'Paris', found ','"),
    ("call:f([1])", "f", "expected word or string, found '['"),
    ("call:f{a:(1)}", "f", "found '('"),
    ("call:f(a=1}", "f", "expected a comma, found '}'"),
    ("call:f{{a:1}", "f", "expected }, found the end"),
    ("call:f{{a:1},{b:2}}", "f", "expected }, found ','"),
    ("call:f{{{a:1}}}", "f", "expected word or string, found '{'"),
    ("call:f{a:=1}", "f", "found '='"),
    ("call:f{a:1,,b:2}", "f", "expected word or string, found ','"),
    ("call:{a:1}", "", "name is missing"),
    ("call:f{a:-Infinity}", "f", "'-Infinity' is not a finite number"),
    ("call:f{a:1_000}", "f", "'1_000' is not a number"),
    ("call:f{a:0x10}", "f", "'0x10' is not a number"),
    ("call:f{a:{b:[{c:1}]}", "f", "expected a comma, found the end"),
    ("call:f{a:" + "[" * 5000 + "}", "f", "nested deeper"),
])  # fmt: skip
def test_malformed_call(gemma: Tokenizer, raw: str, name: str, error: str) -> None:
    call = parse_tool_call(raw)
    assert (call.name, call.arguments, call.raw) == (name, {}, raw)
    assert error in (call.error or "")
    assert "\n" not in (call.error or "")
    ids = gemma.encode(f"a<|tool_call>{raw}<tool_call|>b")
    assert contents(parse(gemma, ids)) == ("", "ab", [call])


@given(raw=st.text(st.sampled_from("{}[]():=,\"'~\\ \ncall1.-ef") | st.characters(), max_size=30))
@property_test
def test_parsing_a_call_never_raises(raw: str) -> None:
    raw = raw.replace("~", '<|"|>')
    call = parse_tool_call(raw)
    assert call.raw == raw
    assert call.name or call.error
    assert all(part.raw in raw for part in parse_tool_calls(raw))


def in_python(value: Any) -> str:
    """`value` as Python writes it, with every string in single quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{in_python(key)}: {in_python(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(in_python, value)) + "]"
    if isinstance(value, str):
        body = json.dumps(value, ensure_ascii=False)[1:-1].replace('\\"', '"')
        return "'" + body.replace("'", "\\'") + "'"
    return repr(value)


@given(arguments=objects(loose_texts, loose_texts))
@property_test
def test_the_notations_of_json_and_python(arguments: dict[str, Any]) -> None:
    for text in (json.dumps(arguments), json.dumps(arguments, ensure_ascii=False), in_python(arguments)):
        assert parse_tool_calls(f"call:f{text}") == [ToolCall("f", arguments, f"call:f{text}")]
        strings = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[{}]"""
        doubled = re.sub(strings, lambda found: found[0] * (1 + (found[0] in "{}")), text, flags=re.DOTALL)
        assert parse_tool_call(f"f{doubled}").arguments == arguments
    assert ast.literal_eval(in_python(arguments)) == arguments
    named = {f"k{index}": value for index, value in enumerate(arguments.values())}
    keywords = ", ".join(f"{key}={in_python(value)}" for key, value in named.items())
    whole = f"f({keywords})"
    assert parse_tool_calls(f"{whole}g()") == [ToolCall("f", named, whole), ToolCall("g", {}, "g()")]


@pytest.mark.parametrize("piece", ['"\\', "'\\'", "\"'", "}a", "{a:'x' ", "call:f(", "{}", " ,"])
def test_the_work_is_linear_in_the_text(piece: str) -> None:
    """Ten seconds of this process's own time. It would be a minute if it were quadratic."""

    def stop(*_: Any) -> None:
        raise AssertionError("the work is more than linear")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, 10)
    try:
        parse_tool_calls("call:f{a:" + piece * (200_000 // len(piece)))
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


F = '<|tool_call>call:f{a:<|"|>x<|"|>}'
G = "<|tool_call>call:g{}"


@pytest.mark.parametrize(("output", "names", "thought", "answer"), [
    (f"{F}<tool_call|>{G}<tool_call|><|tool_response>", ["f", "g"], "", ""),
    (f"ca{F}<tool_call|>ll{G}<tool_call|>ou", ["f", "g"], "", "callou"),
    (f"{THOUGHT}a{F}<tool_call|>b<channel|>c", ["f"], "ab", "c"),  # inside a thought
    (f"{THOUGHT}a<channel|>{F}<tool_call|><|tool_response>", ["f"], "a", ""),
    (f"{F}<pad><|think|><tool_call|>b", ["f"], "", "b"),  # noise
])  # fmt: skip
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
    assert (first.name, first.arguments, first.raw) == ("f", {"a": "x"}, 'call:f{a:<|"|>x<|"|>}')
    assert first.error == "the call is not closed by <tool_call|>"
    assert [call.name for call in others] == (["g"] if end.startswith(G) else [])
    at_once = ChannelParser(gemma).feed(gemma.encode(F + end)).tool_calls
    assert list(at_once) == ([first, *others] if end else [])
    cut = parse_all_ways(gemma, gemma.encode(F)[:-2] + gemma.encode(end)).tool_calls[0]
    assert (cut.name, cut.arguments) == ("f", {})
    assert cut.error == 'the call is not closed by <tool_call|>; a string is not closed by <|"|>'


@pytest.mark.parametrize(("written", "calls"), [
    ("call:f{a:1}call:g{}", [("f", {"a": 1}), ("g", {})]),
    ("f{a:{b:[1]}}, g{x:2}\ncall: h{}", [("f", {"a": {"b": [1]}}), ("g", {"x": 2}), ("h", {})]),
    ('call:f{a:<|"|>}call:x{<|"|>}call:g{}', [("f", {"a": "}call:x{"}), ("g", {})]),
    ('call:f{a:"}call:x{"}g{b:1}', [("f", {"a": "}call:x{"}), ("g", {"b": 1})]),
    ("call:f{a:'}call:x{'}g{b:1}", [("f", {"a": "}call:x{"}), ("g", {"b": 1})]),
    ('f(a=")g(") g(b={})h{}', [("f", {"a": ")g("}), ("g", {"b": {}}), ("h", {})]),
    ("f{{a:1}}g{b:2}", [("f", {"a": 1}), ("g", {"b": 2})]),
])  # fmt: skip
def test_several_calls_between_one_pair_of_delimiters(written: str, calls: list[tuple[str, Any]]) -> None:
    found = parse_tool_calls(written)
    assert [(call.name, call.arguments) for call in found] == calls
    assert all(call.error is None for call in found)
    *whole, last = parse_tool_calls(written, closed=False)
    assert all(call.error is None for call in whole)
    assert "not closed" in str(last.error)


@pytest.mark.parametrize(
    "broken", ['f{a:"open}', "f{a:it's}", "f{a:1}}", "f(a=1))", "f{a:Paris}", "f(Paris)", "f{a:'it's'}"]
)
def test_a_malformed_call_does_not_take_the_next_one_with_it(broken: str) -> None:
    first, second = parse_tool_calls(f"call:{broken}call:g{{b:'x'}}")
    assert (first.name, first.raw) == ("f", f"call:{broken}")
    assert first.error is not None
    assert second == ToolCall("g", {"b": "x"}, "call:g{b:'x'}")
