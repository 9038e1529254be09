"""JSON in a reply: one document and nothing else, or wrapped, but never something that is not JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlx_diffusiongemma.evaluation.graders.json_text import (
    difference,
    document,
    lenient_json,
    same_json,
    strict_json,
)
from mlx_diffusiongemma.evaluation.task import Reply

DEEP = "[" * 100 + "]" * 100


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        ' {"a": [1, -2.5e3, true, null, "x\\n"]} \n',
        "3",
        '"a"',
        "null",
        DEEP,
        "9" * 300,
        '{"a": 1, "b": 1}',
        "1e308",
    ],
)
def test_one_document(text: str) -> None:
    assert strict_json(text) == lenient_json(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("{}{}", "no JSON: Extra data at character 2"),
        ("[1,]", "no JSON"),
        ("{'a': 1}", "no JSON"),
        ('{"a": 1', "no JSON"),
        ('"a\nb"', "no JSON: Invalid control character"),
        ("NaN", "NaN is no JSON"),
        ("[-Infinity]", "-Infinity is no JSON"),
        ("1e999", "number 1e999 is beyond a double"),
        ("-1e999", "number -1e999 is beyond a double"),
        ("9" * 301, "integer of 301 digits"),
        ("9" * 5000, "integer of 5000 digits"),
        ('{"a": 1, "b": 2, "a": 1}', "key 'a' twice"),
        ('[{"b": {"a": 1, "a": 1}}]', "key 'a' twice"),
        (f"[{DEEP}]", "nested too deeply"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_anything_else_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - compared below
        strict_json(text)
    assert str(error.value).startswith(reason)
    assert len(str(error.value)) < 100
    with pytest.raises(ValueError):  # noqa: PT011 - the reason may be another one's
        lenient_json(text)


@pytest.mark.parametrize(
    "text",
    [
        '```json\n{"a": [1]}\n```',
        'The object:\n```\n{"a": [1]}\n```\nIt has {one} key.',
        'Here: {"a": [1]}',
        '{"a": [1]}\nThat is all.',
        '**{"a": [1]}**',
        '{"a": [1]} // done',
        '{"a": [1]}\nNote: [as asked], {key} (or [keys]).',
        '\ufeff{"a": [1]}',
        '```\n{"a": [1]}',
    ],
)
def test_a_wrapped_document(text: str) -> None:
    assert lenient_json(text) == {"a": [1]}
    with pytest.raises(ValueError, match="no JSON"):
        strict_json(text)


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": [1]}',
        '{"a": [1]}]',
        '{"a": [1]}, 2]',
        '{"a": [1]}\nor\n{"a": [2]',
        '{"a": [1]} or [true]',
        '{"a": [1]} or {}',
        '{"a": [1]} or [2',
        '[as asked] {"a": [1]}',
        '{"b": {"a": [1]}',
        '{"a": [1]} {"a": [1]}',
        '{"a": [1]} or {"a": [2]}',
        '```\n{"a": [1]}\n```\n```\n{"a": [1]}\n```',
        '```\n{"a": [1]',
        'Here: {"a": [1], "a": [1]}',
        '```\n{"a": NaN}\n```',
        "the number 3",
        "} {",
        'x {"a": [1]}' + " " * 100_000,
    ],
)
def test_what_is_not_one_document_is_not_searched_for_one(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the reason depends on the Python version
        lenient_json(text)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": 1, "b": [None]}, {"b": [None], "a": 1}, True),
        (1.5, 1.5, True),
        (1, 1.0, False),
        (1, True, False),
        (0, False, False),
        ([1], [True], False),
        ([1, 2], [2, 1], False),
        ([1], [1, 1], False),
        ({"a": 1}, {"a": 1.0}, False),
        ({"a": 1}, {"a": 1, "b": 1}, False),
        ({"a": 1}, {"b": 1}, False),
        ("1", 1, False),
        ("\u00e9", "e\u0301", True),
        ("\u00e9", "e", False),
        ("a", "A", False),
        (None, False, False),
        ([], {}, False),
    ],
)
def test_values_are_compared_with_their_types(one: Any, other: Any, same: bool) -> None:
    assert same_json(one, other) == same_json(other, one) == same
    assert same_json([{"x": one}], [{"x": other}]) == same
    assert bool(difference(one, other)) == bool(difference(other, one)) == (not same)


@pytest.mark.parametrize(
    ("answer", "strict", "lenient", "reason"),
    [
        ('{"b": {"c": [1]}, "a": 2.5}', True, True, ""),
        ('{\n\t"a" : 25e-1, "b": {"c":[1]}}\n', True, True, ""),
        ('```\n{"a": 2.5, "b": {"c": [1]}}\n```', False, True, "more than the document"),
        ('{"a": 2.5, "b": {"c": [1]}}.', False, True, "more than the document"),
        ('{"a": 2, "b": {"c": [1]}}', False, False, "'a': 2 is not 2.5"),
        ('Here: {"a": 2, "b": {"c": [1]}}', False, False, "'a': 2 is not 2.5"),
        ('{"a": 2.5, "b": {"c": [true]}}', False, False, "'b': 'c': [True] is not [1]"),
        ('{"a": 2.5, "b": {}}', False, False, "'b': key 'c' is missing"),
        ('{"a": 2.5, "b": {"c": [1]}, "d": 0}', False, False, "key 'd' was not asked for"),
        ("[]", False, False, "[] is not {'a': 2.5, 'b': {'c': [1]}}"),
        ("", False, False, "empty"),
        ("none", False, False, "no JSON: Expecting value at character 0"),
    ],
)
def test_document(answer: str, strict: bool, lenient: bool, reason: str) -> None:
    grade = document({"a": 2.5, "b": {"c": [1]}})(Reply(answer))
    assert (grade.strict, grade.lenient, grade.reason) == (strict, lenient, reason)
