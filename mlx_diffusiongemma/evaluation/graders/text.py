"""Graders of an answer's text, and the strict and the lenient rule that all graders share."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Any

from ..task import Grade, Grader, Reply

LONGEST = 100_000  # characters; a longer answer is wrong
_NORMALIZED = 10_000  # characters; a longer text is not normalized, which may take quadratic time
_FENCE = re.compile(r"(`{3,}|~{3,})[^\n`]*\n(.*?)\n?\1", re.DOTALL)

Judge = Callable[[str], tuple[str, dict[str, Any]]]
"""Maps the text of an answer to its mistake in a few words (empty if it is right), and to details."""


def unfenced(text: str) -> str:
    """Return `text` without surrounding space, and without the code fence that encloses it, if any."""
    fence = _FENCE.fullmatch(text.strip())
    return (fence[2] if fence else text).strip()


def bare(text: str) -> str:
    """Return `text` without an enclosing code fence, surrounding space and a closing full stop."""
    return unfenced(text).removesuffix(".").rstrip()


def graded(judge: Judge, *, fence_allowed: bool = False) -> Grader:
    """Return a grader that applies `judge` to the answer without surrounding space.

    It is strictly right if `judge` accepts it as written, or without its code fence if `fence_allowed`. It is
    leniently right if `judge` accepts it without its code fence and, if needed, its closing full stop.
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
    """Return `text` in Unicode's composed form (NFC) for comparison. Long texts are unchanged."""
    return unicodedata.normalize("NFC", text) if len(text) <= _NORMALIZED else text


def lines(*expected: str) -> Grader:
    """Return a grader of an answer that must be exactly these lines, apart from Unicode normalization."""
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
    """Return the ASCII repr of `value`, cut in the middle to `limit` characters, for a grade's reason."""
    if isinstance(value, str) and len(value) > 2 * limit:
        value = value[:limit] + value[-limit:]
    try:
        quoted = ascii(value)
    except (ValueError, RecursionError):  # an int of too many digits, a value nested too deeply
        return f"a {type(value).__name__} that is too large to show"
    return quoted if len(quoted) <= limit else f"{quoted[: limit - 16]} ... {quoted[-10:]}"
