"""Numbers in a reply: every notation of a value is that value, and no other text gives it."""

from __future__ import annotations

from fractions import Fraction

import pytest

from mlx_diffusiongemma.evaluation.graders.number import number, numbers, said
from mlx_diffusiongemma.evaluation.task import Reply


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1234", 1234),
        ("+7", 7),
        ("-7", -7),
        ("−7", -7),
        ("–7", -7),
        ("= - 7", -7),
        ("007", 7),
        ("1,234,567", 1234567),
        ("1 234 567", 1234567),
        ("1\u202f234\u202f567", 1234567),
        ("1'234’567", 1234567),
        ("12.50", Fraction(25, 2)),
        (".5", Fraction(1, 2)),
        ("1,234.5", Fraction(2469, 2)),
        ("3/4", Fraction(3, 4)),
        ("6 / 8", Fraction(3, 4)),
        ("-3/4", Fraction(-3, 4)),
        ("75 %", Fraction(3, 4)),
        ("75%.", Fraction(3, 4)),
        (r"75\%", Fraction(3, 4)),
        ("½", Fraction(1, 2)),
        (r"$\frac{3}{4}$", Fraction(3, 4)),
        (r"\(\dfrac{3}{4}\)", Fraction(3, 4)),
        (r"$\boxed{12}$", 12),
        ("**12**", 12),
        ("`12`", 12),
        ("```\n12\n```", 12),
        ("Answer: 12", 12),
        ("So 12 it is: 12.0, that is 24/2!", 12),
        ("6 + 6 gives\n\n**12**", 12),
        ("It could be 5.\nFinal answer: 12", 12),
        ("1⁄2", Fraction(1, 2)),
        (r"$\frac12$", Fraction(1, 2)),
        ("1/2 (one half).", Fraction(1, 2)),
        ("$12{,}345{,}678$", 12345678),
        (r"12\,345", 12345),
        (r"\[ x = 12 \text{ cents} \]", 12),
        (r"$3 \times 4 = 12$", 12),
        ("First:\n" r"$2 \cdot 2 = 4$" "\n" r"$3 \times 2^2 = 12$", 12),
        ("12\n\nCheck: 5 + 7 = 12", 12),
        ("Answer: 12\nCheck: 12 / 2 = 6", 12),
        ("**12**\n\nVerification:\n5 + 7 = 12", 12),
        ("2x = 24\nThe pen costs 12 cents.", 12),
        ("Let x be the price.\nStep 1: 2x + 5 = 29\n\nTotal: 12", 12),
        ("A pen is 24 pence.\nTwo are 48.\n**Answer: 12 cents**", 12),
        ("Answer: 5\nFinal answer: 12", 12),
        ("The temperature is -5 degrees.", -5),
        ("6 * 2 = 12", 12),
        ("x + x = 24, so\n2x = 24, x = **12**.", 12),
        ("9" * 200, int("9" * 200)),
    ],
)
def test_a_value_in_its_notations(text: str, value: int | Fraction) -> None:
    assert said(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "twelve",
        "12 13",
        "12 or 13",
        "12, not 13",
        "it is not 12",
        "about 12",
        "~12",
        "≈ 12",
        "more than 12",
        "12 thousand",
        "12k",
        "1.2e1",
        "x12",
        "12x",
        "$12",
        "12 €",
        "12 dollars",
        "12 percent",
        "12 thirds",
        "12, or rather thirteen",
        "not 5 = 12",
        "x = 12 + 1",
        "x = 12 = 13 euros",
        "x = 12\nx + 1",
        "2^12",
        "12/0",
        "1/2/3",
        "1.2.3",
        "12,5",
        "5,5",
        "12 ⅓",
        "٣ 12",
        r"$x \ne 12$",
        r"x \neq 12",
        r"$x \approx 12$",
        r"\sqrt{12}",
        "√12",
        "approx. 12",
        "ca. 12",
        "minus 12",
        "negative 12",
        "x - 12",
        "pen + 12",
        "x × 12",
        "12 and a half",
        "half of 12",
        "twice 12",
        "up to 12",
        "12+",
        "12?",
        "12-ish",
        "12 k",
        "everything except 12",
        "Everything but\n12",
        "84\n12",
        "Answer: 84\n\n12",
        "The pen costs 24 cents.\nThe pen is cheap: 12",
        "The pen costs 24 cents.\nCheck: 24 / 2 = 12",
        "Answer: 24\nCheck: 36 / 3 = 12",
        "x = 24\nCheck: 24 / 2 = 12",
        "x = 24\nThe book minus the pen = 12",
        "The answer is x = 24.\n24 / 2 = 12",
        "Answer: 24\nMy answer: 12",
        "So the answer is x = 24.\n24 / 2 = 12",
        "12\n\nCheck: x = 24",
        "12\n\nCheck: 5 + 7 = 12\n13\nx = 1",
        "12\n\nCheck: 12 is wrong, x = 24",
        "12\n\nCheck: 12 + 12, that is 24",
        "12\n\nSo x = 12 + 12",
        "12.345.678",
        "1,23",
        "12½",
        "12²",
        "١٢",
        "12\n13 and more",
        "12\n\nNo, 13",
        "```\n12\n```\nNo, it is 13.",
        "9" * 201,
        "9" * 5000,
        "9." + "9" * 5000,
        "12" + " " * 100_000 + ".",
    ],
)
def test_no_value(text: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - its length is what counts
        said(text)
    assert 0 < len(str(error.value)) < 120


@pytest.mark.parametrize(
    ("expected", "answer", "strict", "lenient"),
    [
        (12, "12", True, True),
        (12, " 12\n", True, True),
        (12, "12.", False, True),
        (12, "12.0", False, True),
        (12, "+12", False, True),
        (12, "0012", False, True),
        (12, "13", False, False),
        (12, "-12", False, False),
        (12, "1200%", False, True),
        (12, "12%", False, False),
        (12, "", False, False),
        (-12, "-12", True, True),
        (-12, "−12", False, True),
        (-12, "12", False, False),
        (1234567, "1,234,567", False, True),
        (Fraction(3, 4), "3/4", True, True),
        (Fraction(3, 4), "3 / 4", False, True),
        (Fraction(3, 4), "6/8", False, True),
        (Fraction(3, 4), "0.75", False, True),
        (Fraction(3, 4), "75 %", False, True),
        (Fraction(3, 4), "4/3", False, False),
        (Fraction(3, 4), "0.7500001", False, False),
        (Fraction(3, 4), "3", False, False),
    ],
)
def test_number(expected: int | Fraction, answer: str, strict: bool, lenient: bool) -> None:
    grade = number(expected)(Reply(answer))
    assert (grade.strict, grade.lenient) == (strict, lenient), grade.reason
    assert bool(grade.reason) == (not strict)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "empty"),
        ("13", "'13' is not 12"),
        ("a", "no number"),
        ("12 and 13", "2 numbers in '12 and 13'"),
        ("not 12", "'not 12' is not a number alone"),
        ("12k", "'12' is no number of its own"),
        ("1/0", "division by 0"),
        ("12.", "more than the number, or another notation"),
        ("1" + " " * 100_000 + "2", "100002 characters"),
    ],
)
def test_a_number_says_what_is_wrong(answer: str, reason: str) -> None:
    grade = number(12)(Reply(answer))
    assert (grade.strict, grade.lenient, grade.reason) == (False, reason.startswith("more"), reason)


@pytest.mark.parametrize(
    ("answer", "strict", "lenient", "reason"),
    [
        ("1200\n-3", True, True, ""),
        ("\n1200\r\n-3 \n", True, True, ""),
        ("1200 \n-3", False, True, "more than the numbers"),
        ("1,200\n-3", False, True, "more than the numbers"),
        ("1200\n\n−3", False, True, "more than the numbers"),
        ("a) 1200\nb) -3", False, True, "more than the numbers"),
        ("1. 1200\n2. - 3", False, True, "more than the numbers"),
        ("x = 1200\ny = - 3", False, True, "more than the numbers"),
        ("600 * 2 = 1200\n4 - 7 = -3.", False, True, "more than the numbers"),
        ("The results:\n```\n1200\n-3\n```", False, True, "more than the numbers"),
        ("First: 1200\nSecond: -3\nDone.", False, True, "more than the numbers"),
        ("**a)** 1200\n**b)** -3", False, True, "more than the numbers"),
        ("- a) 1200\n- b) **-3**", False, True, "more than the numbers"),
        ("Here are the 2 results:\n1200\n-3", False, True, "more than the numbers"),
        ("x != 1200\n-3", False, False, r"'x != 1200\n-3' may deny or hedge"),
        ("1200\n-3\nThese are wrong.", False, False, r"'1200\n-3\nThese are wrong.' may deny or hedge"),
        ("1200\nHere are the 2 results:\n-3", False, False, "3 lines with numbers, not 2"),
        (r"x \ne 1200" "\n-3", False, False, None),
        ("1. - 1200\n2. -3", False, False, "line 1: '1. - 1200' is not 1200"),
        ("x = - 1200\n-3", False, False, "line 1: 'x = - 1200' is not 1200"),
        ("1200\n3", False, False, "line 2: '3' is not -3"),
        ("-3\n1200", False, False, "line 1: '-3' is not 1200"),
        ("1200", False, False, "1 lines with numbers, not 2"),
        ("1200\n-3\n0", False, False, "3 lines with numbers, not 2"),
        ("1200 -3", False, False, "1 lines with numbers, not 2"),
        ("1200 or 1201\n-3", False, False, "line 1: '1200 or 1201' is not a number alone"),
        ("1200k\n-3", False, False, "line 1: '1200k' is not a number alone"),
        ("9" * 5000 + "\n-3", False, False, None),
        ("", False, False, "empty"),
        ("1" * 100_001, False, False, "100001 characters"),
    ],
)
def test_numbers(answer: str, strict: bool, lenient: bool, reason: str | None) -> None:
    grade = numbers([1200, -3])(Reply(answer))
    assert (grade.strict, grade.lenient) == (strict, lenient), grade.reason
    assert reason is None or grade.reason == reason
