"""The command `mlx_dg`: parses, calls, prints.

Standard output carries the answer (with --json: one line of JSON) and nothing else; thought,
progress, statistics and errors go to standard error. An error is one line. Exit status: 0 done,
1 failure while working, 2 bad input or usage, 130 interrupted, 141 the reader of our output left.

One command a file. Modules that load MLX or transformers are imported inside the commands, so that
--help stays quick.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from mlx_diffusiongemma.errors import DiffusionGemmaError

from . import bench, chat, convert, doctor, eval, generate, info
from .streams import complain, discard_stdout, fill_closed_streams


class CommandLine(click.Group):
    """Ends every command as the module's docstring says."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else "mlx_dg"
            complain(f"mlx_dg: error: {error.format_message()} See: {where} --help")
            sys.exit(2)
        except (click.exceptions.Exit, click.Abort):  # how click ends; RuntimeErrors, too
            raise
        except DiffusionGemmaError as error:
            complain(f"mlx_dg: error: {error}")
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            complain("mlx_dg: interrupted")
            sys.exit(130)
        except BrokenPipeError:
            discard_stdout()
            sys.exit(141)
        except (OSError, RuntimeError) as error:  # a full disk; MLX's, when Metal has no memory left
            discard_stdout()
            complain(f"mlx_dg: error: {error}")
            sys.exit(1)


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlx-diffusiongemma", prog_name="mlx_dg")
def main() -> None:
    """DiffusionGemma with MLX: generate text, convert checkpoints, measure speed."""
    fill_closed_streams()


for command in (
    *(generate.generate, chat.chat, convert.convert, info.info),
    *(bench.bench, eval.evaluate, doctor.doctor),
):
    main.add_command(command)
