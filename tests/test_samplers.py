"""Samplers, schedules and stop rules as parts: ours are what they say, and anybody's fit in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from scripted import TURN_END, Scripted

import mlx_dg
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.generation import generate
from mlx_diffusiongemma.generation_config import GenerationConfig
from mlx_diffusiongemma.loading import load
from mlx_diffusiongemma.model import DiffusionGemma
from mlx_diffusiongemma.ops import FREE, Proposal
from mlx_diffusiongemma.rules import Rules, rules_of
from mlx_diffusiongemma.samplers import (
    ConfidenceThreshold,
    ConstantSchedule,
    CosineSchedule,
    EntropyBound,
    LinearSchedule,
    StableAndConfident,
    Stalled,
)
from mlx_diffusiongemma.sampling import initial_state
from mlx_diffusiongemma.tokenizer import Tokenizer

# Prompts of the demo that take a few steps, with a pin-free canvas and several blocks among them.
PROMPTS = (("What is 99 + 88?", False), ("Count to 37.", True), ("Tell me about Rome in JSON", True))


@pytest.fixture(scope="module")
def demo() -> tuple[DiffusionGemma, Tokenizer]:
    return load("demo")


@pytest.fixture(scope="module")
def tokenizer(demo: Any) -> Tokenizer:
    return demo[1]  # type: ignore[no-any-return]


def told(demo: Any, prompt: str, thinking: bool, **settings: Any) -> tuple[list[int], list[int]]:
    generation = generate(*demo, prompt, thinking=thinking, seed=1, max_new_tokens=192, **settings)
    return generation.token_ids, [block.denoising_steps for block in generation]


@dataclass(frozen=True)
class Mine:
    """The entropy bound, written by somebody else."""

    bound: float

    def accept(self, proposal: Proposal, pins: mx.array) -> mx.array:
        entropies = np.where(np.array(pins) >= 0, np.inf, np.array(proposal.entropies))
        accepted = np.zeros(entropies.shape, dtype=bool)
        for row, order in enumerate(np.argsort(entropies, axis=-1, kind="stable")):
            total = 0.0
            for position in order:
                if not np.isfinite(entropies[row, position]) or total > self.bound:
                    break
                accepted[row, position] = True
                total += entropies[row, position]
        return mx.array(accepted)

    def renoise(self, accepted: mx.array, proposal: Proposal, noise: mx.array) -> mx.array:
        return mx.where(accepted, proposal.samples, noise)


def mine_stops(state: Any) -> mx.array:
    return (state.acceptance.stable_steps >= 1) & (state.acceptance.mean_entropy < 0.005)


@pytest.mark.parametrize(("prompt", "thinking"), PROMPTS)
def test_anybodys_parts_that_do_the_same_give_the_same(demo: Any, prompt: str, thinking: bool) -> None:
    expected = told(demo, prompt, thinking)
    config = demo[0].generation_config
    bound = config.entropy_bound
    assert told(demo, prompt, thinking, sampler=EntropyBound(bound)) == expected
    assert told(demo, prompt, thinking, sampler=Mine(bound)) == expected
    assert told(demo, prompt, thinking, stop=mine_stops) == expected
    assert told(demo, prompt, thinking, sampler=Mine(bound), stop=[mine_stops]) == expected
    schedule = LinearSchedule(config.t_min, config.t_max)
    assert told(demo, prompt, thinking, schedule=schedule) == expected
    assert told(demo, prompt, thinking, schedule=lambda step, steps: schedule(step, steps)) == expected


def test_settings_and_parts_mean_the_same(demo: Any) -> None:
    prompt, thinking = PROMPTS[0]
    by_name = told(demo, prompt, thinking, entropy_bound=0.5, t_min=0.3, t_max=0.6, confidence_threshold=0.02)
    parts = {"sampler": EntropyBound(0.5), "schedule": LinearSchedule(0.3, 0.6)}
    assert told(demo, prompt, thinking, stop=StableAndConfident(1, 0.02), **parts) == by_name
    assert by_name != told(demo, prompt, thinking)


def proposal(rng: np.random.Generator, rows: int, length: int) -> Proposal:
    entropies = rng.random((rows, length)).astype(np.float32) * 0.05
    return Proposal(
        entropies=mx.array(entropies),
        samples=mx.array(rng.integers(0, 90, (rows, length)).astype(np.int32)),
        argmaxes=mx.array(rng.integers(0, 90, (rows, length)).astype(np.int32)),
        invalid=mx.zeros((rows, length), dtype=mx.bool_),
        confidences=mx.array(rng.random((rows, length)).astype(np.float32)),
    )


def test_the_confidence_threshold_accepts_who_reaches_it_and_always_one() -> None:
    rng = np.random.default_rng(0)
    seen = proposal(rng, 4, 16)
    pins = np.full((4, 16), FREE, dtype=np.int32)
    pins[1, 3:9] = 7
    confidences = np.array(seen.confidences)
    for threshold in (0.0, 0.3, 0.9, 1.0):
        sampler = ConfidenceThreshold(threshold)
        accepted = np.array(sampler.accept(seen, mx.array(pins)))
        for row in range(4):
            free = pins[row] < 0
            expected = free & (confidences[row] >= threshold)
            expected[np.flatnonzero(free)[confidences[row][free].argmax()]] = True
            assert np.array_equal(accepted[row] & free, expected & free)
        noise = mx.full((4, 16), 99, dtype=mx.int32)
        canvas = np.array(sampler.renoise(mx.array(accepted), seen, noise))
        assert np.array_equal(canvas, np.where(accepted, np.array(seen.samples), 99))


def test_confidence_is_the_probability_of_the_likeliest_token(demo: Any) -> None:
    """As the demo's own logits have it, at the step's temperature."""
    model, _ = demo
    found: list[tuple[Any, Any]] = []

    class Spy(EntropyBound):
        def accept(self, proposal: Proposal, pins: mx.array) -> mx.array:
            found.append((np.array(proposal.confidences), np.array(proposal.entropies)))
            return super().accept(proposal, pins)

    logits = DiffusionGemma.logits
    raw: list[np.ndarray] = []

    def watched(self: DiffusionGemma, hidden: mx.array) -> mx.array:
        raw.append(np.array(logits(self, hidden)).astype(np.float64)[0])
        return logits(self, hidden)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionGemma, "logits", watched)
        settings: Any = {
            "sampler": Spy(0.1),
            "schedule": ConstantSchedule(0.5),
            "max_denoising_steps": 3,
            "confidence_threshold": 0.0,
        }
        str(
            generate(
                *demo, "What is 99 + 88?", seed=1, guard_unconverged=False, max_new_tokens=64, **settings
            )
        )
    assert len(found) == len(raw) == 3
    cap = model.config.text.final_logit_softcapping
    for (confidences, entropies), x in zip(found, raw, strict=True):
        x = cap * np.tanh(x / cap) / 0.5
        p = np.exp(x - x.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(confidences[0], p.max(axis=-1), atol=1e-4)
        np.testing.assert_allclose(entropies[0], -(p * np.log(p + 1e-300)).sum(axis=-1), atol=1e-3)


def test_confidence_threshold_writes_right_answers(demo: Any) -> None:
    for prompt, answer in (("What is 345 + 78?", "423"), ("What is the capital of Norway?", "Oslo")):
        generation = generate(*demo, prompt, thinking=True, seed=0, sampler=ConfidenceThreshold(0.9))
        assert answer in generation.answer


@pytest.mark.parametrize("steps", [1, 7, 48])
def test_schedules(steps: int) -> None:
    for step in range(1, steps + 1):
        done = step / steps
        assert LinearSchedule(0.4, 0.8)(step, steps) == pytest.approx(0.4 + 0.4 * done)
        assert ConstantSchedule(0.7)(step, steps) == 0.7
        half_cosine = 0.4 + 0.4 * math.sin(math.pi / 2 * done) ** 2
        assert CosineSchedule(0.4, 0.8)(step, steps) == pytest.approx(half_cosine)


def test_the_schedule_is_what_logits_are_divided_by(demo: Any) -> None:
    seen: list[tuple[int, float]] = []

    def schedule(step: int, steps: int) -> float:
        assert steps == 5
        return 0.3 + step / 100

    str(
        generate(
            *(*demo, "What is 99 + 88?"),
            seed=0,
            schedule=schedule,
            max_denoising_steps=5,
            max_new_tokens=64,
            confidence_threshold=0.0,
            guard_unconverged=False,
            on_step=lambda step: seen.append((step.step, round(step.temperature, 6))),
        )
    )
    assert seen == [(step, round(0.3 + step / 100, 6)) for step in (5, 4, 3, 2, 1)]


def test_stop_rules_follow_their_counters() -> None:
    state = initial_state(mx.zeros((4, 2), dtype=mx.int32), mx.zeros((4, 2, 1)))
    state = state._replace(
        acceptance=state.acceptance._replace(
            stable_steps=mx.array([1, 2, 2, 2]), mean_entropy=mx.array([0.0, 0.01, 0.009, 0.0])
        ),
        unchanged_steps=mx.array([8, 7, 8, 9]),
    )
    assert StableAndConfident(2, 0.01)(state).tolist() == [False, False, True, True]
    assert Stalled(8, 0.009)(state).tolist() == [True, False, False, True]


class Counted:
    """A stop rule that ends a canvas at its n-th step."""

    def __init__(self, steps: int):
        self.steps, self.asked = steps, 0

    def __call__(self, state: Any) -> mx.array:
        self.asked += 1
        return mx.full(state.acceptance.done.shape, self.asked >= self.steps)


def test_the_first_rule_that_fires_ends_a_canvas(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("yes"), TURN_END]
    for rules, steps in (
        ([Counted(4)], 4),
        ([StableAndConfident(), Counted(4)], 2),  # it is sure, and stable from the second step on
        ([StableAndConfident(9, 0.005), Counted(4)], 4),
        ([Counted(4), StableAndConfident()], 2),
    ):
        model: Any = Scripted([ids])
        generation = generate(model, tokenizer, "hi", stop=rules)
        (block,) = generation
        assert (block.denoising_steps, block.converged) == (steps, True)


def test_the_fused_operation_is_taken_for_what_it_computes_and_nothing_else() -> None:
    default = rules_of(GenerationConfig())
    assert default.fused == (0.1, 1, 0.005)
    assert rules_of(GenerationConfig(guard_stalled=True)).fused == default.fused
    assert Rules(ConfidenceThreshold(0.9), default.stop).fused is None
    assert Rules(default.sampler, (Stalled(), *default.stop)).fused is None

    class Careful(EntropyBound):
        pass

    assert Rules(Careful(0.1), default.stop).fused is None
    assert default.are_ours
    assert not Rules(Careful(0.1), default.stop).are_ours
    assert not Rules(default.sampler, (mine_stops,)).are_ours


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "greedy"}, "sampler must have the methods accept and renoise .* found 'greedy'"),
        ({"sampler": EntropyBound}, "sampler must have"),
        ({"schedule": 0.7}, r"schedule must have a function of step and steps .* found 0\.7"),
        (
            {"schedule": lambda step, steps: math.nan},
            "schedule: temperature at step 256 must be .* found nan",
        ),
        (
            {"schedule": lambda step, steps: 5 - step},
            "schedule: temperature at step 256 must be .* found -251",
        ),
        ({"stop": "never"}, "stop must have a stop rule or several"),
        ({"stop": []}, "stop must have a stop rule or several"),
        ({"stop": [StableAndConfident(), 3]}, "stop must have .* found 3"),
    ],
)
def test_bad_parts_are_refused_before_anything_runs(
    tokenizer: Tokenizer, settings: dict[str, Any], message: str
) -> None:
    model: Any = Scripted([])
    with pytest.raises(InputError, match=message):
        generate(model, tokenizer, "hi", max_denoising_steps=256, **settings)


def test_the_parts_are_public() -> None:
    for part in (EntropyBound, ConfidenceThreshold, LinearSchedule, CosineSchedule, ConstantSchedule):
        assert getattr(mlx_dg, part.__name__) is part


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EntropyBound(-1), "entropy_bound must be a number from 0"),
        (lambda: EntropyBound("0.1"), "entropy_bound must be a number"),  # type: ignore[arg-type]
        (lambda: ConfidenceThreshold(5), "probability must be a number from 0 to 1, found 5"),
        (lambda: ConstantSchedule(0.0), "temperature must be a number from 0.001"),
        (lambda: LinearSchedule(0.4, math.nan), "t_max must be a number"),
        (lambda: CosineSchedule(0.0, 0.8), "t_min must be a number"),
        (lambda: StableAndConfident(-1, 0.1), "stability_threshold must be an integer"),
        (lambda: Stalled(8, -1.0), "mean_entropy must be a number"),
    ],
)
def test_parts_refuse_numbers_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


class Returning:
    """A sampler that returns what it is told to."""

    def __init__(self, accept: Any = None, renoise: Any = None):
        self.returned = accept, renoise

    def __len__(self) -> int:  # falsy, and a sampler all the same
        return 0

    def accept(self, proposal: Proposal, pins: mx.array) -> Any:
        return mx.ones(pins.shape, dtype=mx.bool_) if self.returned[0] is None else self.returned[0]

    def renoise(self, accepted: mx.array, proposal: Proposal, noise: mx.array) -> Any:
        return proposal.samples if self.returned[1] is None else self.returned[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"sampler": Returning(accept=0.5)},
            r"sampler: accept must return an MLX array, bool \[1, 64\]; found float",
        ),
        ({"sampler": Returning(accept=mx.ones((1, 64)))}, r"found mlx.core.float32 \[1, 64\]"),
        (
            {"sampler": Returning(renoise=mx.zeros((64,), dtype=mx.int32))},
            r"renoise must return .* integer \[1, 64\]",
        ),
        (
            {"sampler": Returning(renoise=mx.full((1, 64), 704))},
            "renoise returned token 704; the model's ids are 0 to 703",
        ),
        ({"sampler": Returning(renoise=mx.full((1, 64), -1))}, "renoise returned token -1"),
        ({"stop": lambda state: True}, r"stop: a rule must return an MLX array, bool \[1\]; found bool"),
        (
            {"stop": lambda state: state.acceptance.accepted},
            r"stop: a rule must return .* found mlx.core.bool \[1, 64\]",
        ),
    ],
)
def test_what_parts_return_is_checked(tokenizer: Tokenizer, settings: dict[str, Any], message: str) -> None:
    model: Any = Scripted([[TURN_END]])
    with pytest.raises(InputError, match=message):
        str(generate(model, tokenizer, "hi", guard_empty=False, **settings))


def test_pinned_positions_have_no_entropy_to_wait_for(tokenizer: Tokenizer) -> None:
    """A rule that waits for every entropy fires although the model is unsure of what is pinned."""
    model: Any = Scripted([[*tokenizer.encode("yes"), TURN_END]])
    seen: list[np.ndarray] = []
    certain = lambda state: state.entropies.max(axis=-1) < 0.5  # noqa: E731
    asked: dict[str, Any] = {
        "thinking": True,
        "thinking_budget": 0,
        "max_new_tokens": 64,
        "guard_empty": False,
    }
    logits = Scripted.logits

    def unsure_first(self: Scripted, hidden: mx.array) -> mx.array:
        return logits(self, hidden) * (mx.arange(hidden.shape[1]) >= 4)[:, None]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scripted, "logits", unsure_first)
        generation = generate(
            model, tokenizer, "hi", stop=certain, on_step=lambda s: seen.append(s.entropies), **asked
        )
        assert generation.blocks == []
        (block, *_) = list(generation)
    assert block.denoising_steps <= 4
    assert all((entropies[0, :4] == 0).all() for entropies in seen)
