"""`mlx_dg eval`: a suite of tasks through a model; `mlx_dg eval compare`: two such runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from mlx_diffusiongemma.evaluation.runners import LOCAL
from mlx_diffusiongemma.evaluation.suites import SUITES

LADDER = (
    "The prompts of a suite at step caps 8 to 48 and entropy bounds 0.02 to 0.4, and a plot (PNG) of quality "
    "against tokens per forward."
)


@click.group("eval")
def evaluate() -> None:
    """Measure quality and speed on tasks, graded strictly.

    Every answer goes to a file as a line of JSON, with its seed, settings and grade. A table comes at the
    end. After an interrupt, the same command continues with the file.
    """


_AT_LEAST_1, _AT_LEAST_0 = click.IntRange(min=1), click.IntRange(min=0)
_OPTIONS = (
    click.Option(
        ["--model"],
        metavar="demo|DIR|HUB_ID",
        help="The model. Required, except with --endpoint, where it is the name that the server knows.",
    ),
    click.Option(
        ["--runs"],
        type=_AT_LEAST_1,
        metavar="N",
        default=3,
        show_default=True,
        help="Runs of each prompt, each with another seed.",
    ),
    click.Option(
        ["--seed"],
        type=_AT_LEAST_0,
        metavar="N",
        default=0,
        show_default=True,
        help="Seed that each answer's seed is derived from.",
    ),
    click.Option(
        ["--thinking-budget"],
        type=_AT_LEAST_0,
        metavar="N",
        help="Most tokens of thought; then it is closed.  [default: no limit]",
    ),
    click.Option(
        ["-n", "--n", "n"],
        type=_AT_LEAST_1,
        metavar="N",
        default=1,
        show_default=True,
        help="Candidates per prompt and run, each graded.",
    ),
    click.Option(
        ["--limit"], type=_AT_LEAST_1, metavar="N", help="Only the first N prompts.  [default: all]"
    ),
    click.Option(
        ["--out"],
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="File for the answers.  [default: eval-SUITE-MODEL.jsonl]",
    ),
    click.Option(["--runner"], type=click.Choice(LOCAL), help="Program that generates.  [default: mlx_dg]"),
    click.Option(
        ["--endpoint"],
        metavar="URL",
        help="Ask an OpenAI-compatible server instead; OPENAI_API_KEY is its key.",
    ),
    click.Option(["--unsafe-exec"], is_flag=True, help="Run generated code even where nothing limits it."),
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

    Answers to the same task in the same run are a pair. Shares: B minus A. Speeds: the median of B / A.
    """
    from mlx_diffusiongemma.evaluation.comparison import compare as compared

    click.echo(compared(first, second))


def _run(
    suite: str,
    model: str | None,
    runs: int,
    seed: int,
    thinking_budget: int | None,
    n: int,
    limit: int | None,
    out: Path | None,
    runner: str | None,
    endpoint: str | None,
    unsafe_exec: bool,
    prompts: str | None = None,
) -> None:
    from mlx_diffusiongemma.evaluation import ladder, plan, runners
    from mlx_diffusiongemma.evaluation.loop import ask
    from mlx_diffusiongemma.evaluation.results import Results
    from mlx_diffusiongemma.evaluation.table import table

    # What can be refused is refused before minutes of loading.
    if prompts is None:
        tasks, settings = plan.planned(suite, limit, thinking_budget)
    else:
        tasks, settings = plan.climbing(prompts, limit, thinking_budget)
    for missing in plan.unheld(tasks, unsafe_exec):
        click.echo(f"mlx_dg: warning: generated code runs without {missing}", err=True)
    chosen = runners.choose(runner or ("mlx_dg" if endpoint is None else "endpoint"), model, endpoint)
    tasks, objections = plan.possible(tasks, chosen)
    for objection, count in objections.items():
        click.echo(f"mlx_dg: left out {count} prompts: {objection}", err=True)
    identity = chosen.identity()
    path = out or plan.default_path(suite, identity)
    picture = ladder.picture_of(path) if prompts is not None else None
    results = Results(path, settings | {"seed": seed, "n": n} | identity)
    try:
        lines = ask(tasks, chosen, results, seed, runs, n)
    except BaseException:
        there = sum((task.name, run) in results.answers for task in tasks for run in range(runs))
        if there:
            click.echo(
                f"mlx_dg: {path} keeps {there} of {len(tasks) * runs} prompts' answers; "
                "the same command goes on from there",
                err=True,
            )
        raise
    finally:
        results.close()
    click.echo(table(lines, n))
    click.echo(f"mlx_dg: answers, seeds and grades: {path}", err=True)
    if picture is not None:
        ladder.plot(lines, f"{prompts}, {identity['model']}, {chosen.name}", picture)
        click.echo(f"mlx_dg: plot: {picture}", err=True)


for _suite in SUITES.values():
    evaluate.add_command(_command(_suite.name, _suite.about))
evaluate.add_command(_command("ladder", LADDER, _PROMPTS))
