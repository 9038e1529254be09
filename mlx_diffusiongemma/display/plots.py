"""A generation's trace as a matplotlib figure."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_diffusiongemma.errors import InputError

from .notebook import LEAST_NATS, MOST_NATS, dropped, result, run_to_end

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mlx_diffusiongemma.engine.trace import TracedCanvas
    from mlx_diffusiongemma.result import Generation

MOST_CANVASES = 4
_SETTLING, _CHANGE = "#e66100", "#0072b2"  # colour-blind readers can tell them apart


def plot_trace(generation: Generation) -> Figure:
    """Plot the last four canvases of a generation with `trace=True`. The generation is run to its end.

    They are committed canvases, but the last may be one that an interrupt or an error ended. Each has three
    panels, with denoising steps downwards. The first shows the entropy of each position, in nats. The second
    shows the number of accepted positions and the mean entropy. The third shows the step in which each
    position's draft token last changed, and below it a cross where the grammar or the thinking budget
    replaced the token. The figure does not belong to pyplot. Show it as a notebook cell's last value, or
    `savefig` it.

    Raises `InputError` without a trace, denoised canvases or matplotlib.
    """
    trace = getattr(generation, "trace", None)
    if trace is None:
        raise InputError("plot_trace: no trace there; give a generation made with generate(..., trace=True)")
    failure, tries = run_to_end(generation), trace.last_tries
    if not tries:
        raise InputError(f"plot_trace: nothing was denoised ({failure or 'it was closed'}); start again")
    canvases = tries[-MOST_CANVASES:]
    heights = [min(1.5 + 0.12 * len(canvas.steps), 5) for canvas in canvases]
    figure = new_figure(12, sum(heights) + 0.6, "plot_trace")
    rows = figure.subplots(
        len(canvases), 3, squeeze=False, gridspec_kw={"width_ratios": (4, 1.3, 3), "height_ratios": heights}
    )
    for canvas, axes in zip(canvases, rows, strict=True):
        _plot(canvas, *axes)
    total = tries[-1].block + 1
    title = f"{total} canvases" if total > 1 else "1 canvas"
    if len(canvases) < total:
        title = f"the last {len(canvases)} of {title}"
    if not tries[-1].committed:
        title += ", the last not committed"
    title = ", ".join([title, f"seed {generation.seed}", *filter(None, [dropped(trace)])])
    if failure:
        title += "\n" + textwrap.fill(f"ended by an error: {failure}", 120)
    figure.suptitle(title, fontsize="medium")
    return figure


def _plot(canvas: TracedCanvas, heat: Axes, accepted: Axes, changed: Axes) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    entropies, numbers = canvas.entropies, np.array([step.index + 1 for step in canvas.steps])
    length = entropies.shape[1]
    image = heat.imshow(
        np.maximum(entropies, LEAST_NATS),
        norm=LogNorm(LEAST_NATS, MOST_NATS),
        cmap="Oranges",
        aspect="auto",
        interpolation="nearest",
        extent=(-0.5, length - 0.5, numbers[-1] + 0.5, numbers[0] - 0.5),
    )
    heat.figure.colorbar(image, ax=heat, label="nats", pad=0.01)
    again = f", try {canvas.attempt + 1}" if canvas.attempt else ""
    heat.set(title=f"canvas {canvas.block + 1}{again}: entropy", xlabel="position", ylabel="step")
    if ended := result(canvas).removeprefix(", "):
        heat.set_title(f"{heat.get_title()}\n{ended}")

    accepted.barh(numbers, canvas.accepted.sum(axis=1), color=_CHANGE, alpha=0.45, height=0.8)
    accepted.set(title="accepted", xlabel=f"of {length} positions", xlim=(0, length))
    mean = accepted.twiny()
    mean.plot([step.mean_entropy for step in canvas.steps], numbers, ".-", color=_SETTLING)
    mean.set_xscale("symlog", linthresh=LEAST_NATS)
    mean.set_xlim(0, MOST_NATS)
    mean.set_xlabel("mean entropy, nats", color=_SETTLING, fontsize="small")
    mean.tick_params(axis="x", labelsize="x-small", colors=_SETTLING)

    (late,) = np.nonzero(canvas.last_changed)
    changed.plot(late, numbers[canvas.last_changed[late]], ".", color=_CHANGE)
    changed.plot(canvas.finished, np.full(len(canvas.finished), numbers[-1] + 1), "x", color=_SETTLING)
    changed.set(title="last change of the draft", xlabel="position", xlim=(-0.5, length - 0.5))
    changed.grid(alpha=0.3)
    below = 1 if len(canvas.finished) else 0
    for axes in (heat, accepted, changed):
        axes.title.set_fontsize("medium")
        axes.set_ylim(numbers[-1] + 0.5 + below, numbers[0] - 0.5)
        axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.yaxis.set_major_formatter(lambda step, _: f"{step:.0f}" if step <= numbers[-1] else "")


def new_figure(width: float, height: float, needed_by: str) -> Any:
    """Return an empty figure. Sizes are in inches. Raises `InputError` if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            f"{needed_by} needs matplotlib; install it: pip install 'mlx-diffusiongemma[notebook]'"
        ) from error

    class NotebookFigure(Figure):
        """A figure that a notebook shows. Matplotlib's own figures need an import of pyplot for that."""

        def _repr_png_(self) -> bytes:
            picture = io.BytesIO()
            self.savefig(picture, format="png")
            return picture.getvalue()

    return NotebookFigure(figsize=(width, height), layout="constrained")
