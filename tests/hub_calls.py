"""Calls of the package in processes of their own, each of which knows a hub on the loopback interface only.

huggingface_hub reads its address when it is imported.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
from hub_server import Hub
from oracle import demo

DEMO = {path.name: path.read_bytes() for path in demo.DIRECTORY.iterdir()}
DOWNLOAD = "import sys; from mlx_diffusiongemma.hub import download; print(download(*sys.argv[1:]))"


def python(hub: Hub, home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process that knows this hub only."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=hub.environment(home, **environment),
        capture_output=True,
        text=True,
        timeout=300,
    )


def downloaded(hub: Hub, home: Path, *arguments: str, **environment: str) -> Path:
    done = python(hub, home, "-c", DOWNLOAD, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def complaint(hub: Hub, home: Path, script: str, *arguments: str, **environment: str) -> str:
    """The one line of the `InputError` that ends `script`."""
    done = python(hub, home, "-c", script, *arguments, **environment)
    assert done.returncode == 1, done
    kind, _, line = done.stderr.splitlines()[-1].partition(": ")
    assert kind.startswith("mlx_diffusiongemma.errors."), done.stderr
    return line


def content(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def in_shards(count: int) -> dict[str, bytes]:
    """The demo's files with its weights in `count` shards and an index."""
    loaded: Any = mx.load(str(demo.DIRECTORY / "model.safetensors"))
    files = {name: data for name, data in DEMO.items() if not name.endswith(".safetensors")}
    weight_map: dict[str, str] = {}
    names = sorted(loaded)
    for i in range(count):
        shard = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        weight_map |= dict.fromkeys(names[i::count], shard)
        files[shard] = safetensors_bytes({name: loaded[name] for name in names[i::count]})
    index = {"metadata": {}, "weight_map": weight_map}
    return files | {"model.safetensors.index.json": json.dumps(index).encode()}


def safetensors_bytes(tensors: dict[str, mx.array]) -> bytes:
    header: dict[str, Any] = {}
    data = b""
    for name, tensor in tensors.items():
        assert tensor.dtype == mx.bfloat16
        raw = bytes(memoryview(tensor.view(mx.uint16)))
        span = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": span}
        data += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data
