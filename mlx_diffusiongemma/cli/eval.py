"""`mlx_dg eval`: a suite of tasks through a model; `mlx_dg eval compare`: two such runs."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.evaluation.suites import SUITES, Suite

if TYPE_CHECKING:
    from mlx_diffusiongemma.evaluation.runners import Runner
    from mlx_diffusiongemma.evaluation.task import Task

LADDER = Suite(
    "ladder",
    "The prompts of a suite at step caps 8 to 48 and entropy bounds 0.02 to 0.4, and a plot (PNG) of quality "
    "against tokens per forward.",
)


@click.group("eval")
def evaluate() -> None:
    """Measure quality and speed on tasks, graded strictly.

    Every answer goes to a file as a line of JSON, with its seed, settings and grade; one table comes at the
    end. The same command goes on with a file that an interrupted run left.
    """


_AT_LEAST_1, _AT_LEAST_0 = click.IntRange(min=1), click.IntRange(min=0)
_OPTIONS = (
    click.Option(["--model"], metavar="demo|DIR|HUB_ID", help="What to run."),
    click.Option(
        ["--runs"],
        type=_AT_LEAST_1,
        metavar="N",
        default=3,
        show_default=True,
        help="How often each prompt is asked, each time with another seed.",
    ),
    click.Option(
        ["--seed"],
        type=_AT_LEAST_0,
        metavar="N",
        default=0,
        show_default=True,
        help="What every answer's seed follows from.",
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
        ["--limit"], type=_AT_LEAST_1, metavar="N", help="The first so many prompts only.  [default: all]"
    ),
    click.Option(
        ["--out"],
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Where the answers go.  [default: eval-SUITE-MODEL.jsonl]",
    ),
    click.Option(
        ["--runner"], type=click.Choice(["mlx_dg", "mlx-vlm"]), help="What generates.  [default: mlx_dg]"
    ),
    click.Option(
        ["--endpoint"],
        metavar="URL",
        help="Ask an OpenAI-compatible server instead; OPENAI_API_KEY is its key.",
    ),
    click.Option(
        ["--unsafe-exec"], is_flag=True, help="Run generated code also where nothing holds it to limits."
    ),
)
_PROMPTS = click.Option(
    ["--prompts"],
    type=click.Choice([*SUITES]),
    default="matrix",
    show_default=True,
    help="The suite whose prompts are taken.",
)


def _command(suite: Suite, *more: click.Option) -> click.Command:
    return click.Command(
        suite.name, params=[*_OPTIONS, *more], callback=partial(_run, suite), help=suite.about
    )


@evaluate.command()
@click.argument("first", metavar="A", type=click.Path(path_type=Path))
@click.argument("second", metavar="B", type=click.Path(path_type=Path))
def compare(first: Path, second: Path) -> None:
    """Compare two files of one suite: paired differences, with 95% intervals.

    Answers to the same task in the same run make a pair. Shares: B less A. Speeds: the median of B over A.
    """
    from mlx_diffusiongemma.evaluation.comparison import compare as compared

    click.echo(compared(first, second))


def _run(
    suite: Suite,
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
    from mlx_diffusiongemma.evaluation import ladder
    from mlx_diffusiongemma.evaluation.evaluate import digest, with_budget
    from mlx_diffusiongemma.evaluation.evaluate import evaluate as ask
    from mlx_diffusiongemma.evaluation.results import Results
    from mlx_diffusiongemma.evaluation.runners import choose
    from mlx_diffusiongemma.evaluation.table import table

    # What can be refused is refused before minutes of loading.
    tasks = SUITES[prompts or suite.name].tasks()
    settings: dict[str, Any] = {"suite": suite.name, "prompts": prompts, "suite_sha256": digest(tasks)}
    settings |= {"seed": seed, "n": n, "thinking_budget": thinking_budget}
    tasks = with_budget(tasks[:limit], thinking_budget)
    if suite is LADDER:
        ladder.require_matplotlib()
        if out is not None and out.suffix == ".png":
            raise InputError(f"--out {out}: that is where the plot goes; give a name that ends in .jsonl")
        tasks = ladder.rungs(tasks)
    if not unsafe_exec:
        _require_sandbox(tasks)
    chosen = choose(runner or ("endpoint" if endpoint else "mlx_dg"), model, endpoint)
    tasks = _possible(tasks, chosen)
    identity = chosen.identity()
    suffix = "" if chosen.name == "mlx_dg" else f"-{chosen.name}"
    path = out or Path(f"eval-{suite.name}-{_file_name(identity['model'])}{suffix}.jsonl")
    results = Results(path, settings | identity)
    try:
        lines = ask(tasks, chosen, results, seed, runs, n)
    except BaseException:
        if results.answers:
            click.echo(
                f"mlx_dg: {path} keeps {len(results.answers)} of {len(tasks) * runs} prompts' answers; "
                "the same command goes on from there",
                err=True,
            )
        raise
    finally:
        results.close()
    click.echo(table(lines, n))
    click.echo(f"mlx_dg: answers, seeds and grades: {path}", err=True)
    if suite is LADDER:
        picture = path.with_suffix(".png")
        ladder.plot(lines, f"{prompts}, {identity['model']}, {chosen.name}", picture)
        click.echo(f"mlx_dg: plot: {picture}", err=True)


def _require_sandbox(tasks: list[Task]) -> None:
    from mlx_diffusiongemma.evaluation import sandbox

    if any(task.executes for task in tasks) and (missing := sandbox.missing()):
        raise InputError(
            f"this suite runs code that the model wrote, and here nothing holds it to {', '.join(missing)}; "
            "run it in a container or another machine of no value, with --unsafe-exec"
        )


def _possible(tasks: list[Task], runner: Runner) -> list[Task]:
    """The tasks that the runner can run; what it cannot is told."""
    objections: dict[str, int] = {}
    possible = []
    for task in tasks:
        objection = runner.objection(task)
        if objection is None:
            possible.append(task)
        else:
            objections[objection] = objections.get(objection, 0) + 1
    for objection, count in objections.items():
        click.echo(f"mlx_dg: left out {count} of {len(tasks)} prompts: {objection}", err=True)
    if not possible:
        raise InputError(
            f"{runner.name} can run none of these prompts; give another runner, or other options"
        )
    return possible


def _file_name(model: str) -> str:
    """The last part of a path or a hub id, fit for a file's name."""
    return re.sub(r"[^\w.-]+", "-", Path(model).name or "model")


for _suite in SUITES.values():
    evaluate.add_command(_command(_suite))
evaluate.add_command(_command(LADDER, _PROMPTS))
