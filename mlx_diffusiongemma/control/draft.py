"""Editing in place: a canvas that begins as a given text under noise."""

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
    """Canvases that begin as a text under noise.

    ids: of the text, whole canvases. noise_level: in (0, 1], the share of positions that noise replaces. As
    in the middle of denoising, only the steps that a canvas of that much noise would still have are taken.
    """

    ids: Sequence[int]
    noise_level: float
    needs_logits = False

    def begin(self, written: Sequence[int]) -> Mapping[int, int]:
        return {}

    def review(self, canvas: Canvas, best: Best) -> Verdict:
        return Stand()

    def commit(self, canvas: Canvas, ids: Sequence[int]) -> None:
        """Keep nothing: a canvas's number says which part of the text is its beginning."""

    def initial(
        self, block: int, draws: Draws, shape: tuple[int, int], steps: int
    ) -> tuple[mx.array | None, int]:
        """Return the ids that canvas `block` begins with, int32 of `shape [B, C]`, and the steps that are
        left.

        None and all `steps` behind the end of the text.
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
    settings: Settings,
    spec: CanvasSpec,
    thinking: bool,
) -> Draft:
    """Return the `Draft` of `text`, the end of the turn and padding. `InputError` for a bad one."""
    if text is None:
        raise InputError(f"noise_level {noise_level!r} says how much of a draft to replace; give draft, too")
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
