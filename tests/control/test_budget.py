"""The thinking budget: whatever a model does, its thought ends in time and an answer follows."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from support.scripted import TURN_END, Scripted

from mlx_diffusiongemma.checkpoint.loading import load
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.generation import Generation, generate
from mlx_diffusiongemma.model import DiffusionGemma
from mlx_diffusiongemma.text.tokenizer import Tokenizer

LENGTH = 64
HEADER = 3  # <|channel>, "thought", "\n"


@pytest.fixture(scope="module")
def thought(tokenizer: Tokenizer) -> list[int]:
    """How a thought begins; its length is `HEADER`."""
    ids = tokenizer.encode("<|channel>thought\n")
    assert len(ids) == HEADER
    return ids


def rambling(tokenizer: Tokenizer) -> Any:
    """A model that never closes its thought."""
    opening, text = tokenizer.encode("<|channel>thought\n"), tokenizer.encode("hm ")
    return Scripted(lambda block, _: (opening if block == 0 else []) + text * LENGTH)


def thinking(tokenizer: Tokenizer, model: Any, budget: int | None, most: int, **settings: Any) -> Generation:
    asked = {"thinking": True, "thinking_budget": budget, "max_new_tokens": most, **settings}
    return generate(model, tokenizer, "hi", **asked)


def closings(generation: Generation, tokenizer: Tokenizer) -> list[int]:
    """Where `<channel|>` stands."""
    return [i for i, t in enumerate(generation.token_ids) if t == tokenizer.special.channel_close]


# Within the first canvas, at its very end, on both sides of it, in the second, at the end of that.
@pytest.mark.parametrize("budget", [0, 1, 10, 60, 61, 62, 63, 80, 124, 125, 126])
def test_a_thought_that_never_closes_is_closed_at_its_budget(tokenizer: Tokenizer, budget: int) -> None:
    generation = thinking(tokenizer, rambling(tokenizer), budget, 256)
    assert closings(generation, tokenizer) == [HEADER + budget]
    assert set(generation.thought) <= set("hm ")
    assert generation.answer.strip()
    assert len(generation.token_ids) == 256
    assert generation.stats.forced_thought_ends == 1


@pytest.mark.parametrize(("reserve", "last"), [(None, 128 - 32 - 1), (10, 117), (65, 62), (64, 63), (63, 64)])
def test_the_answer_keeps_its_reserve(tokenizer: Tokenizer, reserve: int | None, last: int) -> None:
    """A budget beyond what the reserve leaves; the delimiter is the last token before the reserve."""
    generation = thinking(tokenizer, rambling(tokenizer), 128, 128, answer_reserve=reserve)
    assert closings(generation, tokenizer) == [last]
    assert generation.stats.answer_tokens == 128 - last - 1


def test_without_a_budget_nothing_is_forced_and_the_block_says_what_happened(tokenizer: Tokenizer) -> None:
    generation = thinking(tokenizer, rambling(tokenizer), None, 128)
    assert (generation.answer, generation.stats.forced_thought_ends) == ("", 0)
    first, last = generation.blocks
    assert first.warning is None
    assert "ended inside the thought" in str(last.warning)


def test_a_thought_that_ends_in_time_is_left_alone(tokenizer: Tokenizer, thought: list[int]) -> None:
    ids = [*thought, *tokenizer.encode("hm hm<channel|>yes"), TURN_END]
    size = len(tokenizer.encode("hm hm"))
    for budget in (size, size + 1, 100):
        kept = thinking(tokenizer, Scripted([ids]), budget, 128)
        assert kept.token_ids == ids
        assert (kept.stats.forced_thought_ends, kept.stats.denoising_steps) == (0, 2)
    cut = thinking(tokenizer, Scripted([ids]), size - 1, 128)
    assert closings(cut, tokenizer)[0] == HEADER + size - 1
    assert cut.stats.forced_thought_ends == 1


def test_a_turn_that_ends_inside_its_thought_gets_an_answer(tokenizer: Tokenizer, thought: list[int]) -> None:
    text = tokenizer.encode("yes it is so")
    model = Scripted(lambda _, attempt: [*thought, *text, TURN_END] if attempt == 0 else text * 10)
    generation = thinking(tokenizer, model, 50, 64, guard_empty=False)
    assert generation.thought == "yes it is so"
    assert generation.answer


@pytest.mark.parametrize("rest", ["<turn|>", "<|channel>thought\nhm", "<pad>", "<channel|><channel|><turn|>"])
@pytest.mark.parametrize("length", [4, 10])
def test_the_answer_begins_right_behind_a_thought_that_was_closed(
    tokenizer: Tokenizer, thought: list[int], rest: str, length: int
) -> None:
    """A model that would go on with nothing, or with its next thought."""
    text = tokenizer.encode("hm " * 5)[:length]
    ids = [*thought, *text, *tokenizer.encode(rest) * LENGTH][:LENGTH]
    generation = thinking(tokenizer, Scripted(lambda *_: ids), 3, 64, guard_empty=False)
    close = closings(generation, tokenizer)[0]
    assert close == HEADER + 3
    assert generation.token_ids[close + 1] not in tokenizer.hidden_ids
    assert generation.answer.strip()
    assert generation.thought == tokenizer.decode(text[:3])


PROMPTS = ("What is 345 + 78?", "JSON for Paris and Rome", 'Spell "planet" backwards.')


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("budget", [0, 7, 90])
@pytest.mark.slow
def test_the_demo_answers_although_its_thought_cannot_close(
    monkeypatch: pytest.MonkeyPatch, prompt: str, budget: int
) -> None:
    """The real model with the closing delimiter taken from it: probability 0, everywhere."""
    model, tokenizer = load("demo")
    logits, close = DiffusionGemma.logits, tokenizer.special.channel_close
    never = mx.where(mx.arange(model.config.text.vocab_size) == close, -mx.inf, 0)
    monkeypatch.setattr(DiffusionGemma, "logits", lambda self, hidden: logits(self, hidden) + never)
    asked: dict[str, Any] = {"thinking": True, "seed": 0, "max_new_tokens": 128, "max_denoising_steps": 6}
    stuck = generate(model, tokenizer, prompt, **asked)
    assert stuck.answer == ""
    assert stuck.thought
    generation = generate(model, tokenizer, prompt, thinking_budget=budget, **asked)
    assert generation.answer.strip()
    assert generation.stats.forced_thought_ends == 1
    assert closings(generation, tokenizer)[0] <= HEADER + budget


@pytest.mark.parametrize(("settings", "message"), [
    ({"budget": 257}, "thinking_budget 257 is above max_new_tokens 256; lower it or raise"),
    ({"budget": -1}, "thinking_budget must be an integer from 0"),
    ({"budget": 1.5}, "thinking_budget must be an integer from 0"),
    ({"answer_reserve": 256}, "answer_reserve 256 leaves nothing of max_new_tokens 256"),
    ({"answer_reserve": 0}, "answer_reserve must be an integer from 1"),
])  # fmt: skip
def test_bad_budgets_are_refused_before_anything_runs(
    tokenizer: Tokenizer, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        thinking(tokenizer, Scripted([]), **{"budget": None, "most": 256, **settings})


REPEATED = ["<|channel>thought\n" + rest for rest in ("<channel|>", "<|turn>model\n", "hm<channel|>")]


@pytest.mark.parametrize("text", [*REPEATED, "<|channel><channel|>", "<turn|>", "<pad>", "\n"])
@pytest.mark.parametrize(("budget", "most"), [(20, 128), (0, 64), (1, 65), (1, 1), (2, 2), (3, 5), (64, 128)])
def test_an_answer_follows_whatever_is_written_again_and_again(
    tokenizer: Tokenizer, text: str, budget: int, most: int
) -> None:
    ids = (tokenizer.encode(text) * LENGTH)[:LENGTH]
    generation = thinking(tokenizer, Scripted(lambda *_: ids), budget, most, guard_empty=False)
    assert generation.answer.strip()
    assert len(generation.token_ids) <= most
