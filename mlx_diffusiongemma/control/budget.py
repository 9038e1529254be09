"""The thinking budget: close a thought that grows too long, so that an answer follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..config.generation import GenerationConfig
from ..errors import InputError
from ..text.channels import ChannelParser
from ..text.tokenizer import Tokenizer

# Canvas position and allowed tokens bool [V] -> the likeliest of those there.
Best = Callable[[int, np.ndarray], int]


def answer_reserve(settings: GenerationConfig, canvas_length: int) -> int:
    """How many of max_new_tokens a limited thought leaves for the answer."""
    if settings.answer_reserve is not None:
        return settings.answer_reserve
    return max(1, min(settings.max_new_tokens // 4, canvas_length))


class ThinkingBudget:
    """Limit the thought of one row, and make sure that something follows it.

    start: the parser where the prompt ends, perhaps inside a thought. tokens: most tokens of thought text
    that the row may add; None: no limit of its own. last: the latest place of the closing delimiter among all
    ids of the row, of which there are `most`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        start: ChannelParser,
        vocab_size: int,
        stop_ids: Sequence[int],
        tokens: int | None,
        last: int,
        most: int,
    ):
        special = tokenizer.special
        if special.channel_open is None or special.channel_close is None:
            raise InputError("thinking_budget: this tokenizer has no <|channel> and <channel|>; leave it out")
        self.tokenizer, self.start, self.stop_ids = tokenizer, start, stop_ids
        self.tokens, self.most = tokens, most
        self._forced_at: int | None = None  # where among the ids of the row
        self._open, self._close = special.channel_open, special.channel_close
        # What leads from the start to the text of a thought. A header that has begun is finished.
        header = "thought\n"
        if start.in_header and header.startswith(start.header.lstrip(" \t")):
            header = header[len(start.header.lstrip(" \t")) :]
        self._opening = [] if start.in_thought else [self._open]
        if start.in_header or not start.in_thought:
            self._opening += tokenizer.encode(header)
        # The end of a thought that the prompt opened needs its place, whatever the answer wants.
        self.last = max(last, len(self._opening)) if start.in_thought else last
        text = np.ones(vocab_size, dtype=bool)
        text[[token for token in tokenizer.hidden_ids if token < vocab_size]] = False
        self._text = text  # bool [V]: the tokens that show

    @property
    def least(self) -> int:
        """Fewest tokens that must stand before the answer."""
        return len(self._opening) + 1 if self.start.in_thought else 0

    @property
    def forced(self) -> bool:
        """True if a thought was closed."""
        return self._forced_at is not None

    def opening(self, written: Sequence[int], thinking: bool) -> list[int]:
        """Return ids that the next canvas must begin with: a delimiter that is due, or nothing.

        written: ids of the canvases before. thinking: the model was asked to think.
        """
        if not written and self.tokens == 0 and (thinking or self.start.in_thought):
            fits = self.last >= len(self._opening)
            return self._forced(0, [*self._opening, self._close]) if fits else []
        seen = _Seen(self.start, written)
        return self._forced(len(written), [self._close]) if self._is_due(seen, len(written)) else []

    def review(self, written: Sequence[int], ids: Sequence[int], best: Best) -> list[int] | None:
        """Return the ids that this canvas must begin with instead; None when it may stay as it is."""
        seen = _Seen(self.start, written)
        for position, token in enumerate(ids):
            place = len(written) + position
            if seen.parser.in_thought and token != self._close:
                if token in self.stop_ids or self._is_due(seen, place):
                    return self._forced(len(written), [*ids[:position], self._close])
            elif not seen.parser.in_thought and self._is_unfit(seen, place, token):
                return [*ids[:position], self._word(position, best)]
            if token in self.stop_ids:
                return None
            seen.add([token])
        return None

    def thought_before(
        self, written: Sequence[int], ids: Sequence[int]
    ) -> tuple[list[int] | None, int | None]:
        """Check the thought before an answer that a grammar holds and that has not begun.

        Only text counts as thought here, behind a header that says so: nothing else could be told from an
        answer by those who read it.

        Returns what `review` returns, and where in the canvas the answer begins; None where all of the canvas
        is thought.
        """
        opening = [] if written else self._opening
        if list(ids[: len(opening)]) != opening or self.last < len(opening):
            return (list(opening), None) if self.start.in_thought else (None, 0)
        for position in range(len(opening), len(ids)):
            token, place = ids[position], len(written) + position
            if token == self._close:
                return None, position + 1
            spent = self.tokens is not None and place - len(self._opening) >= self.tokens
            if spent or place >= self.last or not self._text[token]:
                return self._forced(len(written), [*ids[:position], self._close]), position + 1
        return None, None

    def _is_due(self, seen: _Seen, place: int) -> bool:
        """True if a thought is open that has to be closed at `place`. Its header may still be finished."""
        spent = self.tokens is not None and seen.thought_tokens >= self.tokens and not seen.parser.in_header
        return seen.parser.in_thought and (spent or place >= self.last)

    def _is_unfit(self, seen: _Seen, place: int, token: int) -> bool:
        """True if `token` cannot stand outside a thought: another thought without room, or no answer."""
        late = place >= self.last if self._forced_at is None else place > self._forced_at
        if token == self._open:
            return late
        if seen.answered or token == self.tokenizer.special.tool_call_open:
            return False
        if token in self.stop_ids or (late and not self._text[token]):
            return True
        return place == self.most - 1 and not self._shows(token)

    def _word(self, position: int, best: Best) -> int:
        """Return the likeliest token there that shows."""
        allowed = self._text.copy()
        while True:
            token = best(position, allowed)
            allowed[token] = False
            if self._shows(token) or not allowed.any():
                return token

    def _shows(self, token: int) -> bool:
        return bool(self.tokenizer.decode([token], skip_special_tokens=True).strip())

    def _forced(self, start: int, prefix: list[int]) -> list[int]:
        self._forced_at = start + len(prefix) - 1
        return prefix


class _Seen:
    """Channels of the ids of a row, as far as they were added."""

    def __init__(self, start: ChannelParser, ids: Sequence[int]):
        self.parser = start.copy()
        self.thought_tokens, self._delivered = 0, False
        self.add(ids)

    def add(self, ids: Sequence[int]) -> None:
        delta = self.parser.feed(ids)
        self.thought_tokens += delta.thought_tokens
        self._delivered |= bool(delta.answer.strip() or delta.tool_calls)

    @property
    def answered(self) -> bool:
        """True if there is some of an answer, or a tool call, even an open one."""
        return self._delivered or self.parser.in_call
