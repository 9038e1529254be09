"""Export the reference traces from Transformers: `python tests/oracle/export_traces.py [tiny] [demo]`.

Writes tests/oracle/data/*.npz, all files if no group is named. Run it again for `demo` when the bundled demo
checkpoint changes. It needs torch and transformers. The tests that read the traces do not.

Every case uses the first seed whose trace keeps the margins of `margins.REQUIRED`. With these, ids, masks and
stop steps can be compared exactly, although logits differ by rounding.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import transformers

if __package__ is None or __package__ == "":  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from oracle import demo, margins, tiny, traces
from oracle.reference import Draws, load_reference, router_gaps, run_forward, run_generation, shaken

SEEDS = 200
STEP_KEYS = ("step", "temperature", "entropies", "accepted", "argmax", "sampled", "draft", "canvas", "done")
BLOCK_KEYS = ("initial", "committed", "appended", "steps_per_block", "sequences", "uniforms", "noise")


def compact(arrays: dict[str, np.ndarray], full_logits: bool) -> dict[str, np.ndarray]:
    """Return the arrays to store: integers as int16, logits as they are or as two numbers per position."""
    out = {key: arrays[key] for key in STEP_KEYS + BLOCK_KEYS}
    out["sampled"] = out["sampled"].reshape(out["argmax"].shape)
    if full_logits:
        out["processed"] = arrays["processed"]
    else:
        out["processed_max"] = arrays["processed"].max(axis=-1)
        out["processed_first"] = arrays["processed"][..., 0]
    for key, value in out.items():
        if np.issubdtype(value.dtype, np.integer):
            assert value.max() < 2**15
            out[key] = value.astype(np.int16)
    return out


@functools.cache
def shaken_copy(model: Any) -> Any:
    return shaken(model)


def export_forward(model: Any, case: traces.ForwardCase, fingerprint: str) -> traces.Trace:
    config = model.config
    vocab, shape = config.text_config.vocab_size, (case.batch, config.canvas_length)
    for seed in range(SEEDS):
        rng = np.random.default_rng([seed, case.length, case.batch])
        inputs = {
            "prompt": rng.integers(3, vocab - 6, size=(case.batch, case.length)),
            "canvases": rng.integers(0, vocab, size=(3, 2, *shape)),
            "committed": rng.integers(3, vocab - 6, size=(3, *shape)),
        }
        with router_gaps(model) as gaps:
            logits = run_forward(model, inputs)
        shake = float(np.abs(run_forward(shaken_copy(model), inputs) - logits).max())
        if min(gaps) >= margins.REQUIRED["router"] and shake <= margins.LARGEST_SHAKE:
            break
    else:
        raise SystemExit(f"{case.name}: no seed keeps the router margin and is stable")
    meta = {
        "case": dataclasses.asdict(case),
        "seed": seed,
        "router": min(gaps),
        "shake": shake,
        "fingerprint": fingerprint,
    }
    meta["transformers"] = transformers.__version__
    ids = {key: value.astype(np.int16) for key, value in inputs.items()}
    return traces.Trace(case.name, meta, ids | {"logits": logits})


def generate_once(
    model: Any, prompt: np.ndarray, settings: dict[str, Any], seed: int
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    draws = Draws(rng=np.random.default_rng([seed, 77]))
    with router_gaps(model) as gaps:
        arrays = run_generation(model, prompt, settings, draws)
    return arrays, margins.measure(arrays, settings, draws.margin, min(gaps))


def shake(model: Any, prompt: np.ndarray, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> float:
    """Return how much the shaken model's logits differ for the same draws. Infinite for other decisions."""
    try:
        others = run_generation(shaken_copy(model), prompt, settings, Draws(arrays=arrays))
    except IndexError:  # it needs more draws than were recorded
        return float("inf")
    return margins.shake(arrays, others)


def pick_stop_id(committed: np.ndarray, block: int) -> int | None:
    """Return an id that first occurs in row 0 after the middle of this block, or None if there is none."""
    row, canvas = committed[:, 0], committed.shape[-1]
    earlier = set(row[:block].reshape(-1).tolist())
    if block >= len(row) or 1 in row[: block + 1]:  # 1 is always a stop id
        return None
    for position in range(canvas // 2, canvas - 3):
        token = int(row[block, position])
        if token not in earlier and token not in row[block, :position] and token > 5:
            return token
    return None


def export_generation(
    model: Any,
    case: traces.GenerationCase,
    fingerprint: str,
    prompt: np.ndarray | None = None,
    full_logits: bool = True,
) -> traces.Trace:
    vocab, complaint = model.config.text_config.vocab_size, []
    fixed = prompt
    for seed in range(SEEDS):
        rng = np.random.default_rng([seed, case.length, 5])
        if fixed is None:
            prompt = rng.integers(3, vocab - 6, size=(case.batch, case.length))
        assert prompt is not None
        settings: dict[str, Any] = {"eos_token_id": None, "pad_token_id": None} | case.settings
        arrays, kept = generate_once(model, prompt, settings, seed)
        if case.stop_in_block is not None:
            token = pick_stop_id(arrays["committed"], case.stop_in_block)
            if token is None:
                complaint = ["no stop id to pick"]
                continue
            settings |= {"eos_token_id": [1, token], "pad_token_id": 0}
            arrays, kept = generate_once(model, prompt, settings, seed)
        kept["shake"] = 0.0
        if complaint := margins.complaints(kept) + unwanted(case, arrays):
            continue
        kept["shake"] = shake(model, prompt, settings, arrays)
        if not (complaint := margins.complaints(kept)):
            break
    else:
        raise SystemExit(f"{case.name}: no seed will do; the last one failed on {', '.join(complaint)}")
    meta = {"case": dataclasses.asdict(case), "seed": seed, "margins": kept, "settings": settings}
    meta |= {"fingerprint": fingerprint, "transformers": transformers.__version__}
    stored = compact(arrays, full_logits) | {"prompt": prompt.astype(np.int16)}
    return traces.Trace(case.name, meta, stored)


def unwanted(case: traces.GenerationCase, arrays: dict[str, np.ndarray]) -> list[str]:
    """Return the reason, in a list, why a trace would not test what its case is for. Empty if it does."""
    if case.model == "sharp" and not arrays["done"][-1].all():
        return ["a block that did not converge"]
    if case.model == "sharp" and arrays["steps_per_block"].max() < 4:
        return ["blocks that converge at once"]
    if case.batch > 1:
        steps = int(arrays["steps_per_block"][0])
        finish = arrays["done"][:steps].argmax(axis=0)
        if len(set(finish.tolist())) < case.batch:
            return ["rows that finish on the same step"]
    if case.label == "stable1":
        stable = (arrays["argmax"][1:] == arrays["argmax"][:-1]).all(axis=(1, 2))
        if not (stable & ~arrays["done"][1:, 0]).any():
            return ["no step that is stable and not yet confident"]
    if case.label == "stable0" and len(arrays["step"]) < 3:
        return ["confidence from the start"]
    if case.label == "batch" and len(arrays["steps_per_block"]) < 2:
        return ["one block only"]
    return []


def report(trace: traces.Trace) -> None:
    path = trace.save()
    steps = trace.arrays.get("steps_per_block")
    detail = f"steps {steps.tolist()}" if steps is not None else f"router gap {trace.meta['router']:.1e}"
    print(
        f"{trace.name}: seed {trace.meta['seed']}, {detail}, {path.stat().st_size / 1e3:.0f} kB", flush=True
    )


def export_tiny() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for spec in tiny.SPECS.values():
            model = load_reference(tiny.build(spec, Path(scratch) / spec.name))
            fingerprint = tiny.fingerprint(tiny.weights(spec))
            for case in traces.FORWARD_CASES:
                if case.model == spec.name:
                    report(export_forward(model, case, fingerprint))
            for generation in traces.TINY_GENERATION_CASES:
                if generation.model == spec.name:
                    report(export_generation(model, generation, fingerprint))


def export_demo() -> None:
    model, fingerprint = load_reference(demo.DIRECTORY), demo.fingerprint()
    for case, prompt in demo.cases():
        report(export_generation(model, case, fingerprint, prompt=prompt, full_logits=False))


def main(groups: list[str]) -> None:
    chosen = {"tiny": export_tiny, "demo": export_demo}
    if unknown := set(groups) - set(chosen):
        raise SystemExit(f"unknown group {sorted(unknown)}: name tiny, demo or neither")
    transformers.logging.disable_progress_bar()
    for group in groups or list(chosen):
        for old in traces.names():
            if (traces.load(old).meta["case"]["model"] == "demo") == (group == "demo"):
                (traces.DATA / f"{old}.npz").unlink()
        chosen[group]()


if __name__ == "__main__":
    main(sys.argv[1:])
