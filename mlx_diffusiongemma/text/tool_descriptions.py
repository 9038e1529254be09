"""Converts a caller's tools to the form that chat templates expect."""

import difflib
import json
from collections.abc import Callable, Mapping
from typing import Any

from ..console.messages import one_line
from ..errors import InputError

Tool = Mapping[str, Any] | Callable[..., Any]

# Names of the arguments' JSON Schema: OpenAI's, the Model Context Protocol's, Anthropic's.
_SCHEMA = ("parameters", "inputSchema", "input_schema")
# Templates may show these. `response` is Google's, `return` comes from a function's type hint.
_SHOWN = ("name", "description", *_SCHEMA, "strict", "response", "return")
# Servers and clients send these, and no template reads them.
_IGNORED = (
    "title", "annotations", "icons", "outputSchema", "execution", "_meta",  # the Model Context Protocol
    "cache_control", "defer_loading", "allowed_callers", "input_examples", "eager_input_streaming",
)  # fmt: skip


def described_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Return descriptions of `tools` as {"type": "function", "function": {"name": ..., ...}}.

    Return None if there are no tools.

    Args:
        tools: a list. Items are Python functions with type hints and a docstring that describes each
            argument, or descriptions in the form of OpenAI (Chat Completions or Responses), Anthropic or the
            Model Context Protocol, as dicts or as objects of these libraries.

    Raises:
        InputError: an item is something else, or has an unknown key, which may be misspelt.
    """
    if tools is None:
        return None
    if not isinstance(tools, list | tuple):
        raise InputError(f"tools: found {type(tools).__name__}; give a list of functions or descriptions")
    return [_described(index, tool) for index, tool in enumerate(tools)] or None


def _described(index: int, tool: Any) -> dict[str, Any]:
    if hasattr(tool, "model_dump") and not isinstance(tool, type):  # a pydantic object
        tool = tool.model_dump(by_alias=True)
    if isinstance(tool, Mapping):
        return _description(index, tool)
    if not callable(tool):
        raise InputError(f"tools: item {index} is {type(tool).__name__}; give a function or a description")
    from transformers.utils import get_json_schema

    try:
        return _description(index, get_json_schema(tool))
    except InputError:
        raise
    except Exception as error:  # hints and docstrings may raise anything
        name = getattr(tool, "__name__", type(tool).__name__)
        raise InputError(
            f"tools: {name} cannot be described ({one_line(error)}); "
            "give it type hints and a docstring that describes every argument"
        ) from error


def _description(index: int, tool: Mapping[str, Any]) -> dict[str, Any]:
    wrapped = tool.get("function")
    function = dict(wrapped) if isinstance(wrapped, Mapping) else dict(tool)
    name = function.get("name")
    where = f"tools: {name}" if isinstance(name, str) and name else f"tools: item {index}"
    _check_keys(where, [*tool, *function])
    if where != f"tools: {name}":
        raise InputError(f"{where} has no name; describe it as {{'name': ..., 'parameters': ...}}")
    kind = tool.get("type")
    if kind not in (None, "function", "custom"):
        raise InputError(f"{where} has type {kind!r}; only functions can be called: give type 'function'")
    shown = {key: value for key, value in function.items() if key in _SHOWN and value is not None}
    if not isinstance(shown.get("description", ""), str):
        raise InputError(
            f"{where} has a description of type {type(shown['description']).__name__}; give text"
        )
    schemas = [key for key in _SCHEMA if key in shown]
    if len(schemas) > 1:
        raise InputError(f"{where} has both {schemas[0]} and {schemas[1]}; give one of them")
    description = {key: value for key, value in shown.items() if key not in schemas}
    if schemas:
        description["parameters"] = _schema(f"{where}: {schemas[0]}", shown[schemas[0]])
    try:
        json.dumps(description)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{where} cannot be written as JSON ({one_line(error)})") from error
    return {"type": "function", "function": description}


def _check_keys(where: str, keys: list[Any]) -> None:
    known = ["type", "function", *_SHOWN, *_IGNORED]
    for key in keys:
        if key not in known:
            alike = difflib.get_close_matches(str(key), known, 1)
            advice = f"did you mean {alike[0]!r}?" if alike else f"use {', '.join(known[2:5])}"
            raise InputError(f"{where} has the unknown key {str(key)[:60]!r}; {advice}")


def _schema(where: str, schema: Any) -> dict[str, Any]:
    if not isinstance(schema, Mapping):
        raise InputError(f"{where} is {type(schema).__name__}; give a JSON Schema of type 'object'")
    # The released template closes the declaration's braces only if the schema has a type.
    return {"type": "object", **schema} if schema else {}
