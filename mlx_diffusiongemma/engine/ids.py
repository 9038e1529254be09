"""Lists of token ids."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common beginning of two lists."""
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def check_ids(name: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raise `InputError` for an id without an embedding. MLX would read other memory without an error.

    name: where the ids come from, for the message.
    """
    wrong = next((token for token in ids if not 0 <= token < vocab_size), None)
    if wrong is not None:
        raise InputError(f"{name} has token id {wrong}, but the model's ids end at {vocab_size - 1}")
