"""Sources of the lines of a conversation: a terminal, or a pipe."""

from __future__ import annotations

import sys
import termios
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from .streams import MOST_INPUT, decoded


class Lines(Protocol):
    """Source of lines. `read` returns a message or command, `choose` the answer to a question.

    Both return None at the end of the input.
    """

    def read(self) -> str | None: ...

    def choose(self, question: str) -> str | None: ...

    def silent(self) -> AbstractContextManager[None]:
        """Hide what is typed while the context is open."""
        ...


class TypedLines:
    """Lines typed at a terminal. Ctrl-C raises `KeyboardInterrupt`."""

    def read(self) -> str | None:
        return self.choose("> ")

    def choose(self, question: str) -> str | None:
        try:
            return input(question)
        except EOFError:
            return None

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Do not show what is typed while the context is open. It is read afterwards."""
        number = sys.stdin.fileno()
        before = termios.tcgetattr(number)
        without_echo = [*before]
        without_echo[3] &= ~termios.ECHO
        termios.tcsetattr(number, termios.TCSANOW, without_echo)
        try:
            yield
        finally:
            termios.tcsetattr(number, termios.TCSANOW, before)


class PipedLines:
    """Standard input, line by line. Raises `InputError` for a line that is not UTF-8."""

    def __init__(self) -> None:
        self._ahead: str | None = None  # a line that `choose` read, but that is not a number

    def read(self) -> str | None:
        if self._ahead is not None:
            line, self._ahead = self._ahead, None
            return line
        raw = sys.stdin.buffer.readline(MOST_INPUT + 1) if sys.stdin is not None else b""
        return decoded(raw) if raw else None

    def choose(self, question: str) -> str | None:
        line = self.read()
        if line is None or line.strip().isdigit():
            return line
        self._ahead = line
        return ""

    def silent(self) -> AbstractContextManager[None]:
        return nullcontext()
