"""Time and peak memory of the vision tower, against mlx-vlm's on the same weights and patches.

    python benchmarks/vision.py            the widths of the 26B with 4 layers, at 70 and 280 soft tokens
    python benchmarks/vision.py --smoke

Both sides run in turn, each in a process of its own. A time is the better of two runs. Memory is the peak of
the process during them less its memory before. Also measured: reading and cutting a 12-megapixel JPEG.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from common import parse, resident_bytes
from mlx.utils import tree_flatten
from PIL import Image

from mlx_diffusiongemma.config.vision import VisionConfig
from mlx_diffusiongemma.vision.patches import cut
from mlx_diffusiongemma.vision.reading import read_image
from mlx_diffusiongemma.vision.tower import Tower, pooling_order

SIDES = ("mlx_dg", "mlx-vlm")
PHOTO = (4000, 3000)
CLEAR = Path("/proc/self/clear_refs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=1152)
    parser.add_argument("--tokens", type=int, nargs="+", default=[70, 280], help="budgets")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    smoke = {"layers": 1, "hidden": 48, "tokens": [70], "rounds": 1}
    options = parse(parser, smoke, needs_mlx_vlm=True)
    if options.side:
        print(json.dumps(measured(options.side, options.layers, options.hidden, options.tokens[0])))
        return
    for tokens in options.tokens:
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(options.rounds):
            for side in SIDES:
                runs[side].append(run(side, options.layers, options.hidden, tokens))
        ours, theirs = (
            {key: statistics.median(each[key] for each in runs[side]) for key in ("seconds", "bytes")}
            for side in SIDES
        )
        print(
            f"{tokens} soft tokens: {ours['seconds']:.2f} s against {theirs['seconds']:.2f} s "
            f"({ours['seconds'] / theirs['seconds']:.2f}), peak {ours['bytes'] / 1e6:.0f} MB against "
            f"{theirs['bytes'] / 1e6:.0f} MB ({ours['bytes'] / theirs['bytes']:.2f})",
            flush=True,
        )
    print(f"a 12-megapixel JPEG at 280: {photo(48 if options.hidden < 1152 else 1):.3f} s")


def run(side: str, layers: int, hidden: int, tokens: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--side", side, "--layers", str(layers), "--hidden", str(hidden)]
    done = subprocess.run([*command, "--tokens", str(tokens)], capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def config(layers: int, hidden: int) -> dict[str, Any]:
    """Return a vision_config with the shapes of the 26B, narrower for another `hidden`."""
    heads = 16 if hidden == 1152 else 2
    return {
        "model_type": "gemma4_vision", "hidden_size": hidden, "intermediate_size": hidden * 4304 // 1152,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads,
        "head_dim": 72 if hidden == 1152 else 24, "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6, "patch_size": 16, "pooling_kernel_size": 3, "position_embedding_size": 10240,
        "rope_parameters": {"rope_type": "axial", "rope_theta": 100.0}, "standardize": True,
        "use_clipped_linears": False, "attention_bias": False,
    }  # fmt: skip


def measured(side: str, layers: int, hidden: int, tokens: int) -> dict[str, float]:
    """Return seconds and bytes of one side. Prints nothing."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (600, 800, 3), dtype=np.uint8))
    patches = cut(picture, tokens)
    ours = Tower(VisionConfig.from_dict(config(layers, hidden)))
    shapes: Any = tree_flatten(ours.parameters())
    weights = [(name, mx.array(rng.normal(0, 0.02, w.shape).astype(np.float32))) for name, w in shapes]
    if side == "mlx_dg":
        tower: Any = ours
        order = mx.array(pooling_order(patches.positions, 3))

        def step() -> mx.array:
            return ours(mx.array(patches.values), patches.positions, order)
    else:
        from mlx_vlm.models.gemma4.config import VisionConfig as TheirConfig
        from mlx_vlm.models.gemma4.vision import VisionModel

        tower = VisionModel(TheirConfig.from_dict(config(layers, hidden)))

        def step() -> mx.array:
            return tower(mx.array(patches.values), mx.array(patches.positions))

    tower.load_weights(weights, strict=False)
    mx.eval(tower.parameters())
    del weights
    if CLEAR.exists():  # forget the peak so far
        CLEAR.write_text("5")
    before, times = resident_bytes(), []
    for _ in range(2):
        start = time.perf_counter()
        mx.eval(step())
        times.append(time.perf_counter() - start)
    return {"seconds": min(times), "bytes": float(resident_bytes(peak=True) - before)}


def photo(smaller: int) -> float:
    """Return the seconds to read and cut a photograph of 12 megapixels, or of a part of them."""
    size = (PHOTO[0] // smaller, PHOTO[1] // smaller)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "JPEG", quality=90)
    start = time.perf_counter()
    cut(read_image(stream.getvalue()), 280)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
