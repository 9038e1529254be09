"""Runner that generates with mlx-vlm, from the prompt ids that `native` uses and with the same output parser.

It calls mlx-vlm's `Model.generate` as mlx-vlm's command line does, with four changes: full canvases, the
entropy-bound sampler, temperature 1 (its default, 0, takes argmaxes), and no detokenizer.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import mlx.core as mx

from ...checkpoint.loading import resolve
from ...config.generation import GenerationConfig
from ...config.model import ModelConfig
from ...console.messages import one_line
from ...errors import InputError
from ...ops import metal
from ...text.channels import ChannelDelta, ChannelParser
from ...text.tokenizer import Tokenizer
from ..task import Cost, Reply, Task
from . import WARM_UP, check_single, checkpoint, unsupported
from .native import plain_calls

_SETTINGS = frozenset(
    (
        "max_new_tokens", "max_denoising_steps", "entropy_bound", "t_min", "t_max",
        "stability_threshold", "confidence_threshold", "prefill_step_size",
    )
)  # fmt: skip


class Vlm:
    """Runs mlx-vlm. Seconds run from messages to text."""

    name = "mlx-vlm"

    def __init__(self, model: str) -> None:
        try:
            self._engine: Any = importlib.import_module("mlx_vlm.utils")
            self._common: Any = importlib.import_module("mlx_vlm.generate.common")
        except ImportError as error:
            raise InputError(
                f"mlx-vlm cannot be imported ({one_line(error)}); pip install mlx-vlm==0.7.10"
            ) from None
        self._given, self._directory = model, resolve(model)
        self._fingerprint = checkpoint.fingerprint(self._directory)
        self._dtype = checkpoint.stored_dtype(self._directory)
        if not metal.on_gpu() and self._dtype != "float32":
            raise InputError(
                f"{model} has weights in {self._dtype}, in which mlx-vlm computes; MLX's CPU backend wants "
                f"float32: mlx_dg convert {model} --dtype float32 --mlx-path OUT"
            )
        self._config = ModelConfig.load(self._directory)
        self._defaults = GenerationConfig.load(self._directory, self._config.eos_token_id)

    def identity(self) -> dict[str, Any]:
        return {
            "runner": self.name,
            "model": self._given,
            "checkpoint": self._fingerprint,
            "dtype": self._dtype,
            "device": checkpoint.device(),
            "versions": checkpoint.versions("mlx-vlm", "mlx-diffusiongemma"),
        }

    def objection(self, task: Task) -> str | None:
        if task.schema is not None:
            return "mlx-vlm cannot hold an answer to a schema"
        return unsupported(self.name, task, _SETTINGS)

    def __call__(self, task: Task, seed: int, n: int = 1) -> list[Reply]:
        check_single(self, task, n)
        settings = self._defaults.override(**task.settings)
        model, tokenizer = self._loaded
        began = time.perf_counter()
        options: dict[str, Any] = {"thinking": task.thinking, "tools": list(task.tools) or None}
        try:
            prompt = tokenizer.prompt_ids(task.messages, **options)
        except InputError as error:
            tokenizer.prompt_ids(WARM_UP, **options)  # raises unless the prompt is the cause
            return [Reply("", error=one_line(error))]
        fitting = checkpoint.room(self._config, len(prompt), settings.max_new_tokens)
        if not fitting:
            return [Reply("", error=f"the prompt has {len(prompt)} tokens: no room in the context behind it")]
        settings = settings.override(max_new_tokens=fitting)
        ids, ends, steps = self._generate(model, prompt, settings, seed)
        parser = ChannelParser(tokenizer, prompt)
        blocks = [parser.feed(ids[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
        blocks[-1] += parser.finish()
        whole, seconds = sum(blocks, ChannelDelta()), time.perf_counter() - began
        reply = Reply(
            answer=whole.answer,
            thought=whole.thought,
            finish_reason="stop" if ids[-1] in settings.eos_token_id else "length",
            tool_calls=plain_calls(list(whole.tool_calls)),
            blocks=tuple(block.answer for block in blocks),
            cost=Cost(seconds, len(ids), whole.answer_tokens, len(blocks), steps),
            settings={"max_new_tokens": fitting},
        )
        return [reply]

    @cached_property
    def _loaded(self) -> tuple[Any, Tokenizer]:
        tokenizer = Tokenizer.load(self._directory)
        try:
            model = self._engine.load_model(self._directory)
        except (ValueError, KeyError, NotImplementedError) as error:
            raise InputError(
                f"{self._given}: mlx-vlm cannot load it ({one_line(error, 200)}); try --runner mlx_dg"
            ) from error
        brief = self._defaults.override(max_new_tokens=1, max_denoising_steps=2)
        self._generate(model, tokenizer.prompt_ids(WARM_UP), brief, seed=0)
        return model, tokenizer

    def _generate(
        self, model: Any, prompt: list[int], settings: GenerationConfig, seed: int
    ) -> tuple[list[int], list[int], int]:
        """Return ids up to and including the stop id, the number of ids at each canvas's end, and steps."""
        # mlx-vlm looks for its settings here first, in the form of generation_config.json.
        model.config.generation_config = {
            "eos_token_id": list(settings.eos_token_id),
            "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", **_of(settings, "entropy_bound")},
            "linear_temperature_schedule_config": _of(settings, "t_min", "t_max"),
            "diffusion_stopping_config": _of(settings, "stability_threshold", "confidence_threshold"),
        }
        ends, stats = list[int](), dict[str, float]()

        def on_block(ids: list[int]) -> bool:
            ends.append(len(ids))
            return True

        mx.random.seed(seed)
        with self._common.wired_limit(model, [self._common.generation_stream]):
            tokens = model.generate(
                mx.array([prompt]),
                temperature=1.0,
                steps=settings.max_denoising_steps,
                gen_length=settings.max_new_tokens,
                tokenizer=Silent(),
                stats=stats,
                on_block=on_block,
                diffusion_full_canvas=True,
                diffusion_sampler="entropy-bound",
                prefill_step_size=settings.prefill_step_size,
            )
            return tokens[0].tolist(), ends, round(stats["diffusion_denoising_steps"])


def _of(settings: GenerationConfig, *names: str) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in names}


class Silent:
    """Replaces mlx-vlm's tokenizer, detokenizer and stopping criteria. Knows stop ids, makes no text."""

    last_segment = ""

    def __init__(self) -> None:
        self.detokenizer = self.stopping_criteria = self
        self._stop_ids: set[int] = set()

    def add_eos_token_ids(self, ids: Sequence[int]) -> None:
        self._stop_ids |= set(ids)

    def __call__(self, token: int) -> bool:
        return token in self._stop_ids

    def reset(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    finalize = add_token = reset
