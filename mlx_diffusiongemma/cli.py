"""The command `mlx_dg`: parses, calls, prints.

Standard output carries the answer (with --json: one line of JSON) and nothing else; thought,
progress, statistics and errors go to standard error. An error is one line. Exit status: 0 done,
1 failure while working, 2 bad input or usage, 130 interrupted, 141 the reader of our output left.

Modules that load MLX or transformers are imported inside the commands, so that --help stays quick.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

import click

from mlx_diffusiongemma.errors import DiffusionGemmaError, InputError

NO_MODEL_GIVEN = (
    "mlx_dg: no --model given, so this is the bundled demo, a toy that knows a few tasks. The real one: "
    "--model mlx-community/diffusiongemma-26B-A4B-it-4bit (or convert it: "
    "mlx_dg convert google/diffusiongemma-26B-A4B-it --mlx-path DIR)"
)


class CommandLine(click.Group):
    """Ends every command as the module's docstring says."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else "mlx_dg"
            complain(f"mlx_dg: error: {error.format_message()} See: {where} --help")
            sys.exit(2)
        except DiffusionGemmaError as error:
            complain(f"mlx_dg: error: {error}")
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            complain("mlx_dg: interrupted")
            sys.exit(130)
        except BrokenPipeError:
            discard_stdout()
            sys.exit(141)
        except OSError as error:  # a full disk, a directory without permission
            discard_stdout()
            complain(f"mlx_dg: error: {error}")
            sys.exit(1)


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlx-diffusiongemma", prog_name="mlx_dg")
def main() -> None:
    """DiffusionGemma with MLX: generate text, convert checkpoints."""
    fill_closed_streams()


@main.command()
@click.argument("prompt")
@click.option("--model", metavar="demo|DIR|HUB_ID", help="What to run.  [default: demo, a bundled toy]")
@click.option("--seed", type=int, help="Same seed, same text.  [default: chosen anew, and reported]")
@click.option("--thinking/--no-thinking", default=False, help="Let the model think first.  [default: no]")
@click.option("--max-new-tokens", type=int, help="Most tokens to generate.  [default: the checkpoint's]")
@click.option("--max-denoising-steps", type=int, help="Most steps per canvas.  [default: the checkpoint's]")
@click.option(
    "--entropy-bound",
    type=float,
    help="How much uncertainty (nats) a step may accept: lower is slower and more careful.  "
    "[default: the checkpoint's]",
)
@click.option("--system", metavar="TEXT", help="A system message.")
@click.option("--stats", is_flag=True, help="Statistics on stderr, block by block, terminal or not.")
@click.option("--json", "as_json", is_flag=True, help="Print nothing but one line of JSON, at the end.")
def generate(
    prompt: str,
    model: str | None,
    seed: int | None,
    thinking: bool,
    system: str | None,
    stats: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Answer PROMPT; "-" reads it from standard input.

    The answer appears on stdout block by block, as canvases converge. The thought goes to stderr, so a
    pipe gets the answer alone. On a terminal, stderr also shows progress and, at the end, statistics.
    """
    prompt, system = read_prompt(prompt), checked_utf8(system, "--system")
    if not prompt.strip():
        raise InputError("the prompt is empty; give text, or - and text on standard input")
    from mlx_diffusiongemma import GenerationConfig, load
    from mlx_diffusiongemma import generate as start
    from mlx_diffusiongemma.display.plain import PlainDisplay
    from mlx_diffusiongemma.generation import checked_seed

    # Bad values are refused before minutes of loading.
    GenerationConfig().override(**settings)
    chosen_seed = checked_seed(seed)
    if model is None:
        click.echo(NO_MODEL_GIVEN, err=True)
        model = "demo"
    network, tokenizer = load(model)
    display = PlainDisplay(as_json, stats)
    generation = start(
        network,
        tokenizer,
        prompt,
        thinking=thinking,
        system=system,
        seed=chosen_seed,
        on_step=display.step if display.watched else None,
        **settings,
    )
    if seed is None and not as_json:  # JSON has it; here it must survive an interrupt
        click.echo(f"mlx_dg: seed {chosen_seed}", err=True)
    try:
        for block in generation:
            display.block(block, generation.stats.canvas_length)
    except KeyboardInterrupt:
        display.end(generation, finished=False)
        raise
    except DiffusionGemmaError:
        display.tidy()
        raise
    display.end(generation)


RECIPE_OPTIONS = ("recipe", "q_bits", "q_group_size", "q_mode", "overrides", "dtype")


def recipe_options(command: Any) -> Any:
    """The options that choose how tensors are stored; named as in `mlx_lm.convert` where that has them."""
    options = [
        click.option("--recipe", default="mixed-4bit", show_default=True, metavar="NAME", help=(
            "mixed-4bit, mixed-4bit-bf16-embed, 4bit, 8bit, mxfp4, nvfp4 or bf16."
        )),
        click.option("--q-bits", type=int, help="Bits of all that the recipe quantizes."),
        click.option("--q-group-size", type=int, help="Weights that share a scale."),
        click.option("--q-mode", help="affine, mxfp4, mxfp8 or nvfp4."),
        click.option("--set", "overrides", multiple=True, metavar="CLASS=BITS[:GROUP[:MODE]]", help=(
            "Store one class otherwise; 16 bits: not quantized. Classes: experts, attention, mlp, "
            "self_conditioning, embedding, router. May be given several times."
        )),
        click.option("--dtype", help="Of what is not quantized: float16, bfloat16 or float32."),
        click.option("--revision", help="Branch, tag or commit of a hub id."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@click.argument("source", metavar="SRC")
@click.option(
    "--mlx-path", metavar="OUT", default="mlx_model", show_default=True, help="Directory to create."
)
@recipe_options
@click.option("--overwrite", is_flag=True, help="Replace OUT if it is a model directory.")
@click.option("--allow-nonfinite", is_flag=True, help="Go on when weights are NaN or infinite.")
@click.option("--verify", is_flag=True, help="Run source and result on a probe and compare them.")
@click.option(
    "--upload-repo", metavar="REPO", help="Push the result to this hub id; weights there are replaced."
)
@click.option("--dry-run", is_flag=True, help="Print what would be written, and on which Macs it fits.")
def convert(source: str, mlx_path: str, dry_run: bool, **settings: Any) -> None:
    """Convert SRC, a Hugging Face directory or hub id (or "demo"), to a quantized MLX model.

    By default experts are stored at 4 bits; what precision matters to is stored at 8, or left as it is.
    """
    from mlx_diffusiongemma.converter import conversion, report
    from mlx_diffusiongemma.loading import preview

    if dry_run:
        choices = {option: settings[option] for option in RECIPE_OPTIONS}
        with preview(source, settings["revision"]) as directory:
            click.echo(report.of_plan(*conversion.planned_conversion(directory, **choices)))
        return
    target = conversion.convert(source, mlx_path, **settings)
    click.echo(report.of_conversion(target))
    click.echo(f"mlx_dg: wrote {mlx_path}", err=True)


@main.command()
@click.argument("source", metavar="PATH")
@recipe_options
def info(source: str, revision: str | None, **settings: Any) -> None:
    """Show what is in PATH, a model directory or hub id (or "demo"), and which Macs hold it.

    Of a conversion, how its tensors are stored and what that costs; of a Hugging Face checkpoint, what
    converting it with these options would write. Reads no weights, and of a hub id only their headers.
    """
    from mlx_diffusiongemma.converter import conversion, report
    from mlx_diffusiongemma.loading import preview

    with preview(source, revision) as directory:
        text = report.of_conversion(directory)
        if text is None:
            text = report.of_plan(*conversion.planned_conversion(directory, **settings))
    click.echo(text)


def fill_closed_streams() -> None:
    """Opens /dev/null for closed standard streams; else weights become file 0, which MLX cannot read."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def read_prompt(prompt: str) -> str:
    """The PROMPT argument, or for "-" standard input without its trailing newlines."""
    if prompt != "-":
        return checked_utf8(prompt, "PROMPT")
    raw = sys.stdin.buffer.read() if sys.stdin is not None else b""
    try:
        return raw.decode("utf-8").removeprefix("\ufeff").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"standard input is not UTF-8 (byte 0x{raw[error.start]:02x} at offset {error.start}); "
            "convert it, for example with iconv"
        ) from None


def checked_utf8(text: str | None, name: str) -> Any:
    """`text`, unless the shell handed over bytes that are no UTF-8 (Python keeps them as surrogates)."""
    try:
        (text or "").encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is not UTF-8 (character {error.start}); convert it first") from None
    return text


def complain(line: str) -> None:
    """One line on stderr; silently nothing when nobody reads that either."""
    with contextlib.suppress(OSError):
        click.echo(line, err=True)


def discard_stdout() -> None:
    """Sends what is still buffered to nowhere, or the interpreter would complain when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # stdout is closed, or no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
