"""What graders make of text: fences, lines, words, and quotes that fit in a reason."""

from __future__ import annotations

import pytest

from mlx_diffusiongemma.evaluation.graders.text import (
    LENIENT_LIMIT,
    choice,
    doubtful,
    fences,
    is_fence,
    lines,
    nfc,
    plain,
    shortened,
    unfenced,
)
from mlx_diffusiongemma.evaluation.task import Reply


@pytest.mark.parametrize(
    ("text", "inside", "alone"),
    [
        ("", [], False),
        ("a", [], False),
        ("```\na\n```", ["a"], True),
        ("\n```python\na\n\nb\n```  \n", ["a\n\nb"], True),
        ("  ~~~~ c++\r\na\r\n  ~~~~", ["a\r"], True),
        ("```\n```", [""], True),
        ("words\n```\na\n```", ["a"], False),
        ("```\na\n```\nwords", ["a"], False),
        ("```\na\n```\nwords\n```", ["a"], False),
        ("```\na\n```\n```\nb\n```", ["a", "b"], False),
        ("```\na", [], False),
        ("```", [], False),
        ("```a```", [], False),
        ("a ```\nb\n```", [], False),
        ("    ```\na\n    ```", [], False),
        ("````\n```\na\n```\n````", ["```\na\n```"], True),
        ("```\n~~~\n```", ["~~~"], True),
        ("```\na\n````", ["a"], True),
        ("```\na\n```b\n```", ["a\n```b"], True),
        ("``\na\n``", [], False),
    ],
)
def test_fences(text: str, inside: list[str], alone: bool) -> None:
    assert fences(text) == inside
    assert is_fence(text) == alone
    assert unfenced(text) == (inside[0] if len(inside) == 1 else text).strip()


@pytest.mark.parametrize(
    ("line", "content"),
    [
        ("5", "5"),
        ("  5.  ", "5"),
        ("1. 5", "5"),
        ("  1. 5", "5"),
        ("5.  ", "5"),
        ("12) 5", "5"),
        ("(a) 5", "5"),
        ("- 5", "5"),
        ("* **5**", "5"),
        ("Answer: 5", "5"),
        ("**The final answer is:** `5`.", "5"),
        ("My result = 5", "5"),
        ('"5"', "5"),
        ("„pięć”.", "pięć"),
        ("5..", "5."),
        ("-5", "-5"),
        (".5", ".5"),
        ("0.5", "0.5"),
        ("1.5", "1.5"),
        ("answers 5", "answers 5"),
        ("ab. 5", "ab. 5"),
        ("123. 5", "123. 5"),
        ("- - 5", "- 5"),
        ("**a)** 5", "5"),
        ("- a) 5", "5"),
        ("* 2. **5**", "5"),
        ("**1. 5**", "5"),
        ("Step 1: 5", "5"),
        ("**Step 12:** 5", "5"),
        ("2**5", "2**5"),
        ("", ""),
        ("***", ""),
    ],
)
def test_plain_content_of_a_line(line: str, content: str) -> None:
    assert plain(line) == content


@pytest.mark.parametrize(
    ("answer", "strict", "lenient"),
    [
        ("One.\nZwei\n[3]", True, True),
        ("\n One.\nZwei\n[3]\n", True, True),
        ("One.\r\nZwei\r\n[3]", True, True),
        ("One\nZwei\n[3]", False, True),
        ("One. \nZwei\n[3]", False, True),
        ("One.\n\nZwei\n\n[3]", False, True),
        ("- One.\n- Zwei\n- [3]", False, True),
        ("The lines:\nOne.\nZwei\n[3]", False, True),
        ("**One**.\nZw**ei**\n**[**3]", False, True),
        ("One.\nZ*w*ei\n[3]", False, False),
        ("These:\n```\nOne.\nZwei\n[3]\n```\nDone", False, True),
        ("These\nOne.\nZwei\n[3]", False, False),
        ("These:\nThose:\nOne.\nZwei\n[3]", False, False),
        ("One.\nZwei\n[3]\nDone:", False, False),
        ("One.\nZwei", False, False),
        ("One.\nzwei\n[3]", False, False),
        ("Zwei\nOne.\n[3]", False, False),
        ("One. Zwei [3]", False, False),
        ("One.\nZwei\n[ 3]", False, False),
        ("", False, False),
        ("One.\nZwei\n[3]" + " " * LENIENT_LIMIT + "\nFour", False, False),
    ],
)
def test_lines(answer: str, strict: bool, lenient: bool) -> None:
    grade = lines(["One.", "Zwei", "[3]"])(Reply(answer))
    assert (grade.strict, grade.lenient) == (strict, lenient), grade.reason
    assert bool(grade.reason) == (not strict)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("a\nb", "2 lines, not 1"),
        ("b", "line 1: 'b' is not 'a'"),
        ("", "empty"),
        ("- a", "more than the lines"),
        ("a" * (LENIENT_LIMIT + 1), "100001 characters"),
    ],
)
def test_lines_say_what_is_wrong(answer: str, reason: str) -> None:
    grade = lines(["a"])(Reply(answer))
    assert (grade.strict, grade.lenient, grade.reason) == (False, reason.startswith("more"), reason)


@pytest.mark.parametrize(
    ("answer", "strict", "lenient"),
    [
        ("Red", True, True),
        ("\nRed ", True, True),
        ("red", False, True),
        ("Red.", False, True),
        ("It is Red, truly Red.", False, True),
        ("```\nRed\n```", False, True),
        ("Green", False, False),
        ("Red or Green", False, False),
        ("Redder", False, False),
        ("Not Red", False, False),
        ("It isn't Red", False, False),
        ("It isn’t Red", False, False),
        ("Re d", False, False),
        ("", False, False),
        ("Red" + " " * LENIENT_LIMIT + "x", False, False),
    ],
)
def test_choice(answer: str, strict: bool, lenient: bool) -> None:
    grade = choice("Red", ["Green", "Red", "Re+"])(Reply(answer))
    assert (grade.strict, grade.lenient) == (strict, lenient), grade.reason
    assert bool(grade.reason) == (not strict)


def test_texts_are_compared_normalized() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for expected, answer in ((composed, decomposed), (decomposed, composed)):
        assert lines([expected])(Reply(answer)).strict
        assert lines([expected])(Reply(f"- {answer}.")).lenient
        assert choice(expected, [expected, "tea"])(Reply(answer)).strict
        assert choice(expected, [expected, "tea"])(Reply(f"Ein {answer}.")).lenient
    assert nfc(decomposed) == composed
    assert nfc("e" + "\u0301\u0316" * 49_999)[0] == "e"  # what would take seconds is left as it is


def test_a_choice_says_what_is_wrong() -> None:
    reasons = [choice("a", ["a", "b"])(Reply(answer)).reason for answer in ("", "b", "A", "a" * 100_001)]
    assert reasons == ["empty", "'b' is not 'a'", "more than the word", "100001 characters"]


@pytest.mark.parametrize(
    "text",
    [
        "not a",
        "approx. a",
        "all except a",
        "without a",
        "ca. 5",
        "a?",
        "less than 5",
        "≈ 5",
        "5 != 6",
        "it can't be",
        "Actually, 5",
        "at least 5",
    ],
)
def test_doubts(text: str) -> None:
    assert doubtful(text)
    assert not doubtful("The notebook is thanked: 5 = 5, nothing more.")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([1, "a"], "[1, 'a']"),
        ("\ud800\n\u2028", r"'\ud800\n\u2028'"),
        ("x" * 58, "'" + "x" * 58 + "'"),
        ("x" * 59, "'" + "x" * 43 + " ... " + "x" * 9 + "'"),
        ("a" * 10**6 + "b", "'" + "a" * 43 + " ... " + "a" * 8 + "b'"),
    ],
)
def test_shortened(value: object, text: str) -> None:
    assert shortened(value) == text


def test_a_number_too_long_for_python_is_shortened() -> None:
    assert shortened(10**5000) == "a int that is too large to show"
