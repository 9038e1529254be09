"""A compiled step with parts that users wrote: what is traced, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from oracle import tiny

from mlx_diffusiongemma.checkpoint.loading import load_model
from mlx_diffusiongemma.engine import denoise as denoising
from mlx_diffusiongemma.engine.denoise import Denoiser, denoise
from mlx_diffusiongemma.engine.noise import NoiseKey, SeededDraws
from mlx_diffusiongemma.engine.settings import Settings
from mlx_diffusiongemma.engine.state import CanvasInit, CanvasState, Step
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.model import DiffusionGemma
from mlx_diffusiongemma.ops import FREE, Proposal

LENGTH = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionGemma:
    return load_model(tiny.build(tiny.SHARP, tmp_path_factory.mktemp("tiny") / "sharp"), dtype=mx.float32)


@dataclass(frozen=True)
class Ramp:
    """Accepts a growing share of the positions, and keeps argmaxes; never stops."""

    calls: Any = None
    broken: bool = False
    traceable = True

    def __hash__(self) -> int:
        return id(self.calls)

    def accept(self, proposal: Proposal, pins: mx.array) -> mx.array:
        self.calls.append((proposal.step, proposal.steps))
        if self.broken:
            raise ValueError("bad")
        rank = mx.argsort(mx.argsort(proposal.entropies, axis=-1), axis=-1)
        return rank * proposal.steps <= (proposal.steps - proposal.step) * pins.shape[-1]

    def renoise(self, accepted: mx.array, proposal: Proposal, noise: mx.array) -> mx.array:
        return mx.where(accepted, proposal.argmaxes, noise)

    def __call__(self, state: CanvasState) -> mx.array:
        return mx.zeros(state.stopped_by.shape, dtype=mx.bool_)


class Interpreted(Ramp):
    """The same. It does not say that it is traceable."""


def steps_of(model: DiffusionGemma, part: Ramp, steps: int) -> list[Step]:
    cache = model.make_cache()
    model.encode(mx.arange(1, 6)[None], cache)
    settings = Settings().override(sampler=part, stop=part, max_denoising_steps=steps)
    draws = SeededDraws([NoiseKey(0, 0, 0, 0)], LENGTH, model.config.text.vocab_size)
    watched: list[Step] = []
    denoise(model, cache, settings, draws, on_step=watched.append)
    return watched


def test_a_compiled_step_is_not_traced_for_each_step(
    model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One trace serves all steps and all `max_denoising_steps`, and computes what Python computes."""
    interpreted = Interpreted(calls=[])
    expected = [steps_of(model, interpreted, steps) for steps in (6, 4)]
    assert interpreted.calls == [(step, steps) for steps in (6, 4) for step in range(steps, 0, -1)]
    assert all(type(number) is int for call in interpreted.calls for number in call)
    counts = [step.accepted.sum() for step in expected[0]]
    assert counts == sorted(counts)
    assert len(set(counts)) == 6

    for compiled in (False, True):
        monkeypatch.setattr(denoising, "_compiles", lambda: compiled)  # noqa: B023
        part = Ramp(calls=[])
        ours = [steps_of(model, part, steps) for steps in (6, 4)]
        assert len(part.calls) == (1 if compiled else 10)
        for step, steps in part.calls:
            assert step.dtype == steps.dtype == mx.int32
            assert step.shape == steps.shape == ()
        for mine, theirs in zip(chain(*ours), chain(*expected), strict=True):
            np.testing.assert_array_equal(mine.canvas_ids, theirs.canvas_ids)
            np.testing.assert_array_equal(mine.accepted, theirs.accepted)
            np.testing.assert_allclose(mine.logprobs, theirs.logprobs, atol=1e-5)


def test_an_error_in_a_traced_part_names_its_step(
    model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(denoising, "_compiles", lambda: True)
    message = r"^sampler: accept fails at step 6 of 6 \(ValueError: bad\)$"
    with pytest.raises(InputError, match=message) as raised:
        steps_of(model, Ramp(calls=[], broken=True), 6)
    assert isinstance(raised.value.__cause__, ValueError)


def test_few_compiled_steps_are_kept(model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that are made anew for each generation do not pile up."""
    monkeypatch.setattr(denoising, "_compiles", lambda: True)
    for _ in range(20):
        part = Ramp(calls=[])
        denoising.denoiser_of(model).step_function(denoising.Rules(part, (part,)), ())
    assert len(denoising.denoiser_of(model)._compiled) <= 8


def test_every_pinned_token_conditions_the_first_step(
    model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its embedding stands in for a soft embedding, also for id 0. Other positions have zeros."""
    seen: list[mx.array] = []

    def keep(canvas: mx.array, soft_embedding: mx.array, pins: mx.array | None) -> Any:
        seen.append(soft_embedding)
        raise KeyboardInterrupt  # before the first step

    monkeypatch.setattr(denoising, "initial_state", keep)
    pins = mx.array([[0, FREE, 7] + [FREE] * (LENGTH - 3)], dtype=mx.int32)
    draws = SeededDraws([NoiseKey(0, 0, 0, 0)], LENGTH, tiny.SHARP.vocab)
    with pytest.raises(KeyboardInterrupt):
        next(Denoiser(model).run(model.make_cache(), Settings(), draws, CanvasInit(pins)))
    (soft,) = seen
    expected = mx.zeros_like(soft)
    expected[0, 0], expected[0, 2] = model.embed(mx.array([0, 7]))
    assert mx.array_equal(soft, expected)
