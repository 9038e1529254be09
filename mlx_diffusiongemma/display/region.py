"""Lines below the cursor of a terminal, which are replaced as a whole.

Not `rich.live.Live`: it begins a frame on the text's open line, and counts its lines, so that a terminal made
narrower keeps parts of old frames. Here the cursor stays where the text ends, and the terminal itself keeps
it there. A frame is one write, so an interrupt leaves no half of it and no hidden cursor.

Synchronized output (mode 2026, which others ignore) shows a frame at once. Without autowrap (mode 7) a line
that is too wide is cut instead of moving the ones below.
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
    """Return True if stderr, which shows progress, is a terminal that can redraw a line."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def terminal_size() -> os.terminal_size:
    """Return the size of stderr's terminal. stdout may be a file."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or not a file
        return shutil.get_terminal_size()
    return size if size.columns and size.lines else shutil.get_terminal_size()


class Region:
    """The lines that stderr shows below the text. `wrote` has to get all of the text."""

    def __init__(self) -> None:
        self._shown = 0  # lines
        self._drawn_for = 0  # columns of the terminal at the last frame
        self._line = ""  # the last one of the text, which may fill several rows of the terminal
        self._begun_for = 0  # columns when it began; 0: resized since
        self._style = ""

    def draw(self, lines: Sequence[str]) -> None:
        """Show `lines` instead of those before.

        Each is narrower than the terminal, and ends its own styles. Of too many, the last are left out.
        """
        columns, rows = terminal_size()
        lines = lines[: rows - 1]
        # Lines to clear are drawn empty: tmux keeps what is erased below the cursor in its history.
        drawn = lines or [""] * min(self._shown, rows - 1)
        if not drawn:
            return
        row, width = _last_row(self._line, columns)
        row = f"\r{self._style}{row}" + ("\x1b[0m" if self._style else "")
        frame = _BEGIN
        # A narrower terminal breaks each line into parts, and may scroll the end of the text away for them.
        parts = -(-(self._drawn_for - 1) // columns)
        if columns < self._drawn_for and 1 + self._shown * parts > rows:
            frame += "\r" + _ERASE_BELOW + row
        frame += _INDEX * len(drawn) + f"\x1b[{len(drawn)}A"
        # A cursor that waits upon the last column forgets that when it moves. Writing the row restores it.
        if columns == self._begun_for and width == columns:
            frame += row
        frame += _SAVE + "".join(f"\r\n{line}{_ERASE_LINE}" for line in drawn) + _ERASE_BELOW + _RESTORE
        encoding = sys.stderr.encoding or "utf-8"
        sys.stderr.write((frame + _END).encode(encoding, "replace").decode(encoding))
        sys.stderr.flush()
        self._shown, self._drawn_for = len(lines), columns

    def clear(self) -> None:
        """Leave the text alone, with the cursor at its end, so that the text can go on."""
        self.draw([])

    def wrote(self, text: str, style: str = "") -> None:
        """Note that `text` was printed to the terminal, in the style of an escape sequence."""
        columns = terminal_size().columns
        _, newline, rest = text.rpartition("\n")
        if newline or not self._line:
            self._line, self._begun_for = rest, columns
        else:
            self._line += rest
            self._begun_for *= columns == self._begun_for
        self._style = style


def _last_row(line: str, columns: int) -> tuple[str, int]:
    """Return the last row that `line` fills on a terminal, and how many cells of it."""
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
