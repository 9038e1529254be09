"""Standard input, output and error: closed streams, invalid bytes, closed pipes."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from mlx_diffusiongemma.console.messages import one_line, say
from mlx_diffusiongemma.errors import InputError

MOST_INPUT = 50_000_000  # bytes of one prompt; the context holds about 1 MB of text


def fill_closed_streams() -> None:
    """Open /dev/null for closed standard streams. Otherwise weights may get file number 0, and MLX fails."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one


def read_prompt(prompt: str) -> str:
    """Return the PROMPT argument, or standard input without trailing newlines for "-"."""
    if prompt != "-":
        return checked_utf8(prompt, "PROMPT")
    raw = sys.stdin.buffer.read(MOST_INPUT + 1) if sys.stdin is not None else b""
    return decoded(raw)


def decoded(raw: bytes) -> str:
    """Return bytes of standard input as text without trailing newlines."""
    if len(raw) > MOST_INPUT:
        raise InputError(f"standard input: more than {MOST_INPUT // 10**6} MB in one prompt; give less")
    try:
        return raw.decode("utf-8").removeprefix("\ufeff").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"standard input is not UTF-8 (byte 0x{raw[error.start]:02x} at offset {error.start} of "
            f"{len(raw)}); convert it, for example with iconv"
        ) from None


def checked_utf8(text: str | None, name: str) -> Any:
    """Return `text`. Raise `InputError` if the shell passed invalid UTF-8 (surrogates in Python)."""
    try:
        (text or "").encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is not UTF-8 (character {error.start}); convert it first") from None
    return text


def complain(line: str) -> None:
    """Write a text to stderr as one printable line."""
    say(one_line(line))


def discard_stdout() -> None:
    """Drop buffered output. Otherwise the interpreter prints an error when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # stdout is closed or not a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def flush_outputs() -> None:
    """Write buffered output, as the interpreter does at exit."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed or not a file
            stream.flush()
