"""Prompts: strings, messages and token ids to the ids that the model continues."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_diffusiongemma.errors import InputError, TokenizerError
from mlx_diffusiongemma.loading import resolve
from mlx_diffusiongemma.tokenizer import Tokenizer

from .fixtures_tokenizer import one_line, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def get_weather(city: str, days: int = 1) -> str:
    """The weather.

    Args:
        city: Where.
        days: For how long.
    """
    return f"{city} {days}"


WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
}
SAME_TOOL = [get_weather, WEATHER, {"type": "function", "function": WEATHER}, {"type": "function", **WEATHER}]
DECLARED = "<|turn>system\n<|tool>get_weather(city,days)<tool|><turn|>\n"
USER = {"role": "user", "content": "hi"}
MAIN = {"role": "system", "content": "brief"}
CALL = {"function": {"name": "now", "arguments": {}}}


@pytest.mark.parametrize(
    ("prompt", "options", "expected"),
    [
        ("hi\n", {}, "<|turn>user\nhi\n<turn|>\n"),
        ("hi", {"thinking": True}, "<|turn>system\n<|think|>\n<turn|>\n<|turn>user\nhi<turn|>\n"),
        ("hi", {"system": "brief"}, "<|turn>system\nbrief<turn|>\n<|turn>user\nhi<turn|>\n"),
        ("hi", {"system": "  "}, "<|turn>user\nhi<turn|>\n"),
        *(("hi", {"tools": [tool]}, DECLARED + "<|turn>user\nhi<turn|>\n") for tool in SAME_TOOL),
        ("hi", {"tools": []}, "<|turn>user\nhi<turn|>\n"),
        (
            [
                {"role": "developer", "content": "brief"},
                {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
                {"role": "model", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": {"value": 3}},
            ],
            {"thinking": True},
            "<|turn>system\n<|think|>\nbrief<turn|>\n<|turn>user\nhi<turn|>\n"
            "<|turn>model\n<|tool_call>call:now{}<tool_call|><turn|>\n<|turn>tool\n3<turn|>\n",
        ),
        (
            (USER, {"role": "assistant", "content": ""}, USER),
            {"system": "s"},
            "<|turn>system\ns<turn|>\n<|turn>user\nhi<turn|>\n<|turn>model\n<turn|>\n<|turn>user\nhi<turn|>\n",
        ),
    ],
)  # fmt: skip
def test_prompt(tokenizer: Tokenizer, prompt: Any, options: dict[str, Any], expected: str) -> None:
    ids = tokenizer.prompt_ids(prompt, **options)
    assert ids == [tokenizer.special.bos, *tokenizer.encode(expected + "<|turn>model\n")]
    assert ids.count(tokenizer.special.bos or -1) == 1


def test_token_ids_pass_through(tokenizer: Tokenizer) -> None:
    ids = [0, 5, tokenizer.vocab_size - 1]
    for prompt in (ids, tuple(ids), np.array(ids, np.int64), mx.array(ids, mx.int32)):
        result = tokenizer.prompt_ids(prompt)
        assert result == ids
        assert {type(token) for token in result} == {int}
    with pytest.raises(InputError, match=f"item 3 is {tokenizer.vocab_size}; token ids are 0 to {ids[-1]}"):
        tokenizer.prompt_ids([*ids, tokenizer.vocab_size])


def undocumented(city: str) -> str:
    return city


def untyped(city):
    """The weather.

    Args:
        city: Where.
    """
    return city


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "prompt: empty"),
        (" \n\t", {}, "prompt: empty"),
        ([], {}, "prompt: empty"),
        (None, {}, "prompt: found NoneType"),
        (b"hi", {}, "prompt: found bytes"),
        (USER, {}, "prompt: found dict"),
        ("\ud800", {}, "not valid Unicode"),
        ([USER, {"role": "bot", "content": "x"}], {}, "message 1 has role 'bot'"),
        ([{"content": "x"}], {}, "message 0 has role None"),
        ([{"role": ["user"], "content": "x"}], {}, "message 0 has role"),
        ([USER, {"role": "user"}], {}, "message 1 has no content"),
        ([USER, {"role": "assistant", "content": None}], {}, "message 1 has no content"),
        ([{"role": "user", "content": 3}], {}, "message 0 has content of type int"),
        ([{"role": "user", "content": {"value": 3}}], {}, "message 0 has content of type dict"),
        ([USER, {"role": "user", "content": " "}], {}, "message 1 is empty"),
        ([{"role": "user", "content": []}], {}, "message 0 is empty"),
        (
            [{"role": "user", "content": [{"type": "image"}]}],
            {},
            "message 0 has a content part of type 'image'",
        ),
        ([{"role": "user", "content": ["hi"]}], {}, "message 0 has a content part of type 'str'"),
        ([USER, "hi"], {}, "message 1 is str"),
        ([USER, 3], {}, "message 1 is int"),
        ([USER, MAIN], {}, "the system message comes first"),  # the template's own refusal
        ([MAIN, USER], {"system": "brief"}, "system: the messages already hold"),
        ("hi", {"system": 3}, "system: found int"),
        ([5, True], {}, "item 1 is bool True"),
        ([True], {}, "item 0 is bool True"),
        ([5, USER], {}, "item 1 is dict"),
        ([5, 2.0], {}, "item 1 is float 2.0"),
        (["hi"], {}, "item 0 is str 'hi'"),
        ([[5]], {}, "item 0 is list"),
        (np.array([[5]]), {}, "item 0 is list"),
        (np.array(5), {}, "prompt: found int"),
        (mx.array([5.0]), {}, "item 0 is float 5.0"),
        ([5, -1], {}, "item 1 is -1; token ids are 0 to "),
        ([10**9], {}, "item 0 is 1000000000; token ids are 0 to "),
        ([5], {"thinking": True}, "token ids leave no room"),
        ([5], {"system": "brief"}, "token ids leave no room"),
        ([5], {"tools": [WEATHER]}, "token ids leave no room"),
        ("hi", {"tools": get_weather}, "tools: found function; give a list"),
        ("hi", {"tools": {}}, "tools: found dict; give a list"),
        ("hi", {"tools": ["get_weather"]}, "tools: item 0 is str"),
        ("hi", {"tools": [WEATHER, {"parameters": {}}]}, "tools: item 1 has no name"),
        ("hi", {"tools": [{"function": "get_weather"}]}, "tools: item 0 has no name"),
        ("hi", {"tools": [{"name": "f", "parameters": {1, 2}}]}, "tools: f cannot be written as JSON"),
        ("hi", {"tools": [undocumented]}, "tools: undocumented cannot be described"),
        ("hi", {"tools": [untyped]}, "tools: untyped cannot be described"),
    ],
)
def test_refused_prompt(tokenizer: Tokenizer, prompt: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        tokenizer.prompt_ids(prompt, **options)
    assert message in one_line(error)
    assert error.value.exit_code == 2
    assert not isinstance(error.value, TokenizerError)


@pytest.mark.parametrize("tool", [get_weather, WEATHER])
def test_demo_prompt(tool: Callable[..., Any] | dict[str, Any]) -> None:
    demo = Tokenizer.load(resolve("demo"))
    ids = demo.prompt_ids("What is 3 + 4?", thinking=True, system="Be brief.", tools=[tool])
    text = demo.decode(ids)
    assert ids.count(2) == 1
    pattern = (
        r"<bos><\|turn>system\n<\|think\|>\nBe brief\.<\|tool>declaration:get_weather\{.*\}<tool\|><turn\|>\n"
        r"<\|turn>user\nWhat is 3 \+ 4\?<turn\|>\n<\|turn>model\n"
    )
    assert re.fullmatch(pattern, text, re.DOTALL)
    plain = demo.decode(demo.prompt_ids("What is 3 + 4?"))
    assert plain == "<bos><|turn>user\nWhat is 3 + 4?<turn|>\n<|turn>model\n"
