"""Editing in place: a canvas that begins as a given text under noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..config.generation import GenerationConfig, in_range
from ..config.model import ModelConfig
from ..engine.step import Draws
from ..errors import InputError
from ..text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Draft:
    """ids: the text's, whole canvases of them. noise_level: in (0, 1], the share of positions that noise
    replaces.

    As in the middle of denoising, only the steps that a canvas of that much noise would still have are taken.
    """

    ids: Sequence[int]
    noise_level: float

    def start(
        self, block: int, draws: Draws, shape: tuple[int, int], steps: int
    ) -> tuple[mx.array | None, int]:
        """What canvas `block` begins with, int32 of `shape [B, C]`, and how many of its `steps` are left.

        None, and all of them, where the text has ended.
        """
        rows, length = shape
        ids = list(self.ids[block * length : (block + 1) * length])
        if not ids:
            return None, steps
        uniforms, _ = draws.step(steps)  # a step that is never taken
        canvas = mx.where(uniforms < self.noise_level, draws.initial(), mx.array([ids] * rows))
        return canvas, math.ceil(steps * self.noise_level)


def checked_draft(
    tokenizer: Tokenizer,
    text: str | None,
    noise_level: float | None,
    settings: GenerationConfig,
    config: ModelConfig,
    thinking: bool,
) -> Draft:
    """The `Draft` of `text`, followed by the end of the turn and by padding; `InputError` for what cannot be
    one."""
    if text is None:
        raise InputError(f"noise_level {noise_level!r} says how much of a draft to replace; give draft, too")
    if not isinstance(text, str) or not text:
        raise InputError(f"draft: found {'no text' if text == '' else type(text).__name__}; give text")
    if thinking:
        raise InputError("draft: an edited answer has no thought before it; leave out thinking")
    level = 0.5 if noise_level is None else in_range("noise_level", noise_level)
    ids = [
        *tokenizer.encode(text, "draft", allow_special_tokens=False),
        tokenizer.turn_end(settings.eos_token_id, config.text.vocab_size),
    ]
    if max(ids) >= config.text.vocab_size:  # MLX would read beyond the embedding table without a word
        raise InputError(
            f"draft: it has token id {max(ids)}, but the model's ids end at {config.text.vocab_size - 1}"
        )
    if len(ids) > settings.max_new_tokens:
        raise InputError(
            f"draft: {len(ids)} tokens with its end, but max_new_tokens is {settings.max_new_tokens}; "
            "raise it"
        )
    ids += [tokenizer.special.pad or 0] * (-len(ids) % config.canvas_length)
    return Draft(ids, float(level))
