"""Options and keywords of mlx-vlm are ours, or are answered with what does the same."""

from __future__ import annotations

import argparse
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest

import mlx_dg
from mlx_diffusiongemma import habits
from mlx_diffusiongemma.cli import main
from mlx_diffusiongemma.generation_config import GenerationConfig


class Built(Exception):
    """Carries the parser that a function was about to use."""


def options(use: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    def parse_args(parser: argparse.ArgumentParser, *_: Any) -> None:
        raise Built(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    with pytest.raises(Built) as built:
        use()
    parser = built.value.args[0]
    found = {each for action in parser._actions for each in action.option_strings} - {"-h", "--help"}
    assert len(found) > 10
    return {each for each in found if not each.startswith("--no-")}


@pytest.mark.parametrize(
    ("module", "function", "command", "answers"),
    [
        ("mlx_vlm.generate.dispatch", "parse_arguments", "generate", habits.GENERATE_OPTIONS),
        ("mlx_vlm.chat", "main", "chat", habits.GENERATE_OPTIONS),
        ("mlx_vlm.convert", "main", "convert", habits.CONVERT_OPTIONS),
    ],
)
def test_every_option_is_one_or_is_answered(
    module: str, function: str, command: str, answers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = options(getattr(importlib.import_module(module), function), monkeypatch)
    ours = {option for each in main.commands.values() for param in each.params for option in param.opts}
    missing = {each for each in theirs - ours if each.lstrip("-").replace("-", "_") not in answers}
    assert not missing


def test_every_keyword_is_one_or_is_answered() -> None:
    module: Any = importlib.import_module("mlx_vlm.generate")
    theirs = {
        name
        for function in (module.generate, module.stream_generate, module.generate_step)
        for name, each in inspect.signature(function).parameters.items()
        if each.kind is not inspect.Parameter.VAR_KEYWORD
    }
    internal = {
        *("model", "processor", "pixel_values", "mask", "prompt_cache_checkpoint"),
        *("prompt_cache_checkpoint_len", "prompt_cache_checkpoint_lengths"),
    }
    ours = {*habits.KEYWORDS, *GenerationConfig.__dataclass_fields__, *habits.SETTINGS}
    assert not theirs - ours - internal
    vlm: Any = importlib.import_module("mlx_vlm")
    assert not set(inspect.signature(vlm.load).parameters) - {
        *("kwargs", *inspect.signature(mlx_dg.load).parameters, *habits.LOAD_KEYWORDS)
    }
