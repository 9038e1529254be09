"""Explains usage errors in one line, with advice."""

from __future__ import annotations

import click

from mlx_diffusiongemma.habits import COMMANDS, CONVERT_OPTIONS, GENERATE_OPTIONS, INFO_OPTIONS, advice

_HABITS = {
    "generate": GENERATE_OPTIONS,
    "chat": GENERATE_OPTIONS,
    "convert": CONVERT_OPTIONS,
    "info": INFO_OPTIONS,
}
_MISSING = {
    "prompt": "give it in quotes, or - to read standard input",
    "source": "give a directory, a hub id, or demo",
}
_EXTRA = {
    "generate": "PROMPT is one argument: put it in quotes",
    "chat": "a chat takes no arguments: name the model with --model, and type messages after it starts",
    "convert": "name the directory to write with --mlx-path",
}


def explained(error: click.UsageError) -> str:
    """Return the message of `error`, with advice if there is any."""
    message, way_out = error.format_message().rstrip("."), None
    command = error.ctx.command if error.ctx else None
    if isinstance(error, click.NoSuchOption) and command is not None:
        message, way_out = f"No such option {error.option_name!r}", _option(error.option_name, command)
    elif isinstance(error, click.MissingParameter) and error.param is not None:
        way_out = _MISSING.get(error.param.name or "")
    elif command is not None and error.message.startswith("Got unexpected extra argument"):
        way_out = _EXTRA.get(command.name or "")
    return _sentence(message, way_out)


def _option(option: str, command: click.Command) -> str | None:
    spelled = [each for param in command.params for each in (*param.opts, *param.secondary_opts)]
    known = {_name(each): each for each in spelled if each.startswith("-")}
    instead = advice(_name(option), _HABITS.get(command.name or "", {}), known)
    if instead is None and isinstance(command, click.Group):
        return "a command comes first, such as mlx_dg generate"
    if instead is None and command.name == "generate" and not option.startswith("--"):
        return "write -- before a prompt that begins with a dash"
    return instead


def _name(option: str) -> str:
    return option.lstrip("-").replace("-", "_")


def _sentence(message: str, way_out: str | None) -> str:
    text = f"{message}; {way_out}" if way_out else message
    return text if text.endswith(("?", ".")) else f"{text}."


def unknown_command(name: str, group: click.Group) -> str:
    """Return the message for a command that `group` does not have, with advice if there is any."""
    message = f"No such command {name!r}"
    if " " in name:
        return f"{message}; a prompt follows the command generate: mlx_dg generate {name!r}."
    known = {each: f"mlx_dg {each}" for each in group.commands}
    return _sentence(message, advice(name, COMMANDS, known))
