"""The slash commands of `mlx_dg chat`, which change a conversation or report about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from mlx_diffusiongemma.console.messages import count, shown
from mlx_diffusiongemma.errors import InputError

if TYPE_CHECKING:
    from mlx_diffusiongemma.chat.chat import Chat


QUITS = ("q", "exit", "quit")  # alone on a line


class Command(NamedTuple):
    """A slash command.

    argument: its argument, as the help shows it: in brackets if it may be left out, "" if there is none.
    what: its description in the help.
    run: function that runs it. It returns the text to show, or None to end the chat.
    """

    argument: str
    what: str
    run: Callable[[Chat, str], str | None]


def run_command(chat: Chat, line: str) -> str | None:
    """Run `line`, which begins with a slash. Return the text to show, or None to end the chat."""
    name, _, argument = line[1:].partition(" ")
    argument = argument.strip()
    if name not in COMMANDS:
        raise InputError(
            f"unknown command {shown(f'/{name}')}; /help lists them, "
            "and // begins a message that starts with a slash"
        )
    command = COMMANDS[name]
    if argument and not command.argument:
        raise InputError(f"/{name} takes no argument, found {shown(argument)}")
    if command.argument and not argument and not command.argument.startswith("["):
        raise InputError(f"/{name} {command.argument}: the {command.argument.lower()} is missing")
    return command.run(chat, argument)


def chat_help() -> str:
    """Return the help: a line for each command, and lines about keys."""
    lines = [f"/{name} {command.argument}".ljust(18) + command.what for name, command in COMMANDS.items()]
    lines += [
        "Esc Enter or Alt-Enter begins a new line. // begins a message that starts with a slash.",
        "Ctrl-C stops an answer. Ctrl-D quits, and so does q, exit or quit alone on a line.",
    ]
    return "\n".join(lines)


def _reset(chat: Chat, _argument: str) -> str:
    chat.reset()
    return "the conversation is forgotten; settings and system message stay"


def _think(chat: Chat, argument: str) -> str:
    if argument:
        if argument not in ("on", "off"):
            raise InputError(f"/think takes on or off, found {shown(argument)}")
        chat.change(thinking=argument == "on")
    return _thinking(chat)


def _budget(chat: Chat, argument: str) -> str:
    if argument:
        chat.change(thinking_budget=_number("budget", argument))
    return _thinking_budget(chat)


def _seed(chat: Chat, argument: str) -> str:
    if argument:
        chat.change(seed=_number("seed", argument))
    return _seed_of(chat)


def _n(chat: Chat, argument: str) -> str:
    if argument:
        chat.change(n=_number("n", argument, may_be_off=False))
    return _candidates(chat)


def _image(chat: Chat, argument: str) -> str:
    chat.attach(argument)
    return f"the next message takes {count(len(chat.attached), 'image')}"


def _save(chat: Chat, argument: str) -> str:
    chat.save(argument)
    return f"saved {count(len(chat.messages) // 2, 'turn')} to {argument!r}"


def _load(chat: Chat, argument: str) -> str:
    name = chat.load(argument)
    settings = ", ".join(each(chat) for each in (_thinking, _thinking_budget, _seed_of, _candidates))
    output = f"loaded {count(len(chat.messages) // 2, 'turn')}; {settings}"
    if name != chat.name:
        output += f"\nnote: this chat was held with the model {name!r}; it goes on with {chat.name!r}"
    return output


def _stats(chat: Chat, _argument: str) -> str:
    if chat.last is None:
        return "nothing has been asked yet"
    totals = chat.totals
    return (
        f"last turn\n{chat.last.stats.table()}\nseed         {chat.last.seed}\n"
        f"conversation\n"
        f"kept         {count(totals.turns, 'turn')}, {totals.seconds:.2f} s\n"
        f"prompts      {totals.prompt_tokens} tokens, {totals.cached_tokens} of them cached\n"
        f"new tokens   {totals.new_tokens}, {totals.answer_tokens} in answers"
    )


def _number(name: str, argument: str, may_be_off: bool = True) -> Any:
    if may_be_off and argument == "off":
        return None
    try:
        return int(argument)
    except ValueError:
        wanted = "a number or off" if may_be_off else "a number"
        raise InputError(f"/{name} takes {wanted}, found {shown(argument)}") from None


def _thinking(chat: Chat) -> str:
    return f"thinking {'on' if chat.settings.thinking else 'off'}"


def _thinking_budget(chat: Chat) -> str:
    budget = chat.settings.thinking_budget
    return f"thinking budget {'off' if budget is None else f'{budget} tokens'}"


def _seed_of(chat: Chat) -> str:
    return f"seed {'off (chosen anew each turn)' if chat.settings.seed is None else chat.settings.seed}"


def _candidates(chat: Chat) -> str:
    return f"{count(chat.settings.n, 'candidate')} a turn"


COMMANDS = {
    "help": Command("", "list the commands", lambda _chat, _argument: chat_help()),
    "reset": Command("", "forget the conversation", _reset),
    "think": Command("[on|off]", "let the model think first, or not", _think),
    "budget": Command("[N|off]", "most tokens of thought", _budget),
    "seed": Command("[N|off]", "the seed of every turn; off chooses one each turn", _seed),
    "n": Command("[N]", "how many candidates to choose an answer from", _n),
    "image": Command("FILE", "take an image along with the next message", _image),
    "save": Command("FILE", "write the conversation to FILE", _save),
    "load": Command("FILE", "go on with the conversation in FILE", _load),
    "stats": Command("", "what the last turn and the conversation cost", _stats),
    "quit": Command("", "end the chat", lambda _chat, _argument: None),
}
