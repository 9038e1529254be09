"""Random draws of a canvas, keyed by (seed, candidate, block, attempt, step)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from ..config.ranges import integer
from ..console.messages import shown
from ..errors import InputError
from .parts import check_result, check_token_ids, named


class Draws(Protocol):
    """Random numbers of a canvas: two draws per position and step."""

    def initial(self) -> mx.array:
        """Return the noise that a canvas starts from: int32 `[B, C]`, uniform over the vocabulary."""
        ...

    def step(self, index: int) -> tuple[mx.array, mx.array]:
        """Return uniforms in [0, 1), fp32 `[B, C]`, and noise tokens, int32 `[B, C]`. The first step is 0."""
        ...


def checked_seed(seed: int | None) -> int:
    """Return `seed`, or a random one for None. Raise `InputError` if it is out of range."""
    if seed is None:
        return secrets.randbits(32)
    number = integer(seed, 0, 2**64 - 1)
    if number is None:
        raise InputError(f"seed must be an integer from 0 to 2**64 - 1, found {shown(seed)}")
    return number


class NoiseKey(NamedTuple):
    """Key of one row's draws for one try at a canvas. The number of a step completes it."""

    seed: int
    candidate: int
    block: int
    attempt: int


DrawsOf = Callable[[Sequence[NoiseKey], int, int], Draws]
"""A function of a canvas's keys (one per row), its length and the vocabulary size. Returns its draws."""


class CheckedDraws:
    """Draws of user code. Wrong shapes, wrong dtypes and ids without an embedding raise `InputError`."""

    def __init__(self, draws: Draws, shape: tuple[int, int], vocab_size: int):
        self._draws, self._shape, self._vocab_size = draws, shape, vocab_size

    def initial(self) -> mx.array:
        with named("draws: initial"):
            ids = self._draws.initial()
        return self._checked("draws: initial", ids)

    def step(self, index: int) -> tuple[mx.array, mx.array]:
        with named("draws: step"):
            uniforms, ids = self._draws.step(index)
        check_result("draws: step", uniforms, self._shape, mx.floating)
        return uniforms, self._checked("draws: step", ids)

    def _checked(self, name: str, ids: mx.array) -> mx.array:
        check_result(name, ids, self._shape, mx.integer)
        check_token_ids(name, ids, self._vocab_size)
        return ids.astype(mx.int32)


class SeededDraws:
    """Draws that depend only on each row's `NoiseKey` and the step, never on the rest of the batch."""

    def __init__(self, keys: Sequence[NoiseKey], length: int, vocab_size: int):
        self.keys, self.length, self.vocab_size = keys, length, vocab_size

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, length and vocabulary size."""
        return len(self.keys), self.length, self.vocab_size

    def initial(self) -> mx.array:
        return self._noise([self._mx_key(key, 0) for key in self.keys])

    def step(self, index: int) -> tuple[mx.array, mx.array]:
        pairs = [mx.random.split(self._mx_key(key, index + 1)) for key in self.keys]
        uniforms = mx.stack([mx.random.uniform(shape=(self.length,), key=pair[0]) for pair in pairs])
        return uniforms, self._noise([pair[1] for pair in pairs])

    def _mx_key(self, key: NoiseKey, step: int) -> mx.array:
        # SeedSequence mixes the parts of the key, because MLX has no fold_in.
        return mx.random.key(int(np.random.SeedSequence((*key, step)).generate_state(1, np.uint64)[0]))

    def _noise(self, keys: list[mx.array]) -> mx.array:
        return mx.stack([mx.random.randint(0, self.vocab_size, (self.length,), key=key) for key in keys])
