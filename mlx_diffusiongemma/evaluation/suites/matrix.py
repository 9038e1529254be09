"""Ten tasks with traps, graded on the final answer only: bugs to fix, a regular expression, SQL with NULL,
JSON, three puzzles whose well-known versions have other answers, a program to trace, exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

from mlx_diffusiongemma.evaluation.graders.code import executed
from mlx_diffusiongemma.evaluation.graders.json_text import document
from mlx_diffusiongemma.evaluation.graders.jugs import moves
from mlx_diffusiongemma.evaluation.graders.number import number
from mlx_diffusiongemma.evaluation.graders.pattern import fullmatch
from mlx_diffusiongemma.evaluation.graders.sql import query
from mlx_diffusiongemma.evaluation.graders.text import lines
from mlx_diffusiongemma.evaluation.task import Grader, Task

_ONLY_CODE = """
Reply with only the code of the corrected function: no explanation, no examples of use. One ``` code fence
around the code is allowed.
"""
BUGGY_MERGE = """\
def merge(left, right):
    result = []
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] < right[j]:
            result.append(left[i])
            i += 1
        elif left[i] > right[j]:
            result.append(right[j])
            j += 1
        else:
            result.append(left[i])
            i += 1
            j += 1
    result.extend(left[i:] or right[j + 1:])
    return result
"""
_MERGE = f"""\
This Python function should merge two sorted lists of integers into one sorted list that holds every element
of both, equal ones as often as they occur in the two lists together. It has bugs. Correct it.

{BUGGY_MERGE}{_ONLY_CODE}"""
MERGES: tuple[tuple[list[int], list[int], list[int]], ...] = (
    ([], [], []),
    ([], [1], [1]),
    ([1], [], [1]),
    ([1], [1], [1, 1]),
    ([1, 3, 5], [2, 4, 6], [1, 2, 3, 4, 5, 6]),
    ([1, 2], [3, 4, 5], [1, 2, 3, 4, 5]),
    ([3, 4, 5], [1, 2], [1, 2, 3, 4, 5]),
    ([1, 1, 2], [1, 2, 2], [1, 1, 1, 2, 2, 2]),
    ([-5, 0], [-5, -1, 0, 0], [-5, -5, -1, 0, 0, 0]),
    ([7], [1, 2, 3, 9, 10], [1, 2, 3, 7, 9, 10]),
    ([0, 0, 0], [0], [0, 0, 0, 0]),
    (list(range(0, 100, 2)), list(range(1, 100, 2)), list(range(100))),
)

BUGGY_SEARCH = """\
def find_first(numbers, wanted):
    low, high = 0, len(numbers) - 1
    while low < high:
        middle = (low + high) // 2
        if numbers[middle] == wanted:
            return middle
        if numbers[middle] < wanted:
            low = middle + 1
        else:
            high = middle - 1
    return -1
"""
_SEARCH = f"""\
This Python function should return the index of the first occurrence of `wanted` in a list of integers that is
sorted in ascending order, or -1 when it does not occur, by binary search. It has bugs. Correct it.

{BUGGY_SEARCH}{_ONLY_CODE}"""
SEARCHES: tuple[tuple[list[int], int, int], ...] = (
    ([], 1, -1),
    ([1], 1, 0),
    ([1], 0, -1),
    ([1], 2, -1),
    ([1, 3], 1, 0),
    ([1, 3], 3, 1),
    ([1, 3], 2, -1),
    ([2, 2, 2, 2], 2, 0),
    ([1, 2, 2, 2, 3], 2, 1),
    ([1, 2, 3, 3], 3, 2),
    ([-9, -4, 0, 5, 8], -9, 0),
    ([-9, -4, 0, 5, 8], 8, 4),
    ([-9, -4, 0, 5, 8], 9, -1),
    (list(range(0, 2000, 2)), 1998, 999),
    (list(range(0, 2000, 2)), 1001, -1),
    ([4] * 20 + [5] * 20, 5, 20),
)
# A binary search of 1000 numbers reads some 20 of them; whoever scans reads hundreds. A slice is one read,
# and what is read of it counts, too. The names must not be those of helpers in an answer.
_COUNTED_READS = """

class _CountedReads(list):
    reads = 0  # of all lists together

    def __getitem__(self, index):
        _CountedReads.reads += 1
        found = super().__getitem__(index)
        return _CountedReads(found) if isinstance(index, slice) else found

    def _scanned(name):
        def scan(self, *arguments):
            _CountedReads.reads += len(self)
            return getattr(list, name)(self, *arguments)
        return scan

    __iter__, __reversed__, __contains__ = map(_scanned, ("__iter__", "__reversed__", "__contains__"))
    index, count, copy = map(_scanned, ("index", "count", "copy"))


def counted_find_first(numbers, wanted):
    _CountedReads.reads = 0
    found = find_first(_CountedReads(numbers), wanted)
    reads = _CountedReads.reads
    return found if reads <= 100 else f"a scan: {reads} reads of {len(numbers)} numbers"
"""

_IPV4 = """\
Write a regular expression in Python's syntax for `re.fullmatch(pattern, text)`, without flags. It matches
exactly when the text is an IPv4 address: four decimal numbers from 0 to 255 in ASCII digits, without leading
zeros (0 itself is fine), with a single dot between two numbers and nothing else before, between or after.

Reply with only the pattern, in one line: no quotes, no slashes, no code fence, no explanation.
"""
ADDRESSES = {
    "7.10.99.255": True,
    "250.249.200.100": True,
    "22.199.209.0": True,
    "256.1.1.1": False,
    "01.2.3.4": False,
    "1.2.3": False,
    "1.2.3.4.5": False,
    "1234": False,
    "1.2.3.4.": False,
    "1.2.3.4\n": False,
    " 1.2.3.4": False,
    "1.2.3.٤": False,
    "2٤.2.3.4": False,
    "1٤٤.2.3.4": False,
    "20٤.2.3.4": False,
    "1a2a3a4": False,
}

_PERSONS = """\
CREATE TABLE person (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    manager_id INTEGER REFERENCES person (id), -- NULL: has no manager
    city TEXT -- NULL: not known
);
INSERT INTO person VALUES
"""
SHOWN_PERSONS = f"""{_PERSONS}\
    (1, 'Ada', NULL, 'Oslo'),
    (2, 'Ben', 1, 'Bergen'),
    (3, 'Cleo', 1, 'Oslo'),
    (4, 'Dan', 2, NULL),
    (5, 'Eva', 2, 'Oslo'),
    (6, 'Finn', NULL, 'Bodo');
"""
HIDDEN_PERSONS = f"""{_PERSONS}\
    (11, 'Una', NULL, NULL),
    (12, 'Kim', 11, NULL),
    (13, 'Kim', 11, 'Oslo'),
    (14, 'Kim', 13, 'Oslob'),
    (15, 'Per', 13, 'Oslo'),
    (16, 'Liv', NULL, NULL),
    (17, 'Bo', 16, 'Odda'),
    (18, 'Ann', NULL, 'Oslo');
"""
_SQL = f"""\
Given this SQLite database:

{SHOWN_PERSONS}
Write one query that lists the names of all persons who are nobody's manager and do not live in Oslo.
A person whose city is not known counts as not living in Oslo. The result has one column, the name, and one
row for each such person, in ascending order of the names. The query must be right for other rows, too.

Reply with only the query: no explanation. One ``` code fence around the query is allowed.
"""

_JSON = r"""Write one JSON object with exactly these keys and values:

- "path": the string C:\new\table (two backslashes in the string, one before each of the last two words)
- "quote": the string She said "no". (with the double quotes and the full stop)
- "lines": one string that consists of the word one, a line feed, and the word two
- "letters": the number of letters in the word "parallel", an integer
- "sizes": an array of the integers 3, 1, 2 in this order
- "none": an array without elements
- "missing": null
- "deep": an object whose only key is "a b"; the value of that key is an object whose only key is the empty
  string, with the value true

Reply with only the JSON object: no code fence, no other text.
"""
DOCUMENT = {
    "path": "C:\\new\\table",
    "quote": 'She said "no".',
    "lines": "one\ntwo",
    "letters": 8,
    "sizes": [3, 1, 2],
    "none": [],
    "missing": None,
    "deep": {"a b": {"": True}},
}

_BATBALL = """\
A notebook and a pen cost 3.74 dollars together. The notebook costs 2.90 dollars more than the pen. How many
cents does the pen cost? Reply with only the number.
"""

_JUGS = """\
Jug A holds 4 litres, jug B holds 7 litres; neither has marks. At the start A is full and B is empty. There
is a tap and a drain. Get exactly 5 litres into jug B, with as few moves as possible; what is in A at the end
does not matter.

The moves are:
fill A (or B): fill the jug to the brim from the tap
empty A (or B): pour all that is in the jug into the drain
pour A B (or B A): pour from the first jug into the second until the first is empty or the second is full

Reply with only the moves, one in each line, written exactly as above, such as: fill B
"""

_MONTY = """\
A car is behind one of three closed doors, each equally likely; a goat is behind each of the other two. You
choose a door. The host does not know where the car is. He opens one of the two other doors at random, and it
happens to show a goat. You now switch to the last closed door. What is the probability that you get the car?

Reply with only the probability, as a fraction in lowest terms such as 3/7.
"""

TRACED = """\
def add(item, box=[]):
    box.append(item)
    return box

def count(key, seen={}):
    seen[key] = seen.get(key, 0) + 1
    return seen[key]

first = add(1)
second = add(2, [])
third = add(3)
print(first)
print(second)
print(third is first)
print(count("a"), count("b"), count("a"), count("a", {}))
print(add(4, second))
print(add(5))
print(len(first), len(second))
"""
_TRACE = f"""\
What does this Python program print?

{TRACED}
Reply with only the printed lines, exactly as they are printed: no code fence, no other text.
"""
PRINTED = ("[1, 3]", "[2]", "True", "1 1 2 1", "[2, 4]", "[1, 3, 5]", "3 2")

_ARITHMETIC = """\
Compute exactly: 7483 * 9216 * 357 + 88 ** 5 - 40320 * 719

Reply with only the number, as plain digits: no separators, no other text.
"""


def tasks() -> list[Task]:
    return [
        _task("bugfix_merge", _MERGE, executed("merge", [([a, b], r) for a, b, r in MERGES]), True),
        _task(
            "bugfix_bsearch",
            _SEARCH,
            executed("counted_find_first", [([a, w], r) for a, w, r in SEARCHES], harness=_COUNTED_READS),
            True,
        ),
        _task("regex_ipv4", _IPV4, fullmatch(ADDRESSES), True),
        _task(
            "sql_null_trap",
            _SQL,
            query(
                [
                    (SHOWN_PERSONS, [["Dan"], ["Finn"]]),
                    (HIDDEN_PERSONS, [["Bo"], ["Kim"], ["Kim"]]),
                ]
            ),
            True,
        ),
        _task("json_strict", _JSON, document(DOCUMENT)),
        _task("trap_batball", _BATBALL, number(42)),
        _task("trap_jugs", _JUGS, moves({"A": 4, "B": 7}, {"A": 4, "B": 0}, {"B": 5}, most=7)),
        _task("trap_monty_random", _MONTY, number(Fraction(1, 2))),
        _task("trace_mutable_default", _TRACE, lines(PRINTED)),
        _task("arith_exact", _ARITHMETIC, number(29868237184)),
    ]


def _task(name: str, prompt: str, grade: Grader, executes: bool = False) -> Task:
    return Task(name, prompt, grade, settings={"max_new_tokens": 4096}, executes=executes)
