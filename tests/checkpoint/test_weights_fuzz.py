"""Whatever the files hold, reading them ends in tensors that are there or in one line that says why not.

The oracle is the safetensors library: what is accepted here it accepts too and finds the same tensors;
what it accepts and is refused here is refused for one of the few reasons that are stricter on purpose.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.bad_weights import pack

from mlx_diffusiongemma.checkpoint.weights import INDEX, TensorInfo, tensor_infos
from mlx_diffusiongemma.errors import CheckpointError

pytestmark = pytest.mark.slow

FILE, SHARDS = "model.safetensors", ("model-1.safetensors", "model-2.safetensors")
# What safetensors allows and this reader does not.
STRICTER = "is in it twice|too long or unprintable|which is not supported|is not understood|holds no tensors"


def cases(count: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        # The directory is shared by all cases: each overwrites the files of the one before.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def outcome(directory: Path) -> dict[str, TensorInfo] | str:
    """Return the tensors of a directory, or the line that refuses it."""
    try:
        infos = tensor_infos(directory)
    except CheckpointError as error:
        line = str(error)
        assert line.isprintable(), line
        assert len(line) < 1500 + 2 * len(str(directory))  # names of 500 characters may be in it, no more
        return line
    for info in infos.values():
        assert info.file.parent == directory
        assert info.offset + info.nbytes <= info.file.stat().st_size
    return infos


def check_against_safetensors(directory: Path) -> None:
    """Reads `FILE`, the directory's only one, here and there."""
    raw = (directory / FILE).read_bytes()
    found = outcome(directory)
    try:
        expected = dict(safetensors.deserialize(raw))
    except (safetensors.SafetensorError, UnicodeDecodeError):
        assert isinstance(found, str), "safetensors refuses it"
        return
    if isinstance(found, str):
        assert re.search(STRICTER, found), found
        return
    assert found.keys() == expected.keys()
    for name, info in found.items():
        tensor = expected[name]
        assert (info.dtype, list(info.shape)) == (tensor["dtype"], tensor["shape"])
        assert raw[info.offset : info.offset + info.nbytes] == bytes(tensor["data"])


# --- one file -----------------------------------------------------------------------------------------------


TEXTS = st.text('[]{},:"\\0-1e.\ud800ax ', max_size=40).map(lambda text: text.encode("utf-8", "replace"))


@cases(6000)
@given(header=st.binary(max_size=64) | TEXTS, more=st.integers(-9, 9) | st.none())
def test_any_bytes_and_any_header(tmp_path: Path, header: bytes, more: int | None) -> None:
    raw = header if more is None else pack(header, bytes(4), max(0, len(header) + more))
    (tmp_path / FILE).write_bytes(raw)
    check_against_safetensors(tmp_path)


SIZES = {"F32": 4, "BF16": 2, "U8": 1, "I64": 8}
HUGE = [2**31 - 1, 2**31, 2**32, 2**61, 2**63, 2**64, -(2**63), 10**30, 1e400]
SCALARS = [-1, 0, 1, 4, True, False, None, 1.0, "", "F32", "F64", "F8_E4M3", "F4", "a\n", "\ud800", {"a": 1}]
LISTS = [[], [[]], [0], [4], [-4], [True, 4], [1.0], [2**31, 2], [1] * 9, [0] * 8, ["0", "4"], [None, None]]
SPANS = [[0, 4], [4, 0], [0, 0], [2, 2], [-4, 0], [0, 4, 8], [0.0, 4.0], [0, 2**64 + 4], [2**63, 2**63]]
HOSTILE = st.sampled_from([*HUGE, *SCALARS, *LISTS, *SPANS, {}, {"a": "b"}])
NAMES = ["a", "b", "model.norm", "", "\n", "\ud800", "n" * 501, "__metadata__", "é", "\u2028"]
SHAPES = [[], [1], [3], [2, 2], [0], [1, 0, 2], [5, 1, 1]]
TENSORS = st.lists(st.sampled_from([(d, shape) for d in SIZES for shape in SHAPES]), min_size=1, max_size=3)


def sound(tensors: list[tuple[str, list[int]]]) -> tuple[list[tuple[str, Any]], int]:
    """Header entries, in order, of a sound file, and the size of its data."""
    entries: list[tuple[str, Any]] = []
    end = 0
    for name, (dtype, shape) in zip("abc", tensors, strict=False):
        start, end = end, end + SIZES[dtype] * math.prod(shape)
        entries.append((name, {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}))
    return entries, end


def text_of(pairs: list[tuple[str, Any]]) -> bytes:
    """A JSON object in which names may be there twice."""
    return b"{%s}" % ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in pairs).encode()


# A field is what is wrong most often; some changes are weighted.
CHANGES = st.sampled_from(
    [("change", field) for field in ("dtype", "shape", "data_offsets")] * 2
    + [("drop", field) for field in ("dtype", "shape", "data_offsets")]
    + [(kind, "") for kind in ("entry", "rename", "repeat", "remove", "claim")]
    + [(kind, "") for kind in ("shorten", "lengthen", "flip", "flip")]
)
CLAIMS = st.sampled_from([0, 1, 2**31, 2**63, 2**64 - 1, 16_000_001])
PLACES = st.integers(0, 2**16)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A sound file with up to three things changed."""
    entries, size = sound(draw(TENSORS))
    claim: int | None = None
    data = bytes(range(size))
    flips: list[int] = []
    for kind, field in draw(st.lists(CHANGES, max_size=3)):
        if not entries:
            break
        i = draw(PLACES) % len(entries)
        name, value = entries[i]
        fields = value if isinstance(value, dict) else {}
        if kind == "change":
            entries[i] = (name, fields | {field: draw(HOSTILE)})
        elif kind == "drop":
            entries[i] = (name, {k: v for k, v in fields.items() if k != field})
        elif kind == "entry":
            entries[i] = (name, draw(HOSTILE))
        elif kind == "rename":
            entries[i] = (draw(st.sampled_from(NAMES)), value)
        elif kind == "repeat":
            entries.append((draw(st.sampled_from(NAMES)), value))
        elif kind == "remove":
            del entries[i]
        elif kind == "shorten":
            data = data[: draw(PLACES) % (len(data) + 1)]
        elif kind == "lengthen":
            data += b"more"
        elif kind == "flip":
            flips.append(draw(PLACES))
        else:
            claim = draw(CLAIMS)
    raw = bytearray(pack(text_of(entries), data, claim))
    for flip in flips:
        raw[flip // 8 % len(raw)] ^= 1 << flip % 8
    return bytes(raw)


@cases(5000)
@given(raw=mutated())
def test_changed_files(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / FILE).write_bytes(raw)
    check_against_safetensors(tmp_path)


@cases(500)
@given(tensors=TENSORS)
def test_sound_files_are_accepted(tmp_path: Path, tensors: list[tuple[str, list[int]]]) -> None:
    entries, size = sound(tensors)
    (tmp_path / FILE).write_bytes(pack(text_of(entries), bytes(size)))
    assert isinstance(outcome(tmp_path), dict)
    check_against_safetensors(tmp_path)


# --- the index ----------------------------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A directory with two shards, three tensors, and traps around them."""
    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    directory = tmp_path / "model"
    (directory / "folder.safetensors").mkdir(parents=True)
    (directory / SHARDS[0]).write_bytes(pack({"a": one, "b": one | {"data_offsets": [4, 8]}}, bytes(8)))
    for file in (directory / SHARDS[1], tmp_path / SHARDS[1]):
        file.write_bytes(pack({"c": one}, bytes(4)))
    (directory / "out.safetensors").symlink_to(tmp_path / SHARDS[1])
    (directory / "again.safetensors").symlink_to(SHARDS[1])
    return directory


CONTENT = {SHARDS[0]: {"a", "b"}, SHARDS[1]: {"c"}, "again.safetensors": {"c"}}
SOUND = {"a": SHARDS[0], "b": SHARDS[0], "c": SHARDS[1]}
BAD = ["out.safetensors", "folder.safetensors", "gone.safetensors", "weights.bin", ".", "/", "/etc/passwd"]
BAD += ["/dev/zero", "", "a\0", "\n", "\ud800.safetensors", "x" * 300 + ".safetensors"]
BAD += [f"../{SHARDS[1]}", f"../model/{SHARDS[1]}", f"./{SHARDS[0]}"]
FILES = st.sampled_from([*CONTENT, *BAD, 5, None, [], {}, True, 1.5])


def is_sound(pairs: list[tuple[str, Any]]) -> bool:
    """True if a weight_map lists all that is in the files that it names, once, and nothing else."""
    listed: dict[str, list[str]] = {}
    for name, file in pairs:
        listed.setdefault(str(file), []).append(name)
    return bool(pairs) and all(sorted(own) == sorted(CONTENT.get(file, ())) for file, own in listed.items())


def indexed(directory: Path, text: bytes) -> dict[str, TensorInfo] | str:
    (directory / INDEX).write_bytes(text)
    return outcome(directory)


@cases(1500)
@given(text=st.binary(max_size=64) | st.text('[]{},:"\\0-1e.ax ', max_size=40).map(str.encode))
def test_any_index(sharded: Path, text: bytes) -> None:
    assert isinstance(indexed(sharded, text), str)


OTHERS = st.sampled_from([[], [("metadata", {"total_size": 12})], [("metadata", 10**30)]])
EDITS = st.sampled_from(["move", "move", "rename", "drop", "insert", "reverse"])


@st.composite
def changed_index(draw: st.DrawFn) -> tuple[bytes, bool]:
    """An index with up to three things changed, and whether what it says is so."""
    pairs: list[tuple[str, Any]] = list(SOUND.items())
    for kind in draw(st.lists(EDITS, max_size=3)):
        i = draw(PLACES) % (len(pairs) or 1)
        if kind == "insert":
            pairs.insert(i, (draw(st.sampled_from(NAMES)), draw(FILES)))
        elif kind == "reverse":
            pairs.reverse()
        elif kind == "move" and pairs:
            pairs[i] = (pairs[i][0], draw(FILES))
        elif kind == "rename" and pairs:
            pairs[i] = (draw(st.sampled_from(NAMES)), pairs[i][1])
        else:
            del pairs[i : i + 1]
    text = text_of([*draw(OTHERS), ("weight_map", "HERE")]).replace(b'"HERE"', text_of(pairs))
    return text, is_sound(pairs)


@cases(4000)
@given(index=changed_index())
def test_changed_indexes(sharded: Path, index: tuple[bytes, bool]) -> None:
    """Accepted if and only if it says what is so."""
    text, sound = index
    found = indexed(sharded, text)
    assert isinstance(found, dict) == sound, found
    if isinstance(found, dict):
        weight_map = json.loads(text)["weight_map"]
        assert {name: info.file.name for name, info in found.items()} == weight_map
