"""`mlx_dg eval` runs a suite of tasks through a model. `mlx_dg eval compare` compares two runs."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import click

from mlx_diffusiongemma.console.messages import printable, say
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.evaluation.runners import LOCAL
from mlx_diffusiongemma.evaluation.suites import SUITES

LADDER = "The prompts of a suite at step caps 8 to 48 and entropy bounds 0.02 to 0.4."


@click.group("eval")
def evaluate() -> None:
    """Measure quality and speed on tasks, graded strictly.

    Every answer goes to a file as a line of JSON, with its prompt, seed, settings and grade. A table comes at
    the end. After an interrupt, the same command continues with the file.
    """


def _number(*names: str, least: int = 1, **more: Any) -> click.Option:
    return click.Option(names, type=click.IntRange(min=least), metavar="N", show_default=True, **more)


_OPTIONS = (
    click.Option(
        ["--model"],
        metavar="demo|DIR|HUB_ID",
        help="The model; with --endpoint, the name that the server knows. Suite demo has the default demo.",
    ),
    _number("--runs", default=3, help="Runs of each prompt, each with another seed."),
    _number("--seed", least=0, default=0, help="Seed that each answer's seed is derived from."),
    click.Option(
        ["--set", "settings"],
        multiple=True,
        metavar="NAME=VALUE",
        help="A setting of generate, such as entropy_bound=0.2 or 'sampler=ConfidenceThreshold(0.9)'. May be "
        "repeated.",
    ),
    _number(
        "--thinking-budget",
        least=0,
        help="Maximum number of tokens of thought. A longer thought is closed.  [default: no limit]",
    ),
    _number("-n", "--n", "n", default=1, help="Candidates per prompt and run, each graded."),
    _number("--limit", help="Only the first N prompts.  [default: all]"),
    click.Option(
        ["--out"],
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="File for the answers.  [default: eval-SUITE-MODEL.jsonl, with the changed settings]",
    ),
    click.Option(["--runner"], type=click.Choice(LOCAL), help="Program that generates.  [default: mlx_dg]"),
    click.Option(
        ["--endpoint"],
        metavar="URL",
        help="Ask an OpenAI-compatible server instead; OPENAI_API_KEY is its key.",
    ),
    click.Option(["--unsafe-exec"], is_flag=True, help="Run generated code even where nothing contains it."),
)
_PROMPTS = click.Option(
    ["--prompts"],
    type=click.Choice([*SUITES]),
    default="matrix",
    show_default=True,
    help="Suite that the prompts come from.",
)


def _command(name: str, about: str, *more: click.Option) -> click.Command:
    options: list[click.Parameter] = [*_OPTIONS, *more]
    return click.Command(name, params=options, callback=partial(_run, name), help=about, short_help=about)


@evaluate.command(short_help="Compare two files of one suite: paired differences, with 95% intervals.")
@click.argument("first", metavar="A", type=click.Path(path_type=Path))
@click.argument("second", metavar="B", type=click.Path(path_type=Path))
def compare(first: Path, second: Path) -> None:
    """Compare two files of one suite: paired differences, with 95% intervals.

    Answers to the same task in the same run are a pair. Differences of shares are B minus A. For speeds, the
    median of B / A is shown.
    """
    from mlx_diffusiongemma.evaluation.comparison import compare as compared

    click.echo(printable(compared(first, second)))


def _run(
    suite: str,
    model: str | None,
    runs: int,
    seed: int,
    settings: tuple[str, ...],
    thinking_budget: int | None,
    n: int,
    limit: int | None,
    out: Path | None,
    runner: str | None,
    endpoint: str | None,
    unsafe_exec: bool,
    prompts: str | None = None,
) -> None:
    from mlx_diffusiongemma.evaluation import run, runners
    from mlx_diffusiongemma.evaluation.results import Results
    from mlx_diffusiongemma.evaluation.table import table

    if model is None and (suite != "demo" or endpoint is not None):
        raise InputError(
            "--model is missing; give demo, a directory, a hub id or the server's name of a model"
        )
    model = model or "demo"
    # Refuse bad input before minutes of loading.
    parsed = read_settings(settings)
    if thinking_budget is not None:
        parsed["thinking_budget"] = thinking_budget
    tasks, header = run.planned(prompts or suite, limit, parsed)
    if prompts is not None:
        tasks, header = run.rungs(tasks), header | {"suite": suite, "prompts": prompts}
    if problem := run.check_contained(tasks, unsafe_exec):
        say(f"mlx_dg: warning: generated code runs with resource limits only: {problem}")
    chosen = runners.choose(runner or ("mlx_dg" if endpoint is None else "endpoint"), model, endpoint)
    tasks, objections = run.possible(tasks, chosen)
    for objection, count in objections.items():
        say(f"mlx_dg: left out {count} prompts: {objection}")
    identity = chosen.identity()
    changed = [*settings, *([] if thinking_budget is None else [f"thinking_budget={thinking_budget}"])]
    path = out or _default_path(suite, identity, changed)
    with closing(Results(path, header | {"seed": seed, "n": n} | identity)) as results:
        try:
            lines = run.ask(tasks, chosen, results, runs, unsafe_exec)
        except BaseException:
            there = sum((task.name, number) in results.answers for task in tasks for number in range(runs))
            if there:
                say(
                    f"mlx_dg: {results.path} keeps {there} of {len(tasks) * runs} prompts' answers; "
                    "the same command continues from there"
                )
            raise
    click.echo(table(lines, n))
    say(f"mlx_dg: prompts, answers, seeds and grades: {results.path}")


def _default_path(suite: str, identity: dict[str, Any], changed: Sequence[str]) -> Path:
    """Return the default file for the answers, in the current directory. It is named after `changed`."""
    runner = [] if identity["runner"] == "mlx_dg" else [identity["runner"]]
    parts = ["eval", suite, Path(identity["model"]).name or "model", *runner, *changed]
    return Path("-".join(re.sub(r"[^\w.]+", "-", part).strip("-") for part in parts)[:200] + ".jsonl")


def read_settings(texts: tuple[str, ...]) -> dict[str, Any]:
    """Return settings from texts NAME=VALUE.

    A value is a number, true, false, or a part of `engine.samplers` in Python's spelling. `stop` may occur
    several times, once for each stop rule.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            read = _value(ast.parse(value.strip(), mode="eval").body)
        except InputError:
            raise
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            raise InputError(
                f"--set {text}: not NAME=VALUE; give --set entropy_bound=0.2, "
                "or --set 'sampler=ConfidenceThreshold(0.9)', say"
            ) from None
        settings[name.strip()] = [*settings.get(name, []), read] if name == "stop" else read
    return settings


def _value(node: ast.expr) -> Any:
    from mlx_diffusiongemma.engine import samplers

    if isinstance(node, ast.Name) and node.id in ("true", "false"):
        return node.id == "true"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        part = getattr(samplers, node.func.id, None) if not node.func.id.startswith("_") else None
        if not isinstance(part, type) or part.__module__ != samplers.__name__:
            raise InputError(f"--set: there is no {node.func.id}; docs/samplers.md lists the parts")
        keywords = {each.arg: _value(each.value) for each in node.keywords if each.arg}
        return part(*map(_value, node.args), **keywords)
    return ast.literal_eval(node)


for _suite, _about in SUITES.items():
    evaluate.add_command(_command(_suite, _about))
evaluate.add_command(_command("ladder", LADDER, _PROMPTS))
