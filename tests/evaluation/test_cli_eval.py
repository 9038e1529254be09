"""`mlx_dg eval` on the demo: killed and continued, refused, compared."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.openai_server import running_openai

from mlx_diffusiongemma import ConfidenceThreshold, StableAndConfident, Stalled, generate, load
from mlx_diffusiongemma.cli import main
from mlx_diffusiongemma.cli.eval import read_settings
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.evaluation import run as evaluation
from mlx_diffusiongemma.evaluation import sandbox
from mlx_diffusiongemma.evaluation.runners import native
from mlx_diffusiongemma.evaluation.runners.native import Native

pytestmark = pytest.mark.slow

DEMO = ("--model", "demo")
HASTY = ("--set", "max_new_tokens=64", "--set", "max_denoising_steps=2")
_load = cache(load)


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(native, "load", _load)


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(main, ["eval", *arguments])
    assert result.exit_code == status, result.output
    return result


def answers(path: str) -> list[dict[str, Any]]:
    """All lines but the first, without what is measured."""
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines[1:]]


def test_a_killed_evaluation_continues_to_what_it_would_have_been() -> None:
    options = ("demo", *DEMO, "--runs", "2", "--limit", "4", "--seed", "3")
    whole = run(*options, "--out", "whole.jsonl")
    command = [sys.executable, "-m", "mlx_diffusiongemma", "eval", *options, "--out", "killed.jsonl"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while process.poll() is None and len(_text("killed.jsonl").splitlines()) < 3:
            time.sleep(0.01)
        process.kill()
    assert len(_text("killed.jsonl").splitlines()) < 9
    again = run(*options, "--out", "killed.jsonl")
    assert answers("killed.jsonl") == answers("whole.jsonl")
    assert again.stdout.splitlines()[-1] == whole.stdout.splitlines()[-1]
    assert whole.stdout.splitlines()[-1].startswith("strict: ")


def _text(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def test_an_interrupt_says_how_to_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    ask = Native.__call__

    def ask_twice(self: Native, task: Any, seed: int, n: int = 1) -> Any:
        asked.append(task.name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return ask(self, task, seed, n)

    monkeypatch.setattr(Native, "__call__", ask_twice)
    result = run("demo", *DEMO, "--limit", "2", "--runs", "2", status=130)
    assert "eval-demo-demo.jsonl keeps 2 of 4 prompts' answers; the same command continues" in result.stderr
    assert result.stdout == ""
    run("demo", "--limit", "2", "--runs", "2")  # which has the demo as its default
    assert len(asked) == 3 + 2


def test_a_file_has_all_it_takes_to_repeat_an_answer() -> None:
    more = ("--set", "sampler=ConfidenceThreshold(0.9)", "--thinking-budget", "9", "-n", "2")
    run("demo", *DEMO, "--limit", "1", "--runs", "1", *more)
    file = Path("eval-demo-demo-sampler-ConfidenceThreshold-0.9-thinking_budget-9.jsonl")
    settings, *lines = map(json.loads, file.read_text().splitlines())
    given = {"sampler": "ConfidenceThreshold(threshold=0.9)", "thinking_budget": 9}
    assert (settings["suite"], settings["seed"], settings["n"], settings["settings"]) == ("demo", 0, 2, given)
    assert {"model", "checkpoint", "dtype", "device", "versions"} <= settings.keys()
    assert [line["candidate"] for line in lines] == [0, 1]
    assert lines[0]["settings"] == {"thinking": True, **given, "max_new_tokens": 2048}
    how: dict[str, Any] = {"sampler": ConfidenceThreshold(0.9), "thinking_budget": 9, "thinking": True}
    same = generate(*load("demo"), lines[0]["prompt"], seed=lines[0]["seed"], n=2, **how)
    assert [line["answer"] for line in lines] == [candidate.answer for candidate in same.candidates]
    assert [line["thought"] for line in lines] == [candidate.thought for candidate in same.candidates]


def test_compare_and_the_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "CAPS", (8,))
    for seed in "01":
        run("demo", *DEMO, "--limit", "2", "--runs", "1", "--seed", seed, "--out", f"{seed}.jsonl")
    text = run("compare", "0.jsonl", "1.jsonl").stdout
    assert "seed: 0 | 1" in text
    assert "2 pairs of answers" in text
    assert "nowhere: No such file" in run("compare", "0.jsonl", "nowhere", status=2).stderr
    result = run("ladder", "--prompts", "demo", *DEMO, "--limit", "1", "--runs", "1")
    assert len(answers("eval-ladder-demo.jsonl")) == 5
    assert "cap 8, bound 0.02" in result.stdout


def test_an_endpoint_and_the_prompts_that_it_cannot_take() -> None:
    with running_openai() as server:
        result = run("demo", "--endpoint", server.url, "--model", "m", "--limit", "2", "--runs", "1")
        assert "eval-demo-m-endpoint.jsonl" in result.stderr
        assert [line["answer"] for line in answers("eval-demo-m-endpoint.jsonl")] == ["fine", "fine"]
        refused = run("demo", "--endpoint", server.url, "--model", "m", "--set", "t_min=0.5", status=2)
    assert "endpoint can run none of these prompts (an endpoint has no setting t_min)" in refused.stderr


def test_settings_of_the_command_line() -> None:
    stop = ("stop=StableAndConfident(2)", "stop=Stalled(mean_entropy=0.1)")
    settings = read_settings(("entropy_bound=0.2", "guard_empty=false", "max_new_tokens = 9", *stop))
    assert settings == {
        "entropy_bound": 0.2, "guard_empty": False, "max_new_tokens": 9,
        "stop": [StableAndConfident(2), Stalled(mean_entropy=0.1)],
    }  # fmt: skip


@pytest.mark.parametrize("text", [
    "entropy_bound", "sampler=Nothing(1)", "sampler=open('x')", "sampler=_Falling()", "x=1+", "stop=Any()",
    "sampler=mx.array(1)", "x=__import__('os')", "sampler=EntropyBound(limit=1)", "sampler=in_range(1)",
])  # fmt: skip
def test_settings_that_make_no_sense(text: str) -> None:
    with pytest.raises(
        InputError, match=r"--set.*: (not NAME=VALUE; give --set entropy|there is no \w+; docs)"
    ):
        read_settings((text,))


@pytest.mark.parametrize(("arguments", "message"), [
    (("six",), "--model"),
    (("six", "--model", "m", "--endpoint", "http://localhost:1", "--runner", "mlx-vlm"), "--endpoint"),
    (("demo", *DEMO, "--runs", "0"), "--runs"), (("seven", *DEMO), "No such command 'seven'"),
    (("demo", *DEMO, "--out", "nowhere/x.jsonl"), "nowhere/x.jsonl"),
    (("demo", "--model", "nowhere/at-all/of"), "nowhere"),
    (("demo", *DEMO, "--thinking-budget", "100000"), "thinking_budget"),
    (("demo", *DEMO, "--set", "entropy_bond=1"), "did you mean entropy_bound?"),
    (("demo", *DEMO, "--set", "sampler=ConfidenceThreshold(2)"), "probability must be"),
])  # fmt: skip
def test_bad_input_is_refused_before_anything_is_written(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments, status=2)
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert list(Path().iterdir()) == []


def test_code_is_not_run_where_nothing_contains_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "problem", lambda: "there is no bwrap")
    result = run("matrix", *DEMO, status=2)
    assert "runs code that the model wrote, and there is no bwrap; run it on a machine of" in result.stderr
    run("demo", *DEMO, "--limit", "1", "--runs", "1")  # no code in it
    said = run("matrix", *DEMO, "--limit", "1", "--runs", "1", "--unsafe-exec", *HASTY)
    assert "warning: generated code runs with resource limits only: there is no bwrap\n" in said.stderr
    assert [len(answers(file.name)) for file in Path().glob("eval-matrix-demo-*.jsonl")] == [1]
