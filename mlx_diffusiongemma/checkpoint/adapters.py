"""Adapters as mlx-lm's fine-tuning saves them: adapter_config.json and adapters.safetensors."""

from __future__ import annotations

from pathlib import Path

import mlx.nn as nn

from ..config.json_file import JsonObject, read_json
from ..console.messages import one_line
from ..errors import CheckpointError, ConfigError, InputError
from ..model import DiffusionGemma
from .foreign_files import ADAPTER_CONFIG
from .weights import read_header

_WEIGHTS = "adapters.safetensors"


def check_adapters(directory: Path) -> None:
    """Check the files in a directory of adapters, so that an error shows before the model is read.

    Raises:
        InputError: a file is missing.
        ConfigError, CheckpointError: a file is damaged.
    """
    for name in (ADAPTER_CONFIG, _WEIGHTS):
        if not (directory / name).is_file():
            raise InputError(
                f"adapter_path: no {name} in {directory}; give the directory that mlx-lm's fine-tuning wrote"
            )
    config = JsonObject(read_json(directory / ADAPTER_CONFIG), "", str(directory / ADAPTER_CONFIG))
    if config.values.get("fine_tune_type") != "full":
        JsonObject(config.values.get("lora_parameters"), "lora_parameters", config.file)
        if "num_layers" not in config.values:
            raise ConfigError(f"{config.name('num_layers')} is missing; give the file that mlx-lm wrote")
        config.number("num_layers", -1)
    read_header(directory / _WEIGHTS)


def load_adapters(model: DiffusionGemma, directory: Path) -> None:
    """Put the adapters of `directory` into a model, whose weights need not be read yet.

    Raises:
        CheckpointError: the adapters do not fit this model.
    """
    from mlx_lm.tuner.utils import load_adapters

    try:
        load_adapters(model, str(directory))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{directory}: mlx-lm cannot load these adapters ({one_line(error, 300)}); "
            "give adapters of this model"
        ) from None
    if not isinstance(model.decoder.embed_tokens, (nn.Embedding, nn.QuantizedEmbedding)):
        raise CheckpointError(
            f"{directory}: it adapts the embedding table, which this model also uses as its output; "
            "train adapters of the layers only"
        )
