"""Ways to damage a model directory, each with the error message that it must cause."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oracle import demo

from mlx_diffusiongemma.checkpoint.weights import INDEX

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
NORM = "model.decoder.norm.weight"

Damage = Callable[[Path], Any]


def pack(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file. header: JSON text or a JSON value. length: header length that it claims."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def unpack(file: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the data of a valid safetensors file."""
    end = 8 + int.from_bytes(file[:8], "little")
    return json.loads(file[8:end]), file[end:]


def content(data: bytes) -> Damage:
    return lambda folder: (folder / "model.safetensors").write_bytes(data)


def kept(count: int, name: str = "model.safetensors") -> Damage:
    return lambda folder: os.truncate(folder / name, count)


def header(change: Callable[[dict[str, Any]], Any], name: str = "model.safetensors") -> Damage:
    """Return a damage that changes the header of a weight file and keeps its data."""

    def damage(folder: Path) -> None:
        values, data = unpack((folder / name).read_bytes())
        change(values)
        (folder / name).write_bytes(pack(values, data))

    return damage


def entry(**fields: Any) -> Damage:
    """Return a damage that changes fields in the header's entry of NORM. None removes a field."""

    def change(values: dict[str, Any]) -> None:
        values[NORM] = {k: v for k, v in (values[NORM] | fields).items() if v is not None}

    return header(change)


def renamed(name: str) -> Damage:
    return header(lambda values: values.update({name: values.pop(NORM)}))


def index(change: Callable[[dict[str, str]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        values = json.loads((folder / INDEX).read_text())
        change(values["weight_map"])
        (folder / INDEX).write_text(json.dumps(values))

    return damage


def shard(name: str) -> Damage:
    """Return a damage after which the index says that NORM is in the file `name`."""
    return index(lambda weight_map: weight_map.update({NORM: name}))


def index_text(text: bytes) -> Damage:
    return lambda folder: (folder / INDEX).write_bytes(text)


def instead(name: str, make: Callable[[Path], Any]) -> Damage:
    """Return a damage that replaces the file `name` by what `make` creates at its path."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return damage


def linked_out(name: str) -> Damage:
    """Return a damage that moves the file out of the directory and leaves a link to it."""

    def damage(folder: Path) -> None:
        outside = folder.parent / "outside"
        outside.mkdir()
        shutil.move(folder / name, outside / name)
        (folder / name).symlink_to(outside / name)

    return damage


def copied_to_both(folder: Path) -> None:
    """Add a tensor of the second shard to the first shard."""
    values, data = unpack((folder / ONE).read_bytes())
    other, _ = unpack((folder / TWO).read_bytes())
    size = len(data)
    values[next(name for name in other if name != "__metadata__")] = {
        "dtype": "F32",
        "shape": [1],
        "data_offsets": [size, size + 4],
    }
    (folder / ONE).write_bytes(pack(values, data + bytes(4)))


class Trap:
    """An object that creates the file "sprung" when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("sprung"),)


def other_format(*names: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        for name in names:
            (folder / name).write_bytes(pickle.dumps(Trap()))

    return damage


DEEP = b"[" * 100_000
HUGE_NUMBER = b'{"a": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 4]}}' % (b"9" * 5000)
TWICE = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {}}'

WHOLE: dict[str, tuple[Damage, str]] = {
    "empty": (kept(0), "only 0 bytes"),
    "half a length": (kept(5), "only 5 bytes"),
    "truncated header": (kept(1000), "its header claims"),
    "truncated data": (kept(2_000_000), "lies at bytes"),
    "one byte too many": (
        lambda folder: content((folder / "model.safetensors").read_bytes() + b"x")(folder),
        r"its tensors cover \d+ of \d+ bytes",
    ),
    "largest length": (content(pack(b"{}", length=2**64 - 1)), "claims 18446744073709551615 bytes of 10"),
    "length above the sign": (content(pack(b"{}", length=2**63)), "its header claims"),
    "length of a byte too many": (content(pack(b"{}", length=3)), "claims 3 bytes of 10"),
    "no header": (content(pack(b"")), "it is not JSON"),
    "not JSON": (content(pack(b"{'a': 1}")), "it is not JSON"),
    "deep": (content(pack(DEEP)), "it is not JSON"),
    "not UTF-8": (content(pack(b'{"\xff": 1}')), "it is not JSON"),
    "UTF-16": (content(pack('{"a": 1}'.encode("utf-16"))), "it is not JSON"),
    "byte order mark": (content(pack(b"\xef\xbb\xbf{}")), "it is not JSON"),
    "number of 5000 digits": (content(pack(HUGE_NUMBER, bytes(4))), "it is not JSON"),
    "list": (content(pack([])), "not a JSON object"),
    "no tensors": (content(pack({"__metadata__": {"format": "pt"}})), "no tensors"),
    "tensor twice": (content(pack(TWICE, bytes(4))), "header: a is in it twice"),
    "metadata of numbers": (header(lambda values: values.update(__metadata__={"a": 1})), "__metadata__"),
    "metadata list": (header(lambda values: values.update(__metadata__=[])), "__metadata__"),
    "entry null": (header(lambda values: values.update({NORM: None})), f"entry for {NORM} is not under"),
    "entry list": (header(lambda values: values.update({NORM: []})), "is not understood"),
    "no dtype": (entry(dtype=None), "is not understood"),
    "no shape": (entry(shape=None), "is not understood"),
    "no offsets": (entry(data_offsets=None), "is not understood"),
    "dtype list": (entry(dtype=["BF16"]), "is not understood"),
    "double precision": (entry(dtype="F64"), f"{NORM} is F64, which is not supported"),
    "8-bit floats": (entry(dtype="F8_E4M3"), f"{NORM} is F8_E4M3, which is not supported"),
    "dtype of two lines": (entry(dtype="F\n"), r"is 'F\\n', which"),
    "shape negative": (entry(shape=[-1, -128]), "is not understood"),
    "shape bool": (entry(shape=[True, 128]), "is not understood"),
    "shape float": (entry(shape=[128.0]), "is not understood"),
    "shape text": (entry(shape="128"), "is not understood"),
    "shape number": (entry(shape=128), "is not understood"),
    "shape nested": (entry(shape=[[128]]), "is not understood"),
    "shape beyond MLX": (entry(shape=[2**31, 0]), "is not understood"),
    "shape overflows": (entry(shape=[2**16] * 4), "expected 36893488147419103232 bytes"),
    "shape of a million twos": (entry(shape=[2] * 1_000_000), "is not understood"),
    "shape of nine": (entry(shape=[1] * 8 + [128]), "is not understood"),
    "shape other": (entry(shape=[129]), "expected 258 bytes"),
    "offsets negative": (entry(data_offsets=[-256, 0]), "is not understood"),
    "offsets bool": (entry(data_offsets=[False, 256]), "is not understood"),
    "offsets float": (entry(data_offsets=[0.0, 256.0]), "is not understood"),
    "offsets text": (entry(data_offsets=["0", "256"]), "is not understood"),
    "offsets not two": (entry(data_offsets=[0, 256, 512]), "is not understood"),
    "offsets huge": (entry(data_offsets=[2**64, 2**64 + 256]), "is not understood"),
    "offsets outside": (entry(data_offsets=[2**40, 2**40 + 256]), "lies at bytes 1099511627776"),
    "offsets reversed": (entry(data_offsets=[256, 0]), r"lies at bytes 256\.\.0"),
    "offsets with a gap": (header(lambda values: values.pop(NORM)), "leave a gap at byte"),
    "offsets overlap": (entry(data_offsets=[256, 512]), "overlap or leave a gap"),
    "name unprintable": (renamed("a\nb"), r"'a\\nb', empty, too long or unprintable"),
    "name half a character": (renamed("a\ud800"), r"'a\\ud800', empty, too long or unprintable"),
    "name empty": (renamed(""), "'', empty"),
    "name long": (renamed("a" * 501), r"aaa\.\.\., empty, too long"),
    "directory": (instead("model.safetensors", Path.mkdir), "not a regular file"),
    "pipe": (instead("model.safetensors", os.mkfifo), "not a regular file"),
    "dead link": (instead("model.safetensors", lambda path: path.symlink_to("gone")), "not a regular file"),
    "link to itself": (instead("model.safetensors", lambda path: path.symlink_to(path)), "not a regular"),
    "link out": (linked_out("model.safetensors"), "leads out of its directory, to .*outside"),
    "name of two lines": (
        lambda folder: (folder / "model.safetensors").rename(folder / "model\n.safetensors"),
        r"rename 'model\\n.safetensors'",
    ),
    "tensors twice": (
        lambda folder: shutil.copy(folder / "model.safetensors", folder / "model-2.safetensors"),
        r"is in both model-2.safetensors and model.safetensors",
    ),
    "pickled": (other_format("pytorch_model.bin"), r"only pytorch_model\.bin, no model\*\.safetensors"),
    "other formats": (
        other_format("a.pt", "b.H5", "c.pth", "d.bin"),
        r"only a\.pt, b\.H5, c\.pth and more, .* never opened",
    ),
    "GGUF": (other_format("a-Q4_K_M.GGUF"), "holds weights in GGUF, the format of llama.cpp; "),
    "adapter": (other_format("adapter_model.bin"), "holds a LoRA adapter, which changes a model "),
    "no weights": (other_format(), "is this a model directory"),
}

NO_SHARD = "which is not a safetensors file in its directory"
SHARDED: dict[str, tuple[Damage, str]] = {
    "missing shard": (lambda folder: (folder / TWO).unlink(), f"names {TWO}, {NO_SHARD}"),
    "parent": (shard(f"../sharded/{ONE}"), NO_SHARD),
    "absolute": (shard(str(demo.DIRECTORY / "model.safetensors")), NO_SHARD),
    "subdirectory": (shard(f"sub/{ONE}"), NO_SHARD),
    "the directory": (shard("."), NO_SHARD),
    "no name": (shard(""), NO_SHARD),
    "pickle": (shard("pytorch_model.bin"), f"names pytorch_model.bin, {NO_SHARD}"),
    "zero byte": (shard("a\0.safetensors"), rf"names 'a\\x00\.safetensors', {NO_SHARD}"),
    "two lines": (shard("a\nb.safetensors"), rf"names 'a\\nb\.safetensors', {NO_SHARD}"),
    "half a character": (shard("a\ud800.safetensors"), NO_SHARD),
    "long": (shard("x" * 5000 + ".safetensors"), NO_SHARD),
    "shard is a directory": (instead(ONE, Path.mkdir), NO_SHARD),
    "shard is a pipe": (instead(ONE, os.mkfifo), NO_SHARD),
    "shard leads out": (linked_out(ONE), f"{ONE} is a link that leads out of its directory"),
    "shard truncated": (kept(1_000_000, TWO), f"{TWO}: .* lies at bytes"),
    "shard empty": (kept(0, ONE), f"{ONE}: only 0 bytes"),
    "tensor in no file": (index(lambda m: m.update(ghost=ONE)), f"puts ghost into {ONE}, .* in no file"),
    "tensor in the other file": (index(lambda m: m.update({NORM: ONE if m[NORM] == TWO else TWO})), NORM),
    "tensor not listed": (index(lambda m: m.pop(NORM)), f"does not list {NORM}, which is in model-0000"),
    "tensor in both": (copied_to_both, f"is in both {ONE} and {TWO}"),
    "name of two lines in the index": (index(lambda m: m.update({"a\nb": ONE})), r"puts 'a\\nb' into"),
    "listed twice": (
        index_text(b'{"weight_map": {"%s": "%s", "%s": "x"}}' % (NORM.encode(), ONE.encode(), NORM.encode())),
        f"{NORM} is in it twice",
    ),
    "two maps": (index_text(b'{"weight_map": {}, "weight_map": {}}'), "weight_map is in it twice"),
    "map empty": (index_text(b'{"weight_map": {}}'), "weight_map is empty"),
    "map list": (index_text(b'{"weight_map": []}'), "no weight_map"),
    "map of numbers": (shard(5), "no weight_map"),  # type: ignore[arg-type]
    "no map": (index_text(b"{}"), "no weight_map"),
    "index list": (index_text(b"[]"), "not a JSON object"),
    "index empty": (index_text(b""), "it is not JSON"),
    "index deep": (index_text(DEEP), "it is not JSON"),
    "index not UTF-8": (index_text(b'{"weight_map": {"\xff": "a"}}'), "it is not JSON"),
    "index directory": (instead(INDEX, Path.mkdir), "not a regular file"),
    "index pipe": (instead(INDEX, os.mkfifo), "not a regular file"),
    "index dead link": (instead(INDEX, lambda path: path.symlink_to("gone")), "not a regular file"),
    "index leads out": (linked_out(INDEX), "leads out of its directory"),
}
