"""Parses the text between `<|tool_call>` and `<tool_call|>` into a `ToolCall`.

The grammar is JSON-like, with bare keys, and with strings between `<|"|>` delimiters. These strings have no
escapes and may contain anything else:

    call:NAME{city:<|"|>Paris<|"|>,days:3,metric:true,hours:[9,12],near:{km:2.5}}

Models deviate from it. These spellings are also accepted, because each has one meaning:

- parentheses instead of braces or around them, and doubled braces
- `=` instead of `:`
- strings in double or single quotes, with the escapes of JSON
- `True`, `False` and `None`
- a comma before a closing bracket, and a missing comma before a name or between the values of a list

A call is malformed if it has a word without quotes, a quote inside a quoted string, an argument without a
name, or an argument twice, because these have several meanings or none.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

QUOTE = '<|"|>'
_MAX_DEPTH = 64

# `call:` may be missing. A name may have namespaces ("google:maps:route"), so it may contain colons.
_HEAD = re.compile(r"\s*(?:call\s*:\s*)?(?P<name>\w(?:[\w.:/-]*\w)?)?")
_NEXT = re.compile(r"[\s,;]*(?=(?:call\s*:\s*)?\w[\w.:/-]*[{(])")
# An unclosed string extends to the end of the text, so no text is searched twice.
_STRING = r"""(?P<quote>["'])(?P<body>(?:(?!(?P=quote))[^\\]|\\.)*)(?P<close>(?P=quote)?)"""
_BRACKET = re.compile(rf"(?<!\w){_STRING}|(?P<bracket>[{{}}()])", re.DOTALL)
_BRACKET_ONLY = re.compile(r"(?P<bracket>[{}()])")
_TOKEN = re.compile(
    rf"(?P<gap>\s*)(?:(?P<mark>[{{}}\[\]():,=])|{_STRING}|(?P<word>[^\s{{}}\[\]():,=\"']+))", re.DOTALL
)
_BARE_NAME = re.compile(r"[^\W\d][\w.-]*")
_VALUES = ("word", "string", "{", "[")  # kinds of tokens that begin a value
_WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}


@dataclass(frozen=True)
class ToolCall:
    """One tool call that the model wrote.

    name: the tool's name, or "" if it cannot be read.
    arguments: plain Python values (str, int, float, bool, None, list, dict). {} if they cannot be read.
    raw: the text between the delimiters, with `<|"|>` as text.
    error: None for a good call, otherwise the problem in one line.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    raw: str = ""
    error: str | None = None


def parse_tool_calls(raw: str, *, closed: bool = True) -> list[ToolCall]:
    """Return the calls in `raw`, usually one. `closed` is about the last one. See `parse_tool_call`."""
    *calls, last = _separate(raw)
    return [*(parse_tool_call(call) for call in calls), parse_tool_call(last, closed=closed)]


def _separate(raw: str) -> list[str]:
    """Return `raw`, cut where all brackets outside strings are closed and another call follows."""
    calls, start, at, depth = [], 0, 0, 0
    for index, piece in enumerate(raw.split(QUOTE)):
        for match in _brackets(piece) if index % 2 == 0 else ():
            depth = max(0, depth + (1 if match["bracket"] in "{(" else -1))
            end = at + match.end()
            following = _NEXT.match(raw, end) if match["bracket"] in "})" and depth == 0 else None
            if following is not None:
                calls.append(raw[start:end])
                start = following.end()
        at += len(piece) + len(QUOTE)
    return [*calls, raw[start:]]


def _brackets(piece: str) -> Iterator[re.Match[str]]:
    """Yield the brackets of `piece` outside quoted strings. An unclosed quote does not begin a string."""
    for match in _BRACKET.finditer(piece):
        if match["bracket"]:
            yield match
        elif not match["close"]:
            yield from _BRACKET_ONLY.finditer(piece, match.start())
            return


def parse_tool_call(raw: str, *, closed: bool = True) -> ToolCall:
    """Return the call in `raw`. Never raises: a malformed call has `error` set and keeps `raw`.

    closed: True if `<tool_call|>` ended the call. Otherwise the call has an error, and also its arguments if
        they are complete.
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
    """The problem of a malformed tool call."""


def _fail(message: str) -> NoReturn:
    raise _Malformed(message)


class _Token(NamedTuple):
    """A token of a tool call.

    kind: "string", "word", "end", "error" (`text` is the reason), or a mark such as "{" itself.
    after_gap: True if white space comes before it.
    quote: the delimiter of a string, otherwise "".
    """

    kind: str
    text: str
    after_gap: bool = False
    quote: str = ""


class _Reader:
    """A recursive descent parser for text that was split at every `<|"|>`. Odd pieces are strings."""

    def __init__(self, pieces: list[str]) -> None:
        self._tokens = _tokens(pieces)
        self._before = _Token("end", "")
        self._token = next(self._tokens)
        self._following = next(self._tokens, self._token)

    def arguments(self) -> dict[str, Any]:
        if self._token.kind not in "{(":
            self._expected("{ after the name")
        if self._token.kind == "{":
            arguments = self._object(depth=0)
        else:
            self._take("(")
            if self._token.kind == "{":
                arguments = self._object(depth=0)
                self._take(")")
            else:
                arguments = self._pairs(")", depth=0)
        if self._token.kind != "end":
            self._expected("the end of the call")
        return arguments

    def _expected(self, what: str) -> NoReturn:
        token = self._token
        if token.kind == "error":
            _fail(token.text)
        actual = "the end" if token.kind == "end" else repr(token.text[:20])
        _fail(f"expected {what}, found {actual}")

    def _take(self, *kinds: str) -> _Token:
        """Return the current token, which must be one of `kinds`, and move to the next one."""
        if self._token.kind not in kinds:
            self._expected("a comma" if kinds == (",",) else " or ".join(kinds))
        self._before, self._token = self._token, self._following
        self._following = next(self._tokens, self._token)
        return self._before

    def _object(self, depth: int) -> dict[str, Any]:
        self._take("{")
        if self._token.kind != "{":
            return self._pairs("}", depth)
        self._take("{")  # doubled
        result = self._pairs("}", depth)
        self._take("}")
        return result

    def _pairs(self, close: str, depth: int) -> dict[str, Any]:
        """Return the names and values up to `close`, and move past it."""
        result: dict[str, Any] = {}
        while self._token.kind != close:
            name = self._take("word", "string")
            if self._token.kind not in (":", "="):
                self._expected(f": after {name.text[:20]!r}")
            self._take(":", "=")
            if name.text in result:
                _fail(f"{name.text[:20]!r} is given twice")
            result[name.text] = self._value(depth + 1)
            if self._token.kind != close and not self._comma_is_missing():
                self._comma()
        self._take(close)
        return result

    def _comma(self) -> None:
        before, token = self._before, self._token
        if before.quote in ("'", '"') and token.kind in ("word", "string") and not token.after_gap:
            _fail(
                f"{before.quote} before {token.text[:20]!r} may end the string or belong to it "
                f"(a string needs {QUOTE} around it)"
            )
        self._take(",")

    def _comma_is_missing(self) -> bool:
        """Return True if the next name and value follow without a comma, but clearly separated."""
        token = self._token
        is_name = token.kind == "string" or (token.kind == "word" and _BARE_NAME.fullmatch(token.text))
        return bool(self._is_apart() and is_name and self._following.kind in (":", "="))

    def _value_follows(self) -> bool:
        """Return True if a value follows without a comma. A bare word after a quoted string is not one."""
        kinds = ("string", "{", "[") if self._before.quote in ("'", '"') else _VALUES
        return self._is_apart() and self._token.kind in kinds

    def _is_apart(self) -> bool:
        """Return True if white space, a bracket or `<|"|>` separates this token from the value before it."""
        before, token = self._before, self._token
        return token.after_gap or before.kind in ("}", "]") or QUOTE in (before.quote, token.quote)

    def _array(self, depth: int) -> list[Any]:
        result: list[Any] = []
        self._take("[")
        while self._token.kind != "]":
            result.append(self._value(depth + 1))
            if self._token.kind != "]" and not self._value_follows():
                self._comma()
        self._take("]")
        return result

    def _value(self, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            _fail(f"nested deeper than {_MAX_DEPTH} levels")
        if self._token.kind == "{":
            return self._object(depth)
        if self._token.kind == "[":
            return self._array(depth)
        token = self._take(*_VALUES)
        return token.text if token.kind == "string" else _scalar(token.text)


def _scalar(word: str) -> Any:
    """Return the number, bool or None that `word` spells in JSON or Python."""
    if word in _WORDS:
        return _WORDS[word]
    try:
        value = json.loads(word)
    except ValueError:
        _fail(f"{word[:20]!r} is not a number, true, false or null (a string needs {QUOTE} around it)")
    if isinstance(value, float) and not math.isfinite(value):
        _fail(f"{word[:20]!r} is not a finite number")
    return value


def _tokens(pieces: list[str]) -> Iterator[_Token]:
    for index, piece in enumerate(pieces):
        if index % 2:
            if index + 1 == len(pieces):
                yield _Token("error", f"a string is not closed by {QUOTE}")
                return
            yield _Token("string", piece, quote=QUOTE)
            continue
        text, position = piece.rstrip(), 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            assert match is not None  # every character begins a token
            position = match.end()
            after_gap = bool(match["gap"])
            if match["quote"] and not match["close"]:
                yield _Token("error", f"a string is not closed by {match['quote']}")
                return
            if match["quote"]:
                yield _quoted(match["quote"], match["body"], after_gap)
            elif match["mark"]:
                yield _Token(match["mark"], match["mark"], after_gap)
            else:
                yield _Token("word", match["word"], after_gap)
    yield _Token("end", "")


def _quoted(quote: str, body: str, after_gap: bool) -> _Token:
    """Return the token of a string in double or single quotes, with JSON's escapes."""
    text = f"{quote}{body}{quote}"
    if quote == "'":
        body = re.sub(r"""\\(.)|(")""", _as_json, body, flags=re.DOTALL)
    try:
        string = str(json.loads(f'"{body}"', strict=False))
        string.encode()  # rejects half a character such as "\\ud83d", which cannot be printed or sent
    except ValueError:
        return _Token("error", f"{text[:20]!r} is not a valid string: its escapes are not JSON's")
    return _Token("string", string, after_gap, quote)


def _as_json(match: re.Match[str]) -> str:
    if match[2]:
        return '\\"'
    return "'" if match[1] == "'" else match[0]
