"""structured: the fifty items, what their tasks take, and the checker of JSON Schema on them."""

from __future__ import annotations

import copy
import json
import random
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from mlx_diffusiongemma.checkpoint.loading import resolve
from mlx_diffusiongemma.control.compiling import compile_grammar
from mlx_diffusiongemma.evaluation.graders.schema import violation
from mlx_diffusiongemma.evaluation.suites.structured import items, tasks
from mlx_diffusiongemma.evaluation.task import Reply
from mlx_diffusiongemma.text.tokenizer import Tokenizer

ITEMS = items()
NAMES = [item["name"] for item in ITEMS]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list)):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, f"{path}/{name}")
    else:
        yield path, value


def spelled(value: Any, text: str) -> bool:
    """Whether a text holds a value as it is, as a word of its own."""
    if isinstance(value, str):
        return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None
    if isinstance(value, bool) or value is None:
        return False
    ways = "|".join(re.escape(way) for way in (str(value), f"{value:.1f}", f"{value:.2f}"))
    return re.search(rf"(?<![\w.,:-])(?:{ways})(?!\w|[.,:]\d)", text) is not None


def valid(value: Any, schema: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


def test_fifty_pairs_side_by_side() -> None:
    made = tasks()
    assert len(made) == 100
    assert len({task.name for task in made}) == 100
    for item, free, held in zip(ITEMS, made[::2], made[1::2], strict=True):
        assert (free.name, held.name) == (f"{item['name']}_free", f"{item['name']}_held")
        assert (free.group, held.group) == ("free", "held")
        assert (free.schema, held.schema) == (None, item["schema"])
        assert free.prompt == held.prompt
        assert not free.thinking
        assert not held.thinking
        assert free.settings == held.settings == {"max_new_tokens": 512}
        for part in (item["text"], json.dumps(item["schema"], ensure_ascii=False), item.get("rules", "")):
            assert part in free.prompt
        assert str(free.prompt).endswith("Reply with only the JSON.")


@pytest.mark.parametrize("item", ITEMS, ids=NAMES)
def test_an_item_is_sound(item: dict[str, Any]) -> None:
    """Its value is valid, and the text says all of it: in the same words or in those that `stated` quotes."""
    jsonschema.Draft202012Validator.check_schema(item["schema"])
    assert valid(item["expected"], item["schema"])
    said = dict(leaves(item["expected"]))
    stated = item.get("stated", {})
    assert stated.keys() <= said.keys()
    for path, words in stated.items():
        assert words in item["text"], path
    for path, value in said.items():
        assert value is None or spelled(value, item["text"]) or path in stated, path
    for pattern in re.findall(r'"pattern": "(.*?)"', json.dumps(item["schema"])):
        assert pattern[0] == "^", "the checker needs patterns anchored at both ends"
        assert pattern[-1] == "$"
    assert len(json.dumps(item["expected"], ensure_ascii=False)) < 700  # 512 tokens suffice


def test_the_package_holds_answers_to_every_schema() -> None:
    tokenizer = Tokenizer.load(resolve("demo"))
    for item in ITEMS:
        grammar = compile_grammar(tokenizer, 704, (1, 106, 50), schema=item["schema"])
        assert grammar is not None
        matcher = grammar.matcher()
        ids = grammar.vocabulary.spell(json.dumps(item["expected"], ensure_ascii=False).encode())
        assert matcher.consume_tokens(ids), item["name"]
        assert matcher.is_accepting(), item["name"]


def test_the_suite_is_varied() -> None:
    everything = json.dumps([item["schema"] for item in ITEMS])
    for keyword in (
        *("enum", "const", "anyOf", "$ref", "pattern", "prefixItems", "minItems", "maxItems", "minimum"),
        *("maximum", "exclusiveMinimum", "multipleOf", "minLength", "maxLength", "additionalProperties"),
    ):
        assert f'"{keyword}"' in everything
    assert sum(not json.dumps(item, ensure_ascii=False).isascii() for item in ITEMS) >= 10
    assert len({json.dumps(item["schema"]) for item in ITEMS}) == 50


ODD = [None, True, False, 0, 1, -1, 1.0, 2.5, 10**6, "", "x", "2026-01-01", [], [1], {}, {"x": 1}]


def mutated(value: Any, draw: random.Random) -> Any:
    """The value with one place changed."""
    root = [copy.deepcopy(value)]
    places = [(root, 0)]
    for holder, key in places:
        inner: Any = holder[key]
        if isinstance(inner, (dict, list)):
            places += [(inner, name) for name in (inner if isinstance(inner, dict) else range(len(inner)))]
    holder, key = draw.choice(places)
    inner = holder[key]
    change = draw.randrange(5)
    if change == 0 and isinstance(inner, dict) and inner:
        del inner[draw.choice(list(inner))]
    elif change == 0 and isinstance(inner, list) and inner:
        del inner[draw.randrange(len(inner))]
    elif change == 1 and isinstance(inner, dict):
        inner[draw.choice(["note", "name"])] = draw.choice(ODD)
    elif change == 1 and isinstance(inner, list):
        inner.append(copy.deepcopy(draw.choice([*inner, *ODD])))
    elif change == 2 and isinstance(inner, str):
        holder[key] = draw.choice([inner + "0", inner[:-1], inner.lower(), inner.upper()])
    elif change == 2 and isinstance(inner, (int, float)):
        holder[key] = draw.choice([inner + 1, -inner, inner / 2, float(inner), inner * 1000])
    else:
        holder[key] = copy.deepcopy(draw.choice(ODD))
    return root[0]


def test_the_checker_agrees_with_jsonschema() -> None:
    draw = random.Random(0)
    verdicts = []
    for item in ITEMS:
        assert violation(item["expected"], item["schema"]) == ""
        validator = jsonschema.Draft202012Validator(item["schema"])
        for value in [*ODD, *(mutated(item["expected"], draw) for _ in range(60))]:
            verdicts.append(validator.is_valid(value))
            assert (violation(value, item["schema"]) == "") is verdicts[-1], (item["name"], value)
    assert 400 < sum(verdicts) < len(verdicts) - 400


def test_every_task_takes_its_own_value_and_no_other() -> None:
    values = [json.dumps(item["expected"], ensure_ascii=False) for item in ITEMS]
    for index, task in enumerate(tasks()):
        assert [task.grade(Reply(value)).strict for value in values].index(True) == index // 2
        assert sum(task.grade(Reply(value)).lenient for value in values) == 1


def test_accents_may_be_composed_or_not() -> None:
    """Where a property's name has none, which is every item but one."""
    changed = 0
    for item, task in zip(ITEMS, tasks()[::2], strict=True):
        right = json.dumps(item["expected"], ensure_ascii=False)
        apart = unicodedata.normalize("NFD", right)
        if apart != right:
            changed += 1
            assert task.grade(Reply(apart)).strict is (item["name"] != "kontakt"), item["name"]
    assert changed >= 8
