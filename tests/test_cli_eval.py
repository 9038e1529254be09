"""`mlx_dg eval` on the demo: killed and gone on with, refused, compared."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlx_diffusiongemma.cli import main
from mlx_diffusiongemma.evaluation import sandbox
from mlx_diffusiongemma.evaluation.suites import SUITES

DEMO = ("--model", "demo")


@pytest.fixture(autouse=True)
def _working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*arguments, status=0):
    result = CliRunner().invoke(main, ["eval", *arguments])
    assert result.exit_code == status, result.output
    return result


def answers(path):
    """All lines but the first, without what is measured."""
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines[1:]]


def test_a_killed_evaluation_goes_on_to_what_it_would_have_been():
    options = ("demo", *DEMO, "--runs", "2", "--limit", "10", "--seed", "3")
    whole = run(*options, "--out", "whole.jsonl")
    command = [sys.executable, "-m", "mlx_diffusiongemma", "eval", *options, "--out", "killed.jsonl"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while process.poll() is None and len(_text("killed.jsonl").splitlines()) < 5:
            time.sleep(0.01)
        process.kill()
    there = len(answers("killed.jsonl")) if _text("killed.jsonl").endswith("\n") else 0
    assert there < 20
    again = run(*options, "--out", "killed.jsonl")
    assert answers("killed.jsonl") == answers("whole.jsonl")
    first, last = whole.stdout.splitlines()[1].split(), whole.stdout.splitlines()[-1]
    assert again.stdout.splitlines()[1].split()[:6] == first[:6]
    assert again.stdout.splitlines()[-1] == last
    assert last.startswith("strict: ")
    assert last.count(" of 20, ") == 1


def _text(path):
    return Path(path).read_text() if Path(path).exists() else ""


def test_an_interrupt_says_how_to_go_on(monkeypatch):
    from mlx_diffusiongemma.evaluation.runners.native import Native

    asked = []
    ask = Native.__call__

    def ask_twice(self, task, seed, n=1):
        asked.append(task.name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return ask(self, task, seed, n)

    monkeypatch.setattr(Native, "__call__", ask_twice)
    result = run("demo", *DEMO, "--limit", "2", "--runs", "2", status=130)
    assert "eval-demo-demo.jsonl keeps 2 of 4 prompts' answers; the same command goes on" in result.stderr
    assert result.stdout == ""
    run("demo", *DEMO, "--limit", "2", "--runs", "2")
    assert len(asked) == 3 + 2


def test_a_file_has_what_it_takes_to_repeat_an_answer():
    run("demo", *DEMO, "--limit", "1", "--runs", "1", "--thinking-budget", "9", "-n", "2")
    settings, *lines = (json.loads(line) for line in Path("eval-demo-demo.jsonl").read_text().splitlines())
    assert (settings["seed"], settings["n"], settings["thinking_budget"]) == (0, 2, 9)
    assert settings["suite"] == "demo"
    assert {"model", "checkpoint", "dtype", "device", "versions"} <= settings.keys()
    assert [line["candidate"] for line in lines] == [0, 1]
    assert lines[0]["settings"] == {"thinking": True, "thinking_budget": 9, "max_new_tokens": 2048}
    prompt = next(task for task in SUITES["demo"].tasks() if task.name == lines[0]["task"]).messages
    options = ["--seed", str(lines[0]["seed"]), "--thinking", "--thinking-budget", "9", "-n", "2", "--json"]
    said = CliRunner().invoke(main, ["generate", *DEMO, *options, prompt[0]["content"]])
    for text, line in zip(said.stdout.splitlines(), lines, strict=True):
        assert json.loads(text)["answer"] == line["answer"]
        assert json.loads(text)["thought"] == line["thought"]


def test_compare_through_the_command():
    for seed in "01":
        run("demo", *DEMO, "--limit", "2", "--runs", "1", "--seed", seed, "--out", f"{seed}.jsonl")
    text = run("compare", "0.jsonl", "1.jsonl").stdout
    assert "seed: 0 | 1" in text
    assert "2 pairs of answers" in text
    assert "nowhere: No such file" in run("compare", "0.jsonl", "nowhere", status=2).stderr


def test_the_ladder_writes_a_plot():
    result = run("ladder", "--prompts", "demo", *DEMO, "--limit", "1", "--runs", "1", "--out", "l.jsonl")
    assert len(answers("l.jsonl")) == 20
    assert "cap  8, bound 0.02" in result.stdout
    assert Path("l.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("six",), "no --model given"),
        (("six", "--endpoint", "http://localhost:1", "--runner", "mlx-vlm"), "--endpoint"),
        (("demo", *DEMO, "--runs", "0"), "--runs"),
        (("demo", *DEMO, "--limit", "0"), "--limit"),
        (("seven", *DEMO), "No such command 'seven'"),
        (("ladder", *DEMO, "--prompts", "demo", "--out", "l.png"), "l.png"),
        (("demo", *DEMO, "--out", "nowhere/x.jsonl"), "nowhere/x.jsonl"),
        (("demo", *DEMO, "--endpoint", ""), "--endpoint"),
        (("demo", "--model", "nowhere/at-all/of"), "nowhere"),
        (("demo", *DEMO, "--thinking-budget", "100000"), "thinking_budget"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(arguments, message):
    result = run(*arguments, status=2)
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert list(Path().iterdir()) == []


def test_code_is_not_run_where_nothing_holds_it(monkeypatch):
    monkeypatch.setattr(sandbox, "missing", lambda: ["a memory limit", "a process limit"])
    result = run("matrix", *DEMO, status=2)
    assert "nothing holds it to a memory limit, a process limit" in result.stderr
    assert "--unsafe-exec" in result.stderr
    run("demo", *DEMO, "--limit", "1", "--runs", "1")  # no code in it
    said = run("matrix", *DEMO, "--limit", "1", "--runs", "1", "--unsafe-exec", "--out", "m.jsonl")
    assert "warning: generated code runs without a memory limit\n" in said.stderr
    assert len(answers("m.jsonl")) == 1
