"""Graders: strict comparison, and one lenient rule."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.evaluation import sandbox
from mlx_diffusiongemma.evaluation.graders import json_text
from mlx_diffusiongemma.evaluation.graders.code import executed, fullmatch, query
from mlx_diffusiongemma.evaluation.graders.json_text import document, extracted, strict_json
from mlx_diffusiongemma.evaluation.graders.text import lines, shortened
from mlx_diffusiongemma.evaluation.task import Reply

YES, WRAPPED, NO = (True, True), (False, True), (False, False)


@pytest.mark.parametrize(("answer", "worth"), [
    ("12", YES), ("\n 12 ", YES), ("12.", WRAPPED),
    ("  ~~~~python\n12\n~~~~ ", WRAPPED), ("```\n12", NO), ("x\n```\n12\n```", NO),
    ("```\n12\n```", WRAPPED),
    ("```text\n12.\n```\n", WRAPPED), ("12 .", WRAPPED), ("12..", NO), ("The answer is 12", NO),
    ("**12**", NO), ("13", NO), ("", NO),
])  # fmt: skip
def test_the_lenient_rule(answer: str, worth: tuple[bool, bool]) -> None:
    grade = lines("12")(Reply(answer))
    assert (grade.strict, grade.lenient) == worth
    assert bool(grade.reason) is not grade.strict


def test_lines_are_compared_one_by_one_up_to_normalization() -> None:
    grade = lines("é.", "b")
    assert grade(Reply("e\u0301.\r\nb")).strict
    assert grade(Reply("```\né.\nb\n```")).lenient
    assert grade(Reply("é\nb")).reason == r"line 1: '\xe9' is not '\xe9.'"
    assert grade(Reply("é.")).reason == "1 lines, not 2"


@pytest.mark.parametrize("value", ["a\x1b", "\ud800" * 500, 10**5000, {"x": [1]}, None], ids=type)
def test_reasons_are_short_and_printable(value: Any) -> None:
    assert shortened(value).isascii()
    assert shortened(value).isprintable()
    assert len(shortened(value)) <= 60


# --- JSON -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    "NaN", '{"a": 1, "a": 1}', "[1,]", "{'a': 1}", "1 2", "", "9" * 5000, "[" * 90_000, "01", '"\n"',
    "-Infinity",
])  # fmt: skip
def test_texts_that_are_not_json(text: str) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        strict_json(text)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(("answer", "worth"), [
    ('{"b": [1, null], "a": 2.5}', YES), ('```json\n{"a": 2.5, "b": [1, null]}\n```', WRAPPED),
    ('{"a": 2.5, "b": [1, null]}.', WRAPPED), ('Here: {"a": 2.5, "b": [1, null]}', NO),
    ('{"a": 2.5, "b": [1.0, null]}', NO), ('{"a": 2.5, "b": [true, null]}', NO),
    ('{"a": 2.5, "b": [null, 1]}', NO), ('{"a": 2.5}', NO), ('{"a": 2.5, "b": [1, null], "c": 1}', NO),
])  # fmt: skip
def test_a_document_is_compared_in_types_too(answer: str, worth: tuple[bool, bool]) -> None:
    grade = document({"a": 2.5, "b": [1, None]})(Reply(answer))
    assert (grade.strict, grade.lenient) == worth


def test_differences_are_named() -> None:
    grade = document({"a": {"b": 1}})
    assert grade(Reply('{"a": {"b": 2}}')).reason == "'a': 'b': 2 is not 1"
    assert grade(Reply('{"a": {}}')).reason == "'a': key 'b' is missing"
    assert grade(Reply('{"a": {"b": 1}, "c": 2}')).reason == "key 'c' was not asked for"


@pytest.mark.parametrize(("answer", "details", "worth"), [
    ('{"n": 3}', (True, True, True), YES), ('{"n": 3.0}', (True, True, True), YES),
    ('```\n{"n": 3}\n```', (True, True, True), WRAPPED), ('{"n": 4}', (True, True, False), NO),
    ('{"n": "3"}', (True, False, False), NO), ('{"n": 3', (False, False, False), NO),
])  # fmt: skip
def test_an_extraction(answer: str, details: tuple[bool, ...], worth: tuple[bool, bool]) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    grade = extracted({"n": 3}, schema)(Reply(answer))
    assert (grade.strict, grade.lenient) == worth
    assert grade.details == dict(zip(("parses", "valid", "right"), details, strict=True))
    assert ("not valid" in grade.reason) == (details[:2] == (True, False))


def test_recursive_schemas_and_deep_documents() -> None:
    schema = {"type": "array", "items": {"$ref": "#"}}
    grade = extracted([], schema)
    assert grade(Reply("[]")).strict
    assert not grade(Reply("[" * 900 + "]" * 900)).lenient


def test_without_jsonschema(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(json_text, "import_module", missing)
    with pytest.raises(InputError, match=r"needs jsonschema.*; pip install 'mlx-diffusiongemma\[eval\]'"):
        extracted(1, {})


# --- code -------------------------------------------------------------------------------------------------

DOUBLE = "def double(x):\n    return 2 * x"


@pytest.mark.parametrize(("answer", "worth", "reason"), [
    (DOUBLE, YES, ""), (f"import math\nX = 1\n{DOUBLE}", YES, ""),
    (f"```python\n{DOUBLE}\n```", YES, ""), (f"{DOUBLE}\nprint(double(1))", NO, "more than the code"),
    (f"Here:\n```\n{DOUBLE}\n```", NO, "SyntaxError"),
    (DOUBLE.replace("2", "3"), NO, "double(1) gave 3, not 2"),
    (DOUBLE.replace("2 * x", "float(2 * x)"), NO, "double(1) gave 2.0, not 2"),
    (DOUBLE.replace("2 * x", "1 / 0"), NO, "ZeroDivisionError"),
    (DOUBLE.replace("double", "twice"), NO, "no function named double"),
    ("def double(x):\n    return '\ud800'", NO, "UnicodeEncodeError"),
])  # fmt: skip
def test_programs(answer: str, worth: tuple[bool, bool], reason: str) -> None:
    grade = executed("double", [([1], 2), (["a"], "aa")])(Reply(answer))
    assert (grade.strict, grade.lenient) == worth
    assert reason in grade.reason


def test_patterns_and_queries() -> None:
    pattern = fullmatch({"a": True, "b": False})
    assert pattern(Reply("a")).strict
    assert pattern(Reply("```\na\n```")).lenient
    assert pattern(Reply(".")).reason == "matches('.', 'b') gave True, not False"
    assert "error" in pattern(Reply("(")).reason
    rows = query([("CREATE TABLE t (x); INSERT INTO t VALUES (1), (NULL);", [[1], [None]])])
    assert rows(Reply("SELECT x FROM t")).strict
    assert rows(Reply("```sql\nSELECT x FROM t;\n```")).strict
    assert not rows(Reply("SELECT x FROM t ORDER BY x")).lenient
    assert "OperationalError" in rows(Reply("SELECT load_extension('x')")).reason
    assert not rows(Reply("SELECT 9e999, x'00ff'")).lenient


def test_right_results_never_enter_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    call = sandbox.call
    monkeypatch.setattr(sandbox, "call", lambda *args: (seen.append(args), call(*args))[1])
    executed("double", [([1], 2), ([3456], 6912)])(Reply(DOUBLE))
    assert "6912" not in json.dumps(seen)
