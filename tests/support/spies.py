"""Records the calls of a function while a test runs."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest


class Call(NamedTuple):
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


def spied(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Call]:
    """Return a list to which every call of `owner.name` is added from now on."""
    calls: list[Call] = []
    real = getattr(owner, name)

    def spy(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        calls.append(Call(args, kwargs, result))
        return result

    monkeypatch.setattr(owner, name, spy)
    return calls
