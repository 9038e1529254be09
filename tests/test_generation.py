"""Canvas after canvas, with a model that says what the test wants and the demo's real tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support.scripted import TURN_END, Scripted, full_canvas, scripted_generation

from mlx_diffusiongemma.checkpoint.loading import load
from mlx_diffusiongemma.engine.noise import NoiseKey, SeededDraws
from mlx_diffusiongemma.errors import GenerationError, InputError
from mlx_diffusiongemma.generation import generate
from mlx_diffusiongemma.prompt import Prompt
from mlx_diffusiongemma.text.tokenizer import SpecialTokens, Tokenizer


def test_nothing_runs_before_it_is_asked_for(tokenizer: Tokenizer) -> None:
    model: Any = Scripted([[*tokenizer.encode("yes"), TURN_END]])
    generation = generate(model, tokenizer, "hello")
    assert model.encoded == []
    assert generation.blocks == []
    assert str(generation) == "yes"
    assert generation.answer == "yes"
    assert len(model.encoded) == 1  # asking twice does not run twice, and the last block is not encoded


def test_blocks_arrive_one_by_one_and_replay(tokenizer: Tokenizer) -> None:
    first = full_canvas(tokenizer)
    model: Any = Scripted([first, [*tokenizer.encode("c"), TURN_END]])
    generation = generate(model, tokenizer, "hello")
    blocks = iter(generation)
    block = next(blocks)
    assert block.token_ids == first
    assert len(model.encoded) == 1
    assert generation.blocks == [block]
    assert [b.index for b in generation] == [0, 1]
    assert [b.index for b in generation] == [0, 1]
    assert model.encoded[1] == first  # the committed canvas went into the cache


def test_a_stop_id_anywhere_in_a_canvas_ends_it_and_what_follows_is_dropped(tokenizer: Tokenizer) -> None:
    junk = tokenizer.encode("never seen")
    generation = scripted_generation(tokenizer, [[*tokenizer.encode("kept"), TURN_END, *junk, TURN_END]])
    assert generation.answer == "kept"
    assert generation.token_ids == [*tokenizer.encode("kept"), TURN_END]
    assert generation.finish_reason == "stop"


@pytest.mark.parametrize("limit", [1, 10, 64, 65, 128])
def test_no_token_beyond_max_new_tokens(tokenizer: Tokenizer, limit: int) -> None:
    ids = full_canvas(tokenizer)
    model: Any = Scripted([ids, ids, ids])
    generation = generate(model, tokenizer, "hello", max_new_tokens=limit)
    assert generation.token_ids == (ids * 3)[:limit]
    assert generation.finish_reason == "length"
    assert generation.stats.new_tokens == limit
    assert generation.stats.blocks == len(model.encoded) == -(-limit // 64)


def test_a_stop_id_behind_max_new_tokens_does_not_count(tokenizer: Tokenizer) -> None:
    ids = [*full_canvas(tokenizer)[:10], TURN_END]
    generation = scripted_generation(tokenizer, [ids], max_new_tokens=10)
    assert generation.finish_reason == "length"
    assert generation.token_ids == ids[:10]


def test_the_first_answer_token_is_there_when_the_canvas_is_certain_at_once(tokenizer: Tokenizer) -> None:
    """Never done on step 1: stability needs a repeat."""
    (block,) = scripted_generation(tokenizer, [[*tokenizer.encode("Paris"), TURN_END]])
    assert (block.answer, block.denoising_steps, block.converged) == ("Paris", 2, True)


def test_thought_and_answer_over_a_block_boundary(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(f"<|channel>thought\n{'hm ' * 25}<channel|>so: 42<turn|>")
    first, second = scripted_generation(tokenizer, [ids[:64], ids[64:]], thinking=True)
    assert first.answer == ""
    assert (first.thought + second.thought).startswith("hm hm hm")
    assert "thought" not in first.thought
    assert second.answer == "so: 42"


def test_stats_keep_their_definitions(tokenizer: Tokenizer) -> None:
    answer = tokenizer.encode("so: 42")
    ids = [*tokenizer.encode("<|channel>thought\nhm<channel|>"), *answer, TURN_END]
    generation = scripted_generation(tokenizer, [ids])
    assert generation.finish_reason == "stop"
    stats = generation.stats
    assert stats.prompt_tokens == len(generation.prompt_ids)
    assert (stats.new_tokens, stats.answer_tokens) == (len(ids), len(answer))
    assert stats.tokens_per_forward == len(ids) / 2
    assert stats.in_step_tokens_per_second == pytest.approx(64 * 2 / stats.denoising_seconds)
    assert stats.gross_tokens_per_second == pytest.approx(64 / stats.seconds)
    assert stats.net_tokens_per_second == pytest.approx(len(answer) / stats.seconds)
    assert stats.prefill_seconds + stats.denoising_seconds <= stats.seconds


@pytest.mark.parametrize(("name", "values", "message"), [
    ("seed", (-1, 2**64, 1.5, True, "7"), "seed must be an integer from 0"),
    ("n", (0, -1, 1.5, True, "2"), "n must be an integer from 1 to 1024, found"),
    ("candidate", (-1, 1.5, True, "2"), "candidate must be an integer from 0"),
    ("timeout", (-1, float("nan"), "5", True), "timeout must be a number from 0"),
    ("trace", ("no", 1), "trace must be True or False, found"),
    ("prompt_cache", ([],), r"prompt_cache: found list; make one with PromptCache\(model\)"),
])  # fmt: skip
def test_bad_keywords_are_refused(
    tokenizer: Tokenizer, name: str, values: tuple[Any, ...], message: str
) -> None:
    for value in values:
        with pytest.raises(InputError, match=message):
            scripted_generation(tokenizer, [], **{name: value})


def test_a_prompt_beyond_the_context_is_refused(tokenizer: Tokenizer) -> None:
    model: Any = Scripted([])
    with pytest.raises(InputError, match=r"the prompt has 4090 tokens .* but the context holds 4096"):
        generate(model, tokenizer, [5] * 4090)


def test_same_seed_same_text_and_the_seed_is_reported() -> None:
    model, tokenizer = load("demo")
    first = generate(model, tokenizer, "What is 12 + 30?", thinking=True)
    assert str(generate(model, tokenizer, "What is 12 + 30?", thinking=True, seed=first.seed)) == str(first)
    assert generate(model, tokenizer, "x").seed != first.seed


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="what MLX's CPU backend lacks")
def test_bfloat16_without_quantization_is_refused_on_the_cpu() -> None:
    with pytest.raises(InputError, match="in float32 only; leave dtype out"):
        load("demo", dtype=mx.bfloat16)


def test_a_generation_asked_from_its_own_watcher_says_so(tokenizer: Tokenizer) -> None:
    generation = scripted_generation(tokenizer, [[TURN_END]], on_step=lambda step: list(generation).clear())
    with pytest.raises(GenerationError, match="already running"):
        str(generation)


def test_token_ids_beyond_the_vocabulary_are_refused() -> None:
    model: Any = Scripted([])
    tokenizer: Any = SimpleNamespace(
        prompt=lambda prompt, **_: Prompt(prompt), special=SpecialTokens(), hidden_ids=frozenset()
    )
    with pytest.raises(InputError, match="the prompt has token id 704, but the model's ids end at 703"):
        generate(model, tokenizer, [5, 704])


def test_memory_and_prefill_are_measured() -> None:
    model, tokenizer = load("demo")
    generation = generate(model, tokenizer, "hello", seed=1)
    assert generation.finish_reason == "stop"
    assert generation.stats.prefill_tokens_per_second > 0
    weights = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    assert weights < generation.stats.peak_memory_gb * 1e9 < 50 * weights


def test_the_callers_time_is_not_counted(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 10))  # every look at the clock is 10 s after the last
    monkeypatch.setattr(
        "mlx_diffusiongemma.engine.batch.time", SimpleNamespace(perf_counter=lambda: next(clock))
    )
    generation = scripted_generation(tokenizer, lambda *_: full_canvas(tokenizer), max_new_tokens=128)
    blocks = iter(generation)
    next(blocks)
    before = generation.stats.seconds
    for _ in range(100):
        next(clock)
    next(blocks)
    assert generation.stats.seconds - before < 100


def test_draws_depend_on_seed_candidate_block_attempt_and_step_only() -> None:
    def draw(
        seed: int = 1, candidate: int = 0, block: int = 0, attempt: int = 0, step: int = 0
    ) -> tuple[Any, ...]:
        draws = SeededDraws([NoiseKey(seed, candidate, block, attempt)], length=64, vocab_size=1000)
        uniforms, noise = draws.step(step)
        return tuple(np.array(draws.initial())[0]), tuple(np.array(uniforms)[0]), tuple(np.array(noise)[0])

    base = draw()
    assert draw() == base
    for other in (draw(seed=2), draw(candidate=1), draw(block=1), draw(attempt=1)):
        assert all(a != b for a, b in zip(base, other, strict=True))
    assert draw(step=1)[1:] != base[1:]
    uniforms, noise = np.array(base[1]), np.array(base[2]) / 1000
    assert abs(np.corrcoef(uniforms, noise)[0, 1]) < 0.5  # not one stream read twice

    pair = SeededDraws([NoiseKey(1, 0, 0, 0), NoiseKey(1, 1, 0, 0)], length=64, vocab_size=1000)
    assert tuple(np.array(pair.step(0)[0])[0]) == base[1]  # a row does not depend on its batch


def test_memory_stays_wired_while_a_generation_runs(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    @contextmanager
    def watched() -> Iterator[None]:
        events.append("wired")
        try:
            yield
        finally:
            events.append("free")

    monkeypatch.setattr("mlx_diffusiongemma.engine.batch.wired_limit", watched)
    generation = scripted_generation(tokenizer, [[65] * 64, [65, TURN_END]])
    assert events == []
    next(iter(generation))
    assert events == ["wired"]
    str(generation)
    assert events == ["wired", "free"]
