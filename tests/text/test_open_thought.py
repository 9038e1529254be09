"""A prompt that ends inside a thought: everything that parses starts where the prompt ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.scripted import TURN_END, Scripted

from mlx_diffusiongemma.checkpoint.loading import load, resolve
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.filling.fill import fill
from mlx_diffusiongemma.generation import Generation, generate
from mlx_diffusiongemma.text.channels import ChannelParser
from mlx_diffusiongemma.text.tokenizer import Tokenizer

LENGTH = 64
QUESTION = "<bos><|turn>user\nhi<turn|>\n<|turn>model\n"
OPENED = QUESTION + "<|channel>thought\n"
# Ends of a prompt, and what the model writes to have thought "hm hm" and answered "yes".
CONTINUED = {
    "opened": (OPENED, "hm hm<channel|>yes"),
    "begun": (OPENED + "ones 5+8=13\n", "hm hm<channel|>yes"),
    "header begins": (QUESTION + "<|channel>", "thought\nhm hm<channel|>yes"),
    "header without its end": (QUESTION + "<|channel>thought", "\nhm hm<channel|>yes"),
    "half of a header": (QUESTION + "<|channel>th", "ought\nhm hm<channel|>yes"),
    "no turn": ("<|channel>thought\n", "hm hm<channel|>yes"),
    "behind a tool's result": (
        QUESTION
        + "<|tool_call>call:f{}<tool_call|><|tool_response>response:f{a:1}<tool_response|>"
        + "<|channel>thought\n",
        "hm hm<channel|>yes",
    ),
    "closed": (OPENED + "before<channel|>", "<|channel>thought\nhm hm<channel|>yes"),
    "answer begun": (QUESTION + "I say ", "<|channel>thought\nhm hm<channel|>yes"),
    "another turn's thought": (
        OPENED + "hm<turn|>\n<|turn>user\nso?<turn|>\n<|turn>model\n",
        "<|channel>thought\nhm hm<channel|>yes",
    ),
}


def written(tokenizer: Tokenizer, prompt: str, text: str, **settings: Any) -> Generation:
    model: Any = Scripted([[*tokenizer.encode(text), TURN_END]])
    return generate(model, tokenizer, tokenizer.encode(prompt), **settings)


@pytest.mark.parametrize(("prompt", "text"), CONTINUED.values(), ids=CONTINUED)
def test_thought_and_answer_start_where_the_prompt_ends(tokenizer: Tokenizer, prompt: str, text: str) -> None:
    generation = written(tokenizer, prompt, text)
    assert (generation.thought, generation.answer) == ("hm hm", "yes")
    assert generation.stats.answer_tokens == len(tokenizer.encode("yes"))
    assert generation.warnings == []


@pytest.mark.parametrize(("prompt", "text"), CONTINUED.values(), ids=CONTINUED)
def test_the_parser_does_not_depend_on_how_ids_are_cut(tokenizer: Tokenizer, prompt: str, text: str) -> None:
    parser = ChannelParser(tokenizer, tokenizer.encode(prompt))
    deltas = [parser.copy().feed(tokenizer.encode(text)), *(parser.feed([i]) for i in tokenizer.encode(text))]
    assert deltas[0] == sum(deltas[2:], start=deltas[1])


def test_a_tool_call_that_the_prompt_begins_is_finished(tokenizer: Tokenizer) -> None:
    generation = written(tokenizer, QUESTION + "<|tool_call>call:f{a", ":1}<tool_call|>")
    assert [(call.name, call.arguments) for call in generation.tool_calls] == [("f", {"a": 1})]


@pytest.mark.parametrize("name", ["opened", "begun", "header begins", "half of a header"])
@pytest.mark.parametrize("budget", [0, 1, 5])
def test_a_budget_limits_an_opened_thought(tokenizer: Tokenizer, name: str, budget: int) -> None:
    prompt = CONTINUED[name][0]
    rest = tokenizer.encode(CONTINUED[name][1].partition("hm")[0])
    endless = tokenizer.encode("hm ") * LENGTH
    model: Any = Scripted(lambda block, _: (rest if block == 0 else []) + endless)
    generation = generate(
        model, tokenizer, tokenizer.encode(prompt), thinking_budget=budget, max_new_tokens=128
    )
    assert generation.token_ids.index(tokenizer.special.channel_close) == len(rest) + budget
    assert generation.answer.strip()
    assert generation.stats.forced_thought_ends == 1


@pytest.mark.parametrize("name", ["opened", "begun", "header begins", "behind a tool's result"])
def test_a_grammar_holds_the_answer_and_not_the_opened_thought(tokenizer: Tokenizer, name: str) -> None:
    generation = written(tokenizer, *CONTINUED[name], regex="yes|no")
    assert (generation.thought, generation.answer) == ("hm hm", "yes")
    assert generation.stats.grammar_repairs == 0


@pytest.mark.parametrize("text", ["", "nonsense of its own", "hm hm<turn|>", "<|channel>thought\nhm"])
@pytest.mark.parametrize("name", ["opened", "header begins", "half of a header"])
@pytest.mark.parametrize("most", [12, 65, 130])
def test_a_grammar_is_kept_whatever_follows_an_opened_thought(
    tokenizer: Tokenizer, name: str, text: str, most: int
) -> None:
    ids = tokenizer.encode(text + "hm ")
    model: Any = Scripted(lambda *_: (ids * LENGTH)[:LENGTH])
    generation = generate(
        *(model, tokenizer, tokenizer.encode(CONTINUED[name][0])),
        regex="[0-9]+ C",
        max_new_tokens=most,
        guard_empty=False,
    )
    assert generation.answer.endswith(" C")
    assert generation.answer.removesuffix(" C").isdecimal()
    assert len(generation.token_ids) <= most


def test_an_opened_thought_that_the_limit_cuts_is_reported(tokenizer: Tokenizer) -> None:
    generation = written(tokenizer, OPENED, "hm hm hm hm", max_new_tokens=3)
    assert (generation.answer, bool(generation.thought)) == ("", True)
    assert "ended inside the thought" in generation.warnings[0]


def test_an_opened_thought_without_an_answer_is_denoised_again(tokenizer: Tokenizer) -> None:
    attempts = [[*tokenizer.encode(text), TURN_END] for text in ("<channel|>", "hm<channel|>yes")]
    generation = generate(Scripted(lambda _, attempt: attempts[attempt]), tokenizer, tokenizer.encode(OPENED))
    assert (generation.answer, generation.stats.empty_rerolls) == ("yes", 1)


@pytest.mark.parametrize(("prompt", "settings", "message"), [
    (QUESTION + "<|tool_call>call:f{a", {"regex": "[0-9]+"}, "the prompt ends inside a tool call"),
    (OPENED, {"regex": "yes", "max_new_tokens": 4}, "the thought that the prompt opens takes 1, but"),
    (OPENED, {"draft": "no"}, "draft: the prompt ends inside a thought"),
    (OPENED, {"template": "It is [[x]]."}, "fill: the prompt ends inside a thought"),
])  # fmt: skip
def test_refused_behind_an_open_prompt(
    tokenizer: Tokenizer, prompt: str, settings: dict[str, Any], message: str
) -> None:
    write: Any = fill if "template" in settings else generate
    prompts = {"prompt": tokenizer.encode(prompt)}
    with pytest.raises(InputError, match=message):
        write(Scripted([]), tokenizer, **prompts, **settings)


@pytest.mark.parametrize("thinking_budget", [None, 0, 2])
def test_the_demo_answers_behind_a_thought_that_its_template_opens(
    tmp_path: Path, thinking_budget: int | None
) -> None:
    """A template that opens the thought at every turn."""
    model, _ = load("demo")
    for file in resolve("demo").glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    template = (resolve("demo") / "chat_template.jinja").read_text()
    opening = "{%- if add_generation_prompt and enable_thinking -%}{{ '<|channel>thought\\n' }}{%- endif -%}"
    (tmp_path / "chat_template.jinja").write_text(template + opening)
    opens = Tokenizer.load(tmp_path)
    settings: dict[str, Any] = {"thinking": True, "seed": 0, "thinking_budget": thinking_budget}
    generation = generate(model, opens, "What is 345 + 78?", **settings)
    assert opens.decode(generation.prompt_ids).endswith("<|channel>thought\n")
    assert generation.answer.strip()
    if thinking_budget is None:
        assert (generation.answer, generation.finish_reason) == ("423", "stop")
        assert "13" in generation.thought  # 5 + 8
    else:
        assert len(opens.encode(generation.thought)) <= thinking_budget
