"""Tools in the forms of OpenAI, Anthropic and the Model Context Protocol, through both templates."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest
from support.fixtures_tokenizer import one_line

from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.text.tokenizer import Tokenizer
from mlx_diffusiongemma.text.tool_descriptions import described_tools

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Where."}, "days": {"type": "integer"}},
    "required": ["city"],
}
BASE = {"name": "get_weather", "description": "Get the weather."}
OPENAI: dict[str, Any] = {"type": "function", "function": {**BASE, "parameters": SCHEMA}}
DECLARED = (
    '<|tool>declaration:get_weather{description:<|"|>Get the weather.<|"|>,parameters:{properties:{'
    'city:{description:<|"|>Where.<|"|>,type:<|"|>STRING<|"|>},days:{type:<|"|>INTEGER<|"|>}},'
    'required:[<|"|>city<|"|>],type:<|"|>OBJECT<|"|>}}<tool|>'
)


class McpTool(pydantic.BaseModel):
    """As the protocol's Python client returns them."""

    name: str
    title: str | None = None
    description: str | None = None
    inputSchema: dict[str, Any]
    meta: dict[str, Any] | None = pydantic.Field(alias="_meta", default=None)


MCP = {**BASE, "title": "Weather", "outputSchema": {"type": "object"}, "annotations": {"readOnlyHint": True}}
MCP |= {"inputSchema": {"$schema": "http://json-schema.org/draft-07/schema#", **SCHEMA}, "_meta": {"a/b": 1}}
MCP |= {"icons": [{"src": "https://example.com/icon.png"}], "execution": {"taskSupport": "optional"}}


@pytest.mark.parametrize("tool", [
    OPENAI,
    {"type": "function", "function": {**BASE, "parameters": SCHEMA, "strict": True}},
    {**OPENAI, "strict": True, "cache_control": {"type": "ephemeral"}},
    {"type": "function", **BASE, "parameters": SCHEMA, "strict": True},  # OpenAI's Responses
    {**BASE, "parameters": SCHEMA},
    {**BASE, "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}},  # Anthropic's
    {"type": "custom", **BASE, "input_schema": SCHEMA, "defer_loading": False, "input_examples": []},
    MCP,
    {"type": "function", "function": MCP},
    {"type": "function", "function": {**BASE, "input_schema": SCHEMA}},
    McpTool(**BASE, title="Weather", inputSchema=SCHEMA),
    {**BASE, "parameters": None, "inputSchema": SCHEMA, "strict": None},
    {**BASE, "parameters": {key: value for key, value in SCHEMA.items() if key != "type"}},
])  # fmt: skip
def test_each_form_is_the_same_declaration(chat_tokenizer: Tokenizer, tool: Any) -> None:
    ids = chat_tokenizer.prompt_ids("hi", tools=[tool])
    assert DECLARED in chat_tokenizer.decode(ids)
    assert ids == chat_tokenizer.prompt_ids("hi", tools=[OPENAI])


@pytest.mark.parametrize("tool", [
    {"name": "now"},
    {"name": "now", "description": None, "parameters": None},
    {"name": "now", "inputSchema": {}},
    {"type": "function", "function": {"name": "now", "parameters": {}}},
])  # fmt: skip
def test_a_tool_without_arguments(chat_tokenizer: Tokenizer, tool: Any) -> None:
    text = chat_tokenizer.decode(chat_tokenizer.prompt_ids("hi", tools=[tool]))
    assert '<|tool>declaration:now{description:<|"|><|"|>}<tool|>' in text


@pytest.mark.parametrize(("tool", "message"), [
    ({**BASE, "params": SCHEMA}, "get_weather has the unknown key 'params'; did you mean 'parameters'?"),
    ({**BASE, "parametres": SCHEMA}, "unknown key 'parametres'; did you mean 'parameters'?"),
    ({**BASE, "inputschema": SCHEMA}, "unknown key 'inputschema'; did you mean 'input_schema'?"),
    ({**BASE, "input-schema": SCHEMA}, "unknown key 'input-schema'; did you mean 'input_schema'?"),
    ({"name": "f", "desciption": "x"}, "unknown key 'desciption'; did you mean 'description'?"),
    ({"type": "function", "fucntion": BASE}, "unknown key 'fucntion'; did you mean 'function'?"),
    ({"type": "function", "function": {**BASE, "params": SCHEMA}}, "unknown key 'params'"),
    ({**OPENAI, "params": SCHEMA}, "get_weather has the unknown key 'params'"),
    ({"name": "f", "zzz": 1}, "unknown key 'zzz'; use name, description, parameters"),
    ({"name": "f", 3: 1}, "unknown key '3'"),
    ({"functionDeclarations": [BASE]}, "item 0 has the unknown key 'functionDeclarations'"),
    ({"parameters": SCHEMA}, "tools: item 0 has no name"),
    ({"type": "function", "function": {"name": ""}}, "tools: item 0 has no name"),
    ({"type": "function", "function": "get_weather"}, "tools: item 0 has no name"),
    ({"type": "web_search"}, "tools: item 0 has no name"),
    ({"type": "bash_20250124", "name": "bash"}, "tools: bash has type 'bash_20250124'; only functions"),
    ({**BASE, "parameters": SCHEMA, "inputSchema": {}}, "has both parameters and inputSchema"),
    ({**BASE, "parameters": [SCHEMA]}, "get_weather: parameters is list; give a JSON Schema"),
    ({**BASE, "inputSchema": "{}"}, "get_weather: inputSchema is str; give a JSON Schema"),
    ({**BASE, "parameters": {"properties": {1, 2}}}, "tools: get_weather cannot be written as JSON"),
    ({"name": "f", "description": ["x"]}, "tools: f has a description of type list"),
])  # fmt: skip
def test_refused_descriptions(chat_tokenizer: Tokenizer, tool: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        chat_tokenizer.prompt_ids("hi", tools=[tool])
    assert message in one_line(error)


def test_a_deep_description_is_refused_in_one_line() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"properties": deep}
    with pytest.raises(InputError, match="tools: f cannot be written as JSON"):
        described_tools([{"name": "f", "parameters": deep}])


def test_what_templates_may_show_is_kept() -> None:
    """Other templates write the whole description; what another protocol adds is not for the model."""
    function = {**BASE, "strict": True, "response": {"type": "object"}, "return": {"type": "string"}}
    tool = {**function, "inputSchema": SCHEMA, "annotations": {}, "title": "t"}
    assert described_tools([tool]) == [{"type": "function", "function": {**function, "parameters": SCHEMA}}]
