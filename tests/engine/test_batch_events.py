"""The one loop: its events, cancelling between any two of them, and batches that take turns."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

import mlx_dg
from mlx_diffusiongemma.answer import Answer
from mlx_diffusiongemma.checkpoint.loading import load
from mlx_diffusiongemma.engine import denoise
from mlx_diffusiongemma.engine.batch import Batch, Event, Finished, Prefill
from mlx_diffusiongemma.engine.denoise import Stepped
from mlx_diffusiongemma.engine.prompt_cache import PromptCache
from mlx_diffusiongemma.engine.row import RowKey
from mlx_diffusiongemma.request import Request
from mlx_diffusiongemma.text.channels import ChannelParser

QUESTIONS = ("Count to 37.", "What is 345 + 78?", "JSON for Paris and Rome")


def answer_to(demo: Any, question: str, **settings: Any) -> Answer:
    model, tokenizer = demo
    request = Request(model, tokenizer, settings, {}, thinking=False, trace=False)
    prompt = tokenizer.prompt(question)
    return request.answer(prompt, ChannelParser(tokenizer, prompt.ids), RowKey(0))


def deliver(answer: Answer, event: Event) -> None:
    for committed in event.committed if isinstance(event, Finished) else ():
        answer.add(committed)


def test_events_come_in_order(demo: Any) -> None:
    answer = answer_to(demo, QUESTIONS[0], prefill_step_size=5)
    events = list(Batch(demo[0], [answer.row]).run())
    count = len(answer.row.prompt)
    prefill = [event for event in events if isinstance(event, Prefill)]
    assert [event.done for event in prefill][-1] == count
    assert all(event.total == count for event in prefill)
    assert events[: len(prefill)] == prefill
    finished = [event for event in events if isinstance(event, Finished)]
    steps = sum(committed.tries.steps for event in finished for committed in event.committed)
    assert sum(isinstance(event, Stepped) for event in events) == steps
    assert [committed.block for event in finished for committed in event.committed] == [0, 1]


def test_batches_that_take_turns_write_their_solo_texts(demo: Any) -> None:
    answers = [answer_to(demo, question) for question in QUESTIONS]
    running: list[tuple[Answer, Iterator[Event]]] = [
        (answer, Batch(demo[0], [answer.row]).run()) for answer in answers
    ]
    while running:
        for pair in list(running):
            event = next(pair[1], None)
            if event is None:
                running.remove(pair)
            else:
                deliver(pair[0], event)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        written = "".join(block.answer for block in answer.blocks)
        assert written == mlx_dg.generate(*demo, question, seed=0).answer


@pytest.mark.parametrize("after", [0, 1, 2, 4, 6, 7, 8])
def test_closing_between_any_two_events_keeps_what_was_encoded(demo: Any, after: int) -> None:
    model, tokenizer = demo
    cache = PromptCache(model)
    answer = answer_to(demo, QUESTIONS[0], prefill_step_size=8)
    events = Batch(model, [answer.row], cache).run()
    seen = list(islice(events, after))
    events.close()
    done = max((event.done for event in seen if isinstance(event, Prefill)), default=0)
    assert cache.prompt.ids[: len(answer.row.prompt)] == answer.row.prompt.ids[:done]
    assert cache.prefix.offset == len(cache.token_ids)
    again = mlx_dg.generate(model, tokenizer, QUESTIONS[0], seed=0, prompt_cache=cache)
    assert again.answer.endswith("37")
    assert again.stats.cached_tokens == done


def test_a_model_that_nobody_holds_is_freed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the garbage collector: neither its compiled step nor its denoiser holds it."""
    monkeypatch.setattr(denoise, "_compiles", lambda: True)
    gc.collect()
    gc.disable()
    try:
        model, tokenizer = load("demo")
        compiled = mlx_dg.generate(model, tokenizer, "What is 345 + 78?", seed=0).answer
        monkeypatch.setattr(denoise, "_compiles", lambda: False)
        assert compiled == mlx_dg.generate(model, tokenizer, "What is 345 + 78?", seed=0).answer == "423"
        alive = weakref.ref(model)
        del model
        assert alive() is None
    finally:
        gc.enable()
