"""Runs the package in separate processes, with a hub on the loopback interface.

The processes are separate because huggingface_hub reads the hub's address when it is imported.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from oracle import demo

from support.bad_weights import pack
from support.hub_server import Hub, running_hub

DEMO = {path.name: path.read_bytes() for path in demo.DIRECTORY.iterdir()}
DOWNLOAD = (
    "import sys; from mlx_diffusiongemma.checkpoint.hub import download; print(download(*sys.argv[1:]))"
)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def python(hub: Hub, home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that can reach only this hub."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=hub.environment(home, **environment),
        capture_output=True,
        text=True,
        timeout=300,
    )


def downloaded(hub: Hub, home: Path, *arguments: str, **environment: str) -> Path:
    return Path(complaint(hub, home, *arguments, **environment))


def complaint(hub: Hub, home: Path, *arguments: str, **environment: str) -> str:
    """Try a download. Return the message of its `InputError`, or the directory if it succeeds."""
    (line,) = outcomes(hub, home, ("download", *arguments), **environment)
    return line


def outcomes(hub: Hub, home: Path, *calls: Sequence[str], **environment: str) -> list[str]:
    """Make calls in one process. Return the result of each, or the message of its `InputError`.

    A call is ("download", repo, revision), ("preview", repo) or ("upload", directory, repo, token). No
    request may be retried.
    """
    done = python(hub, home, "-c", _OUTCOMES, json.dumps(calls), **environment)
    assert done.returncode == 0, done.stderr
    assert "Retry" not in done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(calls), lines
    return lines


_OUTCOMES = """
import json, os, pathlib, sys
from mlx_diffusiongemma.checkpoint.hub import download, preview
from mlx_diffusiongemma.converter import hub
from mlx_diffusiongemma.errors import InputError

def upload(directory, repo, token):
    os.environ["HF_TOKEN"] = token
    hub.check_upload(repo)
    return hub.upload(pathlib.Path(directory), repo)

def previewed(*arguments):
    return preview(*arguments).__enter__()

for how, *arguments in json.loads(sys.argv[1]):
    try:
        print({"download": download, "preview": previewed, "upload": upload}[how](*arguments))
    except InputError as error:
        print(error)
"""


def commands(hub: Hub, home: Path, *calls: list[str], **environment: str) -> list[tuple[int, str, str]]:
    """Run `mlx_dg` commands in one process. Return exit status, standard output and standard error of each.

    The process itself must not write to its standard error.
    """
    done = python(hub, home, "-c", _COMMANDS, json.dumps(calls), **environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


_COMMANDS = """
import json, sys
from click.testing import CliRunner
from mlx_diffusiongemma.cli import main
for call in json.loads(sys.argv[1]):
    result = CliRunner().invoke(main, call)
    print(json.dumps([result.exit_code, result.stdout, result.stderr]), flush=True)
"""


def cached(
    files: dict[str, bytes], home: Path, repo: str, branch: str = "main", commit: str | None = None
) -> Path:
    """Put a model into the cache in `home`, as the oldest huggingface_hub did. Return its snapshot.

    There are links to blobs, and the branch's commit, but no record of what the repository has or lacks.
    """
    root = home / "hub" / f"models--{repo.replace('/', '--')}"
    commit = commit or hashlib.sha1(json.dumps(sorted(files)).encode()).hexdigest()
    snapshot = root / "snapshots" / commit
    for folder in (snapshot, root / "blobs", root / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "refs" / branch).write_text(commit)
    for name, data in files.items():
        blob = hashlib.sha1(data).hexdigest()
        (root / "blobs" / blob).write_bytes(data)
        (snapshot / name).symlink_to(Path("..", "..", "blobs", blob))
    return snapshot


def content(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def in_shards(count: int) -> dict[str, bytes]:
    """Return the demo's files by name, with the weights in `count` shards and an index."""
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
    return pack(header, data)
