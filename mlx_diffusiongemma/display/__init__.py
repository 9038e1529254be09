"""Views of a generation. They consume blocks and steps and know no model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_diffusiongemma.text.tokenizer import Tokenizer

    from .plain import PlainDisplay


def choose(as_json: bool, statistics: bool, live: bool, tokenizer: Tokenizer) -> PlainDisplay:
    """The display that was asked for; instead of a live one the plain one, where nothing can be redrawn."""
    from .plain import PlainDisplay
    from .region import on_terminal

    if live and on_terminal():
        from .live import LiveDisplay

        return LiveDisplay(tokenizer, statistics)
    return PlainDisplay(as_json, statistics)
