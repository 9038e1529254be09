"""Tokens that a caller pins: they stand where they were pinned, in every canvas, step and candidate."""

from __future__ import annotations

from typing import Any

import pytest
from support.scripted import TURN_END, Scripted

from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.generation import generate

LENGTH = 64


def test_a_pin_holds_at_every_step_and_at_commit(demo: Any) -> None:
    free = generate(*demo, "Count to 37.", seed=0, max_new_tokens=128)
    places = {0: 9, 5: 11, 63: 12, 64: 13, 100: 14}
    seen: list[Any] = []
    held = generate(*demo, "Count to 37.", seed=0, max_new_tokens=128, pins=places, on_step=seen.append)
    blocks = list(held)
    for place, token in places.items():
        block = blocks[place // LENGTH]
        assert block.token_ids[place % LENGTH : place % LENGTH + 1] in ([token], [])  # behind a stop id: none
    assert held.token_ids[:6:5] == [9, 11]
    assert held.token_ids != free.token_ids
    first = list(seen[: blocks[0].denoising_steps])
    assert all(step.canvas_ids[0, 5] == step.draft_ids[0, 5] == 11 and step.accepted[0, 5] for step in first)


def test_pins_may_be_decided_between_blocks(demo: Any) -> None:
    _, tokenizer = demo
    text = (tokenizer.encode("ab ") * LENGTH)[:LENGTH]
    model: Any = Scripted(lambda block, _: text)
    asked: list[tuple[int, int]] = []

    def pins(block: int) -> dict[int, int]:
        asked.append((block, len(generation.blocks)))
        return {3: 200 + block}

    generation = generate(model, tokenizer, "hi", pins=pins, max_new_tokens=192)
    ids = generation.token_ids
    assert asked == [(0, 0), (1, 1), (2, 2)]
    for block in range(3):
        expected = [*text[:3], 200 + block, *text[4:]]
        assert ids[block * LENGTH : (block + 1) * LENGTH] == expected


def test_a_stop_id_may_be_pinned(demo: Any) -> None:
    model: Any = Scripted([(demo[1].encode("ab ") * LENGTH)[:LENGTH]])
    generation = generate(model, demo[1], "hi", pins=[(7, TURN_END)], n=2)
    assert [len(row.token_ids) for row in generation.candidates] == [8, 8]
    assert generation.finish_reason == "stop"


@pytest.mark.parametrize(("arguments", "message"), [
    ({"pins": [(3, 5), (3, 7)]}, "pins: place 3 is pinned to 5 and to 7; keep one"),
    ({"pins": {64: 5}}, r"pins: place 64 of \(64, 5\) is not an integer from 0 to 63"),
    ({"pins": {-1: 5}}, "pins: place -1"),
    ({"pins": {3: 704}}, r"pins: token 704 of \(3, 704\) is not an integer from 0 to 703"),
    ({"pins": {3: "yes"}}, "pins: token 'yes'"),
    ({"pins": {True: 5}}, "pins: place True"),
    ({"pins": 7}, "pins: found int; give a dict"),
    ({"pins": [3, 4]}, "pins: found list; give a dict"),
    ({"pins": {3: 5}, "thinking_budget": 9}, "pins: thinking_budget and answer_reserve also pin tokens"),
    ({"pins": {3: 5}, "regex": "a"}, "pins: schema, regex, grammar and choices also pin tokens"),
])  # fmt: skip
def test_pins_that_contradict_are_refused_before_anything_runs(
    demo: Any, arguments: dict[str, Any], message: str
) -> None:
    model: Any = Scripted([])
    with pytest.raises(InputError, match=message):
        generate(model, demo[1], "hi", max_new_tokens=64, **arguments)
