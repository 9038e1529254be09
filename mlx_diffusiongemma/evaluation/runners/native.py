"""This package as a runner."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any

from ...checkpoint.loading import load, resolve
from ...config.generation import GenerationConfig
from ...config.model import ModelConfig
from ...errors import GenerationError, InputError
from ...generation import Generation, generate
from ...ops import metal
from ...text.channels import ToolCall
from ..task import Cost, Reply, Task
from . import WARM_UP, checkpoint, one_line


class Native:
    """`load` and `generate`. Seconds are from messages to text, including the compilation of a schema.
    Candidates share steps, and each counts its share of the time."""

    name = "mlx_dg"

    def __init__(self, model: str) -> None:
        self._given = model
        self._directory = resolve(model)
        self._fingerprint = checkpoint.fingerprint(self._directory)
        self._config = ModelConfig.load(self._directory)
        self._defaults = GenerationConfig.load(self._directory, self._config.eos_token_id)

    def identity(self) -> dict[str, Any]:
        dtypes = ["float32"] if checkpoint.on_cpu() else checkpoint.stored_dtypes(self._directory)
        return {
            "runner": self.name,
            "model": self._given,
            "checkpoint": self._fingerprint,
            "dtype": " and ".join(dtypes),
            "device": checkpoint.device(),
            "kernels": metal.enabled(),
            "versions": checkpoint.versions("mlx-diffusiongemma", "llguidance"),
        }

    def objection(self, task: Task) -> str | None:
        self._defaults.override(**task.settings)  # raises before minutes of loading
        return None

    def __call__(self, task: Task, seed: int, n: int = 1) -> list[Reply]:
        try:
            generation, setup = self._start(task, task.messages, seed, n)
        except InputError as error:
            self._start(task, WARM_UP, seed, n)  # raises unless it was the prompt's fault
            return [Reply("", error=one_line(error))] * n
        try:
            return [_reply(candidate, setup) for candidate in generation.candidates]
        except GenerationError as error:
            return [Reply("", error=one_line(error))] * n

    def _start(
        self, task: Task, prompt: str | list[dict[str, Any]], seed: int, n: int
    ) -> tuple[Generation, float]:
        """The generation, and how many seconds its making took: prompt to ids, schema to grammar."""
        model, tokenizer = self._loaded
        how: dict[str, Any] = {"thinking": task.thinking, "tools": list(task.tools) or None}
        length = len(tokenizer.prompt_ids(prompt, **how))
        most = self._defaults.override(**task.settings).max_new_tokens
        fitting = checkpoint.room(self._config, length, most) or most  # when none fits, `generate` says so
        how |= task.settings | {"schema": task.schema, "max_new_tokens": fitting}
        start = time.perf_counter()
        generation = generate(model, tokenizer, prompt, seed=seed, n=n, **how)
        return generation, time.perf_counter() - start

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        model, tokenizer = load(self._directory)
        brief: dict[str, Any] = {"max_new_tokens": 1, "max_denoising_steps": 2, "guard_unconverged": False}
        list(generate(model, tokenizer, WARM_UP, seed=0, **brief))
        return model, tokenizer


def _reply(generation: Generation, setup: float) -> Reply:
    blocks, stats = list(generation), generation.stats
    return Reply(
        answer=generation.answer,
        thought=generation.thought,
        finish_reason=generation.finish_reason or "length",
        tool_calls=plain_calls(generation.tool_calls),
        blocks=tuple(block.answer for block in blocks),
        cost=Cost(
            seconds=setup + stats.seconds,
            new_tokens=stats.new_tokens,
            answer_tokens=stats.answer_tokens,
            blocks=stats.blocks,
            denoising_steps=stats.denoising_steps,
        ),
        settings={"max_new_tokens": generation.settings.max_new_tokens},
    )


def plain_calls(calls: list[ToolCall]) -> tuple[tuple[str, dict[str, Any]], ...]:
    return tuple((call.name, call.arguments) for call in calls)
