"""Editing in place: a canvas that begins as a text under noise."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from support.scripted import Scripted

from mlx_diffusiongemma.control.draft import Draft, checked_draft
from mlx_diffusiongemma.engine.constraint import CanvasSpec
from mlx_diffusiongemma.engine.noise import NoiseKey, SeededDraws
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.generation import generate
from mlx_diffusiongemma.model import DiffusionGemma
from mlx_diffusiongemma.text.tokenizer import Tokenizer

SPEC = CanvasSpec(length=64, vocab_size=704, stop_ids=(1, 106, 50), pad_id=0)


RIGHT = '[{"city": "Paris", "country": "France"}, {"city": "Rome", "country": "Italy"}]'


def test_a_draft_is_text_whatever_it_spells(demo: tuple[DiffusionGemma, Tokenizer]) -> None:
    model, tokenizer = demo
    text = "Hello<turn|>\n<|channel>thought"
    draft = checked_draft(tokenizer, text, None, model.generation_config, SPEC, thinking=False)
    end = draft.ids.index(tokenizer.special.turn_close)
    assert tokenizer.decode(draft.ids[:end]) == text


@pytest.mark.parametrize("level", [0.01, 0.3, 0.5, 1.0])
def test_so_many_positions_are_noise_and_so_many_steps_are_left(level: float) -> None:
    length, vocab, steps = 4096, 700, 48
    ids = np.random.default_rng(0).integers(0, vocab, 2 * length).tolist()
    for block in (0, 1):
        draws = SeededDraws([NoiseKey(5, candidate, block, 0) for candidate in (0, 1)], length, vocab)
        begun, left = Draft(ids, level).initial(block, draws, (2, length), steps)
        assert left == math.ceil(48 * level)
        canvas, noise = np.array(begun), np.array(draws.initial())
        part = np.array(ids[block * length : (block + 1) * length])
        replaced = canvas != part
        assert np.array_equal(canvas[replaced], noise[replaced])
        assert replaced.mean() == pytest.approx(level * (1 - 1 / vocab), abs=0.03)
        assert level == 1 or not np.array_equal(replaced[0], replaced[1])
    assert Draft(ids, level).initial(2, draws, (2, length), steps) == (None, steps)


@pytest.mark.parametrize(("prompt", "text"), [("What is 99 + 88?", "12"), ("Count to 37.", "1 2 3 " * 15)])
def test_all_noise_is_a_generation_without_a_draft(demo: Any, prompt: str, text: str) -> None:
    plain = generate(*demo, prompt, seed=2, max_new_tokens=192)
    edited = generate(*demo, prompt, seed=2, max_new_tokens=192, draft=text, noise_level=1)
    assert edited.token_ids == plain.token_ids
    assert [b.denoising_steps for b in edited] == [b.denoising_steps for b in plain]


@pytest.mark.parametrize("seed", range(4))
def test_a_right_text_under_little_noise_comes_back_and_a_wrong_word_is_mended(demo: Any, seed: int) -> None:
    asked: dict[str, Any] = {"prompt": "JSON for Paris and Rome", "seed": seed}
    edited = generate(*demo, **asked, draft=RIGHT, noise_level=0.1)
    assert str(edited) == RIGHT
    assert edited.stats.denoising_steps <= math.ceil(48 * 0.1)
    wrong = RIGHT.replace("Italy", "Egypt")
    assert str(generate(*demo, **asked, draft=wrong, noise_level=0.5)) == RIGHT


def test_a_draft_of_several_canvases_goes_on_in_each(demo: Any) -> None:
    text = " ".join(map(str, range(1, 38)))
    assert len(demo[1].encode(text)) > 64
    edited = generate(*demo, "Count to 37.", seed=0, draft=text, noise_level=0.1, max_new_tokens=192)
    assert str(edited) == text
    assert all(block.denoising_steps <= 5 for block in edited)


def test_the_end_of_the_turn_and_padding_follow_the_text(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = demo
    seen: list[list[int]] = []
    decode = DiffusionGemma.decode_hidden

    def watched(self: DiffusionGemma, ids: mx.array, *others: Any) -> mx.array:
        seen.append(np.array(ids)[0].tolist())
        return decode(self, ids, *others)

    monkeypatch.setattr(DiffusionGemma, "decode_hidden", watched)
    str(generate(model, tokenizer, "hi", seed=0, draft="yes", noise_level=1e-6))
    ids = [*tokenizer.encode("yes"), tokenizer.special.turn_close]
    assert seen[0] == ids + [0] * (64 - len(ids))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"draft": ""}, "draft: found no text; give text"),
    ({"draft": 3}, "draft: found int; give text"),
    ({"draft": "yes", "thinking": True}, "draft: an edited answer has no thought before it"),
    ({"draft": "yes " * 64, "max_new_tokens": 64}, "with its end, but max_new_tokens is 64; raise it"),
    ({"noise_level": 0.5}, "noise_level 0.5 is the share of a draft to replace; also give draft"),
    ({"draft": "yes", "noise_level": 0}, "noise_level must be a number from 1e-06 to 1, found 0"),
    ({"draft": "yes", "noise_level": 1.01}, "noise_level must be a number from 1e-06 to 1"),
    ({"draft": "yes", "noise_level": math.nan}, "noise_level must be a number from 1e-06 to 1"),
    ({"draft": "yes", "noise_level": "half"}, "noise_level must be a number from 1e-06 to 1"),
])  # fmt: skip
def test_bad_drafts_are_refused_before_anything_runs(
    demo: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        generate(Scripted([]), demo[1], "hi", **arguments)
