"""The ladder: every rung once, and a plot of what was measured."""

from __future__ import annotations

from itertools import product

import pytest
from matplotlib.figure import Figure

from mlx_diffusiongemma.evaluation import ladder
from mlx_diffusiongemma.evaluation.evaluate import seed_of
from mlx_diffusiongemma.evaluation.intervals import wilson
from mlx_diffusiongemma.evaluation.task import Grade, Task

TASKS = [Task(name, name, lambda reply: Grade(True, True), settings={"max_new_tokens": 9}) for name in "ab"]


def test_every_prompt_stands_on_every_rung_with_the_same_seed():
    tasks = ladder.rungs(TASKS)
    seen = [(t.prompt, t.settings["max_denoising_steps"], t.settings["entropy_bound"]) for t in tasks]
    assert seen == list(product("ab", (8, 16, 24, 48), (0.02, 0.05, 0.1, 0.2, 0.4)))
    assert all(task.settings["max_new_tokens"] == 9 for task in tasks)
    assert len({task.name for task in tasks}) == 40
    assert len({task.group for task in tasks}) == 20
    assert len({seed_of(task, 0, 0) for task in tasks}) == 2


def answers(cap, bound, right, wrong, tokens):
    for strict in [True] * right + [False] * wrong:
        yield {
            "task": "t", "group": ladder.group(cap, bound), "run": 0, "candidate": 0, "outcome": "delivered",
            "strict": strict, "lenient": True, "seconds": 1.0, "new_tokens": tokens, "answer_tokens": tokens,
            "blocks": 1, "denoising_steps": 4,
        }  # fmt: skip


def test_the_plot_shows_what_was_measured(tmp_path, monkeypatch):
    figures = []
    saved = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), saved(self, *a, **k))[1]
    )
    lines = [*answers(8, 0.02, 3, 1, 40), *answers(8, 0.4, 1, 3, 80), *answers(48, 0.1, 4, 0, 20)]
    ladder.plot(lines, "of what", tmp_path / "ladder.png")
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = figures[0].axes
    assert axes.get_title() == "of what"
    curves = {}
    for container in axes.containers:
        line, _, (bars,) = container
        curves[container.get_label()] = (
            line.get_xydata().tolist(),
            [s.tolist() for s in bars.get_segments()],
        )
    assert list(curves) == ["8 steps at most", "48 steps at most"]
    points, bars = curves["8 steps at most"]
    assert points == [[10, 0.75], [20, 0.25]]
    for (speed, _), (bottom, top), right in zip(points, bars, (3, 1), strict=True):
        assert bottom[0] == top[0] == speed
        assert (bottom[1], top[1]) == pytest.approx(wilson(right, 4))
    assert curves["48 steps at most"][0] == [[5, 1]]
    assert [text.get_text() for text in axes.texts] == ["0.02", "0.4", "0.1"]


def test_answers_without_steps_leave_an_empty_plot(tmp_path):
    lines = [line | {"denoising_steps": None} for line in answers(8, 0.02, 1, 0, 40)]
    ladder.plot(lines, "x", tmp_path / "l.png")
    assert (tmp_path / "l.png").exists()
