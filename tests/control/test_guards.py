"""Guards: canvases without an answer are denoised again, with a warning. Guards can be off."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.scripted import TURN_END, Scripted

import mlx_dg
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.generation import generate
from mlx_diffusiongemma.text.tokenizer import Tokenizer

LENGTH = 64


def outputs(tokenizer: Tokenizer, *texts: str) -> list[list[int]]:
    return [tokenizer.encode(text) for text in texts]


EMPTY = ("", "<turn|>", "<|channel>thought\n<channel|><turn|>", "<pad><pad><turn|>", " \n<turn|>", "<eos>")


@pytest.mark.parametrize("empty", EMPTY)
def test_an_empty_first_canvas_is_denoised_again(tokenizer: Tokenizer, empty: str) -> None:
    """The fourth attempt is the first that is not empty."""
    attempts = outputs(tokenizer, empty, empty, empty, "yes<turn|>")
    for guard, answer, rerolls, steps in ((True, "yes", 3, 8), (False, "", 0, 2)):
        model: Any = Scripted(lambda block, attempt: attempts[attempt] if block == 0 else [TURN_END])
        generation = generate(model, tokenizer, "hi", guard_empty=guard, max_new_tokens=64)
        assert generation.answer.strip() == answer
        assert generation.stats.empty_rerolls == rerolls
        assert generation.stats.denoising_steps == generation.blocks[0].denoising_steps == steps
        assert generation.blocks[0].warning is None or not guard


def test_after_three_more_attempts_an_empty_canvas_stands(tokenizer: Tokenizer) -> None:
    model: Any = Scripted(lambda *_: [TURN_END])
    generation = generate(model, tokenizer, "hi")
    assert generation.token_ids == [TURN_END]
    assert generation.stats.empty_rerolls == model.attempt == 3
    assert str(generation.blocks[0].warning).startswith("no answer in this canvas, also with other noise; ")


def test_a_thought_without_an_answer_is_empty_too(tokenizer: Tokenizer) -> None:
    texts = "<|channel>thought\n" + "hm " * 70, "<channel|><turn|>", "<channel|>yes<turn|>"
    thought, *later = outputs(tokenizer, *texts)
    model: Any = Scripted(lambda block, attempt: thought if block == 0 else later[attempt])
    generation = generate(model, tokenizer, "hi", max_new_tokens=128)
    assert (generation.answer, generation.stats.empty_rerolls) == ("yes", 1)


@pytest.mark.parametrize(
    "text", ["yes<turn|>", "<|channel>thought\nhm", "<|tool_call>call:f{}<tool_call|>", "<unused0>yes"]
)
def test_what_is_not_empty_stands(tokenizer: Tokenizer, text: str) -> None:
    model: Any = Scripted([(tokenizer.encode(text) * LENGTH)[:LENGTH]])
    generation = generate(model, tokenizer, "hi", max_new_tokens=64)
    assert len(list(generation)) == 1
    assert (generation.stats.empty_rerolls, model.attempt) == (0, 0)


def test_later_canvases_of_padding_are_nobodys_business(tokenizer: Tokenizer) -> None:
    model: Any = Scripted(lambda block, _: (tokenizer.encode("ab ") * LENGTH)[:LENGTH] if block == 0 else [])
    generation = generate(model, tokenizer, "hi", max_new_tokens=128)
    assert [block.denoising_steps for block in generation] == [2, 2]


def test_other_noise_is_other_and_comes_from_the_seed(tokenizer: Tokenizer) -> None:
    def first_canvases(seed: int) -> list[np.ndarray]:
        steps: list[mlx_dg.Step] = []
        model: Any = Scripted(lambda *_: [TURN_END], sure=1.0)
        str(generate(model, tokenizer, "hi", seed=seed, on_step=steps.append, max_denoising_steps=1))
        return [step.canvas_ids for step in steps]

    once, again, other = first_canvases(1), first_canvases(1), first_canvases(2)
    assert len(once) == 1 + 1 + 3  # the step cap's guard, then the empty one's
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert not np.array_equal(once[0], other[0])
    assert len({canvas.tobytes() for canvas in once}) == len(once)


# At temperature 0.8 the entropy of 704 tokens is 6.4 nats, or about 0 when one is 30 above all others.
# At temperature 0.8 the entropy of 704 tokens is 6.4 nats, or about 0 when one is 30 above all others. One
# step never stops by itself, but may be sure.
@pytest.mark.parametrize(("sure", "settings", "rerolls", "converged", "warned"), [
    ([1.0, 30.0], {}, 1, True, False),
    ([1.0, 1.0], {}, 1, False, True),
    ([30.0], {}, 0, True, False),
    ([60.0], {"max_denoising_steps": 1}, 0, False, False),
    ([1.0], {"guard_unconverged": False}, 0, False, False),
])  # fmt: skip
def test_a_canvas_that_the_step_cap_ended_is_denoised_once_more(
    tokenizer: Tokenizer, sure: list[float], settings: Any, rerolls: int, converged: bool, warned: bool
) -> None:
    ids = [*tokenizer.encode("yes"), TURN_END]
    model: Any = Scripted([ids], sure=lambda attempt: sure[attempt])
    generation = generate(model, tokenizer, "hi", **{"max_denoising_steps": 3, **settings})
    (block,) = generation
    assert generation.stats.unconverged_rerolls == rerolls
    assert block.converged == converged
    assert ("not converged: mean entropy 6." in str(block.warning)) == warned == (block.warning is not None)


def test_a_stalled_canvas_stops_early_when_asked_to(tokenizer: Tokenizer) -> None:
    """Its mean entropy stays between the two bounds, 0.005 and 0.05 nats, and the bound accepts all of it."""
    ids = (tokenizer.encode("yes ") * LENGTH)[:LENGTH]
    settings: Any = {"schedule": mlx_dg.ConstantSchedule(1.0), "entropy_bound": 10.0, "max_new_tokens": 64}
    written = []
    for guard, stops, steps in ((True, 1, 9), (False, 0, 48)):  # eight steps that repeat the first
        model: Any = Scripted([ids], sure=13.5)
        generation = generate(model, tokenizer, "hi", guard_stalled=guard, **settings)
        (block,) = generation
        assert 0.005 < block.mean_entropy < 0.05
        assert not block.converged
        assert (generation.stats.stalled_stops, generation.stats.denoising_steps) == (stops, steps)
        written.append(generation.token_ids)
    assert written[0] == written[1]


def test_guards_that_do_not_fire_change_nothing(demo: Any) -> None:
    off: dict[str, Any] = {"guard_empty": False, "guard_unconverged": False}
    for prompt, thinking in (("What is 345 + 78?", True), ("What is 99 + 88?", False)):
        on = generate(*demo, prompt, thinking=thinking, seed=5, guard_stalled=True)
        without = generate(*demo, prompt, thinking=thinking, seed=5, **off)
        assert on.token_ids == without.token_ids
        assert on.stats.denoising_steps == without.stats.denoising_steps
        assert [block.mean_entropy for block in on] == [block.mean_entropy for block in without]


@pytest.mark.parametrize("name", ["guard_empty", "guard_unconverged", "guard_stalled"])
def test_a_switch_is_true_or_false(tokenizer: Tokenizer, name: str) -> None:
    model: Any = Scripted([])
    with pytest.raises(InputError, match=f"{name} must be True or False, found 3"):
        generate(model, tokenizer, "hi", **{name: 3})
