"""The figure of a trace: its panels hold the trace's numbers; it needs no pyplot and shows itself once."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import matplotlib
import numpy as np
import pytest
from support.scripted import TURN_END, Scripted

import mlx_dg
from mlx_diffusiongemma.text.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

HARD = 'Spell "internationalisation" backwards.'


def panels(figure: Any) -> list[list[Any]]:
    """Per canvas: heat map, accepted, last changed, mean entropy."""
    titled = [axes for axes in figure.axes if axes.get_title()]
    means = [axes for axes in figure.axes if axes.get_xlabel().startswith("mean entropy")]
    return [[*titled[3 * index : 3 * index + 3], mean] for index, mean in enumerate(means)]


def test_the_panels_hold_the_trace(demo: Any) -> None:
    generation = mlx_dg.generate(*demo, HARD, thinking=True, seed=0, trace=True)
    figure = mlx_dg.plot_trace(generation)
    ((heat, accepted, changed, mean),) = panels(figure)
    (canvas,) = generation.trace.canvases
    numbers = list(range(1, len(canvas.steps) + 1))
    (image,) = heat.images
    np.testing.assert_array_equal(image.get_array(), np.maximum(canvas.entropies, 0.001))
    assert image.get_extent() == [-0.5, 63.5, numbers[-1] + 0.5, 0.5]
    bars = [(round(bar.get_y() + bar.get_height() / 2), bar.get_width()) for bar in accepted.patches]
    assert bars == list(zip(numbers, canvas.accepted.sum(axis=1), strict=True))
    dots, crosses = changed.lines
    late = [(position, step + 1) for position, step in enumerate(canvas.last_changed) if step]
    assert list(zip(*dots.get_data(), strict=True)) == late
    assert len(late) > 3
    assert len(crosses.get_xdata()) == 0
    (line,) = mean.lines
    np.testing.assert_array_equal(line.get_xdata(), [step.mean_entropy for step in canvas.steps])
    np.testing.assert_array_equal(line.get_ydata(), numbers)
    for axes in (heat, accepted, changed, mean):
        assert axes.get_ylim() == (numbers[-1] + 0.5, 0.5)
    assert figure.get_suptitle() == "1 canvas, seed 0"


def test_the_last_four_canvases_that_were_committed(tokenizer: Tokenizer) -> None:
    text = tokenizer.encode("yes " * 80)[:64]
    blocks: list[list[list[int]]] = [[[TURN_END], text], [text], [text], [text], [text], [[TURN_END]]]

    def titles(most: int) -> list[str]:
        model: Any = Scripted(lambda block, attempt: blocks[block][attempt])
        generation = mlx_dg.generate(model, tokenizer, "hi", trace=True, seed=3, max_new_tokens=most)
        figure = mlx_dg.plot_trace(generation)
        return [figure.get_suptitle(), *(row[0].get_title() for row in panels(figure))]

    last = [f"canvas {n}: entropy" for n in (3, 4, 5, 6)]
    assert titles(512) == ["the last 4 of 6 canvases, seed 3", *last]
    assert titles(64) == ["1 canvas, seed 3", "canvas 1, try 2: entropy"]


def test_what_the_grammar_finished(demo: Any) -> None:
    """It stands below the steps, in a row without a number."""
    generation = mlx_dg.generate(*demo, "Hi", choices=["zebra", "yak"], seed=0, trace=True)
    figure = mlx_dg.plot_trace(generation)
    figure.canvas.draw()
    ((heat, accepted, changed, mean),) = panels(figure)
    (canvas,) = generation.trace.canvases
    steps = len(canvas.steps)
    ended = f"{len(canvas.finished)} tokens finished by the grammar or the thinking budget"
    assert heat.get_title().endswith(ended)
    assert changed.lines[1].get_xdata().tolist() == canvas.finished.tolist() != []
    assert set(changed.lines[1].get_ydata()) == {steps + 1}
    for axes in (heat, accepted, changed, mean):
        assert axes.get_ylim() == (steps + 1.5, 0.5)
    ticks = [tick.get_text() for tick in changed.get_yticklabels()]
    assert str(steps) in ticks
    assert str(steps + 1) not in ticks


def test_a_failed_generation_and_dropped_steps(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tokenizer.encode("yes " * 80)[:64]
    model: Any = Scripted([text, text], sure=lambda _: 60.0 if len(model.encoded) == 1 else float("nan"))
    generation = mlx_dg.generate(model, tokenizer, "hi", seed=3, trace=True)
    for _ in range(2):
        figure = mlx_dg.plot_trace(generation)
        assert "1 canvas, seed 3\nended by an error: the model's logits are NaN" in figure.get_suptitle()
    monkeypatch.setattr("mlx_diffusiongemma.engine.trace.MOST_STEPS", 3)
    generation = mlx_dg.generate(Scripted([text, [TURN_END]]), tokenizer, "hi", seed=3, trace=True)
    figure = mlx_dg.plot_trace(generation)
    assert figure.get_suptitle() == "2 canvases, seed 3, the last 3 of 4 steps were kept"
    figure.canvas.draw()
    assert {tick.get_text() for tick in panels(figure)[0][2].get_yticklabels()} >= {"2"}


def test_an_interrupted_canvas_is_shown_as_such(tokenizer: Tokenizer) -> None:
    def interrupt(_: Any) -> None:
        if len(model.encoded) == 2:
            raise KeyboardInterrupt

    model: Any = Scripted([tokenizer.encode("yes " * 80)[:64], [TURN_END]])
    generation = mlx_dg.generate(model, tokenizer, "hi", trace=True, on_step=interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(generation)
    figure = mlx_dg.plot_trace(generation)
    assert figure.get_suptitle() == f"2 canvases, the last not committed, seed {generation.seed}"
    titles = [row[0].get_title() for row in panels(figure)]
    assert titles == ["canvas 1: entropy", "canvas 2: entropy\nnot committed"]


def test_it_shows_itself_without_pyplot() -> None:
    """Pyplot is neither imported nor given a figure: whoever uses it sees nothing twice."""
    code = """if True:
        import sys, mlx_dg
        generation = mlx_dg.generate(*mlx_dg.load("demo"), "Hi", seed=0, trace=True)
        assert mlx_dg.plot_trace(generation)._repr_png_().startswith(b"\\x89PNG")
        assert "matplotlib.figure" in sys.modules and "matplotlib.pyplot" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_errors_name_the_way_out(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(mlx_dg.InputError, match=r"no trace there.*generate\(\.\.\., trace=True\)"):
        mlx_dg.plot_trace(mlx_dg.generate(*demo, "Hi", seed=0))
    generation = mlx_dg.generate(*demo, "Hi", seed=0, trace=True)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delattr(matplotlib, "figure", raising=False)
    with pytest.raises(mlx_dg.InputError, match=r"pip install 'mlx-diffusiongemma\[notebook\]'"):
        mlx_dg.plot_trace(generation)
