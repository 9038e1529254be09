"""Runner that asks a server which speaks OpenAI's chat completions, through the `openai` client.

The server gets the messages, the seed, `max_tokens`, tools, the schema and, for its chat template,
`enable_thinking`. It chooses all other sampling settings. Seconds are those of the HTTP exchange, so they
include queue, network and detokenizer. The server reports no blocks and no denoising steps.
"""

from __future__ import annotations

import importlib
import json
import os
import threading
import time
from collections.abc import Iterable
from importlib import metadata
from itertools import count
from typing import Any
from urllib.parse import urlsplit

from ...config.files import check_values
from ...console.messages import one_line
from ...errors import EndpointError, InputError
from ..task import INSTALL, Cost, Reply, Task
from . import WARM_UP, check_single, unsupported

KEY_VARIABLE = "OPENAI_API_KEY"
_SILENCE, _TOTAL = 1800.0, 7200.0  # seconds without data, and of a whole reply; local models may be slow
_MOST_BYTES, _MOST_VALUES = 16 * 2**20, 1_000_000  # longest reply
_PROMPTS_FAULT = (400, 413, 422)
_HARMLESS = [{"role": "user", "content": WARM_UP}]
# Opening and closing markers of a thought, for servers that leave them in the text.
_MARKERS = (("<|channel>thought", "<channel|>"), ("<think>", "</think>"))


class Endpoint:
    """Asks `model` at an OpenAI-compatible server, with OPENAI_API_KEY. A URL without a path gets `/v1`."""

    name = "endpoint"

    def __init__(self, url: str, model: str):
        try:
            self._openai: Any = importlib.import_module("openai")
        except ImportError:
            raise InputError(f"the endpoint runner needs openai, which is not installed; {INSTALL}") from None
        self._url, self._key = _base_url(url), os.environ.get(KEY_VARIABLE, "").strip()
        self._client = self._bounded_client()
        self._start = 0.0  # clock when the last try began
        self._model, self._warm = model, False

    def identity(self) -> dict[str, Any]:
        versions = {"mlx-diffusiongemma": metadata.version("mlx-diffusiongemma")}
        return {"runner": self.name, "model": self._model, "endpoint": self._url, "versions": versions}

    def objection(self, task: Task) -> str | None:
        return unsupported("an endpoint", task, frozenset({"max_new_tokens"}))

    def __call__(self, task: Task, seed: int, n: int = 1) -> list[Reply]:
        check_single(self, task, n)
        if not self._warm:  # the server loads its model; its reply does not matter
            self._ask({"model": self._model, "messages": _HARMLESS, "max_tokens": 16})
            self._warm = True
        status, whole, seconds = self._ask(self._request(task, _messages(task.messages), seed))
        if status in _PROMPTS_FAULT and self._ask(self._request(task, _HARMLESS, seed))[0] == 200:
            return [Reply("", error=self._complaint(whole) or f"HTTP {status}")]
        if status != 200:
            raise self._refused(status, whole)
        try:
            return [_reply(whole, seconds)]
        except (KeyError, IndexError, TypeError, AttributeError):
            found = f"no chat completion in its reply ({self._complaint(whole) or 'nothing'})"
            raise EndpointError(f"{self._url}: {found}; is it OpenAI-compatible?") from None

    def _request(self, task: Task, messages: list[dict[str, Any]], seed: int) -> dict[str, Any]:
        thinking = {"chat_template_kwargs": {"enable_thinking": task.thinking}}
        body = {"model": self._model, "messages": messages, "seed": seed, "extra_body": thinking}
        if task.settings.get("max_new_tokens") is not None:
            body["max_tokens"] = task.settings["max_new_tokens"]
        if task.tools:
            body["tools"] = list(task.tools)
        if task.schema is not None:
            held = {"name": "answer", "schema": task.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": held}
        return body

    def _ask(self, body: dict[str, Any]) -> tuple[int, Any, float]:
        """Return HTTP status, content (JSON, otherwise text) and seconds of the reply to `body`.

        A busy server or a broken connection is tried three times. No reply raises `EndpointError`.
        """
        clock = threading.Timer(_TOTAL, self._client.close)  # ends a reply that is too slow or never begins
        clock.daemon = True
        clock.start()
        try:
            response = self._client.chat.completions.with_raw_response.create(**body).http_response
        except self._openai.APIStatusError as error:
            response = error.response
        except (self._openai.APIConnectionError, RuntimeError, ValueError, OverflowError) as error:
            if isinstance(error, self._openai.APITimeoutError) or clock.finished.is_set():
                raise EndpointError(f"{self._url}: no reply in time; look at its log") from None
            found = f"cannot be reached ({self._shown(error.__cause__ or error)}), 3 times"
            remedy = "is it running, and is --endpoint its address?"
            raise EndpointError(f"{self._url}: {found}; {remedy}") from None
        finally:
            clock.cancel()
        seconds = time.perf_counter() - self._start
        try:
            check_values(response.text, _MOST_VALUES)
            return response.status_code, response.json(), seconds
        except (ValueError, RecursionError):
            return response.status_code, response.text, seconds

    def _bounded_client(self) -> Any:
        """Return a client that limits replies. It follows no redirects, because the key is for one server."""

        def start(request: Any) -> None:
            self._start = time.perf_counter()

        def read(response: Any) -> None:
            body = bytearray()
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > _MOST_BYTES:
                    raise ValueError(f"a reply of more than {_MOST_BYTES >> 20} MB")
            response._content = bytes(body)  # where `response.read()` keeps it

        http = self._openai.DefaultHttpxClient(
            follow_redirects=False,
            trust_env=urlsplit(self._url).hostname not in ("localhost", "127.0.0.1", "::1"),
            event_hooks={"request": [start], "response": [read]},
        )
        options = {"api_key": self._key or "none", "timeout": _SILENCE, "max_retries": 2}
        return self._openai.OpenAI(base_url=self._url, http_client=http, **options)

    def _refused(self, status: int, whole: Any) -> EndpointError:
        found = f"{self._url}: answered HTTP {status} ({self._complaint(whole) or 'nothing'})"
        remedy = f"set {KEY_VARIABLE}" if status in (401, 403) else "check --endpoint, --model and its log"
        return EndpointError(f"{found}; {remedy}")

    def _complaint(self, whole: Any) -> str:
        for key in ("error", "message", "detail"):  # {"error": {"message": ...}}, {"detail": ...} and so on
            if isinstance(whole, dict) and whole.get(key):
                whole = whole[key]
        return self._shown(whole)

    def _shown(self, text: object) -> str:
        """Return a server's text as one short line without the key, to be part of a message."""
        return one_line(str(text).replace(self._key, "***") if self._key else text, 200)


def _base_url(given: str) -> str:
    try:
        parts = urlsplit(given.strip())
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine or not given.isascii() or parts.username or parts.query or parts.fragment:
        raise InputError(  # the URL may hold a password, so it is not shown
            "--endpoint: not an http or https URL without user and query; "
            f"give one such as http://localhost:8000/v1, and the key as {KEY_VARIABLE}"
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path if parts.path.strip('/') else '/v1'}"


def _messages(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages in OpenAI's format, where tool calls have ids and their arguments are JSON text."""
    out, made, answered = list[dict[str, Any]](), count(), count()
    for message in messages:
        message = dict(message)
        if message.get("tool_calls"):
            functions = [call["function"] for call in message["tool_calls"]]
            texts = [each | {"arguments": json.dumps(each["arguments"])} for each in functions]
            calls = [{"type": "function", "id": f"call_{next(made)}", "function": each} for each in texts]
            message["tool_calls"] = calls
        elif message["role"] == "tool":
            message["tool_call_id"] = f"call_{next(answered)}"
        out.append(message)
    return out


def _reply(whole: Any, seconds: float) -> Reply:
    """Read the reply in a chat completion. A missing or malformed field raises, for instance `KeyError`."""
    choice = whole["choices"][0]
    message, reason = choice["message"], choice.get("finish_reason")
    content = message.get("content") or ""
    thought = message.get("reasoning_content") or message.get("reasoning") or ""
    if not isinstance(content, str) or not isinstance(thought, str):
        raise TypeError("not a text")
    calls = message.get("tool_calls") or ()
    if not thought:
        thought, content = _split(content, bool(calls))
    if reason == "content_filter":
        return Reply("", error="the endpoint's content filter ended it")
    return Reply(
        answer=content,
        thought=thought,
        finish_reason="length" if reason == "length" else "stop",
        tool_calls=tuple(_call(call["function"]) for call in calls),
        cost=_cost(seconds, whole.get("usage"), bool(thought.strip())),
    )


def _split(content: str, has_calls: bool = False) -> tuple[str, str]:
    """Return thought and answer of a text with thought markers.

    has_calls: True if tool calls follow. Then text before a closing marker is a thought even without an
    answer.
    """
    for opening, closing in _MARKERS:
        *pieces, rest = content.split(closing)
        if opening not in content and not (rest.strip() or has_calls):  # a marker that closes nothing
            return "", "".join(pieces).strip()
        if pieces or opening in content:
            parts = [*(piece.rpartition(opening) for piece in pieces), rest.partition(opening)]
            thoughts = (thought.strip() for _, _, thought in parts)
            return "\n".join(filter(None, thoughts)), "".join(before for before, _, _ in parts).strip()
    return "", content


def _call(function: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return name and arguments of a call. Malformed arguments become {}, as in this package's parser."""
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = {}
    return str(function["name"]), arguments if isinstance(arguments, dict) else {}


def _cost(seconds: float, usage: Any, has_thought: bool) -> Cost:
    """Return the cost of a reply. answer_tokens is None if the server does not count a thought's tokens."""
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("completion_tokens_details")
    new = _count(usage.get("completion_tokens"))
    reasoning = _count(details.get("reasoning_tokens")) if isinstance(details, dict) else None
    if new is None or (has_thought and not reasoning):
        return Cost(seconds, new)
    return Cost(seconds, new, max(0, new - (reasoning or 0)))


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**31 else None
