"""The ladder: every rung once, and a plot of what was measured."""

from __future__ import annotations

from itertools import product

import pytest
from answer_lines import line
from matplotlib.figure import Figure

from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.evaluation import ladder
from mlx_diffusiongemma.evaluation.intervals import wilson
from mlx_diffusiongemma.evaluation.loop import seed_of
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
    """So many right and wrong ones, `tokens` in 4 steps each."""
    counts = {"new_tokens": tokens, "denoising_steps": 4}
    return [
        line(group=ladder.group(cap, bound), strict=s, **counts) for s in [True] * right + [False] * wrong
    ]


def test_the_plot_shows_what_was_measured(tmp_path, monkeypatch):
    figures = []
    saved = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), saved(self, *a, **k))[1]
    )
    lines = [*answers(8, 0.02, 3, 1, 40), *answers(8, 0.4, 1, 3, 80), *answers(48, 0.1, 4, 0, 20)]
    ladder.plot(lines, "of $what_{$", tmp_path / "ladder.png")
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = figures[0].axes
    assert axes.get_title() == "of $what_{$"
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
    lines = [answer | {"denoising_steps": None} for answer in answers(8, 0.02, 1, 0, 40)]
    ladder.plot(lines, "x", tmp_path / "l.png")
    assert (tmp_path / "l.png").exists()


def test_numbers_of_points_that_coincide_are_written_once(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self))
    lines = [*answers(8, 0.02, 3, 1, 40), *answers(8, 0.05, 3, 1, 40), *answers(48, 0.02, 3, 1, 40)]
    ladder.plot(lines, "x", tmp_path / "l.png")
    texts = figures[0].axes[0].texts
    assert [text.get_text() for text in texts] == ["0.02, 0.05", "0.02"]
    assert texts[0].get_position() != texts[1].get_position()


def test_a_plot_that_could_not_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "taken.png").mkdir()
    for name, message in (("x.PNG", "that is where the plot goes"), ("taken.jsonl", "is no file")):
        with pytest.raises(InputError, match=message):
            ladder.picture_of(tmp_path / name)
    assert ladder.picture_of(tmp_path / "fine.jsonl") == tmp_path / "fine.png"
