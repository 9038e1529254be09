"""Words of messages: text from outside the package on one printable line, and numbers of things."""

from __future__ import annotations

# Control characters and those that turn text around -> what stands for each in a view, one cell wide.
CONTROLS = {code: 0x2400 + code for code in range(0x20)} | {0x7F: 0x2421}
CONTROLS |= dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)
# The same for text of several lines.
CONTROLS_OF_LINES = {code: sign for code, sign in CONTROLS.items() if chr(code) not in "\n\t"}


def one_line(text: object, most: int | None = None, *, keep_end: bool = False) -> str:
    """Return a text, or the message of an exception, as one line, with escapes for what is not printable.

    Args:
        text: an exception without a message gives the name of its type.
        most: characters of the line; a longer one is cut, which three dots show.
        keep_end: cut the beginning instead of the end.
    """
    words = " ".join(str(text).split())
    line = "".join(each if each.isprintable() else repr(each)[1:-1] for each in words)
    if not line and isinstance(text, BaseException):
        return type(text).__name__
    if most is None or len(line) <= most:
        return line
    return f"...{line[3 - most :]}" if keep_end else f"{line[: most - 3]}..."


def shown(value: object) -> str:
    """Return Python's spelling of `value`, cut to a few words, for "found ..." in a message."""
    return one_line(repr(value), 50)


def count(number: int, noun: str) -> str:
    """Return "1 block", "2 blocks"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
