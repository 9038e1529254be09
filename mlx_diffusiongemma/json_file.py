"""JSON files whose values are asked for by name, so that a complaint names file and key."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from .errors import ConfigError


def read_json(path: Path) -> Any:
    """Parses a JSON file; `ConfigError` says when it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path.parent}: no {path.name} in it; is this a model directory?") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as JSON ({error}); download it again") from None


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
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise ConfigError(f"{self.name(key)} must be a positive integer, found {value!r}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ConfigError(f"{self.name(key)} must be a number, found {value!r}")
        return float(value)
