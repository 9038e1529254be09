"""Rows of a batch: one that closes, one that ends before the other, and tries of one canvas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_diffusiongemma.control.draft import Draft
from mlx_diffusiongemma.engine.batch import Batch, Finished
from mlx_diffusiongemma.engine.constraint import CanvasSpec, Reroll, Stand, Verdict
from mlx_diffusiongemma.engine.denoise import Stepped
from mlx_diffusiongemma.engine.row import Committed, Row, RowKey
from mlx_diffusiongemma.engine.samplers import StableAndConfident
from mlx_diffusiongemma.engine.settings import Settings
from mlx_diffusiongemma.engine.state import CanvasState
from mlx_diffusiongemma.errors import InputError

SPEC = CanvasSpec(64, 704, (106,), 0)


class Rerolling:
    """A constraint that accepts the canvas of try number `tries`, and remarks on the tries before."""

    needs_logits = False

    def __init__(self, tries: int, remark: str = ""):
        self.tries, self.remark = tries, remark

    def begin(self, written: Sequence[int]) -> Mapping[int, int]:
        return {}

    def review(self, canvas: Any, best: Any) -> Verdict:
        number = canvas.rerolls["test"]
        if self.remark:
            return Stand(remark=self.remark if number == 0 else "")
        return Stand() if number >= self.tries else Reroll("test")

    def commit(self, canvas: Any, ids: Sequence[int]) -> None:
        pass


def rows_of(demo: Any, *constraints: list[Any], **settings: Any) -> list[Row]:
    config = Settings.of(demo[0].generation_config, max_new_tokens=64, **settings)
    prompt = demo[1].prompt("Count to 9.")
    return [Row(prompt, config, SPEC, RowKey(1, number), list(c)) for number, c in enumerate(constraints)]


def committed(events: list[Any]) -> list[Committed]:
    return [each for event in events if isinstance(event, Finished) for each in event.committed]


def test_a_closed_row_is_not_denoised_again(demo: Any) -> None:
    rows = rows_of(demo, [Rerolling(1)], [Rerolling(20)])
    for event in Batch(demo[0], rows).run():
        if isinstance(event, Stepped) and event.rows == (1,):
            rows[1].closed = True
    assert rows[0].finish_reason is not None
    assert rows[1].tries.number == 3  # two with the other row, and the one that it was closed in


def test_a_remark_on_an_earlier_try_does_not_remain(demo: Any) -> None:
    (one,) = committed(list(Batch(demo[0], rows_of(demo, [Rerolling(0, "early"), Rerolling(1)])).run()))
    assert one.tries.rerolls == {"test": 1}
    assert one.tries.remarks == ()


def test_a_row_that_has_ended_keeps_its_rule_and_its_probabilities(demo: Any) -> None:
    def first(state: CanvasState) -> mx.array:
        return mx.array([True, False])

    def second(state: CanvasState) -> mx.array:
        calls.append(1)
        return mx.array([False, len(calls) == 3])

    calls: list[int] = []
    never = StableAndConfident(0, 0.0)
    events = list(Batch(demo[0], rows_of(demo, [], [], stop=[never, first, second]), watched=True).run())
    assert [each.stopped_by for each in committed(events)] == [first, second]
    assert [each.tries.steps for each in committed(events)] == [1, 3]
    steps = [event.step for event in events if isinstance(event, Stepped)]
    for step in steps:
        np.testing.assert_array_equal(step.logprobs[0], steps[0].logprobs[0])
        np.testing.assert_array_equal(step.draft_ids[0], steps[0].draft_ids[0])
    assert (steps[2].logprobs[1] != steps[0].logprobs[1]).any()


def test_rows_of_a_batch_share_settings_and_draft(demo: Any) -> None:
    for other in (rows_of(demo, [], t_max=0.9), rows_of(demo, [Draft([7] * 64, 0.5)])):
        with pytest.raises(InputError, match="same settings and draft"):
            Batch(demo[0], [*rows_of(demo, []), *other])
