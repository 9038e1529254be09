"""A short text that a regular expression matches, for a search that knows only what may come next.

The literals of a pattern are not enough: without a whole text, the search does not find an end of
`[^@]+@[^@]+\\.[a-z]{2,}`.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

from .patterns import python_pattern

_MOST = 4096  # characters
_LONGEST = 20_000  # characters of a pattern
_CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " \n\té"
# An option of the whole pattern, the beginning of an assertion or of a group, a repetition, or an atom.
_PARTS = re.compile(
    r"(?P<option>\(\?[a-zA-Z]+\))|(?P<assertion>\(\?<?[=!])|(?P<group>\((?:\?(?:P?<\w+>|[a-zA-Z-]*:|>))?)"
    r"|(?P<repetition>(?:[*+?]|\{(?=[\d,])(?P<least>\d*)(?:,\d*)?\})[?+]?)"
    r"|(?P<atom>\\(?:x..|u.{4}|U.{8}|.)|\[\^?\]?(?:\\.|[^\]\\])*\]|.)",
    re.DOTALL,
)


@dataclass
class _Group:
    """Texts of an open group: of the parts of its current alternative, and the shortest of those before."""

    parts: list[str]
    shortest: str | None = None
    is_assertion: bool = False

    def text(self) -> str:
        """The shortest alternative. Raises OverflowError before it gets long: repetitions multiply."""
        if sum(map(len, self.parts)) > _MOST:
            raise OverflowError("no short text matches")
        text = "".join(self.parts)
        return text if self.shortest is None else min(self.shortest, text, key=len)


def example(pattern: str) -> str | None:
    """Return a short text that `pattern` matches; None if Python cannot read it or if no short text matches.

    Assertions are ignored, so callers must check that the text matches.
    """
    readable = python_pattern(pattern) if len(pattern) <= _LONGEST else None
    if readable is None:
        return None
    try:
        re.compile(readable)  # only what is a pattern is taken apart
        return _text(readable)
    except (re.error, RecursionError, OverflowError, ValueError):
        return None


def _text(pattern: str) -> str:
    groups = [_Group([])]
    for part in _PARTS.finditer(pattern):
        group, atom = groups[-1], part["atom"]
        if part["assertion"] or part["group"]:
            groups.append(_Group([], is_assertion=part["assertion"] is not None))
        elif part["repetition"]:
            text, least = group.parts.pop(), int(part["least"] or part[0].startswith("+"))
            if len(text) * least > _MOST:
                raise OverflowError("no short text matches")
            group.parts.append(text * least if text else "")
        elif atom == "|":
            groups[-1] = _Group([], group.text(), group.is_assertion)
        elif atom == ")":
            groups.pop()
            groups[-1].parts.append("" if group.is_assertion else group.text())
        elif atom:
            group.parts.append(_character(atom))
    return groups[0].text()


def _character(atom: str) -> str:
    """A character that an escape, a class or a character of a pattern stands for; "" for an assertion."""
    if atom in ("^", "$", r"\b", r"\B", r"\A", r"\Z"):
        return ""
    if len(atom) == 1 and atom != ".":
        return atom
    spelled = [chr(int(code, 16)) for code in re.findall(r"\\[xuU]([0-9a-fA-F]+)", atom)]
    matches = re.compile(atom, re.DOTALL).fullmatch
    found = next(filter(matches, (*_CHARACTERS, *atom, *spelled)), None)
    if found is None:
        raise ValueError("no usual character matches")
    return found
