"""The lines below the text on a terminal: the text must come out as without them."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pyte
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.screens import Attached, StrictScreen, Terminal, on_terminal
from wcwidth import wcswidth

from mlx_diffusiongemma.display.plain import PlainDisplay
from mlx_diffusiongemma.display.region import Region

pytestmark = pytest.mark.slow

LINE = "#" * 19  # of a region; one cell narrower than the terminal


def show(text: str, heights: list[int], attached: Attached, is_thought: bool = False) -> PlainDisplay:
    """Show `text` in as many blocks as there are heights, each after frames of that height."""
    display = PlainDisplay(as_json=False, statistics=False)
    size = -(-len(text) // len(heights))
    for number, height in enumerate(heights):
        for _ in range(2):
            display.region.draw([LINE] * height)
            assert attached.screen.below()[:height] == [LINE] * min(height, 7)
            assert not any(attached.screen.below()[height:])
        display.region.clear()
        part = text[number * size : (number + 1) * size]
        (display._thought if is_thought else display._answer)(part)
    return display


WORDS = st.lists(st.sampled_from([*"abc \n\tüΩ漢字🙂", "e\u0301"]), max_size=90).map("".join)
HEIGHTS = st.lists(st.integers(0, 7), min_size=1, max_size=6)
EXACT = st.integers(1, 6).map(lambda count: "x" * 20 * count)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(WORDS | EXACT, max_size=5).map("".join), HEIGHTS, st.booleans())
def test_text_is_as_without_a_region(text: str, heights: list[int], is_thought: bool) -> None:
    with Attached() as attached:
        show(text, heights, attached, is_thought)
        opening = "<thought>\n" if is_thought and text else ""
        alone = Terminal(20, 8)
        alone.write(opening + text)
        assert attached.screen.everything() == alone.screen.everything()
        assert attached.screen.cursor.x == alone.screen.cursor.x
        assert not any(attached.screen.below())
        assert not attached.screen.cursor.hidden


@pytest.mark.parametrize("last", ["x", "漢", "🙂", "e\u0301"])
@on_terminal
def test_line_that_ends_in_the_last_column(attached: Attached, last: str) -> None:
    line = "y" * (20 - wcswidth(last)) + last
    display = PlainDisplay(as_json=False, statistics=False)
    display._answer("\n" * 7 + line)  # at the bottom of the screen
    for _ in range(3):
        display.region.draw([LINE] * 7)
        assert attached.screen.below() == [LINE] * 7
    display.region.clear()
    display._answer("next")
    shown = [re.sub("(?<=漢|🙂) ", "", line) for line in attached.screen.everything()]
    assert shown == [""] * 7 + [line, "next"]


@on_terminal
def test_a_frame_is_one_write_and_keeps_the_cursor(attached: Attached) -> None:
    region = Region()
    attached.terminal.write("text")
    region.wrote("text")
    for lines in ([LINE] * 3, [LINE], [], ["#" * 50] + [LINE] * 20):  # also too wide, and too many
        before = len(attached.terminal.writes)
        region.draw(lines)
        (frame,) = attached.terminal.writes[before:]
        assert frame.startswith("\x1b[?2026h\x1b[?25l")
        assert frame.endswith("\x1b[?25h\x1b[?2026l")
        assert frame.index("\x1b[?7l") < frame.index("\r\n") < frame.index("\x1b[J") < frame.index("\x1b[?7h")
        shown = min(len(lines), 7)
        assert attached.screen.below()[:shown] == [LINE] * shown
        cursor = attached.screen.cursor
        assert (cursor.x, attached.screen.display[cursor.y].rstrip()) == (4, "text")
        assert pyte.modes.DECAWM in attached.screen.mode
    region.clear()
    before = len(attached.terminal.writes)
    region.clear()
    assert attached.terminal.writes[before:] == []


@pytest.mark.parametrize("columns", [10, 15, 30, 60])
@on_terminal
def test_resize(attached: Attached, columns: int) -> None:
    """The next frame leaves nothing of the one before, wider or narrower, and the text goes on."""
    region = Region()
    attached.terminal.write("one\ntwo")
    region.wrote("one\ntwo")
    region.draw([LINE] * 5)
    attached.screen.resize(12, columns)
    region.draw(["=" * (columns - 1)] * 2)
    assert attached.screen.everything() == ["one", "two", *["=" * (columns - 1)] * 2]
    region.clear()
    attached.terminal.write(" three")
    assert attached.screen.everything() == ["one", "two three"[:columns]]


@pytest.mark.parametrize("is_scrolled_away", [False, True])
@on_terminal
def test_narrower_terminal_that_breaks_lines(attached: Attached, is_scrolled_away: bool) -> None:
    """Lines that are broken in two may take so much room that the end of the text is scrolled away."""
    region = Region()
    attached.terminal.write("one\nabcdefghijklmnopqr")
    region.wrote("one\nabcdefghijklmnopqr")
    region.draw([LINE] * 6)
    attached.screen.resize(8, 12)
    attached.terminal.write("\x1b[H\x1b[J")
    if is_scrolled_away:
        attached.terminal.write("\r\n".join(["#######"] * 8) + "\x1b[H")
    else:
        attached.terminal.write("one\r\nabcdefghijklmnopqr\x1b7\r\n" + "#######" * 2 + "\x1b8")
    text = ["mnopqr"] if is_scrolled_away else ["one", "abcdefghijkl", "mnopqr"]
    region.draw(["=" * 11] * 2)
    assert attached.screen.everything() == [*text, "=" * 11, "=" * 11]
    region.clear()
    attached.terminal.write("st")
    assert attached.screen.everything() == [*text[:-1], "mnopqrst"]


@on_terminal
def test_controls_are_shown(attached: Attached) -> None:
    display = PlainDisplay(as_json=False, statistics=False)
    display._answer("a\x1b[2Jb\x07\x9b5A\u202ec\x7f\r")
    display._answer("\n")
    display._thought("t\x1b]0;title\x07")
    assert attached.screen.everything() == ["a␛[2Jb␇\ufffd5A\ufffdc␡␍", "<thought>", "t␛]0;title␇"]
    assert not re.search(r"\x1b(?!\[\d*m)", "".join(attached.terminal.writes))


def run(arguments: list[str], stdout: Any = None, **environment: str) -> tuple[bytes, int]:
    """Run the command on a pseudo-terminal of 100 x 20. Return what it wrote there, and its status."""
    outside, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 100, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "mlx_diffusiongemma", "generate", *arguments],
        stdin=subprocess.DEVNULL, stdout=stdout or inside, stderr=inside,
        env={"TERM": "xterm-256color", "PATH": os.environ["PATH"], **environment},
    ) as process:  # fmt: skip
        os.close(inside)
        written = b""
        try:
            while part := os.read(outside, 65536):
                written += part
        except OSError:  # on Linux: the other end is closed
            pass
    os.close(outside)
    return written, process.returncode


PERU = ["--seed", "5", "--model", "demo", "Capital of Peru?"]


def test_command_on_a_terminal() -> None:
    written, status = run(["--live", *PERU], COLORTERM="truecolor")
    assert status == 0
    assert b"\x1b[38;2;" in written
    frames = written.count(b"\x1b[?2026h")
    assert frames == written.count(b"\x1b[?2026l") >= 3
    screen = StrictScreen(100, 20)
    stream = pyte.ByteStream(screen)
    last_canvas = written.index(b"\x1b8", written.rindex("─".encode()))
    stream.feed(written[:last_canvas])
    seen = "\n".join(screen.display)
    assert "─" * 99 in seen
    assert "The capital of Peru is Lima.<turn|>" in seen
    assert re.search(r"block 1  step +\d/48  temp 0\.\d\d", seen)
    stream.feed(written[last_canvas:])
    assert screen.everything()[0] == "The capital of Peru is Lima."
    assert screen.everything()[1].startswith("prompt       13 tokens")
    assert "temp 0" not in "\n".join(screen.everything())
    assert not screen.cursor.hidden


def test_answer_in_a_file_and_canvas_on_the_terminal(tmp_path: Path) -> None:
    with open(tmp_path / "answer", "w") as file:
        written, status = run(["--live", *PERU], file)
    assert status == 0
    assert (tmp_path / "answer").read_text() == "The capital of Peru is Lima.\n"
    assert b"Lima" in written  # on the canvas
    assert b"\x1b[38;5;" in written  # TERM promises 256 colours
