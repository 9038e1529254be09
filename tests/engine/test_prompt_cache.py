"""A conversation's cache: what it reuses, how it goes back, and that nobody can tell from the result."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from oracle import tiny
from support.spies import spied

import mlx_dg
from mlx_diffusiongemma.cache import PrefixCache, bucket
from mlx_diffusiongemma.engine.prompt_cache import PromptCache
from mlx_diffusiongemma.errors import GenerationError, InputError
from mlx_diffusiongemma.model import DiffusionGemma
from mlx_diffusiongemma.prompt import Prompt

CANVAS = mx.array([[(7 * i + 11) % 96 for i in range(16)]])
WINDOW = tiny.ROUGH.window  # 16: prompts below are many windows long


def some_ids(rng: np.random.Generator, length: int) -> list[int]:
    ids: list[int] = rng.integers(0, tiny.ROUGH.vocab, length).tolist()
    return ids


def assert_like_a_cold_start(cache: PromptCache, prompt: Prompt | list[int]) -> None:
    """The cache holds the prompt, and a canvas behind it looks as it does behind a fresh encode."""
    assert cache.prompt == (prompt if isinstance(prompt, Prompt) else Prompt(prompt))
    assert cache.prefix.offset == len(prompt)
    cold = cache.model.make_cache()
    cache.model.encode(cache.prompt, cold)
    expected = np.array(cache.model.decode(CANVAS, cold))
    np.testing.assert_allclose(np.array(cache.model.decode(CANVAS, cache.prefix)), expected, atol=1e-4)


def test_turns_of_a_conversation(model: DiffusionGemma) -> None:
    """Prompts that go on, go back a little, go back far, start anew; canvases encoded between them."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        cache, ids, held = PromptCache(model), list[int](), list[int]()
        for _ in range(8):
            a_little_less = max(0, len(ids) - int(rng.integers(1, 40)))
            keep = int(rng.choice([len(ids), a_little_less, len(ids) // 2, 0]))
            ids = ids[:keep] + some_ids(rng, int(rng.integers(1, 90)))
            common = next((i for i, (a, b) in enumerate(zip(held, ids, strict=False)) if a != b), None)
            reused = cache.encode_prompt(Prompt(ids), chunk_size=int(rng.choice([7, 2048])))
            assert reused <= (min(len(held), len(ids)) if common is None else common)
            assert_like_a_cold_start(cache, ids)
            held = ids.copy()
            for _ in range(int(rng.integers(0, 4))):
                canvas = some_ids(rng, 16)
                cache.encode(Prompt(canvas), 2048)
                held += canvas
            assert_like_a_cold_start(cache, held)


def test_only_what_is_new_is_encoded(model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    prompt, answer, question = some_ids(rng, 200), some_ids(rng, 48), some_ids(rng, 30)
    calls = spied(monkeypatch, DiffusionGemma, "encode")

    def count(prompt: list[int]) -> tuple[int, int]:
        """Return the numbers of reused and of encoded tokens."""
        calls.clear()
        return cache.encode_prompt(Prompt(prompt), 2048), sum(len(call.args[1]) for call in calls)

    cache = PromptCache(model)
    cache.encode_prompt(Prompt(prompt), 2048)
    cache.encode(Prompt(answer), 2048)

    # The answer comes back as it was generated: only the question is new.
    assert count(prompt + answer + question) == (248, 30)

    # The template writes the prompt's last tokens otherwise now: encoded from just before them.
    cache = PromptCache(model)
    cache.encode_prompt(Prompt(prompt), 2048)
    cache.encode(Prompt(answer), 2048)
    rewritten = [*prompt[:190], prompt[190] ^ 1, *answer, *question]
    assert count(rewritten) == (200 - 32, len(rewritten) - (200 - 32))
    assert_like_a_cold_start(cache, rewritten)

    # The same prompt again, for another answer.
    cache.encode(Prompt(answer), 2048)
    assert count(rewritten)[1] <= 32

    # Another conversation.
    other = [token ^ 1 for token in rewritten]
    assert count(other) == (0, len(other))


@pytest.mark.parametrize("more", [-1, 0, 1, 5])
def test_while_the_windows_hold_everything_any_token_can_be_returned_to(
    model: DiffusionGemma, more: int
) -> None:
    """Tokens that have left the windows are encoded again."""
    ids = some_ids(np.random.default_rng(4), WINDOW + more)
    for length in range(len(ids)) if more < 0 else (1, WINDOW // 2, len(ids) - 1):
        cache = PromptCache(model)
        cache.encode_prompt(Prompt(ids), 2048)
        changed = [*ids[:length], ids[length] ^ 1]
        assert cache.encode_prompt(Prompt(changed), 2048) == (length if more < 0 else 0)
        assert_like_a_cold_start(cache, changed)


def test_an_interrupted_encode_leaves_no_half_encoded_prefix(
    model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(2)
    first, more = some_ids(rng, 60), some_ids(rng, 60)
    cache = PromptCache(model)
    cache.encode_prompt(Prompt(first), 2048)
    layer = type(model.decoder.layers[3])
    with monkeypatch.context() as patch:

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(layer, "encode_last", interrupt)
        with pytest.raises(KeyboardInterrupt):
            cache.encode_prompt(Prompt(first + more), 2048)
    assert cache.encode_prompt(Prompt(first + more), 2048) == 0
    assert_like_a_cold_start(cache, first + more)


def test_an_interrupt_while_going_back_leaves_nothing_half_done(
    model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    ids = some_ids(rng, WINDOW - 1)
    for method in ("trim", "restore"):
        cache = PromptCache(model)
        prompt = ids if method == "trim" else some_ids(rng, 80)
        cache.encode_prompt(Prompt(prompt), 2048)
        original = getattr(PrefixCache, method)

        def interrupted(*args: Any, original: Any = original) -> None:
            original(*args)
            raise KeyboardInterrupt

        changed = [*prompt[:-5], *(token ^ 1 for token in prompt[-5:])]
        with monkeypatch.context() as patch:
            patch.setattr(PrefixCache, method, interrupted)
            with pytest.raises(KeyboardInterrupt):
                cache.encode_prompt(Prompt(changed), 2048)
        longer = [*prompt, *some_ids(rng, 10)]
        cache.encode_prompt(Prompt(longer), 2048)
        assert_like_a_cold_start(cache, longer)


# --- generate -----------------------------------------------------------------------------------------------


def test_a_chat_on_the_demo_says_what_it_says_cold(demo: Any) -> None:
    cache, messages = mlx_dg.PromptCache(demo[0]), list[dict[str, str]]()
    questions = ["Capital of France?", "Count from 0 to 37.", "Hello"]
    for turn, question in enumerate(questions):
        messages.append({"role": "user", "content": question})
        warm = mlx_dg.generate(*demo, messages, seed=turn, prompt_cache=cache, max_new_tokens=192)
        cold = mlx_dg.generate(*demo, messages, seed=turn, max_new_tokens=192)
        assert warm.token_ids == cold.token_ids
        assert (warm.stats.cached_tokens > 0) == (turn > 0)
        assert cold.stats.cached_tokens == 0
        messages.append({"role": "assistant", "content": warm.answer})


def test_two_generations_cannot_share_a_cache_at_a_time(demo: Any) -> None:
    cache = mlx_dg.PromptCache(demo[0])
    first, second = (mlx_dg.generate(*demo, "Count to 37.", seed=0, prompt_cache=cache) for _ in range(2))
    next(iter(first))
    next(iter(second))
    with pytest.raises(GenerationError, match="prompt_cache was cleared or taken by another generation"):
        str(first)
    assert str(second) == str(mlx_dg.generate(*demo, "Count to 37.", seed=0))


def test_nor_can_one_within_the_other_or_after_it_was_cleared(demo: Any) -> None:
    cache, started = mlx_dg.PromptCache(demo[0]), list[Any]()

    def start_another(_: Any) -> None:
        if not started:
            started.append(mlx_dg.generate(*demo, "Capital of France?", seed=0, prompt_cache=cache))
            str(started[0])

    outer = mlx_dg.generate(*demo, "Count from 0 to 37.", seed=0, prompt_cache=cache, on_step=start_another)
    with pytest.raises(GenerationError, match="taken by another generation"):
        str(outer)
    assert not outer.blocks
    assert started[0].answer

    cleared = mlx_dg.generate(*demo, "Count from 0 to 37.", seed=0, prompt_cache=cache)
    next(iter(cleared))
    cache.clear()
    with pytest.raises(GenerationError, match="cleared"):
        str(cleared)


def test_room_for_the_whole_generation_is_made_at_once(demo: Any) -> None:
    cache, length = mlx_dg.PromptCache(demo[0]), demo[0].config.canvas_length
    for question in ("Count from 0 to 37.", "Capital of France?"):  # the second makes the cache start anew
        generation = mlx_dg.generate(
            *demo, question * 8, seed=0, max_new_tokens=20 * length, max_denoising_steps=1, prompt_cache=cache
        )
        next(iter(generation))
        positions = len(generation.prompt_ids) + 20 * length
        assert cache.prefix.layers[-1].capacity == bucket(positions, length)


def test_a_cache_belongs_to_its_model(demo: Any, model: DiffusionGemma) -> None:
    with pytest.raises(InputError, match="prompt_cache belongs to another model"):
        mlx_dg.generate(*demo, "hi", prompt_cache=PromptCache(model))
