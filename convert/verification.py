"""Runs the source and the result of a conversion on the same canvas and compares their logits.

Neither model is ever whole in memory: whenever a layer is done, all weights are replaced by ones that are not
read yet, so that one layer of one model is held at a time, at the price of reading each three times.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_diffusiongemma.checkpoint.loading import checked_model
from mlx_diffusiongemma.checkpoint.tied_weights import model_tensors
from mlx_diffusiongemma.checkpoint.weights import read_tensors, weight_files
from mlx_diffusiongemma.config.generation import GenerationConfig
from mlx_diffusiongemma.config.model import ModelConfig
from mlx_diffusiongemma.console.progress import bar
from mlx_diffusiongemma.engine.noise import NoiseKey, SeededDraws
from mlx_diffusiongemma.engine.rules import temperature_at
from mlx_diffusiongemma.model import DiffusionGemma
from mlx_diffusiongemma.ops import row_statistics
from mlx_diffusiongemma.text.tokenizer import Tokenizer

from .planning import plan

# An ordinary turn: logits of a prompt that the model would never see say little about its answers.
PROMPT = "<bos><|turn>user\nExplain in two sentences why the sky is blue.<turn|>\n<|turn>model\n"
_STEPS = 2  # the first without self-conditioning, the second with
_SEED = 0


def verify(source: Path, converted: Path) -> dict[str, float]:
    """Measure how far the logits of `converted` are from those of `source`, two checkpoint directories.

    Both see the same prompt and the same canvas of noise in two denoising steps, the second with the soft
    embedding of their own first. In float32 on MLX's CPU backend, else in each checkpoint's own dtype.

    rms_logit_error: root mean square difference of the softcapped logits, over both steps. argmax_agreement:
    share of the positions with the same likeliest token. entropy_difference: mean absolute difference of a
    position's entropy at the step's temperature, nats. positions: how many were compared, of both steps.
    Raises `CheckpointError` or `ConfigError` when one of the two cannot be loaded.
    """
    config = ModelConfig.load(source)
    prompt, canvas = probe(source, config)
    models = reference, result = _source_model(source, config), _converted_model(converted)
    settings = reference.settings
    sums = mx.zeros(3)
    passes = len(models) * (1 + _STEPS)  # one encodes the prompt
    with bar("Verifying", total=passes * config.text.num_hidden_layers, unit="layer") as progress:
        reference.when_done = result.when_done = progress.update
        for step in range(_STEPS):
            temperature = temperature_at(settings.max_denoising_steps - step, settings)
            expected, found = (model.step(prompt, canvas, temperature) for model in models)
            sums += _differences(expected, found, temperature)
            mx.eval(sums)  # so that these logits go before the next come
    squared, agreement, entropy = (np.array(sums) / _STEPS).tolist()
    return {
        "rms_logit_error": squared**0.5,
        "argmax_agreement": agreement,
        "entropy_difference": entropy,
        "positions": _STEPS * canvas.size,
    }


def probe(directory: Path, config: ModelConfig) -> tuple[mx.array, mx.array]:
    """Prompt ids `[1, L]` and the canvas that a generation with seed 0 starts from `[1, C]`."""
    vocab_size = config.text.vocab_size
    # MLX reads beyond the embedding table without a word.
    ids = [i for i in Tokenizer.load(directory).encode(PROMPT) if i < vocab_size]
    draws = SeededDraws([NoiseKey(_SEED, 0, 0, 0)], config.canvas_length, vocab_size)
    return mx.array([ids], dtype=mx.int32), draws.initial()


class _Streamed:
    """A model that reads the weights of a layer when it runs and forgets them when the layer is done.

    origins: parameter -> the tensors of `directory` that, one below the other, it consists of.
    """

    def __init__(self, model: DiffusionGemma, directory: Path, origins: dict[str, list[str]]):
        self.model, self.files, self.origins = model, weight_files(directory), origins
        self.settings = GenerationConfig.load(directory, model.config.eos_token_id)
        self.cache = model.make_cache()
        self.soft_embedding: mx.array | None = None
        self.when_done: Callable[[], object] = lambda: None  # a layer
        on_cpu = mx.default_device() == mx.Device(mx.cpu)
        self.dtype = mx.float32 if on_cpu else None  # see `load`
        self.shapes = {name: weight.shape for name, weight in _parameters(model).items()}
        for layer in model.decoder.layers:
            for method in ("encode", "encode_last", "decode"):
                setattr(layer, method, self._forgetful(getattr(layer, method)))
        self.forget()

    def step(self, prompt: mx.array, canvas: mx.array, temperature: float) -> mx.array:
        """The next step's fp32 softcapped logits `[1, C, V]`; the first encodes the prompt, too."""
        if self.cache.offset == 0:
            self.model.encode(prompt, self.cache)
        logits = self.model.decode(canvas, self.cache, self.soft_embedding)
        mx.eval(logits)
        self.forget()
        # Lazy: the last step's is never computed.
        self.soft_embedding = self.model.dense_soft_embedding(logits / temperature)
        return logits

    def forget(self) -> None:
        """Replaces every weight by one that is not read yet."""
        tensors = read_tensors(self.files)
        weights = [(name, self._weight(name, tensors)) for name in self.origins]
        self.model.load_weights(weights)
        mx.clear_cache()

    def _weight(self, name: str, tensors: dict[str, mx.array]) -> mx.array:
        pieces = [tensors[piece] for piece in self.origins[name]]
        weight = pieces[0] if len(pieces) == 1 else mx.concatenate(pieces).reshape(self.shapes[name])
        if self.dtype is not None and mx.issubdtype(weight.dtype, mx.floating):
            weight = weight.astype(self.dtype)
        return weight

    def _forgetful(self, method: Callable[..., mx.array | None]) -> Callable[..., mx.array | None]:
        def run(x: mx.array, *others: Any) -> mx.array | None:
            mx.eval(x)
            self.forget()  # the embedding, before the first layer
            out = method(x, *others)
            if out is not None:
                mx.eval(out)
            self.forget()
            self.when_done()
            return out

        return run


def _source_model(directory: Path, config: ModelConfig) -> _Streamed:
    """Return the unquantized checkpoint, whose experts may be a tensor each."""
    model = DiffusionGemma(config)
    parameters = _parameters(model)
    origins = {}
    for tensor in plan(model_tensors(directory), "bf16", {}).tensors:
        parameter = tensor.name if tensor.name in parameters else f"{tensor.path}.weight"
        if parameter in parameters:  # the vision tower is none
            origins[parameter] = [piece.name for piece in tensor.pieces]
    return _Streamed(model, directory, origins)


def _converted_model(directory: Path) -> _Streamed:
    model, tensors = checked_model(directory, ModelConfig.load(directory))
    return _Streamed(model, directory, {name: [info.name] for name, info in tensors.items()})


def _parameters(model: DiffusionGemma) -> dict[str, mx.array]:
    flat: Any = tree_flatten(model.parameters())
    return dict(flat)


def _differences(expected: mx.array, found: mx.array, temperature: float) -> mx.array:
    """Means over logits `[1, C, V]`: squared difference, same argmax, difference of entropies (nats)."""
    seen, other = (
        row_statistics(x[0], mx.zeros(x.shape[1]), temperature, softcap=None) for x in (expected, found)
    )
    return mx.stack(
        [
            mx.square(expected - found).mean(),
            (seen.argmax == other.argmax).mean(),
            mx.abs(seen.entropy - other.entropy).mean(),
        ]
    )
