"""Helpers for messages: untrusted text as one printable line, and counted nouns."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click

# Control characters and those that change the direction of text -> a visible sign, one cell wide.
CONTROLS = {code: 0x2400 + code for code in range(0x20)} | {0x7F: 0x2421}
CONTROLS |= dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)
# The same table without newline and tab, for text of several lines.
CONTROLS_OF_LINES = {code: sign for code, sign in CONTROLS.items() if chr(code) not in "\n\t"}


def one_line(text: object, most: int | None = None, *, keep_end: bool = False) -> str:
    """Return a text as one printable line. Characters that are not printable become escapes.

    Args:
        text: a text, or an exception. An exception without a message gives the name of its type.
        most: maximum number of characters. Three dots mark the cut.
        keep_end: cut the beginning instead of the end.
    """
    words = " ".join(str(text).split())
    line = "".join(each if each.isprintable() else repr(each)[1:-1] for each in words)
    if not line and isinstance(text, BaseException):
        return type(text).__name__
    if most is None or len(line) <= most:
        return line
    return f"...{line[3 - most :]}" if keep_end else f"{line[: most - 3]}..."


def printable(text: str) -> str:
    """Return a text of several lines with visible signs for control characters except newline and tab."""
    return text.translate(CONTROLS_OF_LINES)


def say(text: object = "", **style: Any) -> None:
    """Write a text to stderr, with visible signs for control characters. Ignore errors such as a full disk.

    style: arguments of `click.style`, such as dim=True.
    """
    with suppress(OSError):
        click.secho(printable(str(text)), err=True, **style)


def shown(value: object) -> str:
    """Return `repr(value)` as a short line, for "found ..." in a message."""
    return one_line(repr(value), 50)


def count(number: int, noun: str) -> str:
    """Return a number with its noun, such as "1 block" or "2 blocks"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
