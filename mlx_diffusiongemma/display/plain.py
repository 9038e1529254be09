"""What `mlx_dg generate` shows: plain text as blocks converge, or one line of JSON.

Answer (or JSON) on stdout, everything else on stderr. Needs no more of a terminal than a VT100 has, and
nothing at all when there is none.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from mlx_diffusiongemma.stats import CONTROL_EVENTS

if TYPE_CHECKING:
    from mlx_diffusiongemma import Block, Generation, Step

# The statistics of --json, in this order.
JSON_STATISTICS = (
    "prompt_tokens",
    "new_tokens",
    "blocks",
    "denoising_steps",
    "tokens_per_forward",
    "in_step_tokens_per_second",
    "gross_tokens_per_second",
    "net_tokens_per_second",
    "prefill_tokens_per_second",
    "peak_memory_gb",
    *CONTROL_EVENTS,
)


class PlainDisplay:
    """What a generation shows, and where. `watched`: stderr is a terminal, so progress is shown."""

    def __init__(self, as_json: bool, statistics: bool):
        self.as_json, self.statistics = as_json, statistics
        self.watched = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.thinking = False  # inside <thought>
        self.partial_line = False  # the answer so far does not end in a newline
        self.blocks = 0
        if hasattr(sys.stdout, "reconfigure"):  # a terminal that cannot show a character shows "?"
            sys.stdout.reconfigure(errors="replace")

    def step(self, step: Step) -> None:
        """Shows how far the canvas is; Step.step counts down to 1, Step.index up from 0."""
        self._progress(
            f"block {self.blocks + 1}  step {step.index + 1}/{step.step + step.index}"
            f"  mean entropy {float(step.mean_entropy.mean()):.4f}"
        )

    def begin(self, generation: Generation) -> None:
        """Another of several candidates begins."""
        number, count = generation.candidates.index(generation), len(generation.candidates)
        self.blocks = 0
        if count > 1 and not self.as_json:
            if number > 0:
                click.echo()
            click.secho(f"candidate {number + 1} of {count}", err=True, dim=True)

    def block(self, block: Block, canvas_length: int) -> None:
        self.blocks += 1
        self._progress()
        if not self.as_json:
            self._thought(block.thought)
            self._answer(block.answer)
            for call in block.tool_calls:
                wrong = {} if call.error is None else {"error": call.error, "raw": call.raw}
                line = json.dumps({"tool_call": call.name, "arguments": call.arguments} | wrong)
                self._answer(("\n" if self.partial_line else "") + line + "\n")
        if block.warning is not None:
            self._own_line()
            click.echo(f"mlx_dg: warning: {block.warning}", err=True)
        if self.statistics:
            self._own_line()
            click.secho(describe(block, canvas_length), err=True, dim=True)

    def end(self, generation: Generation, finished: bool = True) -> None:
        """Not `finished`: interrupted, and what has converged is what there is."""
        self.tidy()
        if self.as_json:
            click.echo(json.dumps(result(generation, finished), allow_nan=False))
        if finished and (self.statistics or self.watched):
            click.secho(f"{generation.stats.table()}\nseed         {generation.seed}", err=True, dim=True)

    def tidy(self) -> None:
        """Ends an open line or thought, so that what follows starts on a line of its own."""
        self._progress()
        self._thought("", over=True)
        if self.partial_line:
            self.partial_line = False
            click.echo()

    def _thought(self, text: str, over: bool = False) -> None:
        if text:
            opening = "" if self.thinking else "<thought>\n"
            self.thinking = True
            click.secho(opening + text, err=True, dim=True, nl=False)
        elif over and self.thinking:
            self.thinking = False
            click.secho("\n</thought>", err=True, dim=True)

    def _answer(self, text: str) -> None:
        if text:
            self._thought("", over=True)
            click.echo(text, nl=False)
            self.partial_line = not text.endswith("\n")

    def _own_line(self) -> None:
        """Statistics never continue a line of the thought or, where they meet it, of the answer."""
        if self.thinking or (self.partial_line and outputs_meet()):
            click.echo(err=True)

    def _progress(self, line: str = "") -> None:
        """Puts `line` below the cursor, which stays at the end of the text: the next block goes on there.

        In a VT100's words: index and reverse index make sure that there is a line below, then save the
        cursor, go down to that line's start, clear it, write, restore the cursor.
        """
        if self.watched:
            line = line[: shutil.get_terminal_size().columns - 1]
            click.echo(f"\x1bD\x1bM\x1b7\x1bD\r\x1b[K{line}\x1b8", err=True, nl=False)


def result(generation: Generation, finished: bool) -> dict[str, Any]:
    """The object of --json, from the blocks that are there; an unfinished one has no finish_reason."""
    blocks, statistics = generation.blocks, generation.stats.to_dict()
    return {
        "answer": "".join(block.answer for block in blocks),
        "thought": "".join(block.thought for block in blocks),
        "tool_calls": [vars(call) for block in blocks for call in block.tool_calls],
        "finish_reason": generation.finish_reason if finished else None,
        "seed": generation.seed,
        "candidate": generation.candidate,
        "warnings": [block.warning for block in blocks if block.warning is not None],
        "stats": {name: statistics[name] for name in JSON_STATISTICS},
    }


def describe(block: Block, canvas_length: int) -> str:
    """One line of statistics about one block; in-step and gross as in `Stats`, for this block alone."""
    return (
        f"[block {block.index + 1}: {len(block.token_ids)} tokens in {block.denoising_steps} steps and "
        f"{block.seconds:.2f} s, {'converged' if block.converged else 'not converged'}, "
        f"mean entropy {block.mean_entropy:.4f} nats, "
        f"in-step {canvas_length * block.denoising_steps / block.seconds:.1f}, "
        f"gross {canvas_length / block.seconds:.1f} tokens/s]"
    )


def outputs_meet() -> bool:
    """Whether stdout and stderr go to the same terminal, file or pipe."""
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or no file
        return False
