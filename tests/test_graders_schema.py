"""Extracted JSON: parsed, valid and right are three things. And the checker of JSON Schema behind it."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import jsonschema
import pytest

from mlx_diffusiongemma.evaluation.graders.schema import extracted, violation
from mlx_diffusiongemma.evaluation.task import Reply

EXPECTED: dict[str, Any] = {"who": "Zoë", "n": 3, "half": 0.5, "tags": ["a", "b"], "to": None, "ok": True}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "who": {"type": "string"},
        "n": {"type": "integer", "minimum": 1, "maximum": 9},
        "half": {"type": "number"},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}},
        "to": {"type": ["string", "null"]},
        "ok": {"type": "boolean"},
        "note": {"type": "string"},
    },
    "required": ["who", "n", "half", "tags", "to", "ok"],
    "additionalProperties": False,
}
RIGHT = json.dumps(EXPECTED, ensure_ascii=False)


def but(**changes: Any) -> str:
    return json.dumps({**EXPECTED, **changes})


def without(name: str) -> str:
    return json.dumps({key: value for key, value in EXPECTED.items() if key != name})


@pytest.mark.parametrize(
    ("answer", "strict", "lenient", "verdicts"),
    [
        (RIGHT, True, True, "pvr"),
        (json.dumps(EXPECTED, indent=2), True, True, "pvr"),
        (json.dumps(dict(reversed(EXPECTED.items()))), True, True, "pvr"),
        (f"\n\t{RIGHT} \n", True, True, "pvr"),
        (RIGHT.replace("3", "3.0").replace("0.5", "5e-1"), True, True, "pvr"),
        (unicodedata.normalize("NFD", RIGHT), True, True, "pvr"),
        (json.dumps(EXPECTED).replace("\\u00eb", "e\\u0308"), True, True, "pvr"),
        (f"```json\n{RIGHT}\n```", False, True, "vr"),
        (f"Here is the document:\n\n{RIGHT}\n\nAll values come from the text.", False, True, "vr"),
        (f"{RIGHT}.", False, True, "vr"),
        (but(n=4), False, False, "pv"),
        (but(half=0.25), False, False, "pv"),
        (but(who="Zoe"), False, False, "pv"),
        (but(who="zoë"), False, False, "pv"),
        (but(who="Zoë "), False, False, "pv"),
        (but(tags=["b", "a"]), False, False, "pv"),
        (but(tags=["a", "b", "b"]), False, False, "pv"),
        (but(to=""), False, False, "pv"),
        (but(note=""), False, False, "pv"),
        (but(n=10), False, False, "p"),
        (but(n="3"), False, False, "p"),
        (but(n=True), False, False, "p"),
        (but(ok=1), False, False, "p"),
        (but(ok=None), False, False, "p"),
        (but(tags=["a", "d"]), False, False, "p"),
        (but(extra=None), False, False, "p"),
        (without("to"), False, False, "p"),
        (f"[{RIGHT}]", False, False, "p"),
        (json.dumps(RIGHT), False, False, "p"),
        (f"```json\n{but(n=4)}\n```", False, False, "v"),
        (f"```json\n{but(n=10)}\n```", False, False, ""),
        (f"{RIGHT}\n{but(n=4)}", False, False, ""),
        (f"{RIGHT}{RIGHT}", False, False, ""),
        (RIGHT[:-1], False, False, ""),
        (f"{RIGHT[:-1]}, }}", False, False, ""),
        (f'{RIGHT[:-1]}, "n": 3}}', False, False, ""),
        (RIGHT.replace('"', "'"), False, False, ""),
        (RIGHT.replace("0.5", "1e999"), False, False, ""),
        (RIGHT.replace("0.5", "NaN"), False, False, ""),
        (RIGHT.replace("3", "3" * 5000), False, False, ""),
        ("", False, False, ""),
        ("null", False, False, "p"),
        ("\x00\ud800{", False, False, ""),
        (RIGHT.replace("Zoë", "\\ud800"), False, False, "pv"),
        ("[" * 100_000, False, False, ""),
        ("[" * 90 + "]" * 90, False, False, "p"),
        (but(**{"\ud800": 1}), False, False, "p"),
        (but(who="x" * 1_000_000), False, False, "pv"),
        (but(who="a" + "\u0301\u0323" * 500_000), False, False, "pv"),
    ],
)
def test_extraction(answer: str, strict: bool, lenient: bool, verdicts: str) -> None:
    grade = extracted(EXPECTED, SCHEMA)(Reply(answer))
    assert (grade.strict, grade.lenient) == (strict, lenient)
    assert grade.details == {"parses": "p" in verdicts, "valid": "v" in verdicts, "right": "r" in verdicts}
    assert bool(grade.reason) is not strict
    assert len(grade.reason) < 200
    assert grade.reason.isascii()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (but(n=4), "'n': 4 is not 3"),
        (but(n=10), "invalid: /n breaks maximum"),
        (without("n"), "invalid: / breaks required"),
        (but(extra=1), "invalid: /'extra' is not allowed"),
        (f"So: {RIGHT}", "more than the document"),
        ("", "empty"),
    ],
)
def test_the_reason(answer: str, reason: str) -> None:
    assert extracted(EXPECTED, SCHEMA)(Reply(answer)).reason == reason


def test_strings_are_compared_composed() -> None:
    """Also under a schema that spells them, and whichever way the task does."""
    for expected in ("Żaneta", unicodedata.normalize("NFD", "Żaneta")):
        for answer in ("Żaneta", unicodedata.normalize("NFD", "Żaneta")):
            grade = extracted([expected], {"items": {"const": "Żaneta"}})
            assert grade(Reply(json.dumps([answer]))).strict
            assert grade(Reply(json.dumps([answer]))).details["valid"]
            assert not grade(Reply(json.dumps([answer[1:]]))).lenient


def test_whole_numbers_may_be_written_either_way() -> None:
    for expected in (3, 3.0):
        for answer, right in (("3", True), ("3.0", True), ("3e0", True), ("3.5", False), ("true", False)):
            assert extracted([expected], {"type": "array"})(Reply(f"[{answer}]")).strict is right


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer"}, [0, 1.0, -3, 10**299], [True, 1.5, "1", None, []]),
        ({"type": "number"}, [0, 1.5, 1e300], [False, "1", None]),
        ({"type": ["string", "null"]}, ["", None], [0, False, []]),
        ({"type": "boolean"}, [True, False], [0, 1, None]),
        ({"const": 1}, [1, 1.0], [True, 2, "1"]),
        ({"enum": [0, None, "a", [1]]}, [0, 0.0, None, "a", [1.0]], [False, "A", "", [True], [1, 1]]),
        ({"minimum": 1, "maximum": 3}, [1, 3, 2.5, "x", True], [0, 3.1, -1]),
        ({"exclusiveMinimum": 0}, [0.001, None], [0, 0.0, -1]),
        ({"multipleOf": 5}, [0, 5, -10, 10.0, "7"], [7, 5.5]),
        ({"minLength": 2, "maxLength": 3}, ["ab", "é😀日", 7], ["a", "abcd", ""]),
        ({"pattern": "^[0-9]{2}$"}, ["42", 42], ["4", "421", "42\n", "٤٢", ""]),
        ({"minItems": 1, "maxItems": 2}, [[0], [0, 0], {}], [[], [0, 0, 0]]),
        ({"items": {"type": "null"}}, [[], [None, None], 1], [[None, 0]]),
        ({"prefixItems": [{"const": 1}], "items": False}, [[], [1], {}], [[2], [1, 1]]),
        ({"required": ["a"]}, [{"a": None}, {"a": 1, "b": 2}, []], [{}, {"A": 1}]),
        ({"properties": {"a": {"const": 1}}}, [{}, {"a": 1}, {"b": 2}], [{"a": 2}]),
        (
            {"properties": {"a": {}}, "additionalProperties": False},
            [{}, {"a": 2}],
            [{"b": 1}, {"a": 1, "b": 1}],
        ),
        ({"additionalProperties": {"const": 1}}, [{}, {"x": 1}], [{"x": 1, "y": 2}]),
        ({"anyOf": [{"const": 1}, {"type": "null"}]}, [1, None], [2, "", False]),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"const": 1}}}, [1], [2, None]),
    ],
)
def test_keywords(schema: Any, good: list[Any], bad: list[Any]) -> None:
    for values, fine in ((good, True), (bad, False)):
        for value in values:
            assert (violation(value, schema) == "") is fine, value
            if value != "42\n":  # which Python's $ takes
                assert jsonschema.Draft202012Validator(schema).is_valid(value) is fine, value


def test_an_unknown_keyword_is_no_secret() -> None:
    with pytest.raises(KeyError, match="uniqueItems"):
        violation([], {"uniqueItems": True})


def test_a_violation_says_where() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"maximum": 3}}}}
    assert violation({"a": [1, 4]}, schema) == "/a/1 breaks maximum"
    assert violation({"a": 1}, schema) == "/a breaks type"
    assert violation(1, schema) == "/ breaks type"
