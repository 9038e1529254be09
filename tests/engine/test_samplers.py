"""Samplers, schedules and stop rules as parts: the built-in ones, and those that users write."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from support.scripted import TURN_END, Scripted, scripted_generation
from support.spies import spied

from mlx_diffusiongemma.engine.noise import SeededDraws
from mlx_diffusiongemma.engine.parts import is_traceable
from mlx_diffusiongemma.engine.prompt_cache import PromptCache
from mlx_diffusiongemma.engine.samplers import (
    ConfidenceThreshold,
    ConstantSchedule,
    CosineSchedule,
    EntropyBound,
    LinearSchedule,
    StableAndConfident,
    Stalled,
)
from mlx_diffusiongemma.engine.settings import Settings
from mlx_diffusiongemma.engine.state import CanvasState, Step, initial_state
from mlx_diffusiongemma.engine.step import Rules
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.generation import generate
from mlx_diffusiongemma.model import DiffusionGemma
from mlx_diffusiongemma.ops import FREE, Proposal
from mlx_diffusiongemma.text.tokenizer import Tokenizer

# Prompts of the demo that take a few steps, and some several blocks.
PROMPTS = (("What is 99 + 88?", False), ("Count to 37.", True))


def told(demo: Any, prompt: str, thinking: bool, **settings: Any) -> tuple[list[int], list[int]]:
    generation = generate(*demo, prompt, thinking=thinking, seed=1, max_new_tokens=192, **settings)
    return generation.token_ids, [block.denoising_steps for block in generation]


@dataclass(frozen=True)
class Mine:
    """The entropy bound, written by a user in NumPy."""

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
    return (state.stable_steps >= 1) & (state.mean_entropy < 0.005)


@pytest.mark.parametrize(("prompt", "thinking"), PROMPTS)
@pytest.mark.slow
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


def test_confidence_is_the_probability_of_the_likeliest_token(
    demo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the demo's own logits have it, at the step's temperature."""
    found: list[tuple[Any, Any]] = []

    class Spy(EntropyBound):
        def accept(self, proposal: Proposal, pins: mx.array) -> mx.array:
            found.append((np.array(proposal.confidences), np.array(proposal.entropies)))
            return super().accept(proposal, pins)

    calls = spied(monkeypatch, DiffusionGemma, "logits")
    settings: Any = {"sampler": Spy(0.1), "schedule": ConstantSchedule(0.5), "max_denoising_steps": 3}
    settings |= {"confidence_threshold": 0.0, "guard_unconverged": False, "max_new_tokens": 64}
    str(generate(*demo, "What is 99 + 88?", seed=1, **settings))
    assert len(found) == len(calls) == 3
    cap = demo[0].config.text.final_logit_softcapping
    for (confidences, entropies), call in zip(found, calls, strict=True):
        x = cap * np.tanh(np.array(call.result).astype(np.float64)[0] / cap) / 0.5
        p = np.exp(x - x.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(confidences[0], p.max(axis=-1), atol=1e-4)
        np.testing.assert_allclose(entropies[0], -(p * np.log(p + 1e-300)).sum(axis=-1), atol=1e-3)


@pytest.mark.parametrize("steps", [1, 7, 48])
def test_schedules(steps: int) -> None:
    for step in range(1, steps + 1):
        done = step / steps
        assert LinearSchedule(0.4, 0.8)(step, steps) == pytest.approx(0.4 + 0.4 * done)
        assert ConstantSchedule(0.7)(step, steps) == 0.7
        half_cosine = 0.4 + 0.4 * math.sin(math.pi / 2 * done) ** 2
        assert CosineSchedule(0.4, 0.8)(step, steps) == pytest.approx(half_cosine)


def test_stop_rules_follow_their_counters() -> None:
    state = initial_state(mx.zeros((4, 2), dtype=mx.int32), mx.zeros((4, 2, 1)))
    state = state._replace(
        stable_steps=mx.array([1, 2, 2, 2]),
        mean_entropy=mx.array([0.0, 0.01, 0.009, 0.0]),
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
        return mx.full(state.done.shape, self.asked >= self.steps)


def test_the_first_rule_that_fires_ends_a_canvas(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("yes"), TURN_END]
    for rules, steps in (
        ([Counted(4)], 4),
        ([StableAndConfident(), Counted(4)], 2),  # it is sure, and stable from the second step on
        ([StableAndConfident(9, 0.005), Counted(4)], 4),
        ([Counted(4), StableAndConfident()], 2),
    ):
        (block,) = scripted_generation(tokenizer, [ids], stop=rules)
        assert (block.denoising_steps, block.converged) == (steps, True)


class Careful(EntropyBound):
    pass


class Slotted:
    __slots__ = ()


def test_the_fused_operation_serves_its_own_parts_only() -> None:
    default = Settings().rules
    assert default.fused == (0.1, 1, 0.005)
    assert Settings(guard_stalled=True).rules.fused == default.fused
    assert Rules(default.sampler, (Stalled(), *default.stop)).fused is None
    for sampler in (ConfidenceThreshold(0.9), Careful(0.1)):
        assert Rules(sampler, default.stop).fused is None


def test_a_part_says_itself_that_it_is_traceable() -> None:
    """Its module decides nothing, and a subclass may override anything, so it says so again."""

    @dataclass(frozen=True)
    class Traceable(EntropyBound):
        traceable = True

    def rule(state: Any) -> mx.array:
        return state.done  # type: ignore[no-any-return]

    assert not is_traceable(rule)
    rule.traceable = True  # type: ignore[attr-defined]
    untraceable = Traceable(0.1)
    object.__setattr__(untraceable, "traceable", False)
    built_in = (EntropyBound(), ConfidenceThreshold(), StableAndConfident(), Stalled())
    assert all(map(is_traceable, (*built_in, Traceable(), rule)))
    assert not any(map(is_traceable, (Careful(), untraceable, Mine(0.1), mine_stops, Slotted())))
    default = Settings().rules
    assert default.traceable
    assert Rules(Traceable(), (rule, Stalled())).traceable
    assert not Rules(Careful(), default.stop).traceable
    assert not Rules(default.sampler, (*default.stop, mine_stops)).traceable


@pytest.mark.parametrize(("given", "message"), [
    ({"sampler": EntropyBound(0.2), "entropy_bound": 0.1}, "sampler replaces entropy_bound, so they"),
    ({"schedule": ConstantSchedule(), "t_min": 0.9}, "schedule replaces t_min, so they"),
    ({"schedule": ConstantSchedule(), "t_max": 0.7}, "schedule replaces t_max, so they"),
    ({"schedule": ConstantSchedule(), "t_min": 0.3, "t_max": 0.7}, "schedule replaces t_min and t_max, so"),
    ({"stop": mine_stops, "stability_threshold": 2}, "stop replaces stability_threshold, so they"),
    ({"stop": [Stalled()], "confidence_threshold": 0.1}, "stop replaces confidence_threshold, so they"),
])  # fmt: skip
def test_a_part_and_the_numbers_that_it_replaces(
    tokenizer: Tokenizer, given: dict[str, Any], message: str
) -> None:
    """Both from the caller are refused. A model's numbers are not the caller's; None is not given."""
    model: Any = Scripted([[TURN_END]])
    with pytest.raises(InputError, match=message):
        generate(model, tokenizer, "hi", **given)
    numbers = dict(given)
    part = {name: numbers.pop(name) for name in given if name in ("sampler", "schedule", "stop")}
    model.generation_config = dataclasses.replace(Settings(), **{"t_max": 2.0, **numbers})
    assert generate(model, tokenizer, "hi", **part, **dict.fromkeys(numbers)).settings
    # A number has no effect beside a part of the model's own settings either.
    model.generation_config = Settings().override(**part)
    with pytest.raises(InputError, match=message):
        generate(model, tokenizer, "hi", **numbers)


@pytest.mark.parametrize(("settings", "message"), [
    ({"sampler": "greedy"}, "sampler: found 'greedy'; give an object with accept and renoise"),
    ({"sampler": EntropyBound}, "sampler: found the class EntropyBound; give an object"),
    ({"schedule": 0.7}, r"schedule: found 0\.7; give a function of step and steps"),
    ({"schedule": lambda *_: math.nan}, "schedule: temperature at step 256 must be .* found nan"),
    ({"schedule": lambda step, _: 5 - step}, "schedule: temperature at step 256 must be .* found -251"),
    ({"schedule": lambda step, _: {}[step]}, r"schedule: fails at step 256 of 256 \(KeyError: 256\); it"),
    ({"stop": "never"}, "stop: found .*; give a stop rule or several"),
    ({"stop": []}, "stop: found .*; give a stop rule or several"),
    ({"stop": [StableAndConfident(), 3]}, "stop: found 3; give"),
    ({"stop": mx.zeros((1, 2))}, r"stop: found array\(\[\[0, 0\]\], dtype=float32\); give"),
])  # fmt: skip
def test_bad_parts_are_refused_before_anything_runs(
    tokenizer: Tokenizer, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        scripted_generation(tokenizer, [], max_denoising_steps=256, **settings)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: EntropyBound(-1), "entropy_bound must be a number from 0"),
    (lambda: EntropyBound("0.1"), "entropy_bound must be a number"),  # type: ignore[arg-type]
    (lambda: ConfidenceThreshold(5), "probability must be a number from 0 to 1, found 5"),
    (lambda: ConstantSchedule(0.0), "temperature must be a number from 0.001"),
    (lambda: LinearSchedule(0.4, math.nan), "t_max must be a number"),
    (lambda: CosineSchedule(0.0, 0.8), "t_min must be a number"),
    (lambda: StableAndConfident(-1, 0.1), "stability_threshold must be an integer"),
    (lambda: Stalled(8, -1.0), "mean_entropy must be a number"),
])  # fmt: skip
def test_parts_refuse_numbers_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@dataclass
class Returning:
    """A sampler and a stop rule that returns what a test wants."""

    accepted: Any = field(default_factory=lambda: mx.ones((1, 64), dtype=mx.bool_))
    canvas: Any = field(default_factory=lambda: mx.zeros((1, 64), dtype=mx.int32))

    def __len__(self) -> int:  # falsy, and a sampler all the same
        return 0

    def accept(self, proposal: Proposal, pins: mx.array) -> Any:
        return self.accepted

    def renoise(self, accepted: mx.array, proposal: Proposal, noise: mx.array) -> Any:
        return self.canvas

    def __call__(self, state: CanvasState) -> mx.array:
        return state.accepted


@pytest.mark.parametrize(("settings", "message"), [
    (
        {"sampler": Returning(0.5)},
        "sampler: accept fails at {} (TypeError: must return an MLX array, bool [1, 64]; found float)",
    ),
    ({"sampler": Returning(mx.ones((1, 64)))}, "[1, 64]; found mlx.core.float32 [1, 64])"),
    ({"sampler": Returning(canvas=mx.zeros((64,), dtype=mx.int32))}, "integer [1, 64]; found mlx.core.int32"),
    (
        {"sampler": Returning(canvas=mx.full((1, 64), 704))},
        "sampler: renoise fails at {} (ValueError: returned token 704; ids are 0 to 703)",
    ),
    ({"sampler": Returning(canvas=mx.full((1, 64), -1))}, "returned token -1"),
    (
        {"stop": lambda state: True},
        "stop: <lambda> fails at {} (TypeError: must return an MLX array, bool [1]; found bool)",
    ),
    (
        {"stop": [StableAndConfident(), Returning()]},
        "stop: Returning fails at {} (TypeError: must return an MLX array, bool [1]; found mlx.core.bool",
    ),
])  # fmt: skip
def test_what_parts_return_is_checked(tokenizer: Tokenizer, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message.format("step 48 of 48"))):
        str(scripted_generation(tokenizer, [[TURN_END]], guard_empty=False, **settings))


class Counting:
    """A sampler and stop rule that keeps state: it ends every canvas at its third step."""

    def __init__(self) -> None:
        self.canvases: list[np.ndarray] = []
        self.steps: list[list[tuple[Any, Any]]] = []

    def called(self, method: str) -> None: ...

    def begin(self, canvas: mx.array) -> None:
        self.called("begin")
        assert canvas.dtype == mx.int32
        self.canvases.append(np.array(canvas))
        self.steps.append([])

    def accept(self, proposal: Proposal, pins: mx.array) -> mx.array:
        self.called("accept")
        self.steps[-1].append((proposal.step, proposal.steps))
        return proposal.entropies < 0.1

    def renoise(self, accepted: mx.array, proposal: Proposal, noise: mx.array) -> mx.array:
        self.called("renoise")
        return mx.where(accepted, proposal.samples, noise)

    def __call__(self, state: CanvasState) -> mx.array:
        self.called("stop")
        return mx.full(state.stopped_by.shape, len(self.steps[-1]) == 3)


def test_a_part_begins_every_canvas_and_knows_its_steps(demo: Any) -> None:
    """Also those that are denoised again, with fewer rows then. One object in two roles begins once."""
    tokenizer, part, drawn = demo[1], Counting(), list[np.ndarray]()
    yes = [*tokenizer.encode("yes"), TURN_END]

    class Spied(SeededDraws):
        def initial(self) -> mx.array:
            drawn.append(np.array(super().initial()))
            return mx.array(drawn[-1])

    asked: dict[str, Any] = {"n": 2, "sampler": part, "stop": [part, Stalled()], "seed": 0, "draws": Spied}
    generation = scripted_generation(tokenizer, lambda _, attempt: yes if attempt else [TURN_END], **asked)
    assert generation.answer == "yes"
    assert generation.stats.empty_rerolls == 1
    assert [canvas.shape for canvas in part.canvases] == [(2, 64), (2, 64)]
    np.testing.assert_array_equal(part.canvases, drawn)
    assert part.steps == [[(48, 48), (47, 48), (46, 48)]] * 2
    assert all(type(step) is int for step, _ in part.steps[0])

    # A draft has fewer steps to go, with the temperatures of the last ones. Pins are in its canvas.
    part, draft = Counting(), "yes no yes no yes no"
    steps: list[Step] = []
    asked = {"draft": draft, "noise_level": 0.5, "pins": {9: 77}, "max_denoising_steps": 20, "seed": 0}
    generation = scripted_generation(tokenizer, [yes], sampler=part, on_step=steps.append, **asked)
    list(generation)
    assert part.canvases[0][0, 9] == 77
    ids = tokenizer.encode(draft)
    assert 3 < (part.canvases[0][0, : len(ids)] == ids).sum() < len(ids)
    first, _ = part.steps[0][0]
    assert 1 < first < 20
    assert part.steps[0] == [(first - index, 20) for index in range(len(steps))]
    schedule = LinearSchedule(generation.settings.t_min, generation.settings.t_max)
    found = [(step.step, step.temperature) for step in steps]
    assert found == [(step, pytest.approx(schedule(step, 20))) for step, _ in part.steps[0]]


def test_state_that_begins_anew_gives_the_same_again(demo: Any) -> None:
    """A sampler that keeps what it once accepted, over several blocks and generations with one object."""

    class Sticky:
        def begin(self, canvas: mx.array) -> None:
            self.kept = mx.full(canvas.shape, FREE)

        def accept(self, proposal: Proposal, pins: mx.array) -> mx.array:
            self.kept = mx.where((self.kept < 0) & (proposal.entropies < 0.01), proposal.argmaxes, self.kept)
            return self.kept >= 0

        def renoise(self, accepted: mx.array, proposal: Proposal, noise: mx.array) -> mx.array:
            return mx.where(accepted, self.kept, noise)

    sticky = Sticky()
    first = told(demo, "Count to 37.", True, sampler=sticky)
    assert len(first[1]) > 1
    assert "35 36 37" in demo[1].decode(first[0])
    assert told(demo, "Count to 37.", True, sampler=sticky) == first
    assert told(demo, "Count to 37.", True, sampler=Sticky()) == first


class Failing(Counting):
    """Fails in one of its methods, at its second step."""

    def __init__(self, method: str, error: Exception):
        super().__init__()
        self.calls = {method: 0 if method == "begin" else 1}
        self.error = error

    def called(self, method: str) -> None:
        if method in self.calls:
            if self.calls[method] == 0:
                raise self.error
            self.calls[method] -= 1


@pytest.mark.parametrize(("role", "method", "error", "message"), [
    ("sampler", "accept", ValueError("no"), "sampler: accept fails at step 47 of 48 (ValueError: no)"),
    ("sampler", "renoise", OSError("a\n  b"), "sampler: renoise fails at step 47 of 48 (OSError: a b)"),
    ("stop", "stop", KeyError("x"), "stop: Failing fails at step 47 of 48 (KeyError: 'x')"),
    ("sampler", "begin", OSError("disk"), "sampler: begin fails before step 48 of 48 (OSError: disk)"),
    ("stop", "begin", OSError("disk"), "stop: Failing: begin fails before step 48 of 48 (OSError: disk)"),
    # Generations run in generators, where this error has a meaning of its own.
    ("sampler", "accept", StopIteration(), "sampler: accept fails at step 47 of 48 (StopIteration)"),
    ("sampler", "accept", InputError("own"), "sampler: accept fails at step 47 of 48 (InputError: own)"),
])  # fmt: skip
def test_errors_inside_parts_name_part_and_step(
    demo: Any, role: str, method: str, error: Exception, message: str
) -> None:
    """And leave a prompt cache as it was."""
    model, tokenizer = demo
    cache, part = PromptCache(model), Failing(method, error)
    asked: dict[str, Any] = {"seed": 0, "prompt_cache": cache}
    with pytest.raises(InputError) as raised:
        str(generate(model, tokenizer, "What is 345 + 78?", **{"sampler": Counting(), role: part}, **asked))
    assert str(raised.value) == message
    assert type(raised.value) is InputError
    assert raised.value.__cause__ is error
    again = generate(model, tokenizer, "What is 345 + 78?", **asked)
    assert again.token_ids == generate(model, tokenizer, "What is 345 + 78?", seed=0).token_ids


@pytest.mark.parametrize(("later", "message"), [
    (lambda: {}["gone"], r"schedule: fails at step 47 of 48 \(KeyError: 'gone'\)"),
    (lambda: 1e9, "schedule: temperature at step 47 must be a number from 0.001 to 100, found 1000000000"),
])  # fmt: skip
def test_a_schedule_that_fails_later(demo: Any, later: Any, message: str) -> None:
    """It is asked for every temperature beforehand, and again at each step."""
    answers = chain([lambda: 0.5] * 49, repeat(later))
    with pytest.raises(InputError, match=message):
        str(generate(*demo, "What is 345 + 78?", seed=0, schedule=lambda *_: next(answers)()))


@pytest.mark.parametrize("role", ["sampler", "stop"])
def test_a_traceable_part_is_fit_for_it(tokenizer: Tokenizer, role: str) -> None:
    class Both(Counting):
        traceable = True

    class Comparable(Returning):
        traceable = True

        def __eq__(self, other: object) -> bool:  # so it has no hash
            return isinstance(other, Comparable)

    model: Any = Scripted([[TURN_END]])
    with pytest.raises(InputError, match=f"{role}: .* is traceable and has begin, but a compiled step"):
        generate(model, tokenizer, "hi", **{role: Both()})
    with pytest.raises(InputError, match=f"{role}: .* is traceable and must be hashable .*frozen dataclass"):
        generate(model, tokenizer, "hi", **{role: Comparable()})
