"""The runner for OpenAI-compatible servers; the server runs on the loopback interface."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai_server import OpenAI, Said, completion, running_openai

from mlx_diffusiongemma.evaluation.runners import choose
from mlx_diffusiongemma.evaluation.runners.endpoint import Endpoint
from mlx_diffusiongemma.evaluation.task import Grade, Reply, Task

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}


@pytest.fixture
def openai() -> Iterator[OpenAI]:
    with running_openai() as running:
        yield running


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def task(prompt: Any = "What is 1 + 1?", **more: Any) -> Task:
    return Task("sum", prompt, lambda reply: Grade(True, True), **more)


def reply(openai: OpenAI, said: Said) -> Reply:
    openai.says = [said]
    [one] = Endpoint(openai.url, "m")(task(), 7)
    return one


def sent(openai: OpenAI, **more: Any) -> dict[str, Any]:
    """The body of the request for a task."""
    Endpoint(openai.url, "m")(task(**more), 7)
    body: dict[str, Any] = openai.asked[-1].body
    return body


# --- what is sent -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["/v1", "/v1/", "", "/", "/v1/chat/completions", "/v1/chat/completions/"])
def test_a_url_may_end_in_several_ways(openai: OpenAI, ending: str) -> None:
    runner = choose("endpoint", None, f" http://127.0.0.1:{openai.server_port}{ending}")
    assert [one.answer for one in runner(task(), 0)] == ["fine"]
    assert [asked.path for asked in openai.asked] == ["/v1/models", "/v1/chat/completions"]
    identity = runner.identity()
    assert list(identity.pop("versions")) == ["mlx-diffusiongemma"]
    assert identity == {"runner": "endpoint", "model": "the-model", "endpoint": openai.url}


def test_paths_other_than_v1_and_queries_stay(openai: OpenAI) -> None:
    base = f"http://127.0.0.1:{openai.server_port}/api/beta"
    for ending in ("", "/chat/completions"):
        runner = Endpoint(f"{base}{ending}?version=2", "m")
        runner(task(), 0)
        assert openai.asked[-1].path == "/api/beta/chat/completions?version=2"
        assert runner.identity()["endpoint"] == base
    Endpoint(f"http://127.0.0.1:{openai.server_port}/chat/completions", "m")(task(), 0)
    assert openai.asked[-1].path == "/chat/completions"


def test_what_the_server_is_told(openai: OpenAI) -> None:
    plain = {"model": "m", "messages": [{"role": "user", "content": "What is 1 + 1?"}], "seed": 7}
    assert sent(openai) == plain | {"chat_template_kwargs": {"enable_thinking": True}}
    body = sent(openai, thinking=False, settings={"max_new_tokens": 99}, tools=(TOOL,), schema=CITY)
    held = {"name": "answer", "schema": CITY, "strict": True}
    assert body == plain | {
        "chat_template_kwargs": {"enable_thinking": False},
        "max_tokens": 99,
        "tools": [TOOL],
        "response_format": {"type": "json_schema", "json_schema": held},
    }


def test_messages_become_what_servers_insist_on(openai: OpenAI) -> None:
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Kraków"}}}
    messages = (
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "name": "get_weather", "content": "sunny"},
        {"role": "tool", "name": "get_weather", "content": "rainy"},
        {"role": "assistant", "content": "", "tool_calls": [{**call, "id": "mine"}]},
        {"role": "tool", "tool_call_id": "mine", "content": "windy"},
    )
    out = sent(openai, prompt=messages)["messages"]
    calls = [call for message in out for call in message.get("tool_calls", ())]
    assert [call["id"] for call in calls] == ["call_0", "call_1", "mine"]
    assert all(json.loads(call["function"]["arguments"]) == {"city": "Kraków"} for call in calls)
    assert [message.get("tool_call_id") for message in out[2:4] + out[5:]] == ["call_0", "call_1", "mine"]
    assert out[0] == messages[0]
    assert call["function"]["arguments"] == {"city": "Kraków"}  # the task is as it was


def test_one_warm_up_comes_first_and_what_is_said_to_it_does_not_matter(openai: OpenAI) -> None:
    openai.warm_up = Said({"error": "no"}, 400)
    runner = Endpoint(openai.url, "m")
    assert openai.warm_ups == []
    assert [runner(task(), seed)[0].answer for seed in (0, 1)] == ["fine", "fine"]
    assert [asked.body["max_tokens"] for asked in openai.warm_ups] == [16]
    assert [asked.body["seed"] for asked in openai.asked] == [0, 1]


# --- what comes back --------------------------------------------------------------------------------------

CALL = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
BROKEN_CALL = {"function": {"name": "get_weather", "arguments": '{"city": '}}
LIST_CALL = {"function": {"name": "get_weather", "arguments": "[1]"}}
PLAIN_CALL = {"function": {"name": "get_time", "arguments": {"city": "Rome"}}}


@pytest.mark.parametrize(
    ("body", "answer", "thought", "outcome"),
    [
        (completion("2"), "2", "", "delivered"),
        (completion(" 2\n"), " 2\n", "", "delivered"),  # a grader decides about spaces
        (completion("2", None), "2", "", "delivered"),
        (completion("2", "length"), "2", "", "cut"),
        (completion("", "length", reasoning_content="hm"), "", "hm", "stuck"),
        (completion(None), "", "", "empty"),
        (completion([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), "ab", "", "delivered"),
        (completion("2", reasoning_content="1+1"), "2", "1+1", "delivered"),
        (completion("2", reasoning="1+1"), "2", "1+1", "delivered"),
        (completion("2", reasoning_content=None, reasoning="1+1"), "2", "1+1", "delivered"),
        (
            completion("<think>is text</think>2", reasoning="1+1"),
            "<think>is text</think>2",
            "1+1",
            "delivered",
        ),
        (completion("<think>\n1+1\n</think>\n\n2"), "2", "1+1", "delivered"),
        (completion("\n<think>a</think>b</think>c"), "b</think>c", "a", "delivered"),
        (completion("1+1</think>2"), "2", "1+1", "delivered"),
        (completion("<think>1+1", "length"), "", "1+1", "stuck"),
        (completion("Write <think>x</think> there."), "Write <think>x</think> there.", "", "delivered"),
        (completion("<|channel>thought\n1+1<channel|>2"), "2", "1+1", "delivered"),
        (
            completion("<|channel>thought\na<channel|>2<|channel>thought\nb<channel|>3"),
            "23",
            "ab",
            "delivered",
        ),
        (completion("<|channel>just this<channel|>2"), "2", "just this", "delivered"),
        (completion("<|channel>final\n2<channel|>"), "2", "", "delivered"),
        (completion("<|channel>thought\n1+1", "length"), "", "1+1", "stuck"),
        (completion("thought\n1+1<channel|>2"), "2", "1+1", "delivered"),  # the prompt had begun the header
        (completion("thought\n1+1<channel|>"), "", "1+1", "empty"),
        (completion("2<channel|>"), "2", "", "delivered"),  # closes nothing
    ],
)
def test_thought_answer_and_outcome(
    openai: OpenAI, body: Any, answer: str, thought: str, outcome: str
) -> None:
    one = reply(openai, Said(body))
    assert (one.answer, one.thought, one.outcome, one.blocks) == (answer, thought, outcome, ())


def test_a_thought_that_the_prompt_opened_may_end_at_the_tool_calls(openai: OpenAI) -> None:
    one = reply(openai, Said(completion("I ask.<channel|>", "tool_calls", tool_calls=[CALL])))
    assert (one.answer, one.thought, len(one.tool_calls)) == ("", "I ask.", 1)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (CALL, ("get_weather", {"city": "Oslo"})),
        (PLAIN_CALL, ("get_time", {"city": "Rome"})),
        (BROKEN_CALL, ("get_weather", {})),
        (LIST_CALL, ("get_weather", {})),
    ],
)
def test_tool_calls_deliver(openai: OpenAI, call: Any, expected: Any) -> None:
    one = reply(openai, Said(completion(None, "tool_calls", tool_calls=[call])))
    assert (one.tool_calls, one.finish_reason, one.outcome) == ((expected,), "stop", "delivered")


def details(reasoning: Any) -> dict[str, Any]:
    return {"completion_tokens": 10, "completion_tokens_details": {"reasoning_tokens": reasoning}}


@pytest.mark.parametrize(
    ("usage", "thought", "new_tokens", "answer_tokens"),
    [
        (None, "", None, None),
        ({"completion_tokens": 10}, "", 10, 10),
        ({"completion_tokens": 10}, "hm", 10, None),
        (details(7), "hm", 10, 3),
        (details(7), "", 10, 3),  # a thought that is counted and not shown
        (details(0), "", 10, 10),
        (details(0), "hm", 10, None),  # not counted at all
        (details(None), "hm", 10, None),
        (details(12), "hm", 10, 0),
        ({"completion_tokens": 10, "completion_tokens_details": None}, "", 10, 10),
        ({"completion_tokens": "10"}, "", None, None),
        ({"completion_tokens": True}, "", None, None),
        ({"completion_tokens": -1}, "", None, None),
        ([], "", None, None),
    ],
)
def test_tokens_are_what_the_server_tells(
    openai: OpenAI, usage: Any, thought: str, new_tokens: int | None, answer_tokens: int | None
) -> None:
    cost = reply(openai, Said(completion("2", usage=usage, reasoning_content=thought))).cost
    assert (cost.new_tokens, cost.answer_tokens) == (new_tokens, answer_tokens)
    assert (cost.blocks, cost.denoising_steps) == (None, None)
    assert cost.seconds > 0
