"""A tokenizer with a few tokens more than the model has embeddings loads, and none reaches the table."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from oracle import demo

import mlx_dg
from mlx_diffusiongemma.errors import CheckpointError, InputError
from mlx_diffusiongemma.text.tokenizer import Tokenizer

EMBEDDINGS = 704
QUESTION = "What is the capital of Norway?"
WORD = "Zyxwv"  # a token of its own only beyond the table
Loaded = tuple[Any, Tokenizer]


def with_tokens(directory: Path, *contents: str) -> Path:
    """The demo with further tokens, as a processor or a chat format adds them."""
    shutil.copytree(demo.DIRECTORY, directory)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    last = tokenizer["added_tokens"][-1]
    tokenizer["added_tokens"] += [
        last | {"id": EMBEDDINGS + i, "content": content, "special": content.startswith("<")}
        for i, content in enumerate(contents)
    ]
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return directory


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return mlx_dg.load(with_tokens(tmp_path_factory.mktemp("extended") / "model", "<|video|>", WORD))


@pytest.fixture(autouse=True)
def guarded_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX reads beyond a table without a word."""
    look_up = nn.Embedding.__call__

    def guarded(table: nn.Embedding, ids: mx.array) -> mx.array:
        assert ids.max().item() < table.weight.shape[0]
        return look_up(table, ids)

    monkeypatch.setattr(nn.Embedding, "__call__", guarded)


def test_it_loads_with_one_warning_and_answers_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = with_tokens(tmp_path / "model", "<|video|>")
    with caplog.at_level(logging.WARNING):
        model, tokenizer = mlx_dg.load(directory)
    assert caplog.messages == [
        f"{directory}: the tokenizer has 705 tokens, the model embeddings for 704; "
        "prompts with token ids from 704 on are refused"
    ]
    expected = mlx_dg.generate(*mlx_dg.load("demo"), QUESTION, seed=0)
    assert mlx_dg.generate(model, tokenizer, QUESTION, seed=0).token_ids == expected.token_ids


def test_another_models_tokenizer_is_refused(tmp_path: Path) -> None:
    words = [f"<extra{i}>" for i in range(65)]
    mlx_dg.load(with_tokens(tmp_path / "few", *words[:64]))
    with pytest.raises(CheckpointError, match="has 769 tokens, the model 704; they do not belong together"):
        mlx_dg.load(with_tokens(tmp_path / "many", *words))


@pytest.mark.parametrize(("use", "message"), [
    (lambda m, t: mlx_dg.generate(m, t, f"What is {WORD}?", seed=0), "the prompt has token id 705"),
    (lambda m, t: mlx_dg.generate(m, t, [2, 704], seed=0), "the prompt has token id 704"),
    (lambda m, t: mlx_dg.generate(m, t, QUESTION, system=WORD, seed=0), "the prompt has token id 705"),
    (lambda m, t: list(mlx_dg.generate_batch(m, t, [QUESTION, WORD], seed=0)), "has token id 705"),
    (lambda m, t: mlx_dg.generate(m, t, QUESTION, draft=WORD, seed=0), "draft has token id 705, but"),
    (lambda m, t: mlx_dg.generate(m, t, QUESTION, pins={0: 704}, seed=0), r"pins: token 704 of \(0, "),
    (lambda m, t: mlx_dg.generate(m, t, QUESTION, pins=lambda _: {0: 705}, seed=0), "pins: token 705"),
    (lambda m, t: mlx_dg.fill(m, t, f"{WORD} is [[2]].", seed=0), "the template has token id 705"),
])  # fmt: skip
def test_an_id_beyond_the_table_is_refused_where_it_is_used(
    extended: Loaded, use: Callable[..., Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        str(use(*extended))


@pytest.mark.parametrize("constraint", [
    {"choices": [WORD, f"{WORD} {WORD}"]},
    {"regex": f"{WORD}+!"},
    {"grammar": f'start: "{WORD}" "."'},
    {"schema": {"type": "object", "properties": {"a": {"const": WORD}}, "required": ["a"]}},
    {"regex": WORD, "eos_token_id": [704, 106]},
])  # fmt: skip
def test_a_grammar_spells_such_a_word_in_other_tokens(extended: Loaded, constraint: dict[str, Any]) -> None:
    generation = mlx_dg.generate(*extended, QUESTION, seed=0, max_new_tokens=64, **constraint)
    assert WORD in str(generation)
    assert max(generation.token_ids) < EMBEDDINGS


def test_structure_beyond_the_table_does_not_exist() -> None:
    tokenizer = Tokenizer.load(demo.DIRECTORY)
    special = tokenizer.special
    tokenizer.limit(EMBEDDINGS)
    assert tokenizer.special == special
    tokenizer.limit(101)
    assert tokenizer.special.ids() == {token for token in special.ids() if token < 101}
    assert tokenizer.special.pad == 0
    assert tokenizer.special.channel_close is None
