"""Text in columns, and sizes in bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .messages import CONTROLS

_MOST = 200  # characters of a cell


def aligned(lines: Iterable[Sequence[str]], left: int) -> str:
    """Return lines in columns two spaces apart. The first `left` columns are flush left, others flush right.

    Control characters in cells, which may come from files, become visible signs.
    """
    lines = [[cell[:_MOST].translate(CONTROLS) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 10**8 else f"{nbytes / 1e6:.2f} MB"
