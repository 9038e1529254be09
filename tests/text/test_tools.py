"""Tools, there and back: a call that was parsed, its result as messages, and the answer that follows."""

from __future__ import annotations

from typing import Any

import pytest
from support.fixtures_tokenizer import one_line

from mlx_diffusiongemma.checkpoint.loading import load
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.generation import generate
from mlx_diffusiongemma.text.prompts import tool_messages
from mlx_diffusiongemma.text.tokenizer import Tokenizer
from mlx_diffusiongemma.text.tool_calls import ToolCall, parse_tool_call

PARIS = ToolCall("get_weather", {"city": "Paris"})
OSLO = ToolCall("get_time", {"city": "Oslo", "hours": [1, 2.5], "exact": True})
BROKEN = parse_tool_call('call:get_time{city:<|"|>Oslo}')
NAMELESS = parse_tool_call("{}")
USER = {"role": "user", "content": "What is the weather in Paris?"}


def get_weather(city: str) -> str:
    """Get the weather in a city.

    Args:
        city: City name
    """
    return f"{len(city)} C and windy"


def get_time(city: str) -> str:
    """Get the time in a city.

    Args:
        city: City name
    """
    return f"1{len(city)}:07"


FUNCTIONS = {"get_weather": get_weather, "get_time": get_time}


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("city", ["Oslo", "Nairobi"])
def test_round_trip_on_the_demo(chat_tokenizer: Tokenizer, city: str, thinking: bool) -> None:
    """With thinking on, the prompt of the second turn opens the thought itself."""
    model, _ = load("demo")
    how: dict[str, Any] = {"tools": list(FUNCTIONS.values()), "thinking": thinking, "seed": len(city)}
    for question, expected in [
        (f"How is the weather in {city}?", f"It is {len(city)} C and windy in {city}."),
        (f"Time in {city}?", f"It is 1{len(city)}:07 in {city}."),
    ]:
        messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
        calls = generate(model, chat_tokenizer, messages, **how).tool_calls
        results = [FUNCTIONS[call.name](**call.arguments) for call in calls if call.error is None]
        messages += tool_messages(calls, results)
        answered = generate(model, chat_tokenizer, messages, **how)
        assert (answered.answer, answered.tool_calls) == (expected, [])
        assert answered.thought == ("The tool has answered." if thinking else "")


def test_several_calls_with_results_of_all_kinds(chat_tokenizer: Tokenizer) -> None:
    calls = [PARIS, OSLO, PARIS]
    messages = tool_messages(calls, [{"sky": "ü", "at": (1, None)}, 12, "fine"])
    text = chat_tokenizer.decode(chat_tokenizer.prompt_ids([USER, *messages]))
    weather = '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|>'
    assert text.endswith(
        f"<|turn>model\n{weather}"
        '<|tool_call>call:get_time{city:<|"|>Oslo<|"|>,exact:true,hours:[1,2.5]}<tool_call|>'
        f"{weather}"
        '<|tool_response>response:get_weather{value:<|"|>{"sky": "ü", "at": [1, null]}<|"|>}<tool_response|>'
        '<|tool_response>response:get_time{value:<|"|>12<|"|>}<tool_response|>'
        '<|tool_response>response:get_weather{value:<|"|>fine<|"|>}<tool_response|>'
    )  # and no new turn: calls, responses and the answer share one
    ids = [call["id"] for call in messages[0]["tool_calls"]]
    assert ids == [message["tool_call_id"] for message in messages[1:]]
    assert len(set(ids)) == 3


def test_a_malformed_call_takes_no_result_and_is_reported_to_the_model(chat_tokenizer: Tokenizer) -> None:
    cut_off = parse_tool_call('call:get_time{city:<|"|>Rome<|"|>}', closed=False)
    assert cut_off.arguments  # though complete, it is not closed: nobody may take it as made
    messages = tool_messages([BROKEN, PARIS, NAMELESS, cut_off], ["fine"])
    broken, fine, nameless, cut = messages[1:]
    assert broken["content"] == (
        'Error: the call was not executed (a string is not closed by "). It was: call:get_time{city:"Oslo}'
    )
    assert fine["content"] == "fine"
    assert (nameless["name"], "name is missing" in nameless["content"]) == ("unknown", True)
    arguments = [call["function"]["arguments"] for call in messages[0]["tool_calls"]]
    assert arguments == [{}, PARIS.arguments, {}, {}]
    assert "the call is not closed by" in cut["content"]
    ids = chat_tokenizer.prompt_ids([USER, *messages])
    special = chat_tokenizer.special
    assert ids.count(special.tool_call_open or -1) == ids.count(special.tool_response_open or -1) == 4
    # What the error tells of the delimiters must not act as one.
    assert ids.count(special.tool_call_close or -1) == ids.count(special.tool_response_close or -1) == 4
    assert ids.count(special.quote or -1) == 2 + 4 * 2
    runaway = parse_tool_call("call:f{" + "a:[" * 500)
    assert len(tool_messages([runaway], [])[1]["content"]) < 400


DEEP: list[Any] = []
DEEP.append(DEEP)


@pytest.mark.parametrize(("calls", "results", "message"), [
    ([], [], "tool_calls: empty"),
    (PARIS, [1], "tool_calls: found ToolCall; give"),
    ([{"name": "f"}], ["x"], "tool_calls: item 0 is dict; give generation.tool_calls"),
    ([PARIS], [], "results: found 0 for 1 calls without an error"),
    ([PARIS], ["a", "b"], "results: found 2 for 1 calls"),
    ([BROKEN], ["a"], "results: found 1 for 0 calls"),
    ([PARIS], "a", "results: found str; give a list"),
    ([PARIS], {"get_weather": "a"}, "results: found dict; give a list"),
    ([PARIS], None, "results: found NoneType; give a list"),
    ([PARIS], [{1, 2}], "results: that of get_weather cannot be written as JSON"),
    ([PARIS], [float("nan")], "results: that of get_weather cannot be written as JSON"),
    ([PARIS], [b"x"], "results: that of get_weather cannot be written as JSON"),
    ([PARIS], [DEEP], "results: that of get_weather cannot be written as JSON"),
])  # fmt: skip
def test_refused_results(calls: Any, results: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        tool_messages(calls, results)
    assert message in one_line(error)
