"""Canvas after canvas: the `Generation` that a caller iterates."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from .channels import ChannelParser, ToolCall
from .denoise import Step, denoise
from .errors import GenerationError, InputError
from .generation_config import GenerationConfig
from .memory import check_fits, wired_limit
from .model import DiffusionGemma
from .prompt_cache import PromptCache
from .sampling import SeededDraws
from .stats import Stats
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Block:
    """One committed canvas, cut at the stop id and at `max_new_tokens`.

    thought, answer, tool_calls: what this block added to each. token_ids: up to and including the stop id.
    mean_entropy: nats, at the last step. converged: False when the step cap ended the canvas.
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


def generate(
    model: DiffusionGemma,
    tokenizer: Tokenizer,
    prompt: str | Sequence[dict[str, Any]] | Sequence[int],
    *,
    thinking: bool = False,
    system: str | None = None,
    tools: Sequence[Any] | None = None,
    seed: int | None = None,
    on_step: Callable[[Step], None] | None = None,
    prompt_cache: PromptCache | None = None,
    **settings: Any,
) -> Generation:
    """Prepares a generation; nothing runs before it is iterated or asked for a result.

    prompt: a question, chat messages (dicts of role and content), or token ids that are taken as they are.
    thinking: let the model think before it answers. system: a system message. tools: functions with
    type hints, or their JSON descriptions. seed: same seed, same text; None chooses one (see `.seed`).
    on_step: called with a `Step` after every denoising step; brings canvases to the host, so leave it
    out when nobody watches. prompt_cache: keeps what is encoded for the next generation; what it holds of
    this prompt is not encoded again. settings: fields of `GenerationConfig` that replace the checkpoint's,
    such as `max_new_tokens=1024, entropy_bound=0.05`.

    Raises `InputError` for an empty prompt, one beyond the context limit, a bad setting, or when the memory
    that it would take is more than there is.
    """
    if prompt_cache is not None and prompt_cache.model is not model:
        raise InputError("prompt_cache belongs to another model; make one with PromptCache(model)")
    return Generation(
        model,
        tokenizer,
        tokenizer.prompt_ids(prompt, thinking=thinking, system=system, tools=tools),
        model.generation_config.override(**settings),
        checked_seed(seed),
        on_step,
        prompt_cache,
    )


class Generation:
    """An answer in the making. Iterating yields each `Block` as its canvas converges.

    `thought`, `answer`, `tool_calls`, `finish_reason`, `token_ids` and `str()` run to the end first;
    `blocks`, `stats`, `seed` and `prompt_ids` show what is there. Iterating again replays the blocks.
    """

    def __init__(
        self,
        model: DiffusionGemma,
        tokenizer: Tokenizer,
        prompt_ids: list[int],
        settings: GenerationConfig,
        seed: int,
        on_step: Callable[[Step], None] | None = None,
        prompt_cache: PromptCache | None = None,
    ):
        self.model, self.tokenizer, self.settings, self.on_step = model, tokenizer, settings, on_step
        self.prompt_ids, self.seed, self.prompt_cache = prompt_ids, seed, prompt_cache
        self.blocks: list[Block] = []
        self.stats = Stats(model.config.canvas_length, len(prompt_ids))
        self._finish_reason: str | None = None
        self._canvases = math.ceil(settings.max_new_tokens / model.config.canvas_length)
        self._positions = len(prompt_ids) + self._canvases * model.config.canvas_length
        self._check_prompt()
        self._running = self._run()
        self._failure: Exception | None = None
        self._busy = False

    def __iter__(self) -> Iterator[Block]:
        index = 0
        while index < len(self.blocks) or self._advance():
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
        return self._finish_reason

    def __str__(self) -> str:
        return self.answer

    def _advance(self) -> bool:
        """Runs until the next block is there; False when there is none."""
        if self._failure is not None:
            raise GenerationError(
                f"this generation failed ({type(self._failure).__name__}); start a new one, "
                "what it delivered is in .blocks"
            ) from self._failure
        if self._busy:
            raise GenerationError(
                "this generation is running already; ask it neither from its own on_step nor from two threads"
            )
        self._busy = True
        try:
            block = next(self._running, None)
        except Exception as error:
            self._failure = error
            raise
        finally:
            self._busy = False
        if block is not None:
            self.blocks.append(block)
        return block is not None

    def _run(self) -> Iterator[Block]:
        with wired_limit():
            yield from self._blocks()

    def _blocks(self) -> Iterator[Block]:
        model, settings, stats = self.model, self.settings, self.stats
        mx.reset_peak_memory()
        clock = time.perf_counter()
        cache = self.prompt_cache or PromptCache(model)
        ticket = cache.acquire()
        if self.prompt_cache is None:
            cache.prefix.reserved = self._positions
            cache.encode(self.prompt_ids, settings.prefill_step_size)
        else:
            stats.cached_tokens = cache.encode_prompt(
                self.prompt_ids, settings.prefill_step_size, self._positions
            )
        stats.prefill_seconds = time.perf_counter() - clock

        parser = ChannelParser(self.tokenizer)
        remaining = settings.max_new_tokens
        for index in range(self._canvases):
            draws = SeededDraws(
                self.seed,
                [0],
                index,
                attempt=0,
                length=stats.canvas_length,
                vocab_size=model.config.text.vocab_size,
            )
            started = time.perf_counter()
            canvas = denoise(model, cache.prefix, settings, draws, self.on_step)
            cache.check(ticket)
            now = time.perf_counter()
            stats.denoising_seconds += now - started

            canvas_ids: list[int] = np.array(canvas.ids)[0].tolist()
            ids, stopped = _until_stop(canvas_ids[:remaining], settings.eos_token_id)
            remaining -= len(ids)
            self._finish_reason = "stop" if stopped else "length" if remaining == 0 else None
            delta = parser.feed(ids)
            if self._finish_reason:
                delta += parser.finish()

            stats.blocks += 1
            stats.denoising_steps += canvas.steps
            stats.new_tokens += len(ids)
            stats.answer_tokens += delta.answer_tokens
            stats.peak_memory_gb = max(stats.peak_memory_gb, mx.get_peak_memory() / 1e9)
            stats.seconds += now - clock
            yield Block(
                index=index,
                token_ids=ids,
                thought=delta.thought,
                answer=delta.answer,
                tool_calls=delta.tool_calls,
                denoising_steps=canvas.steps,
                mean_entropy=canvas.mean_entropy[0],
                converged=canvas.converged[0],
                seconds=now - started,
            )
            clock = time.perf_counter()  # the caller's own time between blocks is not ours
            if self._finish_reason:
                return
            cache.check(ticket)
            cache.encode(canvas_ids, settings.prefill_step_size)

    def _check_prompt(self) -> None:
        vocab_size = self.model.config.text.vocab_size
        if max(self.prompt_ids) >= vocab_size:  # MLX would read beyond the embedding table without a word
            raise InputError(
                f"the prompt has token id {max(self.prompt_ids)}, but the model's ids end at {vocab_size - 1}"
            )
        limit, settings = self.model.config.text.max_position_embeddings, self.settings
        if self._positions > limit:
            raise InputError(
                f"the prompt has {len(self.prompt_ids)} tokens and max_new_tokens "
                f"{settings.max_new_tokens} needs {self._canvases} canvases of {self.stats.canvas_length}: "
                f"{self._positions} positions, but the context holds {limit}; "
                "shorten the prompt or lower max_new_tokens"
            )
        sizes = (len(self.prompt_ids), settings.max_new_tokens, settings.prefill_step_size)
        check_fits(self.model, *sizes, held=self.prompt_cache.nbytes if self.prompt_cache else 0)


def _until_stop(ids: list[int], stop_ids: tuple[int, ...]) -> tuple[list[int], bool]:
    """`ids` up to and including the first stop id, and whether there was one."""
    for position, token in enumerate(ids):
        if token in stop_ids:
            return ids[: position + 1], True
    return ids, False


def checked_seed(seed: int | None) -> int:
    """`seed`, or a new one for None; `InputError` when it is out of range."""
    if seed is None:
        return secrets.randbits(32)
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= seed < 2**64:
        raise InputError(f"seed must be an integer from 0 to 2**64 - 1, found {seed!r}")
    return int(seed)
