"""The figure of a trace: its panels hold the trace's numbers; it needs no pyplot and shows itself once."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import matplotlib
import numpy as np
import pytest
from scripted import TURN_END, Scripted

import mlx_dg
from mlx_diffusiongemma.loading import load, resolve
from mlx_diffusiongemma.tokenizer import Tokenizer

HARD = 'Spell "internationalisation" backwards.'


@pytest.fixture(scope="module")
def demo() -> Any:
    return load("demo")


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
    bars = [(round(bar.get_y() + bar.get_height() / 2), bar.get_width()) for bar in changed.patches]
    late = [(number, (canvas.last_changed == number - 1).sum()) for number in numbers[1:]]
    assert bars == [(1, 0), *late]
    assert sum(width for _, width in bars) > 0
    (line,) = mean.lines
    np.testing.assert_array_equal(line.get_xdata(), [step.mean_entropy for step in canvas.steps])
    np.testing.assert_array_equal(line.get_ydata(), numbers)
    for axes in (heat, accepted, changed, mean):
        assert axes.get_ylim() == (numbers[-1] + 0.5, 0.5)
    assert figure.get_suptitle() == "1 canvas, seed 0"


def test_the_last_four_canvases_that_were_committed() -> None:
    tokenizer = Tokenizer.load(resolve("demo"))
    text = tokenizer.encode("yes " * 80)[:64]
    blocks: list[list[list[int]]] = [[[TURN_END], text], [text], [text], [text], [text], [[TURN_END]]]
    model: Any = Scripted(lambda block, attempt: blocks[block][attempt])
    figure = mlx_dg.plot_trace(
        mlx_dg.generate(model, tokenizer, "hi", trace=True, seed=3, max_new_tokens=512)
    )
    assert figure.get_suptitle() == "the last 4 of 6 canvases, seed 3"
    assert [row[0].get_title() for row in panels(figure)] == [f"canvas {n}: entropy" for n in (3, 4, 5, 6)]
    model = Scripted(lambda block, attempt: blocks[block][attempt])
    figure = mlx_dg.plot_trace(mlx_dg.generate(model, tokenizer, "hi", trace=True, max_new_tokens=64))
    assert [row[0].get_title() for row in panels(figure)] == ["canvas 1, try 2: entropy"]


def test_it_shows_itself(demo: Any) -> None:
    generation = mlx_dg.generate(*demo, "What is 345 + 78?", seed=0, trace=True)
    assert mlx_dg.plot_trace(generation)._repr_png_().startswith(b"\x89PNG")


def test_pyplot_is_left_alone() -> None:
    """Neither imported nor given a figure: whoever uses it sees nothing twice."""
    code = """if True:
        import sys, mlx_dg
        generation = mlx_dg.generate(*mlx_dg.load("demo"), "Hi", seed=0, trace=True)
        mlx_dg.plot_trace(generation)._repr_png_()
        assert "matplotlib.figure" in sys.modules and "matplotlib.pyplot" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_errors_name_the_way_out(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(mlx_dg.InputError, match=r"kept no trace.*generate\(\.\.\., trace=True\)"):
        mlx_dg.plot_trace(mlx_dg.generate(*demo, "Hi", seed=0))
    generation = mlx_dg.generate(*demo, "Hi", seed=0, trace=True)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delattr(matplotlib, "figure", raising=False)
    with pytest.raises(mlx_dg.InputError, match=r"pip install 'mlx-diffusiongemma\[notebook\]'"):
        mlx_dg.plot_trace(generation)


def test_nothing_was_denoised(demo: Any) -> None:
    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    generation = mlx_dg.generate(*demo, "Hi", seed=0, trace=True, on_step=interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(generation)
    generation.trace.steps.clear()
    with pytest.raises(mlx_dg.InputError, match="nothing was denoised"):
        mlx_dg.plot_trace(generation)
