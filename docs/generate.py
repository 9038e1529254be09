"""Writes what is derived: docs/cli.md from every command's --help, and README.md's table of Macs.

python docs/generate.py            write them
python docs/generate.py --check    write nothing; exit status 1 if they are stale
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from mlx_diffusiongemma.cli import main as mlx_dg

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
_MACS = re.compile(r"(<!-- macs: .*? -->\n).*?(<!-- end of macs -->)", re.DOTALL)


def command_line() -> str:
    """docs/cli.md, 78 columns wide as click writes on a terminal of 80."""
    pages = ["# Command line\n\nWritten by `make docs` from each command's `--help`.\n"]
    for name in ("", *mlx_dg.commands):
        command = mlx_dg.commands[name] if name else mlx_dg
        path = f"mlx_dg {name}".strip()
        context = click.Context(command, info_name=path, terminal_width=78, max_content_width=78)
        pages.append(f"## {path}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(pages)


def main() -> int:
    wanted = {DOCS / "cli.md": command_line()}
    stale = [file for file, text in wanted.items() if not file.exists() or file.read_text("utf-8") != text]
    if "--check" in sys.argv[1:]:
        for file in stale:
            print(f"{file.relative_to(DOCS.parent)} is stale; run: make docs")
        return bool(stale)
    for file in stale:
        file.write_text(wanted[file], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
