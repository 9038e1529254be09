"""Chats -> ids, equal to those of Transformers, through the demo's template and the released one."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fixtures_templates import DEMO
from support.fixtures_tokenizer import one_line, write_tokenizer
from support.parsing import property_test
from transformers import PreTrainedTokenizerFast

from mlx_diffusiongemma.demo import tasks
from mlx_diffusiongemma.demo.training import data
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.text.tokenizer import Tokenizer

Chat = list[dict[str, Any]]

USER = {"role": "user", "content": "hi"}
ARGUMENTS = {"b": [1, None, True], "a": {"x": "y"}}
F = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": ARGUMENTS}}
G = {"id": "c2", "type": "function", "function": {"name": "g", "arguments": {}}}
CITY = {"type": "string", "description": "City name", "enum": ["Rome", "Oslo"]}
SCHEMA = {"type": "object", "properties": {"city": CITY, "days": {"type": "integer"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "f", "description": "Find.", "parameters": SCHEMA}}


def parts(*texts: str) -> Chat:
    return [{"type": "text", "text": text} for text in texts]


def calling(*calls: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": list(calls), **others}


def calling_with(arguments: Any) -> dict[str, Any]:
    return calling({"function": {"name": "f", "arguments": arguments}})


def answer(content: str, **others: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **others}


def result(content: Any, call: str = "c1", **others: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call, "content": content, **others}


@pytest.fixture(scope="session")
def reference(chat_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """reference(messages, ...) -> the ids that Transformers makes of them with the same template."""
    directory = tmp_path_factory.mktemp("reference") / "model"
    shutil.copytree(DEMO, directory)
    (directory / "chat_template.jinja").write_text(str(chat_tokenizer.chat_template), encoding="utf-8")
    hf = PreTrainedTokenizerFast.from_pretrained(directory)

    def ids(messages: Chat, **options: Any) -> list[int]:
        options = {"add_generation_prompt": True, "return_dict": False, **options}
        return list(hf.apply_chat_template(messages, **options))

    return ids


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["", "tools"])
@pytest.mark.parametrize("messages", [
    [{"role": "user", "content": " hi \n"}],
    [{"role": "user", "content": parts(" a ", "\nb c\n", " ")}],
    [{"role": "system", "content": " Be brief.\n"}, USER],
    [{"role": "system", "content": parts("Be brief.", " Be kind. ")}, USER],
    [{"role": "developer", "content": "Be brief."}, USER],
    [{"role": "developer", "content": parts("Be brief.", "Be kind.")}, USER],
    [{"role": "system", "content": "s"}, USER, {"role": "developer", "content": "d"}, USER],
    [USER, {"role": "system", "content": parts("late")}, USER],
    [USER, {"role": "assistant", "content": parts(" a ", "b ")}, USER],
    [USER, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}, USER],
    [USER, {"role": "assistant", "content": "<|channel>thought\nhm<channel|> a "}, USER],
    [USER, {"role": "assistant", "content": parts("<|channel>thought\nhm<channel|>a", "b<channel|>")}],
    [USER, {"role": "assistant", "content": "<|channel>thought\nonly"}],
    [USER, calling(F)],
    [USER, calling(F), result("14 C")],
    [USER, calling(F), result(parts(" 14", " C "))],
    [USER, calling(F), result([])],
    [USER, calling(F), result(None)],
    [USER, calling(F), result(3)],
    [USER, calling(F), result(2.5e-7)],
    [USER, calling(F), result(False)],
    [USER, calling(F, G), result("x", "c2"), result("y", "c1")],
    [USER, calling(F, G), result("one")],
    [USER, calling(F), result("x", "other", name="named"), result("y", "other")],
    [USER, calling({"type": "function", "function": F["function"]}), {"role": "tool", "content": "x"}],
    [USER, calling(F), result("x"), {"role": "assistant", "content": "done"}, USER],
    [USER, calling(F), result("x"), calling(G), result("y", "c2")],
    [USER, calling(F), result("x"), calling(G, content="a"), result("y", "c2"), calling(F), result("z")],
    [USER, calling(F, content="I look."), result("x")],
    [USER, calling(F), result("x"), USER],
    [USER, calling(F), {"role": "assistant", "content": "done"}, USER],
    [USER, calling(F, reasoning_content="hm"), result("x")],
    [USER, calling(F, reasoning="hm"), result("x")],
    [USER, calling(F, reasoning_content="old"), result("x"), {"role": "assistant", "content": "a"}, USER],
    [USER, calling(F, reasoning_content="p", reasoning="q"), result("x")],
    [{"role": "assistant", "content": "a"}, USER],
    [USER, calling(tool_calls=[], tool_responses=[{"name": "f", "response": {"b": 1, "a": "x"}}])],
])  # fmt: skip
def test_ids_are_those_of_transformers(
    chat_tokenizer: Tokenizer, reference: Any, messages: Chat, tools: Any, thinking: bool
) -> None:
    expected = reference(messages, tools=tools, enable_thinking=thinking)
    asked: dict[str, Any] = {"tools": tools, "thinking": thinking}
    for allow in (False, True):
        assert chat_tokenizer.prompt_ids(messages, **asked, allow_special_tokens=allow) == expected
    closed = reference(messages, tools=tools, add_generation_prompt=False)
    assert chat_tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=False) == closed


def find(city: str, days: int = 1, kinds: list[str] | None = None) -> dict[str, float]:
    """Find out about the weather.

    Args:
        city: Where.
        days: For how long.
        kinds: What of it.

    Returns:
        Values by name.
    """
    return {city: days, str(kinds): 0.0}


def test_a_function_is_described_as_transformers_does(chat_tokenizer: Tokenizer, reference: Any) -> None:
    assert chat_tokenizer.prompt_ids([USER], tools=[find, TOOL]) == reference([USER], tools=[find, TOOL])


WIND = {"speed": 3, "to": ["N", None], "name": "Föhn"}


@pytest.mark.parametrize(("given", "understood"), [
    (calling(F, content=None), calling(F)),
    (calling({"id": "c1", **F["function"]}), calling(F)),
    ({"role": "model", "content": "a"}, answer("a")),
    ({"role": "assistant", "content": "a", "tool_calls": None, "refusal": None}, answer("a")),
    (calling(F, thinking="hm"), calling(F, reasoning_content="hm")),
    (calling(F, thinking="hm", reasoning=""), calling(F, reasoning_content="hm")),
    ({"role": "assistant", "reasoning": "hm"}, answer("", reasoning="hm")),
    (calling({"function": {"name": "f"}}), calling_with({})),
    (
        calling_with('{"n": [2.50, null, true], "é": "\\u00e9"}'),
        calling_with({"n": [2.5, None, True], "é": "é"}),
    ),
    *((calling_with(arguments), calling_with({})) for arguments in (" {} ", "", " ", None)),
    (calling_with({"t": (1, 2), 3: 4}), calling_with({"t": [1, 2], "3": 4})),
])  # fmt: skip
def test_what_clients_send_becomes_what_the_template_takes(
    chat_tokenizer: Tokenizer, reference: Any, given: Any, understood: Any
) -> None:
    assert chat_tokenizer.prompt_ids([USER, given]) == reference([USER, understood])


@pytest.mark.parametrize(
    "content", [WIND, {}, [1, 2], ["a", "b"], [WIND], [[]], [{"type": "rain"}], ({"mm": 3},), {1: (2, 3)}]
)
def test_other_results_of_tools_become_json(chat_tokenizer: Tokenizer, reference: Any, content: Any) -> None:
    """The released template fails on a mapping and on a list of strings, and drops a list of mappings."""
    text = json.dumps(content, ensure_ascii=False)
    chat = [USER, calling(F), result(content)]
    assert chat_tokenizer.prompt_ids(chat) == reference([*chat[:2], result(text)])


@pytest.mark.parametrize(("message", "error"), [
    (calling_with("city=Paris"), "message 1: the arguments of f are not JSON"),
    (calling_with('{"a": 1, "a": 2}'), "the arguments of f are not JSON ('a' is given twice)"),
    (calling_with('{"a": NaN}'), "NaN is not a JSON number"),
    (calling_with('["Paris"]'), "the arguments of f are JSON, but not an object"),
    (calling_with('"Paris"'), "the arguments of f are JSON, but not an object"),
    (calling_with("null"), "the arguments of f are JSON, but not an object"),
    (calling_with("[" * 9999), "the arguments of f are not JSON"),
    (calling_with(["Paris"]), "the arguments of f are list"),
    (calling_with({"a": {1}}), "the arguments of f cannot be written as JSON"),
    (calling_with({"a": float("inf")}), "cannot be written as JSON"),
    (calling({"function": {"arguments": {}}}), "message 1 has a tool call without a name"),
    (calling("f"), "message 1 has a tool call of type str"),
    (calling(tool_calls={"name": "f"}), "message 1 has tool_calls of type dict"),
    (calling(F, reasoning_content=["hm"]), "message 1 has reasoning that is not text"),
    ({"role": "user", "content": [{"type": "text"}]}, "message 1 has a content part without text; give"),
    (result("x"), "message 1 is a tool's, but no tool call comes before it"),
])  # fmt: skip
def test_refused(chat_tokenizer: Tokenizer, message: Any, error: str) -> None:
    with pytest.raises(InputError) as raised:
        chat_tokenizer.prompt_ids([USER, message])
    assert error in one_line(raised)


@pytest.mark.parametrize("content", [float("nan"), {"a": {1}}, b"x", [object()], [{"type": "image"}]])
def test_refused_results(chat_tokenizer: Tokenizer, content: Any) -> None:
    with pytest.raises(InputError, match="message 2 has"):
        chat_tokenizer.prompt_ids([USER, calling(F), result(content)])
    with pytest.raises(InputError, match="message 3 is a tool's"):
        chat_tokenizer.prompt_ids([USER, calling(F), USER, result("x")])


# --- the demo's template, against the released one --------------------------------------------------------

words = st.text(st.sampled_from(" \naé<|>1"), max_size=5)
contents = words | st.lists(st.builds(lambda text: {"type": "text", "text": text}, words), max_size=3)
thoughts = words | st.sampled_from(
    ["<|channel>thought\na<channel|>b", "a<channel|>b<channel|>", "b<|channel>"]
)
names = st.sampled_from(["f", "g", "maps:route"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["b", "A", "a"]), inner, max_size=2)
    ),
    max_leaves=5,
)
called = st.fixed_dictionaries({"name": names, "arguments": st.dictionaries(words, values, max_size=2)})
call_ids = st.sampled_from(["c1", "c2"])
calls = st.fixed_dictionaries({"function": called}, optional={"id": call_ids})
reasoning = dict.fromkeys(("reasoning", "reasoning_content"), words)
answer_keys = {"role": st.just("assistant"), "content": thoughts | contents}
answers = st.fixed_dictionaries(answer_keys, optional=reasoning)
call_lists = st.lists(calls, min_size=1, max_size=2)
asks = st.fixed_dictionaries({**answer_keys, "tool_calls": call_lists}, optional=reasoning)
results = st.fixed_dictionaries(
    {"role": st.just("tool"), "content": contents | st.none() | st.integers() | st.booleans()},
    optional={"tool_call_id": call_ids, "name": names},
)
users = st.fixed_dictionaries({"role": st.just("user"), "content": contents})
rounds = st.builds(lambda ask, got: [ask, *got], asks, st.lists(results, max_size=2))
systems = st.fixed_dictionaries({"role": st.sampled_from(["system", "developer"]), "content": contents})
turns = st.lists(st.lists(users | answers | systems, min_size=1, max_size=2) | rounds, min_size=1, max_size=4)
schemas: st.SearchStrategy[Any] = st.deferred(
    lambda: st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["object", "string", "array", "integer", "STRING", ["string", "null"]]),
            "description": words,
            "enum": st.lists(words, max_size=2),
            "nullable": st.booleans(),
            "items": schemas | st.just({"type": "string", "minimum": 3, "enum": ["a"], "default": None}),
            "properties": st.dictionaries(st.sampled_from(["b", "A", "a"]), schemas, max_size=2),
            "required": st.lists(words, max_size=2),
            "additionalProperties": st.booleans(),
            "default": values,
        },
    )
)
objects = st.fixed_dictionaries(
    {"type": st.just("object"), "properties": st.dictionaries(words, schemas, max_size=2)},
    optional={"required": st.lists(words, max_size=2)},
)
responses = st.fixed_dictionaries({"type": st.just("object")}, optional={"description": words})
described = {"description": words, "parameters": objects, "response": responses}
functions = st.fixed_dictionaries({"name": names}, optional=described)
tool_lists = st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": functions}), max_size=2)


@given(chat=turns, tools=tool_lists, thinking=st.booleans(), more=st.booleans(), keep=st.booleans())
@property_test
def test_the_demos_template_renders_what_the_released_one_does(
    released_template: str, chat: list[Chat], tools: Any, thinking: bool, more: bool, keep: bool
) -> None:
    hf = PreTrainedTokenizerFast(tokenizer_file=str(DEMO / "tokenizer.json"), bos_token="<bos>")
    demo = (DEMO / "chat_template.jinja").read_text(encoding="utf-8")
    messages = [message for turn in chat for message in turn]
    options = {"enable_thinking": thinking, "preserve_thinking": keep, "add_generation_prompt": more}
    options |= {"tools": tools or None, "tokenize": False}
    rendered = hf.apply_chat_template(messages, chat_template=demo, **options)
    assert rendered == hf.apply_chat_template(messages, chat_template=released_template, **options)


@pytest.mark.parametrize("family", tasks.FAMILIES)
def test_the_demo_was_trained_on_the_ids_of_either_template(chat_tokenizer: Tokenizer, family: str) -> None:
    """The training data renders prompts itself, and there the model writes the header of its thought."""
    rng = random.Random(0)
    for _ in range(40):
        item = tasks.draw(rng, family, held_out=False)
        system = [{"role": "system", "content": "Be brief."}] if rng.random() < 0.3 else []
        earlier = [USER, answer("Hello.")] if rng.random() < 0.3 else []
        messages = (*system, *earlier, *item.messages)
        ids = chat_tokenizer.prompt_ids(messages, thinking=item.thinking, tools=item.declarations)
        trained = data.render_prompt(tasks.Item(item.task, messages, "", "", item.thinking, item.tools))
        is_opened = item.thinking and item.task == "tool_response"
        assert ids == chat_tokenizer.encode(trained + ("<|channel>thought\n" if is_opened else ""))


# --- templates that take less -----------------------------------------------------------------------------


@pytest.mark.parametrize("body", [
    "{{ m.content | trim }}",  # writes a list as Python does
    "{{ m.content + '' }}",  # fails on one
    # takes nothing but parts of users
    "{% for part in m.content if m.role == 'user' %}{{ part.text }}{% endfor %}"
    "{{ m.content if m.role != 'user' }}",
])  # fmt: skip
def test_it_is_the_template_that_shows_what_it_takes_of_each_role(tmp_path: Path, body: str) -> None:
    template = "{% for m in messages %}<|turn>{{ m.role }}\n" + body + "<turn|>{% endfor %}"
    (write_tokenizer(tmp_path) / "chat_template.jinja").write_text(template)
    tokenizer = Tokenizer.load(tmp_path)
    chat = [{"role": "user", "content": parts("c", "d")}, {"role": "assistant", "content": parts("e", "f")}]
    expected = "<|turn>user\ncd<turn|><|turn>assistant\nef<turn|>"
    assert tokenizer.decode(tokenizer.prompt_ids(chat)) == expected
