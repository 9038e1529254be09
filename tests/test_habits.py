"""Names from mlx-lm and others: each one that does not exist here is answered with the name that does.

mlx-lm itself is asked which names it has.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import subprocess
import sys
from typing import Any

import click
import mlx_lm
import pytest
from click.testing import CliRunner

import mlx_dg
from mlx_diffusiongemma import habits
from mlx_diffusiongemma.cli import main
from mlx_diffusiongemma.generation_config import GenerationConfig

LM_GENERATE: Any = importlib.import_module("mlx_lm.generate")
LM_CHAT: Any = importlib.import_module("mlx_lm.chat")
LM_CONVERT: Any = importlib.import_module("mlx_lm.convert")
LM_SAMPLE: Any = importlib.import_module("mlx_lm.sample_utils")
# Of every command line.
SHARED = {"-h", "--help"}


def options(parser: argparse.ArgumentParser) -> list[str]:
    spelled = {option for action in parser._actions for option in action.option_strings}
    return sorted(spelled - SHARED)


def refused(*arguments: str) -> str:
    """The line that a usage error prints, without the reference to --help."""
    result = CliRunner().invoke(main, arguments, prog_name="mlx_dg")
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    found = re.fullmatch(r"mlx_dg: error: (.*) See: mlx_dg[a-z ]* --help", line)
    assert found, line
    return found[1]


def own_options(command: str) -> set[str]:
    return {option for each in main.commands[command].params for option in (*each.opts, *each.secondary_opts)}


@pytest.mark.parametrize(
    ("command", "parser"),
    [
        ("generate", LM_GENERATE.setup_arg_parser()),
        ("chat", LM_CHAT.setup_arg_parser()),
        ("convert", LM_CONVERT.configure_parser()),
    ],
    ids=["generate", "chat", "convert"],
)
def test_every_option_of_mlx_lm_is_one_or_is_answered(command: str, parser: argparse.ArgumentParser) -> None:
    unknown = [option for option in options(parser) if option not in own_options(command)]
    assert len(unknown) >= 4
    for option in unknown:
        line = refused(command, option, "1", "x")
        shown = option if option.startswith("--") else option[:2]  # one letter is all that is read
        assert line.startswith(f"No such option '{shown}'; "), line
        assert "did you mean" not in line, line


def parameters(*functions: Any) -> set[str]:
    found: set[str] = set()
    for function in functions:
        found |= {
            name
            for name, each in inspect.signature(function).parameters.items()
            if each.kind is not inspect.Parameter.VAR_KEYWORD
        }
    return found - {"self", "model", "tokenizer"}


def test_every_keyword_of_mlx_lm_is_one_or_is_answered() -> None:
    settings = set(GenerationConfig.__dataclass_fields__)
    lm = parameters(
        *(LM_GENERATE.generate, LM_GENERATE.stream_generate, LM_GENERATE.generate_step),
        *(LM_GENERATE.speculative_generate_step, LM_GENERATE.batch_generate, LM_GENERATE.BatchGenerator),
        *(LM_SAMPLE.make_sampler, LM_SAMPLE.make_logits_processors),
    )
    unknown = lm - settings - set(habits.KEYWORDS)
    assert len(unknown) > 20
    for name in unknown:
        with pytest.raises(mlx_dg.InputError) as raised:
            GenerationConfig().override(**{name: 1})
        assert str(raised.value) == f"unknown setting {name!r}; {habits.SETTINGS[name]}"

    for ours, theirs in ((mlx_dg.load, mlx_lm.load), (mlx_dg.convert, mlx_lm.convert)):
        for name in parameters(theirs) - parameters(ours):
            with pytest.raises(
                mlx_dg.InputError, match=f"{ours.__name__} has no keyword '{name}'; "
            ) as raised:
                ours("demo", **{name: 1})  # type: ignore[arg-type]
            assert "it has" not in str(raised.value)
            assert "did you mean" not in str(raised.value)


def test_every_command_and_name_of_mlx_lm_is_one_or_is_answered() -> None:
    source = inspect.getsource(importlib.import_module("mlx_lm.cli"))
    listed = re.search(r"subcommands = \((.*?)\)", source, re.DOTALL)
    assert listed
    for name in re.findall(r'"(\w+)"', listed[1]):
        if name not in main.commands:
            assert refused(name).startswith(f"No such command '{name}'; ")
    for name in set(mlx_lm.__all__) - set(mlx_dg.__all__):
        assert name in habits.ATTRIBUTES


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("generate", "--prompt", "x"), "the prompt is an argument, in quotes: "),
        (("generate", "-p", "x"), "the prompt is an argument, in quotes: "),
        (("generate", "--max-tokens", "9", "x"), "No such option '--max-tokens'; use --max-new-tokens."),
        (("generate", "--thinkng", "x"), "No such option '--thinkng'; did you mean --thinking?"),
        (("generate", "--max_new_tokens", "9", "x"), "did you mean --max-new-tokens?"),
        (("generate", "--no-thinkin", "x"), "did you mean --no-thinking?"),
        (("generate", "--temprature", "1", "x"), "the temperature falls"),
        (("generate", "--frobnicate", "x"), "No such option '--frobnicate'."),
        (("generate", "-5 + 3?"), "No such option '-5'; write -- before a prompt that begins with a dash."),
        (("convert", "--hf-path", "x"), "No such option '--hf-path'; the checkpoint is an argument: "),
        (("convert", "-q", "x"), "No such option '-q'; every recipe but bf16 quantizes; "),
        (("info", "--model", "x"), "the model is an argument: mlx_dg info ID_OR_DIR."),
        (("generate",), "Missing argument 'PROMPT'; give it in quotes, or - to read standard input."),
        (("generate", "why", "is", "it?"), "arguments (is it?); PROMPT is one argument: put it in quotes."),
        (("convert", "a", "b"), "argument (b); name the directory to write with --mlx-path."),
        (("chat", "demo"), "argument (demo); a chat takes no arguments: "),
        (("info",), "Missing argument 'PATH'; give a directory, a hub id, or demo."),
        (
            ("--model", "demo", "x"),
            "No such option '--model'; a command comes first, such as mlx_dg generate.",
        ),
        (("--versoin",), "No such option '--versoin'; did you mean --version?"),
        (("genrate", "x"), "No such command 'genrate'; did you mean mlx_dg generate?"),
        (("why is it?",), "a prompt follows the command generate: mlx_dg generate 'why is it?'."),
        (("generate", "--seed", "a", "x"), "Invalid value for '--seed': 'a' is not a valid integer."),
    ],
)
def test_usage_errors_name_the_way_out(arguments: tuple[str, ...], line: str) -> None:
    assert line in refused(*arguments)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("max_tokens", "use max_new_tokens"),
        ("thinkng", "did you mean thinking?"),
        ("entropy_bond", "did you mean entropy_bound?"),
        ("temprature", "the temperature falls from t_max to t_min"),
        ("verbose", "nothing is printed; iterate the generation"),
        ("frobnicate", "known settings are max_new_tokens, "),
    ],
)
def test_unknown_settings(name: str, message: str) -> None:
    with pytest.raises(mlx_dg.InputError) as raised:
        GenerationConfig().override(**{name: 1})
    assert str(raised.value).startswith(f"unknown setting {name!r}; {message}")


@pytest.mark.parametrize(
    ("part", "advice"),
    [
        ({"sampler": LM_SAMPLE.make_sampler(temp=0.7)}, "; t_max and t_min set a temperature"),
        ({"stop": ["\n"]}, "found '\\n'; eos_token_id takes the ids that end the answer"),
        ({"sampler": mlx_dg.EntropyBound}, "..."),
    ],
    ids=["sampler", "stop", "class"],
)
def test_values_that_other_programs_take(part: dict[str, Any], advice: str) -> None:
    with pytest.raises(mlx_dg.InputError) as raised:
        GenerationConfig().override(**part)
    assert str(raised.value).endswith(advice)


def test_keywords_that_are_not_settings() -> None:
    with pytest.raises(mlx_dg.InputError, match="'thinking' is not a setting; it is a keyword of generate"):
        GenerationConfig().override(thinking=True)
    ours = parameters(mlx_dg.generate, mlx_dg.generate_batch)
    assert set(habits.KEYWORDS) == ours


def test_advice_names_what_exists() -> None:
    """Options of commands, names of the package, keywords and files."""
    keywords = {*habits.KEYWORDS, *GenerationConfig.__dataclass_fields__}
    texts = {("python", text) for text in habits.SETTINGS.values()}
    texts |= {("generate", text) for text in habits.GENERATE_OPTIONS.values()}
    texts |= {("chat", text) for text in habits.GENERATE_OPTIONS.values()}
    texts |= {("convert", text) for text in habits.CONVERT_OPTIONS.values()}
    for command, text in texts:
        if command == "python":
            for name in re.findall(r"\buse (\w+)(?:=|$| or)", text):
                assert name in keywords | {"generate"}, text
        else:
            for option in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text):
                named = re.search(rf"mlx_dg (\w+)[^;]*{option}", text)
                assert option in own_options(named[1] if named else command) or option == "--revision", text
        for name in re.findall(r"\b([A-Z][a-z]+[A-Z]\w+)\(", text):
            assert hasattr(mlx_dg, name), text


def test_attributes_of_other_packages() -> None:
    with pytest.raises(AttributeError, match="no attribute 'batch_generate'; use generate_batch"):
        mlx_dg.batch_generate  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'generrate'; did you mean generate\?"):
        mlx_dg.generrate  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(mlx_dg, "stream_generate")


@pytest.mark.parametrize("module", ["mlx_dg", "mlx_diffusiongemma"])
def test_imports_of_other_packages_names(module: str) -> None:
    """Python drops an AttributeError's text when a name is imported."""
    with pytest.raises(ImportError, match="'stream_generate'; generate gives a stream"):
        exec(f"from {module} import load, stream_generate")
    with pytest.raises(ImportError, match="cannot import name 'frobnicate'"):
        exec(f"from {module} import frobnicate")
    exec(f"from {module} import generate, load, ToolCall")


def test_submodules_are_imported_although_their_names_are_like_others() -> None:
    code = "from mlx_diffusiongemma import chat, samplers; print(chat.Chat.__name__, samplers.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "Chat mlx_diffusiongemma.samplers\n", done.stderr


def test_groups_show_their_help() -> None:
    assert "Commands:" in CliRunner().invoke(main, ["--help"]).stdout
    result = CliRunner().invoke(main, [])
    assert isinstance(main, click.Group)
    assert "Usage: " in result.output
