"""Messages from a terminal: line editing, history across sessions, completion of commands.

Loads prompt_toolkit, so it is imported only when there is a terminal.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output

from .chat_commands import COMMANDS
from .chat_lines import TypedLines
from .streams import complain

HISTORY = "~/.mlx_dg_history"


class TerminalLines(TypedLines):
    """Messages typed at a terminal. screen: the stream that shows the terminal."""

    def __init__(self, screen: TextIO):
        output = create_output(stdout=screen)
        self._choices: PromptSession[str] = PromptSession(output=output, history=InMemoryHistory())
        self._messages: PromptSession[str] = PromptSession(
            output=output,
            multiline=True,
            prompt_continuation="  ",
            key_bindings=_bindings(),
            history=history(),
            completer=_Commands(),
            # Only for commands: the menu reserves lines on the screen, which a message does not need.
            complete_while_typing=Condition(lambda: get_app().current_buffer.text.startswith("/")),
        )

    def read(self) -> str | None:
        """Return a message or command, or None at the end of the input."""
        return self._asked(self._messages, "> ")

    def choose(self, question: str) -> str | None:
        return self._asked(self._choices, question)

    def _asked(self, session: PromptSession[str], question: str) -> str | None:
        try:
            return session.prompt(question)
        except EOFError:
            return None


def history() -> History:
    """Return the history in the private file `HISTORY`, or one in memory if that cannot be written."""
    path = os.path.expanduser(HISTORY)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError as error:
        complain(f"mlx_dg: warning: {path}: {error.strerror}; this chat's history will not be kept")
        return InMemoryHistory()
    return _FileHistory(path)


class _FileHistory(FileHistory):
    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError, UnicodeEncodeError):  # a full disk; bytes that are not UTF-8
            super().store_string(string)


class _Commands(Completer):
    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        text = document.text
        for name, command in COMMANDS.items():
            if text and f"/{name}".startswith(text):
                yield Completion(f"/{name}", start_position=-len(text), display_meta=command.what)


def _bindings() -> KeyBindings:
    """Return key bindings, the reverse of the defaults: Enter sends, Esc Enter or Alt-Enter begins a line."""
    bindings, typing = KeyBindings(), has_focus(DEFAULT_BUFFER)

    @bindings.add("enter", filter=typing)
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=typing)
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings
