"""Live comparison with Transformers: loading, and logits of forward passes in fp32 and bf16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch  # the parity tests fail without torch and transformers; they never skip
import transformers  # noqa: F401
from oracle import demo, margins, replay, tiny, traces
from oracle.reference import load_reference, router_gaps, run_forward
from oracle.replay import difference

from mlx_diffusiongemma.checkpoint.loading import load_model
from mlx_diffusiongemma.config.generation import GenerationConfig

TOLERANCE = 1e-4
# Of the reference against itself: other versions and processors sum in another order.
STALE = 5e-5


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parity")


@pytest.fixture(scope="module")
def references(scratch: Path) -> dict[str, Any]:
    return {
        name: load_reference(tiny.build(spec, scratch / f"{name}-ref")) for name, spec in tiny.SPECS.items()
    }


@pytest.mark.parametrize("name", traces.names("forward"))
def test_committed_traces_are_fresh(references: dict[str, Any], name: str) -> None:
    trace = traces.load(name)
    live = run_forward(references[trace.meta["case"]["model"]], trace.arrays)
    assert difference(live, trace["logits"]) <= STALE


@pytest.mark.parametrize("name", sorted(tiny.SPECS))
def test_both_read_both_dialects(references: dict[str, Any], scratch: Path, name: str) -> None:
    """Transformers reads the same two directories, and to it, too, they are the same model."""
    trace = traces.load({"rough": "forward-rough-b3-l40", "sharp": "forward-sharp-b1-l37"}[name])
    for dialect in tiny.DIALECTS:
        directory = tiny.build(tiny.SPECS[name], scratch / f"{name}-{dialect}", dialect)
        theirs = run_forward(load_reference(directory), trace.arrays)
        assert difference(theirs, run_forward(references[name], trace.arrays)) == 0.0
        ours = replay.forward_logits(load_model(directory, dtype=mx.float32), trace)
        assert difference(ours, theirs) <= TOLERANCE


def test_a_directory_saved_by_transformers(references: dict[str, Any], scratch: Path) -> None:
    """Files of `save_pretrained`: its own dialect, and no key whose value is the class's default."""
    references["rough"].save_pretrained(scratch / "saved")
    trace = traces.load("forward-rough-b1-l33")
    ours = replay.forward_logits(load_model(scratch / "saved", dtype=mx.float32), trace)
    assert difference(ours, trace["logits"]) <= TOLERANCE


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_prompts_of_random_length(references: dict[str, Any], scratch: Path, seed: int, batch: int) -> None:
    rng = np.random.default_rng([seed, batch])
    while True:  # until no router is at a tie, where rounding decides
        inputs = {
            "prompt": rng.integers(0, 96, size=(batch, rng.integers(1, 130))),
            "canvases": rng.integers(0, 96, size=(3, 2, batch, 16)),
            "committed": rng.integers(0, 96, size=(3, batch, 16)),
        }
        with router_gaps(references["rough"]) as gaps:
            theirs = run_forward(references["rough"], inputs)
        if min(gaps) >= margins.REQUIRED["router"]:
            break
    model = replay.load_traced("rough", scratch, "original")
    chunk_size = int(rng.integers(1, 40))
    ours = replay.forward_logits(model, traces.Trace("live", {}, inputs), chunk_size=chunk_size)
    assert difference(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize("name", sorted(tiny.SPECS))
def test_settings_of_a_directory(scratch: Path, name: str) -> None:
    """generation_config.json means the same to both."""
    directory = tiny.build(tiny.SPECS[name], scratch / f"{name}-settings", "original")
    ours, theirs = GenerationConfig.load(directory), load_reference(directory).generation_config
    numbers = "max_new_tokens", "max_denoising_steps", "t_min", "t_max"
    for key in (*numbers, "stability_threshold", "confidence_threshold"):
        assert getattr(ours, key) == getattr(theirs, key)
    assert ours.entropy_bound == theirs.sampler_config.entropy_bound
    assert list(ours.eos_token_id) == list(theirs.eos_token_id)


@pytest.mark.usefixtures("bf16_experts")
@pytest.mark.parametrize("label", ["capital", "addition", "json", "counting", "backwards"])
def test_a_converged_canvas_of_the_demo_returns_itself_in_bf16(label: str) -> None:
    """Both in bf16, self-conditioned on a first look at the canvas: the argmax is the canvas, for both.

    A converged canvas is what bf16 can be compared on: logits of a random canvas are near ties that the
    8 bits of a bf16 mantissa decide one way or the other.
    """
    trace = traces.load(f"generate-demo-{label}")
    theirs = load_reference(demo.DIRECTORY, dtype=torch.bfloat16)
    ours = load_model(demo.DIRECTORY, dtype=mx.bfloat16)
    committed = trace["committed"].astype(np.int64)
    repeated = {"prompt": trace["prompt"], "canvases": np.stack([committed, committed], axis=1)}
    repeated["committed"] = committed
    reference_logits = run_forward(theirs, repeated)  # [K, 2, B, C, V]
    our_logits = replay.forward_logits(ours, traces.Trace("bf16", {}, repeated))
    np.testing.assert_array_equal(our_logits[:, 1].argmax(axis=-1), reference_logits[:, 1].argmax(axis=-1))
    np.testing.assert_array_equal(our_logits[:, 1].argmax(axis=-1), committed)
