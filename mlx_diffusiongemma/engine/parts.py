"""Checks around calls of samplers, stop rules and draws, which users may write. Errors name the part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np

from ..console.messages import one_line
from ..errors import InputError


class PartError(InputError):
    """An error inside a part. It does not name the step, which is unknown while MLX traces the part."""

    def __init__(self, part: str, error: Exception):
        self.part, self.error = part, error
        super().__init__(f"{part} fails ({described(error)})")


@contextmanager
def named(part: str) -> Iterator[None]:
    """Turn an error inside the `with` block into a `PartError` that names `part`."""
    try:
        yield
    except Exception as error:  # user code may raise anything
        raise PartError(part, error) from error


@contextmanager
def naming_the_step(when: str) -> Iterator[None]:
    """Turn a `PartError` inside the `with` block into an `InputError` that also says `when` it happened."""
    try:
        yield
    except PartError as failure:
        raise InputError(f"{failure.part} fails {when} ({described(failure.error)})") from failure.error


def described(error: Exception) -> str:
    """Return type and message of `error` in one line."""
    return one_line(f"{type(error).__name__}: {error}").removesuffix(":")


def name_of(part: Any) -> str:
    return str(getattr(part, "__name__", type(part).__name__))


def check_result(name: str, value: Any, shape: Sequence[int], dtype: mx.Dtype | mx.DtypeCategory) -> None:
    """Raise a `PartError` unless `value` is an MLX array of this shape and dtype."""
    is_array = isinstance(value, mx.array)
    if is_array and value.shape == tuple(shape) and mx.issubdtype(value.dtype, dtype):
        return
    kind = "bool" if dtype == mx.bool_ else "integer" if dtype == mx.integer else "floating"
    actual = f"{value.dtype} {list(value.shape)}" if is_array else type(value).__name__
    raise PartError(name, TypeError(f"must return an MLX array, {kind} {list(shape)}; found {actual}"))


def check_token_ids(name: str, ids: mx.array, vocab_size: int) -> None:
    """Raise a `PartError` if an id has no embedding. MLX would read beyond the embedding table."""
    low, high = np.array(ids).min(), np.array(ids).max()
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise PartError(name, ValueError(f"returned token {wrong}; ids are 0 to {vocab_size - 1}"))


def is_traceable(part: Any) -> bool:
    """Return True if `part` or its class sets `traceable = True`. The value of a base class is ignored."""
    own = {**vars(type(part)), **getattr(part, "__dict__", {})}
    return own.get("traceable") is True
