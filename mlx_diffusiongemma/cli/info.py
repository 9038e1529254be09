"""`mlx_dg info`: the contents of a checkpoint or of its conversion."""

from __future__ import annotations

from typing import Any

import click

from mlx_diffusiongemma.console.messages import printable

from .recipe_options import recipe_options


@click.command()
@click.argument("source", metavar="PATH")
@recipe_options
def info(source: str, revision: str | None, **settings: Any) -> None:
    """Show the contents of PATH, a model directory or hub id (or "demo"), and the Macs that it fits on.

    For a conversion, this shows how its tensors are stored and the memory that they need. For a Hugging Face
    checkpoint, it shows the result of a conversion with these options. It does not read weights. For a hub
    id, it downloads only their headers.
    """
    from mlx_diffusiongemma.checkpoint.loading import preview
    from mlx_diffusiongemma.converter import conversion, report

    with preview(source, revision) as directory:
        text = report.of_conversion(directory)
        if text is None:
            text = report.of_plan(*conversion.planned_conversion(directory, **settings))
    click.echo(printable(text))
