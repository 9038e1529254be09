"""Converts a checkpoint: plans, quantizes shard by shard, describes the result, verifies and uploads it."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx
from tqdm import tqdm

from mlx_diffusiongemma.checkpoint.loading import check_weights
from mlx_diffusiongemma.checkpoint.weights import check_inside
from mlx_diffusiongemma.config.files import MOST_BYTES
from mlx_diffusiongemma.config.model import SLIDING, ModelConfig
from mlx_diffusiongemma.console.progress import bar
from mlx_diffusiongemma.errors import CheckpointError, ConfigError, InputError
from mlx_diffusiongemma.habits import CONVERT_KEYWORDS, led_on
from mlx_diffusiongemma.ops import on_gpu
from mlx_diffusiongemma.text.tokenizer import Tokenizer

from .card import model_card, read_readme
from .hub import check_upload, upload
from .planning import FLOATS, Plan, Planned, plan
from .quantizing import Converted, Rows, chunks, convert_rows
from .recipes import DEFAULT_RECIPE, choose
from .report import RECORD, record
from .safetensors_source import open_source
from .source import Source
from .verification import verify as compare
from .workspace import COPIED, Workspace, check_apart, check_disk, check_target
from .writing import INDEX, ShardWriter, index, shard_name, shards

_OTHER_FILES_BYTES = 50 * 10**6  # tokenizer and the like
_FREE_STREAMS: list[mx.Stream] = []


@led_on(CONVERT_KEYWORDS)
def convert(
    hf_path: str | Path,
    mlx_path: str | Path = "mlx_model",
    *,
    recipe: str = DEFAULT_RECIPE,
    q_bits: int | None = None,
    q_group_size: int | None = None,
    q_mode: str | None = None,
    overrides: Sequence[str] = (),
    dtype: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    allow_nonfinite: bool = False,
    verify: bool = False,
    upload_repo: str | None = None,
) -> Path:
    """Convert a Hugging Face checkpoint ("demo", directory or hub id) to MLX in directory `mlx_path`.

    Files are written to a directory beside `mlx_path`, which is moved there when it is complete. The same
    call continues a conversion that was interrupted.

    Args:
        hf_path: the checkpoint.
        mlx_path: the directory to create.
        recipe: one of `RECIPES`.
        q_bits, q_group_size, q_mode: bits, group size and mode of all classes that the recipe quantizes.
        overrides: storage of single classes, each as `CLASS=BITS[:GROUP[:MODE]]`.
        dtype: dtype of tensors that are not quantized. None keeps the source's, except that recipe bf16 means
            bfloat16.
        revision: a branch, tag or commit of a hub id.
        overwrite: replace `mlx_path` if it is a model directory.
        allow_nonfinite: report NaN and infinite weights and continue.
        verify: run source and result on a probe and compare them.
        upload_repo: a hub id to push the result to.

    Returns:
        The absolute path of the directory.

    Raises:
        InputError: source, target or recipe cannot be used.
    """
    target = check_target(mlx_path, overwrite)
    if upload_repo is not None:
        check_upload(upload_repo)
    source, planned = planned_conversion(
        hf_path, recipe, q_bits, q_group_size, q_mode, overrides, dtype, revision
    )
    check_apart(source, target)
    Tokenizer.load(source.tokenizer_files())  # without one the result could not be loaded
    check_disk(target, planned.bytes_out + _OTHER_FILES_BYTES)
    source.check_copies()
    _check_copied(source.tokenizer_files())
    config = _config_text(source, planned)
    name, public_name = upload_repo or target.name, _public_name(hf_path)
    with Workspace(target, _fingerprint(source, planned)) as workspace:
        errors = _write_weights(source, planned, workspace, allow_nonfinite)
        _copy_files(source.tokenizer_files(), workspace.path)
        described = record(planned, errors, public_name, revision, None)
        _describe(workspace.path, described, source, name)
        # Comes last. A directory without it does not load.
        (workspace.path / "config.json").write_text(config, encoding="utf-8")
        workspace.commit()
    if verify:
        described = record(planned, errors, public_name, revision, compare(source, target))
        _describe(target, described, source, name)
    if upload_repo is not None:
        upload(target, upload_repo)
    return target


def planned_conversion(
    hf_path: str | Path,
    recipe: str = DEFAULT_RECIPE,
    q_bits: int | None = None,
    q_group_size: int | None = None,
    q_mode: str | None = None,
    overrides: Iterable[str] = (),
    dtype: str | None = None,
    revision: str | None = None,
) -> tuple[Source, Plan]:
    """Return the source and the plan of its conversion. Reads no weights. See `convert`."""
    choices = choose(recipe, q_bits, q_group_size, q_mode, overrides)
    if recipe == "bf16":  # its name says what is stored
        dtype = dtype or "bfloat16"
    if dtype is not None and dtype not in FLOATS:
        raise InputError(f"dtype {dtype!r} is unknown; there are {', '.join(FLOATS)}")
    source = open_source(hf_path, revision)
    config = ModelConfig.from_dict(source.config())
    if config.quantization is not None:
        raise InputError(f"{source.name} is quantized already; convert the original checkpoint")
    planned = plan(source.tensors(), recipe, choices, dtype)
    shapes = {tensor.name: tensor.shape for tensor in planned.tensors}
    stored = {tensor.name: tensor.pieces[0].name for tensor in planned.tensors if len(tensor.pieces) == 1}
    check_weights(config, shapes, stored, source.name)
    return source, planned


def _write_weights(
    source: Source, planned: Plan, workspace: Workspace, allow_nonfinite: bool
) -> dict[str, float]:
    """Write the missing shards. Return the relative RMS error of each quantized class."""
    divided = shards(sorted(planned.tensors, key=lambda tensor: tensor.pieces[0].position))
    by_name = {shard_name(i, len(divided)): tensors for i, tensors in enumerate(divided)}
    bytes_done = sum(tensor.bytes_in for name in workspace.finished for tensor in by_name[name])
    with (
        bar("Converting", total=planned.bytes_in, initial=bytes_done, unit="B", unit_scale=True) as progress,
        _streams() as take_stream,
        ThreadPoolExecutor(_workers(), initializer=take_stream) as pool,
    ):
        for name, tensors in by_name.items():
            finished = workspace.finished.get(name)
            shard = finished or _write_shard(workspace.path / name, source, tensors, pool, progress)
            _check_finite(shard["nonfinite"], allow_nonfinite)
            if finished is None:
                workspace.finish_shard(name, shard)
    _write_json(workspace.path / INDEX, index(divided))

    totals: dict[str, list[float]] = {}
    for shard in workspace.finished.values():
        for kind, (error, squared) in shard["errors"].items():
            total = totals.setdefault(kind, [0.0, 0.0])
            total[0] += error
            total[1] += squared
    return {kind: (error / squared) ** 0.5 if squared else 0.0 for kind, (error, squared) in totals.items()}


def _write_shard(
    path: Path, source: Source, tensors: Sequence[Planned], pool: ThreadPoolExecutor, progress: Any
) -> dict[str, Any]:
    """Write one shard. Return its record, a dict with these keys.

    pieces: byte ranges for `is_intact`.
    errors: sums of squared errors and of squared weights, by quantized class.
    nonfinite: number of NaN and infinite weights of each tensor that has any.
    """
    writer = ShardWriter(path, tensors)

    def work(rows: Rows) -> tuple[Rows, Converted]:
        converted = convert_rows(source, rows)
        for output, data in zip(rows.tensor.outputs, converted.data, strict=True):
            writer.write(output.name, rows.target * (data.nbytes // rows.count), data)
        converted.data.clear()  # the result waits for its turn without its bytes
        return rows, converted

    errors: dict[str, list[float]] = {}
    nonfinite: dict[str, int] = {}
    try:
        for rows, converted in pool.map(work, [rows for tensor in tensors for rows in chunks(tensor)]):
            tensor = rows.tensor
            if tensor.quantization is not None:
                sums = errors.setdefault(tensor.kind, [0.0, 0.0])
                sums[0] += converted.squared_error
                sums[1] += converted.squared
            if converted.nonfinite:
                nonfinite[tensor.name] = nonfinite.get(tensor.name, 0) + converted.nonfinite
            progress.update(rows.nbytes)
        return {"pieces": writer.finish(), "errors": errors, "nonfinite": nonfinite}
    except BaseException:
        pool.shutdown(cancel_futures=True)  # waits for running ones, which write to the open file
        raise
    finally:
        writer.close()


def _check_finite(nonfinite: dict[str, int], allow_nonfinite: bool) -> None:
    """Report each tensor with NaN or infinite weights. Raise `CheckpointError` unless they are allowed."""
    for name, count in nonfinite.items():
        finding = f"{name} holds {count} NaN or infinite weights"
        if not allow_nonfinite:
            raise CheckpointError(
                f"{finding}; download it again, choose a wider --dtype, or go on with --allow-nonfinite"
            )
        tqdm.write(f"mlx_dg: {finding}", file=sys.stderr)


def _workers() -> int:
    """Return how many threads quantize. MLX's CPU backend uses one core per stream. One keeps a GPU busy."""
    return 1 if on_gpu() else min(os.cpu_count() or 1, 8)


@contextmanager
def _streams() -> Iterator[Callable[[], None]]:
    """Yield a function that gives the thread that calls it its own MLX stream.

    MLX keeps the thread of a stream until the process ends, so later conversions use the same streams.
    """
    taken = []

    def take() -> None:
        try:
            taken.append(_FREE_STREAMS.pop())
        except IndexError:
            taken.append(mx.new_thread_unsafe_stream(mx.default_device()))
        mx.set_default_stream(taken[-1])

    try:
        yield take
    finally:
        _FREE_STREAMS.extend(taken)


def _fingerprint(source: Source, planned: Plan) -> str:
    """Return a digest of versions, source files (sizes, times) and plan, which identifies a conversion."""
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in source.paths()]
    subject = repr((metadata.version("mlx-diffusiongemma"), metadata.version("mlx"), stats, planned))
    return hashlib.sha256(subject.encode()).hexdigest()


def _check_copied(directory: Path) -> None:
    """Raise `CheckpointError` for a file to copy that is larger than files of its kind are."""
    for name in COPIED:
        file = directory / name
        most = 128_000_000 if name.startswith("tokenizer.") else 20_000_000
        if file.is_file() and file.stat().st_size > most:
            raise CheckpointError(f"{file}: larger than {most // 10**6} MB; copy it from the original again")


def _copy_files(directory: Path, out: Path) -> None:
    for name in COPIED:
        if (directory / name).is_file():
            check_inside(directory / name, directory)
            shutil.copyfile(directory / name, out / name)


def _config(source: Source, planned: Plan) -> dict[str, Any]:
    """Return the result's config.json: the source's, and the quantization under both of its names."""
    config = copy.deepcopy(source.config())
    for part in (config, config["text_config"]):
        part.update({key: planned.dtype for key in ("dtype", "torch_dtype") if planned.dtype and key in part})
    # Transformers saves the shape of full layers per layer. Other MLX programs know the original keys only.
    text = ModelConfig.from_dict(config).text
    shapes = {*zip(text.layer_types, text.head_dims, text.kv_heads, strict=True)}
    full = [(head_dim, kv_heads) for kind, head_dim, kv_heads in shapes if kind != SLIDING]
    if len(full) == 1:
        head_dim, kv_heads = full[0]
        config["text_config"] |= {"global_head_dim": head_dim, "num_global_key_value_heads": kv_heads}
    if not planned.choices:
        return config
    default = planned.choices.get("experts") or next(iter(planned.choices.values()))
    block: dict[str, Any] = default.to_dict()
    for tensor in planned.tensors:
        if tensor.quantization not in (None, default):
            block[tensor.path] = tensor.quantization.to_dict()
    return config | {"quantization": block, "quantization_config": block}


def _config_text(source: Source, planned: Plan) -> str:
    """Return the text of config.json. Raise `ConfigError` if it could not be read again."""
    try:
        text = json.dumps(_config(source, planned), indent=2) + "\n"
        json.loads(text)
    except RecursionError:
        raise ConfigError(f"{source.name}: config.json is nested too deeply; copy it again") from None
    if len(text) > MOST_BYTES:
        raise ConfigError(f"{source.name}: config.json would have {len(text)} bytes; copy it again")
    return text


def _public_name(hf_path: str | Path) -> str:
    """Return a hub id, or the name of a directory without its path, because the card may be published."""
    path = Path(hf_path).expanduser()
    name = path.resolve().name if path.is_dir() else str(hf_path)
    return name if name.isprintable() else "a local directory"


def _describe(directory: Path, described: dict[str, Any], source: Source, name: str) -> None:
    """Write the record of the conversion and the model card."""
    _write_json(directory / RECORD, described)
    card = model_card(described, described["source"], read_readme(source.tokenizer_files()), name)
    (directory / "README.md").write_text(card, encoding="utf-8")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
