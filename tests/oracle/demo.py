"""The bundled demo checkpoint as a source of traces: its directory, its settings and the traced prompts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from mlx_diffusiongemma.text.tokenizer import Tokenizer

from .traces import GenerationCase

DIRECTORY = Path(__file__).resolve().parents[2] / "mlx_diffusiongemma" / "demo" / "checkpoint"

# Label, user message, thinking. The demo was trained for the first five, and their canvases converge at once.
# The last two are too difficult for it. They take more steps, with more accepted and renoised tokens.
PROMPTS = (
    ("capital", "What is the capital of Norway?", False),
    ("addition", "What is 345 + 78?", True),
    ("json", "JSON for Paris and Rome", False),
    ("counting", "Count to 99.", True),
    ("backwards", 'Spell "planet" backwards.', True),
    ("unworked", "What is 999 + 888?", False),
    ("mixed", "Tell me about the sea, 12 + 7 and Rome in JSON", True),
)


def fingerprint() -> str:
    """Return the SHA-256 of the weight files. A trace with another fingerprint is out of date."""
    digest = hashlib.sha256()
    for path in sorted(DIRECTORY.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def settings() -> dict[str, Any]:
    """Return generation_config.json as a flat dict for the reference. `generate` has no pad_token_id."""
    stored = json.loads((DIRECTORY / "generation_config.json").read_text())
    out = {key: stored[key] for key in ("max_denoising_steps", "t_min", "t_max", "stability_threshold")}
    out["confidence_threshold"] = stored["confidence_threshold"]
    out["entropy_bound"] = stored["sampler_config"]["entropy_bound"]
    out["eos_token_id"] = stored["eos_token_id"]
    out["pad_token_id"] = stored["pad_token_id"]
    out["max_new_tokens"] = 4 * json.loads((DIRECTORY / "config.json").read_text())["canvas_length"]
    return out


def prompt_ids(text: str, thinking: bool) -> np.ndarray:
    """Return the token ids [1, L] of a user message, as `generate` encodes it."""
    return np.array([Tokenizer.load(DIRECTORY).prompt_ids(text, thinking=thinking)])


def cases() -> list[tuple[GenerationCase, np.ndarray]]:
    """Return the traced prompts of the demo model, each as a case and token ids [1, L]."""
    prompts = [(label, prompt_ids(text, thinking)) for label, text, thinking in PROMPTS]
    return [(GenerationCase("demo", label, ids.shape[1], settings=settings()), ids) for label, ids in prompts]
