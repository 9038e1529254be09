"""Loads a model and a tokenizer from a directory or a hub id.

Hugging Face checkpoints and MLX conversions are read the same way: a module is quantized if and only if its
`.scales` exist. No weights are read before names and shapes of all tensors have been checked.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..config.generation import GenerationConfig
from ..config.model import ModelConfig
from ..console.messages import one_line
from ..errors import CheckpointError, InputError
from ..habits import LOAD_KEYWORDS, led_on
from ..model import DiffusionGemma
from ..model.attention import ImageAttention
from ..ops import on_gpu
from ..text.tokenizer import Tokenizer
from . import foreign_files, hub
from .adapters import check_adapters, load_adapters
from .quantization import module_quantization
from .tied_weights import compare_copies, model_tensors, parameter_name
from .vision import PREFIXES, SoftTokens
from .weights import TensorInfo, has_weights, read_tensors, weight_files

logger = logging.getLogger(__name__)

_EXPERT = re.compile(r"\.experts\.\d+\.")
# Processors and chat formats add a few tokens for which a model has no embedding, such as <|video|>.
# Vocabularies of other models differ by thousands.
_MOST_EXTRA_TOKENS = 64
_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


@led_on(LOAD_KEYWORDS)
def load(
    path_or_hf_repo: str | Path,
    dtype: mx.Dtype | str | None = None,
    lazy: bool = False,
    adapter_path: str | Path | None = None,
    image_attention: ImageAttention = "sliding",
) -> tuple[DiffusionGemma, Tokenizer]:
    """Load `(model, tokenizer)` from "demo" (bundled), a directory, or a Hugging Face hub id.

    Args:
        path_or_hf_repo: a Hugging Face checkpoint or an MLX conversion.
        dtype: dtype of activations and unquantized weights: float32, float16 or bfloat16, as MLX's dtype or
            by name. None keeps the checkpoint's dtype. On MLX's CPU backend, None means float32, because
            bfloat16 is ten times slower there.
        lazy: do not read a weight until it is used. It must then be used in the thread that called `load`.
        adapter_path: a directory of adapters that mlx-lm's fine-tuning wrote for this model.
        image_attention: layers in which the positions of an image see each other in both directions.
            "sliding": sliding layers, inside the window, as in Gemma 4. "everywhere": all layers, as in
            `generate` of Transformers' DiffusionGemma. "causal": none.

    Raises:
        InputError: the checkpoint cannot be used. Its subclass, such as `ConfigError`, says which part.
    """
    dtype = _dtype(dtype)
    if image_attention not in get_args(ImageAttention):
        choices = ", ".join(get_args(ImageAttention))
        raise InputError(f"image_attention: found {image_attention!r}; give one of {choices}")
    directory = resolve(path_or_hf_repo)
    adapters = None if adapter_path is None else Path(adapter_path).expanduser()
    if adapters is not None:
        check_adapters(adapters)
    # Quick checks come first: weights take minutes.
    config = ModelConfig.load(directory)
    if not on_gpu() and config.quantization is None and dtype is not None and dtype != mx.float32:
        raise InputError(
            f"dtype {dtype}: MLX's CPU backend multiplies unquantized experts in float32 only; "
            "leave dtype out"
        )
    tokenizer = Tokenizer.load(directory)
    _check_tokenizer(tokenizer, config, directory)
    model = _loaded(directory, config, dtype, lazy, adapters)
    model.image_attention = image_attention
    return model, tokenizer


def _dtype(dtype: mx.Dtype | str | None) -> mx.Dtype | None:
    if dtype is None:
        return None
    chosen = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if not isinstance(chosen, mx.Dtype) or chosen not in _DTYPES.values():
        raise InputError(f"dtype: found {dtype!r}; give one of {', '.join(_DTYPES)}, or leave it out")
    return chosen


def _check_tokenizer(tokenizer: Tokenizer, config: ModelConfig, directory: Path) -> None:
    tokens, embeddings = tokenizer.vocab_size, config.text.vocab_size
    if tokens > embeddings + _MOST_EXTRA_TOKENS:
        raise CheckpointError(
            f"{directory}: the tokenizer has {tokens} tokens, the model {embeddings}; "
            "they do not belong together"
        )
    if tokens > embeddings:
        logger.warning(
            "%s: the tokenizer has %d tokens, the model embeddings for %d; prompts with token ids from %d on "
            "are refused",
            one_line(directory),
            tokens,
            embeddings,
            embeddings,
        )
        tokenizer.limit(embeddings)


def resolve(path_or_hf_repo: str | Path, revision: str | None = None) -> Path:
    """Return the local directory of "demo", a path or a hub id. Download files that are missing.

    revision: a branch, tag or commit of a hub id. Any other model with a revision is an `InputError`.
    """
    local = _local_directory(path_or_hf_repo, revision)
    return local if local is not None else hub.download(str(path_or_hf_repo), revision)


@contextmanager
def preview(path_or_hf_repo: str | Path, revision: str | None = None) -> Iterator[Path]:
    """Yield a directory like that of `resolve`, for callers that read no weights.

    If a hub id is not in the cache, only the headers of its weights are fetched.
    """
    local = _local_directory(path_or_hf_repo, revision)
    if local is not None:
        yield local
        return
    with hub.preview(str(path_or_hf_repo), revision) as directory:
        yield directory


def _local_directory(path_or_hf_repo: str | Path, revision: str | None) -> Path | None:
    """Return the directory if it exists, None if the name can be a hub id. Raise `InputError` otherwise."""
    given: object = path_or_hf_repo
    if not isinstance(given, str | os.PathLike):
        raise InputError(f"the model is {type(given).__name__}; give a model directory, a hub id, or 'demo'")
    if str(path_or_hf_repo) == "demo":
        _refuse_revision("demo", revision)
        return Path(str(resources.files("mlx_diffusiongemma"))) / "demo" / "checkpoint"
    if not str(path_or_hf_repo):
        raise InputError("the model's name is empty; give a model directory, a hub id, or 'demo'")
    try:
        path = Path(path_or_hf_repo).expanduser()
        is_directory, exists = path.is_dir(), path.exists()
    # No permission or too long a name; no such user; a NUL character.
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{str(path_or_hf_repo)[:80]!r} cannot be a model directory ({error})") from None
    if is_directory:
        _refuse_revision(path, revision)
        described = None if has_weights(path) else foreign_files.describe_directory(path)
        if described is not None:
            raise CheckpointError(f"{path} holds {described}")
        return path
    if exists:
        described = foreign_files.describe_file(path)
        if described is not None:
            raise CheckpointError(f"{path} holds {described}")
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
    """Build the model of a checkpoint directory with evaluated weights. See `load` for `dtype` and errors."""
    return _loaded(Path(directory), ModelConfig.load(directory), dtype)


def _loaded(
    directory: Path,
    config: ModelConfig,
    dtype: mx.Dtype | None,
    lazy: bool = False,
    adapters: Path | None = None,
) -> DiffusionGemma:
    model, tensors = checked_model(directory, config)
    compare_copies(directory)
    if dtype is None and not on_gpu():
        dtype = mx.float32
    stored = read_tensors(weight_files(directory))
    model.load_weights([(name, _cast(stored[info.name], dtype)) for name, info in tensors.items()])
    if adapters is not None:
        load_adapters(model, adapters)
    model.eval()
    if not lazy:
        mx.eval(model.parameters())
    return model


def checked_model(directory: Path, config: ModelConfig) -> tuple[DiffusionGemma, dict[str, TensorInfo]]:
    """Return a checkpoint's model without reading weights, and the `TensorInfo` of each parameter.

    Raises:
        ConfigError, CheckpointError: names, shapes or dtypes of tensors do not fit config.json.
    """
    model = DiffusionGemma(config, GenerationConfig.load(directory, config.eos_token_id))
    stored_tensors = model_tensors(directory)
    tensors = {
        parameter_name(name): info for name, info in stored_tensors.items() if not name.startswith(PREFIXES)
    }
    if len(tensors) < len(stored_tensors):
        model.vision = SoftTokens(directory, config)
    for name, info in tensors.items():
        # Packed weights and the scales of mx formats are unsigned. Nothing else may be an integer.
        packed = f"{name.rpartition('.')[0]}.scales" in tensors
        if not packed and info.dtype not in ("F32", "F16", "BF16"):
            raise CheckpointError(
                f"{info.file}: {info.name} is {info.dtype}, not floating point; it cannot be a weight"
            )
    _quantize_like(model, tensors, config.quantization or {})
    shapes = {name: info.shape for name, info in tensors.items()}
    stored = {name: info.name for name, info in tensors.items()}
    _check_names_and_shapes(model, shapes, stored, directory)
    return model, tensors


def check_weights(
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, str],
    directory: Path | str,
) -> None:
    """Raise `CheckpointError` unless an unquantized checkpoint has the tensors that its config requires.

    shapes: shape of each tensor, by DiffusionGemma's own name.
    stored: name of each tensor in the files, for messages, by DiffusionGemma's own name.
    """
    loaded = {parameter_name(name): shape for name, shape in shapes.items() if not name.startswith(PREFIXES)}
    _check_names_and_shapes(DiffusionGemma(config), loaded, stored, directory)


def _quantize_like(model: nn.Module, tensors: Mapping[str, TensorInfo], block: Mapping[str, Any]) -> None:
    """Quantize each module whose `.scales` are in `tensors`. block: config.json's quantization."""

    def parameters(path: str, module: nn.Module) -> bool | dict[str, Any]:
        scales = tensors.get(f"{path}.scales")
        if scales is None:
            return False
        if not hasattr(module, "to_quantized"):
            raise CheckpointError(
                f"{path} is quantized in the checkpoint, but only projections and embeddings can be"
            )
        bits, group_size, mode = module_quantization(path, scales, block)
        return {"group_size": group_size, "bits": bits, "mode": mode}

    try:
        nn.quantize(model, class_predicate=parameters)
    except ValueError as error:
        raise CheckpointError(
            f"config.json: the quantization block does not fit the model ({error})"
        ) from None


def _check_names_and_shapes(
    model: nn.Module, shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, str], directory: Path | str
) -> None:
    """Raise `CheckpointError` unless `shapes` are those of the model. It names at most ten tensors."""
    parameters: Any = tree_flatten(model.parameters())
    expected = {name: tuple(array.shape) for name, array in parameters}
    missing = sorted(expected.keys() - shapes.keys())
    extra = sorted(stored.get(name, name) for name in shapes.keys() - expected.keys())
    if any(_EXPERT.search(name) for name in extra):
        raise CheckpointError(
            f"{directory}: each expert is a tensor of its own; stack them with `mlx_dg convert`"
        )
    if missing and extra:
        raise CheckpointError(
            f"{directory}: {_some(missing, most=3)} missing, {_some(extra, most=3)} unknown to this model; "
            "config.json does not fit the weights, or these have other names than save_pretrained gives them"
        )
    if missing:
        raise CheckpointError(
            f"{directory}: {_some(missing)} missing; the download is incomplete or config.json differs"
        )
    if extra:
        raise CheckpointError(
            f"{directory}: {_some(extra)} unknown to this model; config.json does not fit the weights"
        )
    wrong = [
        f"{stored.get(name, name)} is {list(shapes[name])}, not {list(expected[name])}"
        for name in expected
        if shapes[name] != expected[name]
    ]
    if wrong:
        raise CheckpointError(
            f"{directory}: wrong shapes, config.json does not fit the weights: {_some(wrong, '; ')}"
        )


def _some(names: list[str], separator: str = ", ", most: int = 10) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + rest


def _cast(tensor: mx.array, dtype: mx.Dtype | None) -> mx.array:
    return tensor.astype(dtype) if dtype is not None and mx.issubdtype(tensor.dtype, mx.floating) else tensor
