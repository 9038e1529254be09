"""Extracted JSON: parsed, valid and right are three things."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlx_diffusiongemma.evaluation.graders.schema import extracted
from mlx_diffusiongemma.evaluation.suites.structured import items, tasks
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


def test_whole_numbers_may_be_written_either_way() -> None:
    for expected in (3, 3.0):
        for answer, right in (("3", True), ("3.0", True), ("3e0", True), ("3.5", False), ("true", False)):
            assert extracted([expected], {"type": "array"})(Reply(f"[{answer}]")).strict is right


def test_every_task_takes_its_own_value_and_no_other() -> None:
    values = [json.dumps(item["expected"], ensure_ascii=False) for item in items()]
    for index, task in enumerate(tasks()):
        assert [task.grade(Reply(value)).strict for value in values].index(True) == index // 2
        assert sum(task.grade(Reply(value)).lenient for value in values) == 1
