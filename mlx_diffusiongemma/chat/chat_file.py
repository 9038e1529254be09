"""The file of a saved chat: JSON, written whole, read with suspicion. What is in it, `Chat.to_dict` says."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from ..console.messages import one_line, shown
from ..errors import InputError

FORMAT, VERSION = "mlx_dg chat", 1
LARGEST_FILE = 16 * 2**20  # bytes; a context of 262,144 tokens is about one million
_ROLES = ("user", "assistant")


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a saved chat holds; `InputError` unless the file at least calls itself one."""
    file = _expanded(path)
    where = repr(str(file))
    try:
        status = os.stat(file)
    except OSError as error:
        raise InputError(f"{where}: not readable ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device might never end
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise InputError(f"{where} is {kind}, not a saved chat")
    if status.st_size > LARGEST_FILE:
        raise InputError(f"{where} has {status.st_size} bytes, too many for a saved chat")
    try:
        values = json.loads(file.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise InputError(f"{where} is not UTF-8, so not a saved chat") from None
    except OSError as error:
        raise InputError(f"{where}: not readable ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON, so not a saved chat ({one_line(error)})") from None
    try:
        check_format(values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return dict(values)


def write(path: str | os.PathLike[str], values: dict[str, Any]) -> None:
    """Writes `values` to `path`, whole or not at all; readable for its owner only.

    Raises `InputError` where it cannot be written, and for a file that is there and is no saved chat.
    """
    target = Path(os.path.realpath(_expanded(path)))  # what a link names, not the link, is replaced
    if os.path.exists(target):
        try:
            read(target)
        except InputError as error:
            raise InputError(f"{error}; it is not replaced, give another name") from None
    try:
        content = (json.dumps(values, ensure_ascii=False, indent=1) + "\n").encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, from undecodable bytes
        raise InputError(
            f"{str(target)!r}: not written, the chat holds invalid Unicode ({error.reason})"
        ) from None
    temporary = None
    try:
        number, temporary = tempfile.mkstemp(dir=target.parent, prefix=".mlx_dg_chat.")
        with open(number, "wb") as file:
            file.write(content)
        os.replace(temporary, target)
    except OSError as error:
        missing = not target.parent.is_dir()
        reason = f"there is no directory {str(target.parent)!r}" if missing else error.strerror
        raise InputError(f"{str(target)!r}: not written, {reason}") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):  # renamed
                os.unlink(temporary)


def _expanded(path: str | os.PathLike[str]) -> Path:
    """`path` with a leading `~` as the home directory."""
    text = os.fspath(path)
    if not text or "\0" in text:
        raise InputError(f"{text!r} is no file name; give one")
    return Path(os.path.expanduser(text))


def check_format(values: Any) -> None:
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise InputError(f'not a saved chat: no "format": "{FORMAT}" in it')


def checked_message(index: int, message: Any) -> dict[str, str]:
    where, role = f"message {index + 1}", _ROLES[index % 2]
    if not isinstance(message, dict) or message.get("role") != role:
        raise InputError(f'{where} must have "role": "{role}"; questions and answers take turns')
    checked = {"role": role, "content": checked_text(message.get("content"), f"content of {where}")}
    if not checked["content"].strip():
        raise InputError(f"content of {where} is empty")
    if role == "assistant" and "thought" in message:
        checked["thought"] = checked_text(message["thought"], f"thought of {where}")
    return checked


def checked_text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{what} must be text, found {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        raise InputError(f"{what} is not valid Unicode") from None
    return value
