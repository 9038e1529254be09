"""Runner that generates with this package."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any

from ...checkpoint.loading import load, resolve
from ...config.model import ModelConfig
from ...console.messages import one_line
from ...engine.noise import DrawsOf
from ...engine.settings import Settings
from ...errors import GenerationError, InputError
from ...generation import Generation, generate
from ...model import DiffusionGemma
from ...ops import metal
from ...text.channels import ToolCall
from ...text.tokenizer import Tokenizer
from ..task import Cost, Reply, Task
from . import WARM_UP, checkpoint


class Native:
    """Runs `load` and `generate`. Seconds run from messages to text and include compiling a schema.

    Candidates share denoising steps. The time of these is divided equally among them.
    """

    name = "mlx_dg"
    draws: DrawsOf | None = None

    def __init__(self, model: str):
        self._directory = resolve(model)
        self._config = ModelConfig.load(self._directory)
        self._defaults = Settings.load(self._directory, self._config.eos_token_id)
        dtype = checkpoint.stored_dtype(self._directory) if metal.on_gpu() else "float32"
        prints = checkpoint.fingerprint(self._directory)
        self._model = {"model": model, "checkpoint": prints, "dtype": dtype}

    @classmethod
    def of(cls, model: DiffusionGemma, tokenizer: Tokenizer, draws: DrawsOf | None = None) -> Native:
        """Return a runner of a model that is already loaded."""
        runner = cls.__new__(cls)
        runner._config, runner._defaults = model.config, Settings.of(model.generation_config)
        prints, dtype = checkpoint.fingerprint_of(model), str(model.dtype).removeprefix("mlx.core.")
        runner._model = {"model": "a loaded model", "checkpoint": prints, "dtype": dtype}
        runner.draws, runner._loaded = draws, _warmed_up(model, tokenizer)
        return runner

    def identity(self) -> dict[str, Any]:
        return {
            "runner": self.name,
            **self._model,
            "device": checkpoint.device(),
            "kernels": metal.enabled(),
            "draws": self.draws and getattr(self.draws, "__qualname__", repr(self.draws)),
            "versions": checkpoint.versions("mlx-diffusiongemma", "llguidance"),
        }

    def objection(self, task: Task) -> str | None:
        self._defaults.override(**task.settings)  # raises before minutes of loading
        return None

    def __call__(self, task: Task, seed: int, n: int = 1) -> list[Reply]:
        try:
            generation, setup = self._start(task, task.messages, seed, n)
        except InputError as error:
            self._start(task, WARM_UP, seed, n)  # raises unless the prompt is the cause
            return [Reply("", error=one_line(error))] * n
        try:
            list(generation)  # runs all candidates
            seconds = setup + sum(each.stats.seconds for each in generation.candidates)
            return [_reply(candidate, seconds) for candidate in generation.candidates]
        except GenerationError as error:
            return [Reply("", error=one_line(error))] * n

    def _start(
        self, task: Task, prompt: str | list[dict[str, Any]], seed: int, n: int
    ) -> tuple[Generation, float]:
        """Return the generation, not yet run, and the seconds to encode its prompt and compile its schema."""
        model, tokenizer = self._loaded
        how: dict[str, Any] = {"thinking": task.thinking, "tools": list(task.tools) or None}
        length = len(tokenizer.prompt_ids(prompt, **how))
        most = self._defaults.override(**task.settings).max_new_tokens
        fitting = checkpoint.room(self._config, length, most) or most  # when none fits, `generate` says so
        how |= task.settings | {"schema": task.schema, "max_new_tokens": fitting}
        if self.draws is not None:
            how["draws"] = self.draws
        start = time.perf_counter()
        generation = generate(model, tokenizer, prompt, seed=seed, n=n, **how)
        return generation, time.perf_counter() - start

    @cached_property
    def _loaded(self) -> tuple[DiffusionGemma, Tokenizer]:
        return _warmed_up(*load(self._directory))


def _warmed_up(model: DiffusionGemma, tokenizer: Tokenizer) -> tuple[DiffusionGemma, Tokenizer]:
    brief: dict[str, Any] = {"max_new_tokens": 1, "max_denoising_steps": 2, "guard_unconverged": False}
    list(generate(model, tokenizer, WARM_UP, seed=0, **brief))
    return model, tokenizer


def _reply(generation: Generation, seconds: float) -> Reply:
    blocks, stats = tuple(block.answer for block in generation), generation.stats
    counts = (stats.new_tokens, stats.answer_tokens, stats.blocks, stats.denoising_steps)
    return Reply(
        answer=generation.answer,
        thought=generation.thought,
        finish_reason=generation.finish_reason or "length",
        tool_calls=plain_calls(generation.tool_calls),
        blocks=blocks,
        cost=Cost(seconds, *counts),
        settings={"max_new_tokens": generation.settings.max_new_tokens},
    )


def plain_calls(calls: list[ToolCall]) -> tuple[tuple[str, dict[str, Any]], ...]:
    return tuple((call.name, call.arguments) for call in calls)
