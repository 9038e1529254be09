"""Writes what is derived: docs/cli.md from every command's --help, and README.md's table of Macs.

python docs/generate.py            write them
python docs/generate.py --check    write nothing; exit status 1 if they are stale
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from mlx_diffusiongemma.cli import main as mlx_dg
from mlx_diffusiongemma.cli.chat_commands import chat_help
from mlx_diffusiongemma.config.released import real_config
from mlx_diffusiongemma.console.tables import size
from mlx_diffusiongemma.converter.memory import longest_prompt, recipe_weight_bytes
from mlx_diffusiongemma.macs import gpu_limit

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
_TABLE = re.compile(r"(<!-- macs: .*? -->\n).*?(<!-- end of macs -->)", re.DOTALL)


_HEAD = """# Command line

Written by `make docs` from each command's `--help`.

The answer goes to standard output as blocks converge, so a pipe gets only the answer. Thought, warnings,
progress and statistics go to standard error. Exit status: 0 success, 1 failure, 2 bad input, 130 interrupted
(converged blocks are written), 141 the reader of the output has closed it.
"""


def command_line() -> str:
    """docs/cli.md, 78 columns wide as click writes on a terminal of 80."""
    pages = [_HEAD]
    pages += [_page(path, command) for path, command in _documented()]
    pages.append(f"### In a chat\n\n```text\n{chat_help()}\n```\n")
    return "\n".join(pages)


def _documented() -> Iterator[tuple[str, click.Command]]:
    """Yield every command. Those of `eval` share their options, so three of them represent all."""
    yield "mlx_dg", mlx_dg
    for name, command in mlx_dg.commands.items():
        yield f"mlx_dg {name}", command
    evaluate = mlx_dg.commands["eval"]
    assert isinstance(evaluate, click.Group)
    for name in ("six", "ladder", "compare"):
        yield f"mlx_dg eval {name}", evaluate.commands[name]


def _page(path: str, command: click.Command) -> str:
    names = mlx_dg.context_settings["help_option_names"]
    context = click.Context(
        command, info_name=path, terminal_width=78, max_content_width=78, help_option_names=names
    )
    return f"## {path}\n\n```text\n{command.get_help(context)}\n```\n"


_MACS = (16, 24, 32, 36, 48, 64, 96, 128)  # GB
_NEW_TOKENS = 1024


def macs() -> str:
    """Return README.md with its table: the longest prompt of the 26B for each recipe and Mac."""
    config = real_config()
    limit = config.text.max_position_embeddings

    def cell(weight_bytes: int, gigabytes: int) -> str:
        tokens = longest_prompt(config, weight_bytes, gpu_limit(gigabytes), _NEW_TOKENS)
        return "all" if tokens >= limit - _NEW_TOKENS else f"{tokens // 1024}k" if tokens >= 1024 else "–"

    rows = [
        ("recipe", "weights", *(f"{gigabytes} GB" for gigabytes in _MACS)),
        ("---", *["---:"] * (1 + len(_MACS))),
        *(
            (f"`{recipe}`", size(weights), *(cell(weights, gigabytes) for gigabytes in _MACS))
            for recipe, weights in recipe_weight_bytes(config).items()
        ),
    ]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    text, tables = _TABLE.subn(rf"\g<1>{table}\g<2>", README.read_text(encoding="utf-8"))
    assert tables == 1, "README.md has lost the place of its table of Macs"
    return text


def main() -> int:
    wanted = {DOCS / "cli.md": command_line(), README: macs()}
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
