"""Writes a Hugging Face checkpoint with the real tensor names and shapes and random weights.

    python benchmarks/synthetic_checkpoint.py [OUT] [--layers 4] [--smoke]

Shapes and dtype, bf16, are those of google/diffusiongemma-26B-A4B-it, but there are fewer layers, and the
demo's small vision tower and tokenizer. Every fourth layer has full attention. Four layers take 8.05 GB in 5
shards: one for each layer, and one for everything else, which is mostly the embedding. The script needs less
than 1 GB of memory at any size and writes the same bytes in every run. `--smoke` writes small shapes into a
temporary directory.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import struct
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from common import parse
from mlx.utils import tree_flatten

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from oracle import demo, tiny

from mlx_diffusiongemma.checkpoint.weights import tensor_infos
from mlx_diffusiongemma.config.generation import GenerationConfig
from mlx_diffusiongemma.config.model import ModelConfig
from mlx_diffusiongemma.model import DiffusionGemma

CHUNK = 1 << 24  # elements generated and written at a time
Shapes = dict[str, tuple[int, ...]]


WEIGHTS = {"seed": 0, "logit_gain": 1, "branch_gain": 1, "conditioning_gain": 1}  # not used here
REAL = tiny.TinySpec(
    "real",
    **WEIGHTS,
    hidden=2816,
    dense=2112,
    expert=704,
    experts=128,
    top_k=8,
    heads=16,
    kv_heads=8,
    head_dim=256,
    full_kv_heads=2,
    full_head_dim=512,
    window=1024,
    canvas=256,
    vocab=262144,
)
SMALL = tiny.TinySpec(
    "small",
    **WEIGHTS,
    hidden=128,
    dense=256,
    expert=64,
    experts=32,
    top_k=4,
    heads=4,
    head_dim=32,
    full_head_dim=64,
    window=1024,
    canvas=256,
    vocab=1024,
)


def config_of(spec: tiny.TinySpec, layers: int) -> dict[str, Any]:
    """Return config.json for these sizes, in the original dialect, with bf16 and the demo's vision tower."""
    kinds = tuple("full_attention" if i % 4 == 3 else "sliding_attention" for i in range(layers))
    vision = json.loads((demo.DIRECTORY / "config.json").read_text())["vision_config"]
    config = tiny.config(replace(spec, layer_types=kinds), "original")
    return config | {"dtype": "bfloat16", "vision_config": vision}


def shapes_by_shard(config: ModelConfig) -> list[Shapes]:
    """Return shapes by Hugging Face's tensor names: first those outside layers, then those of each layer."""
    shards: list[Shapes] = [{} for _ in range(1 + config.text.num_hidden_layers)]
    model = DiffusionGemma(config, GenerationConfig())  # lazy: its weights are never computed
    parameters: Any = tree_flatten(model.parameters())
    for name, array in parameters:
        path = name.split(".")
        shard = int(path[path.index("layers") + 1]) + 1 if "decoder" in path and "layers" in path else 0
        # Hugging Face's stacks of experts have no `.weight` suffix.
        shards[shard][name.removesuffix(".weight") if "experts" in path else name] = array.shape
    for name, info in tensor_infos(demo.DIRECTORY).items():
        if name.startswith("model.encoder.vision_tower."):
            shards[0][name] = info.shape
        elif name.startswith("model.encoder.embed_vision."):
            shards[0][name] = (config.text.hidden_size, *info.shape[1:])
    return shards


def normal_bits(mean: float) -> np.ndarray:
    """Return the quantiles of a normal distribution, deviation 0.02, as bits of bf16: uint16 [65536]."""
    distribution = statistics.NormalDist(mean, 0.02)
    quantiles = [distribution.inv_cdf((i + 0.5) / 65536) for i in range(65536)]
    return ((np.array(quantiles, dtype=np.float32).view(np.uint32) + 0x8000) >> 16).astype(np.uint16)


def write_shard(file: BinaryIO, shapes: Shapes, rng: np.random.Generator) -> int:
    """Write a safetensors file of random tensors and return the number of bytes of its data.

    Vectors (norms and scales) have mean 1, all other tensors have mean 0.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data
    file.write(struct.pack("<Q", len(text)) + text)
    matrix, vector = normal_bits(0.0), normal_bits(1.0)
    for shape in shapes.values():
        bits = vector if len(shape) == 1 else matrix
        for start in range(0, math.prod(shape), CHUNK):
            count = min(CHUNK, math.prod(shape) - start)
            words = rng.integers(0, 2**64, size=-(-count // 4), dtype=np.uint64)  # far faster than uint16
            file.write(bits[words.view(np.uint16)[:count]].data)
    return end


def write_checkpoint(directory: Path, config: dict[str, Any]) -> int:
    """Write the checkpoint of this config.json and return the number of bytes of its tensors."""

    def write_json(name: str, content: Any) -> None:
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")

    directory.mkdir(parents=True)
    write_json("config.json", config)
    write_json("generation_config.json", tiny.generation_config("flat"))
    for pattern in ("tokenizer*", "chat_template*"):
        for path in demo.DIRECTORY.glob(pattern):
            shutil.copy(path, directory)
    shards = shapes_by_shard(ModelConfig.load(directory))
    rng = np.random.default_rng(0)
    weight_map: dict[str, str] = {}
    total = 0
    for i, shapes in enumerate(shards):
        name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        with (directory / name).open("wb") as file:
            total += write_shard(file, shapes, rng)
        weight_map |= dict.fromkeys(shapes, name)
    metadata = {"total_size": total}
    write_json("model.safetensors.index.json", {"metadata": metadata, "weight_map": weight_map})
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a checkpoint of the real shapes with random weights.")
    parser.add_argument("out", nargs="?", type=Path, default=Path("build/synthetic"), help="a new directory")
    parser.add_argument("--layers", type=int, default=4, help="of 1.6 GB each; the real model has 30")
    options = parse(parser, smoke={"layers": 1})
    if options.out.exists() and not options.smoke:
        parser.error(f"{options.out} exists already; remove it or name another directory")
    with tempfile.TemporaryDirectory() as scratch:
        out, spec = (Path(scratch) / "small", SMALL) if options.smoke else (options.out, REAL)
        start = time.perf_counter()
        gigabytes = write_checkpoint(out, config_of(spec, options.layers)) / 1e9
        seconds = time.perf_counter() - start
    print(f"{out}: {gigabytes:.3g} GB in {seconds:.3g} s ({gigabytes / seconds:.2g} GB/s)")


if __name__ == "__main__":
    main()
