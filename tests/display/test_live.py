"""The live view: the canvas of a step, its styles and its lines, and where plain text replaces it."""

from __future__ import annotations

import io
import os
import re
import sys
import time
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.style import Style
from rich.text import Text

from mlx_diffusiongemma.answer import Block
from mlx_diffusiongemma.display import choose
from mlx_diffusiongemma.display.live import SCALE, LiveDisplay, Mark, fitted, layout, visible
from mlx_diffusiongemma.display.plain import PlainDisplay
from mlx_diffusiongemma.engine.state import Step
from mlx_diffusiongemma.engine.stats import Stats

PAD, STOP = 0, 1


class Words:
    """A tokenizer of whole words."""

    byte_values: dict[int, int] = {}  # noqa: RUF012
    hidden_ids = frozenset({PAD, STOP})

    def __init__(self) -> None:
        self.texts = ["<pad>", "<turn|>"]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.texts[token] for token in ids)

    def ids(self, *texts: str) -> list[int]:
        self.texts += [text for text in texts if text not in self.texts]
        return [self.texts.index(text) for text in texts]


class Candidate:
    """The part of a generation that a display uses."""

    def __init__(self, candidates: list[Candidate]):
        self.stats, self.candidates = Stats(canvas_length=4, prompt_tokens=9), candidates
        self.warnings: list[str] = []


class View:
    """A live display whose frames come as lines of rich `Text`."""

    def __init__(
        self, patch: pytest.MonkeyPatch, candidates: int = 1, columns: int = 80, lines: int = 24, **env: str
    ):
        for name, value in {"TERM": "xterm", "COLORTERM": "truecolor", "NO_COLOR": "", **env}.items():
            patch.setenv(name, value)
        self.size = [columns, lines]
        self.out = io.StringIO()
        self.out.isatty = lambda: True  # type: ignore[method-assign]
        self.out.fileno = lambda: 0  # type: ignore[method-assign]
        patch.setattr(sys, "stderr", self.out)
        patch.setattr(os, "get_terminal_size", lambda _: os.terminal_size(self.size))
        self.tokenizer = Words()
        self.generations: list[Candidate] = []
        self.generations += [Candidate(self.generations) for _ in range(candidates)]
        self.display: Any = LiveDisplay(self.tokenizer)  # type: ignore[arg-type]
        self.display.begin(self.generations[0])

    def raw(self, step: Step) -> str:
        self.out.truncate(self.out.seek(0))
        self.display.step(step)
        return self.out.getvalue()

    def frame(self, step: Step) -> list[Text]:
        raw = self.raw(step)
        lines = raw[raw.index("\x1b[?7l") + 5 : raw.index("\x1b[?7h")].split("\r\n")[1:]
        return [Text.from_ansi(re.sub(r"\x1b\[[JK]", "", line)) for line in lines]

    def canvas(self, step: Step) -> list[str]:
        """Return the frame without the rule above and the two lines of the status below."""
        return [line.plain for line in self.frame(step)][1:-2]

    def status(self, step: Step) -> str:
        return "  ".join(line.plain for line in self.frame(step)[-2:])


def step(ids: list[int], entropies: list[float] | None = None, accepted: list[bool] | None = None) -> Step:
    entropies = entropies or [0.0] * len(ids)
    return Step(
        index=4,
        step=44,
        temperature=0.756,
        draft_ids=np.array([ids]),
        canvas_ids=np.array([[PAD] * len(ids)]),
        entropies=np.array([entropies]),
        accepted=np.array([accepted or [True] * len(ids)]),
        logprobs=np.zeros((1, len(ids)), np.float32),
        mean_entropy=np.array([np.mean(entropies)]),
        done=np.array([False]),
        seconds=0.5,
    )


def styles(line: Text, word: str) -> Style:
    place = line.plain.index(word)
    (style,) = {span.style for span in line.spans if span.start <= place < span.end} or {Style()}
    assert isinstance(style, Style)
    return style


# --- the canvas ---------------------------------------------------------------------------------------------


def test_solid_dim_and_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Structure and newlines are dim, and padding is short."""
    view = View(monkeypatch)
    ids = view.tokenizer.ids("sure", "known", "likely", "open", "wild")
    entropies = [0.0099, 0.011, 0.31, 2.9, 4.0]
    line = view.frame(step(ids, entropies, [True, False, True, False, True]))[1]
    assert line.plain == "sureknownlikelyopenwild"
    bounds = {"sure": None, "known": 0.01, "likely": 0.3, "open": 1.0, "wild": 3.0}
    for word, bound in bounds.items():
        style = styles(line, word)
        assert bool(style.dim) is (word in ("known", "open")), word
        assert (style.color.name if style.color else None) == (SCALE[bound] if bound else None), word
    line = view.frame(step([*view.tokenizer.ids("yes", "yes", "\n"), STOP] + [PAD] * 200))[1]
    assert line.plain == "yesyes↵<turn|><pad>×200"
    dim = [bool(styles(line, word).dim) for word in ("yes", "↵", "<turn|>", "<pad>")]
    assert dim == [False, True, True, True]
    view = View(monkeypatch, NO_COLOR="1")
    plain = view.raw(step(view.tokenizer.ids("sure", "open"), [0.0, 3.5], [True, False]))
    assert set(re.findall(r"\x1b\[([\d;]*)m", plain)) == {"0", "2"}
    assert "■" not in plain  # no legend of colours that are missing


def test_height_never_shrinks_within_a_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    view = View(monkeypatch)
    long, short = view.tokenizer.ids("w" * 79, "s")
    assert [len(view.canvas(step([long] * count))) for count in (1, 3, 2)] == [1, 3, 3]
    assert view.canvas(step([short])) == ["s", "", ""]
    view.display.block(Block(0, [7], "", "", (), 2, 0.0, True, 1.0), 4)
    assert view.canvas(step([short])) == ["s"]
    view.canvas(step([long] * 3))
    view.size[0] = 60
    assert view.canvas(step([short])) == ["s"]


@pytest.mark.parametrize(("lines", "shown"), [(24, 17), (40, 30), (8, 1), (7, 0), (2, 0)])
def test_height_is_cut(monkeypatch: pytest.MonkeyPatch, lines: int, shown: int) -> None:
    view = View(monkeypatch, lines=lines)
    (long,) = view.tokenizer.ids("w" * 79)
    frame = [line.plain for line in view.frame(step([long] * 30))]
    assert len(frame) <= max(lines - 1, 1)
    if shown in (17, 1):
        assert frame[1 : shown + 1] == ["w" * 79] * (shown - 1) + [f"⋯ {31 - shown} more lines"]
    if shown == 30:
        assert frame[1:-2] == ["w" * 79] * 30


# --- cells --------------------------------------------------------------------------------------------------


@given(st.text())
def test_visible_is_one_line_without_controls(text: str) -> None:
    shown = visible(text)
    assert len(shown) <= len(text)
    assert not {unicodedata.category(character) for character in shown} & {"Cc", "Cf", "Zl", "Zp"}
    kept = [character for character in text if unicodedata.category(character)[0] in "LNPS"]
    assert [character for character in shown if character in kept] == kept


def test_visible_signs() -> None:
    assert visible("a\n\t\x1b[31m\x00\x7f\x9b\u2028") == "a↵⇥␛[31m␀␡\ufffd↵"
    assert visible("👩\u200d🚀❤\ufe0fe\u0301\u202ex") == "👩🚀❤e\u0301x"


@given(st.lists(st.text("ab 漢🙂\u0301", max_size=9)), st.integers(2, 12))
def test_layout(texts: list[str], width: int) -> None:
    marks = [Mark(text, Style(bold=bool(number % 2))) for number, text in enumerate(texts)]
    lines = ["".join(mark.text for mark in line) for line in layout(marks, width)]
    assert "".join(lines) == "".join(texts)
    sizes = [sum(map(cell_len, line)) for line in lines]
    assert all(size <= width for size in sizes)
    for size, following in zip(sizes, lines[1:], strict=False):
        assert size + cell_len(following[0]) > width  # no line ends early
    bold = ["".join(m.text for m in part if m.style.bold) for part in (marks, *layout(marks, width))]
    assert "".join(bold[1:]) == bold[0]


@given(
    st.lists(st.text("ab漢", min_size=1, max_size=30), min_size=1), st.lists(st.text("c")), st.integers(1, 80)
)
def test_fitted(first: list[str], second: list[str], width: int) -> None:
    parts = [[[Mark(text, Style())] for text in texts] for texts in (first, second)]
    top, bottom = (["".join(mark.text for mark in line)] for line in fitted(parts[0], parts[1], width))
    assert max(cell_len(top[0]), cell_len(bottom[0])) <= width
    shown = [part for line in (top, bottom) if line[0] for part in line[0].split("  ")]
    assert shown == [*first, *second][: len(shown)]


# --- the status ---------------------------------------------------------------------------------------------


def test_status(monkeypatch: pytest.MonkeyPatch) -> None:
    view = View(monkeypatch, columns=160)
    seen = step(view.tokenizer.ids("a", "b", "c", "d"), [0.1, 0.2, 0.3, 0.4], [True, True, False, False])
    assert view.status(seen) == (
        "block 1  step  5/48  temp 0.76  mean entropy 0.250 nats  accepted 2/4  "
        "in-step 40.0, gross -, net - tokens/s  entropy 0.01 ■■■■■■ 3 nats"
    )
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    stats = view.generations[0].stats
    stats.blocks, stats.answer_tokens, stats.seconds = 1, 3, 2.0
    view.display.block(Block(0, [7], "", "", (), 2, 0.0, True, 1.0), 4)
    clock[0] += 6.0
    assert "block 2" in view.status(seen)
    assert "gross 0.5, net 0.4 tokens/s" in view.status(seen)  # 4 and 3 tokens in 2 + 6 seconds


@pytest.mark.parametrize("columns", [120, 80, 60, 40, 20, 9])
def test_status_fits(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    view = View(monkeypatch, columns=columns, candidates=4)
    stats = view.generations[0].stats
    stats.blocks, stats.seconds, stats.answer_tokens = 10, 9.0, 2000
    frame = view.frame(step(view.tokenizer.ids("漢", "w" * 30) * 3))
    assert all(cell_len(line.plain) < columns for line in frame)
    if columns >= 80:
        status = view.status(step(view.tokenizer.ids("漢", "w" * 30) * 3))
        parts = ("candidate 1/4", "temp 0.76", "0.000 nats", "accepted 6/6", "in-step 60.0, gross ", "net ")
        assert all(part in status for part in parts), status


# --- several candidates -------------------------------------------------------------------------------------


def test_candidate_that_is_displayed(monkeypatch: pytest.MonkeyPatch) -> None:
    view = View(monkeypatch, candidates=3)
    ids = view.tokenizer.ids("zero", "one", "two")

    def of(*rows: int) -> Step:
        return replace(
            step([PAD]),
            draft_ids=np.array([[ids[row]] for row in rows]),
            entropies=np.zeros((len(rows), 1)),
            accepted=np.array([[row == 1] for row in rows]),
            mean_entropy=np.array([row / 10 for row in rows]),
            rows=rows,
        )

    shows = {(0, (0, 1, 2)): 0, (1, (0, 1, 2)): 1, (1, (1, 2)): 1, (1, (0, 2)): 0, (2, (2,)): 2}
    for (begun, rows), shown in shows.items():
        view.display.begin(view.generations[begun])
        assert view.canvas(of(*rows)) == [["zero", "one", "two"][shown]]
        status = view.status(of(*rows))
        assert f"candidate {shown + 1}/3" in status
        assert f"mean entropy {shown / 10:.3f}" in status
        assert f"accepted {int(shown == 1)}/1" in status


# --- which display ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("term", "is_terminal", "live", "kind"), [
    ("xterm", True, True, LiveDisplay),
    ("xterm", True, False, PlainDisplay),
    ("xterm", False, True, PlainDisplay),
    ("dumb", True, True, PlainDisplay),
])  # fmt: skip
def test_choice(
    monkeypatch: pytest.MonkeyPatch, term: str, is_terminal: bool, live: bool, kind: Callable[..., Any]
) -> None:
    out = io.StringIO()
    out.isatty = lambda: is_terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setenv("TERM", term)
    assert type(choose(False, False, live, Words())) is kind  # type: ignore[arg-type]
