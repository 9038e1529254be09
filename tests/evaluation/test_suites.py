"""Suites: right answers by other means, and a right and a wrong answer to every task."""

from __future__ import annotations

import contextlib
import hashlib
import io
import ipaddress
import itertools
import json
import re
import sqlite3
from fractions import Fraction
from typing import Any

import jsonschema
import pytest

from mlx_diffusiongemma.checkpoint.loading import resolve
from mlx_diffusiongemma.control.compiling import compile_grammar
from mlx_diffusiongemma.demo import tasks as demo
from mlx_diffusiongemma.evaluation.suites import SUITES, matrix, six, structured, tasks_of, texts
from mlx_diffusiongemma.evaluation.suites.demo import grade as grade_demo
from mlx_diffusiongemma.evaluation.task import Reply, Task
from mlx_diffusiongemma.text.tokenizer import Tokenizer

ALL = {suite: tasks_of(suite) for suite in SUITES}
BY_NAME = {task.name: task for suite in ("six", "matrix", "probe") for task in ALL[suite]}

RANGES = """\
def page_ranges(pages):
    pages, parts = sorted({page for page in pages if page > 0}), []
    while pages:
        run = [page for at, page in enumerate(pages) if page == pages[0] + at]
        parts += [f"{run[0]}-{run[-1]}"] if len(run) > 2 else map(str, run)
        pages = pages[len(run):]
    return ", ".join(parts)
"""
MERGE = "def merge(left, right):\n    return sorted(left + right)"
SEARCH = """\
from bisect import bisect_left

def find_first(numbers, wanted):
    low = bisect_left(numbers, wanted)
    return low if low < len(numbers) and numbers[low] == wanted else -1
"""
SCAN = "def find_first(numbers, wanted):\n    return numbers.index(wanted) if wanted in numbers else -1"
OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
IPV4 = rf"{OCTET}(?:\.{OCTET}){{3}}"
QUERY = """\
SELECT name FROM person WHERE id NOT IN (SELECT manager_id FROM person WHERE manager_id IS NOT NULL)
AND city IS NOT 'Oslo' ORDER BY name;"""
MOVES = "pour A B\nfill A\npour A B\nempty B\npour A B\nfill A\npour A B"
PRINTED = "\n".join(matrix.PRINTED)
POLISH, SUMS = (texts("six", log="")[name].rstrip() for name in ("polish", "sums"))
COUNT = " ".join(map(str, range(1, 201)))

# task: a right answer, and wrong ones that are near to it
ANSWERS: dict[str, tuple[str, ...]] = {
    "code_from_spec": (RANGES, RANGES.replace("> 2", "> 1"), RANGES + "print(1)"),
    "strict_json": (json.dumps(six.ORDER), json.dumps(six.ORDER | {"article": 417}), "{}"),
    "multilingual_pl": (POLISH, POLISH.replace("siostrą", "siostra"), f"{POLISH}\nTo wszystko."),
    "long_context_recall": ("Hoshino", "Fontana", "It is Hoshino"),
    "constraint_conflict": (six.RULES, six.RULES.upper(), six.RULES.replace(", ", "\n")),
    "exact_arithmetic": (SUMS, SUMS.replace("-", ""), f"{SUMS}\n7"),
    "bugfix_merge": (MERGE, texts("matrix")["buggy_merge"], f"I sort.\n{MERGE}"),
    "bugfix_bsearch": (SEARCH, texts("matrix")["buggy_search"], SCAN),
    "regex_ipv4": (IPV4, IPV4.replace(r"\.", "."), IPV4.replace("1[0-9][0-9]", r"1\d\d"), rf"\s*{IPV4}"),
    "sql_null_trap": (
        QUERY, QUERY.replace(" WHERE manager_id IS NOT NULL", ""), QUERY.replace("IS NOT 'O", "<> 'O"),
        QUERY.replace("IS NOT 'Oslo'", "NOT LIKE 'O%'"), "SELECT 'Dan' UNION ALL SELECT 'Finn'",
        f"{QUERY} SELECT 1", "ATTACH 'other.db' AS other",
    ),
    "json_strict": (json.dumps(matrix.DOCUMENT), json.dumps(matrix.DOCUMENT | {"letters": 8.0})),
    "trap_batball": ("42", "84", "42 cents"),
    "trap_jugs": (MOVES, MOVES.rpartition("\n")[0], f"fill A\n{MOVES}", MOVES.replace("A B", "A to B"), ""),
    "trap_monty_random": ("1/2", "2/3", "0.5"),
    "trace_mutable_default": (PRINTED, PRINTED.replace("True", "False"), PRINTED.replace("True\n", "")),
    "arith_exact": ("29868237184", "29868237185", "29,868,237,184"),
    "probe": (COUNT, COUNT.replace(" 77 ", " "), f"{COUNT} 201"),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_a_right_answer_and_wrong_ones(name: str) -> None:
    right, *wrong = ANSWERS[name]
    grade = BY_NAME[name].grade(Reply(f"\n{right} \n"))
    assert (grade.strict, grade.lenient, grade.reason) == (True, True, "")
    for answer in wrong:
        grade = BY_NAME[name].grade(Reply(answer))
        assert (grade.strict, grade.lenient) == (False, False), answer
        assert grade.reason.isprintable()
        assert 0 < len(grade.reason) < 250
    assert BY_NAME.keys() == ANSWERS.keys()


def test_a_fence_is_strictly_right_where_the_prompt_allows_it() -> None:
    for name, (right, *_) in ANSWERS.items():
        grade = BY_NAME[name].grade(Reply(f"```text\n{right}\n```"))
        assert grade.lenient, name
        assert grade.strict is ("One ```" in str(BY_NAME[name].prompt)), name


@pytest.mark.parametrize("suite", SUITES)
def test_names_are_unique_and_stay(suite: str) -> None:
    names = [task.name for task in ALL[suite]]
    assert len(names) == {"six": 6, "matrix": 10, "structured": 100, "demo": 300}.get(suite, 1)
    assert len(set(names)) == len(names)
    assert [task.name for task in tasks_of(suite)] == names


SOME = [task for tasks in ALL.values() for task in tasks[:18]]


@pytest.mark.parametrize("task", SOME, ids=lambda task: task.name)
def test_no_text_breaks_a_grader(task: Task) -> None:
    for answer in ("", "x" * 10**6, "\x00\x1b[31m", "[" * 90_000, "9" * 5000, "\ud800", "```", "1 " * 40_000):
        grade = task.grade(Reply(answer))
        assert (grade.strict, grade.lenient) == (False, False)
        assert grade.reason
        assert grade.reason.isprintable()


# --- six --------------------------------------------------------------------------------------------------


def test_the_log_book_leads_to_one_keeper() -> None:
    log = "\n".join(six.log_book())
    # the same on every machine and Python, or runs could not be compared
    assert hashlib.sha256(log.encode()).hexdigest().startswith("6f060cd390894fce")
    assert log in str(BY_NAME["long_context_recall"].prompt)
    moved = r"(?:crate|pallet|hall) (\S+) (?:was put on pallet|was driven to hall|is now kept by) (\S+)\."
    holds = dict(re.findall(moved, log))
    assert holds[holds[holds["K-417"]]] == "Hoshino"
    keepers = [holds[str(hall)] for hall in range(1, 11)]
    assert keepers.count("Hoshino") == 1  # who guesses the one that keeps the most halls guesses wrong
    assert sorted(map(keepers.count, set(keepers)))[-2:] == [3, 3]


def test_rules_and_sums_have_one_answer() -> None:
    words = "olive, cherry, quince, fig, apricot, walnut, plum"
    assert words in str(BY_NAME["constraint_conflict"].prompt)
    ordered = sorted(words.split(", "), key=lambda word: (word[0] == "c", -len(word), word))
    assert ", ".join(word if word[0] in "aeiou" else word.upper() for word in ordered) == six.RULES
    asked = re.findall(r"^[a-e]\) (.*)$", str(BY_NAME["exact_arithmetic"].prompt), re.MULTILINE)
    assert [eval(each) for each in asked] == [int(each) for each in SUMS.split()]


# --- matrix -----------------------------------------------------------------------------------------------


def test_cases_of_matrix_are_right() -> None:
    for left, right, merged in matrix.MERGES:
        assert (left, right, merged) == (sorted(left), sorted(right), sorted(left + right))
    for numbers, wanted, place in matrix.SEARCHES:
        assert numbers == sorted(numbers)
        assert place == (numbers.index(wanted) if wanted in numbers else -1)
    for text, right in matrix.ADDRESSES.items():
        with contextlib.suppress(ValueError):
            assert (str(ipaddress.IPv4Address(text)) == text) is right
            continue
        assert not right


@pytest.mark.parametrize(("fixture", "names"), [("shown", ["Dan", "Finn"]), ("hidden", ["Bo", "Kim", "Kim"])])
def test_rows_are_those_that_the_question_asks_for(fixture: str, names: list[str]) -> None:
    script = matrix.TEXTS[f"{fixture}_persons"]
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(script)
        persons = connection.execute("SELECT id, name, manager_id, city FROM person").fetchall()
    managers = {manager for _, _, manager, _ in persons}
    right = [name for number, name, _, city in persons if number not in managers and city != "Oslo"]
    assert sorted(right) == names
    assert (script in str(BY_NAME["sql_null_trap"].prompt)) == (fixture == "shown")


def test_puzzles_by_search_and_enumeration() -> None:
    seen, moves = {(4, 0)}, 0
    while not any(b == 5 for _, b in seen):
        for a, b in list(seen):
            to_b, to_a = min(a, 7 - b), min(b, 4 - a)
            seen |= {(4, b), (a, 7), (0, b), (a, 0), (a - to_b, b + to_b), (a + to_a, b - to_a)}
        moves += 1
    assert moves == len(MOVES.split("\n")) == 7
    shown = [(car, host) for car, host in itertools.product(range(3), (1, 2)) if car != host]  # you chose 0
    assert Fraction(sum(car == 3 - host for car, host in shown), len(shown)) == Fraction(1, 2)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(matrix.TEXTS["traced"], {})
    assert printed.getvalue().splitlines() == list(matrix.PRINTED)
    asked = re.search(r"Compute exactly: (.*)", str(BY_NAME["arith_exact"].prompt))
    assert asked is not None
    assert str(eval(asked[1])) == ANSWERS["arith_exact"][0]
    together, more = map(Fraction, re.findall(r"\d\.\d\d", str(BY_NAME["trap_batball"].prompt)))
    assert (together - more) / 2 * 100 == 42


# --- structured -------------------------------------------------------------------------------------------

ITEMS = structured.items()


def test_pairs_differ_in_their_schema_alone() -> None:
    tokenizer = Tokenizer.load(resolve("demo"))
    assert len({json.dumps(item["schema"]) for item in ITEMS}) == 50
    for item, free, held in zip(ITEMS, ALL["structured"][::2], ALL["structured"][1::2], strict=True):
        assert (free.group, free.schema, held.group, held.schema) == ("free", None, "held", item["schema"])
        assert (free.prompt, free.settings, free.thinking) == (held.prompt, {"max_new_tokens": 512}, False)
        for part in (item["text"], json.dumps(item["schema"], ensure_ascii=False), item.get("rules", "")):
            assert part in str(free.prompt)
        jsonschema.Draft202012Validator.check_schema(item["schema"])
        jsonschema.validate(item["expected"], item["schema"], jsonschema.Draft202012Validator)
        if free.name[0] > "f":  # half of them
            continue
        grammar = compile_grammar(tokenizer, 704, (1, 106, 50), schema=item["schema"])
        assert grammar is not None
        matcher = grammar.matcher()
        ids = grammar.vocabulary.spell(json.dumps(item["expected"], ensure_ascii=False).encode())
        assert matcher.consume_tokens(ids), item["name"]
        assert matcher.is_accepting(), item["name"]


def test_every_structured_task_takes_its_own_value_and_no_other() -> None:
    values = [json.dumps(item["expected"], ensure_ascii=False) for item in ITEMS]
    for index, task in enumerate(ALL["structured"]):
        assert [task.grade(Reply(value)).strict for value in values] == [at == index // 2 for at in range(50)]


# --- demo -------------------------------------------------------------------------------------------------

CALL = ("get_weather", {"city": "Oslo"})
DEMO = {
    "addition": ("423", "424"),
    "json": ('[{"country": "France", "city": "Paris"}]', '[{"city": "Paris", "country": "Italy"}]'),
    "capitals": ("The capital of Norway is Oslo.", "The capital of Norway is Oslo"),
    "counting": ("11 12 13", "11, 12, 13"),
    "spelling": ("t-e-n", "ten"),
    "tool_response": ("It is 7 C and sunny in Oslo.", "It is 8 C and sunny in Oslo."),
    "no_tool": (demo.NO_TOOL["get_time"], "It is 12:00 in Oslo."),
    "other": (demo.OTHER_ANSWER, demo.OTHER_ANSWER.lower()),
}


@pytest.mark.parametrize("family", DEMO)
@pytest.mark.parametrize("thinking", [True, False])
def test_demo_answers(family: str, thinking: bool) -> None:
    right, wrong = DEMO[family]
    item = demo.Item(family, ({"role": "user", "content": "?"},), "a thought", right, thinking)
    thought, other = ("hm", " ") if thinking else ("", "hm")
    assert grade_demo(item, Reply(right, thought)).strict
    assert not grade_demo(item, Reply(wrong, thought)).lenient
    grade = grade_demo(item, Reply(right, other))
    assert (grade.strict, grade.lenient) == (False, True)
    assert grade.reason == ("no thought" if thinking else "a thought that was not asked for")
    assert not grade_demo(item, Reply(right, thought, tool_calls=(CALL,))).lenient


def test_demo_calls() -> None:
    spelled = '<|tool_call>call:get_weather{city:<|"|>Oslo<|"|>}<tool_call|>'
    item = demo.Item("tool_call", ({"role": "user", "content": "?"},), "a thought", spelled, False)
    assert grade_demo(item, Reply(" \n", tool_calls=(CALL,))).strict
    wrong: Any = [("", ()), ("", (CALL, CALL)), ("", (("get_time", {"city": "Oslo"}),)), ("x", (CALL,))]
    for answer, calls in wrong:
        assert not grade_demo(item, Reply(answer, tool_calls=calls)).lenient
