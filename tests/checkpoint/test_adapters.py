"""Adapters made with mlx-lm's own tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import save_config

import mlx_dg

ATTENTION = ["self_attn.q_proj", "self_attn.o_proj"]
EVERYTHING = [*ATTENTION, "mlp.gate_proj", "router.proj", "experts.gate_up_proj", "experts.down_proj"]
CANVAS = mx.array(np.random.default_rng(0).integers(0, 700, (1, 64)))
QUESTION = "What is the capital of Norway?"


def logits(model: Any) -> np.ndarray:
    cache = model.make_cache()
    model.encode(mx.array([[2, 5, 7]]), cache)
    return np.array(model.decode(CANVAS, cache))


def adapted(keys: list[str] | None) -> tuple[Any, dict[str, Any]]:
    """The demo with new adapters, and their configuration. A new adapter's second factor is zero."""
    model, _ = mlx_dg.load("demo")
    parameters: dict[str, Any] = {"rank": 4, "scale": 4.0, "dropout": 0.1}
    if keys is not None:
        parameters["keys"] = keys
    model.freeze()
    linear_to_lora_layers(model, 2, parameters)
    model.eval()
    return model, {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters}


def save(model: Any, config: dict[str, Any], directory: Path) -> Path:
    directory.mkdir()
    save_config(config, directory / "adapter_config.json")
    tensors: Any = tree_flatten(model.trainable_parameters())
    mx.save_safetensors(str(directory / "adapters.safetensors"), dict(tensors))
    return directory


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, config = adapted(EVERYTHING)
    for name, module in model.named_modules():
        if "lora_b" in module:
            module.lora_b = mx.random.normal(module.lora_b.shape, scale=1.0, key=mx.random.key(len(name)))
    directory = save(model, config, tmp_path_factory.mktemp("run") / "adapters")
    np.save(directory / "logits.npy", logits(model))
    return directory


@pytest.mark.parametrize(("keys", "per_layer"), [(ATTENTION, 2), (EVERYTHING, 6), (None, None)])
def test_new_adapters_change_nothing(keys: list[str] | None, per_layer: int | None) -> None:
    model, _ = adapted(keys)
    np.testing.assert_array_equal(logits(model), logits(mlx_dg.load("demo")[0]))
    parts = [name for name, module in model.named_modules() if "lora_b" in module]
    assert parts
    assert {name.split(".")[3] for name in parts} == {"2", "3"}  # the last two layers of four
    assert per_layer is None or len(parts) == 2 * per_layer
    trainable: Any = tree_flatten(model.trainable_parameters())
    assert {name.rpartition(".")[2] for name, _ in trainable} == {"lora_a", "lora_b"}


@pytest.mark.parametrize("lazy", [False, True])
def test_saved_adapters_are_loaded(adapters: Path, lazy: bool) -> None:
    model, tokenizer = mlx_dg.load("demo", lazy=lazy, adapter_path=str(adapters))
    np.testing.assert_array_equal(logits(model), np.load(adapters / "logits.npy"))
    plain, _ = mlx_dg.load("demo")
    answers = [
        str(mlx_dg.generate(each, tokenizer, QUESTION, seed=0, guard_unconverged=False, max_new_tokens=64))
        for each in (model, plain)
    ]
    assert answers[0] != answers[1] == "The capital of Norway is Oslo."


def test_a_lazy_model_reads_weights_when_they_are_used() -> None:
    lazy, _ = mlx_dg.load("demo", lazy=True)
    weights: Any = tree_flatten(lazy.parameters())
    before = mx.get_active_memory()
    mx.eval(lazy.parameters())
    assert mx.get_active_memory() - before >= 0.9 * sum(array.nbytes for _, array in weights)


def test_a_group_of_one_keeps_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = mlx_dg.load("demo")
    before = logits(model)
    model.shard()
    model.shard(mx.distributed.init())
    np.testing.assert_array_equal(logits(model), before)

    class Pair:
        def size(self) -> int:
            return 2

    with pytest.raises(mlx_dg.InputError, match="the group has 2 members, but the model cannot be divided"):
        model.shard(Pair())  # type: ignore[arg-type]


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        path = directory / "adapter_config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return edit


def other_names(directory: Path) -> None:
    mx.save_safetensors(str(directory / "adapters.safetensors"), {"x\ny": mx.zeros(1)})


def parameters(**changes: Any) -> Callable[[Path], None]:
    return edited(lambda config: config["lora_parameters"].update(changes))


@pytest.mark.parametrize(("damage", "message"), [
    (lambda d: (d / "adapter_config.json").unlink(), "no adapter_config.json in .*; give the dir"),
    (lambda d: (d / "adapters.safetensors").unlink(), "no adapters.safetensors in .*; give the dir"),
    (lambda d: (d / "adapter_config.json").write_text("["), "adapter_config.json: not readable as JSON"),
    (lambda d: (d / "adapter_config.json").write_text("[]"), "the top level must be an object"),
    (lambda d: (d / "adapters.safetensors").write_bytes(b"\0" * 9), "adapters.safetensors: .*damaged"),
    (edited(lambda c: c.pop("lora_parameters")), "lora_parameters must be an object, found None"),
    (edited(lambda c: c.pop("num_layers")), "num_layers is missing"),
    (edited(lambda c: c.update(num_layers="all")), "num_layers must be a number, found 'all'"),
    (edited(lambda c: c["lora_parameters"].pop("scale")), "missing required key 'scale'"),
    (parameters(rank=5), r"adapter shape \(4, "),
    (parameters(rank="5"), "mlx-lm cannot load these adapters"),
    (parameters(keys=["self_attn.q_proj"]), "not an adapter parameter"),
    (parameters(keys=[*EVERYTHING, "model.decoder.embed_tokens"]), "it adapts the embedding table"),
    (parameters(keys=["input_layernorm"]), "Can't convert layer of type"),
    (other_names, "unprintable"),
])  # fmt: skip
def test_adapters_that_cannot_be_loaded(adapters: Path, tmp_path: Path, damage: Any, message: str) -> None:
    directory = tmp_path / "adapters"
    directory.mkdir()
    for name in ("adapter_config.json", "adapters.safetensors"):
        (directory / name).write_bytes((adapters / name).read_bytes())
    damage(directory)
    with pytest.raises(mlx_dg.InputError, match=message) as error:
        mlx_dg.load("demo", adapter_path=directory)
    assert "\n" not in str(error.value)
    assert str(directory) in str(error.value)
