"""A generation's trace as a matplotlib figure."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_diffusiongemma.errors import InputError

from .notebook import LEAST_NATS, MOST_NATS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mlx_diffusiongemma.generation import Generation
    from mlx_diffusiongemma.trace import TracedCanvas

MOST_CANVASES = 4
_SETTLING, _CHANGE = "#e66100", "#0072b2"  # apart for colour-blind readers, too


def plot_trace(generation: Generation) -> Figure:
    """The last four committed canvases of a generation that was asked for with `trace=True`, run to its end.

    A canvas has three panels with its denoising steps downwards: the entropy (nats) of each position; how
    many positions were accepted, and the mean entropy; how many tokens changed for the last time. The figure
    belongs to no GUI and not to pyplot: show it as the last value of a notebook's cell, or `savefig` it.

    Raises `InputError` when there is no trace or no matplotlib.
    """
    if generation.trace is None:
        raise InputError("plot_trace: this generation kept no trace; make it with generate(..., trace=True)")
    finish_reason = generation.finish_reason  # runs it
    committed = [canvas for canvas in generation.trace.canvases if canvas.committed]
    if not committed:
        raise InputError(f"plot_trace: nothing was denoised (finish_reason {finish_reason!r}); start again")
    canvases = committed[-MOST_CANVASES:]
    heights = [min(1.5 + 0.12 * len(canvas.steps), 5) for canvas in canvases]
    figure = _new_figure(11, sum(heights) + 0.6)
    rows = figure.subplots(
        len(canvases), 3, squeeze=False, gridspec_kw={"width_ratios": (4, 1.3, 1), "height_ratios": heights}
    )
    for canvas, axes in zip(canvases, rows, strict=True):
        _plot(canvas, *axes)
    total = committed[-1].block + 1
    title = f"{total} canvases" if total > 1 else "1 canvas"
    if len(canvases) < total:
        title = f"the last {len(canvases)} of {title}"
    figure.suptitle(f"{title}, seed {generation.seed}", fontsize="medium")
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

    accepted.barh(numbers, canvas.accepted.sum(axis=1), color=_CHANGE, alpha=0.45, height=0.8)
    accepted.set(title="accepted", xlabel=f"of {length} positions", xlim=(0, length))
    mean = accepted.twiny()
    mean.plot([step.mean_entropy for step in canvas.steps], numbers, ".-", color=_SETTLING)
    mean.set_xscale("symlog", linthresh=LEAST_NATS)
    mean.set_xlim(0, MOST_NATS)
    mean.set_xlabel("mean entropy, nats", color=_SETTLING, fontsize="small")
    mean.tick_params(axis="x", labelsize="x-small", colors=_SETTLING)

    counts = np.bincount(canvas.last_changed, minlength=len(numbers))
    counts[0] = 0  # these never changed
    changed.barh(numbers, counts, color=_CHANGE, height=0.8)
    changed.set(title="last changed", xlabel="tokens", xlim=(0, max(1, counts.max()) * 1.1))
    for axes in (heat, accepted, changed):
        axes.title.set_fontsize("medium")
        axes.set_ylim(numbers[-1] + 0.5, numbers[0] - 0.5)
        axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    changed.xaxis.set_major_locator(MaxNLocator("auto", integer=True))


def _new_figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "plot_trace needs matplotlib; install it: pip install 'mlx-diffusiongemma[notebook]'"
        ) from error

    class NotebookFigure(Figure):
        """Shows itself in a notebook; matplotlib's own does so only once pyplot was imported."""

        def _repr_png_(self) -> bytes:
            picture = io.BytesIO()
            self.savefig(picture, format="png")
            return picture.getvalue()

    return NotebookFigure(figsize=(width, height), layout="constrained")
