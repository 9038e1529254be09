"""One answer while it is written: its ids, the pins of its next canvas, its statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx
import numpy as np

from ..config.generation import GenerationConfig
from ..control.budget import ThinkingBudget, answer_reserve
from ..control.grammar import Grammar
from ..control.guards import Guards, is_unconverged
from ..control.pins import PinnedTokens
from ..control.structure import Structure
from ..errors import GenerationError, InputError
from ..ops import FREE
from ..text.channels import ChannelDelta, ChannelParser, ToolCall
from ..text.tokenizer import Tokenizer
from .denoise import DenoisedCanvas
from .samplers import Stalled
from .stats import Stats
from .step import Stream
from .trace import Trace

_REVISIONS_PER_HALVING = 4

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Block:
    """One committed canvas, cut at the stop id and at `max_new_tokens`.

    thought, answer, tool_calls: text and calls that this block added. token_ids: up to and including the stop
    id. denoising_steps: all steps of the block, including those of tries that were denoised again.
    mean_entropy: nats, at the last step. converged: False when the step cap or the stalled guard ended the
    canvas. seconds: of a batch, this row's share. warning: a problem that a reader should know, usually None.
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


class Row:
    """The part of a generation that belongs to one prompt or one candidate.

    Steps of a block: `begin`; denoise and `judge`, until the canvas stands; `commit`. closed: the caller
    wants no more blocks. limit: name of the limit behind max_new_tokens and the way out, for warnings, if the
    caller did not set it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        settings: GenerationConfig,
        canvas_length: int,
        vocab_size: int,
        prompt_ids: Sequence[int],
        *,
        seed: int,
        candidate: int = 0,
        thinking: bool = False,
        grammar: Grammar | None = None,
        pinned: PinnedTokens | None = None,
        trace: Trace | None = None,
        limit: tuple[str, str] | None = None,
    ):
        self.settings, self.canvas_length, self.thinking = settings, canvas_length, thinking
        self.prompt_ids, self.seed, self.candidate = list(prompt_ids), seed, candidate
        self.tokenizer, self.trace = tokenizer, trace
        self.pad_id = tokenizer.special.pad or 0
        self.stats = Stats(canvas_length, len(prompt_ids))
        self.blocks: list[Block] = []
        self.written: list[int] = []
        self.limit = limit
        self.finish_reason: FinishReason | None = None
        self.closed = False
        self.warnings: list[str] = list(grammar.warnings) if grammar is not None else []
        self.start = ChannelParser(tokenizer, self.prompt_ids)
        self._parser = self.start.copy()
        self._channel_open = tokenizer.special.channel_open
        self._channel_close = tokenizer.special.channel_close
        self._guards = Guards(self.start, settings)
        self._own_pins = pinned
        self._structure = Structure(grammar) if grammar is not None else None
        self._answering = False  # the answer that a grammar holds began in an earlier canvas
        self._budget = self._new_budget(tokenizer, vocab_size)

    def _new_budget(self, tokenizer: Tokenizer, vocab_size: int) -> ThinkingBudget | None:
        settings, structure = self.settings, self._structure
        wanted = settings.thinking_budget is not None or settings.answer_reserve is not None
        if not wanted and (structure is None or self._channel_open is None):
            return None
        reserve = answer_reserve(settings, self.canvas_length)
        shortest = structure.shortest if structure is not None else 0
        reserve, most = max(reserve, shortest), settings.max_new_tokens
        budget = ThinkingBudget(
            tokenizer,
            self.start,
            vocab_size,
            settings.eos_token_id,
            settings.thinking_budget,
            last=most - reserve - 1,
            most=most,
        )
        if shortest + budget.least > most:
            raise InputError(
                f"the shortest answer that the grammar allows takes {shortest} tokens, and the end of the "
                f"thought that the prompt opens takes {budget.least}, but max_new_tokens is {most}; raise it"
            )
        return budget

    @property
    def remaining(self) -> int:
        return self.settings.max_new_tokens - len(self.written)

    @property
    def stream(self) -> Stream:
        """Key of the next draws."""
        return Stream(self.seed, self.candidate, len(self.blocks), self._attempt)

    @property
    def pins(self) -> list[int]:
        """Pins of the next canvas, `[C]`."""
        pins = self._pinned + [FREE] * (self.canvas_length - len(self._pinned))
        for position, token in self._callers.items():
            pins[position] = token
        return pins

    @property
    def steps(self) -> int:
        """Most denoising steps of the next try: fewer after many repairs of one canvas."""
        return max(1, self.settings.max_denoising_steps >> self._revisions // _REVISIONS_PER_HALVING)

    @property
    def needs_logits(self) -> bool:
        """True if `judge` may ask which allowed token is the likeliest."""
        return self._budget is not None or self._structure is not None

    def begin(self) -> None:
        """Start a new canvas."""
        self._attempt = self._steps = self._revisions = 0
        self._seconds = 0.0
        self._guards.begin()
        self._callers = self._own_pins.of(len(self.blocks)) if self._own_pins is not None else {}
        self._pinned = self._budget.opening(self.written, self.thinking) if self._budget else []

    def judge(self, canvas: DenoisedCanvas, index: int, seconds: float) -> bool:
        """Return True if row `index` of `canvas` can be committed.

        Otherwise it has to be denoised again, with new draws and pins. seconds: this row's share of the time.
        """
        self._steps += canvas.steps[index]
        self._seconds += seconds
        self._canvas: list[int] = np.array(canvas.ids[index]).tolist()
        self._logprobs: np.ndarray | None = None  # of a canvas that is not the last step's draft
        self._mean_entropy, self._stopped_by = canvas.mean_entropy[index], canvas.stopped_by[index]
        objection = self._guards.objection(
            self.written, *self._until_stop(self._canvas), self._capped_entropy
        )
        if objection is not None:
            self._attempt += 1
            self.stats.empty_rerolls += objection == "empty"
            self.stats.unconverged_rerolls += objection == "unconverged"
            return False
        prefix = self._review(canvas, index)
        if prefix is None:
            return True
        if len(prefix) >= self.canvas_length or any(token in self.settings.eos_token_id for token in prefix):
            self._canvas = prefix + [self.pad_id] * (self.canvas_length - len(prefix))
            if self.trace is not None:
                self._logprobs = canvas.logprobs(index, self._canvas)
            return True
        if len(prefix) <= len(self._pinned):  # or this might go on for ever
            raise GenerationError("a repair of a canvas would change its pins; please report this")
        self._pinned = prefix
        self._attempt += 1
        self._revisions += 1
        return False

    def _review(self, canvas: DenoisedCanvas, index: int) -> list[int] | None:
        """Return the ids that this canvas must begin with instead of its own; None when it may stand."""

        def best(position: int, allowed: np.ndarray) -> int:
            assert canvas.logits is not None
            logits = canvas.logits[index * self.canvas_length + position]
            return int(np.array(mx.argmax(mx.where(mx.array(allowed), logits, -mx.inf))))

        ids = self._canvas[: self.remaining]
        if self._structure is None:
            return self._budget.review(self.written, ids, best) if self._budget is not None else None
        prefix, start = self._answer_start()
        if prefix is not None or start is None:
            return prefix
        return self._structure.review(self._canvas, start, self.remaining, best)

    def _answer_start(self) -> tuple[list[int] | None, int | None]:
        """Ids that the canvas must begin with instead, and where its answer goes on. Rows with a grammar."""
        if self._answering or self._budget is None:
            return None, 0
        return self._budget.thought_before(self.written, self._canvas)

    def commit(self) -> Block:
        """Commit the canvas as a `Block`."""
        ids, stopped = self._until_stop(self._canvas)
        if self._structure is not None:
            _, start = self._answer_start()
            if start is not None:
                self._structure.commit(ids, start)
                self._answering = True
        if self.trace is not None:
            self.trace.commit(self.stream, self._canvas, len(ids), self._logprobs)
        self.written += ids
        if stopped:
            self.finish_reason = "length" if self._is_cut else "stop"
        elif self.remaining == 0:
            self.finish_reason = "length"
        delta = self._parser.feed(ids)
        in_thought = self._parser.in_thought
        if self.finish_reason:
            delta += self._parser.finish()

        stats = self.stats
        stats.blocks += 1
        stats.denoising_steps += self._steps
        stats.denoising_seconds += self._seconds
        stats.new_tokens += len(ids)
        stats.answer_tokens += delta.answer_tokens
        stats.stalled_stops += isinstance(self._stopped_by, Stalled)
        stats.forced_thought_ends = int(self._budget is not None and self._budget.forced)
        if self._structure is not None:
            stats.grammar_walks, stats.grammar_repairs = self._structure.walks, self._structure.repairs
        warnings = list(self._warnings(in_thought))
        self.warnings += warnings
        block = Block(
            index=len(self.blocks),
            token_ids=ids,
            thought=delta.thought,
            answer=delta.answer,
            tool_calls=delta.tool_calls,
            denoising_steps=self._steps,
            mean_entropy=self._mean_entropy,
            converged=self._stopped_by is not None and not isinstance(self._stopped_by, Stalled),
            seconds=self._seconds,
            warning="; ".join(warnings) or None,
        )
        self.blocks.append(block)
        return block

    def _warnings(self, in_thought: bool) -> Iterator[str]:
        if self.settings.guard_unconverged and is_unconverged(self._capped_entropy):
            yield (
                f"not converged: mean entropy {self._mean_entropy:.2f} nats at the step cap, also with other "
                "noise; raise max_denoising_steps"
            )
        if self._guards.found_nothing_else:
            yield (
                "no answer in this canvas, also with other noise; ask for a sentence, or hold it to a schema "
                "or regex"
            )
        if self.finish_reason != "length":
            return
        limit, way_out = self.limit or (f"max_new_tokens {self.settings.max_new_tokens}", "raise it")
        if in_thought:
            yield f"{limit} ended inside the thought, before any answer; set thinking_budget or {way_out}"
        elif self._is_cut:
            yield f"{limit} ended the answer early, where its grammar allows an end; {way_out}"
        else:
            yield f"{limit} cut the answer off; {way_out}"

    @property
    def _is_cut(self) -> bool:
        """True if the grammar ended the answer because of the limit."""
        return self._structure is not None and self._structure.cut

    def end(self, reason: str) -> None:
        """End the answer with the blocks that there are. reason: a warning for the caller."""
        self.finish_reason = "length"
        self.warnings.append(reason)
        rest = self._parser.finish()
        if rest != ChannelDelta():  # a tool call or a character that is not complete
            calls = rest.tool_calls
            self.blocks.append(
                Block(len(self.blocks), [], rest.thought, rest.answer, calls, 0, 0.0, False, 0.0)
            )

    def preview(self, draft: Sequence[int]) -> ChannelDelta:
        """Return what the blocks and the canvas `draft [C]` would deliver together."""
        ids, _ = self._until_stop(list(draft))
        parser = self.start.copy()
        return parser.feed([*self.written, *ids]) + parser.finish()

    @property
    def _capped_entropy(self) -> float | None:
        """Mean entropy (nats) of a canvas that the full step cap ended, otherwise None."""
        capped = self._stopped_by is None and self.steps == self.settings.max_denoising_steps
        return self._mean_entropy if capped else None

    def _until_stop(self, canvas: list[int]) -> tuple[list[int], bool]:
        """Ids of `canvas` up to max_new_tokens and the first stop id; True if there is one."""
        ids = canvas[: self.remaining]
        for position, token in enumerate(ids):
            if token in self.settings.eos_token_id:
                return ids[: position + 1], True
        return ids, False

    @property
    def canvas(self) -> list[int]:
        """The whole committed canvas, `[C]`, which the next one follows."""
        return self._canvas


def checked_grammar(grammar: Grammar | None, settings: GenerationConfig) -> Grammar | None:
    """Return `grammar`. `InputError` when its shortest answer does not fit into max_new_tokens."""
    if grammar is not None:
        shortest = len(grammar.shortest)
        if shortest > settings.max_new_tokens:
            raise InputError(
                f"the shortest answer found that the grammar allows takes {shortest} tokens, but "
                f"max_new_tokens is {settings.max_new_tokens}; raise it"
            )
    return grammar
