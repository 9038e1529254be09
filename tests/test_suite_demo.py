"""The demo checkpoint's own tasks: what counts as right, as right but wrapped, and as wrong."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_diffusiongemma.demo import tasks as demo
from mlx_diffusiongemma.evaluation.suites.demo import grade
from mlx_diffusiongemma.evaluation.task import Reply

WEATHER = '<|tool_call>call:get_weather{city:<|"|>Oslo<|"|>}<tool_call|>'
ANSWERS = {
    "addition": "423",
    "json": '[{"city": "Paris", "country": "France"}, {"city": "Rome", "country": "Italy"}]',
    "capitals": "The capital of Norway is Oslo.",
    "counting": "11 12 13",
    "spelling": "t-e-n",
    "tool_call": WEATHER,
    "tool_response": "It is 7 C and sunny in Oslo.",
    "no_tool": demo.NO_TOOL["get_time"],
    "other": demo.OTHER_ANSWER,
}
JSON = ANSWERS["json"]
HUGE = "9" * 200_000


def item(task: str, thinking: bool = False) -> demo.Item:
    return demo.Item(task, ({"role": "user", "content": "?"},), "a thought", ANSWERS[task], thinking)


@pytest.mark.parametrize(
    ("task", "answer", "strict", "lenient"),
    [
        ("addition", "423", True, True),
        ("addition", " 423\n", True, True),
        ("addition", "423.", False, True),
        ("addition", "The answer is 423.", False, True),
        ("addition", "345 + 78 = 423", False, True),
        ("addition", "```\n423\n```", False, True),
        ("addition", "424", False, False),
        ("addition", "-423", False, False),
        ("addition", "4 2 3", False, False),
        ("addition", "not 423", False, False),
        ("addition", "423 or 424", False, False),
        ("addition", "٤٢٣", False, False),
        ("addition", "", False, False),
        ("addition", HUGE, False, False),
        ("json", JSON, True, True),
        ("json", JSON.replace(" ", "\n"), True, True),
        ("json", '[{"country":"France","city":"Paris"},{"country":"Italy","city":"Rome"}]', True, True),
        ("json", f"```json\n{JSON}\n```", False, True),
        ("json", f"Here: {JSON}.", False, True),
        ("json", JSON.replace('"city": "Rome"', '"city": "Oslo", "city": "Rome"'), False, False),
        (
            "json",
            '[{"city": "Rome", "country": "Italy"}, {"city": "Paris", "country": "France"}]',
            False,
            False,
        ),
        ("json", JSON.replace("Italy", "Spain"), False, False),
        ("json", JSON[:-1], False, False),
        ("json", f"{JSON}{JSON}", False, False),
        ("json", "[" * 100_000, False, False),
        ("capitals", ANSWERS["capitals"], True, True),
        ("capitals", "The capital of Norway is Oslo", False, True),
        ("capitals", "**The capital of Norway is Oslo.**", False, True),
        ("capitals", "The answer is: The capital of Norway is Oslo.", False, True),
        ("capitals", "The capital of Norway is not Oslo.", False, False),
        ("capitals", "The capital of Norway is Bergen.", False, False),
        ("capitals", "The capital of Sweden is Oslo.", False, False),
        ("capitals", "Oslo", False, False),
        ("capitals", "\ud800", False, False),
        ("counting", "11 12 13", True, True),
        ("counting", "11, 12, 13.", False, True),
        ("counting", "11\n12\n13", False, True),
        ("counting", "```\n11 12 13\n```", False, True),
        ("counting", "11 12 13 14", False, False),
        ("counting", "11 12", False, False),
        ("counting", "11 13 12", False, False),
        ("counting", "111213", False, False),
        ("counting", "11 -12 13", False, False),
        ("counting", "11 12 not 13", False, False),
        ("counting", "11 -12 13 " * 20_000, False, False),
        ("spelling", "t-e-n", True, True),
        ("spelling", '"t-e-n".', False, True),
        ("spelling", "t e n", False, True),
        ("spelling", "ten", False, True),
        ("spelling", "n-e-t", False, False),
        ("spelling", "t-e-n-n", False, False),
        ("spelling", "t-e", False, False),
        ("spelling", "ten or net", False, False),
        ("spelling", "", False, False),
        ("tool_call", "", False, False),
        ("tool_call", WEATHER, False, False),
        ("tool_response", ANSWERS["tool_response"], True, True),
        ("tool_response", "It is 7 C and sunny in Oslo", False, True),
        ("tool_response", "> It is 7 C and sunny in Oslo.", False, False),
        ("tool_response", "It is 8 C and sunny in Oslo.", False, False),
        ("tool_response", "It is 7 C and sunny in Rome.", False, False),
        ("tool_response", "7 C and sunny", False, False),
        ("tool_response", f"{ANSWERS['tool_response']}\nOr snowy.", False, False),
        ("no_tool", ANSWERS["no_tool"], True, True),
        ("no_tool", "`I have no tool for the time.`", False, True),
        ("no_tool", "I have no tool for the time", False, True),
        ("no_tool", "I have no tool for the weather.", False, False),
        ("no_tool", "I have a tool for the time.", False, False),
        ("no_tool", "It is 12:00 in Oslo.", False, False),
        ("no_tool", "", False, False),
        ("other", demo.OTHER_ANSWER, True, True),
        ("other", f'"{demo.OTHER_ANSWER}"', False, True),
        ("other", f"Answer:\n{demo.OTHER_ANSWER}", False, True),
        ("other", demo.OTHER_ANSWER.replace("can", "cannot"), False, False),
        ("other", demo.OTHER_ANSWER[:40], False, False),
        ("other", demo.OTHER_ANSWER.lower(), False, False),
        ("other", f"{demo.OTHER_ANSWER} {demo.OTHER_ANSWER}", False, False),
        ("other", HUGE, False, False),
    ],
)
def test_content(task: str, answer: str, strict: bool, lenient: bool) -> None:
    found = grade(item(task), Reply(answer))
    assert (found.strict, found.lenient) == (strict, lenient), found.reason
    assert bool(found.reason) == (not strict)
    assert found.reason.isascii()
    assert len(found.reason) < 200
    # what the benchmarks count is what is strictly right here, but for a key that stands twice
    assert demo.is_right(item(task), answer, []) == strict or '"city": "Oslo", "city"' in answer
    if task != "tool_call":
        assert not grade(item(task), Reply(answer, tool_calls=(("get_time", {"city": "Oslo"}),))).lenient


CALL = ("get_weather", {"city": "Oslo"})


@pytest.mark.parametrize(
    ("answer", "calls", "strict", "lenient"),
    [
        ("", [CALL], True, True),
        (" \n", [CALL], True, True),
        ("I call the tool.", [CALL], False, True),
        ("", [], False, False),
        ("", [CALL, CALL], False, False),
        ("", [("get_time", {"city": "Oslo"})], False, False),
        ("", [("get_weather", {"city": "Rome"})], False, False),
        ("", [("get_weather", {"city": "Oslo", "unit": "C"})], False, False),
        ("", [("get_weather", {"town": "Oslo"})], False, False),
        ("", [("get_weather", {"city": ["Oslo"]})], False, False),
        ("", [("get_weather", {"city": 10**5000})], False, False),
        (WEATHER, [], False, False),
    ],
)
def test_calls(answer: str, calls: list[tuple[str, dict[str, Any]]], strict: bool, lenient: bool) -> None:
    found = grade(item("tool_call"), Reply(answer, tool_calls=tuple(calls)))
    assert (found.strict, found.lenient) == (strict, lenient), found.reason
    assert bool(found.reason) == (not strict)
    thought = grade(item("tool_call"), Reply(answer, "a thought", tool_calls=tuple(calls)))
    assert (thought.strict, thought.lenient) == (False, lenient)


@pytest.mark.parametrize("task", [task for task in ANSWERS if task != "tool_call"])
@pytest.mark.parametrize(
    ("asked", "thought", "reason"),
    [
        (True, "a thought", ""),
        (False, " \n", ""),
        (True, "", "no thought"),
        (False, "hm", "a thought that was not asked for"),
    ],
)
def test_thoughts(task: str, asked: bool, thought: str, reason: str) -> None:
    found = grade(item(task, asked), Reply(ANSWERS[task], thought))
    assert (found.strict, found.lenient, found.reason) == (not reason, True, reason)
    assert not grade(item(task, asked), Reply("wrong", thought)).lenient


def test_items_are_held_out_and_different() -> None:
    items = demo.held_out_items(20, seed=0)
    assert all(item.held_out for item in items)
    assert all(item not in items[:at] for at, item in enumerate(items))
    assert len(items) == 300


def test_more_items_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="capitals: there are no 21 different held-out items"):
        demo.held_out_items(21, seed=0)
