"""What a check writes on: lines of the report, and findings. Nothing on it tells whose machine this is."""

from __future__ import annotations

import getpass
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_MOST_CHARACTERS = 300  # of a line that somebody else wrote
# With a blank in front of it or a quote; "tokens/s" is none, and neither is "1 / 2".
_ABSOLUTE_PATH = re.compile(r"(?<![\w.~/<])(?:~|[A-Za-z]:)?(?:/[^/\s'\"`,:;()]+)+/?")


@dataclass
class Sheet:
    """Lines of one section in their order, and what was found.

    problems: something does not work. notes: it works, but there is something to know.
    """

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def facts(self, facts: Sequence[tuple[str, str]]) -> None:
        """Names and what they are, in two columns."""
        width = max((len(name) for name, _ in facts), default=0)
        self.lines += [f"{name.ljust(width)}  {value}".rstrip() for name, value in facts]


def first_line(error: BaseException) -> str:
    """What an error says, in one line without names of this machine; of a compiler, its first complaint."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    complaint = next((line for line in lines[1:] if "error:" in line), None)
    text = ": ".join([type(error).__name__, lines[0], *([complaint] if complaint else [])])
    return foreign(text)


def foreign(text: str) -> str:
    """Text from outside the package in one printable line, without names of users, machines and places."""
    for name, stand_in in _names():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", stand_in, text)
    text = _ABSOLUTE_PATH.sub(_last_part, text)
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 3] + "..."


def _names() -> list[tuple[str, str]]:
    """What would tell whose machine this is, the longest first, and what stands for it."""
    names = [(str(Path.home()), "~")]
    with suppress(Exception):  # no such user: there is no name to hide
        names.append((getpass.getuser(), "<user>"))
    host = socket.gethostname()
    names += [(host, "<host>"), (host.partition(".")[0], "<host>")]
    return sorted(((name, to) for name, to in names if len(name) > 1), key=lambda pair: -len(pair[0]))


def _last_part(path: re.Match[str]) -> str:
    return ".../" + path[0].rstrip("/").rpartition("/")[2]
