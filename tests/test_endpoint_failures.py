"""What a server of chat completions may refuse or break, and that nothing secret is told."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from openai_server import OpenAI, Said, completion, running_openai

from mlx_diffusiongemma.errors import DiffusionGemmaError, EndpointError, InputError
from mlx_diffusiongemma.evaluation.runners import choose, server
from mlx_diffusiongemma.evaluation.runners.endpoint import Endpoint
from mlx_diffusiongemma.evaluation.task import Grade, Reply, Task

KEY = "sk-very-secret"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}


@pytest.fixture
def openai() -> Iterator[OpenAI]:
    with running_openai() as running:
        yield running


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it would have slept."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    slept: list[float] = []
    monkeypatch.setattr(server, "sleep", slept.append)
    return slept


def task(**more: Any) -> Task:
    return Task("sum", "What is 1 + 1?", lambda reply: Grade(True, True), **more)


def reply(openai: OpenAI, *says: Said) -> Reply:
    """What the runner makes of the last of what the server says."""
    openai.says = list(says)
    [one] = Endpoint(openai.url, "m")(task(), 7)
    return one


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"error": {"message": "too\nlong", "type": "x"}}, "too long"),
        ({"error": "too long"}, "too long"),
        ({"object": "error", "message": "too long"}, "too long"),
        ({"detail": "too long"}, "too long"),
        (b"too long", "too long"),
        ({"error": {"message": "x" * 300}}, "x" * 197 + "..."),
        ({"error": {"message": "\x1b[31mred"}}, "[31mred"),
    ],
)
def test_a_refused_prompt_is_a_reply(openai: OpenAI, status: int, body: Any, error: str) -> None:
    one = reply(openai, Said(body, status))
    assert (one.error, one.outcome, one.answer) == (error, "error", "")


def test_what_goes_with_every_prompt_is_no_prompts_fault(openai: OpenAI) -> None:
    """A server that does not know a setting would refuse one prompt after the other, and be graded for it."""
    openai.warm_up = openai.says[0] = Said({"error": "unknown argument: chat_template_kwargs"}, 400)
    with pytest.raises(EndpointError, match=r"HTTP 400 \(unknown argument: chat_template_kwargs\)"):
        Endpoint(openai.url, "m")(task(), 0)
    harmless = openai.warm_ups[-1].body
    asked = openai.asked[0].body
    assert {**asked, "messages": harmless["messages"]} == harmless


def test_refusals_without_words_and_content_filters_are_replies(openai: OpenAI) -> None:
    assert reply(openai, Said(b"", 400)).error == "HTTP 400"
    assert "content filter" in str(reply(openai, Said(completion("par", "content_filter"))).error)


def failure(openai: OpenAI, *says: Said) -> str:
    with pytest.raises(EndpointError) as caught:
        reply(openai, *says)
    message = str(caught.value)
    assert message.startswith(openai.url)
    assert "\n" not in message
    assert isinstance(caught.value, DiffusionGemmaError)
    assert caught.value.exit_code == 1
    return message


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "--model"), (500, "log"), (307, "redirects")],
)
def test_other_refusals_end_the_run_at_once(
    openai: OpenAI, pauses: list[float], status: int, remedy: str
) -> None:
    said = Said({"error": {"message": "not so"}}, status, {"Location": f"{openai.url}/elsewhere"})
    message = failure(openai, said)
    assert f"HTTP {status} (not so)" in message
    assert remedy in message
    assert len(openai.asked) == 1
    assert pauses == []


NO_COMPLETIONS: tuple[Any, ...] = (
    *(b"<html>hello</html>", b"", b"\xff", b"[" * 100_000, [], "text", {}, None),
    *({"choices": []}, {"choices": [{}]}, {"choices": [{"message": None}]}, {"choices": ["a"]}),
    *({"error": {"message": "no"}}, completion(5), completion([5]), completion("", tool_calls=[5])),
)


@pytest.mark.parametrize("body", NO_COMPLETIONS)
def test_what_is_no_completion_ends_the_run(openai: OpenAI, body: Any) -> None:
    assert "no chat completion in its answer" in failure(openai, Said(body))


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_busy_servers_are_asked_again(openai: OpenAI, pauses: list[float], status: int) -> None:
    busy = Said({"error": {"message": "busy"}}, status)
    assert reply(openai, busy, busy, Said(completion("2"))).answer == "2"
    assert pauses == [1, 2]
    assert [asked.body for asked in openai.asked[1:]] == [openai.asked[0].body] * 2
    openai.asked.clear()
    assert f"HTTP {status} (busy), 3 times" in failure(openai, busy)
    assert len(openai.asked) == 3


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        *[("7", 7), ("0.5", 0.5), ("3600", 60), ("0", 1), ("-5", 1), ("inf", 60), ("nan", 1), ("soon", 1)],
        *[("", 1), ("Fri, 01 Jan 2100 00:00:00 GMT", 60), ("Sat, 01 Jan 2000 00:00:00 GMT", 1)],
    ],
)
def test_pauses_are_those_asked_for_up_to_a_minute(
    openai: OpenAI, pauses: list[float], asked: str, seconds: float
) -> None:
    assert reply(openai, Said(b"", 429, {"Retry-After": asked}), Said(completion("2"))).answer == "2"
    assert pauses == [seconds]


def test_broken_connections_are_tried_again(openai: OpenAI, pauses: list[float]) -> None:
    broken = Said(completion("a long answer"), breaks=True)
    assert reply(openai, broken, broken, Said(completion("2"))).answer == "2"
    assert "cannot be reached (IncompleteRead(" in failure(openai, broken)
    assert pauses == [1, 2, 1, 2]


def test_only_the_last_try_is_timed(openai: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(float(2**power) for power in range(20))
    monkeypatch.setattr(server, "perf_counter", lambda: next(clock))
    # Start and end of the warm-up, start and end of the busy answer, start and end of the good one.
    assert reply(openai, Said(b"", 503), Said(completion("2"))).cost.seconds == 32 - 16


def test_where_nobody_listens(pauses: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(
        EndpointError, match=f"127.0.0.1:{port}/v1: cannot be reached .*refused.*, 3 times; is it"
    ):
        Endpoint(f"http://127.0.0.1:{port}", "m")(task(), 0)
    assert pauses == [1, 2]


def test_hosts_that_cannot_be(pauses: list[float]) -> None:
    with pytest.raises(EndpointError, match="cannot be reached"):
        Endpoint("http://a..b/v1", "m")(task(), 0)


def test_silence_is_not_asked_again(
    openai: OpenAI, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Endpoint(openai.url, "m")
    runner(task(), 0)
    openai.says = [Said(b"", silent=True)]
    monkeypatch.setattr(server, "_TIMEOUT", 0.2)
    with pytest.raises(EndpointError, match="v1: no answer for 0 minutes; look at its log"):
        runner(task(), 1)
    assert (len(openai.asked), pauses) == (2, [])


# --- which model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "status", "complaint"),
    [
        ({"data": [{"id": "a"}, {"id": "b"}]}, 200, "it lists 2 models; name one with --model: a, b$"),
        ({"data": [{"id": str(i)} for i in range(12)]}, 200, r"lists 12 models; .* 8, 9, \.\.\.$"),
        ({"data": []}, 200, "it lists 0 models; name one with --model$"),
        ({"data": ["a"]}, 200, "it lists 0 models"),
        ({"data": None}, 200, "does not list its models; name one with --model"),
        (b"<html>", 200, "does not list its models"),
        ({"error": "no such route"}, 404, "does not list its models"),
    ],
)
def test_the_model_is_the_only_one_or_named(openai: OpenAI, models: Any, status: int, complaint: str) -> None:
    openai.models = Said(models, status)
    with pytest.raises(InputError, match=complaint):
        choose("endpoint", None, openai.url)
    assert choose("endpoint", "b", openai.url).identity()["model"] == "b"


def test_a_list_of_models_may_need_the_key(openai: OpenAI) -> None:
    openai.models = Said({"error": "no key"}, 401)
    with pytest.raises(EndpointError, match=r"HTTP 401 \(no key\); set OPENAI_API_KEY"):
        choose("endpoint", None, openai.url)


# --- settings and URLs that make no sense -----------------------------------------------------------------


def test_what_an_endpoint_cannot_do(openai: OpenAI) -> None:
    runner = choose("endpoint", "m", openai.url)
    fine = {"max_new_tokens": 9, "entropy_bound": None}
    assert runner.objection(task(settings=fine, schema=CITY, tools=(TOOL,))) is None
    odd = task(settings={"max_new_tokens": 9, "thinking_budget": 5, "entropy_bound": 0.1})
    assert runner.objection(odd) == "an endpoint has no setting entropy_bound, thinking_budget"
    with pytest.raises(InputError, match="sum: an endpoint has no setting"):
        runner(odd, 0)
    with pytest.raises(InputError, match="n 2: runner endpoint makes one candidate at a time"):
        runner(task(), 0, n=2)
    assert openai.asked == openai.warm_ups == []


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:8000/v1", "ftp://host/v1", "http://", "http:///v1", "http://host:0/v1", "/v1", " "),
        *("http://host:99999/v1", "http://host:port/v1", "http://[::1/v1", "http://a b/v1", "http://a/\nb"),
        "http://hést/v1",
    ],
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(
        InputError, match=r"--endpoint: .* is not an http or https URL; give one such as"
    ) as caught:
        choose("endpoint", "m", url)
    assert "\n" not in str(caught.value)


# --- secrets ----------------------------------------------------------------------------------------------


def test_the_key_is_sent_and_never_told(openai: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    openai.says = [Said({"error": f"wrong key {KEY} here"}, status) for status in (401, 400)]
    runner = Endpoint(openai.url, "m")
    with pytest.raises(EndpointError, match=r"\(wrong key \*\*\* here\)"):
        runner(task(), 0)
    assert runner(task(), 0)[0].error == "wrong key *** here"
    assert KEY not in str(runner.identity())
    headers = [asked.headers["Authorization"] for asked in openai.warm_ups + openai.asked]
    assert headers == [f"Bearer {KEY}"] * 4  # two of them warm up, or ask whether the prompt is to blame


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel"])
def test_keys_that_no_header_carries(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError, match=r"^OPENAI_API_KEY has characters"):
        Endpoint("http://localhost", "m")


def test_without_a_key_none_is_sent(openai: OpenAI) -> None:
    reply(openai, Said(completion("2")))
    assert "Authorization" not in openai.asked[0].headers


def test_secrets_of_the_url_are_sent_and_never_told(openai: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    echoed = Said(
        {"error": "user anna, password p@ss, pass p%40ss, pair anna:p@ss, query token=abc, abc"}, 500
    )
    openai.says = [echoed]
    runner = Endpoint(f"http://anna:p%40ss@127.0.0.1:{openai.server_port}/v1?token=abc", "m")
    with pytest.raises(EndpointError) as caught:
        runner(task(), 0)
    told = f"{caught.value} {runner.identity()}"
    assert (
        f"{openai.url}: answered HTTP 500 (user ***, password ***, pass ***, pair ***, query ***, ***)"
        in told
    )
    assert not any(secret in told for secret in ("anna", "p@ss", "p%40ss", "abc", KEY))
    [asked] = openai.asked
    assert asked.path.endswith("?token=abc")
    assert asked.headers["Authorization"] == f"Basic {base64.b64encode(b'anna:p@ss').decode()}"


@pytest.mark.parametrize("url", ["ftp://anna:p@ss@host/v1", "ftp://host/v1?p@ss", "ftp://host/?key=p@ss"])
def test_secrets_of_urls_that_are_none(url: str) -> None:
    with pytest.raises(InputError) as caught:
        Endpoint(url, "m")
    assert "p@ss" not in str(caught.value)
    assert "anna" not in str(caught.value)


def test_a_server_here_is_asked_directly(openai: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert reply(openai, Said(completion("2"))).answer == "2"
