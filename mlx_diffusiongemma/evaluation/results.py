"""The file of an evaluation: JSON lines, one for its settings, then one an answer.

A run that was killed goes on where it stopped: every answer is on disk before the next begins, a line that
was half written is cut, and what is there is not asked for again. All candidates of a task's run are there
together or not at all. A file holds one evaluation: what would mix two, other settings or another process
that writes, is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mlx_diffusiongemma.errors import InputError

FORMAT = 1
Line = dict[str, Any]
Key = tuple[str, int]  # task, run


class Results:
    """An evaluation's file, open for writing: `answers` so far, and `add`."""

    def __init__(self, path: Path, settings: Line):
        """settings: what has to be the same for a run to go on, ready for JSON.

        Raises `InputError` for a file that holds something else, or is being written.
        """
        self.path = path
        self.answers: dict[Key, list[Line]] = {}
        header = json.loads(json.dumps({"kind": "settings", "format": FORMAT} | settings))
        try:
            self._file: IO[bytes] = path.open("a+b")
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; give another --out") from None
        try:
            self._begin(header, settings["n"])
        except BaseException:
            self._file.close()
            raise

    def _begin(self, header: Line, candidates: int) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{self.path}: another process is writing to it; wait for that, or give another --out"
            ) from None
        self._file.seek(0)
        raw, first, end = self._file.read(), _encoded(header), 0
        if raw and not (b"\n" not in raw and first.startswith(raw)):  # else it is empty, or half a first line
            found = _parsed(raw, self.path)
            _check_settings(found.settings, header, self.path)
            self.answers, end = found.answers, found.without_half_answered(candidates)
        self._file.truncate(end)
        if end == 0:
            self._write(first)

    def add(self, key: Key, lines: list[Line]) -> None:
        """All candidates' answers to one task in one run; on disk when this returns."""
        marked = [{"kind": "answer"} | line for line in lines]
        self._write(b"".join(map(_encoded, marked)))
        self.answers[key] = marked

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """A file without an answer is removed."""
        if not self.answers:
            self.path.unlink(missing_ok=True)
        self._file.close()


def read(path: Path) -> tuple[Line, dict[Key, list[Line]]]:
    """Settings and answers of a file, by task and run. Raises `InputError` when it is none of ours."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a file that mlx_dg eval wrote") from None
    found = _parsed(raw, path)
    found.without_half_answered(found.settings["n"])
    return found.settings, found.answers


def _encoded(line: Line) -> bytes:
    return json.dumps(line).encode() + b"\n"


@dataclass
class _Contents:
    """end: where the last whole line ends. last: where the lines of the last key begin."""

    settings: Line
    answers: dict[Key, list[Line]] = field(default_factory=dict)
    end: int = 0
    last: int = 0

    def take(self, line: Line) -> None:
        """Adds an answer; any `ValueError`, `KeyError` or `TypeError` means that it is none of ours."""
        key = (line["task"], line["run"])
        siblings = self.answers.get(key, [])
        # The same answer a second time, or one whose siblings are elsewhere.
        if line["candidate"] != len(siblings) or (siblings and key != next(reversed(self.answers))):
            raise ValueError
        if line["kind"] != "answer" or not all(name in line for name in _NEEDED):
            raise ValueError
        if not siblings:
            self.last = self.end
        self.answers[key] = [*siblings, line]

    def without_half_answered(self, candidates: int) -> int:
        """Drops the last key unless all its candidates are there; returns where the file then ends."""
        if self.answers and len(self.answers[next(reversed(self.answers))]) < candidates:
            self.answers.popitem()
            return self.last
        return self.end


_NEEDED = ("group", "outcome", "strict", "lenient", "seconds", "new_tokens", "answer_tokens", "blocks",
           "denoising_steps")  # fmt: skip


def _parsed(raw: bytes, path: Path) -> _Contents:
    """What a file holds, but for a last line without its end, which was half written."""
    *lines, _ = raw.split(b"\n")
    settings = _header(lines[0] if lines else b"", path)
    contents = _Contents(settings, end=len(lines[0]) + 1)
    for number, text in enumerate(lines[1:], 2):
        try:
            contents.take(json.loads(text))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(
                f"{path}: line {number} is no answer that belongs there; mend it, or give another file"
            ) from None
        contents.end += len(text) + 1
    return contents


def _header(text: bytes, path: Path) -> Line:
    try:
        settings: Line = json.loads(text)
        known, version = settings["kind"] == "settings" and settings["n"] >= 1, settings["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        known, version = False, None
    if not known:
        raise InputError(f"{path}: not a file that mlx_dg eval wrote; give another")
    if version != FORMAT:
        raise InputError(
            f"{path}: its format is {version!r}, and {FORMAT} is what is known here; update mlx_dg"
        )
    return settings


def _check_settings(found: Line, wanted: Line, path: Path) -> None:
    differing = [key for key in wanted if found.get(key) != wanted[key]]
    if differing:
        key = differing[0]
        was, now = (_brief(settings.get(key), other.get(key)) for settings, other in
                    ((found, wanted), (wanted, found)))  # fmt: skip
        raise InputError(
            f"{path}: holds an evaluation with {key} {was}, not {now}; "
            "give the same settings to go on with it, or another --out"
        )


def _brief(value: Any, other: Any) -> str:
    """`value` as JSON; of an object, what differs from `other`."""
    if isinstance(value, dict) and isinstance(other, dict):
        value = {key: part for key, part in value.items() if part != other.get(key)}
    return json.dumps(value)
