"""Turns a caller's keywords into rows for the engine, with settings, grammar and constraints."""

from __future__ import annotations

import dataclasses
from typing import Any

from .answer import Answer
from .control.budget import ThinkingBudget, answer_reserve
from .control.compiling import compile_grammar
from .control.draft import Draft, checked_draft
from .control.guards import Guards
from .control.pins import PinnedTokens, Pins
from .control.structure import AfterThought, Structure
from .engine.constraint import CanvasSpec, Constraint
from .engine.memory import fits
from .engine.row import Row, RowKey
from .engine.settings import Settings, SettingsDict
from .engine.trace import Trace
from .errors import InputError
from .model import DiffusionGemma
from .prompt import Prompt
from .text.channels import ChannelParser
from .text.tokenizer import Tokenizer


def check_loaded(model: Any, tokenizer: Any) -> None:
    """Raise `InputError` for a model or tokenizer that `load` did not return, such as a name."""
    for name, value, method in (("model", model, "make_cache"), ("tokenizer", tokenizer, "prompt")):
        if not hasattr(value, method):
            raise InputError(
                f"{name}: found {type(value).__name__}; pass both results of mlx_dg.load: "
                "generate(model, tokenizer, prompt)"
            )


def canvas_spec(model: DiffusionGemma, tokenizer: Tokenizer, settings: Settings) -> CanvasSpec:
    """Return the sizes and special ids that all canvases of a generation share."""
    return CanvasSpec(
        length=model.config.canvas_length,
        vocab_size=model.config.text.vocab_size,
        stop_ids=settings.eos_token_id,
        pad_id=tokenizer.special.pad or 0,
    )


class Request:
    """Everything that the rows of a batch share: model, settings, grammar.

    Args:
        settings: settings that the caller changes.
        structure: `schema`, `regex`, `grammar` and `choices` of the caller, for `compile_grammar`.
    """

    def __init__(
        self,
        model: DiffusionGemma,
        tokenizer: Tokenizer,
        settings: SettingsDict,
        structure: dict[str, Any],
        *,
        thinking: bool,
        trace: bool,
    ):
        check_loaded(model, tokenizer)
        if not isinstance(trace, bool):
            raise InputError(f"trace must be True or False, found {trace!r}")
        self.model, self.tokenizer, self.thinking, self.trace = model, tokenizer, thinking, trace
        self.settings = Settings.of(model.generation_config, **settings)
        self.settings = dataclasses.replace(self.settings, eos_token_id=self._stop_ids())
        self.limit: tuple[str, str] | None = None
        self._is_default = settings.get("max_new_tokens") is None
        self.settings.check_schedule()
        self.spec = canvas_spec(model, tokenizer, self.settings)
        self.grammar = compile_grammar(
            tokenizer, self.spec.vocab_size, self.settings.eos_token_id, **structure
        )
        self._check_grammar()

    def _stop_ids(self) -> tuple[int, ...]:
        """Return the stop ids that caller or checkpoint set, and the ids that always end the model's turn."""
        special, known = self.tokenizer.special, self.settings.eos_token_id
        size = self.model.config.text.vocab_size
        ends = [special.turn_close, special.tool_response_open]
        return (*known, *(end for end in ends if end is not None and end < size and end not in known))

    def shrink_default(self, prompt_tokens: int, rows: int, cache_bytes: int = 0) -> None:
        """Unless the caller set max_new_tokens, lower it to what fits in the context and in memory."""
        if not self._is_default:
            return
        length, most = self.spec.length, self.settings.max_new_tokens
        context = self.model.config.text.max_position_embeddings
        room = (context - prompt_tokens) // length * length
        if room < most:
            most = max(min(most, length), min(most, room))
            self.limit = f"the context of {context} tokens", "shorten the prompt"
        chunk = self.settings.prefill_step_size
        while most > length and not fits(self.model, prompt_tokens, most, chunk, rows, cache_bytes):
            most = max(length, most // 2 // length * length)
            self.limit = f"memory, which has room for {most} new tokens,", "free some or shorten the prompt"
        if most < self.settings.max_new_tokens:
            self.settings = self.settings.override(max_new_tokens=most)
            self._check_grammar()

    def _check_grammar(self) -> None:
        """Raise `InputError` if the shortest answer does not fit in max_new_tokens."""
        if self.grammar is not None and len(self.grammar.shortest) > self.settings.max_new_tokens:
            raise InputError(
                f"the shortest answer found that the grammar allows takes {len(self.grammar.shortest)} "
                f"tokens, but max_new_tokens is {self.settings.max_new_tokens}; raise it"
            )

    def pinned(self, pins: Pins) -> PinnedTokens:
        if self.grammar is not None:
            raise InputError("pins: schema, regex, grammar and choices also pin tokens; use only one")
        return PinnedTokens(pins, self.settings, self.spec)

    def draft(self, text: str | None, noise_level: float | None, start: ChannelParser) -> Draft | None:
        if text is None and noise_level is None:
            return None
        draft = checked_draft(self.tokenizer, text, noise_level, self.settings, self.spec, self.thinking)
        if start.in_thought:
            raise InputError(
                "draft: the prompt ends inside a thought, and a draft is an answer; close the thought"
            )
        return draft

    def answer(self, prompt: Prompt, start: ChannelParser, key: RowKey, *more: Constraint | None) -> Answer:
        """Return a new `Answer` with its row.

        start: the channel parser at the end of the prompt.
        more: constraints besides guards, grammar and thinking budget. None is skipped.
        """
        if prompt.images or prompt.unplaced:
            prompt = self.model.placed(prompt)
            self.model.check_images([prompt])
        if self.grammar is not None and start.in_call:
            raise InputError(
                "the prompt ends inside a tool call, but schema, regex, grammar and choices are for answers; "
                "close the call or leave them out"
            )
        structure = Structure(self.grammar) if self.grammar is not None else None
        budget = self._budget(start, structure)
        constraints: list[Constraint] = [Guards(start, self.settings)]
        if structure is not None:
            constraints.append(structure if budget is None else AfterThought(budget, structure))
        elif budget is not None:
            constraints.append(budget)
        constraints += [constraint for constraint in more if constraint is not None]
        row = Row(prompt, self.settings, self.spec, key, constraints)
        trace = Trace() if self.trace else None
        return Answer(row, self.tokenizer, start, budget, structure, trace, self.limit)

    def _budget(self, start: ChannelParser, structure: Structure | None) -> ThinkingBudget | None:
        settings = self.settings
        wanted = settings.thinking_budget is not None or settings.answer_reserve is not None
        if not wanted and (structure is None or self.tokenizer.special.channel_open is None):
            return None
        shortest = structure.shortest if structure is not None else 0
        budget = ThinkingBudget(
            self.tokenizer,
            start,
            self.spec,
            thinking=self.thinking,
            tokens=settings.thinking_budget,
            reserve=max(answer_reserve(settings, self.spec.length), shortest),
            most=settings.max_new_tokens,
        )
        if shortest + budget.least > settings.max_new_tokens:
            raise InputError(
                f"the shortest answer that the grammar allows takes {shortest} tokens, and the end of the "
                f"thought that the prompt opens takes {budget.least}, but max_new_tokens is "
                f"{settings.max_new_tokens}; raise it"
            )
        return budget
