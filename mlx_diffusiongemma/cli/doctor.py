"""`mlx_dg doctor`: a report to paste into a bug report."""

from __future__ import annotations

import sys

import click

from .streams import complain


@click.command()
def doctor() -> None:
    """Check this machine and print a report to paste into a bug report.

    The report shows versions and whether they fit together, the chip, its memory limits and Metal. Each Metal
    kernel is compared with the MLX operations that define it, and the answers of the bundled demo model with
    the right ones. The report says which conversions of the 26B model fit, and with how much context.

    Nothing is downloaded or sent. The report names no user, machine or directory. Messages of errors, which
    might, go to standard error. The exit status is 1 if there is a problem, and 0 if there are only notes.
    """
    from mlx_diffusiongemma.doctor.examination import examine

    def aside(line: str) -> None:
        complain(f"mlx_dg doctor: {line}")

    watched = sys.stderr is not None and sys.stderr.isatty()
    if not examine(click.echo, aside if watched else lambda _: None, aside):
        sys.exit(1)
