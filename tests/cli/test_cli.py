"""The command line: what goes to stdout and stderr, exit statuses, interrupts and closed pipes.

What is printed is tested on a scripted generation, because it decides what comes in which block; that it
fits the engine is tested with the bundled demo model, whatever that answers.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

import mlx_diffusiongemma
from mlx_diffusiongemma.answer import Block
from mlx_diffusiongemma.cli import main
from mlx_diffusiongemma.display.plain import JSON_STATISTICS
from mlx_diffusiongemma.text.channels import ToolCall

TESTS = Path(__file__).parents[1]
JSON_KEYS = ["answer", "thought", "tool_calls", "finish_reason", "seed", "candidate", "warnings", "stats"]


def invoke(*arguments: str, stdin: bytes | None = None) -> Result:
    if arguments[0] == "generate" and "--seed" not in arguments:
        arguments = (*arguments, "--seed", "11")  # otherwise one is chosen and printed on stderr
    result = CliRunner().invoke(main, arguments, input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def block(index: int, answer: str = "", thought: str = "", calls: Any = (), warning: Any = None) -> Block:
    return Block(index, [7] * 4, thought, answer, calls, 5, 0.001, True, 0.5, warning)


@dataclass
class Scripted:
    """A Generation that yields given blocks and keeps what `generate` was called with."""

    script: list[Any]
    calls: list[dict[str, Any]] = field(default_factory=list)
    seed: int = 11
    candidate: int = 0
    finish_reason: str = "stop"
    blocks: list[Block] = field(default_factory=list)
    last_warnings: list[str] = field(default_factory=list)  # of the whole, at the end

    def __call__(self, model: Any, tokenizer: Any, prompt: str, **settings: Any) -> Scripted:
        self.calls.append({"model": model, "prompt": prompt, **settings})
        return self

    def __iter__(self) -> Iterator[Block]:
        for part in self.script:
            if isinstance(part, BaseException):
                raise part
            self.blocks.append(part)
            yield part
        self.ended = True

    @property
    def warnings(self) -> list[str]:
        of_blocks = [block.warning for block in self.blocks if block.warning is not None]
        return of_blocks + (self.last_warnings if hasattr(self, "ended") else [])

    @property
    def candidates(self) -> list[Scripted]:
        return [self]

    @property
    def stats(self) -> Any:
        values = dict.fromkeys((*JSON_STATISTICS, "seconds"), 1)
        return SimpleNamespace(canvas_length=4, to_dict=lambda: values, table=lambda: "a table")


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    generation = Scripted([])
    monkeypatch.setattr(mlx_diffusiongemma, "load", lambda name: (name, "tokenizer"), raising=False)
    monkeypatch.setattr(mlx_diffusiongemma, "generate", generation, raising=False)
    return generation


# --- what is printed where ----------------------------------------------------------------------------------


def test_answer_alone_on_stdout(scripted: Scripted) -> None:
    scripted.script = [block(0, "", "Let me "), block(1, "The sky", "think."), block(2, " is blue.")]
    result = invoke("generate", "--model", "m", "why?")
    assert result.exit_code == 0
    assert result.stdout == "The sky is blue.\n"
    assert result.stderr == "<thought>\nLet me think.\n</thought>\n"


def test_empty_answer_prints_nothing(scripted: Scripted) -> None:
    scripted.script = [block(0)]
    result = invoke("generate", "--model", "m", "why?")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_tool_call_is_one_line(scripted: Scripted) -> None:
    call = ToolCall(name="get_weather", arguments={"city": "Paris"}, raw="...", error=None)
    scripted.script = [block(0, "Looking it up.", calls=(call,))]
    result = invoke("generate", "--model", "m", "why?")
    text, line = result.stdout.splitlines()
    assert text == "Looking it up."
    assert json.loads(line) == {"tool_call": "get_weather", "arguments": {"city": "Paris"}}


def test_options_reach_the_generation(scripted: Scripted, tmp_path: Path) -> None:
    picture = str(tmp_path / "a.png")
    Image.new("RGB", (2, 2)).save(picture)
    invoke(
        "generate", "--model", "m", "--seed", "3", "--thinking", "--max-new-tokens", "70",
        "--system", "Be brief.", "--max-denoising-steps", "9", "--entropy-bound", "0.25",
        "--prefill-step-size", "512", "--thinking-budget", "40", "-n", "2", "--regex", "a+",
        "--image", picture, "--image", picture, "--soft-tokens", "70", "why?",
    )  # fmt: skip
    (call,) = scripted.calls
    assert call == {
        "model": "m",
        "prompt": "why?",
        "seed": 3,
        "thinking": True,
        "system": "Be brief.",
        "max_new_tokens": 70,
        "thinking_budget": 40,
        "n": 2,
        "regex": "a+",
        "schema": None,
        "max_denoising_steps": 9,
        "entropy_bound": 0.25,
        "prefill_step_size": 512,
        "images": (picture, picture),
        "soft_tokens": 70,
        "on_step": None,  # stderr is not a terminal, so no step is watched
    }


def test_statistics_are_off_unless_asked_for(scripted: Scripted) -> None:
    scripted.script = [block(0, "yes")]
    assert invoke("generate", "--model", "m", "why?").stderr == ""
    result = invoke("generate", "--model", "m", "--stats", "why?")
    assert result.stdout == "yes\n"
    assert "[block 1: " in result.stderr
    assert "a table" in result.stderr
    assert "in-step 40.0, gross 8.0 tokens/s" in result.stderr
    assert "seed         11" in result.stderr


def test_json_is_all_there_is(scripted: Scripted) -> None:
    call = ToolCall(name="get_weather", arguments={"city": "Paris"}, raw="raw", error=None)
    scripted.script = [block(0, "ja\n", "hm"), block(1, "wohl ü", calls=(call,))]
    result = invoke("generate", "--model", "m", "--json", "why?")
    assert result.stderr == ""
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert list(found) == JSON_KEYS
    assert list(found["stats"]) == list(JSON_STATISTICS)
    expected = {"answer": "ja\nwohl ü", "thought": "hm", "finish_reason": "stop", "seed": 11}
    assert {key: found[key] for key in expected} == expected
    assert found["tool_calls"] == [
        {"name": "get_weather", "arguments": {"city": "Paris"}, "raw": "raw", "error": None}
    ]


def test_every_warning_is_shown_once_where_it_belongs(scripted: Scripted) -> None:
    scripted.script = [block(0, "one", warning="first\nline\x1b[2J"), block(1, " two")]
    scripted.last_warnings = ["max_new_tokens 8 cut the answer off; raise it"]
    scripted.finish_reason = "length"
    warnings = (
        "mlx_dg: warning: first line\\x1b[2J\n"
        "mlx_dg: warning: max_new_tokens 8 cut the answer off; raise it\n"
    )
    result = invoke("generate", "--model", "m", "why?")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "one two\n", warnings)
    scripted.blocks.clear()
    result = invoke("generate", "--model", "m", "--json", "why?")
    found = json.loads(result.stdout)
    assert (found["finish_reason"], found["warnings"]) == ("length", scripted.warnings)
    assert result.stderr == warnings


def test_live_is_plain_where_there_is_no_terminal(scripted: Scripted) -> None:
    scripted.script = [block(0, "yes", "hm")]
    result = invoke("generate", "--model", "m", "--live", "why?")
    assert (result.stdout, result.stderr) == ("yes\n", "<thought>\nhm\n</thought>\n")
    assert scripted.calls[0]["on_step"] is None


def test_live_with_json(scripted: Scripted) -> None:
    result = invoke("generate", "--model", "m", "--live", "--json", "why?")
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("mlx_dg: error: --live and --json cannot be combined")
    assert scripted.calls == []


def test_dash_reads_standard_input(scripted: Scripted) -> None:
    invoke("generate", "--model", "m", "-", stdin="\ufeffwhy is\nthe sky bläu?\r\n\n".encode())
    assert scripted.calls[0]["prompt"] == "why is\nthe sky bläu?"


def test_default_model_is_the_demo_and_says_so(scripted: Scripted) -> None:
    result = invoke("generate", "why?")
    assert scripted.calls[0]["model"] == "demo"
    (line,) = result.stderr.splitlines()
    assert "bundled demo" in line
    assert "mlx-community/diffusiongemma-26B-A4B-it-4bit" in line


def test_a_chosen_seed_is_told(scripted: Scripted) -> None:
    result = CliRunner().invoke(main, ["generate", "--model", "m", "why?"])
    assert result.stderr == f"mlx_dg: seed {scripted.calls[0]['seed']}\n"


@pytest.mark.parametrize("blocks", [[], [block(0, "one two", "hm")]])
def test_interrupt_keeps_what_has_converged(scripted: Scripted, blocks: list[Block]) -> None:
    answer = "".join(each.answer for each in blocks)
    scripted.script = [*blocks, KeyboardInterrupt()]
    result = invoke("generate", "--model", "m", "count")
    assert (result.exit_code, result.stdout) == (130, f"{answer}\n" if answer else "")
    assert result.stderr.endswith("mlx_dg: interrupted\n")
    scripted.blocks.clear()
    result = invoke("generate", "--model", "m", "--json", "count")
    assert result.exit_code == 130
    found = json.loads(result.stdout)
    assert (found["answer"], found["finish_reason"]) == (answer, None)


def test_a_failure_of_mlx_is_one_line(scripted: Scripted) -> None:
    """As when Metal has no memory left."""
    scripted.script = [block(0, "one two"), RuntimeError("[metal::malloc] too\nmuch")]
    result = invoke("generate", "--model", "m", "why?")
    assert (result.exit_code, result.stdout) == (1, "one two\n")
    assert result.stderr == "mlx_dg: error: [metal::malloc] too much\n"


# --- real processes -----------------------------------------------------------------------------------------

# Runs the command with a generation that tells, over stdout, when its first block has been printed.
SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background ignores it
sys.path.insert(0, {tests!r})
import mlx_diffusiongemma
from cli.test_cli import Scripted, block
from mlx_diffusiongemma.cli import main

class Slow(Scripted):
    def __iter__(self):
        for index in range(1000):
            yield block(index, f"line {{index}}\\n")
            time.sleep({pause})

mlx_diffusiongemma.load = lambda name: (name, None)
mlx_diffusiongemma.generate = Slow([])
main(["generate", "--model", "m", "--seed", "11", "count"])
"""


def slow_process(pause: float, stdout: Any = subprocess.PIPE) -> subprocess.Popen[str]:
    code = SLOW.format(tests=str(TESTS), pause=pause)
    arguments: Any = {"stdout": stdout, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], **arguments)


def test_ctrl_c() -> None:
    with slow_process(pause=60) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, complaints = process.communicate(timeout=60)
    assert (first, rest) == ("line 0\n", "")
    assert complaints == "mlx_dg: interrupted\n"
    assert process.returncode == 130


def test_closed_pipe() -> None:
    with slow_process(pause=0.01) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "line 0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        process.wait(timeout=60)
    assert process.returncode == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which only Linux has")
def test_full_disk() -> None:
    with open("/dev/full", "w") as full, slow_process(pause=0, stdout=full) as process:
        _, complaints = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = complaints.splitlines()
    assert line.startswith("mlx_dg: error: ")


# --- with the engine ----------------------------------------------------------------------------------------


def test_demo_model_end_to_end() -> None:
    quick = ("generate", "--max-new-tokens", "40", "--max-denoising-steps", "4")
    first, again, other = (
        json.loads(invoke(*quick, "--json", "--seed", seed, "Capital of Peru?").stdout)
        for seed in ("5", "5", "6")
    )
    assert list(first) == JSON_KEYS
    assert list(first["stats"]) == list(JSON_STATISTICS)
    assert first["answer"] == again["answer"]
    assert (first["seed"], other["seed"]) == (5, 6)
    assert first["finish_reason"] in ("stop", "length")
    assert 0 < first["stats"]["new_tokens"] <= 40
    assert first["stats"]["denoising_steps"] <= 4 * first["stats"]["blocks"]
