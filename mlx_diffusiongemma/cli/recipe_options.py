"""The options that `convert` and `info` share."""

from __future__ import annotations

from typing import Any

import click

RECIPE_OPTIONS = ("recipe", "q_bits", "q_group_size", "q_mode", "overrides", "dtype")


def recipe_options(command: Any) -> Any:
    """Add to `command` the options that choose how tensors are stored. Those of mlx-lm keep their names."""
    options = [
        click.option("--recipe", default="mixed-4bit", show_default=True, metavar="NAME", help=(
            "mixed-4bit, mixed-4bit-bf16-embed, 4bit, 8bit, mxfp4, nvfp4 or bf16."
        )),
        click.option("--q-bits", type=int, help="Bits of the tensors that the recipe quantizes."),
        click.option("--q-group-size", type=int, help="Number of weights that share a scale."),
        click.option("--q-mode", help="affine, mxfp4, mxfp8 or nvfp4."),
        click.option("--set", "overrides", multiple=True, metavar="CLASS=BITS[:GROUP[:MODE]]", help=(
            "Store one class differently. 16 bits: not quantized. Classes: experts, attention, mlp, "
            "self_conditioning, embedding, router. May be repeated."
        )),
        click.option("--dtype", help=(
            "dtype of tensors that are not quantized: float16, bfloat16 or float32."
        )),
        click.option("--revision", help="Branch, tag or commit of a hub id."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command
