"""The ladder: the same prompts at every step cap and entropy bound, quality against tokens per forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from mlx_diffusiongemma.display.plots import new_figure
from mlx_diffusiongemma.errors import InputError

from .intervals import wilson
from .results import Line
from .table import Row, rows
from .task import Task

CAPS = (8, 16, 24, 48)
BOUNDS = (0.02, 0.05, 0.1, 0.2, 0.4)


def rungs(tasks: Sequence[Task]) -> list[Task]:
    """Each task at each cap (denoising steps per canvas) and bound (nats), prompt after prompt."""
    return [
        replace(
            task,
            name=f"{task.name} at {group(cap, bound)}",
            group=group(cap, bound),
            settings=task.settings | {"max_denoising_steps": cap, "entropy_bound": bound},
        )
        for task, cap, bound in product(tasks, CAPS, BOUNDS)
    ]


def picture_of(results: Path) -> Path:
    """Where the plot of these results goes. Raises `InputError` before hours of work if it cannot."""
    picture = results.with_suffix(".png")
    if results.suffix.lower() == ".png":
        raise InputError(f"--out {results}: that is where the plot goes; give a name that ends in .jsonl")
    if picture.exists() and not picture.is_file():
        raise InputError(f"{picture} is no file, and the plot goes there; give another --out")
    new_figure(1, 1, "ladder")
    return picture


def group(cap: int, bound: float) -> str:
    return f"cap {cap:2d}, bound {bound:.2f}"


def plot(lines: Sequence[Line], title: str, path: Path) -> None:
    """Writes a PNG: a curve a cap, a point a bound with the 95 % interval of its share of right answers."""
    from matplotlib.ticker import PercentFormatter

    by_name: dict[str, Row] = {row.name: row for row in rows(lines)}
    figure = new_figure(8, 5, "ladder")
    axes = figure.subplots()
    for rank, cap in enumerate(CAPS):
        points = [
            (row.tokens_per_forward, row, bound)
            for bound in BOUNDS
            if (row := by_name.get(group(cap, bound))) and row.tokens_per_forward is not None
        ]
        if not points:
            continue
        quality = [row.share("strict") for _, row, _ in points]
        limits = [wilson(row.count("strict"), row.answers) for _, row, _ in points]
        margins = [
            [max(0.0, share - low) for share, (low, _) in zip(quality, limits, strict=True)],
            [max(0.0, high - share) for share, (_, high) in zip(quality, limits, strict=True)],
        ]
        speeds = [speed for speed, _, _ in points]
        curve = axes.errorbar(
            speeds, quality, yerr=margins, marker="o", capsize=2, linewidth=1, label=f"{cap} steps at most"
        )
        bounds: dict[tuple[float, float], list[str]] = {}
        for place, (_, _, bound) in zip(zip(speeds, quality, strict=True), points, strict=True):
            bounds.setdefault(place, []).append(f"{bound:g}")
        for place, numbers in bounds.items():  # caps that never bind give the same points: one line each
            axes.annotate(
                ", ".join(numbers),
                place,
                (6, 4 - 9 * rank),
                textcoords="offset points",
                fontsize="x-small",
                color=curve.lines[0].get_color(),
            )
    axes.set_title(title, parse_math=False)  # a path may hold a $
    axes.set(
        xlabel="tokens per forward",
        ylabel="strictly right, with 95 % intervals",
        ylim=(-0.03, 1.03),
    )
    axes.set_xlim(0, 1.2 * axes.get_xlim()[1])  # room for the numbers
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    if axes.containers:
        axes.legend(title="numbers: entropy bound, nats", title_fontsize="small", fontsize="small")
    figure.savefig(path, dpi=150)
