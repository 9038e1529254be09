"""The suite matrix: ten tasks with traps, graded on the answer only.

They are two bugs to fix, a regular expression, SQL with NULL, JSON, three puzzles whose well-known versions
have other answers, a program to trace, and exact arithmetic.
"""

from __future__ import annotations

import re
from typing import Any

from ..graders.code import executed, fullmatch, query
from ..graders.json_text import document
from ..graders.text import graded, lines, shortened
from ..task import Task
from . import texts

TEXTS = texts("matrix")
EXECUTED = ("bugfix_merge", "bugfix_bsearch", "regex_ipv4", "sql_null_trap")
MERGES: tuple[tuple[list[int], list[int], list[int]], ...] = (
    ([], [], []), ([], [1], [1]), ([1], [], [1]), ([1], [1], [1, 1]),
    ([1, 3, 5], [2, 4, 6], [1, 2, 3, 4, 5, 6]), ([1, 2], [3, 4, 5], [1, 2, 3, 4, 5]),
    ([3, 4, 5], [1, 2], [1, 2, 3, 4, 5]), ([1, 1, 2], [1, 2, 2], [1, 1, 1, 2, 2, 2]),
    ([-5, 0], [-5, -1, 0, 0], [-5, -5, -1, 0, 0, 0]), ([7], [1, 2, 3, 9, 10], [1, 2, 3, 7, 9, 10]),
    ([0, 0, 0], [0], [0, 0, 0, 0]), (list(range(0, 100, 2)), list(range(1, 100, 2)), list(range(100))),
)  # fmt: skip
SEARCHES: tuple[tuple[list[int], int, int], ...] = (
    ([], 1, -1), ([1], 1, 0), ([1], 0, -1), ([1], 2, -1), ([1, 3], 1, 0), ([1, 3], 3, 1), ([1, 3], 2, -1),
    ([2, 2, 2, 2], 2, 0), ([1, 2, 2, 2, 3], 2, 1), ([1, 2, 3, 3], 3, 2), ([-9, -4, 0, 5, 8], -9, 0),
    ([-9, -4, 0, 5, 8], 8, 4), ([-9, -4, 0, 5, 8], 9, -1), (list(range(0, 2000, 2)), 1998, 999),
    (list(range(0, 2000, 2)), 1001, -1), ([4] * 20 + [5] * 20, 5, 20),
)  # fmt: skip
ADDRESSES = {
    "7.10.99.255": True, "250.249.200.100": True, "22.199.209.0": True, "256.1.1.1": False,
    "01.2.3.4": False, "1.2.3": False, "1.2.3.4.5": False, "1234": False, "1.2.3.4.": False,
    "1.2.3.4\n": False, " 1.2.3.4": False, "1.2.3.٤": False, "2٤.2.3.4": False, "1٤٤.2.3.4": False,
    "20٤.2.3.4": False, "1a2a3a4": False,
}  # fmt: skip
DOCUMENT = {
    "path": "C:\\new\\table", "quote": 'She said "no".', "lines": "one\ntwo", "letters": 8,
    "sizes": [3, 1, 2], "none": [], "missing": None, "deep": {"a b": {"": True}},
}  # fmt: skip
PRINTED = ("[1, 3]", "[2]", "True", "1 1 2 1", "[2, 4]", "[1, 3, 5]", "3 2")
_MOVE = re.compile(r"(fill|empty) ([AB])|pour (A B|B A)")
JUGS = {"A": 4, "B": 7}


def judge_moves(text: str) -> tuple[str, dict[str, Any]]:
    """Carry out the moves, one per line. At most 7 must lead from A full and B empty to 5 litres in B."""
    litres, moves = {"A": 4, "B": 0}, text.replace("\r\n", "\n").split("\n")
    for line in moves:
        move = _MOVE.fullmatch(line)
        if move is None:
            return f"{shortened(line)} is not a move", {}
        verb, jug, pair = move.groups()
        if pair is None:
            litres[jug] = JUGS[jug] if verb == "fill" else 0
            continue
        source, target = pair.split()
        amount = min(litres[source], JUGS[target] - litres[target])
        litres[source], litres[target] = litres[source] - amount, litres[target] + amount
    if litres["B"] != 5:
        return f"ends with {litres['B']} litres in B", {}
    return f"{len(moves)} moves, not 7" if len(moves) > 7 else "", {}


def tasks() -> list[Task]:
    merges = [([left, right], merged) for left, right, merged in MERGES]
    searches = [([numbers, wanted], place) for numbers, wanted, place in SEARCHES]
    rows = {"shown_persons": [["Dan"], ["Finn"]], "hidden_persons": [["Bo"], ["Kim"], ["Kim"]]}
    graders = {
        "bugfix_merge": executed("merge", merges),
        # A binary search of 1000 numbers reads some 20 of them, a scan hundreds. Reads of a slice count, too.
        "bugfix_bsearch": executed("counted_find_first", searches, TEXTS["counted_reads"]),
        "regex_ipv4": fullmatch(ADDRESSES),
        "sql_null_trap": query([(TEXTS[name], right) for name, right in rows.items()]),
        "json_strict": document(DOCUMENT),
        "trap_batball": lines("42"),
        "trap_jugs": graded(judge_moves),
        "trap_monty_random": lines("1/2"),
        "trace_mutable_default": lines(*PRINTED),
        "arith_exact": lines("29868237184"),
    }
    return [
        Task(name, TEXTS[name], grade, settings={"max_new_tokens": 4096}, executes=name in EXECUTED)
        for name, grade in graders.items()
    ]
