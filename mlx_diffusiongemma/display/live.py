"""Shows the canvas while it denoises, below the text that has converged.

Every position shows the token that would be committed now. The token is solid if the step accepted its sample
there, otherwise dim. Its colour shows the entropy at the position (see `SCALE`): the terminal's own colour
below 0.01 nats, then another colour for each half power of ten. With NO_COLOR, tokens are only solid or dim.

A newline is shown as one sign, so that a canvas takes about the same room from its first step to its last.
Delimiters and padding are dim, and a run of one such token is shown once, with its length.
"""

from __future__ import annotations

import re
import sys
import time
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style

from mlx_diffusiongemma.console.messages import CONTROLS

from .pieces import Pieces
from .plain import PlainDisplay
from .region import terminal_size

if TYPE_CHECKING:
    from mlx_diffusiongemma import Block, Generation, Step
    from mlx_diffusiongemma.text.tokenizer import Tokenizer


class Mark(NamedTuple):
    """A piece of text in one style."""

    text: str
    style: Style


# Lowest entropy in nats -> the colour from there on.
SCALE = {0.01: "#5fd7d7", 0.03: "#5faf87", 0.1: "#afaf5f", 0.3: "#d7af00", 1.0: "#ff8700", 3.0: "#ff5f87"}
_BOUNDS, _COLORS = list(SCALE), [None, *SCALE.values()]
_STYLES = [(Style(color=color), Style(color=color, dim=True)) for color in _COLORS]
_PLAIN, _DIM = _STYLES[0]

_LEGEND = [Mark("entropy 0.01 ", _DIM), *(Mark("■", hue) for hue, _ in _STYLES[1:]), Mark(" 3 nats", _DIM)]

_ROWS_LEFT = 7  # rows of the terminal that the canvas leaves to the text above, the rule and the status
_LONGEST_RUN = 2  # longest run of one delimiter or padding token that is shown token by token


class LiveDisplay(PlainDisplay):
    """A `PlainDisplay` that shows the canvas at each step. It needs a terminal (see `region.on_terminal`)."""

    def __init__(self, tokenizer: Tokenizer, statistics: bool = False):
        super().__init__(as_json=False, statistics=statistics)
        self._pieces, self._hidden = Pieces(tokenizer), tokenizer.hidden_ids
        self._console = Console(file=sys.stderr, force_terminal=True, highlight=False)
        self._height = 0  # most lines that this canvas has taken so far
        self._size = terminal_size()
        self._since = time.perf_counter()  # time of the last committed block, or of the beginning

    def begin(self, generation: Generation) -> None:
        super().begin(generation)
        self._generation, self._height, self._since = generation, 0, time.perf_counter()

    def block(self, block: Block, canvas_length: int) -> None:
        super().block(block, canvas_length)
        self._height, self._since = 0, time.perf_counter()

    def step(self, step: Step) -> None:
        columns, rows = size = terminal_size()
        if size != self._size:
            self._size, self._height = size, 0
        number = self._generation.candidates.index(self._generation)
        if number not in step.rows:  # its canvas waits for other candidates, which are denoised again
            number = step.rows[0]
        row = step.rows.index(number)
        canvas = list(layout(self._marks(step, row), columns - 1))
        most = max(0, rows - _ROWS_LEFT)
        self._height = min(most, max(self._height, len(canvas)))
        if len(canvas) > most > 0:
            canvas[most - 1 :] = [[Mark(f"⋯ {len(canvas) - most + 1} more lines", _DIM)]]
        canvas = canvas[:most] + [[]] * (self._height - len(canvas))
        rule = [Mark("─" * (columns - 1), _DIM)]
        self.region.draw(self._rendered([rule, *canvas, *self._status(step, row, number, columns - 1)]))

    def _marks(self, step: Step, row: int) -> Iterator[Mark]:
        """Yield the marks of the canvas, one for each token or run of hidden tokens."""
        ids, accepted = step.draft_ids[row].tolist(), step.accepted[row].tolist()
        levels = [bisect_right(_BOUNDS, entropy) for entropy in step.entropies[row].tolist()]
        tokens = zip(ids, self._pieces(ids), accepted, levels, strict=True)
        for token, group in groupby(tokens, key=lambda item: item[0]):
            run, hidden = list(group), token in self._hidden
            if hidden and len(run) > _LONGEST_RUN:
                level = max(level for *_, level in run)
                yield Mark(f"{visible(run[0][1])}×{len(run)}", _STYLES[level][True])
                continue
            for _, text, is_accepted, level in run:
                is_faint = hidden or not is_accepted or text.startswith("\n")
                yield Mark(visible(text), _STYLES[level][is_faint])

    def _status(self, step: Step, row: int, number: int, width: int) -> list[list[Mark]]:
        length, last = step.accepted.shape[1], step.step + step.index
        count = len(self._generation.candidates)
        state = [
            *([f"candidate {number + 1}/{count}"] if count > 1 else []),
            f"block {self.blocks + 1}",
            f"step {step.index + 1:{len(str(last))}}/{last}",
            f"temp {step.temperature:.2f}",
            f"mean entropy {step.mean_entropy[row]:.3f} nats",
            f"accepted {step.accepted[row].sum():{len(str(length))}}/{length}",
        ]
        legend = [] if self._console.no_color else [_LEGEND]
        more = [emphasized(self._throughputs(step)), *legend]
        return fitted([emphasized(part) for part in state], more, width)

    def _throughputs(self, step: Step) -> str:
        """Return speeds as in `Stats`: in-step of this canvas, gross and net of the committed blocks."""
        stats = self._generation.stats
        in_step = step.accepted.shape[1] * (step.index + 1) / step.seconds
        gross = net = "-"
        if stats.blocks:
            seconds = stats.seconds + time.perf_counter() - self._since
            gross = f"{stats.canvas_length * stats.blocks / seconds:.1f}"
            net = f"{stats.answer_tokens / seconds:.1f}"
        return f"in-step {in_step:.1f}, gross {gross}, net {net} tokens/s"

    def _rendered(self, lines: Iterable[Iterable[Mark]]) -> list[str]:
        """Return `lines` as texts with this terminal's escape sequences. Each line ends its own styles."""
        segments: list[Segment] = []
        for line in lines:
            for style, marks in groupby(line, lambda mark: mark.style):
                segments.append(Segment("".join(mark.text for mark in marks), style))
            segments.append(Segment.line())
        with self._console.capture() as captured:
            self._console.print(Segments(segments), soft_wrap=True, end="")
        return captured.get().split("\n")[:-1]


def visible(text: str) -> str:
    """Return `text` as one line, with signs for newlines, tabs and other control characters.

    Format characters and variation selectors are dropped, because terminals disagree on their width.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        "↵" if unicodedata.category(character) in ("Zl", "Zp") else character
        for character in text.replace("\n", "↵").replace("\t", "⇥")
        if unicodedata.category(character) != "Cf" and not 0xFE00 <= ord(character) <= 0xFE0F
    ).translate(CONTROLS)


def layout(marks: Iterable[Mark], width: int) -> Iterator[list[Mark]]:
    """Yield `marks` in lines of at most `width` cells, wrapped at characters, as a terminal does."""
    line, used = list[Mark](), 0
    for text, style in marks:
        begin = 0
        for place, character in enumerate(text):
            size = cell_len(character)
            if used and used + size > width:
                yield [*line, Mark(text[begin:place], style)]
                line, used, begin = [], 0, place
            used += size
        line.append(Mark(text[begin:], style))
    yield line


def emphasized(text: str) -> list[Mark]:
    """Return `text` as marks: numbers are solid, everything else is dim."""
    parts = re.split(r"([\d.]*\d)", text)
    return [Mark(part, _PLAIN if place % 2 else _DIM) for place, part in enumerate(parts)]


def fitted(first: list[list[Mark]], second: list[list[Mark]], width: int) -> list[list[Mark]]:
    """Return two lines of at most `width` cells, the first with parts of `first`, the second with the rest.

    Parts that fit into neither line are dropped.
    """
    lines, parts = list[list[Mark]](), [*first]
    for more in (second, []):
        line: list[Mark] = []
        while parts:
            longer = [*line, Mark("  ", _PLAIN), *parts[0]] if line else parts[0]
            if sum(cell_len(mark.text) for mark in longer) > width:
                break
            line, parts = longer, parts[1:]
        lines.append(line)
        parts += more
    return lines
