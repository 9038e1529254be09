"""Reading a model directory: every tensor where safetensors says it is, and every bad file one clear line."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import safetensors
from click.testing import CliRunner
from oracle import demo, tiny
from support.bad_weights import NORM, ONE, SHARDED, TWO, WHOLE, Damage, Trap, pack, unpack
from support.hub_calls import cached, content

from mlx_diffusiongemma.checkpoint.weights import INDEX, tensor_infos, weight_files
from mlx_diffusiongemma.cli import main
from mlx_diffusiongemma.errors import CheckpointError


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo as `whole`, one file, and as `sharded`, two files and an index."""
    folder = tmp_path_factory.mktemp("originals")
    shutil.copytree(demo.DIRECTORY, folder / "whole")
    shutil.copytree(demo.DIRECTORY, folder / "sharded")
    (folder / "sharded" / "model.safetensors").unlink()
    weights: Any = mx.load(str(demo.DIRECTORY / "model.safetensors"))
    names = sorted(weights)
    weight_map: dict[str, str] = {}
    for file, part in ((ONE, names[::2]), (TWO, names[1::2])):
        mx.save_safetensors(str(folder / "sharded" / file), {name: weights[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    (folder / "sharded" / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


CASES = [pytest.param("whole", *case, id=name) for name, case in WHOLE.items()]
CASES += [pytest.param("sharded", *case, id=f"sharded: {name}") for name, case in SHARDED.items()]


@pytest.fixture
def checkpoint(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Copies an original to be damaged, and makes tmp_path the working directory."""
    monkeypatch.chdir(tmp_path)
    return lambda kind: shutil.copytree(originals / kind, tmp_path / kind)


@pytest.mark.parametrize(("kind", "damage", "message"), CASES)
def test_a_bad_checkpoint_is_refused_in_one_line(
    checkpoint: Callable[[str], Path], tmp_path: Path, kind: str, damage: Damage, message: str
) -> None:
    directory = checkpoint(kind)
    damage(directory)
    before = {*tmp_path.rglob("*")}
    with pytest.raises(CheckpointError, match=message) as caught:
        tensor_infos(directory)
    line = str(caught.value)
    assert line.isprintable()
    assert str(directory) in line
    assert len(line) < 500 + 2 * len(str(directory))
    assert {*tmp_path.rglob("*")} == before  # no pickle ran


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "damage", "message"), CASES)
def test_convert_refuses_a_bad_checkpoint_and_leaves_nothing(
    checkpoint: Callable[[str], Path], tmp_path: Path, kind: str, damage: Damage, message: str
) -> None:
    directory = checkpoint(kind)
    damage(directory)
    before = {*tmp_path.rglob("*")}
    result = CliRunner().invoke(main, ["convert", str(directory), "--mlx-path", str(tmp_path / "out")])
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("mlx_dg: error: ")
    assert re.search(message, line)
    assert {*tmp_path.rglob("*")} == before


# --- what is sound ------------------------------------------------------------------------------------------


def assert_tensors_are_those_of_safetensors(directory: Path) -> None:
    expected = {
        name: (file, found["dtype"], tuple(found["shape"]), bytes(found["data"]))
        for file in weight_files(directory)
        for name, found in safetensors.deserialize(file.read_bytes())
    }
    raw = {file: file.read_bytes() for file in weight_files(directory)}
    assert expected == {
        name: (info.file, info.dtype, info.shape, raw[info.file][info.offset :][: info.nbytes])
        for name, info in tensor_infos(directory).items()
    }


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_tensors_lie_where_safetensors_reads_them(originals: Path, kind: str) -> None:
    assert weight_files(originals / kind) == sorted((originals / kind).glob("*.safetensors"))
    assert_tensors_are_those_of_safetensors(originals / kind)


def test_scalars_empty_tensors_and_all_dtypes(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    kinds = (mx.float32, mx.float16, mx.bfloat16, mx.bool_, mx.int8, mx.int16, mx.int32, mx.int64)
    kinds += (mx.uint8, mx.uint16, mx.uint32, mx.uint64)
    tensors = {f"{kind}": mx.ones((2, 3), kind) for kind in kinds}
    mx.save_safetensors(str(file), tensors | {"scalar": mx.array(1.5)})
    values, data = unpack(file.read_bytes())
    values["empty"] = {"dtype": "F32", "shape": [0, 3], "data_offsets": [len(data)] * 2}
    file.write_bytes(pack(values, data))
    assert len(tensor_infos(tmp_path)) == len(kinds) + 2
    assert_tensors_are_those_of_safetensors(tmp_path)


def test_files_that_the_index_does_not_name_are_not_opened(checkpoint: Callable[[str], Path]) -> None:
    directory = checkpoint("sharded")
    (directory / "model-00003-of-00002.safetensors").write_bytes(b"left over")
    (directory / "consolidated.safetensors").write_bytes(b"left over")
    (directory / "optimizer.pt").write_bytes(pickle.dumps(Trap()))
    assert [file.name for file in weight_files(directory)] == [ONE, TWO]


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_links_of_the_hub_cache_are_followed(originals: Path, tmp_path: Path, kind: str) -> None:
    snapshot = cached(content(originals / kind), tmp_path, "owner/name")
    (tmp_path / "shortcut").symlink_to(snapshot)
    expected = [info.shape for info in tensor_infos(originals / kind).values()]
    for directory in (snapshot, tmp_path / "shortcut"):
        assert [info.shape for info in tensor_infos(directory).values()] == expected


@pytest.mark.parametrize("target", ["other/blobs/0", "hub/models--owner--name/refs/0"])
def test_links_from_the_hub_cache_to_elsewhere_are_not(originals: Path, tmp_path: Path, target: str) -> None:
    snapshot = cached(content(originals / "whole"), tmp_path, "owner/name")
    file = snapshot / "model.safetensors"
    (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(file.resolve(), tmp_path / target)
    file.unlink()
    file.symlink_to(tmp_path / target)
    with pytest.raises(CheckpointError, match="leads out of its directory"):
        tensor_infos(snapshot)


def test_links_inside_are_followed(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint("whole"))
    Path("model.safetensors").rename("weights")
    Path("model.safetensors").symlink_to("weights")
    assert NORM in tensor_infos(Path())


def test_tiny_checkpoints_too(tmp_path: Path) -> None:
    assert_tensors_are_those_of_safetensors(tiny.build(tiny.ROUGH, tmp_path / "tiny", "original"))


@pytest.mark.parametrize("name", ["model.safetensors", INDEX])
def test_a_file_that_claims_to_be_huge_takes_no_memory(tmp_path: Path, name: str) -> None:
    """64 GiB, of which nothing is on the disk, and a header of half that."""
    (tmp_path / name).write_bytes(pack(b"{}", length=2**35))
    os.truncate(tmp_path / name, 2**36)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"more than 16000000|larger than 16 MB"):
            tensor_infos(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()
