"""Reads text files of a model, which are untrusted: pipes, devices and very large files are refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

MOST_VALUES = 200_000  # of a small JSON file
MOST_BYTES = 2_000_000  # this model's files have 0.1 MB at most. Parsed, 2 MB of JSON take 100 MB.


def read_bytes(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most `most` bytes.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is not a regular file, or too large.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # does not wait for the writer of a pipe
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a regular file")
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"larger than {most / 1e6:g} MB")
    return data


def check_values(text: str | bytes, most: int) -> None:
    """Raise `ValueError` if JSON has more than about `most` values. Parsed, each takes up to 200 bytes."""
    marks = (",", "[", "{") if isinstance(text, str) else (b",", b"[", b"{")
    if sum(map(text.count, marks)) > most:  # type: ignore[arg-type]
        raise ValueError(f"more than {most} values")


def read_text(path: Path, most: int = MOST_BYTES, encoding: str = "utf-8", errors: str = "strict") -> str:
    """Return the text of a regular file of at most `most` bytes.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is not a regular file, is too large, or is not text.
    """
    return read_bytes(path, most).decode(encoding, errors)
