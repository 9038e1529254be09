"""Numbers in a reply: exact, never floating point.

Lenient reads 12,345 and 12 345 as one number, and 1/2, 2/4, 0.5, .5, 50 %, ½ and \\frac{1}{2} as one value.
It takes for a reply's number, when no word or sign may deny, hedge or scale it:

- the only value that the reply has, once or more often;
- a line that is the number alone, or "Answer: 12 cents": the last one, or the first of a reply that goes on
  with "Check:" or "Verification:" and has the number there, too;
- what its last line gives, or ends with after "=", behind lines of working: those with "=" or a colon at
  the end, or without digits.

A reply with two such lines of different numbers has none, unless the last one is the "final" answer.
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
    # x - 5 and x-5 subtract, which is not for here to do; "is -5" has a sign
    r"(?P<sign>(?<![\w)])(?:[-−–+]|(?<![\w)] )[-−–+] ))?"
    rf"(?P<over>(?:[0-9]{{1,3}}(?:{_SEPARATOR}[0-9]{{3}})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
    r"|\.[0-9]+)(?: ?/ ?(?P<under>[0-9]+))?(?P<percent> ?%)?"
)
_PART_BEFORE = re.compile(r"[^\W\d]\Z|[./^]\Z|[-−–+] ?\Z")  # x5, 2^5, 1/2/3, 1.2.3, x - 5
_PART_AFTER = re.compile(r"[^\W\d]|[/^+]|[.,][0-9]|-[^\W\d]")  # 5k, 3e8, 5+, 5-fold
_CHANGED = re.compile(
    r"[$€£‰°±√]|\b(?:half(?! *(?:[.,;:!]|\Z))|and a half|halve\w*|thirds?|quarters?|tenths?|hundredths?|dozen"
    r"|hundred|thousand|[mb]illion|[km]|bn|percent|per cent|dollars?|euros?|pounds?|eleven|twelve"
    r"|(?:thir|four|fif|six|seven|eigh|nine)teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|twice|thrice"
    r"|doubled?|tripled?|times|minus|plus|negative|point|squared|cubed|root|up to|under|over|below|above"
    r"|between|maximum|minimum|max|min)\b",
    re.IGNORECASE,
)
_PRODUCT = re.compile("[×÷·]")
_FRACTION = re.compile(r"\\[dt]?frac(?:\{([0-9]{1,100})\}\{([0-9]{1,100})\}|([0-9])([0-9]))")
_MATH = re.compile(r"\$([^$\n]*)\$")
_COMMAND = re.compile(
    r"\\(?:(?:boxed|text|textbf|mathbf|mathrm|left|right|displaystyle|q?quad|therefore|implies)\b"
    r"|[\[\](),;: ])"
)
_STATED = re.compile(r"\W*(?:the |my )?(?P<final>final )?(?:correct )?answer\b", re.IGNORECASE)
_CHECK = re.compile(r"\W*(?:to )?(?:check|verif|proof|explanation|reasoning|working)", re.IGNORECASE)


def _spelled(text: str) -> str:
    """The text with fractions as a/b and percent signs bare, without math marks and emphasis. ValueError: it
    has TeX that may mean anything, such as \\ne."""
    text = text.replace("½", " 1/2").replace("⁄", "/").replace("{,}", ",").replace(r"\%", "%")
    text = _MATH.sub(r"\1", _FRACTION.sub(r"\1\3/\2\4", text)).replace(r"\times", "×").replace(r"\cdot", "·")
    text = _COMMAND.sub(" ", text)
    if "\\" in text:
        raise ValueError(f"{shortened(text)} is not a number alone")
    return re.sub(r"[*_`{}()\[\]]", " ", text)


def _value(number: re.Match[str]) -> Fraction:
    """ValueError: nothing that a reader would take for a number of its own."""
    start, end = number.span()
    before, after = number.string[max(start - 2, 0) : start], number.string[end : end + 2]
    if _PART_BEFORE.search(before) or _PART_AFTER.match(after) or len(number[0]) > _MAX_CHARACTERS:
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


def _single(text: str) -> Fraction:
    """The one value in a text that neither doubts nor changes it. ValueError: there is none, or several."""
    spelled = _spelled(text)
    foreign = any(mark.isnumeric() and not mark.isascii() for mark in spelled)
    if doubtful(spelled) or _CHANGED.search(spelled) or _PRODUCT.search(spelled) or foreign:
        raise ValueError(f"{shortened(text)} is not a number alone")
    values = {_value(number) for number in _NUMBER.finditer(spelled)}
    if len(values) != 1:
        raise ValueError(f"{len(values)} numbers in {shortened(text)}" if values else "no number")
    return values.pop()


def _claim(line: str) -> Fraction | None:
    """The number that a line gives as the answer, with nothing around it that could be working."""
    for reading in (only, _single) if _STATED.match(line) else (only,):
        with suppress(ValueError):
            return reading(line)
    return None


def _working(line: str) -> bool:
    """Whether a line may stand before or behind the answer without giving another one."""
    line = plain(line)
    return not re.search("[0-9]", line) or (
        ("=" in line or line.endswith(":")) and not re.search(r"\banswer\b", line, re.IGNORECASE)
    )


def _concluded(line: str) -> Fraction:
    """What a last line behind lines of working comes to. ValueError: nothing certain."""
    if _CHECK.match(line) or doubtful(line) or _CHANGED.search(_spelled(line)):
        raise ValueError(f"{shortened(line)} is not the answer")
    with suppress(ValueError):
        return _single(line)
    return only(_spelled(line).rpartition("=")[2])


def _agrees(lines: list[str], value: Fraction) -> bool:
    """Whether what follows an answer is its check."""
    mentioned = re.search(rf"\b{abs(value)}\b", "\n".join(lines))
    certain = not doubtful("\n".join(lines)) and all(map(_working, lines))
    return bool(_CHECK.match(lines[0]) and mentioned and certain)


def said(text: str) -> Fraction:
    """The one value that a text gives (see above). ValueError, in a few words: it gives none, or several."""
    if len(text) > LENIENT_LIMIT:
        raise ValueError(f"{len(text)} characters")
    text = unfenced(text) if is_fence(text) else text.strip()
    try:
        return _single(text)
    except ValueError as error:
        problem = error
    lines = [line for line in text.split("\n") if line.strip()]
    claims = list(map(_claim, lines))
    last, given = claims[-1] if claims else None, set(claims) - {None}
    if last is not None:
        final, before = _STATED.match(lines[-1]), "".join(lines[-2:-1]).rstrip()
        denied = doubtful(before) and before[-1] not in ".:!"  # it is not / 12
        if not denied and (len(given) == 1 or (final and final["final"])):
            return last
    elif given:
        if claims[0] is not None and _agrees(lines[1:], claims[0]):
            return claims[0]
    elif all(map(_working, lines[:-1])) and lines:
        with suppress(ValueError):
            return _concluded(lines[-1])
    raise problem


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
    """The answer is integers, one on each line. Lenient: with separators and marks, after "=" or ":"; without
    a first line that ends in a colon, and lines without digits."""

    def grade(reply: Reply) -> Grade:
        text = reply.answer.strip()
        if text.replace("\r\n", "\n").split("\n") == list(map(str, expected)):
            return Grade(True, True)
        if reason := unusable(text):
            return Grade(False, False, reason)
        if doubtful(text):
            return Grade(False, False, f"{shortened(text)} may deny or hedge")
        first, _, others = unfenced(text).partition("\n")
        found = [*([] if plain(first).endswith(":") else [first]), *others.split("\n")]
        found = [line for line in found if re.search("[0-9]", line)]
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
