"""The loop of an evaluation, its table, and `mlx_dg.evaluate`."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import mlx_dg
from mlx_diffusiongemma.engine.noise import NoiseKey, SeededDraws
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.evaluation import sandbox
from mlx_diffusiongemma.evaluation.results import Results, read
from mlx_diffusiongemma.evaluation.run import ask, digest, graded, planned, rungs, seed_of
from mlx_diffusiongemma.evaluation.table import table
from mlx_diffusiongemma.evaluation.task import Cost, Grade, Reply, Task

COST = Cost(seconds=2.0, new_tokens=60, answer_tokens=20, blocks=2, denoising_steps=10)


def is_yes(reply: Reply) -> Grade:
    return Grade(reply.answer == "yes", "yes" in reply.answer, "" if reply.answer == "yes" else "not yes")


TASKS = [Task("first", "one?", is_yes), Task("second", "two?", is_yes, thinking=False)]


class Says:
    """A runner whose replies are taken from a list. `asked` holds (task, seed, n)."""

    name = "says"

    def __init__(self, *replies: Any):
        self.replies, self.asked = list(replies), list[tuple[str, int, int]]()

    def __call__(self, task: Task, seed: int, n: int = 1) -> list[Reply]:
        self.asked.append((task.name, seed, n))
        if not self.replies:
            raise KeyboardInterrupt
        said = self.replies.pop(0)
        return said if isinstance(said, list) else [said]


def answer(text: str = "yes", **changes: Any) -> Reply:
    return Reply(text, **{"cost": COST, **changes})


def lines_of(replies: list[Any], n: int = 1, tasks: list[Task] = TASKS) -> list[dict[str, Any]]:
    runner: Any = Says(*replies)
    return ask(tasks, runner, Results(None, {"seed": 0, "n": n}), len(replies) // len(tasks))


def test_an_interrupted_evaluation_asks_for_what_is_missing_and_no_more(tmp_path: Path) -> None:
    whole: Any = Says(*[answer()] * 6)
    expected = ask(TASKS, whole, Results(None, {"seed": 5, "n": 1}), 3)
    assert [name for name, _, _ in whole.asked] == ["first", "second"] * 3
    assert len({seed for _, seed, _ in whole.asked}) == 6
    asked, lines = [], []
    for replies in ([answer()] * 2, [], [answer()] * 3, [answer()]):
        runner: Any = Says(*replies)
        results = Results(tmp_path / "r.jsonl", {"seed": 5, "n": 1})
        try:
            lines = ask(TASKS, runner, results, 3)
        except KeyboardInterrupt:
            runner.asked.pop()
        asked += runner.asked
        results.close()
    assert asked == whole.asked
    assert lines == expected
    silent: Any = Says()
    results = Results(tmp_path / "r.jsonl", {"seed": 5, "n": 1})
    assert len(ask(TASKS, silent, results, 2)) == 4  # what was asked for, not all there is
    results.close()


def test_an_answer_keeps_where_it_came_from() -> None:
    task = Task("t", "?", is_yes, "g", settings={"max_new_tokens": 7, "sampler": mlx_dg.EntropyBound(0.2)})
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    calls = (("f", {"x": float("nan")}), ("g", {"x": deep}), ("h", {"x": 1}))
    said = answer("oh yes", thought="hm", tool_calls=calls, settings={"t_min": 1})
    (line,) = lines_of([said], tasks=[task])
    assert line == {
        "kind": "answer", "task": "t", "group": "g", "run": 0, "candidate": 0, "seed": seed_of(task, 0, 0),
        "settings": {"thinking": True, "max_new_tokens": 7, "sampler": "EntropyBound(bound=0.2)", "t_min": 1},
        "outcome": "delivered", "strict": False, "lenient": True, "reason": "not yes", "details": {},
        "prompt": "?", "answer": "oh yes", "thought": "hm",
        "tool_calls": [["f", "not JSON"], ["g", "not JSON"], ["h", {"x": 1}]], "finish_reason": "stop",
        "seconds": 2.0, "new_tokens": 60, "answer_tokens": 20, "blocks": 2, "denoising_steps": 10,
    }  # fmt: skip


def test_seeds_follow_from_prompt_and_run_and_nothing_else() -> None:
    task, quick = Task("a", "prompt", is_yes), Task("a", "prompt", is_yes, thinking=False)
    assert seed_of(task, 0, 0) == seed_of(Task("b", "prompt", is_yes, settings={"t_min": 1}), 0, 0)
    others = [(task, 0, 0), (task, 1, 0), (task, 0, 1), (Task("a", "p", is_yes), 0, 0), (quick, 0, 0)]
    assert len({seed_of(*other) for other in others}) == 5


def test_the_digest_covers_all_that_answers_depend_on() -> None:
    changes = [{}, {"name": "b"}, {"prompt": "q"}, {"thinking": False}, {"settings": {"t_min": 1}},
               {"schema": {"type": "string"}}, {"tools": ({"name": "x"},)}]  # fmt: skip
    made = [Task(**{"name": "a", "prompt": "p", "grade": is_yes, **change}) for change in changes]
    assert len({digest([task]) for task in made}) == len(made)


def test_settings_of_a_plan() -> None:
    (thinks, does_not), header = planned(TASKS, None, {"thinking_budget": 100, "t_max": 0.9})
    assert thinks.settings == {"thinking_budget": 100, "t_max": 0.9}
    assert does_not.settings == {"t_max": 0.9}
    assert header["settings"] == thinks.settings
    with pytest.raises(InputError, match="suite 'seven': there is none; choose from six, matrix"):
        planned("seven", None, {})


def test_the_ladder_has_every_prompt_on_every_rung_with_the_same_seed() -> None:
    tasks = rungs(TASKS)
    steps = [(t.prompt, t.settings["max_denoising_steps"], t.settings["entropy_bound"]) for t in tasks]
    assert steps == list(product(("one?", "two?"), (8, 16, 24, 48), (0.02, 0.05, 0.1, 0.2, 0.4)))
    assert (len({task.name for task in tasks}), len({task.group for task in tasks})) == (40, 20)
    assert len({seed_of(task, 0, 0) for task in tasks}) == 2


def fails(reply: Reply) -> Grade:
    raise ValueError("oh")


@pytest.mark.parametrize(("reply", "grader", "outcome", "worth", "reason"), [
    (answer(), is_yes, "delivered", (True, True), ""),
    (answer("no"), is_yes, "delivered", (False, False), "not yes"),
    (answer(finish_reason="length"), is_yes, "cut", (False, True), "did not end by itself"),
    (answer("", thought="hm", finish_reason="length"), is_yes, "stuck", (False, False), "inside the thought"),
    (answer("", thought="hm"), is_yes, "empty", (False, False), "not yes"),
    (answer(" \n"), is_yes, "empty", (False, False), "not yes"),
    (Reply("yes", error="too long"), is_yes, "error", (False, False), "too long"),
    (answer("", tool_calls=(("f", {}),)), lambda r: Grade(True, True), "delivered", (True, True), ""),
    (answer(), fails, "delivered", (False, False), r"grader failed \(ValueError: oh\)"),
])  # fmt: skip
def test_grades(reply: Reply, grader: Any, outcome: str, worth: tuple[bool, bool], reason: str) -> None:
    grade = graded(Task("t", "?", grader), reply)
    assert (reply.outcome, grade.strict, grade.lenient) == (outcome, *worth)
    assert re.search(reason, grade.reason)


@pytest.mark.parametrize("error", [OSError(28, "full"), InputError("no sandbox")])
def test_a_failure_that_is_not_the_answers_is_raised(error: Exception) -> None:
    def fail(reply: Reply) -> Grade:
        raise error

    with pytest.raises(type(error)):
        graded(Task("t", "?", fail), answer())


# --- the table --------------------------------------------------------------------------------------------


def test_the_table_counts_and_divides() -> None:
    slow = Cost(seconds=6.0, new_tokens=140, answer_tokens=60, blocks=2, denoising_steps=30)
    stuck = answer("", thought="hm", finish_reason="length")
    text = table(lines_of([answer(), answer("no"), answer("oh yes", cost=slow), stuck])).splitlines()
    assert [line.split() for line in text[:4]] == [
        str.split("task answers strict lenient delivered stuck net tokens/s tokens/forward steps/block"),
        # (20 + 60) / 8 s, (60 + 140) / 40 steps, 40 / 4 blocks
        str.split("first 2 50.0% 100.0% 100.0% 0.0% 10.0 5.0 10.0"),
        str.split("second 2 0.0% 0.0% 50.0% 50.0% 10.0 6.0 5.0"),
        str.split("all 4 25.0% 50.0% 75.0% 25.0% 10.0 5.3 7.5"),
    ]
    assert text[5] == "strict: 1 of 4, 25.0% (95% interval 4.6% to 69.9%)"
    assert text[6] == "not delivered: 1 ended inside the thought"
    assert table([]) == "no answers"


def test_figures_that_a_runner_does_not_report_are_dashes() -> None:
    text = table(lines_of([Reply("yes", cost=Cost(2.0, 10)), answer()])).splitlines()
    assert [line.split()[-3:] for line in text[1:4]] == [["-"] * 3, ["10.0", "6.0", "5.0"], ["-"] * 3]


def test_failures_count_as_wrong_and_texts_are_made_printable() -> None:
    text = table(lines_of([Reply("", error="too\x1b[2J long"), answer()])).splitlines()
    assert text[1].split() == ["first", "1", "0.0%", "0.0%", "0.0%", "0.0%", "-", "-", "-"]
    assert text[-2:] == ["not delivered: 1 failed", r"most frequent failure: too\x1b[2J long"]


def test_candidates_are_graded_one_by_one_and_together() -> None:
    short = Cost(seconds=1.0, new_tokens=10, answer_tokens=10, blocks=1, denoising_steps=5)
    replies = [[Reply("yes", cost=short), answer("no")], [answer("no"), answer("no")]]
    text = table(lines_of(replies, n=2), 2).splitlines()
    assert text[0].split()[:5] == ["task", "answers", "strict", "any", "of"]
    # (20 + 10) tokens in the 2 s that both took together
    assert text[1].split() == str.split("first 2 50.0% 100.0% 50.0% 100.0% 0.0% 15.0 4.7 5.0")
    assert text[3].split()[:5] == ["all", "4", "25.0%", "50.0%", "25.0%"]


def test_details_that_are_true_are_counted() -> None:
    def parses(reply: Reply) -> Grade:
        return Grade(False, False, "no", {"parses": reply.answer == "yes", "words": 3})

    lines = lines_of([Reply("", error="too long"), answer(), answer("no")], tasks=[Task("t", "?", parses)])
    assert table(lines).splitlines()[-1] == "t, of 3: parses 1"


# --- mlx_dg.evaluate --------------------------------------------------------------------------------------


def test_a_suite_with_another_sampler(demo: Any, tmp_path: Path) -> None:
    how: dict[str, Any] = {"sampler": mlx_dg.ConfidenceThreshold(0.9), "out": tmp_path / "r.jsonl"}
    evaluation = mlx_dg.evaluate(*demo, "demo", **how, limit=2)
    assert evaluation.strict == 1
    assert str(evaluation) == table(evaluation.lines)
    assert evaluation.settings["settings"] == {"sampler": "ConfidenceThreshold(threshold=0.9)"}
    assert evaluation.lines[0]["prompt"][0]["role"] == "user"
    assert read(tmp_path / "r.jsonl")[0] == evaluation.settings
    again = mlx_dg.evaluate(*demo, "demo", **how, limit=3)  # asks for one more
    assert again.lines[:2] == evaluation.lines
    with pytest.raises(InputError, match="holds an evaluation with settings"):
        mlx_dg.evaluate(*demo, "demo", out=tmp_path / "r.jsonl")


def test_fixed_noise_makes_every_seed_the_same(demo: Any) -> None:
    keys: list[NoiseKey] = []

    def fixed(rows: Any, length: int, vocab_size: int) -> SeededDraws:
        keys.extend(rows)
        return SeededDraws([key._replace(seed=7) for key in rows], length, vocab_size)

    hasty: dict[str, Any] = {"max_denoising_steps": 2, "t_min": 1.0, "t_max": 1.0, "max_new_tokens": 64}
    hasty["guard_unconverged"] = False
    tasks = [Task("unsure", "Tell me 7 of 12 + and Rome backwards", is_yes)]
    free = mlx_dg.evaluate(*demo, tasks, runs=2, **hasty)
    assert len({line["thought"] for line in free.lines}) == 2
    evaluation = mlx_dg.evaluate(*demo, tasks, runs=2, draws=fixed, **hasty)
    assert evaluation.settings["suite"] == "tasks"
    assert len({line["thought"] for line in evaluation.lines}) == 1
    assert {key.seed for key in keys} == {line["seed"] for line in evaluation.lines}
    assert evaluation.settings["draws"].endswith("fixed")
    same = mlx_dg.generate(*demo, tasks[0].prompt, thinking=True, seed=7, **hasty)
    assert evaluation.lines[0]["thought"] == same.thought


def test_bad_calls_are_refused_before_anything_runs(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="unknown setting 'entropy_bond'; did you mean entropy_bound"):
        mlx_dg.evaluate(*demo, "demo", entropy_bond=1)
    with pytest.raises(InputError, match="'schema' is not a setting but a keyword of generate"):
        mlx_dg.evaluate(*demo, "demo", schema={})
    monkeypatch.setattr(sandbox, "problem", lambda: "there is no bwrap")
    with pytest.raises(InputError, match=r"there is no bwrap; .*unsafe_exec=True"):
        mlx_dg.evaluate(*demo, "matrix")
    mlx_dg.evaluate(*demo, "matrix", limit=1, unsafe_exec=True, max_new_tokens=64, max_denoising_steps=2)
    assert sandbox.allow_uncontained
    mlx_dg.evaluate(*demo, "demo", limit=1)
    assert not sandbox.allow_uncontained


def test_a_suite_that_is_none_and_a_limit_that_is_none_are_refused(demo: Any) -> None:
    with pytest.raises(InputError, match="suite: found str in it; give the name of a suite, or Tasks"):
        mlx_dg.evaluate(*demo, ["x"])  # type: ignore[list-item]
    with pytest.raises(InputError, match="limit must be an integer from 1"):
        mlx_dg.evaluate(*demo, TASKS, limit=0)
