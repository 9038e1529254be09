"""From a prompt to a `Generation`, which a caller iterates block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .channels import ToolCall
from .control.draft import checked_draft
from .control.grammar import Grammar, compile_grammar
from .control.pins import PinnedTokens, Pins
from .denoise import Step
from .errors import InputError
from .generation_config import GenerationConfig, in_range
from .model import DiffusionGemma
from .prompt_cache import PromptCache
from .row import Block, Row, checked_grammar
from .rules import check_schedule
from .run import Run
from .sampling import checked_seed
from .stats import Stats
from .tokenizer import Tokenizer
from .trace import Trace

__all__ = ["Block", "Generation", "generate", "generate_batch"]


def generate(
    model: DiffusionGemma,
    tokenizer: Tokenizer,
    prompt: str | Sequence[dict[str, Any]] | Sequence[int],
    *,
    thinking: bool = False,
    system: str | None = None,
    tools: Sequence[Any] | None = None,
    seed: int | None = None,
    n: int = 1,
    candidate: int = 0,
    schema: Any = None,
    regex: str | None = None,
    grammar: str | None = None,
    choices: Sequence[str] | None = None,
    draft: str | None = None,
    noise_level: float | None = None,
    pins: Pins | None = None,
    trace: bool = False,
    on_step: Callable[[Step], None] | None = None,
    prompt_cache: PromptCache | None = None,
    **settings: Any,
) -> Generation:
    """Prepares a generation; nothing runs before it is iterated or asked for a result.

    prompt: a question, chat messages (dicts of role and content), or token ids that are taken as they are.
    thinking: let the model think before it answers. system: a system message.
    tools: functions with type hints, or their JSON descriptions.
    seed: same seed, same text; None chooses one (see `.seed`).
    n: how many candidates, from one prefill and with noise of their own (see `Generation.candidates`).
    candidate: number of the first; candidate 2 of a seed is the same alone and among others.
    schema (JSON Schema, or a pydantic model), regex, grammar (Lark), choices: one of them; the answer, not
    the thought, is held to it and complete within max_new_tokens.
    draft: a text to begin with instead of noise. noise_level: up to 1, how much of it noise replaces (0.5).
    pins: place among the ids of thought and answer -> the token id there; or a function that is asked before
    each block, with its index, for those of its canvas.
    trace: keep what each step looked like (see `Generation.trace`), in at most 10 MB a candidate.
    on_step: called with a `Step` after every denoising step; brings canvases to the host, so leave it out
    when nobody watches.
    prompt_cache: keeps what is encoded for the next generation, and is not asked to encode it again.
    settings: fields of `GenerationConfig` that replace the checkpoint's, such as `max_new_tokens=1024`.

    Raises `InputError` for an empty prompt, one beyond the context limit, a bad setting, schema or pattern,
    or when the memory that it would take is more than there is.
    """
    if prompt_cache is not None and prompt_cache.model is not model:
        raise InputError("prompt_cache belongs to another model; make one with PromptCache(model)")
    first, count = in_range("candidate", candidate), in_range("n", n)
    structure = {"schema": schema, "regex": regex, "grammar": grammar, "choices": choices}
    plan = _Plan(model, tokenizer, settings, structure, tools, trace)
    started = None
    if draft is not None or noise_level is not None:
        started = checked_draft(tokenizer, draft, noise_level, plan.settings, model.config, thinking)
    ids = tokenizer.prompt_ids(prompt, thinking=thinking, system=system, tools=tools)
    chosen = checked_seed(seed)
    pinned = plan.pinned(pins) if pins is not None else None
    rows = [plan.row(ids, chosen, thinking, candidate=first + index, pinned=pinned) for index in range(count)]
    return _generations(Run(model, plan.settings, rows, on_step, prompt_cache, started))[0]


def generate_batch(
    model: DiffusionGemma,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[dict[str, Any]] | Sequence[int]],
    *,
    thinking: bool = False,
    system: str | None = None,
    tools: Sequence[Any] | None = None,
    seed: int | None = None,
    schema: Any = None,
    regex: str | None = None,
    grammar: str | None = None,
    choices: Sequence[str] | None = None,
    trace: bool = False,
    on_step: Callable[[Step], None] | None = None,
    **settings: Any,
) -> list[Generation]:
    """One `Generation` a prompt, denoised together; see `generate` for the arguments.

    Each text is what its prompt gives alone with that seed, up to rounding. Asking one for its next block
    runs all that have not ended. Shorter prompts are padded on the left; a row that has ended costs nothing
    more from the next block on.
    """
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not prompts:
        raise InputError("prompts: give a list of prompts, each a question, messages or token ids")
    structure = {"schema": schema, "regex": regex, "grammar": grammar, "choices": choices}
    plan = _Plan(model, tokenizer, settings, structure, tools, trace)
    chosen = checked_seed(seed)
    rows = []
    for index, prompt in enumerate(prompts):
        try:
            ids = tokenizer.prompt_ids(prompt, thinking=thinking, system=system, tools=tools)
        except InputError as error:
            raise InputError(f"prompts: item {index}: {error}") from error
        rows.append(plan.row(ids, chosen, thinking))
    return _generations(Run(model, plan.settings, rows, on_step))


class _Plan:
    """What all rows of a run have in common."""

    def __init__(
        self,
        model: DiffusionGemma,
        tokenizer: Tokenizer,
        settings: dict[str, Any],
        structure: dict[str, Any],
        tools: Any,
        trace: bool,
    ):
        if not isinstance(trace, bool):
            raise InputError(f"trace must be True or False, found {trace!r}")
        self.trace = trace
        self.model, self.tokenizer = model, tokenizer
        self.settings = model.generation_config.override(**settings)
        check_schedule(self.settings)
        self.vocab_size = model.config.text.vocab_size
        compiled: Grammar | None = compile_grammar(
            tokenizer, self.vocab_size, self.settings.eos_token_id, **structure
        )
        self.grammar = checked_grammar(compiled, self.settings)
        if self.grammar is not None and tools:
            raise InputError("tools: a call is not what schema, regex, grammar or choices allow; give one")

    def pinned(self, pins: Pins) -> PinnedTokens:
        if self.grammar is not None:
            raise InputError(
                "pins: schema, regex, grammar and choices pin tokens, too; give one or the other"
            )
        return PinnedTokens(pins, self.settings, self.model.config.canvas_length, self.vocab_size)

    def row(
        self,
        prompt_ids: list[int],
        seed: int,
        thinking: bool,
        candidate: int = 0,
        pinned: PinnedTokens | None = None,
    ) -> Row:
        return Row(
            *(self.tokenizer, self.settings, self.model.config.canvas_length, self.vocab_size, prompt_ids),
            seed=seed,
            candidate=candidate,
            thinking=thinking,
            grammar=self.grammar,
            pinned=pinned,
            trace=Trace() if self.trace else None,
        )


def _generations(run: Run) -> list[Generation]:
    generations: list[Generation] = []
    generations += [Generation(run, row, generations) for row in run.rows]
    return generations


class Generation:
    """An answer in the making. Iterating yields each `Block` as its canvas converges.

    `thought`, `answer`, `tool_calls`, `finish_reason`, `token_ids` and `str()` run to the end first;
    `blocks`, `stats`, `trace`, `seed`, `candidate`, `prompt_ids`, `settings` and `tokenizer` show what is
    there. Iterating again replays the blocks. `candidates`: all that share its steps, itself included; what
    one of them waits for, all run. `trace`: what the denoising steps looked like, None unless asked for.
    In a notebook it displays itself, run to the end: channels, statistics and, with a trace, its canvases;
    one that failed shows what it delivered, and why.
    """

    def __init__(self, run: Run, row: Row, candidates: list[Generation]):
        self._run, self._row = run, row
        self.candidates = candidates

    @property
    def settings(self) -> GenerationConfig:
        return self._row.settings

    @property
    def prompt_ids(self) -> list[int]:
        return self._row.prompt_ids

    @property
    def seed(self) -> int:
        return self._row.seed

    @property
    def candidate(self) -> int:
        return self._row.candidate

    @property
    def blocks(self) -> list[Block]:
        return self._row.blocks

    @property
    def stats(self) -> Stats:
        return self._row.stats

    @property
    def trace(self) -> Trace | None:
        return self._row.trace

    @property
    def tokenizer(self) -> Tokenizer:
        return self._row.tokenizer

    def __iter__(self) -> Iterator[Block]:
        index = 0
        while True:
            if index == len(self.blocks) and self._row.finish_reason is None:
                self._run.advance()
            if index == len(self.blocks):
                return
            yield self.blocks[index]
            index += 1

    @property
    def thought(self) -> str:
        return "".join(block.thought for block in self)

    @property
    def answer(self) -> str:
        return "".join(block.answer for block in self)

    @property
    def tool_calls(self) -> list[ToolCall]:
        return [call for block in self for call in block.tool_calls]

    @property
    def token_ids(self) -> list[int]:
        return [token for block in self for token in block.token_ids]

    @property
    def finish_reason(self) -> str | None:
        """Why it ended: "stop", a stop id; "length", max_new_tokens; None when it was interrupted."""
        list(self)
        return self._row.finish_reason

    def __str__(self) -> str:
        return self.answer

    def __repr__(self) -> str:
        blocks, tokens = len(self.blocks), self.stats.new_tokens
        ended = self._row.finish_reason or "not ended"
        return f"<Generation: {blocks} blocks, {tokens} tokens, {ended}, seed {self.seed}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """What Jupyter shows. include, exclude: kinds of it, which IPython sorts out itself."""
        from .display.notebook import page, plain_text

        return {"text/plain": plain_text(self), "text/html": page(self)}
