"""A check of token ids."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError


def check_ids(name: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raise `InputError` if an id has no embedding. MLX would read other memory, and report no error.

    name: where the ids come from, for the message.
    """
    wrong = next((token for token in ids if not 0 <= token < vocab_size), None)
    if wrong is not None:
        raise InputError(f"{name} has token id {wrong}, but the model's ids end at {vocab_size - 1}")
