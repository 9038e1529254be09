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
    return min(settings.max_new_tokens // 4, canvas_length)


class ThinkingBudget:
    """Watches the thought of one row.

    tokens: most tokens of thought text; None: no limit of its own. last: the latest place of the closing
    delimiter among all ids of the row. Once a thought was closed by force, there is no other, and something
    follows it.
    """

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Sequence[int], tokens: int | None, last: int
    ):
        special = tokenizer.special
        if special.channel_open is None or special.channel_close is None:
            raise InputError("thinking_budget: this tokenizer has no <|channel> and <channel|>; leave it out")
        self.tokenizer, self.stop_ids, self.last = tokenizer, stop_ids, last
        self.tokens = tokens
        self._close = special.channel_close
        self._no_thought = [special.channel_open, *tokenizer.encode("thought\n"), special.channel_close]
        text = np.ones(vocab_size, dtype=bool)
        text[[token for token in tokenizer.hidden_ids if token < vocab_size]] = False
        self._text = text  # bool [V]: the tokens that show
        self._forced_at: int | None = None  # where among the row's ids

    @property
    def forced(self) -> bool:
        """Whether a thought was closed."""
        return self._forced_at is not None

    def opening(self, written: Sequence[int], thinking: bool) -> list[int]:
        """Ids that the next canvas must begin with: a delimiter that is due, or nothing.

        written: ids of the canvases before. thinking: whether the model was asked to think.
        """
        if not written:
            nothing = thinking and self.tokens == 0
            return self._forced(0, self._no_thought) if nothing else []
        parser, used = self._after(written)
        return self._forced(len(written), [self._close]) if self._due(parser, used, len(written)) else []

    def review(self, written: Sequence[int], ids: Sequence[int], best: Best | None) -> list[int] | None:
        """The ids that this canvas must begin with instead; None when the thought keeps to its budget.

        best: None leaves what follows a thought that was closed to others.
        """
        parser, used = self._after(written)
        for position, token in enumerate(ids):
            place = len(written) + position
            if parser.in_thought and token != self._close:
                if token in self.stop_ids or self._due(parser, used, place):
                    return self._forced(place, [*ids[:position], self._close])
            elif best is not None and self._unfit([*written, *ids[:position]], token):
                return [*ids[:position], self._word(position, best)]
            if token in self.stop_ids:
                return None
            used += parser.feed([token]).thought_tokens
        return None

    def _unfit(self, before: Sequence[int], token: int) -> bool:
        """Whether `token` cannot come after a thought that was closed: another one, or nothing at all."""
        special = self.tokenizer.special
        if self._forced_at is None or len(before) <= self._forced_at:
            return False
        if token == special.channel_open:
            return True
        if self._text[token] or token == special.tool_call_open:
            return False
        answer = before[self._forced_at + 1 :]
        return special.tool_call_open not in answer and not self._shown(answer)

    def _word(self, position: int, best: Best) -> int:
        """The likeliest token there that shows."""
        allowed = self._text.copy()
        while True:
            token = best(position, allowed)
            if self._shown([token]) or not allowed.any():
                return token
            allowed[token] = False

    def _shown(self, ids: Sequence[int]) -> bool:
        return bool(self.tokenizer.decode(ids, skip_special_tokens=True).strip())

    def _after(self, written: Sequence[int]) -> tuple[ChannelParser, int]:
        """A parser that has read `written`, and the thought's tokens in it."""
        parser = ChannelParser(self.tokenizer)
        return parser, parser.feed(written).thought_tokens

    def _due(self, parser: ChannelParser, used: int, place: int) -> bool:
        """Whether a thought is open that has to be closed at `place`; its header may still be finished."""
        spent = self.tokens is not None and used >= self.tokens and not parser.in_header
        return parser.in_thought and (spent or place >= self.last)

    def _forced(self, start: int, prefix: list[int]) -> list[int]:
        self._forced_at = start + len(prefix) - 1
        return prefix
