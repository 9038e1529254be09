"""The loop of an evaluation and its table, with a runner that says what it is told to."""

from __future__ import annotations

import re

import pytest

from mlx_diffusiongemma.console.progress import bar
from mlx_diffusiongemma.evaluation import loop
from mlx_diffusiongemma.evaluation.loop import ask, graded, seed_of
from mlx_diffusiongemma.evaluation.plan import digest, with_budget
from mlx_diffusiongemma.evaluation.results import Results
from mlx_diffusiongemma.evaluation.table import table
from mlx_diffusiongemma.evaluation.task import Cost, Grade, Reply, Task

COST = Cost(seconds=2.0, new_tokens=60, answer_tokens=20, blocks=2, denoising_steps=10)


def is_yes(reply):
    return Grade(reply.answer == "yes", "yes" in reply.answer, "" if reply.answer == "yes" else "not yes")


TASKS = [Task("first", "one?", is_yes), Task("second", "two?", is_yes, thinking=False)]


class Says:
    """A runner whose replies are taken from a list; `asked` holds (task, seed, n)."""

    name = "says"

    def __init__(self, *replies):
        self.replies, self.asked = list(replies), []

    def __call__(self, task, seed, n=1):
        self.asked.append((task.name, seed, n))
        if not self.replies:
            raise KeyboardInterrupt
        said = self.replies.pop(0)
        return said if isinstance(said, list) else [said]


def answer(text="yes", **changes):
    return Reply(text, cost=COST, **changes)


def opened(tmp_path, n=1):
    return Results(tmp_path / "r.jsonl", {"suite": "x", "n": n})


def test_an_interrupted_evaluation_asks_for_what_is_missing_and_no_more(tmp_path):
    whole = Says(*[answer()] * 6)
    results = Results(tmp_path / "whole.jsonl", {"suite": "x", "n": 1})
    expected = ask(TASKS, whole, results, seed=5, runs=3, n=1)
    results.close()
    assert [asked[0] for asked in whole.asked] == ["first", "second"] * 3
    assert len({seed for _, seed, _ in whole.asked}) == 6

    asked = []
    for replies in ([answer()] * 2, [], [answer()] * 3, [answer()]):
        runner, results = Says(*replies), opened(tmp_path)
        try:
            lines = ask(TASKS, runner, results, seed=5, runs=3, n=1)
        except KeyboardInterrupt:
            asked += runner.asked[:-1]
        else:
            asked += runner.asked
        results.close()
    assert asked == whole.asked
    assert lines == expected

    runner, results = Says(), opened(tmp_path)
    assert len(ask(TASKS, runner, results, seed=5, runs=2, n=1)) == 4  # what was asked for, not all there is
    results.close()
    assert runner.asked == []


def test_an_answer_keeps_what_it_came_from(tmp_path):
    task = Task("t", "?", is_yes, group="g", settings={"max_new_tokens": 7})
    results = opened(tmp_path)
    (line,) = ask([task], Says(answer("oh yes", thought="hm")), results, seed=0, runs=1, n=1)
    results.close()
    assert line == {
        "kind": "answer", "task": "t", "group": "g", "run": 0, "candidate": 0, "seed": seed_of(task, 0, 0),
        "settings": {"thinking": True, "max_new_tokens": 7}, "outcome": "delivered", "strict": False,
        "lenient": True, "reason": "not yes", "details": {}, "answer": "oh yes", "thought": "hm",
        "tool_calls": [], "finish_reason": "stop", "seconds": 2.0, "new_tokens": 60, "answer_tokens": 20,
        "blocks": 2, "denoising_steps": 10,
    }  # fmt: skip


def test_seeds_follow_from_prompt_and_run_and_from_nothing_else():
    task = Task("a", "prompt", is_yes)
    assert seed_of(task, 0, 0) == seed_of(Task("b", "prompt", is_yes, settings={"entropy_bound": 1}), 0, 0)
    others = [(task, 1, 0), (task, 0, 1), (Task("a", "prompt2", is_yes), 0, 0),
              (Task("a", "prompt", is_yes, thinking=False), 0, 0)]  # fmt: skip
    seeds = {seed_of(*other) for other in others} | {seed_of(task, 0, 0)}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_the_digest_tells_what_answers_depend_on():
    base = Task("a", "p", is_yes)
    changed = [
        Task("b", "p", is_yes),
        Task("a", "q", is_yes),
        Task("a", "p", is_yes, thinking=False),
        Task("a", "p", is_yes, settings={"max_new_tokens": 9}),
        Task("a", "p", is_yes, schema={"type": "string"}),
        Task("a", "p", is_yes, tools=({"name": "x"},)),
    ]
    digests = {digest([task]) for task in changed} | {digest([base]), digest([base, base])}
    assert len(digests) == len(changed) + 2
    assert digest([base]) == digest([Task("a", "p", lambda _: Grade(True, True), group="g")])


def test_a_thinking_budget_is_for_those_that_think():
    thinks, does_not = with_budget(TASKS, 100)
    assert (thinks.settings, does_not.settings) == ({"thinking_budget": 100}, {})
    assert with_budget(TASKS, None) == TASKS


def fails(reply):
    raise ValueError("oh")


@pytest.mark.parametrize(
    ("reply", "grader", "outcome", "strict", "lenient", "reason"),
    [
        (answer(), is_yes, "delivered", True, True, ""),
        (answer("no"), is_yes, "delivered", False, False, "not yes"),
        (answer(finish_reason="length"), is_yes, "cut", False, True, "did not end by itself"),
        (
            answer("", thought="hm", finish_reason="length"),
            is_yes,
            "stuck",
            False,
            False,
            "inside the thought",
        ),
        (answer("", thought="hm"), is_yes, "empty", False, False, "not yes"),
        (answer("", finish_reason="length"), is_yes, "empty", False, False, "not yes"),
        (answer(" \n"), is_yes, "empty", False, False, "not yes"),
        (Reply("yes", error="too long"), is_yes, "error", False, False, "too long"),
        (answer("", tool_calls=(("f", {}),)), lambda r: Grade(True, True), "delivered", True, True, ""),
        (answer(), fails, "delivered", False, False, r"grader failed \(ValueError: oh\)"),
    ],
)
def test_what_an_answer_is_worth(reply, grader, outcome, strict, lenient, reason):
    grade = graded(Task("t", "?", grader), reply)
    assert (reply.outcome, grade.strict, grade.lenient) == (outcome, strict, lenient)
    assert re.search(reason, grade.reason)


def lines_of(tmp_path, replies, n=1, tasks=TASKS):
    results = opened(tmp_path, n)
    lines = ask(tasks, Says(*replies), results, 0, len(replies) // len(tasks), n)
    results.close()
    return lines


def words(text):
    return text.split()


def test_the_table_counts_and_divides(tmp_path):
    slow = Cost(seconds=6.0, new_tokens=140, answer_tokens=60, blocks=2, denoising_steps=30)
    replies = [
        answer(),
        answer("no"),
        Reply("oh yes", cost=slow),
        answer("", thought="hm", finish_reason="length"),
    ]
    text = table(lines_of(tmp_path, replies), 1).splitlines()
    assert [line.split() for line in text[:4]] == [
        words("task answers strict lenient delivered stuck net tokens/s tokens/forward steps/block"),
        # (20 + 60) / 8 s, (60 + 140) / 40 steps, 40 / 4 blocks
        ["first", "2", "50.0%", "100.0%", "100.0%", "0.0%", "10.0", "5.0", "10.0"],
        ["second", "2", "0.0%", "0.0%", "50.0%", "50.0%", "10.0", "6.0", "5.0"],
        ["all", "4", "25.0%", "50.0%", "75.0%", "25.0%", "10.0", "5.3", "7.5"],
    ]
    assert text[5] == "strict: 1 of 4, 25.0% (95% interval 4.6% to 69.9%)"
    assert text[6] == "not delivered: 1 ended inside the thought"


def test_what_a_runner_does_not_tell_is_not_made_up(tmp_path):
    text = table(lines_of(tmp_path, [Reply("yes", cost=Cost(2.0, 10)), answer()]), 1)
    assert text.splitlines()[1].split()[-3:] == ["-", "-", "-"]
    assert text.splitlines()[2].split()[-3:] == ["10.0", "6.0", "5.0"]
    assert text.splitlines()[3].split()[-3:] == ["-", "-", "-"]


def test_failures_count_as_wrong_and_are_told(tmp_path):
    text = table(lines_of(tmp_path, [Reply("", error="too long"), answer()]), 1)
    assert text.splitlines()[1].split() == ["first", "1", "0.0%", "0.0%", "0.0%", "0.0%", "-", "-", "-"]
    assert text.splitlines()[3].split() == words("all 2 50.0% 50.0% 50.0% 0.0% 10.0 6.0 5.0")
    assert text.splitlines()[-2:] == ["not delivered: 1 failed", "most frequent failure: too long"]


def test_candidates_are_graded_one_by_one_and_together(tmp_path):
    short = Cost(seconds=1.0, new_tokens=10, answer_tokens=10, blocks=1, denoising_steps=5)
    replies = [[Reply("yes", cost=short), answer("no")], [answer("no"), answer("no")]]
    text = table(lines_of(tmp_path, replies, n=2), 2).splitlines()
    assert text[0].split()[:5] == ["task", "answers", "strict", "any", "of"]
    # (20 + 10) tokens in the 2 s that both took together
    assert text[1].split() == words("first 2 50.0% 100.0% 50.0% 100.0% 0.0% 15.0 4.7 5.0")
    assert text[3].split()[:5] == ["all", "4", "25.0%", "50.0%", "25.0%"]


def test_a_full_disk_ends_the_evaluation_and_no_answer_is_wrong_for_it(tmp_path):
    def full(reply):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        graded(Task("t", "?", full), answer())


def test_settings_are_those_that_it_ran_with(tmp_path):
    results = opened(tmp_path)
    task = Task("t", "?", is_yes, settings={"max_new_tokens": 4096, "entropy_bound": 0.2})
    (line,) = ask([task], Says(answer(settings={"max_new_tokens": 64})), results, seed=0, runs=1, n=1)
    results.close()
    assert line["settings"] == {"thinking": True, "max_new_tokens": 64, "entropy_bound": 0.2}


def test_tool_calls_that_are_no_json_are_kept_out_of_the_file(tmp_path):
    deep = []
    for _ in range(5000):
        deep = [deep]
    calls = (("f", {"x": float("nan")}), ("g", {"x": deep}), ("h", {"x": 1}))
    lines = lines_of(tmp_path, [answer(tool_calls=calls), answer()])
    assert lines[0]["tool_calls"] == [["f", "not JSON"], ["g", "not JSON"], ["h", {"x": 1}]]
    results = opened(tmp_path)
    assert results.answers["first", 0] == [lines[0]]
    results.close()


def test_the_bar_begins_with_what_is_there(tmp_path, monkeypatch):
    bars = []
    monkeypatch.setattr(
        loop, "bar", lambda name, **settings: (bars.append(settings), bar(name, **settings))[1]
    )
    for runs in (1, 3):
        results = opened(tmp_path)
        ask(TASKS, Says(*[answer()] * 4), results, seed=0, runs=runs, n=1)
        results.close()
    assert [(b["initial"], b["total"]) for b in bars] == [(0, 2), (2, 6)]


def test_what_graders_say_beyond_right_and_wrong_is_counted(tmp_path):
    def parses(reply):
        return Grade(False, False, "no", {"parses": reply.answer == "yes", "words": 3})

    replies = [Reply("", error="too long"), answer(), answer("no")]  # the first has no details
    text = table(lines_of(tmp_path, replies, tasks=[Task("t", "?", parses)]), 1)
    assert text.splitlines()[-1] == "t, of 3: parses 1"


def test_no_answers_have_a_table_too():
    assert table([], 1) == "no answers"
