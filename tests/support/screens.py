"""A terminal for tests of displays. It is pyte's, changed to treat its last column as xterm does."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import pyte
import pytest
from wcwidth import wcwidth


class StrictScreen(pyte.Screen):
    """A screen that keeps the lines that scroll away, and treats the last column as xterm does.

    After a character in the last column, the cursor waits there to wrap. In xterm, moving the cursor or
    erasing ends this wait, but saving and restoring the cursor keeps it. pyte does the opposite. A wide
    character that does not fit begins the next line. A character without width joins the character before it.
    """

    def __init__(self, columns: int, lines: int):
        self.gone: list[str] = []
        super().__init__(columns, lines)

    def draw(self, data: str) -> None:
        for character in data:
            if wcwidth(character) == 0 and self.cursor.x == self.columns:
                cell = self.buffer[self.cursor.y][self.columns - 1]
                self.buffer[self.cursor.y][self.columns - 1] = cell._replace(data=cell.data + character)
                continue
            does_fit = wcwidth(character) < 2 or self.cursor.x != self.columns - 1
            if not does_fit and pyte.modes.DECAWM in self.mode:
                self.cursor.x = self.columns
            super().draw(character)

    def _settle(self) -> None:
        self.cursor.x = min(self.cursor.x, self.columns - 1)

    def index(self) -> None:
        self._settle()
        if self.cursor.y == self.lines - 1:
            self.gone.append(self.display[0])
        super().index()

    def cursor_up(self, count: int | None = None) -> None:
        self._settle()
        super().cursor_up(count)

    def erase_in_line(self, how: int = 0, private: bool = False) -> None:
        self._settle()
        super().erase_in_line(how, private)

    def erase_in_display(self, how: int = 0, *args: Any, **kwargs: Any) -> None:
        self._settle()
        super().erase_in_display(how, *args, **kwargs)

    def restore_cursor(self) -> None:
        x = self.savepoints[-1].cursor.x
        super().restore_cursor()
        self.cursor.x = x

    def everything(self) -> list[str]:
        """Return all lines, including those that scrolled away, without blank lines at the end."""
        return "\n".join(line.rstrip() for line in [*self.gone, *self.display]).rstrip("\n").split("\n")

    def below(self) -> list[str]:
        return [line.rstrip() for line in self.display[self.cursor.y + 1 :]]


class Terminal:
    """A stream that writes to a screen and keeps the text of each write."""

    encoding = "utf-8"

    def __init__(self, columns: int, lines: int):
        self.screen = StrictScreen(columns, lines)
        self.writes: list[str] = []
        self._stream = pyte.Stream(self.screen)

    def write(self, text: str) -> int:
        if not isinstance(text, str):  # click tries if the stream takes bytes
            raise TypeError
        self.writes.append(text)
        self._stream.feed(text.replace("\n", "\r\n"))
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 0


class Attached:
    """A context in which stdout and stderr are a terminal."""

    def __init__(self, columns: int = 20, lines: int = 8):
        self.terminal = Terminal(columns, lines)
        self.screen = self.terminal.screen

    def __enter__(self) -> Attached:
        self._patch = pytest.MonkeyPatch()
        self._patch.setenv("TERM", "xterm-256color")
        self._patch.setattr(sys, "stdout", self.terminal)
        self._patch.setattr(sys, "stderr", self.terminal)
        self._patch.setattr(os, "get_terminal_size", lambda _: os.terminal_size(self._size))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    @property
    def _size(self) -> tuple[int, int]:
        return self.screen.columns, self.screen.lines


def on_terminal(test: Callable[..., None]) -> Callable[..., None]:
    """Pass a terminal to `test`. A fixture cannot, because pytest's standard streams differ in its setup."""

    @functools.wraps(test)
    def wrapped(**arguments: Any) -> None:
        with Attached() as attached:
            test(attached, **arguments)

    parameters = list(inspect.signature(test).parameters.values())[1:]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return wrapped
