"""The thinking budget: closes a thought that grows too long, so that an answer follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import NamedTuple

import numpy as np

from ..engine.constraint import Best, Canvas, CanvasSpec, Redo, Stand, Verdict
from ..engine.settings import Settings
from ..errors import InputError
from ..text.channels import ChannelParser
from ..text.tokenizer import Tokenizer


def answer_reserve(settings: Settings, canvas_length: int) -> int:
    """Return the number of tokens that a limited thought leaves for the answer."""
    if settings.answer_reserve is not None:
        return settings.answer_reserve
    return max(1, min(settings.max_new_tokens // 4, canvas_length))


class Thought(NamedTuple):
    """The thought in a canvas, if no earlier canvas began the answer.

    end: position after the thought, where the answer begins. None if the whole canvas is thought.
    prefix: ids that the canvas must begin with instead of its own. None if it may keep its own.
    """

    end: int | None
    prefix: list[int] | None = None


class ThinkingBudget:
    """Constraint that limits the thought of one row, and makes sure that an answer follows it.

    Args:
        start: the channel parser at the end of the prompt, which may be inside a thought.
        thinking: True if the prompt asks for a thought.
        tokens: maximum number of tokens of thought text. None for no limit except `reserve`.
        reserve: number of ids that the thought must leave for the answer.
        most: maximum number of ids of the row.
    """

    needs_logits = True

    def __init__(
        self,
        tokenizer: Tokenizer,
        start: ChannelParser,
        spec: CanvasSpec,
        *,
        thinking: bool,
        tokens: int | None,
        reserve: int,
        most: int,
    ):
        special = tokenizer.special
        if special.channel_open is None or special.channel_close is None:
            raise InputError("thinking_budget: this tokenizer has no <|channel> and <channel|>; leave it out")
        self.tokenizer, self.start, self.spec, self.thinking = tokenizer, start, spec, thinking
        self.tokens, self.most = tokens, most
        self.forced_at: int | None = None  # index among all ids of the delimiter that closed a thought
        self._open, self._close = special.channel_open, special.channel_close
        # Ids before the text of a thought: a delimiter and a header, or what the prompt lacks of them.
        header, begun = "thought\n", start.header.lstrip(" \t")
        if start.in_header and header.startswith(begun):
            header = header[len(begun) :]
        self._opening = [] if start.in_thought else [self._open]
        if start.in_header or not start.in_thought:
            self._opening += tokenizer.encode(header)
        # Last index for the closing delimiter. A thought that the prompt opened needs room for it, even if
        # less than `reserve` remains for the answer.
        last = most - reserve - 1
        self.last = max(last, len(self._opening)) if start.in_thought else last
        self._text = np.ones(spec.vocab_size, dtype=bool)  # True for tokens that are text
        self._text[[token for token in tokenizer.hidden_ids if token < spec.vocab_size]] = False
        self._channels = _Channels(start)

    @property
    def least(self) -> int:
        """Number of ids that close a thought that the prompt opened. 0 if it opened none."""
        return len(self._opening) + 1 if self.start.in_thought else 0

    def begin(self, written: Sequence[int]) -> Mapping[int, int]:
        return dict(enumerate(self._due(written)))

    def review(self, canvas: Canvas, best: Best) -> Verdict:
        forced_at = self._forced_at(canvas)
        channels, first = self._channels.copy(), len(canvas.written)
        ids = canvas.ids[: canvas.remaining]
        for position, token in enumerate(ids):
            place = first + position
            if channels.parser.in_thought and token != self._close:
                if token in self.spec.stop_ids or self._is_due(channels, place):
                    return Redo([*ids[:position], self._close], plan=place, by="budget")
            elif not channels.parser.in_thought and self._is_unfit(channels, place, token, forced_at):
                return Redo([*ids[:position], self._word(position, best)], plan=forced_at, by="budget")
            if token in self.spec.stop_ids:
                break
            channels.add([token])
        return Stand(plan=forced_at, by="budget")

    def commit(self, canvas: Canvas, ids: Sequence[int]) -> None:
        self.forced_at = self._forced_at(canvas)
        self._channels.add(ids)

    def closes(self, prefix: Sequence[int]) -> bool:
        """Return True if the last id of `prefix` closes a thought."""
        return list(prefix[-1:]) == [self._close]

    def thought(self, canvas: Canvas) -> Thought:
        """Return the thought in a canvas. Only for an answer with a grammar, until a canvas has begun it.

        A thought is a header and then text. It is closed before any special token, which a reader of the
        output could take for part of the answer.
        """
        written, ids = canvas.written, canvas.ids
        opening = [] if written else self._opening
        if ids[: len(opening)] != opening or self.last < len(opening):
            return Thought(None, list(opening)) if self.start.in_thought else Thought(0)
        for position in range(len(opening), len(ids)):
            token, place = ids[position], len(written) + position
            if token == self._close:
                return Thought(position + 1)
            spent = self.tokens is not None and place - len(self._opening) >= self.tokens
            if spent or place >= self.last or not self._text[token]:
                return Thought(position + 1, [*ids[:position], self._close])
        return Thought(None)

    def _due(self, written: Sequence[int]) -> list[int]:
        """Return the ids that the next canvas must begin with: those that close a thought now, or none."""
        if not written and self.tokens == 0 and (self.thinking or self.start.in_thought):
            return [*self._opening, self._close] if self.last >= len(self._opening) else []
        return [self._close] if self._is_due(self._channels, len(written)) else []

    def _forced_at(self, canvas: Canvas) -> int | None:
        """Return `forced_at` after this canvas: the index where the budget closed a thought, or None."""
        if canvas.plan is not None:
            return int(canvas.plan)
        due = self._due(canvas.written)
        return len(canvas.written) + len(due) - 1 if due else self.forced_at

    def _is_due(self, channels: _Channels, place: int) -> bool:
        """Return True if an open thought has to be closed at index `place`. A header is completed first."""
        parser = channels.parser
        spent = self.tokens is not None and channels.thought_tokens >= self.tokens and not parser.in_header
        return parser.in_thought and (spent or place >= self.last)

    def _is_unfit(self, channels: _Channels, place: int, token: int, forced_at: int | None) -> bool:
        """Return True if `token` may not stand at index `place`, outside a thought.

        Such a token would open a thought without room for it, or leave the row without an answer.
        """
        late = place >= self.last if forced_at is None else place > forced_at
        if token == self._open:
            return late
        if channels.answered or token == self.tokenizer.special.tool_call_open:
            return False
        if token in self.spec.stop_ids or (late and not self._text[token]):
            return True
        return place == self.most - 1 and not self._shows(token)

    def _word(self, position: int, best: Best) -> int:
        """Return the likeliest visible token at `position`."""
        allowed = self._text.copy()
        while True:
            token = best(position, allowed)
            allowed[token] = False
            if self._shows(token) or not allowed.any():
                return token

    def _shows(self, token: int) -> bool:
        return bool(self.tokenizer.decode([token], skip_special_tokens=True).strip())


class _Channels:
    """Follows the channels in the ids of a row, and counts the tokens of its thoughts."""

    def __init__(self, start: ChannelParser):
        self.parser = start.copy()
        self.thought_tokens, self._delivered = 0, False

    def copy(self) -> _Channels:
        other = copy(self)
        other.parser = self.parser.copy()
        return other

    def add(self, ids: Sequence[int]) -> None:
        delta = self.parser.feed(ids)
        self.thought_tokens += delta.thought_tokens
        self._delivered |= bool(delta.answer.strip() or delta.tool_calls)

    @property
    def answered(self) -> bool:
        """True if an answer or a tool call has begun."""
        return self._delivered or self.parser.in_call
