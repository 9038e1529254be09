"""Prints the text of a generation as its blocks converge, or one line of JSON at the end.

The answer or the JSON goes to stdout, everything else to stderr. On a terminal, control characters in the
model's text are replaced by signs, so that they have no effect.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import click

from mlx_diffusiongemma.console.messages import CONTROLS_OF_LINES, one_line, say
from mlx_diffusiongemma.engine.stats import CONTROL_EVENTS

from .region import Region, on_terminal, terminal_size

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

DIM = "\x1b[2m"


class PlainDisplay:
    """Shows generations on stdout and stderr. If stderr is a terminal, `watched`, it shows progress."""

    def __init__(self, as_json: bool, statistics: bool):
        self.as_json, self.statistics = as_json, statistics
        self.watched = on_terminal()
        self.region = Region()
        self.thinking = False  # <thought> was printed, but </thought> not yet
        self.partial_line = False  # the answer so far does not end in a newline
        self.blocks = 0
        self._current: Generation | None = None
        self._warned = 0  # number of its warnings that are shown
        if hasattr(sys.stdout, "reconfigure"):  # a terminal that cannot show a character shows "?"
            sys.stdout.reconfigure(errors="replace")

    def step(self, step: Step) -> None:
        """Show the progress of the canvas. `Step.step` counts down to 1, `Step.index` counts up from 0."""
        line = (
            f"block {self.blocks + 1}  step {step.index + 1}/{step.step + step.index}"
            f"  mean entropy {float(step.mean_entropy.mean()):.4f}"
        )
        self.region.draw([line[: terminal_size().columns - 1]])

    def begin(self, generation: Generation) -> None:
        """Begin to show `generation`, which may be one of several candidates."""
        number, count = generation.candidates.index(generation), len(generation.candidates)
        self.blocks = self._warned = 0
        self._current = generation
        if count > 1 and not self.as_json:
            if number > 0:
                click.echo()
            say(f"candidate {number + 1} of {count}", dim=True)

    def block(self, block: Block, canvas_length: int) -> None:
        self.blocks += 1
        self.region.clear()
        if not self.as_json:
            self._thought(block.thought)
            self._answer(block.answer)
            for call in block.tool_calls:
                wrong = {} if call.error is None else {"error": call.error, "raw": call.raw}
                line = json.dumps({"tool_call": call.name, "arguments": call.arguments} | wrong)
                self._answer(("\n" if self.partial_line else "") + line + "\n")
        self._warn()
        if self.statistics:
            self._own_line()
            say(describe(block, canvas_length), dim=True)

    def end(self, generation: Generation, finished: bool = True) -> None:
        """Show JSON and statistics. finished: False after an interrupt, when only converged blocks exist."""
        self.tidy()
        if self.as_json:
            click.echo(json.dumps(result(generation, finished), allow_nan=False))
        if finished and (self.statistics or self.watched):
            say(f"{generation.stats.table()}\nseed         {generation.seed}", dim=True)

    def tidy(self) -> None:
        """End an open line or thought, so that the next output starts on a new line. Show warnings."""
        self.region.clear()
        self._thought("", over=True)
        if self.partial_line:
            self.partial_line = False
            self._write("\n")
        self._warn()

    def _warn(self) -> None:
        """Show the warnings that are new since the last call."""
        warnings = self._current.warnings if self._current is not None else []
        for warning in warnings[self._warned :]:
            self._own_line()
            say(f"mlx_dg: warning: {one_line(warning)}")
        self._warned = len(warnings)

    def _thought(self, text: str, over: bool = False) -> None:
        if text:
            opening = "" if self.thinking else "<thought>\n"
            self.thinking = True
            self._write(opening + text, err=True)
        elif over and self.thinking:
            self.thinking = False
            self._write("\n</thought>\n", err=True)

    def _answer(self, text: str) -> None:
        if text:
            self._thought("", over=True)
            self._write(text)
            self.partial_line = not text.endswith("\n")

    def _own_line(self) -> None:
        """End an open line of a thought, or of an answer on the same terminal, before statistics follow."""
        if self.thinking or (self.partial_line and outputs_meet()):
            self._write("\n", err=True)

    def _write(self, text: str, err: bool = False) -> None:
        """Write `text` to stdout or, if `err`, dim to stderr."""
        stream = sys.stderr if err else sys.stdout
        if stream is not None and stream.isatty():
            text = text.translate(CONTROLS_OF_LINES)
        with suppress(OSError) if err else nullcontext():  # a thought that cannot be written costs no answer
            click.echo(click.style(text, dim=True) if err else text, err=err, nl=False)
        if self.watched and (err or outputs_meet()):
            self.region.wrote(text, DIM if err else "")


def result(generation: Generation, finished: bool) -> dict[str, Any]:
    """Return the object of --json, from the blocks so far. Its finish_reason is None if not `finished`."""
    blocks, statistics = generation.blocks, generation.stats.to_dict()
    return {
        "answer": "".join(block.answer for block in blocks),
        "thought": "".join(block.thought for block in blocks),
        "tool_calls": [vars(call) for block in blocks for call in block.tool_calls],
        "finish_reason": generation.finish_reason if finished else None,
        "seed": generation.seed,
        "candidate": generation.candidate,
        "warnings": list(generation.warnings),
        "stats": {name: statistics[name] for name in JSON_STATISTICS},
    }


def describe(block: Block, canvas_length: int) -> str:
    """Return a line of statistics of one block. In-step and gross speed are as in `Stats`, for this block."""
    return (
        f"[block {block.index + 1}: {len(block.token_ids)} tokens in {block.denoising_steps} steps and "
        f"{block.seconds:.2f} s, {'converged' if block.converged else 'not converged'}, "
        f"mean entropy {block.mean_entropy:.4f} nats, "
        f"in-step {canvas_length * block.denoising_steps / block.seconds:.1f}, "
        f"gross {canvas_length / block.seconds:.1f} tokens/s]"
    )


def outputs_meet() -> bool:
    """Return True if stdout and stderr go to the same terminal, file or pipe."""
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or no file
        return False
