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
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
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
    runs = []
    for page in sorted({page for page in pages if page > 0}):
        if runs and page == runs[-1][1] + 1:
            runs[-1][1] = page
        else:
            runs.append([page, page])
    parts = []
    for first, last in runs:
        if last - first > 1:
            parts.append(f"{first}-{last}")
        else:
            parts.extend(str(page) for page in range(first, last + 1))
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
    "code_from_spec": (RANGES, RANGES.replace("last - first > 1", "last - first > 0"), RANGES + "print(1)"),
    "strict_json": (json.dumps(six.ORDER), json.dumps(six.ORDER | {"article": 417}), "{}"),
    "multilingual_pl": (POLISH, POLISH.replace("siostrą", "siostra"), f"{POLISH}\nTo wszystko."),
    "long_context_recall": ("Hoshino", "Fontana", "It is Hoshino"),
    "constraint_conflict": (six.RULES, six.RULES.upper(), six.RULES.replace(", ", "\n")),
    "exact_arithmetic": (SUMS, SUMS.replace("-", ""), f"{SUMS}\n7"),
    "bugfix_merge": (MERGE, texts("matrix")["buggy_merge"], f"I sort.\n{MERGE}"),
    "bugfix_bsearch": (SEARCH, texts("matrix")["buggy_search"], SCAN),
    "regex_ipv4": (IPV4, IPV4.replace(r"\.", "."), IPV4.replace("1[0-9][0-9]", r"1\d\d"), rf"\s*{IPV4}"),
    "sql_null_trap": (
        QUERY,
        QUERY.replace(" WHERE manager_id IS NOT NULL", ""),
        QUERY.replace("IS NOT 'Oslo'", "<> 'Oslo'"),
        QUERY.replace("IS NOT 'Oslo'", "NOT LIKE 'O%'"),
        "SELECT 'Dan' UNION ALL SELECT 'Finn'",
        f"{QUERY} SELECT 1",
        "ATTACH 'other.db' AS other",
    ),
    "json_strict": (json.dumps(matrix.DOCUMENT), json.dumps(matrix.DOCUMENT | {"letters": 8.0})),
    "trap_batball": ("42", "84", "42 cents"),
    "trap_jugs": (MOVES, MOVES.rpartition("\n")[0], f"fill A\n{MOVES}", MOVES.replace("A B", "A into B"), ""),
    "trap_monty_random": ("1/2", "2/3", "0.5"),
    "trace_mutable_default": (PRINTED, PRINTED.replace("True", "False"), PRINTED.replace("True\n", "")),
    "arith_exact": ("29868237184", "29868237185", "29,868,237,184"),
    "probe": (COUNT, COUNT.replace(" 77 ", " "), f"{COUNT} 201"),
}


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
        assert grade.strict is (
            "code fence\naround" in str(BY_NAME[name].prompt) or "One ```" in str(BY_NAME[name].prompt)
        )


def test_a_scan_is_named() -> None:
    grade = BY_NAME["bugfix_bsearch"].grade(Reply(SCAN))
    assert grade.reason.endswith("gave 'a scan: 2000 reads of 1000 numbers', not 999")
    assert grade.details == {"cases": 16, "passed": 14}


@pytest.mark.parametrize("suite", SUITES)
def test_names_are_unique_and_stay(suite: str) -> None:
    names = [task.name for task in ALL[suite]]
    assert (
        len(set(names))
        == len(names)
        == {"six": 6, "matrix": 10, "structured": 100, "demo": 300}.get(suite, 1)
    )
    assert [task.name for task in tasks_of(suite)] == names


@pytest.mark.parametrize(
    "task", [task for tasks in ALL.values() for task in tasks[:18]], ids=lambda task: task.name
)
def test_no_text_breaks_a_grader(task: Task) -> None:
    for answer in (
        "",
        " \n\t",
        "x" * 10**6,
        "\x00\x1b[31m\x07",
        "[" * 90_000,
        "9" * 5000,
        "\ud800",
        "```",
        "1 " * 40_000,
    ):
        grade = task.grade(Reply(answer))
        assert (grade.strict, grade.lenient) == (False, False)
        assert grade.reason
        assert grade.reason.isprintable()


# --- six --------------------------------------------------------------------------------------------------


def test_page_ranges_follow_the_specification() -> None:
    assert len(six.PAGE_RANGES) == 15
    for pages, text in six.PAGE_RANGES:
        listed = {page for page in pages if page >= 1}
        parts = [part.split("-") for part in text.split(", ")] if text else []
        assert [page for part in parts for page in range(int(part[0]), int(part[-1]) + 1)] == sorted(listed)
        for part in parts:
            first, last = int(part[0]), int(part[-1])
            assert len(part) == 1 or last - first >= 2
            if len(part) == 2 or first - 1 in listed:  # the longest run, or at most two pages
                assert first - 1 not in listed or first - 2 not in listed
            if len(part) == 2:
                assert not {first - 1, last + 1} & listed


def test_the_log_book_leads_to_one_keeper() -> None:
    log = six.log_book()
    # the same on every machine and Python, or runs could not be compared
    assert hashlib.sha256("\n".join(log).encode()).hexdigest().startswith("6f060cd390894fce")
    assert "\n".join(log) in str(BY_NAME["long_context_recall"].prompt)
    holds: dict[str, str] = {}
    said: dict[str, list[int]] = {}
    for at, entry in enumerate(log, 1):
        assert re.match(rf"Entry {at:03}, \d\d:\d\d: ", entry)
        change = re.search(
            r": (?:crate (K-\d+) was put on pallet (P-\d+)|pallet (P-\d+) was driven to hall (\d+)"
            r"|hall (\d+) is now kept by (\w+))\.$",
            entry,
        )
        if change:
            key, value = filter(None, change.groups())
            holds[key] = value
            said.setdefault(key, []).append(at)
    chain = ("K-417", holds["K-417"], holds[holds["K-417"]])
    assert holds[chain[-1]] == "Hoshino"
    places = [said[key][-1] for key in chain]
    assert all(later - earlier > 60 for earlier, later in pairwise(places))
    assert all(len(said[key]) > 1 for key in chain)  # each replaces an earlier entry
    keepers = [holds[str(hall)] for hall in range(1, 11)]
    # who guesses the one that keeps the most halls, or is named the last, guesses wrong
    assert keepers.count("Hoshino") == 1
    assert sorted(map(keepers.count, set(keepers)))[-2:] == [3, 3]
    assert re.findall(r"kept by (\w+)", "\n".join(log))[-1] != "Hoshino"


def test_rules_and_sums_have_one_answer() -> None:
    words = "olive, cherry, quince, fig, apricot, walnut, plum"
    assert words in str(BY_NAME["constraint_conflict"].prompt)
    ordered = sorted(words.split(", "), key=lambda word: (word[0] == "c", -len(word), word))
    assert ", ".join(word if word[0] in "aeiou" else word.upper() for word in ordered) == six.RULES
    asked = re.findall(r"^[a-e]\) (.*)$", str(BY_NAME["exact_arithmetic"].prompt), re.MULTILINE)
    assert [eval(each) for each in asked] == [int(each) for each in SUMS.split()]


def test_polish_keeps_the_text_outside_of_the_brackets() -> None:
    prompts = re.findall(r"^.*\(.*\).*$", str(BY_NAME["multilingual_pl"].prompt), re.MULTILINE)
    for prompt, sentence in zip(prompts, POLISH.split("\n"), strict=True):
        before, after = re.split(r"\(.*\)", prompt)
        assert sentence.startswith(before)
        assert sentence.endswith(after)
    assert BY_NAME["multilingual_pl"].grade(Reply(unicodedata.normalize("NFD", POLISH))).strict


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
    assert (
        sorted(name for number, name, _, city in persons if number not in managers and city != "Oslo")
        == names
    )
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


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list)):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, f"{path}/{name}")
    else:
        yield path, value


def spelled(value: Any, text: str) -> bool:
    """True if a text holds a value as a word of its own."""
    if isinstance(value, bool) or value is None:
        return False
    if isinstance(value, str):
        return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None
    ways = "|".join(map(re.escape, (str(value), f"{value:.1f}", f"{value:.2f}")))
    return re.search(rf"(?<![\w.,:-])(?:{ways})(?!\w|[.,:]\d)", text) is not None


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item["name"])
def test_an_item_is_sound(item: dict[str, Any]) -> None:
    """Its value is valid, and the text says all of it: in the same words or in those that `stated` quotes."""
    jsonschema.Draft202012Validator.check_schema(item["schema"])
    jsonschema.validate(item["expected"], item["schema"], jsonschema.Draft202012Validator)
    said, stated = dict(leaves(item["expected"])), item.get("stated", {})
    assert stated.keys() <= said.keys()
    assert all(words in item["text"] for words in stated.values())
    for path, value in said.items():
        assert value is None or spelled(value, item["text"]) or path in stated, path


def test_pairs_differ_in_their_schema_alone() -> None:
    tokenizer = Tokenizer.load(resolve("demo"))
    for item, free, held in zip(ITEMS, ALL["structured"][::2], ALL["structured"][1::2], strict=True):
        assert (free.group, free.schema, held.group, held.schema) == ("free", None, "held", item["schema"])
        assert (free.prompt, free.settings, free.thinking) == (held.prompt, {"max_new_tokens": 512}, False)
        for part in (item["text"], json.dumps(item["schema"], ensure_ascii=False), item.get("rules", "")):
            assert part in str(free.prompt)
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
    for answer, calls in (
        ("", ()),
        ("", (CALL, CALL)),
        ("", (("get_time", {"city": "Oslo"}),)),
        ("x", (CALL,)),
    ):
        assert not grade_demo(item, Reply(answer, tool_calls=calls)).lenient


def test_demo_items_are_held_out_and_different() -> None:
    items = demo.held_out_items(20, seed=0)
    assert len(items) == 300
    assert all(item.held_out and item not in items[:at] for at, item in enumerate(items))
    with pytest.raises(ValueError, match="capitals: there are no 21 different held-out items"):
        demo.held_out_items(21, seed=0)
