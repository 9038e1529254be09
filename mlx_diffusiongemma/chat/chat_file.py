"""Reads and writes saved chats. Such a file holds the result of `Chat.to_dict` as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ..config.files import check_values, read_text
from ..console.messages import one_line
from ..errors import InputError

_MOST_BYTES, _MOST_VALUES = 100_000_000, 5_000_000  # commas in texts count, too
FORMAT, VERSION = "mlx_dg chat", 1


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the content of a saved chat. Raises `InputError` for any other file."""
    try:
        text = read_text(_expanded(path), _MOST_BYTES, "utf-8-sig")
        check_values(text, _MOST_VALUES)
        values = json.loads(text)
        check_format(values)
        json.dumps(values, ensure_ascii=False).encode()  # JSON can spell half of a surrogate pair
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{os.fspath(path)!r} is not a saved chat: {reason}") from None
    return dict(values)


def write(path: str | os.PathLike[str], values: dict[str, Any]) -> None:
    """Write `values` to `path`, whole or not at all, readable for the owner only.

    Raises `InputError` if that fails, or if the file exists and is not a saved chat.
    """
    try:
        target = Path(os.path.realpath(_expanded(path)))  # the file behind a link is replaced, not the link
        if target.exists():
            read(target)
        number, temporary = tempfile.mkstemp(dir=target.parent, prefix=".mlx_dg_chat.")
        try:
            with open(number, "w", encoding="utf-8") as file:
                json.dump(values, file, ensure_ascii=False, indent=1)
                file.write("\n")
            os.replace(temporary, target)
        finally:
            with contextlib.suppress(FileNotFoundError):  # it has been renamed
                os.unlink(temporary)
    except (OSError, ValueError) as error:  # a full disk; half of a surrogate pair
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{os.fspath(path)!r} is not written: {reason}; give another name") from None


def _expanded(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.expanduser(os.fspath(path)))


def check_format(values: Any) -> None:
    """Raises `InputError` unless `values` have the format and version that `Chat.save` writes."""
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise InputError(f'"format": "{FORMAT}" is missing')
    if values.get("version") != VERSION:
        raise InputError(f"its version is {values.get('version')!r}, and this package reads {VERSION}")
