"""The runner for OpenAI-compatible servers, with a real client and a server on the loopback interface."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.openai_server import OpenAI, Said, completion, running_openai

from mlx_diffusiongemma.errors import EndpointError, InputError
from mlx_diffusiongemma.evaluation.runners import choose, endpoint
from mlx_diffusiongemma.evaluation.runners.endpoint import Endpoint, _split
from mlx_diffusiongemma.evaluation.task import Grade, Reply, Task

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
KEY = "sk-topsecret-1234"


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAI]:
    with running_openai() as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(server: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    server.says, server.warm_up = [Said(completion("fine"))], Said(completion("Hello!"))
    server.asked, server.warm_ups = [], []
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *_: 0.0)


def task(prompt: Any = "What is 1 + 1?", **more: Any) -> Task:
    return Task("sum", prompt, lambda reply: Grade(True, True), **more)


def reply(server: OpenAI, *said: Said) -> Reply:
    server.says = list(said)
    [one] = Endpoint(server.url, "m")(task(), 7)
    return one


def failure(server: OpenAI, *said: Said) -> str:
    with pytest.raises(EndpointError) as caught:
        reply(server, *said)
    return str(caught.value)


def test_the_request(server: OpenAI) -> None:
    runner = choose("endpoint", "m", f" http://127.0.0.1:{server.server_port} ")
    held = {"type": "json_schema", "json_schema": {"name": "answer", "schema": CITY, "strict": True}}
    more = {"max_tokens": 99, "tools": [TOOL], "response_format": held}
    runner(task(), 7)
    runner(task(thinking=False, settings={"max_new_tokens": 99}, tools=(TOOL,), schema=CITY), 8)
    plain = {"model": "m", "messages": [{"role": "user", "content": "What is 1 + 1?"}], "seed": 7}
    assert [asked.body for asked in server.asked] == [
        plain | {"chat_template_kwargs": {"enable_thinking": True}},
        plain | {"seed": 8, "chat_template_kwargs": {"enable_thinking": False}} | more,
    ]
    assert {asked.path for asked in server.asked} == {"/v1/chat/completions"}
    assert [asked.body["max_tokens"] for asked in server.warm_ups] == [16]
    identity = runner.identity()
    assert list(identity.pop("versions")) == ["mlx-diffusiongemma"]
    assert identity == {"runner": "endpoint", "model": "m", "endpoint": server.url}


@pytest.mark.parametrize(("given", "url"), [
    ("http://host", "http://host/v1"), ("http://host:8000/", "http://host:8000/v1"),
    ("https://host/v1/chat/completions/", "https://host/v1"),
    ("http://host/api/beta", "http://host/api/beta"), ("http://host/chat/completions", "http://host"),
    ("http://[::1]:80/v1", "http://[::1]:80/v1"),
])  # fmt: skip
def test_urls(given: str, url: str) -> None:
    assert Endpoint(given, "m").identity()["endpoint"] == url


@pytest.mark.parametrize("url", [
    *("localhost:8000/v1", "ftp://host", "http://", "http://host:0", "http://host:99999", "http://[::1"),
    *("http://hést", "http://me:topsecret@host", "http://host/v1?key=topsecret", "http://host/#topsecret"),
])  # fmt: skip
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(InputError, match=r"--endpoint: not an http or https.*; give one") as caught:
        Endpoint(url, "m")
    assert "topsecret" not in str(caught.value)


def test_messages_become_those_that_servers_want(server: OpenAI) -> None:
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
    messages = (
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "name": "get_weather", "content": "sunny"},
        {"role": "tool", "name": "get_weather", "content": "rainy"},
    )
    Endpoint(server.url, "m")(task(messages), 7)
    out = server.asked[-1].body["messages"]
    calls = out[1]["tool_calls"]
    assert [each["id"] for each in calls] == ["call_0", "call_1"]
    assert [json.loads(each["function"]["arguments"]) for each in calls] == [{"city": "Oslo"}] * 2
    assert [message["tool_call_id"] for message in out[2:]] == ["call_0", "call_1"]
    assert out[0] == messages[0]


@pytest.mark.parametrize(("body", "answer", "thought", "outcome"), [
    (completion(" 2\n"), " 2\n", "", "delivered"), (completion("2", "length"), "2", "", "cut"),
    (completion(None), "", "", "empty"),
    (completion("2", reasoning_content="1+1"), "2", "1+1", "delivered"),
    (completion("2", reasoning_content=None, reasoning="1+1"), "2", "1+1", "delivered"),
    (completion("", "length", reasoning_content="hm"), "", "hm", "stuck"),
    (completion("<think>1+1</think>2"), "2", "1+1", "delivered"),
    (completion("2", "content_filter"), "", "", "error"),
])  # fmt: skip
def test_thought_and_outcome(server: OpenAI, body: Any, answer: str, thought: str, outcome: str) -> None:
    one = reply(server, Said(body))
    assert (one.answer, one.thought, one.outcome, one.blocks) == (answer, thought, outcome, ())


@pytest.mark.parametrize(("content", "parts"), [
    ("\n<think>a</think>b", ("a", "b")), ("a</think>b", ("a", "b")), ("<think>a", ("a", "")),
    ("<|channel>thought\na<channel|>2<|channel>thought\nb<channel|>3", ("a\nb", "23")),
    ("<|channel>thought\n1+1", ("1+1", "")), ("1+1<channel|>2", ("1+1", "2")),
    ("2<channel|>", ("", "2")), (" 2 ", ("", " 2 ")),
    ("<|channel>" + " " * 10**6 + "x", ("", "<|channel>" + " " * 10**6 + "x")),
    ("<channel|>" * 10**5, ("", "")),
], ids=str)  # fmt: skip
def test_markers_in_a_text(content: str, parts: tuple[str, str]) -> None:
    assert _split(content) == parts


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [('{"city": "Oslo"}', {"city": "Oslo"}), ({"a": 1}, {"a": 1}), ("{", {}), ("[1]", {})],
)
def test_tool_calls_deliver(server: OpenAI, arguments: Any, expected: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    one = reply(server, Said(completion("I ask.<channel|>", "tool_calls", tool_calls=[call])))
    assert (one.tool_calls, one.outcome) == ((("f", expected),), "delivered")
    assert (one.thought, one.answer) == ("I ask.", "")


@pytest.mark.parametrize(("usage", "thought", "new_tokens", "answer_tokens"), [
    (None, "", None, None), ({"completion_tokens": 10}, "", 10, 10),
    ({"completion_tokens": 10}, "hm", 10, None),
    ({"completion_tokens": 10, "completion_tokens_details": {"reasoning_tokens": 7}}, "hm", 10, 3),
    ({"completion_tokens": 10, "completion_tokens_details": {"reasoning_tokens": 0}}, "hm", 10, None),
    ({"completion_tokens": 10, "completion_tokens_details": {"reasoning_tokens": 12}}, "hm", 10, 0),
    *((usage, "", None, None) for usage in ([], {"completion_tokens": True}, {"completion_tokens": -1})),
    *(({"completion_tokens": odd}, "", None, None) for odd in ("10", 10**400, 1e9)),
])  # fmt: skip
def test_tokens_are_those_that_the_server_reports(
    server: OpenAI, usage: Any, thought: str, new_tokens: int | None, answer_tokens: int | None
) -> None:
    cost = reply(server, Said(completion("2", usage=usage, reasoning_content=thought))).cost
    assert (cost.new_tokens, cost.answer_tokens, cost.denoising_steps) == (new_tokens, answer_tokens, None)
    assert 0 < cost.seconds < 30


# --- failures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_prompt_that_is_refused_is_a_reply(server: OpenAI, status: int) -> None:
    assert reply(server, Said({"error": {"message": "too\nlong"}}, status)).error == "too long"
    server.warm_up = Said({"detail": "no tools here"}, status)  # a harmless prompt is refused, too
    assert f"answered HTTP {status} (too long)" in failure(server, Said({"message": "too long"}, status))


@pytest.mark.parametrize(("said", "message"), [
    (Said({"error": "no key"}, 401), "answered HTTP 401 (no key); set OPENAI_API_KEY"),
    (Said({"error": "gone"}, 404), "answered HTTP 404 (gone); check --endpoint, --model and its log"),
    (Said("x", 302, {"Location": "http://127.0.0.1:1/"}), "answered HTTP 302 (x); check"),
    (Said(b"<html>"), "no chat completion in its reply (<html>); is it OpenAI-compatible?"),
    (Said([]), "no chat completion in its reply ([])"), (Said({"choices": []}), "no chat completion"),
    (Said(completion([1])), "no chat completion"), (Said(b"[" * 90_000), "no chat completion"),
    (Said(b"\x1b[2J\xff"), r"(\x1b[2J"), (Said("busy", 503), "answered HTTP 503 (busy)"),
    (Said("x", 429, {"Retry-After": "Fri, 31 Dec 9999 23:59:59 -2300"}), "HTTP 429"),
    (Said(completion("a long answer"), manner="broken"), "cannot be reached (peer closed connection"),
])  # fmt: skip
def test_failures_are_one_line(server: OpenAI, said: Said, message: str) -> None:
    text = failure(server, said)
    assert text.startswith(f"{server.url}: ")
    assert message in text
    assert text.isprintable()


def test_busy_servers_are_asked_again(server: OpenAI) -> None:
    assert reply(server, Said("busy", 503), Said("busy", 429), Said(completion("2"))).answer == "2"
    assert len(server.asked) == 3


def test_nobody_listens() -> None:
    with pytest.raises(EndpointError, match=r"127.0.0.1:1/v1: cannot be reached .*refused.*, 3 times; is it"):
        Endpoint("http://127.0.0.1:1", "m")(task(), 0)


def test_replies_are_bounded_in_bytes_and_time(server: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(endpoint, "_MOST_BYTES", 2**20)
        for status in (200, 400):
            said = failure(server, Said(b"", status, manner="endless"))
            assert "cannot be reached (a reply of more than 1 MB)" in said
    monkeypatch.setattr(endpoint, "_TOTAL", 0.5)
    assert "no reply in time" in failure(server, Said(b"", manner="dripping"))
    monkeypatch.setattr(endpoint, "_SILENCE", 0.2)
    assert "no reply in time" in failure(server, Said(b"", manner="silent"))


def test_the_key_is_sent_and_never_shown(server: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    said = failure(server, Said({"error": f"wrong key {KEY} here"}, 401))
    assert "(wrong key *** here); set OPENAI_API_KEY" in said
    assert {asked.headers["authorization"] for asked in server.asked + server.warm_ups} == {f"Bearer {KEY}"}
    assert KEY not in str(Endpoint(server.url, "m").identity())


def test_settings_that_a_server_does_not_have(server: OpenAI) -> None:
    runner = Endpoint(server.url, "m")
    fine = task(settings={"max_new_tokens": 9, "t_min": None}, schema=CITY, tools=(TOOL,))
    assert runner.objection(fine) is None
    odd = task(settings={"max_new_tokens": 9, "thinking_budget": 5, "entropy_bound": 0.1})
    assert runner.objection(odd) == "an endpoint has no setting entropy_bound, thinking_budget"
    with pytest.raises(InputError, match="sum: an endpoint has no setting"):
        runner(odd, 0)
    with pytest.raises(InputError, match="n 2: runner endpoint makes one candidate at a time"):
        runner(task(), 0, n=2)
    assert server.asked == server.warm_ups == []


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(InputError, match=r"needs openai.*; pip install 'mlx-diffusiongemma\[eval\]'"):
        Endpoint("http://host", "m")
