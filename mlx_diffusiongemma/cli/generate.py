"""`mlx_dg generate`: an answer on stdout, block by block."""

from __future__ import annotations

import json
from typing import Any

import click

from mlx_diffusiongemma.console.messages import say
from mlx_diffusiongemma.errors import InputError

from .showing import show
from .streams import checked_utf8, read_prompt

_MOST_SCHEMA = 1_000_000  # characters
NO_MODEL_GIVEN = (
    "mlx_dg: no --model, so this is the bundled demo, a toy that knows a few tasks. The real model: "
    "--model mlx-community/diffusiongemma-26B-A4B-it-4bit (or convert it: "
    "mlx_dg convert google/diffusiongemma-26B-A4B-it --mlx-path DIR)"
)


@click.command()
@click.argument("prompt")
@click.option("--model", metavar="demo|DIR|HUB_ID", help="The model.  [default: demo, a bundled toy]")
@click.option("--seed", type=int, help="The same seed gives the same text.  [default: random, and reported]")
@click.option("--thinking/--no-thinking", default=False, help="Let the model think first.  [default: no]")
@click.option(
    "--thinking-budget",
    type=int,
    help="Maximum number of tokens of thought. A longer thought is closed.  [default: no limit]",
)
@click.option(
    "-n", "n", type=int, default=1, help="Number of candidates, which share one prefill.  [default: 1]"
)
@click.option("--schema", metavar="FILE", help="Make the answer match the JSON Schema in FILE.")
@click.option("--regex", metavar="PATTERN", help="Make the answer match a regular expression.")
@click.option(
    "--max-new-tokens",
    type=int,
    help="Maximum number of new tokens.  [default: 2048, unless the checkpoint has a number]",
)
@click.option(
    "--max-denoising-steps", type=int, help="Maximum number of steps per canvas.  [default: the checkpoint's]"
)
@click.option(
    "--entropy-bound",
    type=float,
    help="Uncertainty (nats) that a step may accept. Lower is slower and more careful.  "
    "[default: the checkpoint's]",
)
@click.option(
    "--prefill-step-size",
    type=int,
    help="Tokens per encode pass over the prompt. Fewer need less memory.  [default: 2048]",
)
@click.option("--system", metavar="TEXT", help="A system message.")
@click.option(
    "--image", "images", multiple=True, metavar="FILE", help="An image before the prompt. May be repeated."
)
@click.option(
    "--soft-tokens",
    type=int,
    help="Maximum number of soft tokens of each image: 70, 140, 280, 560 or 1120.  "
    "[default: 280, unless the checkpoint has a number]",
)
@click.option(
    "--live",
    is_flag=True,
    help="On a terminal, show each canvas while it denoises, with entropies as colours.",
)
@click.option(
    "--stats", is_flag=True, help="Print statistics of each block on stderr, even if it is not a terminal."
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON at the end instead of text.")
def generate(
    prompt: str,
    model: str | None,
    seed: int | None,
    thinking: bool,
    n: int,
    schema: str | None,
    regex: str | None,
    system: str | None,
    images: tuple[str, ...],
    soft_tokens: int | None,
    live: bool,
    stats: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Answer PROMPT, or standard input if PROMPT is "-".

    PROMPT is one argument, so put it in quotes. The answer appears on stdout block by block, as canvases
    converge. The thought goes to stderr, so a pipe gets only the answer. Warnings also go to stderr, for
    example if --max-new-tokens cut the answer off. On a terminal, stderr also shows progress and, at the end,
    statistics. Candidates follow each other, with an empty line between them (with --json: one line each).
    """
    prompt, system = read_prompt(prompt), checked_utf8(system, "--system")
    if not prompt.strip():
        raise InputError("the prompt is empty; give text, or - and text on standard input")
    if live and as_json:
        raise InputError("--live and --json cannot be combined; give one of them")
    from mlx_diffusiongemma import generate as start
    from mlx_diffusiongemma import load
    from mlx_diffusiongemma.config.ranges import in_range
    from mlx_diffusiongemma.display import choose
    from mlx_diffusiongemma.engine.noise import checked_seed
    from mlx_diffusiongemma.vision.patches import check_budget
    from mlx_diffusiongemma.vision.reading import read_image

    # Refuse bad values before minutes of loading.
    check_settings(settings)
    in_range("n", n)
    if soft_tokens is not None:
        check_budget(soft_tokens)
    for number, file in enumerate(images, start=1):
        read_image(file, f"image {number}")
    checked = read_schema(schema) if schema is not None else None
    chosen_seed = checked_seed(seed)
    if model is None:
        say(NO_MODEL_GIVEN)
        model = "demo"
    network, tokenizer = load(model)
    display = choose(as_json, stats, live, tokenizer)
    generation = start(
        network,
        tokenizer,
        prompt,
        thinking=thinking,
        system=system,
        images=images or None,
        soft_tokens=soft_tokens,
        seed=chosen_seed,
        n=n,
        schema=checked,
        regex=regex,
        on_step=display.step if display.watched else None,
        **settings,
    )
    if seed is None and not as_json:  # JSON has it at the end; a terminal must show it before an interrupt
        say(f"mlx_dg: seed {chosen_seed}")
    show(generation, display, display.end)


def check_settings(settings: dict[str, Any]) -> None:
    """Raise `InputError` for settings that no checkpoint can use."""
    from mlx_diffusiongemma import Settings

    if settings["max_new_tokens"] is None:  # the checkpoint's number is not known yet
        settings = settings | {"max_new_tokens": 2**31 - 1}
    Settings().override(**settings)


def read_schema(file: str) -> Any:
    """Return the JSON Schema in `file`. Raise `InputError` if it cannot be read or enforced."""
    from mlx_diffusiongemma.control.schema import checked_schema

    try:
        with open(file, encoding="utf-8-sig") as stream:  # a pipe is fine
            text = stream.read(_MOST_SCHEMA + 1)
        if len(text) > _MOST_SCHEMA:
            raise ValueError(f"longer than {_MOST_SCHEMA} characters")
        schema = json.loads(text)
    except OSError as error:
        raise InputError(f"--schema {file}: {error.strerror}; give a file with a JSON Schema") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"--schema {file}: not JSON ({error}); give a file with a JSON Schema") from None
    checked_schema(schema)
    return schema
