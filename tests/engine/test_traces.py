"""Our engine against traces of Transformers' own forward passes and generations; needs no torch.

Logits and entropies agree to 1e-4 in fp32. Ids, accept masks and stop steps agree exactly, which is fair
because every committed trace keeps a margin from all decisions that rounding could flip.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import demo, margins, replay, tiny, traces
from oracle.replay import difference

from mlx_diffusiongemma import generation
from mlx_diffusiongemma.config.generation import GenerationConfig
from mlx_diffusiongemma.text.tokenizer import Tokenizer

TOLERANCE = 1e-4  # logits (softcapped at 30) and entropies (nats), fp32
FORWARD = traces.names("forward")
GENERATE = traces.names("generate")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """models(name, dialect="transformers") -> our model, loaded once."""
    loaded: dict[tuple[str, str], Any] = {}
    scratch: Path = tmp_path_factory.mktemp("tiny")

    def get(name: str, dialect: str = "transformers") -> Any:
        if (name, dialect) not in loaded:
            loaded[name, dialect] = replay.load_traced(name, scratch, dialect)
        return loaded[name, dialect]

    return get


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Any tokenizer with enough ids will do: only ids are compared."""
    return Tokenizer.load(demo.DIRECTORY)


def test_every_case_has_a_trace() -> None:
    expected = {case.name for case in (*traces.FORWARD_CASES, *traces.TINY_GENERATION_CASES)}
    expected |= {f"generate-demo-{label}" for label, _, _ in demo.PROMPTS}
    assert expected <= set(FORWARD + GENERATE)


@pytest.mark.parametrize("name", FORWARD + GENERATE)
def test_trace_belongs_to_these_weights(name: str) -> None:
    meta = traces.load(name).meta
    model = meta["case"]["model"]
    weights = demo.fingerprint() if model == "demo" else tiny.fingerprint(tiny.weights(tiny.SPECS[model]))
    assert weights == meta["fingerprint"], "other weights: run tests/oracle/export_traces.py again"


@pytest.mark.parametrize("name", GENERATE)
def test_trace_keeps_its_margins(name: str) -> None:
    assert not margins.complaints(traces.load(name).meta["margins"])


def test_generation_config_in_both_dialects(tmp_path: Path) -> None:
    flat, nested = (
        GenerationConfig.load(tiny.build(tiny.ROUGH, tmp_path / kind, generation_dialect=kind))
        for kind in ("flat", "nested")
    )
    assert flat == nested
    assert (flat.t_min, flat.t_max, flat.entropy_bound) == (0.35, 0.85, 0.12)
    assert (flat.stability_threshold, flat.confidence_threshold, flat.max_denoising_steps) == (2, 0.006, 12)


@pytest.mark.parametrize("dialect", tiny.DIALECTS)
@pytest.mark.parametrize("name", FORWARD)
def test_logits(models: Any, name: str, dialect: str) -> None:
    trace = traces.load(name)
    ours = replay.forward_logits(models(trace.meta["case"]["model"], dialect), trace)
    assert ours.dtype == np.float32
    assert difference(ours, trace["logits"]) <= TOLERANCE


# The window is 16: chunks of one, uneven ones, ones of window - 1, window and window + 1, and larger ones.
@pytest.mark.parametrize(
    ("case", "chunk_size"),
    [("b1-l17", 1), ("b1-l17", 16)]
    + [("b1-l50", size) for size in (5, 15, 16, 17, 29)]
    + [("b3-l40", 7), ("b3-l40", 17), ("b1-l300", 100), ("b1-l300", 299)],
)
def test_logits_after_chunked_encode(models: Any, case: str, chunk_size: int) -> None:
    trace = traces.load(f"forward-rough-{case}")
    ours = replay.forward_logits(models("rough"), trace, chunk_size=chunk_size)
    assert difference(ours, trace["logits"]) <= TOLERANCE


@pytest.mark.parametrize("pieces", [(3,) * 16, (17, 2, 17, 2), (40, 1)])
def test_logits_after_several_encode_calls(models: Any, pieces: tuple[int, ...]) -> None:
    trace = traces.load("forward-rough-b1-l50")
    ours = replay.forward_logits(models("rough"), trace, pieces=pieces)
    assert difference(ours, trace["logits"]) <= TOLERANCE


@pytest.mark.parametrize("name", GENERATE)
def test_processed_logits_step_by_step(models: Any, name: str) -> None:
    trace = traces.load(name)
    ours = replay.processed_logits(models(trace.meta["case"]["model"]), trace)
    # Processed means divided by a temperature below 1, which magnifies the difference likewise.
    tolerance = TOLERANCE / float(trace["temperature"].min())
    if "processed" in trace.arrays:
        assert difference(ours, trace["processed"]) <= tolerance
    else:
        assert difference(ours.max(axis=-1), trace["processed_max"]) <= tolerance
        assert difference(ours[..., 0], trace["processed_first"]) <= tolerance


@pytest.mark.parametrize("dialect", tiny.DIALECTS)
@pytest.mark.parametrize("name", GENERATE)
def test_denoising_step_by_step(models: Any, name: str, dialect: str) -> None:
    trace = traces.load(name)
    blocks = replay.denoise_all(models(trace.meta["case"]["model"], dialect), trace)
    for block, (ours, steps) in enumerate(zip(blocks, trace.blocks(), strict=True)):
        assert max(ours.canvas.steps) == steps.stop - steps.start
        np.testing.assert_array_equal(ours.stacked("step"), trace["step"][steps])
        np.testing.assert_allclose(ours.stacked("temperature"), trace["temperature"][steps], rtol=1e-6)
        np.testing.assert_array_equal(ours.stacked("accepted"), trace["accepted"][steps])
        np.testing.assert_array_equal(ours.stacked("draft_ids"), trace["draft"][steps])
        np.testing.assert_array_equal(ours.stacked("canvas_ids"), trace["canvas"][steps])
        np.testing.assert_array_equal(ours.stacked("done"), trace["done"][steps])
        assert difference(ours.stacked("entropies"), trace["entropies"][steps]) <= TOLERANCE
        np.testing.assert_array_equal(np.array(ours.canvas.ids), trace["committed"][block])
        np.testing.assert_array_equal(
            np.array([rule is not None for rule in ours.canvas.stopped_by]), trace["done"][steps][-1]
        )
        assert difference(np.array(ours.canvas.mean_entropy), mean_entropy_at_end(trace, steps)) <= TOLERANCE
        if "processed" in trace.arrays:
            expected = draft_logprobs(trace, steps)
            tolerance = 2 * TOLERANCE / float(trace["temperature"].min())
            assert difference(ours.stacked("logprobs"), expected) <= tolerance
            committed = enumerate(np.array(ours.canvas.ids).tolist())
            kept: Any = [ours.canvas.logprobs(row, ids) for row, ids in committed]
            assert difference(np.stack(kept), expected[-1]) <= tolerance


def draft_logprobs(trace: traces.Trace, steps: slice) -> np.ndarray:
    """Log-probabilities [S, B, C] of the drafts under the reference's processed logits, in float64.

    A row that is done keeps those of its last step.
    """
    x = trace["processed"][steps].astype(np.float64)
    normalizer = np.log(np.exp(x - x.max(axis=-1, keepdims=True)).sum(axis=-1)) + x.max(axis=-1)
    chosen = np.take_along_axis(x, trace["draft"][steps][..., None].astype(np.int64), axis=-1)[..., 0]
    logprobs, done = chosen - normalizer, trace["done"][steps]
    for step in range(1, len(logprobs)):
        logprobs[step][done[step - 1]] = logprobs[step - 1][done[step - 1]]
    return logprobs


def mean_entropy_at_end(trace: traces.Trace, steps: slice) -> np.ndarray:
    """Mean entropy [B] of the step on which each row finished, or of the last one."""
    done, means = trace["done"][steps], trace["entropies"][steps].mean(axis=-1)
    last = np.where(done.any(axis=0), done.argmax(axis=0), len(done) - 1)
    return np.take_along_axis(means, last[None], axis=0)[0]


@pytest.mark.parametrize("name", [name for name in GENERATE if traces.load(name)["prompt"].shape[0] == 1])
def test_whole_generation(
    models: Any, tokenizer: Tokenizer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`generate` itself without its guards, only its draws replaced: stop ids and max_new_tokens cut what is
    delivered."""
    trace = traces.load(name)

    def draws(keys: Any, *_: Any) -> replay.RecordedDraws:
        return replay.RecordedDraws(trace, keys[0].block)

    # The reference stops at its own stop ids only. The ids of these traces are not text, so no turn ends.
    free = dataclasses.replace(tokenizer.special, turn_close=None, tool_response_open=None)
    monkeypatch.setattr(tokenizer, "special", free)
    prompt = trace["prompt"][0].tolist()
    ours = generation.generate(
        models(trace.meta["case"]["model"]),
        tokenizer,
        prompt,
        seed=0,
        guard_empty=False,
        guard_unconverged=False,
        draws=draws,
        **replay.overrides(trace),
    )
    assert (ours.token_ids, ours.finish_reason) == replay.expected_ids(trace)
    assert [block.denoising_steps for block in ours] == trace["steps_per_block"].tolist()


@pytest.mark.parametrize("row", range(3))
def test_a_row_does_not_depend_on_its_batch(models: Any, row: int) -> None:
    """Alone, a row takes the decisions that it took beside others, and stops where it was frozen there."""
    trace = traces.load("generate-sharp-batch")
    steps = trace.blocks()[0]
    alone = int(trace["done"][steps][:, row].argmax()) + 1
    arrays = {key: trace[key][:, row : row + 1] for key in ("initial", "uniforms", "noise")}
    arrays["uniforms"], arrays["noise"] = arrays["uniforms"][:alone], arrays["noise"][:alone]
    arrays |= {"prompt": trace["prompt"][row : row + 1], "steps_per_block": np.array([alone])}
    arrays |= {"initial": arrays["initial"][:1], "appended": trace["appended"][:1, row : row + 1]}
    (block,) = replay.denoise_all(models("sharp"), traces.Trace(trace.name, trace.meta, arrays))
    assert block.canvas.steps == [alone]
    np.testing.assert_array_equal(np.array(block.canvas.ids)[0], trace["committed"][0, row])
    np.testing.assert_array_equal(block.stacked("accepted")[:, 0], trace["accepted"][steps][:alone, row])
