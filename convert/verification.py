"""Runs the source and the result of a conversion on the same canvas and compares their logits.

One layer of one model is in memory at a time. This is why the layers are run here and not by
`DiffusionGemma.encode`, `decode` and the engine's loop, which need a whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_diffusiongemma.checkpoint.loading import checked_model
from mlx_diffusiongemma.checkpoint.tied_weights import parameter_name
from mlx_diffusiongemma.config.generation import GenerationConfig
from mlx_diffusiongemma.config.model import ModelConfig
from mlx_diffusiongemma.console.progress import bar
from mlx_diffusiongemma.engine.noise import NoiseKey, SeededDraws
from mlx_diffusiongemma.engine.samplers import LinearSchedule
from mlx_diffusiongemma.model import DiffusionGemma
from mlx_diffusiongemma.model.attention import Chunk
from mlx_diffusiongemma.model.layers import DecoderLayer
from mlx_diffusiongemma.ops import on_gpu, processed_logits, row_statistics
from mlx_diffusiongemma.text.tokenizer import Tokenizer

from .planning import Planned, plan
from .safetensors_source import SafetensorsSource
from .source import Source

# An ordinary turn. Logits of a prompt that the model never sees in use say little about its answers.
PROMPT = "<bos><|turn>user\nExplain in two sentences why the sky is blue.<turn|>\n<|turn>model\n"
_STEPS = 2  # the first without self-conditioning, the second with it
_SEED = 0
_EMBEDDING, _LAYERS = "model.decoder.embed_tokens.", "model.decoder.layers."
_ENCODER_LAYERS = "model.encoder.language_model.layers."


def verify(source: Source, converted: Path) -> dict[str, float]:
    """Measure how far the logits of the model in directory `converted` are from those of `source`.

    Both models run two denoising steps on the same prompt and the same canvas of noise. The second step is
    self-conditioned on the model's own logits of the first. The models run in float32 on MLX's CPU backend,
    otherwise in each checkpoint's own dtype.

    Returns:
        rms_logit_error: root mean square difference of the softcapped logits, over both steps.
        argmax_agreement: share of the positions with the same most likely token.
        entropy_difference: mean absolute difference of a position's entropy, in nats, at the step's
            temperature.
        positions: number of positions that were compared, over both steps.

    Raises:
        CheckpointError, ConfigError: one of the models cannot be loaded.
    """
    config = ModelConfig.from_dict(source.config())
    settings = GenerationConfig.load(source.tokenizer_files(), config.eos_token_id)
    prompt, canvas = probe(source.tokenizer_files(), config)
    schedule, most = LinearSchedule(settings.t_min, settings.t_max), settings.max_denoising_steps
    temperatures = [schedule(most - step, most) for step in range(_STEPS)]
    passes = 2 * (1 + _STEPS)  # of two models; one pass encodes the prompt
    with bar("Verifying", total=passes * config.text.num_hidden_layers, unit="layer") as progress:
        models = [
            _StreamedModel(DiffusionGemma(config), source, plan(source.tensors(), "bf16", {}).tensors),
            _converted_model(converted),
        ]
        steps = (model.logits(prompt, canvas, temperatures, progress.update) for model in models)
        sums = mx.zeros(3)
        for temperature, expected, actual in zip(temperatures, *steps, strict=True):
            sums += _differences(expected, actual, temperature)
            mx.eval(sums)
    squared, agreement, entropy = (np.array(sums) / _STEPS).tolist()
    return {
        "rms_logit_error": squared**0.5,
        "argmax_agreement": agreement,
        "entropy_difference": entropy,
        "positions": _STEPS * canvas.size,
    }


def probe(directory: Path, config: ModelConfig) -> tuple[mx.array, mx.array]:
    """Return prompt ids `[1, L]`, and the canvas `[1, C]` that a generation with seed 0 starts from.

    directory: the tokenizer's directory.
    """
    vocab_size = config.text.vocab_size
    # MLX does not check ids, and would read beyond the embedding table.
    ids = [i for i in Tokenizer.load(directory).encode(PROMPT) if i < vocab_size]
    draws = SeededDraws([NoiseKey(_SEED, 0, 0, 0)], config.canvas_length, vocab_size)
    return mx.array([ids], dtype=mx.int32), draws.initial()


class _StreamedModel:
    """A model that is only partly in memory.

    The norms and the self-conditioning stay in memory. The layers and the embedding are loaded when they are
    needed, one at a time.

    weights: the weights that `source` stores. Weights that are not parameters of the model are ignored.
    """

    def __init__(self, model: DiffusionGemma, source: Source, weights: Iterable[Planned]):
        self.model, self.source = model, source
        flat: Any = tree_flatten(model.parameters())
        self.unread: dict[str, mx.array] = dict(flat)  # lazy, never evaluated
        named = {parameter_name(weight.name): weight for weight in weights}
        self.weights = {name: named[name] for name in self.unread}
        self.activations = None if on_gpu() else mx.float32  # see `load`
        self._load([name for name in self.weights if not name.startswith((_EMBEDDING, _LAYERS))])

    def logits(
        self,
        prompt: mx.array,
        canvas: mx.array,
        temperatures: Sequence[float],
        after_layer: Callable[[], object],
    ) -> Iterator[mx.array]:
        """Yield the fp32 softcapped logits `[1, C, V]` of each denoising step."""
        model, softcap = self.model, self.model.config.text.final_logit_softcapping
        cache = model.make_cache()
        cache.reserve(1, prompt.shape[1], model.config.canvas_length)
        with self._loaded(_EMBEDDING):
            x = model.embed(prompt)
            mx.eval(x)
        chunk = Chunk(cache)
        for i, layer in self._layers():
            x = layer.encode(x, chunk, cache.layers[i], self._weight(f"{_ENCODER_LAYERS}{i}.layer_scalar"))
            mx.eval(x, cache.layers[i].keys, cache.layers[i].values)
            after_layer()
        cache.offset += prompt.shape[1]

        processed = None  # logits of the step before
        for temperature in temperatures:
            with self._loaded(_EMBEDDING):
                if processed is None:
                    soft = model.zero_self_conditioning(canvas.shape)
                else:
                    soft = model.dense_soft_embedding(processed)
                x = model.embed_canvas(canvas, soft)
                mx.eval(x)
            with cache.canvas(*canvas.shape) as view:
                for i, layer in self._layers():
                    x = layer.decode(x, view, i)
                    mx.eval(x, view.buffers)
                    after_layer()
            with self._loaded(_EMBEDDING):
                raw = model.logits(model.decoder.norm(x))
                logits = processed_logits(raw, 1.0, softcap)
                mx.eval(logits)
            yield logits
            processed = logits / temperature

    def _layers(self) -> Iterator[tuple[int, DecoderLayer]]:
        """Yield each layer, with its weights in memory until the next one is asked for."""
        for i, layer in enumerate(self.model.decoder.layers):
            with self._loaded(f"{_LAYERS}{i}."):
                yield i, layer

    @contextmanager
    def _loaded(self, prefix: str) -> Iterator[None]:
        names = [name for name in self.weights if name.startswith(prefix)]
        self._load(names)
        try:
            yield
        finally:
            self.model.load_weights([(name, self.unread[name]) for name in names], strict=False)
            mx.clear_cache()

    def _load(self, names: Sequence[str]) -> None:
        self.model.load_weights([(name, self._weight(name)) for name in names], strict=False)

    def _weight(self, name: str) -> mx.array:
        stored = self.weights[name]
        pieces = [self.source.read(piece.name, slice(0, piece.rows)) for piece in stored.pieces]
        weight = mx.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        if self.activations is not None and mx.issubdtype(weight.dtype, mx.floating):
            weight = weight.astype(self.activations)
        return weight.reshape(stored.shape)


def _converted_model(directory: Path) -> _StreamedModel:
    model, _ = checked_model(directory, ModelConfig.load(directory))
    source = SafetensorsSource(directory)
    weights = [
        Planned(name, "", (tensor,), tensor.shape, tensor.dtype, None)
        for name, tensor in source.tensors().items()
    ]
    return _StreamedModel(model, source, weights)


def _differences(expected: mx.array, actual: mx.array, temperature: float) -> mx.array:
    """Return means over logits `[1, C, V]`: squared difference, equal argmax, entropy difference (nats)."""
    before, after = (
        row_statistics(x[0], mx.zeros(x.shape[1]), temperature, softcap=None) for x in (expected, actual)
    )
    agreement = (before.argmax == after.argmax).mean()
    entropy = mx.abs(before.entropy - after.entropy).mean()
    return mx.stack([mx.square(expected - actual).mean(), agreement, entropy])
