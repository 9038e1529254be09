"""Ids at the ends of the vocabulary."""

from __future__ import annotations

import pytest

from mlx_diffusiongemma.engine.ids import check_ids
from mlx_diffusiongemma.errors import InputError


def test_ids_from_zero_to_the_last_are_taken() -> None:
    check_ids("the prompt", [0, 703], 704)
    for wrong in (-1, 704):
        with pytest.raises(
            InputError, match=f"the prompt has token id {wrong}, but the model's ids end at 703"
        ):
            check_ids("the prompt", [0, wrong], 704)
