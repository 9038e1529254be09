"""`mlx_dg bench`: measures a model's speed on this machine, and what limits it."""

from __future__ import annotations

import json

import click

from mlx_diffusiongemma.console.messages import say


@click.command()
@click.option(
    "--model",
    default="demo",
    show_default=True,
    metavar="demo|DIR|HUB_ID|synthetic:26b",
    help="The model. synthetic: random weights in the real shapes, without a checkpoint.",
)
@click.option("--layers", type=int, help="Layers of the synthetic model.  [default: 30]")
@click.option(
    "--prompt-tokens",
    metavar="N,N,...",
    help="Prompt lengths to sweep.  [default: those of 128,1024,4096 that fit]",
)
@click.option("--canvas-lengths", metavar="N,N,...", help="Canvas lengths to sweep.  [default: the model's]")
@click.option("--steps", type=int, default=8, show_default=True, help="Denoising steps per timed canvas.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of prompts, noise and random weights."
)
def bench(
    model: str,
    layers: int | None,
    prompt_tokens: str | None,
    canvas_lengths: str | None,
    steps: int,
    seed: int,
) -> None:
    """Measure a model's speed at several prompt and canvas lengths.

    Prints a table on stderr and one line of JSON on stdout. They contain the seconds per step and per part of
    a step, the bytes and operations that a step needs, the share of the chip's limits that a step reaches,
    and the time of one real generation.
    """
    from mlx_diffusiongemma.bench import report, sweep

    prompts = sweep.lengths(prompt_tokens, "--prompt-tokens")
    canvases = sweep.lengths(canvas_lengths, "--canvas-lengths")
    result = sweep.run(model, layers, prompts, canvases, steps, seed)
    say(report.table(result))
    click.echo(json.dumps(result, allow_nan=False))
