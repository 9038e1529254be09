"""`mlx_dg doctor`: a report to paste into a bug report."""

from __future__ import annotations

import sys

import click

from .streams import complain


@click.command()
def doctor() -> None:
    """Check this machine and print a report to paste into a bug report.

    Versions and how they fit; the chip, its memory limits and Metal; each Metal kernel against the MLX
    operations that define it, on this device; the bundled demo model's answers; which conversions of the
    26B model fit, with how much context. Works offline: nothing is downloaded, and nothing is sent
    anywhere. The report names no user, machine or directory; messages of errors, which might, go to
    standard error. Exit status 1 when something is wrong; notes do not count.
    """
    from mlx_diffusiongemma.doctor.examination import examine

    def aside(line: str) -> None:
        complain(f"mlx_dg doctor: {line}")

    watched = sys.stderr is not None and sys.stderr.isatty()
    if not examine(click.echo, aside if watched else lambda _: None, aside):
        sys.exit(1)
