"""`mlx_dg generate` with budget, candidates and structure, on the bundled demo."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlx_diffusiongemma.checkpoint.loading import load
from mlx_diffusiongemma.cli import main
from mlx_diffusiongemma.generation import generate


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["generate", "--model", "demo", "--seed", "3", *arguments])


def test_candidates_follow_each_other() -> None:
    result = invoke("-n", "3", "What is 99 + 88?")
    model, tokenizer = load("demo")
    expected = [str(row) for row in generate(model, tokenizer, "What is 99 + 88?", seed=3, n=3).candidates]
    assert result.exit_code == 0
    assert result.stdout == "\n\n".join(expected) + "\n"
    assert re.findall(r"candidate \d of \d", result.stderr) == [f"candidate {i} of 3" for i in (1, 2, 3)]


def test_candidates_as_json_are_a_line_each() -> None:
    result = invoke("-n", "2", "--json", "Hello")
    first, second = map(json.loads, result.stdout.splitlines())
    assert first["answer"] == second["answer"] != ""
    assert first.keys() == second.keys()


def test_a_budget_closes_the_thought() -> None:
    free = json.loads(invoke("--thinking", "--json", "What is 345 + 78?").stdout)
    cut = json.loads(invoke("--thinking", "--thinking-budget", "5", "--json", "What is 345 + 78?").stdout)
    assert len(cut["thought"]) < len(free["thought"])
    assert cut["answer"]
    assert (cut["stats"]["forced_thought_ends"], cut["warnings"]) == (1, [])


def test_no_answer_is_explained() -> None:
    short = ("--thinking", "--max-new-tokens", "20", "What is 345 + 78?")
    result = invoke(*short)
    warning = "max_new_tokens 20 ended inside the thought, before any answer;"
    assert result.stdout == ""
    assert f"mlx_dg: warning: {warning}" in result.stderr
    assert "candidate" not in result.stderr
    assert json.loads(invoke("--json", *short).stdout)["warnings"][0].startswith(warning)


def test_answers_are_held_to_a_schema_or_pattern(tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "big": {"type": "boolean"}},
        "required": ["city", "big"],
        "additionalProperties": False,
    }
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema))
    answer = json.loads(invoke("--schema", str(file), "JSON for Paris").stdout)
    assert answer.keys() == {"city", "big"}
    assert isinstance(answer["city"], str)
    assert isinstance(answer["big"], bool)
    assert re.fullmatch(r"[0-9]{4}\n", invoke("--regex", "[0-9]{4}", "What is 345 + 78?").stdout)


@pytest.mark.parametrize(("arguments", "message"), [
    (("-n", "0"), "n must be an integer from 1 to 1024, found 0"),
    (("--thinking-budget", "-1"), "thinking_budget must be an integer from 0"),
    (
        ("--thinking-budget", "300", "--max-new-tokens", "256"),
        "thinking_budget 300 is above max_new_tokens 256; lower it or raise max_new_tokens",
    ),
    (("--thinking-budget", "99999"), r"thinking_budget 99999 is above max_new_tokens \d+; lower it"),
    (("--schema", "missing.json"), "--schema missing.json: No such file or directory; give a file"),
    (("--schema", __file__), "--schema .*: not JSON"),
    (("--regex", "a("), "regex"),
    (("--regex", "a", "--schema", "SCHEMA"), "schema.*regex|regex.*schema"),
])  # fmt: skip
def test_bad_options_are_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "integer"}')
    result = invoke(*(str(schema) if each == "SCHEMA" else each for each in arguments), "hi")
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert re.match(f"mlx_dg: error: .*({message})", line)


def test_an_interrupt_shows_what_every_candidate_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three candidates of two blocks; the interrupt comes while the first one's second is denoised."""
    from mlx_diffusiongemma.writer import Writer

    advance, calls = Writer.advance, []

    def interrupted(self: Writer) -> None:
        calls.append(len(self.answers))
        if len(calls) == 2:
            raise KeyboardInterrupt
        advance(self)

    monkeypatch.setattr(Writer, "advance", interrupted)
    result = invoke("-n", "3", "--json", "--thinking", "Count to 37.")
    assert result.exit_code == 130
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["candidate"] for line in lines] == [0, 1, 2]
    assert all(line["answer"].startswith("1 2 3") for line in lines)
    assert [line["finish_reason"] for line in lines] == [None] * 3
