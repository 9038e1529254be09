"""Text for messages of one line."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """Message of `error` on one line."""
    return " ".join(str(error).split()) or type(error).__name__
