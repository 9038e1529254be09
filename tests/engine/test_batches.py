"""Candidates and batches: rows that share steps write what each writes alone."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from support.scripted import TURN_END, Scripted
from support.spies import spied

import mlx_dg
from mlx_diffusiongemma.engine import memory
from mlx_diffusiongemma.engine.denoise import denoise
from mlx_diffusiongemma.engine.noise import NoiseKey, SeededDraws
from mlx_diffusiongemma.engine.prompt_cache import PromptCache
from mlx_diffusiongemma.engine.row import Row
from mlx_diffusiongemma.engine.settings import Settings
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.generation import Generation, generate, generate_batch
from mlx_diffusiongemma.model import DiffusionGemma

# Of one to four canvases, one to many steps, and 14 to some 30 tokens.
PROMPTS = (
    "What is 345 + 78?",
    "Count to 54.",
    "JSON for Paris and Rome",
    "Hello",
    "Count from 1 to 60.",
    "Tell me something about the sea, 12 + 7 and Rome in JSON",
)


class OneEmpty(Scripted):
    """The first attempt at the second row's canvas is empty."""

    def decode_hidden(self, canvas_ids: mx.array, *others: Any) -> mx.array:
        ids = np.array(super().decode_hidden(canvas_ids, *others))
        if self.attempt == 0:
            ids[1] = TURN_END
        return mx.array(ids)


def outcome(generation: Generation) -> tuple[Any, ...]:
    return (
        generation.token_ids,
        generation.thought,
        generation.answer,
        generation.finish_reason,
        [block.denoising_steps for block in generation],
        generation.stats.new_tokens,
    )


@pytest.mark.parametrize(("thinking", "seed"), [(True, 0), (False, 7)])
@pytest.mark.slow
def test_each_prompt_gets_what_it_gets_alone(demo: Any, thinking: bool, seed: int) -> None:
    asked: dict[str, Any] = {"thinking": thinking, "seed": seed, "max_new_tokens": 256}
    together = generate_batch(*demo, PROMPTS, **asked)
    assert len({len(generation.prompt_ids) for generation in together}) > 3
    assert len({len(list(generation)) for generation in together}) > 1
    for prompt, generation in zip(PROMPTS, together, strict=True):
        assert outcome(generation) == outcome(generate(*demo, prompt, **asked))


@pytest.mark.parametrize("prompt", ["What is 99 + 88?", "Count to 54.", "Tell me about Rome in JSON"])
@pytest.mark.slow
def test_each_candidate_is_reproducible_alone(demo: Any, prompt: str) -> None:
    asked: dict[str, Any] = {"seed": 3, "max_new_tokens": 128}
    generation = generate(*demo, prompt, n=4, **asked)
    assert generation.candidates[0] is generation
    for number, candidate in enumerate(generation.candidates):
        assert candidate.candidate == number
        assert outcome(candidate) == outcome(generate(*demo, prompt, candidate=number, **asked))
    two = generate(*demo, prompt, n=2, candidate=2, **asked).candidates
    assert [outcome(row) for row in two] == [outcome(row) for row in generation.candidates[2:]]


def test_candidates_have_noise_of_their_own(demo: Any) -> None:
    steps: list[mlx_dg.Step] = []
    generation = generate(
        *demo, "What is 99 + 88?", n=3, seed=0, on_step=steps.append, max_denoising_steps=1, max_new_tokens=64
    )
    str(generation)
    assert steps[0].rows == (0, 1, 2)
    assert len({row.tobytes() for row in steps[0].canvas_ids}) == 3


def test_rows_that_have_ended_cost_nothing_more(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of each decode pass: all in the first canvas, then only those that go on."""
    calls = spied(monkeypatch, DiffusionGemma, "decode_hidden")
    together = generate_batch(*demo, PROMPTS, seed=0, max_new_tokens=256)
    blocks = [len(list(generation)) for generation in together]
    batches = [call.args[1].shape[0] for call in calls]
    going_on = [sum(count > block for count in blocks) for block in range(max(blocks))]
    assert going_on[0] == len(PROMPTS) > going_on[1] > 0
    assert list(dict.fromkeys(batches)) == list(dict.fromkeys(going_on))
    assert max(blocks) * 2 <= len(batches)


def test_only_the_rows_that_a_guard_objects_to_are_denoised_again(demo: Any) -> None:
    _, tokenizer = demo
    model: Any = OneEmpty([[*tokenizer.encode("yes"), TURN_END]])
    steps: list[mlx_dg.Step] = []
    rows = generate_batch(model, tokenizer, ["a", "b", "c"], on_step=steps.append)
    assert [row.answer for row in rows] == ["yes"] * 3
    assert [row.stats.empty_rerolls for row in rows] == [0, 1, 0]
    assert [row.stats.denoising_steps for row in rows] == [2, 4, 2]
    assert model.batches == [3, 3, 1, 1]
    assert [step.rows for step in steps] == [(0, 1, 2), (0, 1, 2), (1,), (1,)]


def test_one_prefill_for_all_candidates(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spied(monkeypatch, DiffusionGemma, "encode")
    generation = generate(*demo, "Count to 54.", n=3, seed=0, max_new_tokens=128)
    assert generation.finish_reason
    prompt, canvases = (call.args[1] for call in calls)
    assert (len(prompt), canvases.shape) == (len(generation.prompt_ids), (3, 64))


def test_a_prompt_cache_keeps_the_prompt_of_several_candidates(demo: Any) -> None:
    model, tokenizer = demo
    cache = PromptCache(model)
    asked: dict[str, Any] = {"seed": 0, "max_new_tokens": 128}
    cold = generate(model, tokenizer, "Count to 54.", n=3, **asked)
    for cached in (0, len(cold.prompt_ids)):
        warm = generate(model, tokenizer, "Count to 54.", n=3, prompt_cache=cache, **asked)
        assert [outcome(row) for row in warm.candidates] == [outcome(row) for row in cold.candidates]
        assert [row.stats.cached_tokens for row in warm.candidates] == [cached] * 3
        assert cache.token_ids == warm.prompt_ids
    alone = generate(model, tokenizer, "Count to 54.", prompt_cache=cache, **asked)
    assert outcome(alone) == outcome(cold)


def test_any_row_may_be_asked_first_and_blocks_replay(demo: Any) -> None:
    first, second = generate_batch(*demo, ["Hello", "Count to 54."], seed=0, max_new_tokens=128)
    blocks = iter(second)
    assert next(blocks) is second.blocks[0]
    assert len(first.blocks) == 1  # it ran along
    assert first.finish_reason == "stop"
    assert len(second.blocks) == 1  # and its end cost the other nothing
    assert len(list(second)) == 2
    assert [block.index for block in second] == [0, 1]


def test_the_memory_of_a_batch_is_checked(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "usable_memory", lambda: mx.get_active_memory() + 20_000_000)
    generate(*demo, "hi", max_new_tokens=64)
    with pytest.raises(InputError, match=r"generate \d+ at a time"):
        generate(*demo, "hi", n=64, max_new_tokens=64)
    with pytest.raises(InputError, match=r"generate \d+ at a time"):
        generate_batch(*demo, ["hi"] * 64, max_new_tokens=64)


def test_bad_batches_are_refused(demo: Any) -> None:
    with pytest.raises(InputError, match="prompts: item 1: prompt: empty"):
        generate_batch(*demo, ["hi", ""])
    with pytest.raises(InputError, match="the prompt has 4000 tokens"):
        generate_batch(*demo, ["hi", [5] * 4000], max_new_tokens=1024)


def test_a_row_that_is_denoised_again_reads_its_own_prompt(
    demo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guard that objects to the first attempt at the second row's canvases, whatever they hold."""
    judge = Row.judge

    def objecting(self: Row, canvas: Any, index: int, seconds: float) -> bool:
        stands = judge(self, canvas, index, seconds)
        if self.prompt == second and self.tries.number == 0:
            self.tries.number = 1
            return False
        return stands

    prompts = ["Hello", "What is 345 + 78?", "JSON for Paris and Rome"]
    second = demo[1].prompt(prompts[1])
    monkeypatch.setattr(Row, "judge", objecting)
    rows = generate_batch(*demo, prompts, seed=0)
    for prompt, row in zip(prompts, rows, strict=True):
        assert outcome(row) == outcome(generate(*demo, prompt, seed=0))
    assert rows[1].answer == "423"
    assert rows[1].stats.denoising_steps > rows[0].stats.denoising_steps


def test_rows_that_are_mended_unequally_often_are_denoised_apart(demo: Any) -> None:
    """A canvas that is repaired again and again gets fewer and fewer steps. The second row's first canvas is
    empty, so it lags a revision behind."""
    _, tokenizer = demo
    model: Any = OneEmpty([tokenizer.encode("yes") * 16], sure=2.0)  # never sure enough to stop by itself
    tries: dict[int, list[int]] = {0: [], 1: []}

    def watch(step: mlx_dg.Step) -> None:
        for row in step.rows:
            tries[row] += [0] if step.index == 0 else []
            tries[row][-1] += 1

    asked: dict[str, Any] = {"max_denoising_steps": 16, "max_new_tokens": 24, "guard_unconverged": False}
    generation = generate(model, tokenizer, "hi", n=2, regex="[0-9]{20}", on_step=watch, **asked)
    for number, row in enumerate(generation.candidates):
        assert len(str(row)) == 20
        assert row.stats.denoising_steps == sum(tries[number])
        assert tries[number][-1] == 1
    assert tries[0][:8] == [16] * 4 + [8] * 4
    assert tries[1][:9] == [16] * 5 + [8] * 4


def test_tries_with_fewer_steps_are_not_held_against_a_canvas(demo: Any) -> None:
    """Unsure, but only once it had half of the steps: the guard for capped canvases stays out of it."""
    model: Any = Scripted([demo[1].encode("yes") * 16], sure=lambda attempt: 60.0 if attempt < 4 else 1.0)
    asked: dict[str, Any] = {"max_denoising_steps": 8, "max_new_tokens": 24, "regex": "[0-9]{20}"}
    generation = generate(model, demo[1], "hi", **asked)
    assert len(str(generation)) == 20
    assert generation.stats.unconverged_rerolls == 0
    assert generation.blocks[0].warning is None


def test_logits_that_are_kept_are_those_that_a_row_ended_with(demo: Any) -> None:
    model, tokenizer = demo
    prompts = [tokenizer.prompt_ids(text) for text in ("What is 99 + 88?", "Hello")]
    settings = Settings.of(model.generation_config)

    def denoised(rows: list[list[int]]) -> Any:
        longest, cache = max(map(len, rows)), model.make_cache()
        cache.left_padding = [longest - len(row) for row in rows]
        model.encode(mx.array([[0] * (longest - len(row)) + row for row in rows]), cache)
        draws = SeededDraws([NoiseKey(1, 0, 0, 0)] * len(rows), 64, model.config.text.vocab_size)
        return denoise(model, cache, settings, draws, keep_logits=True)

    together = denoised(prompts)
    assert together.steps[0] != together.steps[1]
    for row, prompt in enumerate(prompts):
        alone = denoised([prompt])
        assert alone.steps == [together.steps[row]]
        found = np.array(together.logits).reshape(2, 64, -1)[row]
        np.testing.assert_allclose(found, np.array(alone.logits), atol=2e-5)
