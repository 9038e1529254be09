"""`mlx_dg doctor`: what to paste into a bug report."""

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
    anywhere. The report names no user, machine or directory. Exit status 1 when something is wrong;
    notes do not count.
    """
    from mlx_diffusiongemma.doctor.examination import examine

    watched = sys.stderr is not None and sys.stderr.isatty()
    if not examine(click.echo, lambda line: complain(f"mlx_dg doctor: {line}") if watched else None):
        sys.exit(1)
