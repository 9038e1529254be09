"""The thinking budget: a thought that grows too long is closed, so that an answer follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..channels import ChannelParser
from ..errors import InputError
from ..generation_config import GenerationConfig
from ..tokenizer import Tokenizer

# Canvas position and allowed tokens bool [V] -> the likeliest of those there.
Best = Callable[[int, np.ndarray], int]


def answer_reserve(settings: GenerationConfig, canvas_length: int) -> int:
    """How many of max_new_tokens a limited thought leaves for the answer."""
    if settings.answer_reserve is not None:
        return settings.answer_reserve
    return max(1, min(settings.max_new_tokens // 4, canvas_length))


class ThinkingBudget:
    """Watches the thought of one row, and that something follows it.

    tokens: most tokens of thought text; None: no limit of its own. last: the latest place of the closing
    delimiter among all ids of the row, of which there are `most`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        stop_ids: Sequence[int],
        tokens: int | None,
        last: int,
        most: int,
    ):
        special = tokenizer.special
        if special.channel_open is None or special.channel_close is None:
            raise InputError("thinking_budget: this tokenizer has no <|channel> and <channel|>; leave it out")
        self.tokenizer, self.stop_ids = tokenizer, stop_ids
        self.tokens, self.last, self.most = tokens, last, most
        self._forced_at: int | None = None  # where among the ids of the row
        self._open, self._close = special.channel_open, special.channel_close
        self._no_thought = [self._open, *tokenizer.encode("thought\n"), self._close]
        text = np.ones(vocab_size, dtype=bool)
        text[[token for token in tokenizer.hidden_ids if token < vocab_size]] = False
        self._text = text  # bool [V]: the tokens that show

    @property
    def forced(self) -> bool:
        """Whether a thought was closed."""
        return self._forced_at is not None

    def opening(self, written: Sequence[int], thinking: bool) -> list[int]:
        """Ids that the next canvas must begin with: a delimiter that is due, or nothing.

        written: ids of the canvases before. thinking: whether the model was asked to think.
        """
        if not written:
            nothing = thinking and self.tokens == 0 and self.last >= len(self._no_thought) - 1
            return self._forced(0, self._no_thought) if nothing else []
        seen = _Seen(self.tokenizer, written)
        return self._forced(len(written), [self._close]) if self._is_due(seen, len(written)) else []

    def review(self, written: Sequence[int], ids: Sequence[int], best: Best) -> list[int] | None:
        """The ids that this canvas must begin with instead; None when it may stay as it is."""
        seen = _Seen(self.tokenizer, written)
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
        """For an answer that a grammar holds and that has not begun: what `review` returns, and where it
        begins.

        Only text counts as thought here, behind a header that says so: nothing else could be told from an
        answer by those who read it. The answer begins nowhere (None) where all of the canvas is thought.
        """
        opening = self._no_thought[:-1]
        if not written and (list(ids[: len(opening)]) != opening or self.last < len(opening)):
            return None, 0
        for position in range(0 if written else len(opening), len(ids)):
            token, place = ids[position], len(written) + position
            if token == self._close:
                return None, position + 1
            spent = self.tokens is not None and place - len(opening) >= self.tokens
            if spent or place >= self.last or not self._text[token]:
                return self._forced(len(written), [*ids[:position], self._close]), position + 1
        return None, None

    def _is_due(self, seen: _Seen, place: int) -> bool:
        """Whether a thought is open that has to be closed at `place`; its header may still be finished."""
        spent = self.tokens is not None and seen.thought_tokens >= self.tokens and not seen.parser.in_header
        return seen.parser.in_thought and (spent or place >= self.last)

    def _is_unfit(self, seen: _Seen, place: int, token: int) -> bool:
        """Whether `token` cannot stand outside a thought: another thought that has no room, or no answer."""
        late = place >= self.last if self._forced_at is None else place > self._forced_at
        if token == self._open:
            return late
        if seen.answered or token == self.tokenizer.special.tool_call_open:
            return False
        if token in self.stop_ids or (late and not self._text[token]):
            return True
        return place == self.most - 1 and not self._shows(token)

    def _word(self, position: int, best: Best) -> int:
        """The likeliest token there that shows."""
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
    """What the ids of a row come to, as far as they were added."""

    def __init__(self, tokenizer: Tokenizer, ids: Sequence[int]):
        self.parser = ChannelParser(tokenizer)
        self.thought_tokens, self._delivered = 0, False
        self.add(ids)

    def add(self, ids: Sequence[int]) -> None:
        delta = self.parser.feed(ids)
        self.thought_tokens += delta.thought_tokens
        self._delivered |= bool(delta.answer.strip() or delta.tool_calls)

    @property
    def answered(self) -> bool:
        """Whether there is some of an answer, or a tool call, be it open."""
        return self._delivered or self.parser.in_call
