"""The positions of a template's text: which tokens are fixed, and which may fill the holes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np

from ..errors import InputError
from ..ops import FREE
from ..text.channels import TextStream
from ..text.tokenizer import Tokenizer
from .template import Hole


class Slot(NamedTuple):
    """One position: its token or `FREE`, the part of the template that it belongs to, and how a hole begins.

    begins: "" anyhow; "space", the token's text starts with the space that the literal before left to it;
    "word", with that space and more.
    """

    pin: int
    part: int
    begins: Literal["", "space", "word"] = ""


class Slots:
    """What the parts of a template may look like in tokens.

    options: for each part, its possible stretches of slots, shortest first; a literal has one, a hole one for
    each length. Raises `InputError` for literals that hold structure.
    """

    def __init__(
        self, tokenizer: Tokenizer, parts: Sequence[str | Hole], stop_ids: Sequence[int], vocab_size: int
    ):
        self.tokenizer, self.parts = tokenizer, parts
        self.no_text = tokenizer.hidden_ids | set(stop_ids)
        self.stop = Slot(tokenizer.turn_end(stop_ids, vocab_size), len(parts) - 1)
        # What decoding an id adds to a text; the anchor is there because decoders may strip a first space.
        anchor = tokenizer.encode("a")
        known = len(tokenizer.decode(anchor))
        self._text_of = lru_cache(None)(lambda token: tokenizer.decode([*anchor, token])[known:])
        # A single space before a hole is left to it: that is how words are written in tokens.
        self._spaced = [
            isinstance(part, Hole) and isinstance(before, str) and before[-1] == " " and before[-2:-1] != " "
            for before, part in zip([None, *parts], parts, strict=False)
        ]
        self.options = [self._options(index) for index in range(len(parts))]

    def _options(self, index: int) -> list[list[Slot]]:
        part = self.parts[index]
        if isinstance(part, str):
            is_left = index + 1 < len(self.parts) and self._spaced[index + 1]
            return [self._literal(part[:-1] if is_left else part, index)]
        lengths = [part.length] if part.exact else range(1, part.length + 1)
        if not self._spaced[index]:
            return [[Slot(FREE, index)] * length for length in lengths]
        options = []
        for length in lengths:
            # A first token that is the space alone would leave an exact hole one token short.
            first = Slot(FREE, index, "word" if part.exact or length == 1 else "space")
            options.append([first, *[Slot(FREE, index)] * (length - 1)])
        if part.exact:  # digits, for one, take a space of its own before them
            options.append(self._literal(" ", index - 1) + [Slot(FREE, index)] * part.length)
        return options

    def _literal(self, text: str, index: int) -> list[Slot]:
        ids = self.tokenizer.encode(text) if text else []
        found = next((token for token in ids if token in self.no_text), None)
        if found is not None:
            spelled = self.tokenizer.decode([found])
            raise InputError(f"template: {spelled!r} in it is structure and no text; leave it out")
        return [Slot(token, index) for token in ids]

    def behind(self, index: int) -> list[Slot]:
        """The slots behind a part, up to the next hole whose length is open or to the stop id."""
        slots: list[Slot] = []
        for options in self.options[index + 1 :]:
            if len(options) > 1:
                return slots
            slots += options[0]
        return [*slots, self.stop]

    def unfit(self, slots: Sequence[Slot], ids: Sequence[int]) -> list[int]:
        """Places of holes whose token is no text, or not such as must begin there."""
        places = {
            place
            for place, (slot, token) in enumerate(zip(slots, ids, strict=True))
            if slot.pin == FREE and not self._is_fit(token, slot)
        }
        for run in self._byte_runs(slots, ids):
            try:
                bytes(self.tokenizer.byte_values[ids[place]] for place in run).decode()
            except UnicodeDecodeError:  # they make no characters
                places.update(run)
        return sorted(places)

    def _byte_runs(self, slots: Sequence[Slot], ids: Sequence[int]) -> Iterator[list[int]]:
        def kind(place: int) -> tuple[bool, int]:
            is_byte = slots[place].pin == FREE and ids[place] in self.tokenizer.byte_values
            return is_byte, slots[place].part

        for (is_byte, _), run in groupby(range(len(ids)), key=kind):
            if is_byte:
                yield list(run)

    def _is_fit(self, token: int, slot: Slot) -> bool:
        if token in self.no_text or token >= self.tokenizer.vocab_size:
            return False
        text = self._text_of(token) if slot.begins else ""
        return not slot.begins or (text[:1] == " " and (slot.begins == "space" or bool(text.strip())))

    def best(self, scores: np.ndarray, slot: Slot) -> int:
        """The token with the best of `scores [V]` that fits. No byte: it takes others to make a character."""
        for token in np.argsort(-scores, kind="stable").tolist():
            if self._is_fit(token, slot) and token not in self.tokenizer.byte_values:
                return int(token)
        return self.tokenizer.encode(" ")[0]  # no token has a space and more: the space then stands alone

    def texts(self, written: Sequence[Sequence[int]]) -> list[str]:
        """The text of each part, from the ids that were written for it: literals are as they were given."""
        stream = TextStream(self.tokenizer)
        texts = []
        for part, spaced, ids in zip(self.parts, self._spaced, written, strict=True):
            text = stream.feed([token for token in ids if token not in self.no_text]) + stream.finish()
            if isinstance(part, str):
                texts.append(part)
            else:
                texts.append(text[1:] if spaced and text[:1] == " " else text)
        return texts
