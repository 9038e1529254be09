"""Reads JSON files value by value, so that errors name file and key."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..console.messages import one_line, shown
from ..errors import ConfigError, InputError
from .files import MOST_VALUES, check_values, read_text
from .ranges import integer


def read_json(path: Path) -> Any:
    """Return the contents of a JSON file. Raise `ConfigError` if it is missing or broken."""
    try:
        text = read_text(path)
        check_values(text, MOST_VALUES)
        return json.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"{path.parent}: no {path.name} in it; is this a model directory?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not readable as JSON ({one_line(error)}); download it again") from None


MOST_SIZE = 2**20  # of one dimension; the largest of this model is its vocabulary, 2**18


class JsonObject:
    """One object of a JSON file. where: its path in the file, for messages; "" at the top level.

    Raises `ConfigError` if `values` are not an object.
    """

    def __init__(self, values: Any, where: str, file: str = "config.json"):
        if not isinstance(values, dict):
            raise ConfigError(f"{file}: {where or 'the top level'} must be an object, found {shown(values)}")
        self.values, self.where, self.file = values, where, file

    def name(self, key: str) -> str:
        return f"{self.file}: {self.where}{'.' if self.where else ''}{key}"

    def size(self, key: str, needed_for: str, most: int = MOST_SIZE) -> int:
        """Return the integer at `key`. Raise `ConfigError` if it is missing, or not from 1 to `most`."""
        if self.values.get(key) is None:
            raise ConfigError(f"{self.name(key)} is missing (needed {needed_for})")
        value = integer(self.values[key], 1, most)
        if value is None:
            found = shown(self.values[key])
            raise ConfigError(f"{self.name(key)} must be an integer from 1 to {most}, found {found}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key)
        if value is None:
            return default
        known = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not known or not -1e30 < value < 1e30:
            raise ConfigError(f"{self.name(key)} must be a number, found {shown(value)}")
        return float(value)


def token_ids(value: Any, name: str) -> tuple[int, ...]:
    """Return a token id, or an iterable of them, as a tuple. Raise `InputError` for anything else."""
    several = isinstance(value, Iterable) and not isinstance(value, (str, Mapping))
    items = tuple(value) if several else (value,)
    ids = [token for item in items if (token := integer(item, 0, 2**31 - 1)) is not None]
    if not ids or len(ids) < len(items):
        raise InputError(f"{name} must be a token id or a list of them, found {shown(value)}")
    return tuple(ids)
