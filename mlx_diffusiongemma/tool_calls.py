"""The text between `<|tool_call>` and `<tool_call|>` -> a ToolCall.

The grammar is JSON-like, with bare keys and with strings between `<|"|>` delimiters, which need no
escapes and may hold anything else:

    call:NAME{city:<|"|>Paris<|"|>,days:3,metric:true,hours:[9,12],near:{km:2.5}}
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

QUOTE = '<|"|>'
_MAX_DEPTH = 64

# `call:` may be missing. A name may be namespaced ("google:maps:route"), so it may hold colons.
_HEAD = re.compile(r"\s*(?:call\s*:\s*)?(?P<name>\w(?:[\w.:/-]*\w)?)?")
_BRACE = re.compile(r'"(?:[^"\\]|\\.)*"|[{}]', re.DOTALL)  # or a JSON string, whose braces are none
_NEXT = re.compile(r"[\s,;]*(?=(?:call\s*:\s*)?\w[\w.:/-]*\{)")
_TOKEN = re.compile(
    r"""\s*(?:(?P<mark>[{}\[\]:,])              # punctuation
           |(?P<json>"(?:[^"\\]|\\.)*")         # a JSON string: not the format, but models slip into it
           |(?P<word>[^\s{}\[\]:,"]+))          # a bare key, a number, true, false, null
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool that the model asked for.

    name: the tool's name, "" when none could be read.
    arguments: plain Python values (str, int, float, bool, None, list, dict), {} when malformed.
    raw: what the model wrote between the delimiters, with `<|"|>` as text.
    error: None for a good call, otherwise one line that says what is wrong with it.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    raw: str = ""
    error: str | None = None


def parse_tool_calls(raw: str, *, closed: bool = True) -> list[ToolCall]:
    """The calls written in `raw`, one after the other; mostly it is one. See `parse_tool_call`."""
    *calls, last = _separate(raw)
    return [*(parse_tool_call(call) for call in calls), parse_tool_call(last, closed=closed)]


def _separate(raw: str) -> list[str]:
    """`raw`, cut where braces outside strings have closed and another call follows."""
    calls, start, at, depth = [], 0, 0, 0
    for index, piece in enumerate(raw.split(QUOTE)):
        for match in _BRACE.finditer(piece) if index % 2 == 0 else ():
            depth += {"{": 1, "}": -1}.get(match[0], 0)
            end = at + match.end()
            following = _NEXT.match(raw, end) if match[0] == "}" and depth == 0 else None
            if following is not None:
                calls.append(raw[start:end])
                start = following.end()
        at += len(piece) + len(QUOTE)
    return [*calls, raw[start:]]


def parse_tool_call(raw: str, *, closed: bool = True) -> ToolCall:
    """The call written in `raw`. Never raises: a malformed call has `error` set and keeps `raw`.

    closed: whether `<tool_call|>` was seen. A call without it is reported with an error, and with its
    arguments when those are complete.
    """
    head, *rest = raw.split(QUOTE)
    match = _HEAD.match(head)
    assert match is not None  # every part of _HEAD is optional
    name = match["name"] or ""
    error = None if closed else "the call is not closed by <tool_call|>"
    try:
        if not name:
            _fail("the tool's name is missing")
        arguments = _Reader([head[match.end() :], *rest]).arguments()
    except _Malformed as malformed:
        return ToolCall(name, {}, raw, f"{error}; {malformed}" if error else str(malformed))
    return ToolCall(name, arguments, raw, error)


class _Malformed(ValueError):
    """What is wrong with a tool call."""


def _fail(message: str) -> NoReturn:
    raise _Malformed(message)


class _Reader:
    """Recursive descent over text that was split at every `<|"|>`: odd pieces are strings."""

    def __init__(self, pieces: list[str]) -> None:
        self._tokens = _tokens(pieces)
        self._kind, self._text = next(self._tokens)

    def arguments(self) -> dict[str, Any]:
        if self._kind != "{":
            _fail(f"expected {{ after the name, {self._found()}")
        arguments = self._object(depth=0)
        if self._kind != "end":
            _fail(f"expected the end of the call, {self._found()}")
        return arguments

    def _found(self) -> str:
        return "found the end" if self._kind == "end" else f"found {self._text[:20]!r}"

    def _take(self, *kinds: str) -> tuple[str, str]:
        """The next token, which must be one of `kinds`."""
        if self._kind not in kinds:
            _fail(f"expected {' or '.join(kinds)}, {self._found()}")
        taken = self._kind, self._text
        self._kind, self._text = next(self._tokens, ("end", ""))
        return taken

    def _object(self, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        self._take("{")
        while self._kind != "}":
            key = self._take("word", "string")[1]
            self._take(":")
            result[key] = self._value(depth + 1)
            if self._kind != "}":
                self._take(",")
        self._take("}")
        return result

    def _array(self, depth: int) -> list[Any]:
        result: list[Any] = []
        self._take("[")
        while self._kind != "]":
            result.append(self._value(depth + 1))
            if self._kind != "]":
                self._take(",")
        self._take("]")
        return result

    def _value(self, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            _fail(f"nested deeper than {_MAX_DEPTH} levels")
        if self._kind == "{":
            return self._object(depth)
        if self._kind == "[":
            return self._array(depth)
        kind, text = self._take("word", "string", "{", "[")
        return text if kind == "string" else _scalar(text)


def _scalar(word: str) -> Any:
    """A number, true, false or null; JSON's spelling, because that is what the format borrows."""
    try:
        value = json.loads(word)
    except ValueError:
        _fail(f"{word[:20]!r} is no number, true, false or null (a string needs {QUOTE} around it)")
    if isinstance(value, float) and not math.isfinite(value):
        _fail(f"{word[:20]!r} is not a finite number")
    return value


def _tokens(pieces: list[str]) -> Iterator[tuple[str, str]]:
    """(kind, text) pairs: kind is the mark itself, "string", "word", "end", or what cannot be read."""
    for index, piece in enumerate(pieces):
        if index % 2:
            if index + 1 == len(pieces):
                _fail(f"a string is not closed by {QUOTE}")
            yield "string", piece
            continue
        piece, position = piece.rstrip(), 0
        while position < len(piece):
            match = _TOKEN.match(piece, position)
            if match is None:
                _fail(f"cannot read {piece[position : position + 20]!r}")
            position = match.end()
            if match["mark"]:
                yield match["mark"], match["mark"]
            elif match["word"]:
                yield "word", match["word"]
            else:
                yield "string", _json_string(match["json"])
    yield "end", ""


def _json_string(text: str) -> str:
    try:
        string = str(json.loads(text, strict=False))
        string.encode()  # "\\ud83d" alone is a half of a character, which nobody can print or send on
        return string
    except ValueError:
        _fail(f"{text[:20]!r} is no valid JSON string")
