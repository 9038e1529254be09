"""Lines of the report, and findings. Nothing in them says whose machine this is."""

from __future__ import annotations

import getpass
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..console.messages import one_line

_MOST_CHARACTERS = 300  # of a text from outside
_PATH = "<path>"
_QUOTED_PATH = re.compile(r"""(?<!\w)(["'`])(?:~|(?:(?!\1).)*?[/\\]).*?\1(?!\w)""")
# From the word that holds a slash to the end, since a directory's name may hold blanks, quotes and commas.
# Only dlopen, which says why MLX cannot be imported, ends a path with what no name holds.
_PATH_AND_THE_REST = re.compile(r"(?<!\S)(?:\S*[/\\]|~).*?(?=, 0x[0-9A-Fa-f]+\)|$)")


@dataclass
class Sheet:
    """Lines of one section in their order, and findings.

    problems: something does not work. notes: it works, but there is something to know.
    """

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def facts(self, facts: Sequence[tuple[str, str]]) -> None:
        """Add names and their values, in two columns."""
        width = max((len(name) for name, _ in facts), default=0)
        self.lines += [f"{name.ljust(width)}  {value}".rstrip() for name, value in facts]


def first_line(error: BaseException) -> str:
    """Return the message of an error as `foreign` text: its first line, and a compiler's first complaint."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    complaint = next((line for line in lines[1:] if "error:" in line), None)
    said = [lines[0]] if complaint is None else [lines[0], complaint]
    return ": ".join([type(error).__name__, *map(foreign, said)])


def foreign(text: str) -> str:
    """Return text from outside the package as one line, without names of users, machines and places.

    It loses rather too much than too little: whatever holds a slash, and what follows it.
    """
    text = " ".join(_PATH_AND_THE_REST.sub(_PATH, _QUOTED_PATH.sub(_PATH, line)) for line in text.split("\n"))
    for name, stand_in in _names():
        text = re.sub(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", stand_in, text, flags=re.IGNORECASE)
    return one_line(text, _MOST_CHARACTERS)


def _names() -> list[tuple[str, str]]:
    """Names that say whose machine this is, the longest first, and what stands for each."""
    names = [(Path.home().name, "<user>")]
    with suppress(Exception):  # no such user: there is no name to hide
        names.append((getpass.getuser(), "<user>"))
    host = socket.gethostname()
    names += [(host, "<host>"), (host.partition(".")[0], "<host>")]
    return sorted(((name, to) for name, to in names if len(name) > 1), key=lambda pair: -len(pair[0]))
