"""Displays of a generation. They read its blocks and steps, and do not depend on the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_diffusiongemma.text.tokenizer import Tokenizer

    from .plain import PlainDisplay


def choose(as_json: bool, statistics: bool, live: bool, tokenizer: Tokenizer) -> PlainDisplay:
    """Return the display for these options. A live display needs a terminal. Without one it is plain."""
    from .plain import PlainDisplay
    from .region import on_terminal

    if live and on_terminal():
        from .live import LiveDisplay

        return LiveDisplay(tokenizer, statistics)
    return PlainDisplay(as_json, statistics)
