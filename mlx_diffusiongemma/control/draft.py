"""Editing in place: canvases start from a text with noise on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..config.ranges import in_range
from ..engine.constraint import Best, Canvas, CanvasSpec, Stand, Verdict
from ..engine.ids import check_ids
from ..engine.noise import Draws
from ..engine.settings import Settings
from ..errors import InputError
from ..text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Draft:
    """Constraint that starts canvases from a text with noise on it.

    Such a canvas is like one in the middle of denoising, so it takes only the share `noise_level` of steps.

    ids: ids of the text, padded to whole canvases.
    noise_level: share of positions that noise replaces, in (0, 1].
    """

    ids: Sequence[int]
    noise_level: float
    needs_logits = False

    def begin(self, written: Sequence[int]) -> Mapping[int, int]:
        return {}

    def review(self, canvas: Canvas, best: Best) -> Verdict:
        return Stand()

    def commit(self, canvas: Canvas, ids: Sequence[int]) -> None:
        """Do nothing. Which part of the text comes next depends only on the number of the canvas."""

    def initial(
        self, block: int, draws: Draws, shape: tuple[int, int], steps: int
    ) -> tuple[mx.array | None, int]:
        """Return the ids that canvas `block` starts from, int32 of `shape`, and its number of steps.

        If the text ends before this canvas, return None and `steps`.

        shape: `[B, C]`.
        steps: number of steps of a canvas that starts from noise.
        """
        rows, length = shape
        ids = list(self.ids[block * length : (block + 1) * length])
        if not ids:
            return None, steps
        uniforms, _ = draws.step(steps)  # the draws of a step that is never run
        canvas = mx.where(uniforms < self.noise_level, draws.initial(), mx.array([ids] * rows))
        return canvas, math.ceil(steps * self.noise_level)


def checked_draft(
    tokenizer: Tokenizer,
    text: str | None,
    noise_level: float | None,
    settings: Settings,
    spec: CanvasSpec,
    thinking: bool,
) -> Draft:
    """Return the `Draft` of `text`, an end of turn and padding. Raise `InputError` for invalid arguments."""
    if text is None:
        raise InputError(f"noise_level {noise_level!r} is the share of a draft to replace; also give draft")
    if not isinstance(text, str) or not text:
        raise InputError(f"draft: found {'no text' if text == '' else type(text).__name__}; give text")
    if thinking:
        raise InputError("draft: an edited answer has no thought before it; leave out thinking")
    level = 0.5 if noise_level is None else in_range("noise_level", noise_level)
    ids = [
        *tokenizer.encode(text, "draft", allow_special_tokens=False),
        tokenizer.turn_end(settings.eos_token_id, spec.vocab_size),
    ]
    check_ids("draft", ids, spec.vocab_size)
    if len(ids) > settings.max_new_tokens:
        raise InputError(
            f"draft: {len(ids)} tokens with its end, but max_new_tokens is {settings.max_new_tokens}; "
            "raise it"
        )
    ids += [spec.pad_id] * (-len(ids) % spec.length)
    return Draft(ids, float(level))
