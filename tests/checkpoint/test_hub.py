"""Downloads from a hub that runs on the loopback interface; nothing here leaves the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from click.testing import CliRunner
from support.hub_calls import DEMO, DOWNLOAD, commands, complaint, content, downloaded, in_shards, outcomes
from support.hub_server import Hub

from mlx_diffusiongemma.cli import main

# What a repository may hold beside a model; some of it is as large as the model.
JUNK = [
    ".gitattributes",
    "consolidated.safetensors",
    "pytorch_model.bin",
    "model.gguf",
    "training_args.bin",
    "logo.png",
    "onnx/config.json",
    "onnx/model.onnx",
    "original/model.safetensors",
]


# --- what is fetched --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.slow
def test_a_plan_needs_the_headers_of_the_weights_only(hub: Hub, home: Path, shards: int) -> None:
    files = DEMO if shards == 1 else in_shards(shards)
    hub.commit("owner/demo", files | dict.fromkeys(JUNK, b"x" * 1000))
    plans = [["info"], ["convert", "--dry-run", "--recipe", "4bit"]]
    results = commands(hub, home, *([*plan, "owner/demo"] for plan in plans))
    expected = [CliRunner().invoke(main, [*plan, "demo"]).stdout for plan in plans]
    assert [(status, stdout) for status, stdout, _ in results] == [(0, stdout) for stdout in expected]
    weights = {name: data for name, data in files.items() if name.endswith(".safetensors")}
    served = sum(hub.bytes_served[name] for name in weights)
    assert 0 < served <= len(plans) * 101_000 * shards < sum(map(len, weights.values()))


@pytest.mark.parametrize("shards", [1, 2])
def test_only_the_model_is_fetched_whatever_else_is_there(hub: Hub, home: Path, shards: int) -> None:
    """Without an index the model is `model*.safetensors`, with one it is what the index names."""
    wanted = (DEMO if shards == 1 else in_shards(shards)) | {"LICENSE": b"text", "tokenizer.model": b"pieces"}
    junk = dict.fromkeys(JUNK, b"junk")
    if shards > 1:
        junk["model-fp32.safetensors"] = b"a second set of weights"
    hub.commit("owner/model", wanted | junk)
    directory = downloaded(hub, home, "owner/model")
    assert set(hub.bytes_served) == wanted.keys()
    assert content(directory) == wanted


def test_weights_of_another_architecture_are_not_fetched(hub: Hub, home: Path) -> None:
    config = json.loads(DEMO["config.json"]) | {"model_type": "llama"}
    hub.commit("owner/llama", DEMO | {"config.json": json.dumps(config).encode()})
    line = complaint(hub, home, "owner/llama")
    assert line.startswith("owner/llama: config.json: model_type is 'llama'; ")
    assert set(hub.bytes_served) == {"config.json"}


def test_an_index_with_bad_names_fetches_no_weights(hub: Hub, home: Path) -> None:
    maps: dict[str, tuple[Any, str]] = {
        "owner/glob": ({"a": "*.safetensors"}, "safetensors is missing or was not downloaded; try again"),
        "owner/parent": ({"a": "../secret.safetensors"}, "names '../secret.safetensors', which is not"),
        "owner/number": ({"a": "model.safetensors", "b": 5}, "names '5', which is not a safetensors file "),
        "owner/text": ("text", "names no files; give the id of another copy"),
    }
    for repo, (weight_map, _) in maps.items():
        index = json.dumps({"weight_map": weight_map}).encode()
        hub.commit(repo, DEMO | {"model.safetensors.index.json": index, "secret.safetensors": b""})
    lines = outcomes(hub, home, *(("download", repo) for repo in maps))
    for (repo, (_, expected)), line in zip(maps.items(), lines, strict=True):
        assert line.startswith(f"{repo}: ")
        assert expected in line
    assert not [path for path in hub.bytes_served if path.endswith(".safetensors")]


def test_a_revision_may_be_a_branch_or_a_commit(hub: Hub, home: Path) -> None:
    old = hub.commit("owner/model", DEMO | {"README.md": b"old"})
    hub.commit("owner/model", DEMO | {"README.md": b"tried"}, branch="pr/1")
    hub.commit("owner/model", DEMO | {"README.md": b"new"})
    calls = (["download", "owner/model", *revision] for revision in ([], ["pr/1"], [old]))
    texts = [(Path(line) / "README.md").read_text() for line in outcomes(hub, home, *calls)]
    assert texts == ["new", "tried", "old"]


def test_a_push_during_the_download_does_not_mix_versions(hub: Hub, home: Path) -> None:
    hub.commit("owner/model", DEMO)

    def push(path: str) -> None:
        if path == "config.json":
            hub.commit("owner/model", DEMO | {"model.safetensors": b"other weights"})

    hub.on_file = push
    assert content(downloaded(hub, home, "owner/model")) == DEMO


# --- interruptions ----------------------------------------------------------------------------------------


def test_a_broken_connection_goes_on_where_it_stopped(hub: Hub, home: Path) -> None:
    weights = bytes(range(256)) * 100_000  # 25.6 MB; huggingface_hub keeps what has come in 10 MiB at a time
    kept = huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE
    hub.commit("owner/model", DEMO | {"model.safetensors": weights})
    hub.cuts["model.safetensors"] = kept + 1000
    outcomes(hub, home, ("download", "owner/model"))  # early versions go on only when they are called again
    directory = downloaded(hub, home, "owner/model")
    assert (directory / "model.safetensors").read_bytes() == weights
    assert hub.ranges == [f"bytes={kept}-"]
    assert hub.bytes_served["model.safetensors"] == len(weights) + 1000


def test_after_a_kill_finished_files_are_not_fetched_again(hub: Hub, home: Path) -> None:
    files = in_shards(2)
    first, second = sorted(name for name in files if name.endswith(".safetensors"))
    hub.commit("owner/model", files)
    hub.stalls = {second}
    arguments = [sys.executable, "-c", DOWNLOAD, "owner/model"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(arguments, env=hub.environment(home), stdout=quiet, stderr=quiet) as process:
        assert hub.stalled.wait(60)
        for _ in range(600):  # until the first shard has its final name
            if process.poll() is not None or list(home.rglob(first)):
                break
            hub.stalled.clear()
            hub.stalled.wait(0.1)
        process.kill()
    assert list(home.rglob(first))
    assert not list(home.rglob(second))  # a shard is there whole or not at all
    hub.stalls = set()
    assert content(downloaded(hub, home, "owner/model")) == files
    for name in files.keys() - {second}:
        assert hub.bytes_served[name] == len(files[name])
