"""Names from mlx-lm and others: each frequent one is answered with the name that does the same here."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

import mlx_dg
from mlx_diffusiongemma import habits
from mlx_diffusiongemma.cli import main
from mlx_diffusiongemma.engine.settings import Settings

# They register their keywords when they are imported.
importlib.import_module("mlx_diffusiongemma.generation")
importlib.import_module("mlx_diffusiongemma.filling.fill")
importlib.import_module("mlx_diffusiongemma.evaluation.run")


def refused(*arguments: str) -> str:
    """The line that a usage error prints, without the reference to --help."""
    result = CliRunner().invoke(main, arguments, prog_name="mlx_dg")
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    found = re.fullmatch(r"mlx_dg: error: (.*) See: mlx_dg[a-z ]* --help", line)
    assert found, line
    return found[1]


@pytest.mark.parametrize(("arguments", "line"), [
    (("generate", "--prompt", "x"), "the prompt is an argument, in quotes: "),
    (("generate", "--max-tokens", "9", "x"), "No such option '--max-tokens'; use --max-new-tokens."),
    (("generate", "--thinkng", "x"), "No such option '--thinkng'; did you mean --thinking?"),
    (("chat", "--temp", "1"), "the temperature falls"),
    (("generate", "--frobnicate", "x"), "No such option '--frobnicate'."),
    (("generate", "-5 + 3?"), "No such option '-5'; write -- before a prompt that begins with a dash."),
    (("convert", "--hf-path", "x"), "No such option '--hf-path'; the checkpoint is an argument: "),
    (("convert", "-q", "x"), "No such option '-q'; every recipe but bf16 quantizes; "),
    (("info", "--model", "x"), "the model is an argument: mlx_dg info ID_OR_DIR."),
    (("generate",), "Missing argument 'PROMPT'; give it in quotes, or - to read standard input."),
    (("generate", "why", "is", "it?"), "arguments (is it?); PROMPT is one argument: put it in quotes."),
    (("--model", "demo"), "No such option '--model'; a command comes first, such as mlx_dg generate."),
    (("lora",), "No such command 'lora'; mlx_dg cannot fine-tune."),
    (("genrate", "x"), "No such command 'genrate'; did you mean mlx_dg generate?"),
    (("why is it?",), "a prompt follows the command generate: mlx_dg generate 'why is it?'."),
    (("generate", "--seed", "a", "x"), "Invalid value for '--seed': 'a' is not a valid integer."),
])  # fmt: skip
def test_usage_errors_name_the_way_out(arguments: tuple[str, ...], line: str) -> None:
    assert line in refused(*arguments)


@pytest.mark.parametrize(("name", "message"), [
    ("max_tokens", "use max_new_tokens"),
    ("temp", "the temperature falls from t_max to t_min"),
    ("verbose", "nothing is printed; iterate the generation"),
    ("top_p", "a canvas is sampled as a whole"),
    ("logits_processors", "use schema, regex, grammar or choices"),
    ("max_kv_size", "the prefix cache is neither limited"),
    ("stop", "a stop rule or several (such as StableAndConfident(1, 0.005)); eos_token_id ends"),
    ("thinkng", "did you mean thinking?"),
    ("entropy_bond", "did you mean entropy_bound?"),
    ("temprature", "the temperature falls from t_max to t_min"),
    ("frobnicate", "known settings are max_new_tokens, "),
    ("n", "a setting but a keyword of evaluate and generate; fill and generate_batch cannot take it"),
    ("thinking", "a keyword of generate and generate_batch; evaluate and fill cannot take it"),
    ("template", "a keyword of fill; evaluate and generate and generate_batch cannot take it"),
])  # fmt: skip
def test_unknown_settings(name: str, message: str) -> None:
    with pytest.raises(mlx_dg.InputError) as raised:
        Settings().override(**{name: ["\n"]})
    assert message in str(raised.value)
    assert repr(name) in str(raised.value) or name == "stop"


def test_keywords_of_load_and_convert() -> None:
    for function, name, way_out in (
        (mlx_dg.load, "torch_dtype", "use dtype"),
        (mlx_dg.load, "dtpye", r"did you mean dtype\?"),
        (mlx_dg.convert, "quantize", "every recipe but bf16"),
    ):
        message = f"{function.__name__} has no keyword '{name}'; {way_out}"
        with pytest.raises(mlx_dg.InputError, match=message):
            function("demo", **{name: True})


@pytest.mark.parametrize("module", ["mlx_dg", "mlx_diffusiongemma"])
def test_names_of_other_packages(module: str) -> None:
    with pytest.raises(ImportError, match="no attribute 'stream_generate'; generate gives a stream"):
        exec(f"from {module} import load, stream_generate")
    with pytest.raises(ImportError, match="cannot import name 'frobnicate'"):
        exec(f"from {module} import frobnicate")
    with pytest.raises(AttributeError, match=r"no attribute 'generrate'; did you mean generate\?"):
        mlx_dg.generrate  # type: ignore[attr-defined]  # noqa: B018
    exec(f"from {module} import generate, load, ToolCall")


def test_submodules_are_imported_although_their_names_are_like_others() -> None:
    code = "from mlx_diffusiongemma import chat; print(chat.Chat.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "Chat\n", done.stderr


def test_advice_names_options_that_exist() -> None:
    options = {name: {each for param in command.params for each in param.opts + param.secondary_opts}
               for name, command in main.commands.items()}  # fmt: skip
    tables = {"generate": habits.GENERATE_OPTIONS, "chat": habits.GENERATE_OPTIONS}
    for command, table in {**tables, "convert": habits.CONVERT_OPTIONS}.items():
        for text in table.values():
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text):
                named = re.search(rf"mlx_dg (\w+)[^;]*{option}", text)
                assert option in options[named[1] if named else command], text


@pytest.mark.parametrize("arguments", [(), ("eval",)])
def test_groups_show_their_help(arguments: tuple[str, ...]) -> None:
    for options, status in (((), 2), (("--help",), 0)):
        result = CliRunner().invoke(main, [*arguments, *options])
        assert result.exit_code == status
        assert "Usage: " in result.output
        assert "\nCommands:\n" in result.output
