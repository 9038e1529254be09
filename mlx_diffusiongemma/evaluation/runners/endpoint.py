"""A server that speaks OpenAI's chat completions as a runner: `POST URL/chat/completions`.

It is told the messages, the seed, `max_tokens`, tools, the schema and, for chat templates that ask,
`enable_thinking`; sampling is the server's own. Seconds are those of the HTTP exchange, so they hold queue,
network and detokenizer. It knows of no canvases.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from ...errors import InputError
from ..task import Cost, Reply, Task
from . import WARM_UP, check_single
from .server import Answer, Server

_COMPLETIONS = "/chat/completions"
_PROMPTS_FAULT = (400, 413, 422)
_HARMLESS = [{"role": "user", "content": WARM_UP}]
_CHANNEL = re.compile(
    r"<\|channel>(?:[ \t]*(?P<name>[\w.-]{0,32})[ \t]*\n)?(?P<text>.*?)(?:<channel\|>|\Z)", re.DOTALL
)
_THINK = re.compile(r"\s*<think>(?P<thought>.*?)(?:</think>(?P<answer>.*)|\Z)", re.DOTALL)


class Endpoint:
    """model: as the server calls it; None takes the only one that it lists."""

    name = "endpoint"

    def __init__(self, url: str, model: str | None = None) -> None:
        self._server = Server(url)
        self._model = model or self._only_model()
        self._warm = False

    def identity(self) -> dict[str, Any]:
        return {
            "runner": self.name,
            "model": self._model,
            "endpoint": self._server.url,
            "versions": {"mlx-diffusiongemma": metadata.version("mlx-diffusiongemma")},
        }

    def objection(self, task: Task) -> str | None:
        given = [name for name, value in task.settings.items() if value is not None]
        unknown = sorted(set(given) - {"max_new_tokens"})
        return f"an endpoint has no setting {', '.join(unknown)}" if unknown else None

    def __call__(self, task: Task, seed: int, n: int = 1) -> list[Reply]:
        check_single(self.name, n)
        objection = self.objection(task)
        if objection is not None:
            raise InputError(f"{task.name}: {objection}")
        self._warm_up()
        answer = self._server.ask(_COMPLETIONS, self._request(task, _messages(task.messages), seed))
        if answer.status in _PROMPTS_FAULT:
            if self._server.ask(_COMPLETIONS, self._request(task, _HARMLESS, seed)).status != 200:
                raise self._server.refused(answer)  # not the prompt's fault, but that of what goes with it
            return [Reply("", error=self._server.complaint(answer) or f"HTTP {answer.status}")]
        if answer.status != 200:
            raise self._server.refused(answer)
        try:
            return [_reply(answer)]
        except (KeyError, IndexError, TypeError, AttributeError):
            found = f"no chat completion in its answer ({self._server.complaint(answer) or 'nothing'})"
            raise self._server.error(found, "is it OpenAI-compatible?") from None

    def _request(self, task: Task, messages: list[dict[str, Any]], seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": messages,
            "seed": seed,
            "chat_template_kwargs": {"enable_thinking": task.thinking},
        }
        if task.settings.get("max_new_tokens") is not None:
            body["max_tokens"] = task.settings["max_new_tokens"]
        if task.tools:
            body["tools"] = list(task.tools)
        if task.schema is not None:
            held = {"name": "answer", "schema": task.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": held}
        return body

    def _warm_up(self) -> None:
        """Has it load the model, once. What it says to that does not matter."""
        if self._warm:
            return
        self._server.ask(_COMPLETIONS, {"model": self._model, "messages": _HARMLESS, "max_tokens": 16})
        self._warm = True

    def _only_model(self) -> str:
        answer = self._server.ask("/models")
        listed = answer.json() if answer.status == 200 else None
        entries = listed.get("data") if isinstance(listed, dict) else None
        if answer.status in (401, 403):
            raise self._server.refused(answer)
        if not isinstance(entries, list):
            raise InputError(f"{self._server.url}: it does not list its models; name one with --model")
        names = [str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry]
        if len(names) != 1:
            some = ", ".join(map(self._server.told, names[:10])) + (", ..." if len(names) > 10 else "")
            found = f"{self._server.url}: it lists {len(names)} models"
            raise InputError(f"{found}; name one with --model" + (f": {some}" if some else ""))
        return names[0]


def _messages(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """With what OpenAI's servers insist on: ids of tool calls, and their arguments as text."""
    out: list[dict[str, Any]] = []
    made = answered = 0
    for message in messages:
        message = dict(message)
        if message.get("tool_calls"):
            calls = []
            for call in message["tool_calls"]:
                function = dict(call["function"])
                if not isinstance(function["arguments"], str):
                    function["arguments"] = json.dumps(function["arguments"])
                calls.append({"id": f"call_{made}", **call, "function": function})
                made += 1
            message["tool_calls"] = calls
        elif message["role"] == "tool" and "tool_call_id" not in message:
            message["tool_call_id"] = f"call_{answered}"
            answered += 1
        out.append(message)
    return out


def _reply(answer: Answer) -> Reply:
    """Raises what a missing or malformed field raises."""
    whole = answer.json()
    choice = whole["choices"][0]
    message, reason = choice["message"], choice.get("finish_reason")
    content = _text(message.get("content"))
    thought = _text(message.get("reasoning_content")) or _text(message.get("reasoning"))
    calls = message.get("tool_calls") or ()
    if not thought:
        thought, content = _split(content, bool(calls))
    if reason == "content_filter":
        return Reply("", error="the endpoint's content filter ended it")
    return Reply(
        answer=content,
        thought=thought,
        finish_reason="length" if reason == "length" else "stop",
        tool_calls=tuple(_call(call) for call in calls),
        cost=_cost(answer.seconds, whole.get("usage"), bool(thought.strip())),
    )


def _text(content: Any) -> str:
    """A text, or the texts of content parts."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type") == "text")
    if content is not None and not isinstance(content, str):
        raise TypeError("content is neither text nor parts")
    return content or ""


def _split(content: str, has_calls: bool = False) -> tuple[str, str]:
    """Return thought and answer of a server that leaves the markers in the text.

    has_calls: tool calls follow, so a thought that the prompt has opened may have no answer behind it.
    """
    begun, closed, rest = content.partition("<channel|>")
    header = re.match(r"\s*thought[ \t]*\n", begun)  # the prompt had begun to open the thought
    if closed and "<|channel>" not in begun and (rest.strip() or has_calls or header):
        thought, answer = _split(rest)
        begun = begun[header.end() :] if header else begun
        return "\n".join(filter(None, (begun.strip(), thought))), answer.strip()
    if "<|channel>" in content:
        thoughts = []

        def take(match: re.Match[str]) -> str:
            if match["name"] not in (None, "", "thought"):
                return match["text"]
            thoughts.append(match["text"])
            return ""

        answer = _CHANNEL.sub(take, content)
        return "".join(thoughts).strip(), answer.strip()
    if closed and "<|channel>" not in content:  # closes nothing
        return "", content.replace(closed, "").strip()
    match = _THINK.fullmatch(content)
    if match:
        return match["thought"].strip(), (match["answer"] or "").strip()
    if "</think>" in content and "<think>" not in content:  # the template had opened it
        thought, _, answer = content.partition("</think>")
        return thought.strip(), answer.strip()
    return "", content


def _call(call: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and arguments; none when they are malformed, as this package's own parser has it."""
    function = call["function"]
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = {}
    return str(function["name"]), arguments if isinstance(arguments, dict) else {}


def _cost(seconds: float, usage: Any, thought: bool) -> Cost:
    """answer_tokens: told, or all when there was no thought; a server that calls a thought 0 tokens long
    tells nothing."""
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("completion_tokens_details")
    new = _count(usage.get("completion_tokens"))
    reasoning = _count(details.get("reasoning_tokens")) if isinstance(details, dict) else None
    if new is None or (thought and not reasoning):
        return Cost(seconds, new_tokens=new)
    return Cost(seconds, new_tokens=new, answer_tokens=max(0, new - (reasoning or 0)))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
