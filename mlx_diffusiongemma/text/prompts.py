"""Checks a caller's messages, and converts them to the form that chat templates expect."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..console.messages import one_line
from ..errors import InputError
from .tool_calls import QUOTE, ToolCall

Message = Mapping[str, Any]

# Roles that callers use -> roles in chat templates.
ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
}
# Keys that callers use for a thought. Most templates read the first.
_REASONING = ("reasoning_content", "thinking", "reasoning")
# Types of content parts in common APIs. If a tool returns a list of anything else, the list is data.
_PARTS = ("text", "image", "image_url", "input_image", "audio", "input_audio", "video", "video_url", "file")


def checked_messages(items: Sequence[Any], system: str | None = None) -> list[dict[str, Any]]:
    """Return `items` in the form that chat templates expect. `system` becomes the first message.

    In the result, content is text or a list of text and image parts. A tool's content has no images. It may
    also be a number, a bool or missing, and a dict or another list becomes JSON text. Arguments of tool calls
    are dicts. A thought is in `thinking` and `reasoning_content`, because templates read one or the other.
    Keys with the value None are dropped, as in Transformers. All other keys stay.

    Raises:
        InputError: a message cannot be used. The error names its index.
    """
    messages = [_checked_message(f"prompt: message {index}", item) for index, item in enumerate(items)]
    is_answering = False
    for index, message in enumerate(messages):
        if message["role"] != "tool":
            is_answering = "tool_calls" in message
        elif not is_answering:  # the released template drops it silently
            raise InputError(
                f"prompt: message {index} is a tool's, but no tool call comes before it; "
                "put it after the assistant message with that call in tool_calls"
            )
    if system is None:
        return messages
    if not isinstance(system, str):
        raise InputError(f"system: found {type(system).__name__}; give text")
    if any(message["role"] in ("system", "developer") for message in messages):
        raise InputError("system: the messages already have a system message; give one of the two")
    return [{"role": "system", "content": system}, *messages] if system.strip() else messages


def _checked_message(where: str, message: Any) -> dict[str, Any]:
    if hasattr(message, "model_dump"):  # a pydantic object, as OpenAI's client returns
        message = message.model_dump()
    if not isinstance(message, Mapping):
        raise InputError(f"{where} is {type(message).__name__}; a message is a dict with role and content")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise InputError(f"{where} has role {role!r}; use one of {', '.join(ROLES)}")
    message = {key: value for key, value in message.items() if value is not None} | {"role": ROLES[role]}
    if "tool_calls" in message:
        message["tool_calls"] = _checked_calls(where, message["tool_calls"])
        if not message["tool_calls"]:
            del message["tool_calls"]
    thoughts = [message[key] for key in _REASONING if key in message]
    if thoughts:
        if not all(isinstance(thought, str) for thought in thoughts):
            raise InputError(f"{where} has reasoning that is not text; give text")
        message = {"thinking": thoughts[0], **message, "reasoning_content": thoughts[0]}
    if message["role"] == "tool":
        content = _tool_content(where, message.get("content"))
    else:
        content = _content(where, message)
    return message if content is None else {**message, "content": content}


def _content(where: str, message: Message) -> Any:
    """Return the content of a message that is not a tool's: text or a list of text and image parts."""
    content = message.get("content")
    if isinstance(content, list | tuple):
        content = [_part(where, part) for part in content]
        texts = [part.get("text", "an image") for part in content]
    elif isinstance(content, str):
        texts = [content]
    elif content is None and {"tool_calls", "tool_responses", "thinking"} & message.keys():
        return ""
    else:
        problem = "no content" if content is None else f"content of type {type(content).__name__}"
        raise InputError(f"{where} has {problem}; give text")
    if message["role"] == "user" and not "".join(texts).strip():
        raise InputError(f"{where} is empty; give text")
    return content


def _tool_content(where: str, content: Any) -> Any:
    """Return a tool's content: text, a list of text parts, a number, a bool, None, or else JSON text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list | tuple) and all(_is_part(item) for item in content):
        return [_text_part(where, part) for part in content]
    text = _json_text(f"{where} has content that", content)
    return text if isinstance(content, Mapping | list | tuple) else content


def _is_part(item: Any) -> bool:
    return isinstance(item, Mapping) and item.get("type") in _PARTS


def _part(where: str, part: Any) -> dict[str, Any]:
    """Return a text part, or an image part as `{"type": "image", "image": source}`, or without its source."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in ("image", "image_url", "input_image"):
        return _text_part(where, part)
    sources = [part[key] for key in ("image", "image_url", "url", "path") if part.get(key) is not None]
    source = (
        sources[0].get("url") if sources and isinstance(sources[0], Mapping) else next(iter(sources), None)
    )
    return {"type": "image"} if source is None else {"type": "image", "image": source}


def _text_part(where: str, part: Any) -> dict[str, str]:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind == "text":
        raise InputError(f"{where} has a content part without text; give {{'type': 'text', 'text': '...'}}")
    raise InputError(f"{where} has a content part of type {kind!r}; use parts of type 'text' or 'image'")


def _checked_calls(where: str, calls: Any) -> list[dict[str, Any]]:
    """Return calls as {"type": "function", "function": {"name": ..., "arguments": {...}}, ...}."""
    if not isinstance(calls, list | tuple):
        raise InputError(f"{where} has tool_calls of type {type(calls).__name__}; give a list of calls")
    checked = []
    for call in calls:
        if not isinstance(call, Mapping):
            raise InputError(
                f"{where} has a tool call of type {type(call).__name__}; give a dict, as tool_messages does"
            )
        wrapped = call.get("function")
        function = wrapped if isinstance(wrapped, Mapping) else call
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise InputError(f"{where} has a tool call without a name; give function: {{name, arguments}}")
        arguments = _arguments(f"{where}: the arguments of {name}", function.get("arguments"))
        others = {key: value for key, value in call.items() if key not in ("name", "arguments", "function")}
        checked.append({**others, "type": "function", "function": {"name": name, "arguments": arguments}})
    return checked


def _arguments(what: str, arguments: Any) -> Mapping[str, Any]:
    """Return arguments as a dict, from a dict or JSON text. OpenAI's clients write "" for no arguments."""
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        return {}
    if isinstance(arguments, Mapping):
        arguments = _json_text(what, arguments)
    elif not isinstance(arguments, str):
        raise InputError(f"{what} are {type(arguments).__name__}; give a JSON object")
    try:
        value = json.loads(arguments, parse_constant=_no_number, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} are not JSON ({one_line(error)}); give a JSON object") from None
    if not isinstance(value, dict):
        raise InputError(f"{what} are JSON, but not an object; give a JSON object")
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, each in pairs:
        if name in value:
            raise ValueError(f"{name[:20]!r} is given twice")
        value[name] = each
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _json_text(what: str, value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{what} cannot be written as JSON ({one_line(error)}); give text or plain values"
        ) from error


_SHOWN = 200  # maximum number of characters of a malformed call in the message to the model


def tool_messages(tool_calls: Sequence[ToolCall], results: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the messages that answer `tool_calls`. Append them to the chat and generate again.

        calls = generation.tool_calls
        results = [functions[call.name](**call.arguments) for call in calls if call.error is None]
        messages += tool_messages(calls, results)

    A malformed call has no result. Its message says what is wrong, so that the model can call again.

    Args:
        results: one for each call without an error, in the same order. Text, or anything that can be written
            as JSON.

    Returns:
        One assistant message with all calls, and one tool message for each. Other text of the model is left
        out, because templates disagree on its place.

    Raises:
        InputError: `tool_calls` is empty, the number of results is wrong, or a result cannot be written as
            JSON.
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
    asked, answered = [], []
    for index, call in enumerate(tool_calls):
        # Templates match a response to its call by id. Missing ids would all match.
        id_, name = f"call_{index}", call.name or "unknown"
        function = {"name": name, "arguments": {} if call.error else dict(call.arguments)}
        asked.append({"id": id_, "type": "function", "function": function})
        content = next(texts) if call.error is None else _complaint(call)
        answered.append({"role": "tool", "tool_call_id": id_, "name": name, "content": content})
    return [{"role": "assistant", "content": "", "tool_calls": asked}, *answered]


def _complaint(call: ToolCall) -> str:
    raw = call.raw if len(call.raw) <= _SHOWN else call.raw[:_SHOWN] + "..."
    text = f"Error: the call was not executed ({call.error}). It was: {raw}"
    return text.replace(QUOTE, '"')


def _result_text(name: str, result: Any) -> str:
    return result if isinstance(result, str) else _json_text(f"results: that of {name}", result)
