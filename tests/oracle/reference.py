"""Runs Transformers, the reference, on forward cases and generations. Records or replays random draws.

The reference draws with `torch.randint` (initial canvas, noise) and `torch.multinomial` (samples). While it
generates, `randint` returns recorded or new integers, and `multinomial` the inverse CDF of one uniform number
per row: the smallest id whose cumulative float32 probability exceeds the number. This package's sampler does
the same.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache
from transformers.models.diffusion_gemma import generation_diffusion_gemma as generation

from .traces import SELF_CONDITIONING_TEMPERATURE

UNIFORM_MARGIN = 1e-5  # least distance of a recorded uniform number from every edge of its CDF


def load_reference(directory: Path | str, dtype: torch.dtype = torch.float32) -> Any:
    """Load the reference model. Raises `ValueError` if a tensor is missing, unexpected or of wrong shape."""
    model, info = DiffusionGemmaForBlockDiffusion.from_pretrained(
        directory, dtype=dtype, output_loading_info=True, attn_implementation="eager"
    )
    # A text-only checkpoint may leave out the vision tower, which Transformers then fills at random.
    missing = [key for key in info["missing_keys"] if "vision" not in key]
    if missing or info["unexpected_keys"] or info["mismatched_keys"]:
        raise ValueError(f"{directory}: Transformers cannot use this checkpoint: {info}")
    return model.eval()


@torch.no_grad()
def shaken(model: Any) -> Any:
    """Return a copy of the model, with each weight off by about one rounding. Its results differ from the
    model's about as much as those of two correct implementations may differ."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for parameter in other.parameters():
        parameter.mul_(1 + 6e-8 * torch.randn(parameter.shape, generator=generator))
    return other


class Draws:
    """Makes and records the reference's draws: new ones from `rng`, or those in `arrays` of a trace."""

    def __init__(self, rng: np.random.Generator | None = None, arrays: dict[str, np.ndarray] | None = None):
        self.rng = rng
        self.queue = None if arrays is None else _draw_order(arrays)
        self.integers: list[np.ndarray] = []
        self.uniforms: list[np.ndarray] = []
        self.margin = np.inf

    def randint(self, *, low: int, high: int, size: tuple[int, ...], device: Any = None) -> torch.Tensor:
        if self.queue is not None:
            values = self.queue["integers"].pop(0)
        else:
            assert self.rng is not None
            values = self.rng.integers(low, high, size=size)
        assert values.shape == tuple(size)
        self.integers.append(values.astype(np.int32))
        return torch.from_numpy(values.astype(np.int64))

    def multinomial(self, probs: torch.Tensor, num_samples: int) -> torch.Tensor:
        assert num_samples == 1
        cdf = np.cumsum(probs.numpy(), axis=-1, dtype=np.float32)
        if self.queue is not None:
            uniforms = self.queue["uniforms"].pop(0).reshape(-1)
        else:
            assert self.rng is not None
            uniforms = self.rng.random(len(cdf), dtype=np.float32)
            while (near := _edge_distance(cdf, uniforms) < 2 * UNIFORM_MARGIN).any():
                uniforms[near] = self.rng.random(int(near.sum()), dtype=np.float32)
        self.margin = min(self.margin, float(_edge_distance(cdf, uniforms).min()))
        self.uniforms.append(uniforms)
        return torch.from_numpy((cdf > uniforms[:, None]).argmax(axis=-1))[:, None]

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        patch = mock.patch.object
        with patch(torch, "multinomial", self.multinomial), patch(torch, "randint", self.randint):
            yield


def _edge_distance(cdf: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    return np.abs(cdf - uniforms[:, None]).min(axis=-1)


def _draw_order(arrays: dict[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Return a trace's draws in the reference's order: a block's first canvas, then noise for each step."""
    integers, start = [], 0
    for block, steps in enumerate(arrays["steps_per_block"].tolist()):
        integers += [arrays["initial"][block], *arrays["noise"][start : start + steps]]
        start += steps
    return {"integers": integers, "uniforms": list(arrays["uniforms"])}


@contextlib.contextmanager
def router_gaps(model: Any) -> Iterator[list[float]]:
    """Collect, for each call of a router, its least margin `router` (see `margins.REQUIRED`)."""
    gaps: list[float] = []
    top_k = model.config.text_config.top_k_experts

    def hook(_module: Any, _inputs: Any, outputs: Any) -> None:
        ranked = outputs[0].log().sort(dim=-1, descending=True).values
        gaps.append(float((ranked[:, top_k - 1] - ranked[:, top_k]).min()))

    routers = [module for name, module in model.named_modules() if name.endswith(".router")]
    handles = [router.register_forward_hook(hook) for router in routers]
    try:
        yield gaps
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run_forward(model: Any, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Return the logits [K, 2, B, C, V] of a forward case. `inputs` has prompt [B, L], canvases [K, 2, B, C]
    and committed [K, B, C]."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    # The argument has a new name since Transformers 5.24.
    renamed = "cache" in inspect.signature(type(model).forward).parameters
    held = {"cache" if renamed else "past_key_values": cache}
    fresh, out = inputs["prompt"], []
    for canvases, committed in zip(inputs["canvases"], inputs["committed"], strict=True):
        first, second = (torch.from_numpy(canvas.astype(np.int64)) for canvas in canvases)
        model.model.encoder(input_ids=torch.from_numpy(fresh.astype(np.int64)), **held)
        logits = model(decoder_input_ids=first, **held).logits
        processed = logits / SELF_CONDITIONING_TEMPERATURE
        again = model(decoder_input_ids=second, self_conditioning_logits=processed, **held)
        out.append(np.stack([logits.numpy(), again.logits.numpy()]))
        fresh = committed
    return np.stack(out)


class _Recorder:
    """Wraps the reference's sampler, denoising step and end of a canvas, and records their results."""

    def __init__(self, model: Any):
        self.model = model
        self.steps: list[dict[str, np.ndarray]] = []
        self.appended: list[np.ndarray] = []
        self.committed: list[np.ndarray] = []
        self.steps_per_block: list[int] = []

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        accept = generation.EntropyBoundSampler.accept_canvas
        step, finalize = self.model._denoising_step, self.model._finalize_canvas

        def accept_canvas(sampler: Any, current: Any, sampled: Any, logits: Any, cur_step: Any) -> Any:
            out = accept(sampler, current, sampled, logits, cur_step)
            record = {"processed": logits, "sampled": sampled, "argmax": logits.argmax(dim=-1)}
            record["entropies"] = torch.distributions.Categorical(logits=logits).entropy()
            record["accepted"] = sampler.accepted_token_mask
            self.steps.append({key: value.numpy().copy() for key, value in record.items()})
            return out

        def denoising_step(**kwargs: Any) -> Any:
            out = step(**kwargs)
            record = {"canvas": out[0], "draft": out[1], "done": out[3]}
            self.steps[-1] |= {key: value.numpy().copy() for key, value in record.items()}
            self.steps[-1]["step"] = np.array(kwargs["cur_step"])
            return out

        def finalize_canvas(input_ids: Any, canvas_length: int, **kwargs: Any) -> Any:
            self.committed.append(input_ids[:, -canvas_length:].numpy().copy())
            out = finalize(input_ids=input_ids, canvas_length=canvas_length, **kwargs)
            self.appended.append(out[0][:, -canvas_length:].numpy().copy())
            self.steps_per_block.append(len(self.steps) - sum(self.steps_per_block))
            return out

        with (
            mock.patch.object(generation.EntropyBoundSampler, "accept_canvas", accept_canvas),
            mock.patch.object(self.model, "_denoising_step", denoising_step),
            mock.patch.object(self.model, "_finalize_canvas", finalize_canvas),
        ):
            yield


@torch.no_grad()
def run_generation(
    model: Any, prompt: np.ndarray, settings: dict[str, Any], draws: Draws
) -> dict[str, np.ndarray]:
    """Run the reference's own `generate`. Return all arrays of a generation trace (see `export_traces`).

    settings: those of this package's GenerationConfig. `eos_token_id` and `pad_token_id` may be None.
    """
    recorder = _Recorder(model)
    settings = dict(settings)
    bound = generation.EntropyBoundSamplerConfig(entropy_bound=settings.pop("entropy_bound"))
    config = generation.DiffusionGemmaGenerationConfig(**settings, sampler_config=bound)
    with recorder.installed(), draws.installed(), mock.patch.object(model, "generation_config", config):
        out = model.generate(torch.from_numpy(prompt.astype(np.int64)), generation_config=config)
    arrays = {key: np.stack([step[key] for step in recorder.steps]) for key in recorder.steps[0]}
    total, batch = settings["max_denoising_steps"], len(prompt)
    arrays["temperature"] = settings["t_min"] + (settings["t_max"] - settings["t_min"]) * (
        arrays["step"] / total
    )
    arrays["steps_per_block"] = np.array(recorder.steps_per_block)
    arrays["committed"] = np.stack(recorder.committed)
    arrays["appended"] = np.stack(recorder.appended)
    arrays["sequences"] = out.sequences.numpy()
    arrays["uniforms"] = np.stack([u.reshape(batch, -1) for u in draws.uniforms])
    first = np.cumsum([0, *(n + 1 for n in recorder.steps_per_block[:-1])])
    arrays["initial"] = np.stack([draws.integers[i] for i in first])
    arrays["noise"] = np.stack([d for i, d in enumerate(draws.integers) if i not in first])
    return arrays
