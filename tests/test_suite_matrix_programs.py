"""The suite of ten traps: programs, patterns and queries, right, wrapped and wrong, all of them run."""

from __future__ import annotations

import contextlib
import ipaddress
import sqlite3

import pytest
from grading import check_grade

from mlx_diffusiongemma.evaluation.suites import matrix
from mlx_diffusiongemma.evaluation.task import Reply

TASKS = {task.name: task for task in matrix.tasks()}
MERGE = "def merge(left, right):\n    return sorted(left + right)"
TWO_POINTERS = """\
def merge(left, right):
    result = []
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            result.append(left[i])
            i += 1
        else:
            result.append(right[j])
            j += 1
    return result + left[i:] + right[j:]
"""
SEARCH = """\
def find_first(numbers, wanted):
    low, high = 0, len(numbers)
    while low < high:
        middle = (low + high) // 2
        if numbers[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low if low < len(numbers) and numbers[low] == wanted else -1
"""
BISECT = """\
from bisect import bisect_left

def find_first(numbers, wanted):
    low = bisect_left(numbers, wanted)
    return low if low < len(numbers) and numbers[low] == wanted else -1
"""
RECURSIVE = """\
def find_first(numbers, wanted, low=0, high=None):
    high = len(numbers) if high is None else high
    if low == high:
        return low if low < len(numbers) and numbers[low] == wanted else -1
    middle = (low + high) // 2
    if numbers[middle] < wanted:
        return find_first(numbers, wanted, middle + 1, high)
    return find_first(numbers, wanted, low, middle)
"""
SLICES = """\
def find_first(numbers, wanted):
    if len(numbers) < 2:
        return 0 if numbers and numbers[0] == wanted else -1
    middle = len(numbers) // 2
    if numbers[middle - 1] >= wanted:
        return find_first(numbers[:middle], wanted)
    place = find_first(numbers[middle:], wanted)
    return place + middle if place >= 0 else -1
"""
SCANS = (
    "return numbers.index(wanted) if wanted in numbers else -1",
    "return next((at for at, number in enumerate(numbers) if number == wanted), -1)",
    "return next((at for at in range(len(numbers)) if numbers[at] == wanted), -1)",
    "return len([number for number in numbers if number < wanted]) if numbers.count(wanted) else -1",
    "return min((at for at in range(len(numbers))[::-1] if numbers[at] == wanted), default=-1)",
    "return ([*reversed(numbers)][::-1] + [wanted]).index(wanted) if wanted in set(numbers) else -1",
    "return next((at for at, number in enumerate(numbers[:]) if number == wanted), -1)",
)
OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
IPV4 = rf"{OCTET}(?:\.{OCTET}){{3}}"
QUERY = """\
SELECT p.name FROM person AS p
WHERE NOT EXISTS (SELECT 1 FROM person AS q WHERE q.manager_id = p.id)
AND (p.city <> 'Oslo' OR p.city IS NULL) ORDER BY p.name
"""
NOT_IN = """\
SELECT name FROM person WHERE id NOT IN (SELECT manager_id FROM person WHERE manager_id IS NOT NULL)
AND city IS NOT 'Oslo' ORDER BY name;"""


@pytest.mark.parametrize(
    ("name", "answer", "strict", "lenient"),
    [
        ("bugfix_merge", MERGE, True, True),
        ("bugfix_merge", TWO_POINTERS, True, True),
        ("bugfix_merge", f"```python\n{TWO_POINTERS}```", True, True),
        ("bugfix_merge", f"The tail was lost.\n```python\n{TWO_POINTERS}```", False, True),
        ("bugfix_merge", matrix.BUGGY_MERGE, False, False),
        ("bugfix_merge", matrix.BUGGY_MERGE.replace("j + 1:", "j:"), False, False),
        ("bugfix_merge", TWO_POINTERS.replace(" + right[j:]", ""), False, False),
        ("bugfix_merge", "def merge(left, right):\n    return sorted({*left, *right})", False, False),
        ("bugfix_merge", "def merge(left, right):\n    return left + right", False, False),
        ("bugfix_merge", f"{MERGE}.append(0)", False, False),
        ("bugfix_merge", f"I return sorted(left + right).\n{MERGE}", False, False),
        ("bugfix_bsearch", SEARCH, True, True),
        ("bugfix_bsearch", f"```\n{SEARCH}\n```", True, True),
        ("bugfix_bsearch", f"```py\n{SEARCH}\n```\nIt now finds the first.", False, True),
        ("bugfix_bsearch", BISECT, True, True),
        ("bugfix_bsearch", RECURSIVE, True, True),
        ("bugfix_bsearch", SLICES, True, True),
        ("bugfix_bsearch", f"{SEARCH}\nprint(find_first([1], 1))", False, True),
        ("bugfix_bsearch", "", False, False),
        *(
            ("bugfix_bsearch", f"def find_first(numbers, wanted):\n    {scan}", False, False)
            for scan in SCANS
        ),
        ("bugfix_bsearch", matrix.BUGGY_SEARCH, False, False),
        ("bugfix_bsearch", matrix.BUGGY_SEARCH.replace("low < high", "low <= high"), False, False),
        ("bugfix_bsearch", SEARCH.replace("high = middle", "high = middle - 1"), False, False),
        ("bugfix_bsearch", SEARCH.replace("< wanted", "<= wanted"), False, False),
        ("bugfix_bsearch", SEARCH.replace("else -1", "else None"), False, False),
        ("bugfix_bsearch", SEARCH.replace("low < len(numbers) and ", ""), False, False),
        ("regex_ipv4", IPV4, True, True),
        ("regex_ipv4", f"^{IPV4}$", True, True),
        ("regex_ipv4", rf"({OCTET}\.){{3}}{OCTET}\Z", True, True),
        ("regex_ipv4", f"`{IPV4}`", False, True),
        ("regex_ipv4", f"The pattern is `{IPV4}`.", False, True),
        ("regex_ipv4", f"**`{IPV4}`**", False, True),
        ("regex_ipv4", rf"({OCTET}\.?){{4}}", False, False),
        ("regex_ipv4", rf"({OCTET}(\.|$)){{4}}", False, False),
        ("regex_ipv4", IPV4.replace("1[0-9][0-9]", r"1\d\d"), False, False),
        ("regex_ipv4", IPV4.replace("2[0-4][0-9]", r"2[0-4]\d"), False, False),
        ("regex_ipv4", IPV4.replace("[1-9]?[0-9]", r"[1-9]?\d"), False, False),
        ("regex_ipv4", IPV4.replace("[1-9]?[0-9]", r"[1-9]\d|[0-9]"), False, False),
        ("regex_ipv4", IPV4.replace("[1-9]?[0-9]", "[1-9]?[1-9]"), False, False),
        ("regex_ipv4", IPV4.replace("[1-9]?[0-9]", "[1-9][0-9]"), False, False),
        ("regex_ipv4", f"```regex\n{IPV4}\n```", False, True),
        ("regex_ipv4", f"r'{IPV4}'", False, True),
        ("regex_ipv4", IPV4.replace(r"\.", "."), False, False),
        ("regex_ipv4", IPV4.replace("[0-9]", r"\d"), False, False),
        ("regex_ipv4", IPV4.replace("[1-9]?[0-9]", "[0-9]{1,2}"), False, False),
        ("regex_ipv4", IPV4.replace("25[0-5]", "25[0-6]"), False, False),
        ("regex_ipv4", IPV4.replace("2[0-4][0-9]|", ""), False, False),
        ("regex_ipv4", IPV4.replace("{3}", "{2,4}"), False, False),
        ("regex_ipv4", rf"\s*{IPV4}", False, False),
        ("regex_ipv4", rf"{IPV4}\s*", False, False),
        ("regex_ipv4", f"Use {IPV4}", False, False),
        ("regex_ipv4", IPV4[1:], False, False),
        ("sql_null_trap", QUERY, True, True),
        ("sql_null_trap", NOT_IN, True, True),
        ("sql_null_trap", f"```sql\n{NOT_IN}\n```", True, True),
        ("sql_null_trap", f"This query does it:\n```sql\n{NOT_IN}\n```", False, True),
        ("sql_null_trap", NOT_IN.replace(" WHERE manager_id IS NOT NULL", ""), False, False),
        ("sql_null_trap", NOT_IN.replace("IS NOT 'Oslo'", "<> 'Oslo'"), False, False),
        ("sql_null_trap", NOT_IN.replace("ORDER BY name", "ORDER BY name DESC"), False, False),
        ("sql_null_trap", NOT_IN.replace("SELECT name", "SELECT DISTINCT name"), False, False),
        ("sql_null_trap", NOT_IN.replace("SELECT name", "SELECT name, city"), False, False),
        ("sql_null_trap", NOT_IN.replace("IS NOT 'Oslo'", "NOT LIKE 'O%'"), False, False),
        (
            "sql_null_trap",
            NOT_IN.replace("AND city IS NOT 'Oslo'", "AND coalesce(city, '') NOT LIKE 'O%'"),
            False,
            False,
        ),
        (
            "sql_null_trap",
            NOT_IN.replace("AND city IS NOT 'Oslo'", "AND coalesce(city, '') NOT LIKE '%Oslo%'"),
            False,
            False,
        ),
        (
            "sql_null_trap",
            "SELECT name FROM person WHERE name NOT IN (SELECT m.name FROM person p JOIN person m "
            "ON p.manager_id = m.id) AND city IS NOT 'Oslo' ORDER BY name",
            False,
            False,
        ),
        ("sql_null_trap", "SELECT 'Dan' UNION ALL SELECT 'Finn'", False, False),
        ("sql_null_trap", f"{NOT_IN} SELECT 1", False, False),
        ("sql_null_trap", "ATTACH 'other.db' AS other", False, False),
        ("sql_null_trap", "PRAGMA writable_schema = 1", False, False),
        ("sql_null_trap", "SELECT load_extension('other')", False, False),
        ("sql_null_trap", "DELETE FROM person", False, False),
        ("sql_null_trap", "SELECT 9e999, x'00ff', NULL", False, False),
    ],
)
def test_answers_are_graded_to_the_letter(name: str, answer: str, strict: bool, lenient: bool) -> None:
    check_grade(TASKS[name], answer, strict, lenient)


def test_merges_and_searches_are_right() -> None:
    for left, right, merged in matrix.MERGES:
        assert (left, right, merged) == (sorted(left), sorted(right), sorted(left + right))
    for numbers, wanted, place in matrix.SEARCHES:
        assert numbers == sorted(numbers)
        assert place == (numbers.index(wanted) if wanted in numbers else -1)
    assert matrix.BUGGY_MERGE in TASKS["bugfix_merge"].prompt
    assert matrix.BUGGY_SEARCH in TASKS["bugfix_bsearch"].prompt


def test_a_scan_is_named() -> None:
    grade = TASKS["bugfix_bsearch"].grade(Reply(f"def find_first(numbers, wanted):\n    {SCANS[0]}"))
    assert grade.reason.endswith("gave 'a scan: 2000 reads of 1000 numbers', not 999")
    assert grade.details == {"cases": 16, "passed": 14}


def test_addresses_are_what_the_library_takes() -> None:
    assert len(matrix.ADDRESSES) == 16
    for text, right in matrix.ADDRESSES.items():
        try:
            assert str(ipaddress.IPv4Address(text)) == text
            assert right
        except ValueError:
            assert not right


@pytest.mark.parametrize(("fixture", "names"), [("SHOWN", ["Dan", "Finn"]), ("HIDDEN", ["Bo", "Kim", "Kim"])])
def test_rows_are_what_the_question_asks(fixture: str, names: list[str]) -> None:
    script = getattr(matrix, f"{fixture}_PERSONS")
    connection = sqlite3.connect(":memory:")
    with contextlib.closing(connection):
        connection.executescript(script)
        persons = connection.execute("SELECT id, name, manager_id, city FROM person").fetchall()
        assert [name for (name,) in connection.execute(QUERY)] == names
    managers = {manager for _, _, manager, _ in persons}
    assert None in managers
    assert sorted(name for id_, name, _, city in persons if id_ not in managers and city != "Oslo") == names
    assert (script in TASKS["sql_null_trap"].prompt) == (fixture == "SHOWN")
