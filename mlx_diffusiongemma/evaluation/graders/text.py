"""Strict comparison of an answer's text, and the one lenient rule."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Any

from ..task import Grade, Grader, Reply

LONGEST = 100_000  # characters of an answer that is graded at all
_NORMALIZED = 10_000  # characters; normalization of marks upon marks is quadratic
_FENCE = re.compile(r"(`{3,}|~{3,})[^\n`]*\n(.*?)\n?\1", re.DOTALL)

Judge = Callable[[str], tuple[str, dict[str, Any]]]
"""From the text of an answer to its mistake in a few words, empty if it is right, and details."""


def unfenced(text: str) -> str:
    """Return the content of the code fence that encloses `text`, or `text`, without surrounding space."""
    fence = _FENCE.fullmatch(text.strip())
    return (fence[2] if fence else text).strip()


def bare(text: str) -> str:
    """Return `text` without an enclosing code fence, surrounding space and a closing full stop."""
    return unfenced(text).removesuffix(".").rstrip()


def graded(judge: Judge, *, fence_allowed: bool = False) -> Grader:
    """Return the grader that applies `judge` to the answer.

    Strict: to the answer without surrounding space, and without an enclosing code fence if the task allows
    one. Lenient: also without an enclosing code fence and without a closing full stop.
    """

    def grade(reply: Reply) -> Grade:
        text = unfenced(reply.answer) if fence_allowed else reply.answer.strip()
        if not text or len(text) > LONGEST:
            return Grade(False, False, f"{len(text)} characters" if text else "empty")
        verdicts = {each: judge(each) for each in dict.fromkeys((text, unfenced(text), bare(text)))}
        if not verdicts[text][0]:
            return Grade(True, True, "", verdicts[text][1])
        for reason, details in verdicts.values():
            if not reason:
                return Grade(False, True, "right but for a fence or a full stop", details)
        return Grade(False, False, *verdicts[unfenced(text)])

    return grade


def nfc(text: str) -> str:
    """Return `text` in Unicode's composed form, in which texts are compared."""
    return unicodedata.normalize("NFC", text) if len(text) <= _NORMALIZED else text


def lines(*expected: str) -> Grader:
    """Grade an answer that has to be these lines, up to Unicode normalization."""
    right = [nfc(line) for line in expected]

    def judge(text: str) -> tuple[str, dict[str, Any]]:
        found = nfc(text.replace("\r\n", "\n")).split("\n")
        if len(found) != len(right):
            return f"{len(found)} lines, not {len(right)}", {}
        for at, (line, wanted) in enumerate(zip(found, right, strict=True), 1):
            if line != wanted:
                return f"line {at}: {shortened(line)} is not {shortened(wanted)}", {}
        return "", {}

    return graded(judge)


def shortened(value: Any, limit: int = 60) -> str:
    """Return the repr of `value` for a reason: ASCII, cut in the middle."""
    if isinstance(value, str) and len(value) > 2 * limit:
        value = value[:limit] + value[-limit:]
    try:
        quoted = ascii(value)
    except (ValueError, RecursionError):  # an int of too many digits, a value nested too deeply
        return f"a {type(value).__name__} that is too large to show"
    return quoted if len(quoted) <= limit else f"{quoted[: limit - 16]} ... {quoted[-10:]}"
