"""Draws lines below the cursor of a terminal. Each frame replaces all of them.

`rich.live.Live` does not fit. It begins a frame on the line where the text ends, and it counts lines, so that
parts of old frames remain when the terminal becomes narrower. Here the cursor stays where the text ends,
because the terminal saves and restores it. A frame is one write, so an interrupt leaves no half frame or
hidden cursor.

Synchronized output (mode 2026, which some terminals ignore) shows a frame at once. Autowrap (mode 7) is off,
so that a line that is too wide is cut and does not move the lines below.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

_BEGIN, _END = "\x1b[?2026h\x1b[?25l", "\x1b[?25h\x1b[?2026l"
_SAVE, _RESTORE = "\x1b7\x1b[?7l", "\x1b[?7h\x1b8"
_INDEX = "\x1bD"  # moves the cursor one line down in its column; at the bottom, the screen scrolls
_ERASE_LINE, _ERASE_BELOW = "\x1b[K", "\x1b[J"  # both erase from the cursor on


def on_terminal() -> bool:
    """Return True if stderr is a terminal that can redraw lines."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def terminal_size() -> os.terminal_size:
    """Return the size of stderr's terminal, because stdout may be a file."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or not a file
        return shutil.get_terminal_size()
    return size if size.columns and size.lines else shutil.get_terminal_size()


class Region:
    """Lines on stderr below the text. Pass all text that is printed to `wrote`."""

    def __init__(self) -> None:
        self._shown = 0  # number of lines of the last frame
        self._drawn_for = 0  # columns of the terminal at the last frame
        self._line = ""  # last line of the text, which may fill several rows of the terminal
        self._begun_for = 0  # columns of the terminal when that line began; 0 if it was resized since
        self._style = ""

    def draw(self, lines: Sequence[str]) -> None:
        """Replace the lines that are shown by `lines`. Those that do not fit on the screen are left out.

        Each must be narrower than the terminal and end its own styles.
        """
        columns, rows = terminal_size()
        lines = lines[: rows - 1]
        # Lines to clear are drawn empty, because tmux keeps lines in its history if they are only erased.
        drawn = lines or [""] * min(self._shown, rows - 1)
        if not drawn:
            return
        row, width = _last_row(self._line, columns)
        row = f"\r{self._style}{row}" + ("\x1b[0m" if self._style else "")
        frame = _BEGIN
        # A narrower terminal breaks each line into parts, which may push the end of the text off the screen.
        parts = -(-(self._drawn_for - 1) // columns)
        if columns < self._drawn_for and 1 + self._shown * parts > rows:
            frame += "\r" + _ERASE_BELOW + row
        frame += _INDEX * len(drawn) + f"\x1b[{len(drawn)}A"
        # After a full row the cursor waits at its last column for the next character. A move ends this
        # wait, and writing the row again restores it.
        if columns == self._begun_for and width == columns:
            frame += row
        frame += _SAVE + "".join(f"\r\n{line}{_ERASE_LINE}" for line in drawn) + _ERASE_BELOW + _RESTORE
        encoding = sys.stderr.encoding or "utf-8"
        sys.stderr.write((frame + _END).encode(encoding, "replace").decode(encoding))
        sys.stderr.flush()
        self._shown, self._drawn_for = len(lines), columns

    def clear(self) -> None:
        """Remove the lines, so that only the text is left, with the cursor at its end."""
        self.draw([])

    def wrote(self, text: str, style: str = "") -> None:
        """Note that `text` was printed to the terminal. style: escape sequence of its style."""
        columns = terminal_size().columns
        _, newline, rest = text.rpartition("\n")
        if newline or not self._line:
            self._line, self._begun_for = rest, columns
        else:
            self._line += rest
            self._begun_for *= columns == self._begun_for
        self._style = style


def _last_row(line: str, columns: int) -> tuple[str, int]:
    """Return the end of `line` that is in the last row of the terminal, and its width in cells."""
    from rich.cells import cell_len

    begin = width = 0
    for place, character in enumerate(line):
        if character == "\t":
            width = min(width // 8 * 8 + 8, columns - 1)
        elif width + cell_len(character) > columns:
            begin, width = place, cell_len(character)
        else:
            width += cell_len(character)
    return line[begin:], width
