"""Filling templates: literals stay to the letter, holes hold text and nothing else, lengths fit."""

from __future__ import annotations

import re
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.fixtures_tokenizer import one_line
from support.parsing import property_test
from support.scripted import TURN_END, Scripted

from mlx_diffusiongemma.checkpoint.loading import resolve
from mlx_diffusiongemma.engine.state import Step
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.filling.fill import fill
from mlx_diffusiongemma.filling.template import parse_template
from mlx_diffusiongemma.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(resolve("demo"))
OSLO = TOKENIZER.encode("Oslo")
assert len(OSLO) == 1
C = 64


class Writer(Scripted):
    """Believes in one text, token by token from where the prompt ends, whatever stands in its canvas."""

    def __init__(self, ids: list[int], sure: float = 60.0):
        self.text = [*ids, TURN_END]
        super().__init__(lambda *_: self.text[sum(map(len, self.encoded[1:])) :], sure)


def writer(text: str) -> Any:
    return Writer(TOKENIZER.encode(text))


def stubborn(*ids: int) -> Any:
    """Wants these ids, over and over."""
    return Scripted(lambda *_: list(ids) * C)


def is_text(ids: list[int]) -> bool:
    return not set(ids) & (TOKENIZER.hidden_ids | {0, 1, 50, TURN_END})


@pytest.mark.parametrize(("prompt", "template", "pieces"), [
    ("What is the capital of Norway?", "The capital of Norway is [[city]].", {"city": "Oslo"}),
    (
        "JSON for Paris and Rome",
        '[{"city": "[[a:..5]]", "country": "[[b:..4]]"}, {"city": "Rome", "country": "[[c:1]]"}]',
        {"a": "Paris", "b": "France", "c": "Italy"},
    ),
    ('Spell "planet" backwards.', "t-[[x:..6]]-a-l-p", {"x": "e-n"}),
    # Once it is pinned, an end seems plausible to the model nearly everywhere.
    ('Spell "cat" backwards.', "[[x:..6]]", {"x": "t-a-c"}),
])  # fmt: skip
@pytest.mark.slow
def test_the_demo_fills_what_it_knows(demo: Any, prompt: str, template: str, pieces: dict[str, str]) -> None:
    filling = fill(*demo, template, prompt=prompt, seed=1)
    assert filling.pieces == pieces
    parts = parse_template(template)
    text = "".join(part if isinstance(part, str) else pieces[part.name or ""] for part in parts)
    assert filling.text == text == TOKENIZER.decode(filling.token_ids[:-1])
    assert filling.token_ids[-1] == TURN_END
    assert filling.repairs == 0


@pytest.mark.parametrize(("text", "template", "holes"), [
    ("The capital of Norway is Oslo.", "The [[a]] of [[b]] is [[..3]].", ("capital", "Norway", "Oslo")),
    ("It is 423 or 5", "It is [[3]] or [[1]]", ("423", "5")),  # digits, behind a space of their own
    ("It is Oslo or Rome", "It is [[1]] or [[1]]", ("Oslo", "Rome")),  # a word has its space inside
    ("It is 423 or 57", "It is [[..9]] or [[..9]]", ("423", "57")),
    ("The capital of Peru", "[[a]][[b:1]] Peru", ("The capital", " of")),
    ("a-b-c-d", "[[x]]-[[y]]", ("a", "b-c-d")),  # the shortest that fits
    ("The capital of", "[[..4]] [[..4]] [[..4]]", ("The", "capital", "of")),
    ("x  Oslo y", "x  [[1]] y", ("Oslo",)),  # several spaces stay as they are
])  # fmt: skip
def test_lengths_are_those_at_which_the_literals_fit(
    text: str, template: str, holes: tuple[str, ...]
) -> None:
    ids = [token for piece in re.split("(?<=  )", text) for token in TOKENIZER.encode(piece)]
    filling = fill(Writer(ids), TOKENIZER, template, prompt="hi", seed=1)
    assert tuple(filling.holes) == holes
    assert filling.text == text
    assert filling.repairs == 0


def test_a_hole_has_its_length_though_the_model_would_have_stopped_before() -> None:
    filling = fill(writer("Oslo"), TOKENIZER, "[[4]]", prompt="hi", seed=1)
    assert filling.text.startswith("Oslo")
    assert len(filling.token_ids) == 5
    assert is_text(filling.token_ids[:-1])


STRUCTURE = {
    "turn end": [TURN_END],
    "pad": [0],
    "eos": [1],
    "tool response": [50],
    "thought": [TOKENIZER.special.channel_open or 0, *TOKENIZER.encode("thought\n")],
    "half a character": [next(id_ for id_, byte in TOKENIZER.byte_values.items() if byte == 0xE6)],
}


@pytest.mark.parametrize("wanted", STRUCTURE.values(), ids=STRUCTURE.keys())
def test_holes_hold_text_however_much_the_model_wants_structure(wanted: list[int]) -> None:
    model = stubborn(*wanted)
    filling = fill(model, TOKENIZER, "[[a:5]]: [[b:..4]]\n[[2]]!", prompt="hi", seed=0)
    *ids, end = filling.token_ids
    assert end == TURN_END
    assert is_text(ids)
    assert "\ufffd" not in filling.text
    assert filling.text == f"{filling.pieces['a']}: {filling.pieces['b']}\n{filling.holes[2]}!"
    assert all(filling.holes)
    assert filling.repairs > 0


def test_what_is_no_text_is_replaced_and_the_rest_is_denoised_again() -> None:
    first, again = TOKENIZER.encode("ab-c"), TOKENIZER.encode("xyzw")
    assert len(first) == len(again) == 4
    model: Any = Scripted(lambda _, attempt: [TURN_END, *first] if attempt == 0 else again + again)
    steps: list[Step] = []
    filling = fill(model, TOKENIZER, "[[5]]", prompt="hi", seed=0, on_step=steps.append)
    assert filling.repairs == 1
    assert filling.token_ids[1:] == [*(again + again)[1:5], TURN_END]
    assert filling.token_ids[0] != again[0]  # it was pinned
    assert is_text(filling.token_ids[:1])
    noise = [step.canvas_ids[0, 1:5].tolist() for step in steps if step.index == 0]
    assert len(noise) == 2
    assert all((step.draft_ids[0, 6:] == 0).all() for step in steps)  # behind the end is padding
    assert filling.stats.blocks == 1


class Growing(Writer):
    """Is a little surer of later tokens."""

    def logits(self, hidden: mx.array) -> mx.array:
        return super().logits(hidden) * (1 + 0.0125 * mx.arange(C)[:, None])


def test_of_lengths_that_fit_as_well_the_shortest_is_meant() -> None:
    """The text behind a hole may come again inside a longer one."""
    model: Any = Growing(TOKENIZER.encode("a-b-c-d"), sure=8.0)
    filling = fill(model, TOKENIZER, "[[x:..7]]-[[y:..7]]", prompt="hi", seed=1, max_denoising_steps=4)
    assert filling.pieces == {"x": "a", "y": "b-c-d"}


def test_a_character_of_several_bytes_is_text() -> None:
    byte_of = {byte: token for token, byte in TOKENIZER.byte_values.items()}
    model = stubborn(*(byte_of[byte] for byte in "日".encode()))
    filling = fill(model, TOKENIZER, "[[6]]", prompt="hi", seed=0)
    assert (filling.text, filling.repairs) == ("日日", 0)


def test_a_hole_behind_a_space_begins_with_it() -> None:
    """Else the space would be lost, or the token would have to be torn."""
    filling = fill(stubborn(*OSLO), TOKENIZER, "is [[..1]]!", prompt="hi", seed=0)
    assert filling.repairs == 1
    assert filling.text == f"is {filling.holes[0]}!"
    assert TOKENIZER.decode(filling.token_ids[:-1]) == filling.text


@given(
    literals=st.lists(st.text(st.sampled_from(" aT1.,é日\n{}\"'"), max_size=6), min_size=1, max_size=4),
    lengths=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    wanted=st.lists(st.integers(0, 703), min_size=1, max_size=3),
)
@example(literals=["  "], lengths=[1] * 4, wanted=[0])  # two spaces before a hole stay in the literal
@property_test
def test_every_literal_token_is_kept(literals: list[str], lengths: list[int], wanted: list[int]) -> None:
    template = "".join(f"{literal}[[{n}]]" for literal, n in zip(literals, lengths, strict=False))
    filling = fill(stubborn(*wanted), TOKENIZER, template, seed=3)
    pairs = zip(literals, filling.holes, strict=True)
    assert filling.text == "".join(literal + hole for literal, hole in pairs)
    *ids, end = filling.token_ids
    assert end == TURN_END
    assert is_text(ids)
    assert TOKENIZER.decode(ids) == filling.text
    spaced = sum(text.endswith(" ") and not text.endswith("  ") for text in literals)
    literal_tokens = sum(len(TOKENIZER.encode(text)) for text in literals if text)
    total = literal_tokens + sum(lengths[: len(literals)])
    assert total - spaced <= len(ids) <= total  # a word takes the space before it into its token


@pytest.mark.parametrize("words", [30, 63, 64, 65, 127, 128, 129])
def test_a_long_template_takes_several_canvases(words: int) -> None:
    literal = "ab" * words
    text_ids = TOKENIZER.encode(literal)
    model: Any = Writer([*text_ids, *OSLO, *TOKENIZER.encode(".")])
    filling = fill(model, TOKENIZER, literal + "[[1]].", prompt="hi", seed=0, max_new_tokens=512)
    assert filling.text == literal + "Oslo."
    assert filling.token_ids == [*model.text]
    written = [token for ids in model.encoded[1:] for token in ids]
    assert written == filling.token_ids[: len(written)]
    assert filling.stats.blocks == len(model.encoded)
    assert {len(ids) for ids in model.encoded[1:]} <= {C}
    assert filling.stats.new_tokens == len(filling.token_ids)


def test_an_open_hole_that_no_longer_fits_begins_a_canvas() -> None:
    first, second = "ab" * 25, "cd" * 10
    model = writer(first + "-Oslo-" + second)
    filling = fill(model, TOKENIZER, f"{first}-[[..40]]-{second}", prompt="hi", seed=0)
    assert filling.holes == ["Oslo"]
    assert model.encoded[1] == TOKENIZER.encode(first + "-")


def test_the_same_seed_gives_the_same_text_and_only_committed_canvases_are_shown(demo: Any) -> None:
    steps: list[Step] = []
    asked: dict[str, Any] = {"template": "1 [[..6]] 4 [[3]] 6", "prompt": "Count to 9.", "seed": 5}
    first, again = fill(*demo, **asked, on_step=steps.append), fill(*demo, **asked)
    assert first.token_ids == again.token_ids
    assert first.seed == 5
    assert {step.draft_ids.shape for step in steps} == {(1, C)}
    assert first.stats.denoising_steps > len(steps) == steps[-1].index + 1
    pinned = TOKENIZER.encode("1")[0]
    assert all(step.canvas_ids[0, 0] == step.draft_ids[0, 0] == pinned for step in steps)
    assert steps[-1].draft_ids[0, : len(first.token_ids)].tolist() == first.token_ids
    assert first.stats.prompt_tokens == len(TOKENIZER.prompt_ids("Count to 9."))
    assert first.stats.answer_tokens == first.stats.new_tokens - 1 == len(first.token_ids) - 1


def test_context_without_a_prompt() -> None:
    system = "<bos><|turn>system\nBe brief.<turn|>\n"
    for context, expected in (
        ({}, "<bos><|turn>model\n"),
        ({"system": "Be brief."}, system + "<|turn>model\n"),
        ({"system": "Be brief.", "prompt": "hi"}, system + "<|turn>user\nhi<turn|>\n<|turn>model\n"),
    ):
        model = writer("Oslo")
        fill(model, TOKENIZER, "[[1]]", **context)
        assert TOKENIZER.decode(model.encoded[0]) == expected


@pytest.mark.parametrize(("template", "options", "message"), [
    ("no hole", {}, "template: no hole found"),
    ("[[256]]", {"max_new_tokens": 256}, "a hole of 256 tokens and the stop id do not fit in"),
    ("[[1000]]", {"max_new_tokens": 512}, "do not fit in max_new_tokens 512"),
    ("[[..64]]", {}, "a hole of up to 64 tokens must fit in one canvas of 64"),
    ("[[200]] and [[a:60]]", {"max_new_tokens": 256}, "is 256; shorten it or raise max_new_tokens"),
    ("ab" * 1200 + "[[a]]", {}, "max_new_tokens is 2048"),
    ("<turn|>[[a]]", {}, "'<turn|>' in it is structure, not text"),
    ("\ud800[[a]]", {}, "not valid Unicode"),
    ("[[a]]", {"prompt": [5] * 4020}, "but the context holds 4096"),
    ("[[a]]", {"prompt": ""}, "prompt: empty"),
    ("[[a]]", {"seed": -1}, "seed must be an integer"),
    ("[[a]]", {"max_new_token": 5}, "unknown setting 'max_new_token'"),
    ("[[a]]", {"thinking_budget": 0}, "thinking_budget: a filled text has no thought"),
    ("[[a]]", {"eos_token_id": 704}, "eos_token_id has token id 704, but the model's ids end at 703"),
    ("[[a]]", {"system": 3}, "system: found int"),
])  # fmt: skip
def test_bad_input_is_refused_before_anything_runs(
    template: str, options: dict[str, Any], message: str
) -> None:
    model = writer("Oslo")
    with pytest.raises(InputError) as error:
        fill(model, TOKENIZER, template, **{"prompt": "hi", **options})
    assert message in one_line(error)
    assert model.encoded == []


def test_the_end_is_a_stop_id_of_the_settings() -> None:
    assert fill(writer("Oslo"), TOKENIZER, "[[1]]", prompt="hi", eos_token_id=1).token_ids == [*OSLO, 1]


def test_the_largest_that_fits() -> None:
    for length, template in [(255, "[[255]]"), (63, "[[..63]]")]:
        filling = fill(Writer(OSLO * length), TOKENIZER, template, prompt="hi", seed=0)
        assert filling.text == "Oslo" * length
        assert filling.stats.blocks == -(-(length + 1) // C)


@pytest.mark.parametrize(("template", "length"), [
    ("x [[64]]", 64), ("x [[130]] y", 130), ("[[64]]", 64), ("abc [[63]] d", 63),
    ("[[..60]] and then some more words here", None), ("go [[..63]] a", None),
])  # fmt: skip
@pytest.mark.slow
def test_holes_about_as_large_as_a_canvas(demo: Any, template: str, length: int | None) -> None:
    filling = fill(*demo, template, seed=0, max_denoising_steps=2, max_new_tokens=256)
    before, after = re.split(r"\[\[.*?\]\]", template)
    assert filling.text == before + filling.holes[0] + after
    if length is not None:  # a space before it belongs to the hole's first token
        literals = len(TOKENIZER.encode(before.rstrip(" "))) + len(TOKENIZER.encode(after))
        assert len(filling.token_ids) - 1 - literals in (length, length + 1)
