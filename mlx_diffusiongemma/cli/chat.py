"""`mlx_dg chat`: a conversation, at a terminal or line by line from a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

import click

from mlx_diffusiongemma.console.messages import count, say
from mlx_diffusiongemma.errors import DiffusionGemmaError, InputError

from .chat_commands import QUITS, run_command
from .chat_lines import Lines, PipedLines, TypedLines
from .generate import NO_MODEL_GIVEN, check_settings
from .process import keep_on_interrupt
from .showing import show
from .streams import checked_utf8, complain

if TYPE_CHECKING:
    from mlx_diffusiongemma import Generation
    from mlx_diffusiongemma.chat.chat import Chat


@click.command()
@click.option("--model", metavar="demo|DIR|HUB_ID", help="The model.  [default: demo, a bundled toy]")
@click.option("--system", metavar="TEXT", help="A system message.")
@click.option("--thinking/--no-thinking", default=False, help="Let the model think first.  [default: no]")
@click.option(
    "--thinking-budget",
    type=int,
    help="Maximum number of tokens of thought. A longer thought is closed.  [default: no limit]",
)
@click.option("--seed", type=int, help="Seed of every turn.  [default: a new one each turn]")
@click.option(
    "--max-new-tokens",
    type=int,
    help="Maximum number of new tokens per turn.  [default: 2048, unless the checkpoint has a number]",
)
@click.option(
    "--max-denoising-steps", type=int, help="Maximum number of steps per canvas.  [default: the checkpoint's]"
)
@click.option(
    "--live",
    is_flag=True,
    help="On a terminal, show each canvas while it denoises, with entropies as colours.",
)
def chat(
    model: str | None, system: str | None, thinking: bool, seed: int | None, live: bool, **settings: Any
) -> None:
    """Hold a conversation. /help lists the commands; q, exit or quit alone on a line ends it.

    At a terminal, Ctrl-C stops an answer and keeps the conversation. Ctrl-D ends the conversation. Answers go
    to stdout. Everything else goes to stderr, including a warning when an answer was cut. Lines that were
    typed are kept in ~/.mlx_dg_history.

    If standard input is not a terminal, each of its lines is a message or a command. An empty line follows
    the answer to each message. The first of several candidates with an answer is taken, unless the next line
    is the number of another. If a line fails, the next lines are still done, and the exit status is 1.
    """
    system = checked_utf8(system, "--system")
    from mlx_diffusiongemma import load
    from mlx_diffusiongemma.chat.chat import Chat
    from mlx_diffusiongemma.engine.noise import checked_seed

    # Bad values are refused before minutes of loading.
    check_settings(settings)
    if seed is not None:
        checked_seed(seed)
    if model is None:
        say(NO_MODEL_GIVEN)
        model = "demo"
    network, tokenizer = load(model)
    chat = Chat(network, tokenizer, system=system, name=model, thinking=thinking, seed=seed, **settings)
    screen = terminal()
    lines: Lines = PipedLines() if screen is None else terminal_lines(screen)
    if screen is not None:
        keep_on_interrupt()
        say(f"Chat with {model}. /help lists the commands, q or Ctrl-D quits.")
    if not Conversation(chat, lines, live, at_terminal=screen is not None).run():
        sys.exit(1)


def terminal_lines(screen: TextIO) -> Lines:
    """Return the source of messages typed at a terminal, with line editing if prompt_toolkit is installed."""
    try:
        from .chat_terminal import TerminalLines
    except ImportError:
        complain(
            "mlx_dg: note: history, completion and messages of several lines need prompt_toolkit; "
            "pip install 'mlx-diffusiongemma[chat]'"
        )
        return TypedLines()
    return TerminalLines(screen)


def terminal() -> TextIO | None:
    """Return stderr or stdout if it is a terminal. Return None if neither is, or if stdin is not."""
    if sys.stdin is None or not sys.stdin.isatty():
        return None
    return next((stream for stream in (sys.stderr, sys.stdout) if stream and stream.isatty()), None)


class Conversation:
    """Reads messages and commands until the end of `lines`, asks the model and shows its answers.

    An interrupt ends the conversation only without a terminal.

    failed: True if a line failed.
    over: True if the user quit instead of choosing a candidate.
    """

    def __init__(self, chat: Chat, lines: Lines, live: bool, at_terminal: bool):
        self.chat, self.lines, self.live, self.at_terminal = chat, lines, live, at_terminal
        self.failed = self.over = False

    def run(self) -> bool:
        """Run the conversation. Return False if a line failed, but always True at a terminal."""
        going_on = True
        while going_on:
            try:
                going_on = self._line() and not self.over
            except KeyboardInterrupt:  # at the prompt: the line is cleared
                if not self.at_terminal:
                    raise
            except InputError as error:  # of a line that cannot be read
                self._complain(error)
        return self.at_terminal or not self.failed

    def _line(self) -> bool:
        """Read one line, and run the command or answer the message in it. Return False at the end."""
        line = self.lines.read()
        if line is None or line.strip().lower() in QUITS:
            return False
        if not line.strip():
            return True
        if line.startswith("/") and not line.startswith("//"):
            output = run_command(self.chat, line)
            if output is not None:
                say(output)
            return output is not None
        try:
            self._turn(line.removeprefix("/"))
        except DiffusionGemmaError as error:
            self._complain(error)
        except Exception as error:  # MLX's, when Metal has no memory left, or a bug: the chat goes on
            self._complain(f"{type(error).__name__}: {error}; the question is taken back")
        except KeyboardInterrupt:  # before there is anything to show, or a second one
            if not self.at_terminal:
                raise
            complain("mlx_dg: interrupted; the question is taken back")
        click.echo()
        return True

    def _turn(self, text: str) -> None:
        from mlx_diffusiongemma.display import choose

        display = choose(as_json=False, statistics=False, live=self.live, tokenizer=self.chat.tokenizer)

        def end(candidate: Generation, finished: bool) -> None:
            display.tidy()
            if finished and display.watched:
                say(status(candidate), dim=True)

        generation = self.chat.ask(text, display.step if display.watched else None)
        how = "ended"
        try:
            with self.lines.silent():
                show(generation, display, end)
        except KeyboardInterrupt:
            if not self.at_terminal:
                raise
            how = "interrupted"
            if display.watched:
                click.echo("\r", err=True, nl=False)  # over the ^C that the terminal shows
        kept = self._chosen(generation)
        if kept is None:
            self.failed = True
            called = any(block.tool_calls for each in generation.candidates for block in each.blocks)
            missing = "with a tool call, to which a chat has no answer" if called else "without an answer"
            complain(f"mlx_dg: {how} {missing}; the question is taken back")
            return
        if how == "interrupted":
            complain("mlx_dg: interrupted; what was answered stays in the conversation, cut short")
        self.chat.keep(kept)

    def _chosen(self, generation: Generation) -> Generation | None:
        """Return the candidate to keep, or None if no candidate has an answer."""
        from mlx_diffusiongemma.chat.chat import written

        candidates = dict(enumerate(generation.candidates, start=1))
        answered = [number for number, each in candidates.items() if written(each)[0].strip()]
        if not answered:
            return None
        while len(candidates) > 1:
            try:
                choice = (self.lines.choose(f"keep which? [{answered[0]}] ") or "").strip()
                self.over = choice.lower() in QUITS
                if not choice or self.over:
                    break
                if choice in map(str, answered):
                    return candidates[int(choice)]
                raise InputError(f"give the number of a candidate with an answer, found {choice[:40]!r}")
            except InputError as error:
                self._complain(error)
        return candidates[answered[0]]

    def _complain(self, error: Exception | str) -> None:
        self.failed = True
        complain(f"mlx_dg: error: {error}")


def status(generation: Generation) -> str:
    """Return a line of statistics about one answer."""
    stats = generation.stats
    return (
        f"{count(stats.blocks, 'block')}, {count(stats.denoising_steps, 'step')}, "
        f"{stats.net_tokens_per_second:.1f} tokens/s net, "
        f"{stats.cached_tokens} of {stats.prompt_tokens} prompt tokens cached"
    )
