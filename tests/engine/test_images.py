"""Prompts with images in caches and batches. Their pixels are of no matter here: spans and digests are."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from engine.test_prompt_cache import assert_like_a_cold_start
from oracle import tiny

from mlx_diffusiongemma.engine.batch import Batch, Finished, Prefill
from mlx_diffusiongemma.engine.constraint import CanvasSpec
from mlx_diffusiongemma.engine.prompt_cache import PromptCache
from mlx_diffusiongemma.engine.row import Row, RowKey
from mlx_diffusiongemma.engine.settings import Settings
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.model import DiffusionGemma
from mlx_diffusiongemma.prompt import ImageSpan, Prompt

VOCAB = tiny.ROUGH.vocab
IMAGE = 9  # the id of every soft token


def some_prompt(rng: random.Random, length: int, longest: int = 30) -> Prompt:
    ids, images, at = [rng.randrange(10, VOCAB) for _ in range(length)], [], 0
    while at < length:
        at += rng.randrange(9)
        size = rng.randrange(1, longest)
        if at + size <= length and rng.random() < 0.7:
            images.append(ImageSpan(at, size, rng.choice("ab")))
            ids[at : at + size] = [IMAGE] * size
        at += size
    return Prompt(ids, images)


@pytest.mark.parametrize("seed", range(4))
def test_a_cache_with_images_is_like_a_fresh_one(model: DiffusionGemma, seed: int) -> None:
    """Turns that append, replace the end, change an image or drop one, and prefills that are cancelled."""
    rng, cache = random.Random(seed), PromptCache(model)
    prompt = some_prompt(rng, rng.randrange(40, 120))
    for _ in range(6):
        if rng.random() < 0.4:
            cache.go_to(prompt)
            chunks = cache.encode_rest(prompt, 5)
            for _ in range(rng.randrange(4)):
                next(chunks, None)
            chunks.close()
            assert cache.prompt == prompt.part(0, len(cache.prompt))
        cache.encode_prompt(prompt, rng.choice([3, 17, 2048]))
        assert_like_a_cold_start(cache, prompt)
        change = rng.randrange(3)
        if change == 0:
            prompt += some_prompt(rng, rng.randrange(1, 40))
        elif change == 1 or not prompt.images:
            cut = prompt.border(rng.randrange(len(prompt)))
            prompt = prompt.part(0, cut) + some_prompt(rng, rng.randrange(1, 40))
        else:
            number = rng.randrange(len(prompt.images))
            other = replace(prompt.images[number], digest="other")
            images = [*prompt.images[:number], other, *prompt.images[number + 1 :]]
            prompt = Prompt(prompt.ids, images)


def test_another_image_of_the_same_size_is_encoded_again(model: DiffusionGemma) -> None:
    ids = [5, *[IMAGE] * 8, 6, 7]
    first, second = (Prompt(ids, [ImageSpan(1, 8, digest)]) for digest in "ab")
    cache = PromptCache(model)
    cache.encode_prompt(first, 2048)
    assert cache.encode_prompt(first, 2048) == len(first)
    assert cache.encode_prompt(second, 2048) == 1
    assert_like_a_cold_start(cache, second)


def rows_of(model: DiffusionGemma, prompts: list[Prompt], **settings: Any) -> list[Row]:
    config = Settings.of(model.generation_config, max_new_tokens=16, guard_unconverged=False, **settings)
    spec = CanvasSpec(16, VOCAB, (1,), 0)
    return [Row(prompt, config, spec, RowKey(3)) for prompt in prompts]


def texts(model: DiffusionGemma, prompts: list[Prompt], **settings: Any) -> list[list[int]]:
    events = list(Batch(model, rows_of(model, prompts, **settings)).run())
    (finished,) = [event for event in events if isinstance(event, Finished)]
    assert any(isinstance(event, Prefill) for event in events)
    return [committed.canvas for committed in finished.committed]


@pytest.mark.parametrize("chunk", [7, 2048])
def test_a_batch_of_prompts_with_images_writes_what_each_writes_alone(
    model: DiffusionGemma, chunk: int
) -> None:
    rng = random.Random(5)
    prompts = [some_prompt(rng, length) for length in (90, 31, 60)]
    together = texts(model, prompts, prefill_step_size=chunk)
    assert together == [texts(model, [prompt])[0] for prompt in prompts]


def test_pixels_are_not_dropped(model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "vision", None)
    image = Prompt([5, IMAGE, IMAGE, 6], [ImageSpan(1, 2, "a", pixels=object())])
    for prompts in ([image], [image, Prompt([5, 6])]):
        with pytest.raises(InputError, match="image"):
            texts(model, prompts)
