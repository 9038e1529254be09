"""JSON over HTTP to one server, patient with busy ones; secrets stay out of what it raises."""

from __future__ import annotations

import base64
import json
import os
import urllib.request
from dataclasses import dataclass
from datetime import datetime, timezone
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from time import perf_counter, sleep
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ...errors import EndpointError, InputError
from . import one_line

KEY_VARIABLE = "OPENAI_API_KEY"
_COMPLETIONS = "/chat/completions"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_TIMEOUT = 1800.0  # seconds of silence; a local model may think for long
_TRIES = 3
_BUSY = (429, 502, 503, 504)
_LONGEST_PAUSE = 60.0
_MOST_TOLD = 200  # characters of what a server says


@dataclass(frozen=True)
class Answer:
    """seconds: from the request, of the try that succeeded, to the last byte."""

    status: int
    body: bytes
    seconds: float

    def json(self) -> Any:
        """Its JSON; None when it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


class _AsItComes(urllib.request.HTTPErrorProcessor):
    """Hands out answers of every status, and follows no redirection: the key is for one server only."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response


class Server:
    """url: without `/chat/completions`, and without user, password and query, which are sent but never told.

    A URL without a path means `/v1`. The key is `OPENAI_API_KEY`, if it is set and the URL names no user.
    """

    def __init__(self, given: str) -> None:
        given = given.strip()
        parts, port = None, None
        if given.isascii() and given.isprintable() and " " not in given:
            try:
                parts = urlsplit(given)
                port = parts.port
            except ValueError:
                parts = None
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            found = repr(given[:80]) if not set("@?") & set(given) else "what was given"
            raise InputError(
                f"--endpoint: {found} is not an http or https URL; give one such as http://localhost:8000/v1"
            )
        path = parts.path.rstrip("/")
        path = path.removesuffix(_COMPLETIONS) if path.endswith(_COMPLETIONS) else path or "/v1"
        self.url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}"
        self._query = f"?{parts.query}" if parts.query else ""
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        self._secrets = [parts.query, unquote(parts.query), *(value for _, value in parse_qsl(parts.query))]
        self._authorize(parts.username, parts.password)
        proxies = [urllib.request.ProxyHandler({})] if parts.hostname in _LOOPBACK else []
        self._opener = urllib.request.build_opener(_AsItComes, *proxies)

    def _authorize(self, user: str | None, password: str | None) -> None:
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if user is not None:
            pair = f"{unquote(user)}:{unquote(password or '')}"
            encoded = base64.b64encode(pair.encode()).decode()
            self._headers["Authorization"] = f"Basic {encoded}"
            self._secrets += [pair, encoded, *pair.split(":", 1), user, password or ""]
        elif key:
            if not key.isascii() or not key.isprintable():
                raise InputError(f"{KEY_VARIABLE} has characters that no HTTP header can carry; set it again")
            self._headers["Authorization"] = f"Bearer {key}"
        self._secrets.append(key)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Answer:
        """What it answers to `body`, or to a GET without one; `EndpointError` when it does not."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}{self._query}", data, self._headers)
        for attempt in range(_TRIES):
            pause = 2.0**attempt
            start = perf_counter()
            try:
                with self._opener.open(request, timeout=_TIMEOUT) as response:
                    answer = Answer(response.status, response.read(), perf_counter() - start)
            except TimeoutError:  # it may still be at work on it, so no second try
                raise self.error(f"no answer for {_TIMEOUT / 60:.0f} minutes", "look at its log") from None
            except (OSError, HTTPException, UnicodeError) as error:
                reason = getattr(error, "reason", None) or error
                found = f"cannot be reached ({self.told(reason) or type(error).__name__})"
                remedy = "is it running, and is --endpoint its address?"
            else:
                if answer.status not in _BUSY:
                    return answer
                found, remedy = self._refusal(answer), "try again later"
                pause = _asked_pause(response.headers) or pause
            if attempt < _TRIES - 1:
                sleep(pause)
        raise self.error(f"{found}, {_TRIES} times", remedy)

    def refused(self, answer: Answer) -> EndpointError:
        """The error that an answer with another status than 200 is."""
        if answer.status in (401, 403):
            remedy = f"set {KEY_VARIABLE}"
        elif answer.status in (404, 405):
            remedy = "check --endpoint and --model"
        elif 300 <= answer.status < 400:
            remedy = "give --endpoint the URL that it redirects to"
        else:
            remedy = "look at its log"
        return self.error(self._refusal(answer), remedy)

    def _refusal(self, answer: Answer) -> str:
        said = self.complaint(answer)
        return f"answered HTTP {answer.status}" + (f" ({said})" if said else "")

    def error(self, found: str, remedy: str) -> EndpointError:
        return EndpointError(f"{self.url}: {found}; {remedy}")

    def complaint(self, answer: Answer) -> str:
        """What the server says is wrong, in one line."""
        said = answer.json()
        for key in ("error", "message", "detail"):  # {"error": {"message": ...}}, {"detail": ...} and so on
            if isinstance(said, dict) and said.get(key):
                said = said[key]
        return self.told(answer.body.decode(errors="replace") if said is None else said)

    def told(self, text: object) -> str:
        """A foreign text for a message: one short line, nothing secret in it."""
        line = str(text)
        for secret in sorted(filter(None, self._secrets), key=len, reverse=True):
            line = line.replace(secret, "***")
        line = one_line("".join(c if c.isprintable() else " " for c in line))
        return line if len(line) <= _MOST_TOLD else f"{line[: _MOST_TOLD - 3]}..."


def _asked_pause(headers: Message) -> float | None:
    """Seconds that Retry-After asks for, a minute at most; None when it asks for nothing."""
    asked = headers.get("Retry-After", "")
    try:
        seconds = float(asked)
    except ValueError:
        try:
            when = parsedate_to_datetime(asked)
        except (ValueError, TypeError):
            return None
        seconds = (when.astimezone(timezone.utc) - datetime.now(timezone.utc)).total_seconds()
    return min(max(seconds, 0.0), _LONGEST_PAUSE) if seconds == seconds else None
