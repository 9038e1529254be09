"""Words of messages."""

from __future__ import annotations

import pytest

from mlx_diffusiongemma.console.messages import count, one_line, shown


@pytest.mark.parametrize(("text", "line"), [
    ("  two\r\n\tlines\u2028 and\x85more ", "two lines and more"),
    ("\x1b]0;title\x07\x9b2J", r"\x1b]0;title\x07\x9b2J"),  # a terminal would obey
    ("a\u202eb\u2066c\u200bd\udc80", r"a\u202eb\u2066c\u200bd\udc80"),  # turned, hidden, not UTF-8
    ("é 東京 🙂", "é 東京 🙂"),
    (ValueError("a\nb"), "a b"),
    (ValueError(), "ValueError"),
    ("", ""),
])  # fmt: skip
def test_one_line(text: object, line: str) -> None:
    assert one_line(text) == line


def test_a_long_line_is_cut() -> None:
    text = "0123456789"
    assert one_line(text, 10) == text
    assert one_line(text, 9) == "012345..."
    assert one_line(text, 9, keep_end=True) == "...456789"
    assert len(one_line("\x1b" * 100, 50)) == 50
    assert len(shown(["value"] * 100)) == 50


def test_count() -> None:
    assert [count(number, "block") for number in (0, 1, 2)] == ["0 blocks", "1 block", "2 blocks"]
