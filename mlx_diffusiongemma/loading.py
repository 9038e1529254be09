"""From a directory or a hub id to a model and a tokenizer.

Reads Hugging Face checkpoints and MLX conversions alike: a module is quantized if and only if its
`.scales` are there. Nothing is built before names and shapes of all tensors have been checked.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from . import hub
from .config import ModelConfig
from .errors import CheckpointError, ConfigError, InputError
from .generation_config import GenerationConfig
from .model import DiffusionGemma
from .tokenizer import Tokenizer
from .weights import read_tensors, tensor_infos, weight_files

# mode -> (bits, group sizes) that MLX knows
QUANTIZATIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((1, 2, 3, 4, 5, 6, 8), (32, 64, 128)),
    "mxfp4": ((4,), (32,)),
    "mxfp8": ((8,), (32,)),
    "nvfp4": ((4,), (16,)),
}
# Weights that the text path does not run; conversions keep them.
_NOT_LOADED = ("model.encoder.vision_tower.", "model.encoder.embed_vision.")


def load(path_or_hf_repo: str | Path, dtype: mx.Dtype | None = None) -> tuple[DiffusionGemma, Tokenizer]:
    """Loads `(model, tokenizer)` from "demo" (bundled), a directory, or a Hugging Face hub id.

    dtype: of the activations and unquantized weights. None keeps the checkpoint's, except on MLX's CPU
    backend, where bfloat16 is ten times slower than float32: there it is float32.
    Raises `InputError` (a subclass names what is wrong) when the checkpoint cannot be used.
    """
    directory = resolve(path_or_hf_repo)
    # What is quick to check comes first: weights take minutes.
    config = ModelConfig.load(directory)
    if _on_cpu() and config.quantization is None and dtype is not None and dtype != mx.float32:
        raise InputError(
            f"dtype {dtype}: MLX's CPU backend multiplies unquantized experts in float32 only; "
            "leave dtype out"
        )
    tokenizer = Tokenizer.load(directory)
    if tokenizer.vocab_size > config.text.vocab_size:
        raise CheckpointError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} tokens, the model "
            f"{config.text.vocab_size}; they do not belong together"
        )
    return load_model(directory, dtype), tokenizer


def resolve(path_or_hf_repo: str | Path, revision: str | None = None) -> Path:
    """The local directory of "demo", a path or a hub id; downloads what is not there yet.

    revision: a branch, tag or commit of the hub; with anything that is here already it is refused.
    """
    local = _local_directory(path_or_hf_repo, revision)
    return local if local is not None else hub.download(str(path_or_hf_repo), revision)


@contextmanager
def preview(path_or_hf_repo: str | Path, revision: str | None = None) -> Iterator[Path]:
    """Like `resolve`, for what needs no weights: of a hub id only their headers are fetched."""
    local = _local_directory(path_or_hf_repo, revision)
    if local is not None:
        yield local
        return
    with hub.preview(str(path_or_hf_repo), revision) as directory:
        yield directory


def _local_directory(path_or_hf_repo: str | Path, revision: str | None) -> Path | None:
    """The directory if it is here, None if the name can be a hub id."""
    if str(path_or_hf_repo) == "demo":
        _refuse_revision("demo", revision)
        return Path(str(resources.files("mlx_diffusiongemma"))) / "demo" / "checkpoint"
    if not str(path_or_hf_repo):
        raise InputError("the model's name is empty; give a model directory, a hub id, or 'demo'")
    try:
        path = Path(path_or_hf_repo).expanduser()
        is_directory, exists = path.is_dir(), path.exists()
    # No permission or too long a name, no such user, a NUL.
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{str(path_or_hf_repo)[:80]!r} cannot be a model directory ({error})") from None
    if is_directory:
        _refuse_revision(path, revision)
        return path
    if exists:
        raise InputError(
            f"{path} is a file; give the model's directory, a hub id such as owner/name, or 'demo'"
        )
    if len(path.parts) != 2 or path.is_absolute() or str(path_or_hf_repo).startswith((".", "~")):
        raise InputError(
            f"{path}: no such directory; give a model directory, a hub id such as owner/name, or 'demo'"
        )
    return None


def _refuse_revision(model: str | Path, revision: str | None) -> None:
    if revision is not None:
        raise InputError(f"{model} is a directory here, so it has no revision {revision!r}; leave it out")


def load_model(directory: str | Path, dtype: mx.Dtype | None = None) -> DiffusionGemma:
    """Builds a checkpoint directory's model with evaluated weights; see `load` for `dtype` and errors."""
    directory = Path(directory)
    # A model that has compiled its step refers to itself: only the collector frees what it held.
    gc.collect()
    model, names = checked_model(directory)
    if dtype is None and _on_cpu():
        dtype = mx.float32
    weights = {_module_name(name): tensor for name, tensor in read_tensors(weight_files(directory)).items()}
    model.load_weights([(name, _cast(weights[name], dtype)) for name in names])
    model.eval()
    mx.eval(model.parameters())
    return model


def checked_model(directory: Path) -> tuple[DiffusionGemma, list[str]]:
    """A checkpoint's model, its weights not read yet, and the names of those it wants.

    Raises `ConfigError` or `CheckpointError` unless names and shapes are what config.json calls for.
    """
    config = ModelConfig.load(directory)
    model = DiffusionGemma(config, GenerationConfig.load(directory, config.eos_token_id))
    infos = {
        _module_name(name): info
        for name, info in tensor_infos(directory).items()
        if not name.startswith(_NOT_LOADED)
    }
    for name, info in infos.items():
        # Packed weights and the scales of mx formats are unsigned; nothing else may be an integer.
        packed = f"{name.rpartition('.')[0]}.scales" in infos
        if not packed and info.dtype not in ("F32", "F16", "BF16"):
            raise CheckpointError(
                f"{info.file}: {name} is {info.dtype}, not floating point; it cannot be a weight"
            )
    shapes = {name: info.shape for name, info in infos.items()}
    _quantize_like(model, shapes, config.quantization or {})
    _check_names_and_shapes(model, shapes, directory)
    return model, list(shapes)


def check_weights(config: ModelConfig, shapes: dict[str, tuple[int, ...]], directory: Path) -> None:
    """`CheckpointError` unless an unquantized checkpoint's tensors are what its config calls for."""
    named = {_module_name(name): shape for name, shape in shapes.items() if not name.startswith(_NOT_LOADED)}
    _check_names_and_shapes(DiffusionGemma(config), named, directory)


def _on_cpu() -> bool:
    return bool(mx.default_device() == mx.Device(mx.cpu))


def _module_name(name: str) -> str:
    """Hugging Face stores expert stacks without the `.weight` that a module's parameter has."""
    return f"{name}.weight" if name.endswith((".experts.gate_up_proj", ".experts.down_proj")) else name


def _quantize_like(
    model: nn.Module, shapes: dict[str, tuple[int, ...]], quantization: dict[str, Any]
) -> None:
    """Makes quantized modules of those that have `.scales` in the checkpoint, as `quantization` says."""

    def parameters(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if f"{path}.scales" not in shapes:
            return False
        if not hasattr(module, "to_quantized"):
            raise CheckpointError(
                f"{path} is quantized in the checkpoint, but only projections and embeddings can be"
            )
        chosen = quantization.get(path, quantization)
        if not isinstance(chosen, dict):
            raise ConfigError(f"config.json: quantization of {path} must be an object, found {chosen!r}")
        # An override without `mode` means affine, whatever the rest of the model uses.
        mode, bits, group_size = chosen.get("mode", "affine"), chosen.get("bits"), chosen.get("group_size")
        known_bits, known_groups = QUANTIZATIONS.get(str(mode), ((), ()))
        if bits not in known_bits or group_size not in known_groups:
            raise ConfigError(
                f"config.json: quantization of {path} is {bits!r} bits in groups of {group_size!r}, "
                f"mode {mode!r}; MLX has no such quantization"
            )
        return {"group_size": group_size, "bits": bits, "mode": mode}

    try:
        nn.quantize(model, class_predicate=parameters)
    except ValueError as error:
        raise CheckpointError(
            f"config.json: the quantization block does not fit the model ({error})"
        ) from None


def _check_names_and_shapes(model: nn.Module, shapes: dict[str, tuple[int, ...]], directory: Path) -> None:
    """Compares the checkpoint with what the config calls for; `CheckpointError` names at most ten tensors."""
    parameters: Any = tree_flatten(model.parameters())
    expected = {name: tuple(array.shape) for name, array in parameters}
    missing = sorted(expected.keys() - shapes.keys())
    if missing:
        raise CheckpointError(
            f"{directory}: {_some(missing)} missing; the download is incomplete or config.json differs"
        )
    extra = sorted(shapes.keys() - expected.keys())
    if extra:
        raise CheckpointError(
            f"{directory}: {_some(extra)} unknown to this model; config.json does not fit the weights"
        )
    wrong = [
        f"{name} is {list(shapes[name])}, not {list(expected[name])}"
        for name in expected
        if shapes[name] != expected[name]
    ]
    if wrong:
        raise CheckpointError(
            f"{directory}: wrong shapes, config.json does not fit the weights: {_some(wrong, '; ')}"
        )


def _some(names: list[str], separator: str = ", ") -> str:
    rest = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return separator.join(names[:10]) + rest


def _cast(tensor: mx.array, dtype: mx.Dtype | None) -> mx.array:
    return tensor.astype(dtype) if dtype is not None and mx.issubdtype(tensor.dtype, mx.floating) else tensor
