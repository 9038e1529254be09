"""Usage errors in one line, with what to type instead."""

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
    "chat": "a chat takes no arguments: name the model with --model, and type messages when it has begun",
    "convert": "name the directory to write with --mlx-path",
}


def explained(error: click.UsageError) -> str:
    """Return what is wrong, and the way out if it is known."""
    if error.ctx is None:
        return error.format_message()
    if isinstance(error, click.NoSuchOption):
        return _unknown_option(error.option_name, error.ctx)
    way_out = None
    if isinstance(error, click.MissingParameter) and error.param is not None:
        way_out = _MISSING.get(error.param.name or "")
    elif error.message.startswith("Got unexpected extra argument"):
        way_out = _EXTRA.get(error.ctx.command.name or "")
    message = error.format_message()
    return _sentence(message.rstrip("."), way_out) if way_out else message


def _unknown_option(option: str, context: click.Context) -> str:
    command, root = context.command, context.find_root().command
    known = {_name(spelled): spelled for spelled in _options(command)}
    instead = advice(_name(option), _HABITS.get(command.name or "", {}), known)
    if instead is None and isinstance(command, click.Group):
        instead = "a command comes first, such as mlx_dg generate"
    elif instead is None and isinstance(root, click.Group):
        others = [f"mlx_dg {name}" for name, other in root.commands.items() if option in _options(other)]
        instead = f"it is an option of {' and '.join(others)}" if others else None
    if instead is None and command.name == "generate" and not option.startswith("--"):
        instead = "write -- before a prompt that begins with a dash"
    return _sentence(f"No such option {option!r}", instead)


def _options(command: click.Command) -> list[str]:
    spelled = [each for param in command.params for each in (*param.opts, *param.secondary_opts)]
    return [each for each in spelled if each.startswith("-")]


def _name(option: str) -> str:
    return option.lstrip("-").replace("-", "_")


def _sentence(message: str, way_out: str | None) -> str:
    text = f"{message}; {way_out}" if way_out else message
    return text if text.endswith("?") else f"{text}."


def unknown_command(name: str, group: click.Group) -> str:
    """Return that `group` has no such command, and what to type instead."""
    message = f"No such command {name!r}"
    if " " in name:
        return f"{message}; a prompt follows the command generate: mlx_dg generate {name!r}."
    known = {each: f"mlx_dg {each}" for each in group.commands}
    return _sentence(message, advice(name, COMMANDS, known))
