"""`mlx_dg convert`: convert a Hugging Face checkpoint to a quantized MLX model."""

from __future__ import annotations

from typing import Any

import click

from mlx_diffusiongemma.console.messages import printable, say

from .recipe_options import RECIPE_OPTIONS, recipe_options


@click.command()
@click.argument("source", metavar="SRC")
@click.option(
    "--mlx-path", metavar="OUT", default="mlx_model", show_default=True, help="Directory to create."
)
@recipe_options
@click.option("--overwrite", is_flag=True, help="Replace OUT if it is a model directory.")
@click.option("--allow-nonfinite", is_flag=True, help="Continue if weights are NaN or infinite.")
@click.option("--verify", is_flag=True, help="Run source and result on a probe and compare them.")
@click.option(
    "--upload-repo", metavar="REPO", help="Upload the result to this hub id, and replace weights there."
)
@click.option("--dry-run", is_flag=True, help="Only print the plan, and the Macs that the result fits on.")
def convert(source: str, mlx_path: str, dry_run: bool, **settings: Any) -> None:
    """Convert SRC, a Hugging Face directory or hub id (or "demo"), to a quantized MLX model.

    By default experts are stored in 4 bits. Tensors that need more precision are stored in 8 bits or not
    quantized.
    """
    from mlx_diffusiongemma.checkpoint.loading import preview
    from mlx_diffusiongemma.converter import conversion, report

    if dry_run:
        choices = {option: settings[option] for option in RECIPE_OPTIONS}
        with preview(source, settings["revision"]) as directory:
            click.echo(report.of_plan(*conversion.planned_conversion(directory, **choices)))
        return
    target = conversion.convert(source, mlx_path, **settings)
    click.echo(printable(report.of_conversion(target) or ""))
    say(f"mlx_dg: wrote {mlx_path}")
