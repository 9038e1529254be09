"""Checks of regular expressions, a translation for the grammar compiler, and texts that match them."""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from dataclasses import dataclass

_LOOK_AROUND = re.compile(r"(?<!\\)(?:\\\\)*\(\?<?[=!]")

# A control character that JSON writes as a code point. Patterns may have the range of all control characters.
_CONTROL_RANGE = re.compile(r"\\x00-\\x1[fF]|\\u0000-\\u001[fF]")
_CONTROL = re.compile(
    r"[\x00-\x07\x0b\x0e-\x1f\x7f]|(?<!\\)(?:\\\\)*\\"
    r"(?:[av]|(?:x|u00)(?:0[0-8bBeEfF]|1|7[fF])|[xu]\{0*(?:1?[0-9a-fA-F]|7[fF])\})"
)

# An escape, a class of characters, or a character. A bracket that would close an empty class is a member of
# it. A class that is not closed reaches to the end.
_ECMASCRIPT_PARTS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\]|\\\Z)*(?:\]|\Z)|.", re.DOTALL)
_OPERATORS = frozenset("[]&~-")

_MOST = 4096  # characters of an example
_LONGEST = 20_000  # characters of a pattern
_CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " \n\té"
# An option of the whole pattern, the beginning of an assertion or of a group, a repetition, or an atom.
_PARTS = re.compile(
    r"(?P<option>\(\?[a-zA-Z]+\))|(?P<group>\((?:\?(?:P?<\w+>|[a-zA-Z-]*:|>))?)"
    r"|(?P<repetition>(?:[*+?]|\{(?=[\d,])(?P<least>\d*)(?:,\d*)?\})[?+]?)"
    r"|(?P<atom>\\(?:x..|u.{4}|U.{8}|[pP]\{\w+\}|.)|\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\]|.)",
    re.DOTALL,
)


def has_look_around(pattern: str) -> bool:
    """Return True for a pattern with look-ahead or look-behind, which no grammar can follow."""
    return _LOOK_AROUND.search(pattern) is not None


def has_control(pattern: str) -> bool:
    """Return True for a pattern with a control character that has no short escape in JSON."""
    return _CONTROL.search(_CONTROL_RANGE.sub("", pattern)) is not None


def ends_in_escape(pattern: str) -> bool:
    """Return True if the last backslash of a pattern escapes nothing. The compiler would drop it."""
    return (len(pattern) - len(pattern.rstrip("\\"))) % 2 == 1


def rust_pattern(pattern: str) -> str:
    """Return a pattern of JSON Schema with operators in its classes escaped, as the compiler needs."""
    return "".join(
        "[" + _literal_members(part[1:-1]) + "]" if part[0] == "[" and part[-1] == "]" else part
        for part in _ECMASCRIPT_PARTS.findall(pattern)
    )


def _literal_members(members: str) -> str:
    """Return the members of a class of characters, with a backslash before each operator."""
    negated = members[:1] == "^"
    atoms = re.findall(r"\\.|.", members[negated:], re.DOTALL)
    written, index = ["^"] if negated else [], 0
    while index < len(atoms):
        is_range = atoms[index + 1 : index + 2] == ["-"] and index + 2 < len(atoms)
        ends = (atoms[index], atoms[index + 2]) if is_range else (atoms[index],)
        written.append("-".join("\\" + end if end in _OPERATORS else end for end in ends))
        index += 3 if is_range else 1
    return "".join(written)


@dataclass
class _Group:
    """A group of a pattern that is not closed yet.

    parts: texts that match the parts of the current alternative.
    shortest: the shortest text of the earlier alternatives, or None.
    """

    parts: list[str]
    shortest: str | None = None

    def text(self) -> str:
        """Return the text of the shortest alternative. Raise `OverflowError` if a text is too long."""
        if sum(map(len, self.parts)) > _MOST:
            raise OverflowError("no short text matches")
        text = "".join(self.parts)
        return text if self.shortest is None else min(self.shortest, text, key=len)


def example(pattern: str, matches: Callable[[str, str], bool]) -> str | None:
    """Return a short text that `pattern` probably matches, or None if none was found.

    `shortest_completion` sees only what may come next. It would not find an end of `[^@]+@[^@]+\\.[a-z]{2,}`.

    pattern: a pattern that the compiler accepts.
    matches: function that returns True if an atom of a pattern matches a character.
    """
    if len(pattern) > _LONGEST:
        return None
    groups, known = [_Group([])], dict[str, str]()
    try:
        for part in _PARTS.finditer(pattern):
            group, atom = groups[-1], part["atom"]
            if part["group"]:
                groups.append(_Group([]))
            elif part["repetition"]:
                text, least = group.parts.pop(), int(part["least"] or part[0].startswith("+"))
                if len(text) * least > _MOST:
                    return None
                group.parts.append(text * least if text else "")
            elif atom == "|":
                groups[-1] = _Group([], group.text())
            elif atom == ")":
                text = groups.pop().text()
                groups[-1].parts.append(text)
            elif atom:
                if atom not in known:
                    known[atom] = _character(atom, matches)
                group.parts.append(known[atom])
        return groups[0].text()
    except (IndexError, OverflowError, ValueError):
        return None


def _character(atom: str, matches: Callable[[str, str], bool]) -> str:
    """Return a character that an atom matches, "" for an assertion. Raise `ValueError` if none is found."""
    if atom in ("^", "$", r"\b", r"\B", r"\A", r"\z"):
        return ""
    if len(atom) == 1 and atom != ".":
        return atom
    spelled = [chr(int(code, 16)) for code in re.findall(r"\\[xuU]([0-9a-fA-F]+)", atom)]
    found = next((each for each in (*_CHARACTERS, *atom, *spelled) if matches(atom, each)), None)
    if found is None:
        raise ValueError("no usual character matches")
    return found
