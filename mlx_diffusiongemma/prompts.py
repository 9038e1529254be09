"""Checks what a caller gives as messages and tools, and puts it into the form chat templates expect."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .errors import InputError
from .tool_calls import QUOTE, ToolCall

Message = Mapping[str, Any]
Tool = Mapping[str, Any] | Callable[..., Any]

# The roles callers write -> the roles chat templates know.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
}


def checked_messages(items: Sequence[Any], system: str | None = None) -> list[dict[str, Any]]:
    """Messages with a known role and their content as one string, after `system` if that is given.

    Other keys (name, tool_calls, ...) are kept. A tool's content may be a mapping; an assistant's may be
    missing beside tool calls. Raises InputError with the index of the message that cannot be used.
    """
    messages = [_checked_message(index, item) for index, item in enumerate(items)]
    if system is None:
        return messages
    if not isinstance(system, str):
        raise InputError(f"system: found {type(system).__name__}; give text")
    if any(message["role"] == "system" for message in messages):
        raise InputError("system: the messages already hold a system message; give one of the two")
    return [{"role": "system", "content": system}, *messages] if system.strip() else messages


def _checked_message(index: int, message: Any) -> dict[str, Any]:
    where = f"prompt: message {index}"
    if not isinstance(message, Mapping):
        raise InputError(f"{where} is {type(message).__name__}; a message is a dict with role and content")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise InputError(f"{where} has role {role!r}; use one of {', '.join(ROLES)}")
    role, content = ROLES[role], message.get("content")
    if isinstance(content, list | tuple):
        content = "".join(_text_part(where, part) for part in content)
    if content is None and (message.get("tool_calls") or message.get("tool_responses")):
        content = ""
    if isinstance(content, str):
        if role == "user" and not content.strip():
            raise InputError(f"{where} is empty; give text")
    elif not (role == "tool" and isinstance(content, Mapping)):
        found = "no content" if content is None else f"content of type {type(content).__name__}"
        raise InputError(f"{where} has {found}; give text")
    return {**message, "role": role, "content": content}


def _text_part(where: str, part: Any) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise InputError(f"{where} has a content part of type {kind!r}; use parts of type 'text'")


def described_tools(tools: Any) -> list[dict[str, Any]] | None:
    """JSON descriptions, {"type": "function", "function": {"name": ..., ...}}, of tools; None without any.

    tools: descriptions in that form or without the wrapping, and Python functions with type hints and a
    docstring that describes each argument. Raises InputError for anything else.
    """
    if tools is None:
        return None
    if not isinstance(tools, list | tuple):
        raise InputError(f"tools: found {type(tools).__name__}; give a list of functions or descriptions")
    return [_described(index, tool) for index, tool in enumerate(tools)] or None


def _described(index: int, tool: Any) -> dict[str, Any]:
    if isinstance(tool, Mapping):
        return _description(index, tool)
    if not callable(tool):
        raise InputError(f"tools: item {index} is {type(tool).__name__}; give a function or a description")
    from transformers.utils import get_json_schema

    try:
        return dict(get_json_schema(tool))
    except Exception as error:  # whatever the function's hints and docstring make it stumble over
        name = getattr(tool, "__name__", type(tool).__name__)
        raise InputError(
            f"tools: {name} cannot be described ({one_line(error)}); "
            "give it type hints and a docstring that describes every argument"
        ) from error


def _description(index: int, tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise InputError(
            f"tools: item {index} has no name; describe it as {{'name': ..., 'parameters': ...}}"
        )
    description = {"type": "function", "function": dict(function)}
    try:
        json.dumps(description)
    except (TypeError, ValueError) as error:
        raise InputError(f"tools: {name} cannot be written as JSON ({one_line(error)})") from error
    return description


_SHOWN = 200  # characters of a malformed call that the model gets to see again


def tool_messages(tool_calls: Sequence[ToolCall], results: Sequence[Any]) -> list[dict[str, Any]]:
    """The messages that answer `tool_calls`: append them to the chat and generate again.

        calls = generation.tool_calls
        results = [functions[call.name](**call.arguments) for call in calls if call.error is None]
        messages += tool_messages(calls, results)

    results: one for each call without an error, in their order: text, or anything that can be written as JSON
    (the model reads that); delimiters spelled in it get a space, so that they stay text. A malformed call
    takes no result: the model is told what is wrong with it, so that it can call again. Returns one assistant
    message with all calls and one tool message for each; what the model wrote beside the calls is left out,
    because templates disagree on where that goes.
    Raises InputError for no calls, another number of results, and a result that is no JSON.
    """
    if not isinstance(tool_calls, list | tuple):
        raise InputError(f"tool_calls: found {type(tool_calls).__name__}; give generation.tool_calls")
    if not tool_calls:
        raise InputError("tool_calls: empty; there is nothing to answer")
    for index, call in enumerate(tool_calls):
        if not isinstance(call, ToolCall):
            raise InputError(f"tool_calls: item {index} is {type(call).__name__}; give generation.tool_calls")
    if isinstance(results, str | bytes) or not isinstance(results, Sequence):
        raise InputError(f"results: found {type(results).__name__}; give a list, one for each call")
    good = [call for call in tool_calls if call.error is None]
    if len(results) != len(good):
        raise InputError(
            f"results: found {len(results)} for {len(good)} calls without an error; "
            "give one for each, in their order"
        )
    texts = iter([_result_text(call.name, result) for call, result in zip(good, results, strict=True)])
    # Templates match a response to its call by id, and two ids that are missing match as well.
    named = [(f"call_{index}", call.name or "unknown", call) for index, call in enumerate(tool_calls)]
    asked = [
        {
            "id": id_,
            "type": "function",
            "function": {"name": name, "arguments": {} if call.error else dict(call.arguments)},
        }
        for id_, name, call in named
    ]
    answered = [
        {
            "role": "tool",
            "tool_call_id": id_,
            "name": name,
            "content": next(texts) if call.error is None else _complaint(call),
        }
        for id_, name, call in named
    ]
    return [{"role": "assistant", "content": "", "tool_calls": asked}, *answered]


def _complaint(call: ToolCall) -> str:
    raw = call.raw if len(call.raw) <= _SHOWN else call.raw[:_SHOWN] + "..."
    text = f"Error: the call was not executed ({call.error}). It was: {raw}"
    return _harmless(text.replace(QUOTE, '"'))


# What may be spelled like a structural token.
_DELIMITER = re.compile(r"<(?=\|[^<>|\s]{1,30}\|?>|[^<>|\s]{1,30}\|>|(?:bos|eos|pad|unk|mask)>)")


def _harmless(text: str) -> str:
    """`text` without delimiters: in a tool's words, they would become those of the prompt."""
    return _DELIMITER.sub("< ", text)


def _result_text(name: str, result: Any) -> str:
    if isinstance(result, str):
        return _harmless(result)
    try:
        return _harmless(json.dumps(result, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"results: that of {name} cannot be written as JSON ({one_line(error)}); "
            "give text or plain values"
        ) from error


def one_line(error: BaseException) -> str:
    """What `error` says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
