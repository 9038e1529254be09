"""A trace holds each row's steps as a watcher sees them. It is made on request only, and bounded."""

from __future__ import annotations

import dataclasses
import gc
import tracemalloc
from typing import Any

import numpy as np
import pytest
from support.scripted import TURN_END, Scripted, full_canvas, scripted_generation
from support.spies import spied

import mlx_dg
from mlx_diffusiongemma.engine import trace as trace_module
from mlx_diffusiongemma.engine.noise import NoiseKey
from mlx_diffusiongemma.engine.state import Step
from mlx_diffusiongemma.engine.trace import Trace, TracedCanvas
from mlx_diffusiongemma.text.tokenizer import Tokenizer

LENGTH = 64
ARRAYS = ("draft_ids", "canvas_ids", "entropies", "accepted", "logprobs")
HARD = 'Spell "internationalisation" backwards.'  # takes several steps


def made_step(index: int = 0, rows: int = 1, done: bool = False, **arrays: np.ndarray) -> Step:
    """A step of `rows` rows of three positions."""
    ids = np.zeros((rows, 3), np.int32)
    step = Step(
        index=index,
        step=48 - index,
        temperature=0.5,
        draft_ids=ids,
        canvas_ids=ids,
        entropies=ids.astype(np.float32),
        accepted=ids.astype(bool),
        logprobs=ids.astype(np.float32),
        mean_entropy=np.zeros(rows, np.float32),
        done=np.full(rows, done),
        seconds=0.0,
    )
    return dataclasses.replace(step, **arrays)


def recorded(steps: list[tuple[Step, NoiseKey]]) -> Trace:
    trace = Trace()
    for step, key in steps:
        trace.record(step, 0, key)
    return trace


def test_nothing_is_kept_unless_asked_for(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then no step is brought to the host, and no log-probability is computed."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a Step was made")

    monkeypatch.setattr("mlx_diffusiongemma.engine.denoise.Step", refuse)
    monkeypatch.setattr("mlx_diffusiongemma.engine.denoise.logprobs_of", refuse)
    generation = mlx_dg.generate(*demo, "What is 345 + 78?", thinking=True, seed=0)
    assert generation.answer == "423"
    assert generation.trace is None
    assert mlx_dg.generate(*demo, "Hi", seed=0, choices=["zebra", "yak"]).answer in ("zebra", "yak")
    assert all(each.trace is None for each in mlx_dg.generate_batch(*demo, ["Hi", "Help"], seed=0))
    with pytest.raises(AssertionError, match="a Step was made"):
        list(mlx_dg.generate(*demo, "Hi", seed=0, trace=True))


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.slow
def test_a_trace_is_what_a_watcher_saw(demo: Any, n: int) -> None:
    """Copied, so that a watcher who writes into its arrays changes nothing; the tokens are the same."""
    seen: list[Step] = []

    def watch(step: Step) -> None:
        seen.append(dataclasses.replace(step, **{name: getattr(step, name).copy() for name in ARRAYS}))
        for name in ARRAYS:
            getattr(step, name).setflags(write=True)
            getattr(step, name).fill(0)

    settings: dict[str, Any] = {"thinking": True, "seed": 0, "n": n}
    generation = mlx_dg.generate(*demo, HARD, **settings, trace=True, on_step=watch)
    untraced = mlx_dg.generate(*demo, HARD, **settings)
    assert [each.token_ids for each in generation.candidates] == [
        each.token_ids for each in untraced.candidates
    ]
    assert len(seen) > 10
    for row, candidate in enumerate(generation.candidates):
        check_row(candidate, seen, row)


def test_traces_of_a_batch(demo: Any) -> None:
    """Its rows end after one to several blocks, and after different numbers of steps in them."""
    prompts, seen = [HARD, "Count to 37.", "What is 345 + 78?"], list[Step]()
    generations = mlx_dg.generate_batch(
        *demo, prompts, thinking=True, seed=0, trace=True, on_step=seen.append
    )
    assert [len(each.blocks) for each in generations if each.answer] == [1, 2, 1]
    for row, generation in enumerate(generations):
        check_row(generation, seen, row)
        assert generation.stats.denoising_steps == len(generation.trace.steps)
    assert len({len(each.trace.steps) for each in generations}) == 3


def check_row(generation: Any, seen: list[Step], row: int) -> None:
    """The trace equals those of `seen` that were the row's, up to where it was done in each canvas."""
    expected, finished, tries, batches = [], True, 0, []
    for step in seen:
        if row not in step.rows:
            continue
        if step.index == 0:
            finished, tries = False, tries + 1
            batches.append(len(step.rows))
        if not finished:
            expected.append((tries, step.rows.index(row), step))
            finished = bool(step.done[step.rows.index(row)])
    traced = generation.trace
    assert traced.total_steps == len(traced.steps) == len(expected)
    for ours, (_, at, step) in zip(traced.steps, expected, strict=True):
        assert (ours.index, ours.step, ours.temperature, ours.seconds) == (
            *(step.index, step.step, step.temperature, step.seconds),
        )
        assert (ours.mean_entropy, ours.done) == (step.mean_entropy[at], step.done[at])
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(ours, name), getattr(step, name)[at])
            assert getattr(ours, name).dtype == getattr(step, name).dtype
    assert len(traced.canvases) == tries
    for block, canvas, rows in zip(generation.blocks, traced.canvases, batches, strict=True):
        assert (canvas.block, canvas.attempt, canvas.committed) == (block.index, 0, True)
        assert canvas.draft_ids[-1].tolist()[: len(block.token_ids)] == block.token_ids
        assert canvas.committed_ids is not None
        assert canvas.committed_ids[: canvas.token_count].tolist() == block.token_ids
        assert canvas.finished.size == 0
        assert canvas.steps[-1].mean_entropy == pytest.approx(block.mean_entropy)
        assert 0 < canvas.steps[0].seconds < canvas.steps[-1].seconds <= block.seconds * rows


def test_a_canvas_that_is_denoised_again_is_another_try(tokenizer: Tokenizer) -> None:
    """An empty canvas twice, then an answer, then a second block."""
    yes = full_canvas(tokenizer)
    attempts = [[TURN_END], [TURN_END], yes]
    generation = scripted_generation(
        tokenizer, lambda block, attempt: [TURN_END] if block else attempts[attempt], trace=True
    )
    list(generation)
    assert generation.trace is not None
    found = [(canvas.block, canvas.attempt, canvas.committed) for canvas in generation.trace.canvases]
    assert found == [(0, 0, False), (0, 1, False), (0, 2, True), (1, 0, True)]
    assert all(len(canvas.steps) == 2 for canvas in generation.trace.canvases)
    assert generation.trace.canvases[2].draft_ids[-1].tolist() == yes
    assert [(canvas.block, canvas.attempt) for canvas in generation.trace.last_tries] == [(0, 2), (1, 0)]


@pytest.mark.parametrize(
    "control",
    [{"regex": "x{70}", "max_new_tokens": 128}, {"choices": ["zebra", "yak"]}, {"thinking_budget": 3}],
)
def test_what_the_grammar_or_the_budget_finished(demo: Any, control: dict[str, Any]) -> None:
    """The committed ids are the block's, not the last draft's; and it is known where they differ."""
    thinking = "thinking_budget" in control
    settings: dict[str, Any] = {"max_new_tokens": LENGTH, "guard_unconverged": False, **control}
    generation = mlx_dg.generate(
        *demo, "What is 345 + 78?", seed=0, thinking=thinking, trace=True, **settings
    )
    list(generation)  # runs it
    found = {canvas.block: canvas for canvas in generation.trace.canvases if canvas.committed}
    assert list(found) == [block.index for block in generation.blocks]
    for block, canvas in zip(generation.blocks, found.values(), strict=True):
        assert canvas.committed_ids is not None
        assert canvas.committed_ids.shape == (LENGTH,)
        assert canvas.committed_ids[: canvas.token_count].tolist() == block.token_ids
        draft = canvas.draft_ids[-1].tolist()
        differ = [i for i, token in enumerate(block.token_ids) if token != draft[i]]
        assert canvas.finished.tolist() == differ
    if not thinking:
        assert found[0].finished.size > 3


@pytest.mark.parametrize("control", [
    {"regex": "x{30}"},
    {"choices": ["zebra", "yak"]},
    {"thinking": True, "thinking_budget": 3},
    {"pins": {1: 300, 40: 301}},
])  # fmt: skip
def test_logprobs_of_committed_tokens(
    demo: Any, control: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal to float64's from the logits of each try's last step, also for tokens that were set."""
    model, _ = demo
    calls = spied(monkeypatch, type(model), "logits")
    monkeypatch.setattr("mlx_diffusiongemma.engine.denoise._compiles", lambda: False)
    settings: dict[str, Any] = {"max_new_tokens": LENGTH, "guard_unconverged": False, **control}
    generation = mlx_dg.generate(*demo, "What is 345 + 78?", seed=0, trace=True, **settings)
    list(generation)
    trace = generation.trace
    assert trace is not None
    assert len(calls) == len(trace.steps)
    unlikely, last, softcap = 0, -1, model.config.text.final_logit_softcapping
    for canvas in trace.canvases:
        last += len(canvas.steps)
        logits = np.array(calls[last].result).astype(np.float64)[0]
        x = softcap * np.tanh(logits / softcap) / canvas.steps[-1].temperature
        normalizer = np.log(np.exp(x - x.max(axis=-1, keepdims=True)).sum(axis=-1)) + x.max(axis=-1)
        ids = canvas.committed_ids if canvas.committed_ids is not None else canvas.steps[-1].draft_ids
        expected = x[np.arange(LENGTH), ids] - normalizer
        np.testing.assert_allclose(canvas.logprobs, expected, atol=2e-4, rtol=1e-5)
        assert canvas.logprobs.dtype == np.float32
        assert canvas.logprobs.max() <= 0
        unlikely += int((expected < -5).sum())
    assert unlikely > 0


def test_logprobs_without_logits() -> None:
    """A set token has none. A canvas that was not committed has those of its draft."""
    step, stream = made_step(logprobs=np.array([[-1.0, -2.0, -3.0]], np.float32)), NoiseKey(0, 0, 0, 0)
    trace = recorded([(step, stream)])
    (canvas,) = trace.canvases
    assert canvas.logprobs.tolist() == [-1, -2, -3]
    trace.commit(stream, [0, 9, 0], 3)
    (canvas,) = trace.canvases
    np.testing.assert_array_equal(canvas.logprobs, np.array([-1, np.nan, -3], np.float32))
    assert canvas.logprobs.dtype == np.float32


def test_an_interrupted_canvas_is_not_committed(tokenizer: Tokenizer) -> None:
    def interrupt(step: Step) -> None:
        if len(model.encoded) == 2:
            raise KeyboardInterrupt

    model: Any = Scripted([full_canvas(tokenizer), [TURN_END]])
    generation = mlx_dg.generate(model, tokenizer, "hi", trace=True, on_step=interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(generation)
    assert [canvas.committed for canvas in generation.trace.canvases] == [True, False]
    assert generation.trace.canvases[1].committed_ids is None
    assert generation.trace.canvases[1].finished.size == 0
    assert [canvas.block for canvas in generation.trace.last_tries] == [0, 1]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_module, "MOST_STEPS", 5)
    steps = [
        (made_step(index, done=index == 2), NoiseKey(0, 0, block, 0))
        for block in range(4)
        for index in range(3)
    ]
    trace = recorded(steps)
    assert (trace.total_steps, len(trace.steps)) == (12, 5)
    found = [(canvas.block, [step.index for step in canvas.steps]) for canvas in trace.canvases]
    assert found == [(2, [1, 2]), (3, [0, 1, 2])]


def test_most_steps_of_the_released_canvas_take_ten_megabytes() -> None:
    """With everything that Python adds to the arrays, and more commits than the context has canvases (1023).
    And a trace holds on to no more than its own row of a batch."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 262144, (4, 256)).astype(np.int32) for _ in range(2)]
    big = {
        "draft_ids": ids[0],
        "canvas_ids": ids[1],
        "entropies": rng.random((4, 256), np.float32),
        "accepted": rng.random((4, 256)) < 0.5,
        "logprobs": -rng.random((4, 256), np.float32),
    }
    gc.collect()
    tracemalloc.start()
    try:
        trace = Trace()
        for index in range(3 * trace_module.MOST_STEPS // 2):
            step, stream = made_step(1000 + index, rows=4, **big), NoiseKey(0, 0, 1000 + index // 2, 1000)
            trace.record(dataclasses.replace(step, seconds=0.1 * index, temperature=0.1 * index), 0, stream)
            if index % 2:
                trace.commit(stream, list(range(1000, 1256)), 256, step.logprobs[1].copy())
        del step
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(trace.steps) == trace_module.MOST_STEPS
    assert all(getattr(trace.steps[0], name).base is None for name in ARRAYS)
    assert 8e6 < held < 10e6
    assert len([canvas for canvas in trace.canvases if canvas.committed]) == trace_module.MOST_STEPS // 2


def test_last_changed() -> None:
    drafts = [[1, 1, 1], [1, 2, 1], [1, 2, 3], [1, 1, 3]]
    steps = [(made_step(i, draft_ids=np.array([ids])), NoiseKey(0, 0, 0, 0)) for i, ids in enumerate(drafts)]
    (canvas,) = recorded(steps).canvases
    assert canvas.last_changed.tolist() == [0, 3, 2]
    assert TracedCanvas(0, 0, canvas.steps[:1]).last_changed.tolist() == [0, 0, 0]
    np.testing.assert_array_equal(canvas.draft_ids, drafts)
    assert canvas.entropies.shape == canvas.accepted.shape == (4, 3)
