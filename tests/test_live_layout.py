"""Model output as cells of a terminal: what stands for what it must not obey, and where lines end."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.style import Style

from mlx_diffusiongemma.display.live import Mark, fitted, layout, visible


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
    solid = [
        character
        for line in layout(marks, width)
        for mark in line
        for character in mark.text
        if mark.style.bold
    ]
    assert solid == [character for mark in marks if mark.style.bold for character in mark.text]


@given(
    st.lists(st.text("ab漢", min_size=1, max_size=30), min_size=1), st.lists(st.text("c")), st.integers(1, 80)
)
def test_fitted(first: list[str], second: list[str], width: int) -> None:
    parts = [[[Mark(text, Style())] for text in texts] for texts in (first, second)]
    top, bottom = (["".join(mark.text for mark in line)] for line in fitted(parts[0], parts[1], width))
    assert max(cell_len(top[0]), cell_len(bottom[0])) <= width
    shown = [part for line in (top, bottom) if line[0] for part in line[0].split("  ")]
    assert shown == [*first, *second][: len(shown)]
