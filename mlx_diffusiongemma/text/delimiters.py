"""Separates delimiters in a caller's text from those that a chat template writes.

Tokenizers find a token such as `<|turn>` by its spelling, so a caller's text that spells one would become
structure. `Delimiters.pieces` cuts a text so that no piece spells a delimiter. Encoded piece by piece, it
stays text.

A template's own delimiters must remain. Before rendering, `StandIns` replaces each character of the caller's
strings that may begin a delimiter by a private-use one. In the rendered text, a delimiter that begins with
such a stand-in came from the caller, even if the template joined it from several strings.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from ..errors import InputError

_PRIVATE = range(0xF0000, 0xFFFFE)  # the private-use plane 15


class Delimiters:
    """Spellings of tokens that are never text."""

    def __init__(self, spellings: Iterable[str]) -> None:
        # A spelling of one character cannot be cut.
        self._spellings = frozenset(spelling for spelling in spellings if len(spelling) > 1)
        self._lengths = sorted({len(spelling) for spelling in self._spellings})
        self._beginnings = frozenset(spelling[:2] for spelling in self._spellings)
        self.initials = frozenset(spelling[0] for spelling in self._spellings)

    def pieces(self, text: str, places: Iterable[int]) -> list[str]:
        """Cut `text` after the first character of each delimiter that begins at one of `places`."""
        ends = [0, *(place + 1 for place in places if self._begins(text, place)), len(text)]
        return [text[start:end] for start, end in pairwise(ends)]

    def _begins(self, text: str, place: int) -> bool:
        return text[place : place + 2] in self._beginnings and any(
            text[place : place + length] in self._spellings for length in self._lengths
        )


class StandIns:
    """Private-use characters of Unicode. Each stands in for a character that may begin a delimiter.

    Neither `value` nor `rendered` contains any of them, so no other text can look like a stand-in.

    value: input of the template.
    rendered: the text that the template makes from it.
    needed: True if a string of `value` has a character that may begin a delimiter.
    """

    def __init__(self, delimiters: Delimiters, value: Any, rendered: str) -> None:
        used = set[str]().union(*_strings(value))
        self.needed = not used.isdisjoint(delimiters.initials)
        used.update(rendered)
        free = (chr(code) for code in _PRIVATE if chr(code) not in used)
        self._of = dict(zip(sorted(delimiters.initials), free, strict=False))
        if len(self._of) < len(delimiters.initials):
            raise InputError("prompt: holds all private-use characters of Unicode; leave some out")
        self._initials = {ord(stand_in): initial for initial, stand_in in self._of.items()}

    def put(self, value: Any, visible: Sequence[str] = ()) -> Any:
        """Return a copy of `value` with stand-ins in strings and keys, but not in `visible` delimiters."""
        pattern = re.compile("|".join(map(re.escape, [*visible, *self._of])))
        return _mapped(value, lambda text: pattern.sub(lambda match: self._of.get(match[0], match[0]), text))

    def restored(self, rendered: str) -> str:
        return rendered.translate(self._initials)

    def places(self, rendered: str) -> list[int]:
        """Return the index of each stand-in in `rendered`."""
        return [match.start() for match in re.finditer("|".join(self._of.values()), rendered)]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from _strings(pair)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_mapped(key, change): _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    return value
