"""A generation's life: started, running, ended, closed; cancelled, timed out, awaited, pickled."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
import time
from typing import Any

import numpy as np
import pytest
from support.scripted import TURN_END, Scripted, full_canvas, scripted_generation

import mlx_dg
from mlx_diffusiongemma.checkpoint.loading import load
from mlx_diffusiongemma.engine.settings import Settings
from mlx_diffusiongemma.errors import GenerationError, InputError
from mlx_diffusiongemma.generation import Generation, generate, generate_batch
from mlx_diffusiongemma.text.tokenizer import Tokenizer

LENGTH = 64
CITIES = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
        "required": ["city", "country"],
        "additionalProperties": False,
    },
}


def endless(tokenizer: Tokenizer, sure: float = 60.0, **settings: Any) -> Generation:
    return scripted_generation(tokenizer, lambda *_: full_canvas(tokenizer), sure, seed=3, **settings)


def test_repr_names_the_state(tokenizer: Tokenizer) -> None:
    generation = scripted_generation(tokenizer, [[*tokenizer.encode("yes"), TURN_END]], seed=3)
    assert repr(generation) == "<Generation: not started, 0 blocks, 0 tokens, seed 3>"
    assert generation.stats.table() == "no block yet; iterate the generation or ask for its answer"
    tokens = len(tokenizer.encode("yes")) + 1
    assert str(generation) == "yes"
    assert repr(generation) == f"<Generation: ended (stop), 1 block, {tokens} tokens, seed 3>"

    generation = endless(tokenizer)
    next(iter(generation))
    assert repr(generation) == "<Generation: running, 1 block, 64 tokens, seed 3>"
    generation.close()
    assert repr(generation) == "<Generation: closed, 1 block, 64 tokens, seed 3>"


def test_a_closed_generation_runs_no_further(tokenizer: Tokenizer) -> None:
    with endless(tokenizer) as generation:
        block = next(iter(generation))
    assert generation.answer == block.answer
    assert str(generation) == block.answer
    assert generation.finish_reason is None
    assert list(generation) == [block]
    assert generation.state == "closed"


def test_a_break_alone_leaves_it_running(tokenizer: Tokenizer) -> None:
    generation = endless(tokenizer, max_new_tokens=128)
    for _ in generation:
        break
    assert generation.state == "running"
    assert len(generation.token_ids) == 128


def test_closing_before_the_start_and_after_the_end(tokenizer: Tokenizer) -> None:
    generation = endless(tokenizer)
    generation.close()
    assert (generation.answer, generation.finish_reason, generation.blocks) == ("", None, [])
    generation = endless(tokenizer, max_new_tokens=64)
    list(generation)
    generation.close()
    assert generation.finish_reason == "length"


def test_closing_one_candidate_leaves_the_others(tokenizer: Tokenizer) -> None:
    model: Any = Scripted([full_canvas(tokenizer), [*tokenizer.encode("c"), TURN_END]])
    first, second, third = generate(model, tokenizer, "hi", n=3).candidates
    next(iter(first))
    second.close()
    assert (first.finish_reason, second.state, third.finish_reason) == ("stop", "closed", "stop")
    assert [len(each.blocks) for each in (first, second, third)] == [2, 1, 2]
    assert model.batches[-1] == 2


def test_a_candidate_that_is_closed_in_a_step_gets_no_block_of_that_canvas(tokenizer: Tokenizer) -> None:
    first = endless(tokenizer, n=2, max_new_tokens=LENGTH, on_step=lambda _: first.close())
    second = first.candidates[1]
    assert len(list(second)) == 1
    assert (first.blocks, first.state, second.state) == ([], "closed", "ended")


def test_a_canvas_stops_at_its_next_step_when_it_is_closed(tokenizer: Tokenizer) -> None:
    seen: list[mlx_dg.Step] = []
    generation = endless(tokenizer, sure=4.0, on_step=lambda step: (seen.append(step), generation.close()))
    assert (list(generation), len(seen), generation.state) == ([], 1, "closed")


def test_a_timeout_ends_it_with_what_there_is(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("mlx_diffusiongemma.writer.time.monotonic", lambda: now[0])

    def late(_: mlx_dg.Step) -> None:
        now[0] += 1.0

    generation = endless(tokenizer, timeout=5, on_step=late)  # two steps a canvas
    assert len(generation.token_ids) == 2 * LENGTH
    assert generation.finish_reason == "length"
    assert generation.warnings == ["timeout 5 s ended it; raise it, or ask for less"]
    nothing = endless(tokenizer, timeout=0)
    assert (nothing.answer, nothing.finish_reason) == ("", "length")


def test_async_for() -> None:
    model, tokenizer = load("demo")
    together = generate(model, tokenizer, "Count to 37.", seed=0)

    async def work() -> list[mlx_dg.Block]:
        generation = generate(model, tokenizer, "Count to 37.", seed=0)
        return [block async for block in generation]

    assert [block.answer for block in asyncio.run(work())] == [block.answer for block in together]


def test_a_cancelled_task_closes_its_generation(tokenizer: Tokenizer) -> None:
    running = threading.Event()

    def watch(_: mlx_dg.Step) -> None:
        running.set()
        time.sleep(0.01)

    generation = endless(tokenizer, sure=4.0, on_step=watch)

    async def consume() -> None:
        async for _ in generation:
            pass

    async def work() -> None:
        task = asyncio.create_task(consume())
        await asyncio.to_thread(running.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())
    assert generation.state == "closed"
    assert generation.blocks == []


def test_a_pickle_shows_all_that_a_finished_generation_has() -> None:
    model, tokenizer = load("demo")
    generation = generate(model, tokenizer, "JSON for Oslo", seed=0, schema=CITIES, trace=True)
    with pytest.raises(GenerationError, match="a generation that is not started cannot be pickled"):
        pickle.dumps(generation)
    whole = generation.to_dict()
    copy = pickle.loads(pickle.dumps(generation))
    assert copy.to_dict() == whole == json.loads(copy.to_json())
    assert (copy.blocks, copy.settings, copy.state) == (generation.blocks, generation.settings, "ended")
    assert copy.parsed == generation.parsed
    assert copy.trace is not None
    assert copy.trace.total_steps == generation.stats.denoising_steps
    assert copy.tokenizer is None
    assert generation.parsed[0]["city"] in copy._repr_mimebundle_()["text/html"]


def test_preview_is_the_text_that_would_be_delivered(tokenizer: Tokenizer) -> None:
    thought = tokenizer.encode("<|channel>thought\nhm<channel|>")
    canvases = [[*thought, *full_canvas(tokenizer)][:LENGTH], tokenizer.encode("c<turn|>junk")]
    previews: list[Any] = []
    generation = scripted_generation(
        tokenizer, canvases, on_step=lambda step: previews.append(generation.preview(step))
    )
    final = (generation.thought, generation.answer)
    assert previews[-1] == final
    assert previews[0] == (generation.blocks[0].thought, generation.blocks[0].answer)
    assert not final[1].endswith("junk")


def test_an_answer_that_the_limit_ends_is_cut() -> None:
    """One city of three: complete JSON, but not what the model would have said."""
    model, tokenizer = load("demo")
    settings: dict[str, Any] = {"seed": 0, "schema": CITIES}
    whole = generate(model, tokenizer, "JSON for Paris, Rome and Oslo", **settings)
    assert (whole.finish_reason, whole.warnings) == ("stop", [])
    short = generate(model, tokenizer, "JSON for Paris, Rome and Oslo", max_new_tokens=20, **settings)
    assert isinstance(short.parsed, list)
    assert short.finish_reason == "length"
    assert short.warnings == [
        "max_new_tokens 20 ended the answer early, where its grammar allows an end; raise it"
    ]


def test_a_repair_alone_is_not_a_cut(tokenizer: Tokenizer) -> None:
    """The model writes what the pattern forbids, and there is room."""
    ids = [*tokenizer.encode("maybe"), TURN_END]
    generation = scripted_generation(tokenizer, lambda *_: ids, regex="yes|no", seed=0)
    assert (generation.finish_reason, generation.warnings) == ("stop", [])
    assert generation.answer in ("yes", "no")
    assert generation.stats.grammar_repairs > 0


def test_a_plain_answer_that_the_limit_cuts_has_a_warning(tokenizer: Tokenizer) -> None:
    generation = endless(tokenizer, max_new_tokens=70)
    assert generation.finish_reason == "length"
    assert generation.warnings == ["max_new_tokens 70 cut the answer off; raise it"]


def test_the_end_of_a_turn_ends_it_whatever_stop_ids_the_files_name(tokenizer: Tokenizer) -> None:
    for end in ("<turn|>", "<|tool_response>"):
        for stop_ids in (None, 1, 5):
            model: Any = Scripted([tokenizer.encode(f"Oslo.{end}The3TheTherer")])
            model.generation_config = Settings.of(model.generation_config, eos_token_id=1)
            generation = generate(model, tokenizer, "hi", eos_token_id=stop_ids)
            assert (generation.answer, generation.finish_reason) == ("Oslo.", "stop")


def test_the_default_limit_is_several_canvases_and_gives_way_to_context_and_memory(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert endless(tokenizer).settings.max_new_tokens == 2048
    model: Any = Scripted([])
    assert generate(model, tokenizer, [5] * 3000).settings.max_new_tokens == 1088  # 17 canvases of 64
    with pytest.raises(InputError, match="the context holds 4096"):
        generate(model, tokenizer, [5] * 3000, max_new_tokens=2048)
    model = Scripted(lambda *_: full_canvas(tokenizer))
    full = generate(model, tokenizer, [5] * 4000)
    assert len(full.token_ids) == 64
    assert full.warnings == ["the context of 4096 tokens cut the answer off; shorten the prompt"]
    monkeypatch.setattr("mlx_diffusiongemma.request.fits", lambda model, prompt, new, *_: new <= 300)
    assert endless(tokenizer).settings.max_new_tokens == 256


@pytest.mark.slow
def test_a_batch_takes_any_iterable_in_parts_and_shares_the_time() -> None:
    model, tokenizer = load("demo")
    questions = [f"What is {n} + 30?" for n in range(12, 17)]
    alone = [generate(model, tokenizer, question, seed=1).answer for question in questions]
    for batch_size in (None, 1, 2, 5):
        generations = generate_batch(model, tokenizer, iter(questions), seed=1, batch_size=batch_size)
        start = time.perf_counter()
        assert [each.answer for each in generations] == alone
        elapsed = time.perf_counter() - start
        assert sum(each.stats.seconds for each in generations) <= elapsed


def test_a_batch_of_an_array(tokenizer: Tokenizer) -> None:
    model: Any = Scripted([[*tokenizer.encode("yes"), TURN_END]])
    generations = generate_batch(model, tokenizer, np.array(["hi", "you"]))
    assert [each.answer for each in generations] == ["yes", "yes"]


@pytest.mark.parametrize("prompts", ["hi", {"a": 1}, 5, [], iter([]), np.array("a")])
def test_a_batch_of_nothing_is_refused(tokenizer: Tokenizer, prompts: Any) -> None:
    model: Any = Scripted([])
    with pytest.raises(InputError, match="prompts: "):
        generate_batch(model, tokenizer, prompts)


def test_all_warnings_of_a_block_are_there(tokenizer: Tokenizer) -> None:
    generation = endless(tokenizer, sure=1.0, max_new_tokens=20, max_denoising_steps=2)
    assert generation.finish_reason == "length"
    first, second = generation.warnings
    assert first.startswith("not converged")
    assert second == "max_new_tokens 20 cut the answer off; raise it"
    assert generation.blocks[-1].warning == f"{first}; {second}"


def test_a_failed_generation_stays_failed(tokenizer: Tokenizer) -> None:
    def fail(_: mlx_dg.Step) -> None:
        raise ZeroDivisionError

    generation = endless(tokenizer, on_step=fail)
    with pytest.raises(ZeroDivisionError), generation:
        str(generation)
    for failed in (generation, pickle.loads(pickle.dumps(generation))):
        assert failed.state == "failed"
        with pytest.raises(GenerationError, match="this generation failed"):
            str(failed)


def test_a_tool_call_that_a_timeout_cuts_is_delivered_with_its_error(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("mlx_diffusiongemma.writer.time.monotonic", lambda: now[0])
    ids = (tokenizer.encode("<|tool_call>call:f{a:") + tokenizer.encode("1 ") * LENGTH)[:LENGTH]
    generation = scripted_generation(tokenizer, lambda *_: ids, timeout=5)
    next(iter(generation))
    now[0] = 6.0
    (call,) = generation.tool_calls
    assert (call.name, generation.finish_reason) == ("f", "length")
    assert call.error is not None
