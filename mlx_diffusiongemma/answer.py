"""Turns committed ids of one row into blocks of thought and answer, with warnings and statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .control.budget import ThinkingBudget
from .control.guards import EMPTY, UNCONVERGED
from .control.structure import Structure
from .engine.row import Committed, FinishReason, Row
from .engine.samplers import Stalled
from .engine.stats import Stats
from .engine.trace import Trace
from .text.channels import ChannelDelta, ChannelParser, ToolCall
from .text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Block:
    """One committed canvas, cut after the stop id and at `max_new_tokens`.

    token_ids: ids of the block, up to and including the stop id.
    thought, answer, tool_calls: text and calls that this block adds.
    denoising_steps: steps of all tries at the canvas, including rejected ones.
    mean_entropy: mean entropy of the canvas at the last step, in nats.
    converged: False if the step cap or the stalled guard ended the canvas.
    seconds: denoising time. Rows that share steps each count an equal share.
    warning: a problem that a reader should know about, usually None.
    """

    index: int
    token_ids: list[int]
    thought: str
    answer: str
    tool_calls: tuple[ToolCall, ...]
    denoising_steps: int
    mean_entropy: float
    converged: bool
    seconds: float
    warning: str | None = None


class Answer:
    """The committed text of one row.

    Args:
        start: the channel parser at the end of the prompt.
        budget, structure: the row's thinking budget and its grammar constraint, or None.
        limit: for warnings, the limit that lowered max_new_tokens, and what the user can do about it. None if
            nothing lowered it.
    """

    def __init__(
        self,
        row: Row,
        tokenizer: Tokenizer,
        start: ChannelParser,
        budget: ThinkingBudget | None,
        structure: Structure | None,
        trace: Trace | None,
        limit: tuple[str, str] | None = None,
    ):
        self.row, self.tokenizer, self.start = row, tokenizer, start
        self.budget, self.structure, self.trace, self.limit = budget, structure, trace, limit
        self.stats = Stats(row.spec.length, len(row.prompt))
        self.blocks: list[Block] = []
        self.warnings: list[str] = list(structure.grammar.warnings) if structure is not None else []
        self.finish_reason: FinishReason | None = None
        self._parser = start.copy()

    def add(self, committed: Committed) -> None:
        """Append the `Block` of a committed canvas."""
        self.finish_reason = self._finish_reason(committed)
        delta = self._parser.feed(committed.ids)
        in_thought = self._parser.in_thought
        if self.finish_reason:
            delta += self._parser.finish()
        warnings = list(self._warnings(committed, in_thought))
        self.warnings += warnings
        if self.trace is not None:
            key = self.row.noise_key._replace(block=committed.block, attempt=committed.tries.number)
            self.trace.commit(key, committed.canvas, len(committed.ids), committed.logprobs)
        self._count(committed, delta)
        stalled = isinstance(committed.stopped_by, Stalled)
        self.blocks.append(
            Block(
                index=committed.block,
                token_ids=committed.ids,
                thought=delta.thought,
                answer=delta.answer,
                tool_calls=delta.tool_calls,
                denoising_steps=committed.tries.steps,
                mean_entropy=committed.mean_entropy,
                converged=committed.stopped_by is not None and not stalled,
                seconds=committed.tries.seconds,
                warning="; ".join(warnings) or None,
            )
        )

    def end(self, warning: str) -> None:
        """End the answer early, with the blocks so far. `warning` says why."""
        self.finish_reason = "length"
        self.warnings.append(warning)
        rest = self._parser.finish()
        if rest != ChannelDelta():  # an incomplete tool call or character
            calls = rest.tool_calls
            self.blocks.append(
                Block(len(self.blocks), [], rest.thought, rest.answer, calls, 0, 0.0, False, 0.0)
            )

    def preview(self, draft: np.ndarray) -> ChannelDelta:
        """Return the text that the row has if the canvas `draft [C]` follows its committed ids."""
        ids: Sequence[int] = draft.tolist()[: self.row.remaining]
        stop = next((index for index, token in enumerate(ids) if token in self.row.spec.stop_ids), len(ids))
        parser = self.start.copy()
        return parser.feed([*self.row.written, *ids[:stop]]) + parser.finish()

    def _finish_reason(self, committed: Committed) -> FinishReason | None:
        cut = self.structure is not None and self.structure.cut
        return "length" if committed.stopped and cut else self.row.finish_reason

    def _count(self, committed: Committed, delta: ChannelDelta) -> None:
        stats, tries = self.stats, committed.tries
        stats.blocks += 1
        stats.denoising_steps += tries.steps
        stats.denoising_seconds += tries.seconds
        stats.new_tokens += len(committed.ids)
        stats.answer_tokens += delta.answer_tokens
        stats.empty_rerolls += tries.rerolls[EMPTY]
        stats.unconverged_rerolls += tries.rerolls[UNCONVERGED]
        stats.stalled_stops += isinstance(committed.stopped_by, Stalled)
        stats.forced_thought_ends = int(self.budget is not None and self.budget.forced_at is not None)
        stats.grammar_walks += tries.reviews["grammar"]
        stats.grammar_repairs += tries.redos["grammar"]

    def _warnings(self, committed: Committed, in_thought: bool) -> Iterator[str]:
        if UNCONVERGED in committed.tries.remarks:
            yield (
                f"not converged: mean entropy {committed.mean_entropy:.2f} nats at the step cap, also with "
                "other noise; raise max_denoising_steps"
            )
        if EMPTY in committed.tries.remarks:
            yield (
                "no answer in this canvas, also with other noise; ask for a sentence, or use a schema or "
                "regex"
            )
        if self.finish_reason != "length":
            return
        limit, way_out = self.limit or (f"max_new_tokens {self.row.settings.max_new_tokens}", "raise it")
        if in_thought:
            yield f"{limit} ended inside the thought, before any answer; set thinking_budget or {way_out}"
        elif committed.stopped:
            yield f"{limit} ended the answer early, where its grammar allows an end; {way_out}"
        else:
            yield f"{limit} cut the answer off; {way_out}"
