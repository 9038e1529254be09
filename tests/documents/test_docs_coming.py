"""docs/coming-from-mlx-lm.md: mlx-lm has what the left column of its tables says, and the right one works."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import click
import mlx_lm
import pytest

import mlx_dg
from mlx_diffusiongemma.cli import main

pytestmark = pytest.mark.slow

TEXT = (Path(__file__).parents[2] / "docs/coming-from-mlx-lm.md").read_text(encoding="utf-8")
ROWS = [row for row in re.findall(r"^\| (.*?) \| (.*) \|$", TEXT, re.MULTILINE) if row[0] != "mlx-lm"]
GENERATE: Any = importlib.import_module("mlx_lm.generate")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def code(cell: str) -> list[str]:
    return re.findall("`([^`]+)`", cell)


def test_the_tables_are_read() -> None:
    assert len(ROWS) == TEXT.count("\n| ") - 2
    assert len(ROWS) > 25


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_mlx_lm_has_what_is_left(row: tuple[str, str]) -> None:
    chat, convert = (importlib.import_module(f"mlx_lm.{name}") for name in ("chat", "convert"))
    parsers = [GENERATE.setup_arg_parser(), chat.setup_arg_parser(), convert.configure_parser()]
    options = {option for parser in parsers for each in parser._actions for option in each.option_strings}
    functions = (GENERATE.generate, GENERATE.stream_generate, GENERATE.generate_step, mlx_lm.convert)
    keywords = {name for function in functions for name in inspect.signature(function).parameters}
    sampling = importlib.import_module("mlx_lm.sample_utils")
    caches = importlib.import_module("mlx_lm.models.cache")
    for left in code(row[0]):
        assert set(OPTION.findall(left)) <= options, left
        for command in re.findall(r"\bmlx_lm\.(\w+)", left):
            assert importlib.util.find_spec(f"mlx_lm.{command}"), left
        for keyword in re.findall(r"^(\w+)=", left):
            assert keyword in keywords, left
        for function in re.findall(r"\b(\w+_(?:generate|sampler|cache))\(", left):
            assert any(hasattr(module, function) for module in (mlx_lm, sampling, caches)), left
        for field in re.findall(r"\bresponse\.(\w+)", left):
            assert field in GENERATE.GenerationResponse.__dataclass_fields__, left
    if match := re.search(r"\(default (\d+)\)", row[0]):
        (option,) = code(row[0])
        action = GENERATE.setup_arg_parser()._option_string_actions[option.split()[0]]
        assert action.default == int(match[1])


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    model, tokenizer = mlx_dg.load("demo")
    prompt = "What is 345 + 78?"
    generation = mlx_dg.generate(model, tokenizer, prompt, seed=0)
    messages, prompts = [{"role": "user", "content": prompt}], [prompt, "Hello"]
    return {"mlx_dg": mlx_dg, **locals()}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1])
def test_what_is_right_works(
    row: tuple[str, str], names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    str(names["generation"])
    for right in code(row[1]):
        if right.startswith("mlx_dg "):
            _, name, *arguments = shlex.split(right)
            command = main.commands[name]
            if not isinstance(command, click.Group):
                needed = [] if len(arguments) > 1 or name not in ("generate", "convert") else ["-"]
                command.make_context(name, arguments or needed)
        elif right.startswith("--"):
            option, *values = shlex.split(right)
            commands = [each for each in main.commands.values() if any(option in p.opts for p in each.params)]
            assert commands, right
            for each in commands:
                argument = ["x"] if any(isinstance(p, click.Argument) for p in each.params) else []
                each.make_context(each.name, [option, *values, *argument])
        elif re.match(r"\w+=(?!=)", right) and " = " not in right:
            exec(f"str(mlx_dg.generate(model, tokenizer, prompt, {right}))", names)
        elif right == "hf cache":
            assert importlib.util.find_spec("huggingface_hub.cli.cache")
        else:
            exec(right, names)
