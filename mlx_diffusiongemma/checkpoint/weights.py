"""Safetensors files of a model directory, found and checked before a byte of weights is read.

Downloaded files are not trusted. Whatever index and headers say, nothing outside of the directory is opened,
nothing is unpickled, and time and memory stay in proportion to the files. The result is a list of tensors
whose bytes exist, or a `CheckpointError` of one line.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..config.files import check_values
from ..errors import CheckpointError
from . import foreign_files

INDEX = "model.safetensors.index.json"
# Bytes per element of the dtypes that MLX reads. It has no F64, and reads 8-bit floats as integers.
_ITEM_BYTES = {
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
# The format allows 100 MB, which can take Python 2.5 GB to parse. With every expert and scale a tensor of
# its own, this model's header has about 7 MB.
_MAX_JSON_BYTES = 16_000_000
_MAX_VALUES = 2_000_000  # with every expert a tensor of its own, this model has 200,000
_MAX_DIMENSIONS = 8  # this model needs four, and multiplying a million sizes takes minutes
_MAX_DIMENSION = 2**31 - 1  # MLX's shapes are int32
_MAX_NAME = 500  # characters: names end up in messages
_OTHER_WEIGHTS = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npz", ".h5"}


@dataclass(frozen=True)
class TensorInfo:
    """Place of one tensor: `nbytes` bytes from byte `offset` of `file`. `dtype` is spelled as in the file."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int

    @property
    def item_bytes(self) -> int:
        return _ITEM_BYTES[self.dtype]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def tensor_infos(directory: Path) -> dict[str, TensorInfo]:
    """Return every tensor of the directory's safetensors files, by its name there.

    Raises:
        CheckpointError: a file is damaged, a name exists twice, or index and files disagree.
    """
    infos: dict[str, TensorInfo] = {}
    for file in weight_files(directory):
        for name, info in read_header(file).items():
            if name in infos:
                raise CheckpointError(
                    f"{directory}: {name} is in both {infos[name].file.name} and {file.name}; "
                    "remove the file that does not belong here"
                )
            infos[name] = info
    weight_map = _weight_map(directory)
    if weight_map is not None:
        _check_index(weight_map, infos, directory / INDEX)
    return infos


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files that the index names, or all `model*.safetensors` without an index.

    Raise `CheckpointError` unless all are regular files of this directory, or of the Hugging Face cache to
    which it belongs.
    """
    weight_map = _weight_map(directory)
    if weight_map is not None:
        files = [directory / name for name in sorted(set(weight_map.values()))]
        for file in files:
            if file.parent != directory or file.suffix != ".safetensors" or not _is_file(file):
                raise CheckpointError(
                    f"{directory / INDEX} names {_shown(file.name)}, which is not a safetensors file in "
                    "its directory; download it again"
                )
    else:
        files = sorted(directory.glob("model*.safetensors"))
        if not files:
            raise _no_weights(directory)
    for file in files:
        if not file.name.isprintable():
            raise CheckpointError(f"{directory}: rename {_shown(file.name)}, it cannot be printed")
        if not _is_file(file):
            raise CheckpointError(f"{file}: not a regular file; put the weights there, or remove it")
        check_inside(file, directory)
    return files


def has_weights(directory: Path) -> bool:
    """Return True if the directory has weights or their index, even if damaged."""
    return (directory / INDEX).exists() or any(directory.glob("model*.safetensors"))


def read_tensors(files: list[Path]) -> dict[str, mx.array]:
    """Return all tensors of `files` by name. Each is read when it is first evaluated."""
    tensors: dict[str, mx.array] = {}
    for file in files:
        try:
            loaded: Any = mx.load(str(file))
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{file}: MLX cannot read it ({str(error).splitlines()[0]})") from None
        tensors.update(loaded)
    return tensors


# --- the directory ------------------------------------------------------------------------------------------


def _weight_map(directory: Path) -> dict[str, str] | None:
    """Return the file name of each tensor from the index, or None without an index."""
    index = directory / INDEX

    def broken(what: str) -> CheckpointError:
        return CheckpointError(f"{index}: {what}; download it again")

    if not index.exists() and not index.is_symlink():
        return None
    if not _is_file(index):
        raise broken("not a regular file")
    check_inside(index, directory)
    try:
        with index.open("rb") as stream:
            text = stream.read(_MAX_JSON_BYTES + 1)
    except OSError as error:
        raise broken(f"cannot be read ({error.strerror})") from None
    if len(text) > _MAX_JSON_BYTES:
        raise broken(f"larger than {_MAX_JSON_BYTES // 10**6} MB, so not the index of this model")
    weight_map = _json_object(text, broken).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise broken("no weight_map in it")
    if not weight_map:
        raise broken("its weight_map is empty")
    return weight_map


def _check_index(weight_map: dict[str, str], infos: dict[str, TensorInfo], index: Path) -> None:
    """Raise `CheckpointError` for a tensor that is not where the index says, or that it does not list."""
    for name, file_name in weight_map.items():
        actual = infos[name].file.name if name in infos else "no file"
        if actual != file_name:
            raise CheckpointError(
                f"{index} puts {_shown(name)} into {file_name}, but it is in {actual}; download both again"
            )
    for name, info in infos.items():
        if name not in weight_map:
            raise CheckpointError(
                f"{index} does not list {name}, which is in {info.file.name}; download both again"
            )


def check_inside(file: Path, directory: Path) -> None:
    """Raise `CheckpointError` if links lead `file` out of `directory` and the hub's cache around it."""
    home = directory.resolve()
    homes = [home]
    if home.parent.name == "snapshots":  # the hub's cache: snapshots/REVISION/NAME -> ../../blobs/HASH
        homes.append(home.parent.parent / "blobs")
    target = file.resolve()
    if not any(target.is_relative_to(folder) for folder in homes):
        raise CheckpointError(
            f"{file} is a link that leads out of its directory, to {_shown(str(target))}; "
            "put the file itself there"
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system
        return False


def _no_weights(directory: Path) -> CheckpointError:
    described = foreign_files.describe_directory(directory)
    if described is not None:
        return CheckpointError(f"{directory} holds {described}")
    names = sorted(path.name for path in directory.iterdir() if path.suffix.lower() in _OTHER_WEIGHTS)
    if not names:
        return CheckpointError(f"{directory}: no model*.safetensors in it; is this a model directory?")
    shown = ", ".join(_shown(name) for name in names[:3]) + (" and more" if len(names) > 3 else "")
    return CheckpointError(
        f"{directory}: only {shown}, no model*.safetensors; other formats are never opened, because some "
        "run code when they are read: get the model's safetensors files"
    )


# --- one file -----------------------------------------------------------------------------------------------


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Return a file's tensors by name. Raise `CheckpointError` unless they fill it without gap or overlap."""

    def damaged(what: str) -> CheckpointError:
        return CheckpointError(
            f"{file}: {what}; the file is damaged or truncated, download or convert it again"
        )

    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            if len(prefix) < 8:
                raise damaged(f"only {len(prefix)} bytes")
            length = int.from_bytes(prefix, "little")
            if length > size - 8:
                raise damaged(f"its header claims {length} bytes of {size}")
            if length > _MAX_JSON_BYTES:
                raise damaged(f"its header claims {length} bytes, more than {_MAX_JSON_BYTES}")
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(
            f"{file}: cannot be read ({error.strerror}); check the disk and the file's permissions"
        ) from None
    header = _json_object(text, lambda what: damaged(f"header: {what}"))
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        raise damaged("its __metadata__ does not map names to texts")

    infos: dict[str, TensorInfo] = {}
    data_bytes = size - 8 - length
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        if not name.isprintable() or not 0 < len(name) <= _MAX_NAME:
            raise damaged(f"the header names a tensor {_shown(name)}, empty, too long or unprintable")
        match entry:
            case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, stop]} if (
                len(shape) <= _MAX_DIMENSIONS
                and all(type(n) is int and 0 <= n <= _MAX_DIMENSION for n in shape)
                and all(type(n) is int and 0 <= n < 2**63 for n in (begin, stop))
            ):
                pass
            case _:
                raise damaged(f"the header's entry for {name} is not understood")
        if dtype not in _ITEM_BYTES:
            raise CheckpointError(
                f"{file}: {name} is {_shown(dtype)}, which is not supported; "
                "get the weights as BF16, F16 or F32, or as an MLX conversion"
            )
        expected = math.prod(shape) * _ITEM_BYTES[dtype]
        if not (begin <= stop <= data_bytes and stop - begin == expected):
            raise damaged(f"{name} lies at bytes {begin}..{stop} of {data_bytes}, expected {expected} bytes")
        infos[name] = TensorInfo(name, file, dtype, tuple(shape), expected, 8 + length + begin)
        spans.append((begin, stop))
    if not infos:
        raise damaged("it holds no tensors")
    covered = 0
    for begin, stop in sorted(spans):
        if begin != covered:
            raise damaged(f"its tensors overlap or leave a gap at byte {min(begin, covered)}")
        covered = stop
    if covered != data_bytes:
        raise damaged(f"its tensors cover {covered} of {data_bytes} bytes")
    return infos


def _json_object(text: bytes, broken: Callable[[str], CheckpointError]) -> dict[str, Any]:
    """Parse `text`, which must be a JSON object in UTF-8. Otherwise raise `broken(reason)`.

    Also raise it if an object has a name twice, because readers differ on which of the two values they take.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise broken(f"{_shown(name)} is in it twice")
        return values

    try:
        check_values(text, _MAX_VALUES)
        value = json.loads(str(text, "utf-8"), object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError):  # also a number of thousands of digits
        raise broken("it is not JSON") from None
    if not isinstance(value, dict):
        raise broken("it is not a JSON object")
    return value


def _shown(text: str) -> str:
    """Return an untrusted text as part of one line: shortened, and quoted if it could break the line."""
    short = text if len(text) <= 120 else f"{text[:117]}..."
    return short if short.isprintable() and short else ascii(short)
