"""The suite of six tasks: expected values by other means, and answers right, wrapped and nearly right."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from itertools import pairwise

import pytest
from grading import check_grade

from mlx_diffusiongemma.evaluation.suites import six

TASKS = {task.name: task for task in six.tasks()}
# drops what is below 1 only when the runs are made
LATE = """\
def page_ranges(pages):
    parts = []
    for page in sorted(set(pages)):
        if parts and page == parts[-1][1] + 1:
            parts[-1][1] = page
        else:
            parts.append([page, page])
    text = []
    for first, last in parts:
        kept = range(max(first, 1), last + 1)
        text += [f"{kept[0]}-{last}"] if kept and last - first > 1 else map(str, kept)
    return ", ".join(text)
"""
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
ORDER = json.dumps(six.ORDER)
POLISH = "\n".join(six.POLISH)
SUMS = "\n".join(map(str, six.SUMS))


@pytest.mark.parametrize(
    ("name", "answer", "strict", "lenient"),
    [
        ("code_from_spec", RANGES, True, True),
        ("code_from_spec", f"\n```python\n{RANGES}```\n", True, True),
        ("code_from_spec", f"from __future__ import annotations\n# to the letter\n{RANGES}", True, True),
        ("code_from_spec", f"Here it is:\n\n```python\n{RANGES}```\nIt sorts first.", False, True),
        ("code_from_spec", f"```python\n{RANGES}```\n```python\nprint(page_ranges([1]))\n```", False, False),
        ("code_from_spec", f"```python\n{RANGES}", False, False),
        ("code_from_spec", f"Here it is:\n{RANGES}", False, False),
        ("code_from_spec", RANGES.replace("last - first > 1", "last - first > 0"), False, False),
        ("code_from_spec", RANGES.replace("page > 0", "page > 1"), False, False),
        ("code_from_spec", RANGES.replace("page > 0", "page >= 0"), False, False),
        ("code_from_spec", RANGES.replace('", "', '","'), False, False),
        ("code_from_spec", RANGES.replace("{page for page in pages if page > 0}", "pages"), False, False),
        ("code_from_spec", RANGES.replace("sorted(", "list("), False, False),
        ("code_from_spec", RANGES.replace("page_ranges", "ranges"), False, False),
        ("code_from_spec", "def page_ranges(pages):\n    return 1 / 0", False, False),
        ("code_from_spec", LATE, False, False),
        ("code_from_spec", f"{RANGES}\nprint(page_ranges([1, 2]))", False, True),
        ("code_from_spec", f'"""Pages as ranges."""\n{RANGES}', False, True),
        ("code_from_spec", f"{RANGES}\nif __name__ == '__main__':\n    page_ranges([1])", False, True),
        ("strict_json", ORDER, True, True),
        ("strict_json", json.dumps(six.ORDER, indent=4), True, True),
        ("strict_json", json.dumps(dict(reversed(six.ORDER.items()))), True, True),
        ("strict_json", ORDER.replace("89.5", "89.50"), True, True),
        ("strict_json", f"```json\n{ORDER}\n```", False, True),
        ("strict_json", f"Here is the object: {ORDER}", False, True),
        ("strict_json", ORDER.replace("89.5", '"89.50"'), False, False),
        ("strict_json", ORDER.replace('"00417"', "417"), False, False),
        ("strict_json", ORDER.replace("false", '"no"'), False, False),
        ("strict_json", ORDER.replace("3,", "3.0,"), False, False),
        ("strict_json", ORDER.replace('"quantity": 3', '"quantity": 2'), False, False),
        ("strict_json", ORDER.replace(', "voucher": null', ""), False, False),
        ("strict_json", ORDER.replace("{", '{"note": null, ', 1), False, False),
        ("strict_json", ORDER.replace("{", '{"quantity": 2, ', 1), False, False),
        ("strict_json", ORDER.replace('"morning", "evening"', '"evening", "morning"'), False, False),
        ("strict_json", ORDER.replace("null", "NaN"), False, False),
        ("strict_json", f"[{ORDER}]", False, False),
        ("strict_json", f"{ORDER}\n{ORDER}", False, False),
        ("multilingual_pl", POLISH, True, True),
        ("multilingual_pl", f"\n{POLISH}\n\n", True, True),
        ("multilingual_pl", unicodedata.normalize("NFD", POLISH), True, True),
        ("multilingual_pl", POLISH.replace("\n", "\r\n"), True, True),
        ("multilingual_pl", POLISH.replace("\n", "\n\n"), False, True),
        ("multilingual_pl", "\n".join(f"{at}. {x}" for at, x in enumerate(six.POLISH, 1)), False, True),
        ("multilingual_pl", f"Oto zdania:\n{POLISH}", False, True),
        ("multilingual_pl", POLISH.replace(".", ""), False, True),
        ("multilingual_pl", f"```\n{POLISH}\n```", False, True),
        ("multilingual_pl", POLISH.replace("siostrą", "siostra"), False, False),
        ("multilingual_pl", POLISH.replace("chłopców", "chłopcow"), False, False),
        ("multilingual_pl", POLISH.replace("człowiekowi", "człowieku"), False, False),
        ("multilingual_pl", POLISH.replace("śpiewały", "śpiewali"), False, False),
        ("multilingual_pl", POLISH.replace("z moją siostrą", "(z moją siostrą)"), False, False),
        ("multilingual_pl", "\n".join(six.POLISH[:-1]), False, False),
        ("multilingual_pl", "\n".join(six.POLISH[::-1]), False, False),
        ("multilingual_pl", f"{POLISH}\nTo wszystko.", False, False),
        ("multilingual_pl", " ".join(six.POLISH), False, False),
        ("long_context_recall", "Hoshino", True, True),
        ("long_context_recall", " Hoshino\n", True, True),
        ("long_context_recall", "hoshino", False, True),
        ("long_context_recall", "**Hoshino**.", False, True),
        ("long_context_recall", "Hoshino keeps hall 6, where pallet P-23 with crate K-417 is.", False, True),
        ("long_context_recall", "Fontana", False, False),
        ("long_context_recall", "Hoshino, who follows Fontana", False, False),
        ("long_context_recall", "It is not Hoshino.", False, False),
        ("long_context_recall", "Hoshinos", False, False),
        ("long_context_recall", "hall 6", False, False),
        ("constraint_conflict", six.RULES, True, True),
        ("constraint_conflict", f"`{six.RULES}`", False, True),
        ("constraint_conflict", f"Answer: {six.RULES}.", False, True),
        ("constraint_conflict", f"In this order:\n{six.RULES}", False, True),
        ("constraint_conflict", six.RULES.replace(", ", "\n"), False, False),
        ("constraint_conflict", six.RULES.upper(), False, False),
        ("constraint_conflict", six.RULES.lower(), False, False),
        ("constraint_conflict", "apricot, CHERRY, QUINCE, WALNUT, olive, PLUM, FIG", False, False),
        ("constraint_conflict", "apricot, WALNUT, QUINCE, olive, PLUM, FIG, CHERRY", False, False),
        ("constraint_conflict", six.RULES.replace(", ", ","), False, False),
        ("constraint_conflict", f"{six.RULES}\n{six.RULES.upper()}", False, False),
        ("exact_arithmetic", SUMS, True, True),
        ("exact_arithmetic", f" {SUMS} \n", True, True),
        ("exact_arithmetic", "\n".join(f"{number:,}" for number in six.SUMS), False, True),
        ("exact_arithmetic", SUMS.replace("-", "−"), False, True),
        ("exact_arithmetic", f"Results:\n\n```\n{SUMS}\n```", False, True),
        (
            "exact_arithmetic",
            "\n".join(f"{x}) **{n}**" for x, n in zip("abcde", six.SUMS, strict=True)),
            False,
            True,
        ),
        ("exact_arithmetic", SUMS.replace("530211923", "84739 * 6257 = 530211923"), False, True),
        ("exact_arithmetic", SUMS.replace("-", ""), False, False),
        ("exact_arithmetic", SUMS.replace("530211923", "530211924"), False, False),
        ("exact_arithmetic", SUMS.replace("530211923", "530211923 or 530211924"), False, False),
        ("exact_arithmetic", SUMS.replace("530211923", "5.30211923e8"), False, False),
        ("exact_arithmetic", " ".join(SUMS.split("\n")), False, False),
        ("exact_arithmetic", "\n".join(SUMS.split("\n")[:4]), False, False),
        ("exact_arithmetic", "\n".join(SUMS.split("\n")[::-1]), False, False),
        ("exact_arithmetic", f"{SUMS}\n7", False, False),
    ],
)
def test_answers_are_graded_to_the_letter(name: str, answer: str, strict: bool, lenient: bool) -> None:
    check_grade(TASKS[name], answer, strict, lenient)


def test_cases_follow_the_specification() -> None:
    for pages, text in six.PAGE_RANGES:
        listed = {page for page in pages if page >= 1}
        parts = [part.split("-") for part in text.split(", ")] if text else []
        covered = [page for part in parts for page in range(int(part[0]), int(part[-1]) + 1)]
        assert covered == sorted(listed)
        for part in parts:
            first, last = int(part[0]), int(part[-1])
            assert len(part) == 1 or last - first >= 2
            if len(part) == 2 or first - 1 in listed:  # the longest run, or at most two pages
                assert first - 1 not in listed or first - 2 not in listed
            if len(part) == 2:
                assert not {first - 1, last + 1} & listed


def test_log_book_leads_to_one_keeper() -> None:
    log = six.log_book()
    # the same on every machine and Python, or runs could not be compared
    assert hashlib.sha256("\n".join(log).encode()).hexdigest().startswith("6f060cd390894fce")
    assert "\n".join(log) in TASKS["long_context_recall"].prompt
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
    pallet = holds["K-417"]
    hall = holds[pallet]
    assert holds[hall] == "Hoshino"
    places = [said[key][-1] for key in ("K-417", pallet, hall)]
    assert all(later - earlier > 60 for earlier, later in pairwise(places))
    assert all(len(said[key]) > 1 for key in ("K-417", pallet, hall))  # each replaces an earlier entry
    keepers = [holds[str(hall)] for hall in range(1, 11)]
    assert set(six._KEEPERS) >= set(keepers)
    # who guesses the one that keeps the most halls, or is named the most or the last, guesses wrong
    assert keepers.count("Hoshino") == 1
    assert sorted(map(keepers.count, set(keepers)))[-2:] == [3, 3]
    named = re.findall(r"kept by (\w+)", "\n".join(log))
    assert sum(named.count(keeper) > named.count("Hoshino") for keeper in set(named)) >= 2
    assert named[-1] != "Hoshino"


def test_rules_have_one_answer() -> None:
    words = "olive, cherry, quince, fig, apricot, walnut, plum"
    assert words in TASKS["constraint_conflict"].prompt
    ordered = sorted(words.split(", "), key=lambda word: (word[0] == "c", -len(word), word))
    assert ", ".join(word if word[0] in "aeiou" else word.upper() for word in ordered) == six.RULES


def test_sums_are_exact() -> None:
    asked = re.findall(r"^[a-e]\) (.*)$", TASKS["exact_arithmetic"].prompt, re.MULTILINE)
    assert tuple(eval(sum_) for sum_ in asked) == six.SUMS


def test_polish_keeps_what_is_outside_the_brackets() -> None:
    prompts = re.findall(r"^.*\(.*\).*$", TASKS["multilingual_pl"].prompt, re.MULTILINE)
    for prompt, sentence in zip(prompts, six.POLISH, strict=True):
        before, after = re.split(r"\(.*\)", prompt)
        assert sentence.startswith(before)
        assert sentence.endswith(after)
        filled = sentence[len(before) : len(sentence) - len(after)]
        assert len(filled.split()) == len(re.findall(r"\w+", prompt[len(before) :].split(")")[0]))


def test_tasks() -> None:
    assert list(TASKS) == [
        "code_from_spec",
        "strict_json",
        "multilingual_pl",
        "long_context_recall",
        "constraint_conflict",
        "exact_arithmetic",
    ]
    assert len(six.PAGE_RANGES) >= 12
    assert all(task.thinking and task.settings == {"max_new_tokens": 4096} for task in TASKS.values())
    assert [task.name for task in TASKS.values() if task.executes] == ["code_from_spec"]
