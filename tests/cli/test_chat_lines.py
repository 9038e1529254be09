"""`mlx_dg chat` without a terminal: each line of standard input is a message or a command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.scripted import TURN_END, Scripted

import mlx_diffusiongemma
from mlx_diffusiongemma.cli import main
from mlx_diffusiongemma.cli.chat_commands import COMMANDS
from mlx_diffusiongemma.engine.row import Committed, Row
from mlx_diffusiongemma.text.tokenizer import Tokenizer
from mlx_diffusiongemma.writer import Writer

COUNTED = " ".join(map(str, range(1, 38)))


def talk(*lines: str | bytes, options: tuple[str, ...] = ("--model", "demo", "--seed", "0")) -> Result:
    stdin = b"".join(line if isinstance(line, bytes) else line.encode() + b"\n" for line in lines)
    result = CliRunner().invoke(main, ["chat", *options], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a model that answers every question with the given text."""

    def answer(text: str) -> None:
        tokenizer = Tokenizer.load(mlx_diffusiongemma.checkpoint.loading.resolve("demo"))
        model = Scripted(lambda block, attempt: [*tokenizer.encode(text), TURN_END])
        monkeypatch.setattr(mlx_diffusiongemma, "load", lambda name: (model, tokenizer), raising=False)

    return answer


def test_answers_on_stdout_and_all_else_on_stderr() -> None:
    result = talk("\ufeffWhat is 345 + 78?", "/think on", "", "What is the capital of Norway?\r")
    assert result.exit_code == 0
    assert result.stdout.endswith("\n\nThe capital of Norway is Oslo.\n\n")
    assert len(result.stdout.split("\n\n")) == 3
    assert result.stderr == "thinking on\n<thought>\nThe country is Norway.\n</thought>\n"


def test_a_turn_reuses_the_one_before() -> None:
    result = talk("/think on", "What is 345 + 78?", "What is the capital of Norway?", "/stats")
    assert "prompt       46 tokens, 26 of them cached" in result.stderr
    assert "kept         2 turns" in result.stderr
    assert "prompts      72 tokens, 26 of them cached" in result.stderr
    assert "seed         0" in result.stderr


def test_a_seed_is_chosen_anew_each_turn_and_told() -> None:
    result = talk("Hello", "/stats", "Hello", "/stats", "/seed", options=("--model", "demo"))
    seeds = [line.split()[1] for line in result.stderr.splitlines() if line.startswith("seed   ")]
    assert len(set(seeds)) == 2
    assert result.stderr.endswith("seed off (chosen anew each turn)\n")


def test_settings_are_shown_and_changed() -> None:
    lines = {
        "/think": "thinking off",
        "/think on": "thinking on",
        "/budget": "thinking budget off",
        "/budget 40": "thinking budget 40 tokens",
        "/budget off": "thinking budget off",
        "/seed": "seed 0",
        "/seed off": "seed off (chosen anew each turn)",
        "/seed 7": "seed 7",
        "/n": "1 candidate a turn",
        "/n 2": "2 candidates a turn",
    }
    result = talk(*lines, "/help")
    assert (result.exit_code, result.stdout) == (0, "")
    shown = result.stderr.splitlines()
    assert shown[: len(lines)] == [*lines.values()]
    assert {line.split()[0] for line in shown[len(lines) :]} >= {f"/{name}" for name in COMMANDS}


@pytest.mark.parametrize(("line", "message"), [
    ("/foo bar", "unknown command '/foo'; /help lists them"),
    ("/", "unknown command '/'"),
    ("/\x1b[2J", r"unknown command '/\x1b[2J'"),
    ("/reset all", "/reset takes no argument, found 'all'"),
    ("/think maybe", "/think takes on or off, found 'maybe'"),
    ("/budget x", "/budget takes a number or off, found 'x'"),
    ("/budget 99999", "thinking_budget 99999 is above max_new_tokens"),
    ("/seed -1", "seed must be an integer from 0"),
    ("/n off", "/n takes a number, found 'off'"),
    ("/n 0", "n must be an integer from 1 to 1024, found 0"),
    ("/save", "/save FILE: the file is missing"),
    ("/load missing.json", "'missing.json' is not a saved chat: No such file or directory"),
    (b"caf\xe9\n", "standard input is not UTF-8 (byte 0xe9 at offset 3 of 5)"),
    ("a " * 5000, "but the context holds"),
])  # fmt: skip
def test_a_line_that_fails_is_told_and_the_chat_goes_on(line: str | bytes, message: str) -> None:
    result = talk(line, "/think on", "What is the capital of Norway?", "/stats")
    assert result.exit_code == 1
    complaint, *rest = result.stderr.splitlines()
    assert complaint.startswith("mlx_dg: error: ")
    assert message in complaint
    assert rest[0] == "thinking on"
    assert result.stdout.lstrip("\n") == "The capital of Norway is Oslo.\n\n"
    assert "kept         1 turn," in result.stderr


def test_two_slashes_begin_a_message(tmp_path: Path, answering: Any) -> None:
    answering("Paris")
    assert talk("//reset", f"/save {tmp_path}/a b.json").exit_code == 0
    messages = json.loads((tmp_path / "a b.json").read_text())["messages"]
    assert [message["content"] for message in messages] == ["/reset", "Paris"]


@pytest.mark.parametrize("line", ["/quit", "q", "exit", "quit", " Quit \r"])
def test_lines_after_quit_are_not_read(line: str) -> None:
    result = talk(line, "/foo")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_quit_words_inside_a_message_are_text(answering: Any) -> None:
    answering("Paris")
    assert talk("quit smoking, how?", "q?", "//quit").stdout == "Paris\n\n" * 3


def test_quitting_instead_of_choosing_ends_the_chat(tmp_path: Path) -> None:
    result = talk("/n 2", "What is 345 + 78?", "q", f"/save {tmp_path}/a.json")
    assert (result.exit_code, (tmp_path / "a.json").exists()) == (0, False)


def test_the_chosen_candidate_goes_on(tmp_path: Path) -> None:
    file = f"{tmp_path}/a.json"
    question, shown = "What is 99 + 88?", ["177", "187", "187"]

    def kept(*choice: str) -> tuple[Result, str]:
        result = talk("/n 3", question, *choice, f"/save {file}", options=("--model", "demo", "--seed", "1"))
        assert result.stdout == "\n\n".join(shown) + "\n\n"
        return result, json.loads(Path(file).read_text())["messages"][1]["content"]

    result, answer = kept("2")
    assert (result.exit_code, answer) == (0, "187")
    assert "candidate 1 of 3" in result.stderr
    assert kept("")[1] == "177"
    result, answer = kept("4", "3")
    assert (result.exit_code, answer) == (1, "187")
    assert "give the number of a candidate with an answer, found '4'" in result.stderr


def test_the_first_candidate_goes_on_at_the_end_of_input() -> None:
    assert talk("/n 2", "Hello").exit_code == 0


def test_the_next_message_is_no_choice_of_a_candidate() -> None:
    result = talk("/n 2", "What is 345 + 78?", "/n 1", "What is the capital of Norway?")
    assert result.exit_code == 0
    assert result.stdout.endswith("\n\nThe capital of Norway is Oslo.\n\n")


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_a_failing_step_costs_the_turn_alone(monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    """Like MLX's, when Metal has no memory left; in the second canvas, when a line has begun."""
    commit = Row.commit

    def failing(row: Row) -> Committed:
        if row.blocks:
            raise kind("[metal::malloc] too\nmuch")
        return commit(row)

    monkeypatch.setattr(Row, "commit", failing)
    result = talk("What is 345 + 78?", "Count to 37.", "What is the capital of Norway?", "/stats")
    assert result.exit_code == 1
    error = f"mlx_dg: error: {kind.__name__}: [metal::malloc] too much; the question is taken back\n"
    assert result.stderr.startswith(error)
    _, count, capital, rest = result.stdout.split("\n\n")
    assert COUNTED.startswith(count)
    assert (capital, rest) == ("The capital of Norway is Oslo.", "")
    assert "kept         2 turns" in result.stderr


def test_without_an_answer_the_question_is_taken_back(tmp_path: Path, answering: Any) -> None:
    answering('<|tool_call>call:get_time{city:<|"|>Paris<|"|>}<tool_call|>')
    result = talk("What time is it?", f"/save {tmp_path}/a.json")
    assert json.loads(result.stdout) == {"tool_call": "get_time", "arguments": {"city": "Paris"}}
    told = "mlx_dg: ended with a tool call, to which a chat has no answer; the question is taken back\n"
    assert told in result.stderr
    assert result.exit_code == 1
    assert json.loads((tmp_path / "a.json").read_text())["messages"] == []


def test_another_models_chat_is_loaded_with_a_note(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    talk("/think on", "What is 345 + 78?", "/seed 9", f"/save {file}")
    file.write_text(file.read_text().replace('"demo"', '"other\\u001b[2J"'))
    result = talk(f"/load {file}", "What is the capital of Norway?", "/stats")
    assert result.exit_code == 0
    loaded, note, *rest = result.stderr.splitlines()
    assert loaded == "loaded 1 turn; thinking on, thinking budget off, seed 9, 1 candidate a turn"
    assert note == r"note: this chat was held with the model 'other\x1b[2J'; it goes on with 'demo'"
    assert "prompt       46 tokens, " in "\n".join(rest)  # the loaded turn is part of it


def test_an_interrupt_ends_a_chat_without_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    advance, blocks = Writer.advance, []

    def interrupted(self: Writer) -> None:
        blocks.append(self)
        if len(blocks) == 2:
            raise KeyboardInterrupt
        advance(self)

    monkeypatch.setattr(Writer, "advance", interrupted)
    result = talk("Count to 37.", "Hello", options=("--model", "demo", "--seed", "0", "--thinking"))
    assert result.exit_code == 130
    assert COUNTED.startswith(result.stdout.rstrip("\n"))
    assert result.stdout.count("\n") == 1
    assert result.stderr.endswith("mlx_dg: interrupted\n")


@pytest.mark.parametrize(("options", "message"), [
    (("--thinking-budget", "300", "--max-new-tokens", "256"), "thinking_budget 300 is above"),
    (("--seed", "-1"), "seed must be"),
    (("--max-denoising-steps", "0"), "max_denoising_steps must be"),
    (("--system", "\udce9"), "--system is not UTF-8"),
])  # fmt: skip
def test_bad_options_are_refused_before_loading(
    options: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlx_diffusiongemma, "load", None, raising=False)
    result = talk("Hello", options=options)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert message in line


def test_the_demo_is_the_default_and_says_so() -> None:
    result = talk(options=())
    assert (result.exit_code, result.stdout) == (0, "")
    (line,) = result.stderr.splitlines()
    assert "bundled demo" in line


def test_options_reach_the_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Writer] = []
    advance = Writer.advance
    monkeypatch.setattr(Writer, "advance", lambda self: (seen.append(self), advance(self))[1])
    options = "--model demo --thinking --thinking-budget 9 --seed 3 --max-new-tokens 70"
    talk("Hello", options=(*options.split(), "--max-denoising-steps", "5", "--system", "Be kind."))
    (answer,) = seen[0].answers
    settings = answer.row.settings
    assert answer.budget is not None
    assert (answer.row.key.seed, answer.budget.thinking, settings.thinking_budget) == (3, True, 9)
    assert (settings.max_new_tokens, settings.max_denoising_steps) == (70, 5)
    assert "Be kind." in answer.tokenizer.decode(answer.row.prompt.ids)
