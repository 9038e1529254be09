"""`mlx_dg info`: contents of a checkpoint, or of its conversion."""

from __future__ import annotations

from typing import Any

import click

from .recipe_options import recipe_options


@click.command()
@click.argument("source", metavar="PATH")
@recipe_options
def info(source: str, revision: str | None, **settings: Any) -> None:
    """Show what is in PATH, a model directory or hub id (or "demo"), and which Macs hold it.

    For a conversion: how its tensors are stored, and what that costs. For a Hugging Face checkpoint: what a
    conversion with these options would write. Reads no weights; of a hub id, it downloads only their headers.
    """
    from mlx_diffusiongemma.checkpoint.loading import preview
    from mlx_diffusiongemma.converter import conversion, report

    with preview(source, revision) as directory:
        text = report.of_conversion(directory)
        if text is None:
            text = report.of_plan(*conversion.planned_conversion(directory, **settings))
    click.echo(text)
