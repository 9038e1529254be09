"""Draws of a caller: what generate refuses, and that seeded ones are the default."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from mlx_diffusiongemma.engine.noise import SeededDraws
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.generation import generate


class Given:
    """Draws with some of their results replaced."""

    def __init__(self, initial: Any = None, uniforms: Any = None, noise: Any = None):
        self.canvas, self.given = initial, (uniforms, noise)

    def __call__(self, *arguments: Any) -> Any:
        self.seeded = SeededDraws(*arguments)
        return self

    def initial(self) -> Any:
        return self.seeded.initial() if self.canvas is None else self.canvas

    def step(self, index: int) -> Any:
        pairs = zip(self.given, self.seeded.step(index), strict=True)
        return tuple(seeded if given is None else given for given, seeded in pairs)


class Beyond(SeededDraws):
    """A subclass of the seeded draws with an id that has no embedding."""

    def initial(self) -> mx.array:
        return mx.full((1, 64), 10**6)


def test_a_callers_draws_may_be_the_seeded_ones(demo: Any) -> None:
    asked: dict[str, Any] = {"seed": 3, "max_new_tokens": 64}
    expected = generate(*demo, "Count to 9.", **asked).token_ids
    assert generate(*demo, "Count to 9.", draws=Given(), **asked).token_ids == expected


@pytest.mark.parametrize(("draws", "message"), [
    (Given(initial=mx.full((1, 64), 704)), "draws: initial fails .*token 704; ids are 0 to 703"),
    (Given(initial=mx.full((1, 64), -1)), "draws: initial fails .*token -1"),
    (Given(noise=mx.full((1, 64), 10**6)), "draws: step fails at step 48 of 48 .*token 1000000"),
    (Given(initial=mx.full((2, 64), 1)), r"initial fails .*integer \[1, 64\]; found .*\[2, 64\]"),
    (Given(initial=mx.zeros((1, 64))), r"initial fails .*found mlx.core.float32"),
    (Given(uniforms=mx.full((1, 64), 0)), r"step fails .*floating \[1, 64\]; found mlx.core.int32"),
    (lambda keys, length, vocab: SeededDraws(keys, 63, vocab), r"initial fails .*found .*\[1, 63\]"),
    (Beyond, "draws: initial fails .*token 1000000"),
    (lambda *_: 1 / 0, "draws fails .*ZeroDivisionError"),
    (lambda *_: None, "draws: initial fails .*AttributeError"),
])  # fmt: skip
def test_draws_that_cannot_be_used(demo: Any, draws: Any, message: str) -> None:
    """Ids without an embedding would make MLX read beyond the table."""
    with pytest.raises(InputError, match=message):
        str(generate(*demo, "Count to 9.", seed=3, max_new_tokens=64, draws=draws))
