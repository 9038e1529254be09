"""Shows a generation with all its candidates while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_diffusiongemma import Generation
    from mlx_diffusiongemma.display.plain import PlainDisplay


def show(generation: Generation, display: PlainDisplay, end: Callable[[Generation, bool], None]) -> None:
    """Run `generation`, show its blocks as they converge, and call `end(candidate, finished)` for each.

    An interrupt ends the current and all later candidates with the blocks they have, and is raised again.
    """
    for number, candidate in enumerate(generation.candidates):
        display.begin(candidate)
        try:
            for block in candidate:
                display.block(block, candidate.stats.canvas_length)
        except KeyboardInterrupt:
            end(candidate, False)
            for other in generation.candidates[number + 1 :]:  # they have run together with it
                display.begin(other)
                for block in other.blocks:
                    display.block(block, other.stats.canvas_length)
                end(other, False)
            raise
        except Exception:
            display.tidy()
            raise
        end(candidate, True)
