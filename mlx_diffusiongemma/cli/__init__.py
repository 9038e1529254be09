"""The command `mlx_dg`, with one file for each subcommand.

Only the answer goes to standard output (with --json: one line of JSON). Thought, progress, statistics and
errors go to standard error. An error is one line. Exit status: 0 success, 1 failure during the work, 2 bad
input or usage, 130 interrupted, 141 the reader of the output has closed it.

Modules that load MLX or transformers are imported only when a command runs, so that --help is fast.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from mlx_diffusiongemma.errors import DiffusionGemmaError

from . import bench, chat, convert, doctor, eval, generate, info
from .process import check_environment, handle_signals
from .streams import complain, discard_stdout, fill_closed_streams, flush_outputs
from .usage import explained, unknown_command


class CommandLine(click.Group):
    """A group that ends every command with the exit status and error line described above."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:
            return super().parse_args(ctx, args)  # shows the help
        with _one_line():
            return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        completing = ctx.resilient_parsing  # a shell asks for completions
        if self.get_command(ctx, args[0]) is None and not completing:
            raise click.UsageError(unknown_command(args[0], self), ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with _one_line():
            return super().invoke(ctx)


@contextmanager
def _one_line() -> Iterator[None]:
    """Turn errors into one line on stderr and an exit status."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError as error:  # a group without a command
        error.show()
        sys.exit(2)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "mlx_dg"
        complain(f"mlx_dg: error: {explained(error)} See: {where} --help")
        sys.exit(2)
    except (click.exceptions.Exit, click.Abort):  # RuntimeErrors that end the command normally
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
    except (OSError, RuntimeError) as error:  # a full disk, or MLX's when Metal has no memory left
        discard_stdout()
        complain(f"mlx_dg: error: {error}")
        sys.exit(1)


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlx-diffusiongemma", prog_name="mlx_dg")
def main() -> None:
    """DiffusionGemma with MLX: generate text, convert checkpoints, measure speed."""
    fill_closed_streams()
    check_environment()


_COMMANDS: tuple[click.Command, ...] = (
    generate.generate, chat.chat, convert.convert, info.info, bench.bench, eval.evaluate, doctor.doctor,
)  # fmt: skip
for command in _COMMANDS:
    main.add_command(command)


def run() -> NoReturn:
    """Run the command as a process, and exit.

    After a signal, or while other threads run, the process exits without finalizing the interpreter.
    Otherwise a thread that used MLX would abort the process (status 134), because freeing its compile cache
    needs the interpreter.
    """
    handle_signals()
    status: str | int | None = 130
    try:
        main(prog_name="mlx_dg")
    except SystemExit as end:
        status = end.code
    except KeyboardInterrupt:  # a second interrupt, while the first was handled
        pass
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to interrupt
    if isinstance(status, int) and (status >= 128 or threading.active_count() > 1):
        flush_outputs()
        os._exit(status)
    sys.exit(status)
