"""JSON files whose values are asked for by name, so that a complaint names file and key."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, InputError


def read_json(path: Path) -> Any:
    """Parses a JSON file; `ConfigError` says when it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path.parent}: no {path.name} in it; is this a model directory?") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path}: not readable as JSON ({reason}); download it again") from None


class JsonObject:
    """One object of a file; `where` is its place in it, for messages."""

    def __init__(self, values: Any, where: str, file: str = "config.json"):
        if not isinstance(values, dict):
            raise ConfigError(f"{file}: {where or 'the top level'} must be an object, found {values!r}")
        self.values, self.where, self.file = values, where, file

    def name(self, key: str) -> str:
        return f"{self.file}: {self.where}{'.' if self.where else ''}{key}"

    def size(self, key: str, needed_for: str) -> int:
        """A required positive integer."""
        if self.values.get(key) is None:
            raise ConfigError(f"{self.name(key)} is missing (needed {needed_for})")
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
            raise ConfigError(f"{self.name(key)} must be a positive integer below 2**31, found {value!r}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key)
        if value is None:
            return default
        known = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not known or not -1e30 < value < 1e30:
            raise ConfigError(f"{self.name(key)} must be a number, found {value!r}")
        return float(value)


def token_ids(value: Any, name: str) -> tuple[int, ...]:
    """A token id or a list of them (NumPy's integers too) as a tuple; `InputError` when it is neither."""
    ids = tuple(value) if isinstance(value, Iterable) and not isinstance(value, (str, Mapping)) else (value,)
    if not ids or any(isinstance(i, bool) or not hasattr(i, "__index__") or not 0 <= i < 2**31 for i in ids):
        raise InputError(f"{name} must be a token id or a list of them, found {value!r}")
    return tuple(int(i) for i in ids)
