"""`generate` and `generate_batch`: from a prompt to a `Generation`, which the caller iterates by block."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .answer import Answer, Block
from .config.ranges import in_range
from .console.messages import count
from .control.pins import Pins
from .engine.noise import DrawsOf, checked_seed
from .engine.prompt_cache import PromptCache
from .engine.row import FinishReason, RowKey
from .engine.settings import Settings, SettingsDict
from .engine.state import Step
from .engine.stats import Stats
from .engine.trace import Trace
from .errors import GenerationError, InputError
from .habits import takes_settings
from .model import DiffusionGemma
from .request import Request
from .text.channels import ChannelParser, ToolCall
from .text.tokenizer import Tokenizer
from .writer import Writer

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Block", "Generation", "Preview", "generate", "generate_batch"]


@takes_settings
def generate(
    model: DiffusionGemma,
    tokenizer: Tokenizer,
    prompt: str | Sequence[Mapping[str, Any]] | Sequence[int],
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
    draws: DrawsOf | None = None,
    timeout: float | None = None,
    allow_special_tokens: bool = False,
    **settings: Unpack[SettingsDict],
) -> Generation:
    """Prepare a generation. It runs when it is iterated or asked for a result.

    Args:
        prompt: a question, chat messages (dicts with role and content), or token ids, which are used
            unchanged.
        thinking: let the model think before it answers.
        system: a system message.
        tools: functions with type hints, or their JSON descriptions.
        seed: the same seed gives the same text. None chooses one (see `Generation.seed`).
        n: number of candidates. They share one prefill and differ in their noise (see
            `Generation.candidates`).
        candidate: number of the first candidate. Candidate 2 of a seed is the same alone and among others.
        schema: JSON Schema, or a type that pydantic understands, such as a model class or `list[City]` (see
            `Generation.parsed`). The answer, not the thought, matches it and is complete within
            max_new_tokens.
        regex, grammar, choices: a pattern, a grammar in Lark's syntax, or a list of texts to match instead of
            a schema. At most one of the four.
        draft: a text to start from instead of noise.
        noise_level: share of the draft that noise replaces, above 0, up to 1. Default 0.5.
        pins: position among the ids of thought and answer -> the token id there. Or a function that gets the
            index of each block and returns the pins of its canvas.
        trace: keep every denoising step (see `Generation.trace`), in at most 10 MB per candidate.
        on_step: called with a `Step` after every denoising step. This copies canvases to the host, so leave
            it out if you do not need it.
        prompt_cache: keeps the encoded tokens for the next generation.
        draws: function that returns the `engine.noise.Draws` of a canvas, from its rows' keys, its length and
            the vocabulary size. None for `SeededDraws`.
        timeout: seconds from the first step. The generation then ends with its blocks so far and
            `finish_reason` "length".
        allow_special_tokens: let special tokens that messages and tools spell, such as `<turn|>`, be
            structure of the prompt. By default they are plain text.
        settings: fields of `Settings` that replace the checkpoint's, such as `max_new_tokens=1024`.

    Raises:
        InputError: the prompt is empty or exceeds the context limit, a setting, schema or pattern is invalid,
            or the generation needs more memory than there is.
    """
    if prompt_cache is not None and not isinstance(prompt_cache, PromptCache):
        raise InputError(
            f"prompt_cache: found {type(prompt_cache).__name__}; make one with PromptCache(model)"
        )
    if prompt_cache is not None and prompt_cache.model is not model:
        raise InputError("prompt_cache belongs to another model; make one with PromptCache(model)")
    first, rows = in_range("candidate", candidate), in_range("n", n)
    seconds = None if timeout is None else in_range("timeout", timeout)
    structure = {"schema": schema, "regex": regex, "grammar": grammar, "choices": choices}
    request = Request(model, tokenizer, settings, structure, thinking=thinking, trace=trace)
    _check_tools(tools, request)
    encoded = tokenizer.encode_prompt(
        prompt, thinking=thinking, system=system, tools=tools, allow_special_tokens=allow_special_tokens
    )
    request.shrink_default(len(encoded), rows, prompt_cache.nbytes if prompt_cache is not None else 0)
    start = ChannelParser(tokenizer, encoded.ids)
    more = request.draft(draft, noise_level, start), request.pinned(pins) if pins is not None else None
    chosen = checked_seed(seed)
    keys = [RowKey(chosen, first + number) for number in range(rows)]
    answers = [request.answer(encoded, start, key, *more) for key in keys]
    writer = Writer(model, answers, on_step, prompt_cache, seconds, draws=draws)
    return _generations(writer, schema)[0]


@takes_settings
def generate_batch(
    model: DiffusionGemma,
    tokenizer: Tokenizer,
    prompts: Iterable[str | Sequence[Mapping[str, Any]] | Sequence[int]],
    *,
    batch_size: int | None = None,
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
    timeout: float | None = None,
    allow_special_tokens: bool = False,
    progress: bool = True,
    **settings: Unpack[SettingsDict],
) -> list[Generation]:
    """Return one `Generation` for each prompt, denoised together. See `generate` for the other arguments.

    Up to rounding, each text is the one that its prompt gives alone with the same seed. Asking one generation
    for its next block runs every unfinished generation of its batch. Shorter prompts are padded on the left.
    A row that has ended costs nothing from the next block on. A row's statistics count its share of the time.

    Args:
        prompts: a list, an array, a pandas Series or any other iterable of prompts.
        batch_size: maximum number of prompts that are denoised together. None for all. A larger batch needs
            more memory.
        progress: show a bar of finished prompts on a terminal.
        timeout: seconds for each batch.
    """
    try:
        items = [] if isinstance(prompts, str | bytes | Mapping) else list(prompts)
    except TypeError:
        items = []
    if not items:
        raise InputError(
            f"prompts: found {type(prompts).__name__}, not a list with prompts in it; "
            "each is a question, messages or token ids"
        )
    size = len(items) if batch_size is None else in_range("batch_size", batch_size)
    seconds = None if timeout is None else in_range("timeout", timeout)
    structure = {"schema": schema, "regex": regex, "grammar": grammar, "choices": choices}
    request = Request(model, tokenizer, settings, structure, thinking=thinking, trace=trace)
    _check_tools(tools, request)
    key = RowKey(checked_seed(seed))
    how: dict[str, Any] = {"thinking": thinking, "system": system, "tools": tools}
    encoded = []
    for index, prompt in enumerate(items):
        try:
            encoded.append(tokenizer.encode_prompt(prompt, **how, allow_special_tokens=allow_special_tokens))
        except InputError as error:
            raise InputError(f"prompts: item {index}: {error}") from error
    request.shrink_default(max(map(len, encoded)), min(size, len(items)))
    bar = _Bar(len(items)) if progress and len(items) > 1 else None
    generations = []
    for first in range(0, len(items), size):
        answers = [
            request.answer(each, ChannelParser(tokenizer, each.ids), key)
            for each in encoded[first : first + size]
        ]
        on_end = bar.update if bar is not None else None
        generations += _generations(Writer(model, answers, on_step, timeout=seconds, on_end=on_end), schema)
    return generations


def _check_tools(tools: Any, request: Request) -> None:
    if request.grammar is not None and tools:
        raise InputError(
            "tools: a call is not what schema, regex, grammar or choices allow; leave one of the two out"
        )


class _Bar:
    """A progress bar that appears after the first prompt has ended."""

    def __init__(self, total: int):
        self._total = total
        self._bar: Any = None

    def update(self, ended: int) -> None:
        from .console.progress import bar

        if self._bar is None:
            self._bar = bar("prompts", total=self._total, unit="prompt")
        self._bar.update(ended)
        if self._bar.n >= self._total:
            self._bar.close()


def _generations(writer: Writer, schema: Any) -> list[Generation]:
    return [Generation(writer, answer, schema) for answer in writer.answers]


class Preview(NamedTuple):
    """Clean text of the committed blocks followed by the current draft of a canvas."""

    thought: str
    answer: str


class Generation:
    """An answer that is written while you iterate. Each `Block` arrives when its canvas has converged.

    `thought`, `answer`, `tool_calls`, `parsed`, `finish_reason`, `token_ids`, `to_dict()` and `str()` first
    run the generation to its end. `blocks`, `warnings`, `stats`, `trace`, `seed`, `candidate`, `prompt_ids`,
    `settings` and `tokenizer` return at once. Iterating again replays the blocks. `async for` also works, and
    runs steps in another thread.

    `close()` ends the generation with the blocks so far, and so does leaving it as a context manager. An
    ended generation can be pickled. The copy lacks its tokenizer and its candidates.

    In a notebook it runs to its end and displays channels, statistics and, with a trace, its canvases. A
    failed generation shows its blocks and the reason.

    candidates: generations that share the steps, including this one. Running one runs all. Two objects for
        the same answer are equal.
    warnings: problems that a reader should know about, in single blocks and in the whole answer.
    trace: the denoising steps, or None without `trace=True`.
    """

    def __init__(
        self,
        writer: Writer | None,
        answer: Answer,
        schema: Any = None,
    ):
        self._writer, self._answer, self._schema = writer, answer, schema

    @property
    def candidates(self) -> list[Generation]:
        # Created on each call: a stored list would be a reference cycle that keeps the model alive.
        answers = [self._answer] if self._writer is None else self._writer.answers
        return [
            self if answer is self._answer else Generation(self._writer, answer, self._schema)
            for answer in answers
        ]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Generation) and other._answer is self._answer

    def __hash__(self) -> int:
        return id(self._answer)

    @property
    def settings(self) -> Settings:
        return self._answer.row.settings

    @property
    def prompt_ids(self) -> list[int]:
        return list(self._answer.row.prompt.ids)

    @property
    def seed(self) -> int:
        return self._answer.row.key.seed

    @property
    def candidate(self) -> int:
        return self._answer.row.key.candidate

    @property
    def blocks(self) -> list[Block]:
        return self._answer.blocks

    @property
    def warnings(self) -> list[str]:
        return self._answer.warnings

    @property
    def stats(self) -> Stats:
        return self._answer.stats

    @property
    def trace(self) -> Trace | None:
        return self._answer.trace

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, or None after unpickling."""
        return self._answer.tokenizer

    @property
    def state(self) -> Literal["not started", "running", "ended", "closed", "failed"]:
        """Progress of the generation. "closed" means that `close()` or an interrupt ended it early."""
        if self._answer.finish_reason is not None:
            return "ended"
        if self._writer is None:
            return "failed" if getattr(self._answer, "failed", False) else "closed"
        if self._writer.failure is not None:
            return "failed"
        if self._answer.row.closed:
            return "closed"
        if not self._writer.started:
            return "not started"
        return "closed" if self._writer.is_over else "running"

    def close(self) -> None:
        """End the generation with the blocks so far. Its other candidates continue.

        May be called from any thread. A canvas that is being denoised stops after its current step. A prompt
        cache keeps the encoded prompt, so asking again needs no prefill.
        """
        if self._answer.finish_reason is None:
            self._answer.row.closed = True
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Block]:
        index = 0
        while True:
            if index == len(self.blocks) and self.state not in ("ended", "closed"):
                if self._writer is None:
                    raise GenerationError(
                        "this generation failed before it was pickled; its blocks are in .blocks"
                    )
                self._writer.advance()
            if index == len(self.blocks):
                return
            yield self.blocks[index]
            index += 1

    async def __aiter__(self) -> AsyncIterator[Block]:
        blocks = iter(self)
        while True:
            try:
                block = await asyncio.to_thread(next, blocks, None)
            except asyncio.CancelledError:
                self.close()
                raise
            if block is None:
                return
            yield block

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
    def parsed(self) -> Any:
        """The answer as an object of the type passed as `schema`, or as plain values for a JSON Schema.

        Raises:
            InputError: the generation has no schema.
            GenerationError: the answer is incomplete, or the type's own validators reject it.
        """
        from .control.schema_types import parser_of

        if self._schema is None:
            raise InputError("parsed: the generation has no schema; pass schema= to generate")
        answer = self.answer
        if self.state != "ended":
            raise GenerationError(f"parsed: the generation is {self.state}, so its answer is not complete")
        return parser_of(self._schema)(answer)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Reason for the end: "stop" (a stop id), "length" (max_new_tokens or timeout), None if closed."""
        list(self)
        return self._answer.finish_reason

    def preview(self, step: Step) -> Preview:
        """Return thought and answer as if the canvas of `step` were committed now.

        Use it to show text in `on_step`. It has no special tokens and ends at the stop id. Each step may
        change it.
        """
        number = self.candidates.index(self)
        if self._writer is None or number not in step.rows:  # its canvas is accepted and waits for other rows
            blocks = self.blocks
            return Preview("".join(b.thought for b in blocks), "".join(b.answer for b in blocks))
        delta = self._answer.preview(step.draft_ids[step.rows.index(number)])
        return Preview(delta.thought, delta.answer)

    def to_dict(self) -> dict[str, Any]:
        """Return answer, thought, calls, finish reason, warnings and statistics, ready for JSON."""
        return {
            "answer": self.answer,
            "thought": self.thought,
            "tool_calls": [asdict(call) for call in self.tool_calls],
            "finish_reason": self.finish_reason,
            "seed": self.seed,
            "candidate": self.candidate,
            "warnings": list(self.warnings),
            "token_ids": self.token_ids,
            "stats": self.stats.to_dict(),
        }

    def to_json(self) -> str:
        """Return `to_dict()` as one line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.state in ("not started", "running"):
            raise GenerationError(
                f"a generation that is {self.state} cannot be pickled; run it to its end or close it first"
            )
        answer, row = self._answer, self._answer.row
        fields = {
            name: getattr(answer, name) for name in ("blocks", "warnings", "stats", "trace", "finish_reason")
        }
        written = {name: getattr(row, name) for name in ("settings", "prompt", "key", "closed")}
        failed = self.state == "failed"
        return _unpickled, (SimpleNamespace(**fields, tokenizer=None, failed=failed), written, self._schema)

    def __str__(self) -> str:
        return self.answer

    def __repr__(self) -> str:
        state, blocks = self.state, len(self.blocks)
        ended = f"ended ({self._answer.finish_reason})" if state == "ended" else state
        written = f"{count(blocks, 'block')}, {self.stats.new_tokens} tokens"
        return f"<Generation: {ended}, {written}, seed {self.seed}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """Return the view for notebooks. IPython itself applies `include` and `exclude`."""
        from .display.notebook import page, plain_text

        return {"text/plain": plain_text(self), "text/html": page(self)}


def _unpickled(answer: Any, written: dict[str, Any], schema: Any) -> Generation:
    answer.row = SimpleNamespace(**written)
    return Generation(None, answer, schema)
