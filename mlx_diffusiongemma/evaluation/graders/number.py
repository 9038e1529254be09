"""Numbers in a reply: exact, never floating point.

Lenient reads 12,345 and 12 345 as one number, and 1/2, 2/4, 0.5, .5, 50 %, ½ and \\frac{1}{2} as one value.
It takes a text for its number when that has only one value, once or more often, and no word that may deny,
hedge or scale it; or when the text's last line is the number alone, or ends with it after "=".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction

from mlx_diffusiongemma.evaluation.graders.text import (
    LENIENT_LIMIT,
    bare,
    doubtful,
    is_fence,
    plain,
    shortened,
    unfenced,
    unusable,
)
from mlx_diffusiongemma.evaluation.task import Grade, Grader, Reply

_MAX_CHARACTERS = 200  # of one number: below Python's limit for integers
_SEPARATOR = "[,\u00a0\u2009\u202f '’]"
_NUMBER = re.compile(
    rf"(?P<sign>[-−–+] ?)?(?P<over>(?:[0-9]{{1,3}}(?:{_SEPARATOR}[0-9]{{3}})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
    r"|\.[0-9]+)(?: ?/ ?(?P<under>[0-9]+))?(?P<percent> ?%)?"
)
_PART_BEFORE = re.compile(r"[^\W\d]|[./^]")  # x5, 2^5, 1/2/3, 1.2.3
_PART_AFTER = re.compile(r"[^\W\d]|[/^]|[.,][0-9]")  # 5k, 3e8
_SCALE = re.compile(
    r"[$€£‰°]|\b(?:thirds?|quarters?|dozen|hundred|thousand|million|billion|percent|per cent|dollars?|euros?"
    r"|pounds?|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty)"
    r"\b",
    re.IGNORECASE,
)
_FRACTION = re.compile(r"\\[dt]?frac\{([0-9]{1,100})\}\{([0-9]{1,100})\}")
_MATH = re.compile(r"\$([^$\n]*)\$")


def _spelled(text: str) -> str:
    """The text with fractions as a/b and percent signs bare, without math marks and emphasis."""
    text = _MATH.sub(r"\1", _FRACTION.sub(r"\1/\2", text.replace("½", " 1/2").replace("⁄", "/")))
    return re.sub(r"[*_`{}()\[\]]|\\boxed", " ", text.replace(r"\%", "%")).replace("\\", " ")


def _value(number: re.Match[str]) -> Fraction:
    """ValueError: nothing that a reader would take for a number of its own."""
    start, end = number.span()
    before, after = number.string[max(start - 1, 0) : start], number.string[end : end + 2]
    if _PART_BEFORE.match(before) or _PART_AFTER.match(after) or len(number[0]) > _MAX_CHARACTERS:
        raise ValueError(f"{shortened(number[0])} is no number of its own")
    value = Fraction(re.sub(_SEPARATOR, "", number["over"]))
    if number["sign"] and number["sign"][0] != "+":
        value = -value
    under = int(number["under"] or 1) * (100 if number["percent"] else 1)
    if not under:
        raise ValueError("division by 0")
    return value / under


def only(text: str) -> Fraction:
    """The number that a text is, but for marks around it. ValueError: it is something else, or more."""
    number = _NUMBER.fullmatch(_spelled(bare(text)).strip())
    if number is None:
        raise ValueError(f"{shortened(text)} is not a number alone")
    return _value(number)


def said(text: str) -> Fraction:
    """The one value that a text gives (see above). ValueError, in a few words: it gives none, or several."""
    if len(text) > LENIENT_LIMIT:
        raise ValueError(f"{len(text)} characters")
    text = unfenced(text) if is_fence(text) else text.strip()
    last = text.rpartition("\n")[2]
    for end in (last, "" if doubtful(last) else last.rpartition("=")[2]):
        with suppress(ValueError):
            return only(end)
    spelled = _spelled(text)
    foreign = any(mark.isnumeric() and not mark.isascii() for mark in spelled)
    if doubtful(spelled) or _SCALE.search(spelled) or foreign:
        raise ValueError(f"{shortened(text)} is not a number alone")
    values = {_value(number) for number in _NUMBER.finditer(spelled)}
    if len(values) != 1:
        raise ValueError(f"{len(values)} numbers in {shortened(text)}" if values else "no number")
    return values.pop()


def number(expected: int | Fraction) -> Grader:
    """The answer is a number: digits alone, or a fraction in lowest terms such as 3/7. Lenient: see above."""

    def grade(reply: Reply) -> Grade:
        text = reply.answer.strip()
        if text == str(expected):
            return Grade(True, True)
        if not text:
            return Grade(False, False, "empty")
        try:
            value = said(text)
        except ValueError as error:
            return Grade(False, False, str(error))
        if value != expected:
            return Grade(False, False, f"{shortened(text)} is not {expected}")
        return Grade(False, True, "more than the number, or another notation")

    return grade


def numbers(expected: Sequence[int]) -> Grader:
    """The answer is integers, one on each line. Lenient: with separators and marks, after "=" or ":"; lines
    without digits are passed over."""

    def grade(reply: Reply) -> Grade:
        text = reply.answer.strip()
        if text.replace("\r\n", "\n").split("\n") == list(map(str, expected)):
            return Grade(True, True)
        if reason := unusable(text):
            return Grade(False, False, reason)
        found = [line for line in unfenced(text).split("\n") if re.search("[0-9]", line)]
        if len(found) != len(expected):
            return Grade(False, False, f"{len(found)} lines with numbers, not {len(expected)}")
        for at, (line, right) in enumerate(zip(found, expected, strict=True)):
            try:
                value = only(re.split("[=:]", plain(line))[-1])
            except ValueError as error:
                return Grade(False, False, f"line {at + 1}: {error}")
            if value != right:
                return Grade(False, False, f"line {at + 1}: {shortened(line)} is not {right}")
        return Grade(False, True, "more than the numbers")

    return grade
