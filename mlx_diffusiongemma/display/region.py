"""Lines below the cursor of a terminal, which are replaced as a whole.

The cursor stays where the text ends, and whatever is printed next goes on there. So nothing has to be
counted: the terminal itself keeps the cursor with the text when it is resized, and each frame replaces all
that is below. A frame is one write, so whoever interrupts leaves no half of it and no hidden cursor.

In a VT100's words, with two of its successors': synchronized output (mode 2026, which others ignore) shows a
frame at once, and without autowrap (mode 7) a line that is wider than was thought is cut instead of moving
the ones below.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

_BEGIN, _END = "\x1b[?2026h\x1b[?25l", "\x1b[?25h\x1b[?2026l"
_SAVE, _RESTORE = "\x1b7\x1b[?7l", "\x1b[?7h\x1b8"
_INDEX = "\x1bD"  # one line down in the same column; at the bottom, everything goes up
_ERASE_LINE, _ERASE_BELOW = "\x1b[K", "\x1b[J"  # from the cursor on


def on_terminal() -> bool:
    """Whether stderr, which shows progress, is a terminal that can redraw a line."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def terminal_size() -> os.terminal_size:
    """Of the terminal that stderr is; stdout may be a file."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or no file
        return shutil.get_terminal_size()
    return size if size.columns and size.lines else shutil.get_terminal_size()


class Region:
    """The lines that stderr shows below the text. It must be told of the text: see `wrote`."""

    def __init__(self) -> None:
        self._shown = 0  # lines
        self._drawn_for = 0  # columns of the terminal at the last frame
        self._line = ""  # the text's last one, which rows of the terminal hold
        self._begun_for = 0  # columns when it began; 0: resized since
        self._style = ""

    def draw(self, lines: Sequence[str]) -> None:
        """Shows `lines` instead of those before. Each is narrower than the terminal and may hold styles,
        which it ends itself; of too many, the last are left out."""
        columns, rows = terminal_size()
        lines = lines[: rows - 1]
        # What is cleared is drawn empty: were it erased from the cursor on, tmux would keep all of it in its
        # history when no text is above it.
        drawn = lines or [""] * min(self._shown, rows - 1)
        if not drawn:
            return
        frame = _BEGIN
        if self._is_cursor_lost(columns, rows):
            frame += "\r" + _ERASE_BELOW + self._last_row(columns)
        waiting = self._last_row(columns) if self._is_row_full(columns) else ""
        frame += _INDEX * len(drawn) + f"\x1b[{len(drawn)}A" + waiting + _SAVE
        frame += "".join(f"\r\n{line}{_ERASE_LINE}" for line in drawn) + _ERASE_BELOW + _RESTORE
        encoding = sys.stderr.encoding or "utf-8"
        sys.stderr.write((frame + _END).encode(encoding, "replace").decode(encoding))
        sys.stderr.flush()
        self._shown, self._drawn_for = len(lines), columns

    def clear(self) -> None:
        """Leaves the text alone, with the cursor at its end; needed before the text goes on."""
        self.draw([])

    def wrote(self, text: str, style: str = "") -> None:
        """`text` was printed to the terminal, in the style of an escape sequence."""
        columns = terminal_size().columns
        _, newline, rest = text.rpartition("\n")
        if newline or not self._line:
            self._line, self._begun_for = rest, columns
        else:
            self._line += rest
            self._begun_for *= columns == self._begun_for
        self._style = style

    def _is_row_full(self, columns: int) -> bool:
        """Whether the cursor waits upon the last column until the next character comes. It forgets that when
        it is moved, and the next character would take the last one's place: so the row is written again."""
        return columns == self._begun_for and _wrapped(self._line, columns)[1] == columns

    def _is_cursor_lost(self, columns: int, rows: int) -> bool:
        """Whether a narrower terminal, which may have broken each line shown into several, may have scrolled
        the end of the text away to find room for them. Then it is written again where the cursor is now."""
        parts = -(-(self._drawn_for - 1) // columns)
        return columns < self._drawn_for and 1 + self._shown * parts > rows

    def _last_row(self, columns: int) -> str:
        """Writes again what the terminal's last row of the text holds."""
        row, _ = _wrapped(self._line, columns)
        return f"\r{self._style}{row}" + ("\x1b[0m" if self._style else "")


def _wrapped(line: str, columns: int) -> tuple[str, int]:
    """The last row of `line` on a terminal, and how many cells of it are filled."""
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
