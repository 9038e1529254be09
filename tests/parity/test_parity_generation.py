"""Live comparison with Transformers: whole generations under injected draws, in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch  # noqa: F401  the parity tests fail without torch and transformers; they never skip
from oracle import demo, margins, replay, tiny, traces
from oracle.reference import Draws, load_reference, router_gaps, run_generation

from mlx_diffusiongemma import generation
from mlx_diffusiongemma.checkpoint.loading import load
from mlx_diffusiongemma.engine.noise import SeededDraws

STALE = 5e-4  # processed logits after many steps; decisions are compared exactly


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """references(name) -> the reference model of a trace's model, loaded once."""
    loaded: dict[str, Any] = {}
    scratch: Path = tmp_path_factory.mktemp("parity")

    def get(name: str) -> Any:
        if name not in loaded:
            directory = demo.DIRECTORY if name == "demo" else tiny.build(tiny.SPECS[name], scratch / name)
            loaded[name] = load_reference(directory)
        return loaded[name]

    return get


@pytest.mark.parametrize("name", traces.names("generate"))
def test_committed_traces_are_fresh(references: Any, name: str) -> None:
    """The reference, given the recorded draws, still takes every recorded decision."""
    trace = traces.load(name)
    live = run_generation(
        references(trace.meta["case"]["model"]),
        trace["prompt"],
        trace.meta["settings"],
        Draws(arrays=trace.arrays),
    )
    for key in ("accepted", "argmax", "draft", "canvas", "done", "steps_per_block", "committed", "appended"):
        np.testing.assert_array_equal(live[key], trace[key], err_msg=key)
    np.testing.assert_array_equal(live["sampled"].reshape(live["argmax"].shape), trace["sampled"])
    np.testing.assert_array_equal(live["sequences"], trace["sequences"])
    np.testing.assert_allclose(live["entropies"], trace["entropies"], atol=1e-4)
    if "processed" in trace.arrays:
        np.testing.assert_allclose(live["processed"], trace["processed"], atol=STALE)


class Recording(SeededDraws):
    """Our own seeded draws, and what they were."""

    arrays: dict[str, list[Any]]

    def initial(self) -> mx.array:
        self.arrays["initial"].append(np.array(out := super().initial()))
        return out

    def step(self, index: int) -> tuple[mx.array, mx.array]:
        uniforms, noise = super().step(index)
        self.arrays["uniforms"].append(np.array(uniforms))
        self.arrays["noise"].append(np.array(noise))
        return uniforms, noise


@pytest.mark.parametrize("first_seed", [100, 200])
@pytest.mark.parametrize(("text", "thinking"), [(text, thinking) for _, text, thinking in demo.PROMPTS])
def test_the_demo_generates_the_same_ids(references: Any, text: str, thinking: bool, first_seed: int) -> None:
    """Whole generations: the draws that our `generate` takes make the reference's say the same.

    From `first_seed` on, the first seed whose generation keeps clear of decisions that rounding could flip.
    """
    model, tokenizer = load(demo.DIRECTORY, dtype=mx.float32)
    settings = demo.settings()
    ours_only = {key: value for key, value in settings.items() if key != "pad_token_id"}  # we cut, it pads
    for seed in range(first_seed, first_seed + 50):
        Recording.arrays = {"initial": [], "uniforms": [], "noise": []}
        ours = generation.generate(
            model, tokenizer, text, thinking=thinking, seed=seed, draws=Recording, **ours_only
        )
        steps = np.array([block.denoising_steps for block in ours])
        recorded = {key: np.stack(value) for key, value in Recording.arrays.items()}
        draws = Draws(arrays=recorded | {"steps_per_block": steps})
        prompt = np.array([ours.prompt_ids])
        with router_gaps(references("demo")) as gaps:
            live = run_generation(references("demo"), prompt, settings, draws)
        kept = margins.measure(live, settings, draws.margin, min(gaps)) | {"shake": 0.0}
        if not margins.complaints(kept):
            break
    else:
        pytest.fail("every generation came close to a decision that rounding could flip")
    np.testing.assert_array_equal(live["steps_per_block"], steps)
    theirs = traces.Trace("live", {"settings": settings}, live | {"prompt": prompt})
    assert (ours.token_ids, ours.finish_reason) == replay.expected_ids(theirs)
