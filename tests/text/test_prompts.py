"""Prompts: strings, messages and token ids to the ids that the model continues."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pydantic
import pytest
from support.fixtures_tokenizer import one_line, write_tokenizer

from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.text.tokenizer import Tokenizer


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
SAME_TOOL = [get_weather, WEATHER, {"type": "function", "function": WEATHER}]
DECLARED = "<|turn>system\n<|tool>get_weather(city,days)<tool|><turn|>\n"
USER = {"role": "user", "content": "hi"}
MAIN = {"role": "system", "content": "brief"}
CALL = {"function": {"name": "now", "arguments": {}}}


@pytest.mark.parametrize(("prompt", "options", "expected"), [
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
        "<|turn>model\n<|tool_call>call:now{}<tool_call|><turn|>\n<|turn>tool\n{\"value\": 3}<turn|>\n",
    ),
    (
        (USER, {"role": "assistant", "content": ""}, USER),
        {"system": "s"},
        "<|turn>system\ns<turn|>\n<|turn>user\nhi<turn|>\n<|turn>model\n<turn|>\n<|turn>user\nhi<turn|>\n",
    ),
])  # fmt: skip
def test_prompt(tokenizer: Tokenizer, prompt: Any, options: dict[str, Any], expected: str) -> None:
    ids = tokenizer.prompt_ids(prompt, **options)
    assert ids == [tokenizer.special.bos, *tokenizer.encode(expected + "<|turn>model\n")]
    assert ids.count(tokenizer.special.bos or -1) == 1


def test_token_ids_pass_through(tokenizer: Tokenizer) -> None:
    """Ids of structure, too: ids are the caller's."""
    ids = [0, 5, *sorted(tokenizer.hidden_ids), tokenizer.vocab_size - 1]
    for prompt in (ids, tuple(ids), np.array(ids, np.int64), mx.array(ids, mx.int32)):
        result = tokenizer.prompt_ids(prompt)
        assert result == ids
        assert {type(token) for token in result} == {int}
    wrong = f"item 0 is int {ids[-1] + 1}; a list holds messages, or token ids from 0 to {ids[-1]}"
    with pytest.raises(InputError, match=wrong):
        tokenizer.prompt_ids([tokenizer.vocab_size])


def undocumented(city: str) -> str:
    return city


def untyped(city):
    """The weather.

    Args:
        city: Where.
    """
    return city


@pytest.mark.parametrize(("prompt", "options", "message"), [
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
    ([{"role": "user", "content": [{"type": "image"}]}], {}, "image 1: found NoneType; give a path"),
    ([{"role": "user", "content": ["hi"]}], {}, "message 0 has a content part of type 'str'"),
    ([USER, "hi"], {}, "message 1 is str"),
    ([USER, 3], {}, "message 1 is int"),
    ([MAIN, USER], {"system": "brief"}, "system: the messages already have"),
    ("hi", {"system": 3}, "system: found int"),
    ([5, True], {}, "item 1 is bool True"),
    ([True], {}, "item 0 is bool True"),
    ([5, USER], {}, "item 1 is dict"),
    ([5, 2.0], {}, "item 1 is float 2.0"),
    (["hi"], {}, "item 0 is str; give one prompt"),
    (["hi", "ho"], {}, "or give generate_batch the list"),
    ([[USER], [USER]], {}, "item 0 is list; give one prompt"),
    (((5,), (6,)), {}, "item 0 is tuple; give one prompt"),
    (np.array([[5]]), {}, "item 0 is list; give one prompt"),
    ([5, "hi"], {}, "item 1 is str 'hi'"),
    (np.array(5), {}, "prompt: found int"),
    (mx.array([5.0]), {}, "item 0 is float 5.0"),
    ([5, -1], {}, "item 1 is int -1; a list holds messages, or token ids from 0 to "),
    ([10**9], {}, "item 0 is int 1000000000; a list holds messages, or token ids from 0 to "),
    ([5], {"thinking": True}, "token ids cannot be combined"),
    ([5], {"system": "brief"}, "token ids cannot be combined"),
    ([5], {"tools": [WEATHER]}, "token ids cannot be combined"),
    ("hi", {"tools": get_weather}, "tools: found function; give a list"),
    ("hi", {"tools": {}}, "tools: found dict; give a list"),
    ("hi", {"tools": ["get_weather"]}, "tools: item 0 is str"),
    ("hi", {"tools": [undocumented]}, "tools: undocumented cannot be described"),
    ("hi", {"tools": [untyped]}, "tools: untyped cannot be described"),
])  # fmt: skip
def test_refused_prompt(
    chat_tokenizer: Tokenizer, prompt: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as error:
        chat_tokenizer.prompt_ids(prompt, **options)
    assert message in one_line(error)
    assert error.value.exit_code == 2


def test_a_templates_own_refusal(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"cannot render the messages \(the system message comes first\)"):
        tokenizer.prompt_ids([USER, MAIN])


def test_objects_of_openais_client_are_messages(chat_tokenizer: Tokenizer) -> None:
    class Message(pydantic.BaseModel):
        role: str
        content: str | None = None
        refusal: str | None = None
        tool_calls: list[dict[str, Any]] | None = None

    call = {"id": "c", "type": "function", "function": {"name": "now", "arguments": '{"zone": "UTC"}'}}
    calling, more = Message(role="assistant", tool_calls=[call]), Message(role="user", content="and?")
    plain = [USER, {"role": "assistant", "tool_calls": [call]}, {"role": "user", "content": "and?"}]
    assert chat_tokenizer.prompt_ids([USER, calling, more]) == chat_tokenizer.prompt_ids(plain)
    assert chat_tokenizer.prompt_ids([more]) == chat_tokenizer.prompt_ids("and?")


def test_the_habits_of_transformers(chat_tokenizer: Tokenizer) -> None:
    thinking = chat_tokenizer.prompt_ids([MAIN, USER], thinking=True)
    apply = chat_tokenizer.apply_chat_template
    assert apply([MAIN, USER], add_generation_prompt=True, enable_thinking=True) == thinking
    text = apply([MAIN, USER], tokenize=False, enable_thinking=True)
    assert text == chat_tokenizer.decode(thinking)
    with pytest.raises(InputError, match="found a rendered chat; give its messages, or its ids"):
        chat_tokenizer.prompt_ids(text)
    closed = apply([USER], add_generation_prompt=False, tokenize=False)
    assert closed + "<|turn>model\n" == apply([USER], tokenize=False)
