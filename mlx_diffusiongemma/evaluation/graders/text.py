"""Text as graders see it: code fences, lines, what a reader takes as the one answer, quotes for a reason.

Everything here runs in time linear in its text and raises nothing, whatever the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from mlx_diffusiongemma.evaluation.task import Grade, Grader, Reply

LENIENT_LIMIT = 100_000  # characters of a reply that are searched for a wrapped answer
_NORMALIZED = 10_000  # characters; normalization of marks on marks takes the square of its time
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})([^`]*)")
_MARKER = re.compile(
    r"(?:[-*•+]\s+)?[*_]{0,3}(?:\(?(?:[0-9]{1,2}|[a-z])[.)]|step [0-9]{1,2}[.):])[*_]{0,3}\s+|[-*•+]\s+",
    re.IGNORECASE,
)
_EMPHASIS = " \t*_"
_QUOTES = _EMPHASIS + "`\"'„”“"
_DOUBT = re.compile(
    r"[≈~<>≤≥≠?]|!=|n['’]t\b"
    r"|\b(?:not|no|nor|none|nobody|neither|never|cannot|without|except\w*|exclud\w*|apart|unless|instead|rather"
    r"|wrong|incorrect|false|mistake\w*|error|untrue|unlike|than|about|around|almost|nearly|roughly|approx\w*"
    r"|ca|circa|close to|some|least|most|or (?:so|more|less|fewer)|maybe|perhaps|probably|possibly|likely"
    r"|might|could|would|if|guess|unsure|unclear|unknown|uncertain|but|however|although|actually|wait|sorry)\b",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"(?:the |my )?(?:final |correct )?(?:answer|result|output)\b(?: is)?\s*[:=]?\s*", re.IGNORECASE
)


def _fenced(lines: list[str]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    mark, start = "", 0
    for at, line in enumerate(lines):
        fence = _FENCE.fullmatch(line.rstrip())
        if not fence:
            continue
        if not mark:
            mark, start = fence[1], at
        elif fence[1].startswith(mark) and not fence[2].strip():
            found.append((start, at))
            mark = ""
    return found


def fences(text: str) -> list[str]:
    """What stands in each complete code fence, in order. A fence that is never closed is none."""
    lines = text.split("\n")
    return ["\n".join(lines[start + 1 : end]) for start, end in _fenced(lines)]


def unfenced(text: str) -> str:
    """The content of the only code fence; the text itself where there is none, or more than one. Stripped."""
    found = fences(text)
    return (found[0] if len(found) == 1 else text).strip()


def is_fence(text: str) -> bool:
    """Whether the text is one complete code fence and nothing else."""
    lines = text.strip().split("\n")
    return _fenced(lines) == [(0, len(lines) - 1)]


def nfc(text: str) -> str:
    """The text in the form in which texts are compared: one code point for é, however it was written."""
    return unicodedata.normalize("NFC", text) if len(text) <= _NORMALIZED else text


def plain(line: str) -> str:
    """A line without list marker, "The answer is:", emphasis, quotes and final full stop."""
    line = line.strip()
    marker = _MARKER.match(line)
    return bare(line[marker.end() :] if marker else line)


def unmarked(line: str) -> str:
    """A plain line without bold marks inside."""
    return plain(line).replace("**", "")


def bare(text: str) -> str:
    """A text without "The answer is:", emphasis, quotes and final full stop."""
    text = text.strip(_EMPHASIS)
    label = _LABEL.match(text)
    return text[label.end() if label else 0 :].strip(_QUOTES).removesuffix(".").strip(_QUOTES)


def shortened(value: Any, limit: int = 60) -> str:
    """A value for a reason: its repr without characters that do not print, cut in the middle."""
    try:
        quoted = ascii(
            value[:limit] + value[-limit:] if isinstance(value, str) and len(value) > 2 * limit else value
        )
    except (ValueError, RecursionError):  # an int of too many digits, a value nested too deeply
        return f"a {type(value).__name__} that is too large to show"
    return quoted if len(quoted) <= limit else f"{quoted[: limit - 16]} ... {quoted[-10:]}"


def unusable(text: str) -> str:
    """Why a text cannot hold an answer at all; empty when it may."""
    if not text:
        return "empty"
    return f"{len(text)} characters" if len(text) > LENIENT_LIMIT else ""


def doubtful(text: str) -> bool:
    """Whether words around an answer may deny, hedge or change it: no reading of it is safe."""
    return bool(_DOUBT.search(text))


def lines(expected: Sequence[str]) -> Grader:
    """The answer is these lines, up to Unicode normalization. Lenient: with empty lines, list markers,
    emphasis, quotes, or without full stops; in the only fence; after a line that ends in a colon."""
    right = list(map(nfc, expected))
    content = [unmarked(line) for line in right]

    def grade(reply: Reply) -> Grade:
        text = reply.answer.strip()
        if reason := unusable(text):
            return Grade(False, False, reason)
        text = nfc(text.replace("\r\n", "\n"))
        if text.split("\n") == right:
            return Grade(True, True)
        found = [line for line in map(unmarked, unfenced(text).split("\n")) if line]
        if len(found) == len(right) + 1 and found[0].endswith(":"):
            found = found[1:]
        if found == content:
            return Grade(False, True, "more than the lines")
        if len(found) != len(right):
            return Grade(False, False, f"{len(found)} lines, not {len(right)}")
        at = next(at for at, line in enumerate(content) if line != found[at])
        return Grade(False, False, f"line {at + 1}: {shortened(found[at])} is not {shortened(right[at])}")

    return grade


def choice(expected: str, choices: Sequence[str]) -> Grader:
    """The answer is one of several words. Lenient: in a sentence that names no other and denies nothing."""
    named = re.compile(rf"\b(?:{'|'.join(map(re.escape, map(nfc, choices)))})\b", re.IGNORECASE)

    def grade(reply: Reply) -> Grade:
        text = nfc(reply.answer.strip())
        if text == nfc(expected):
            return Grade(True, True)
        if reason := unusable(text):
            return Grade(False, False, reason)
        found = {word.casefold() for word in named.findall(text)}
        if found == {nfc(expected).casefold()} and not doubtful(text):
            return Grade(False, True, "more than the word")
        return Grade(False, False, f"{shortened(text)} is not {shortened(expected)}")

    return grade
