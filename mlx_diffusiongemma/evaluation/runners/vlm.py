"""mlx-vlm as a runner: the same checkpoint, the same token ids in, the same parser for what comes out.

It runs `Model.generate` with what its command line passes, but for the entropy-bound sampler at temperature 1
(its default, 0, takes argmaxes instead of samples) on full canvases, and is spared its detokenizer, as ours
makes the text for both. Settings that it lacks are objected to. What this package does by default beyond
them, it does without: it denoises no canvas again.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import mlx.core as mx

from ...checkpoint.loading import resolve
from ...config.generation import GenerationConfig
from ...config.model import ModelConfig
from ...errors import InputError
from ...text.channels import ChannelDelta, ChannelParser
from ...text.tokenizer import Tokenizer
from ..task import Cost, Reply, Task
from . import WARM_UP, check_single, checkpoint, one_line
from .native import plain_calls

_INSTALL = "pip install mlx-vlm==0.7.10"
_SETTINGS = frozenset(
    (
        "max_new_tokens", "max_denoising_steps", "entropy_bound", "t_min", "t_max",
        "stability_threshold", "confidence_threshold", "prefill_step_size",
    )
)  # fmt: skip


@dataclass
class _Generated:
    """What mlx-vlm gave: ids up to and including the stop id; ends: of each canvas in them, without it."""

    ids: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    denoising_steps: int = 0


class Vlm:
    """Seconds are from messages to text."""

    name = "mlx-vlm"

    def __init__(self, model: str) -> None:
        try:
            self._engine: Any = importlib.import_module("mlx_vlm.utils")
            self._common: Any = importlib.import_module("mlx_vlm.generate.common")
        except ImportError as error:
            raise InputError(f"mlx-vlm cannot be imported ({one_line(error)}); {_INSTALL}") from None
        self._given = model
        self._directory = resolve(model)
        self._fingerprint = checkpoint.fingerprint(self._directory)
        self._dtypes = checkpoint.stored_dtypes(self._directory)
        if checkpoint.on_cpu() and self._dtypes != ["float32"]:
            raise InputError(
                f"{model} has weights in {' and '.join(self._dtypes)}, in which mlx-vlm computes; MLX's CPU "
                f"backend wants float32: mlx_dg convert {model} --dtype float32 --mlx-path OUT"
            )
        self._config = ModelConfig.load(self._directory)
        self._defaults = GenerationConfig.load(self._directory, self._config.eos_token_id)

    def identity(self) -> dict[str, Any]:
        return {
            "runner": self.name,
            "model": self._given,
            "checkpoint": self._fingerprint,
            "dtype": " and ".join(self._dtypes),
            "device": checkpoint.device(),
            "versions": checkpoint.versions("mlx-vlm", "mlx-diffusiongemma"),
        }

    def objection(self, task: Task) -> str | None:
        if task.schema is not None:
            return "mlx-vlm cannot hold an answer to a schema"
        given = [name for name, value in task.settings.items() if value is not None]
        unknown = sorted(set(given) - _SETTINGS)
        return f"mlx-vlm has no setting {', '.join(unknown)}" if unknown else None

    def __call__(self, task: Task, seed: int, n: int = 1) -> list[Reply]:
        check_single(self.name, n)
        objection = self.objection(task)
        if objection is not None:
            raise InputError(f"{task.name}: {objection}")
        settings = self._defaults.override(**task.settings)
        model, tokenizer = self._loaded
        began = time.perf_counter()
        options: dict[str, Any] = {"thinking": task.thinking, "tools": list(task.tools) or None}
        try:
            prompt = tokenizer.prompt_ids(task.messages, **options)
        except InputError as error:
            tokenizer.prompt_ids(WARM_UP, **options)  # raises unless it was the prompt's fault
            return [Reply("", error=one_line(error))]
        fitting = checkpoint.room(self._config, len(prompt), settings.max_new_tokens)
        if not fitting:
            return [Reply("", error=f"the prompt has {len(prompt)} tokens: no room in the context behind it")]
        settings = settings.override(max_new_tokens=fitting)
        made = self._generate(model, prompt, settings, seed)
        return [self._reply(ChannelParser(tokenizer, prompt), made, settings, began)]

    @cached_property
    def _loaded(self) -> tuple[Any, Tokenizer]:
        tokenizer = Tokenizer.load(self._directory)
        try:
            model = self._engine.load_model(self._directory)
        except (ValueError, KeyError, NotImplementedError) as error:
            raise InputError(
                f"{self._given}: mlx-vlm cannot load it ({one_line(error)[:200]}); try --runner mlx_dg"
            ) from error
        brief = self._defaults.override(max_new_tokens=1, max_denoising_steps=2)
        self._generate(model, tokenizer.prompt_ids(WARM_UP), brief, seed=0)
        return model, tokenizer

    def _generate(self, model: Any, prompt: list[int], settings: GenerationConfig, seed: int) -> _Generated:
        model.config.generation_config = _in_their_words(settings)
        made, stats = _Generated(), dict[str, float]()

        def on_block(ids: list[int]) -> bool:
            made.ends.append(len(ids))
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
            made.ids = tokens[0].tolist()
        made.denoising_steps = round(stats["diffusion_denoising_steps"])
        return made

    def _reply(
        self, parser: ChannelParser, made: _Generated, settings: GenerationConfig, began: float
    ) -> Reply:
        blocks = []
        for start, end in zip([0, *made.ends], made.ends, strict=False):
            blocks.append(parser.feed(made.ids[start:end]))
        blocks[-1] += parser.finish()
        whole = sum(blocks, ChannelDelta())
        return Reply(
            answer=whole.answer,
            thought=whole.thought,
            finish_reason="stop" if made.ids[-1] in settings.eos_token_id else "length",
            tool_calls=plain_calls(list(whole.tool_calls)),
            blocks=tuple(block.answer for block in blocks),
            cost=Cost(
                seconds=time.perf_counter() - began,
                new_tokens=len(made.ids),
                answer_tokens=whole.answer_tokens,
                blocks=len(blocks),
                denoising_steps=made.denoising_steps,
            ),
            settings={"max_new_tokens": settings.max_new_tokens},
        )


def _in_their_words(settings: GenerationConfig) -> dict[str, Any]:
    """As generation_config.json spells them where mlx-vlm looks first."""
    return {
        "eos_token_id": list(settings.eos_token_id),
        "sampler_config": {
            "_cls_name": "EntropyBoundSamplerConfig",
            "entropy_bound": settings.entropy_bound,
        },
        "linear_temperature_schedule_config": {"t_min": settings.t_min, "t_max": settings.t_max},
        "diffusion_stopping_config": {
            "stability_threshold": settings.stability_threshold,
            "confidence_threshold": settings.confidence_threshold,
        },
    }


class Silent:
    """Tokenizer, detokenizer and stopping criteria for mlx-vlm: knows the stop ids and makes no text."""

    last_segment = ""

    def __init__(self) -> None:
        self.detokenizer = self.stopping_criteria = self
        self._stop_ids: set[int] = set()

    def add_eos_token_ids(self, ids: Sequence[int]) -> None:
        self._stop_ids |= set(ids)

    def __call__(self, token: int) -> bool:
        return token in self._stop_ids

    def reset(self) -> None:
        """Nothing to forget."""

    finalize = reset

    def add_token(self, token: int, skip_special_token_ids: Any = ()) -> None:
        """Nothing to spell."""
