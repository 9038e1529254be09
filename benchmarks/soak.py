"""Many generations in one process: whether steps get slower or memory grows.

    python benchmarks/soak.py [--model demo] [--rounds 10]

A round is 50 generations: questions, with and without a thought, chats that keep a prompt cache, prompts of
20 to 500 tokens, one to six canvases. All rounds are the same, so that the last can be compared with the
first; one more goes before them and is not counted. Prints, of the first and the last round, the median
seconds per denoising step, and MLX's active memory and the process's resident memory at its end; and
their ratios. Asserts nothing.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

import mlx_dg

GENERATIONS = 50
QUESTIONS = ("What is 345 + 78?", "Capital of France?", "JSON for Paris and Rome", "Count from 0 to 37.")


class Round(NamedTuple):
    """step: median seconds. active: MLX's bytes in use. resident: the process's bytes; 0 where unknown."""

    step: float
    active: int
    resident: int


def generations(model: Any, tokenizer: Any) -> list[float]:
    """A round's seconds per step, generation by generation."""
    steps = []
    filler = tokenizer.encode("Spell the word house. " * 100)
    chat, messages = mlx_dg.PromptCache(model), list[dict[str, str]]()
    for index in range(GENERATIONS):
        question = QUESTIONS[index % len(QUESTIONS)]
        settings: dict[str, Any] = {
            "seed": index,
            "max_new_tokens": model.config.canvas_length * (1 + index % 6),
            "max_denoising_steps": 6,
        }
        if index % 5 == 4:
            length = 20 + 48 * (index // 5)
            prompt: Any = [*filler[:length], *tokenizer.prompt_ids(question)]
        elif index % 5 == 3:
            messages.append({"role": "user", "content": question})
            prompt, settings["prompt_cache"] = list(messages), chat
        else:
            prompt, settings["thinking"] = question, index % 2 == 0
        generation = mlx_dg.generate(model, tokenizer, prompt, **settings)
        answer = generation.answer
        if index % 5 == 3:
            messages.append({"role": "assistant", "content": answer or "."})
        steps.append(generation.stats.denoising_seconds / generation.stats.denoising_steps)
    return steps


def one_round(model: Any, tokenizer: Any) -> Round:
    step = statistics.median(generations(model, tokenizer))
    gc.collect()
    mx.clear_cache()
    return Round(step, mx.get_active_memory(), resident())


def resident() -> int:
    status = Path("/proc/self/status")  # Linux; elsewhere there is only the peak
    if not status.exists():
        return 0
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="Whether many generations slow down or need more memory.")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rounds", type=int, default=10, help=f"of {GENERATIONS} generations")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    model, tokenizer = mlx_dg.load(options.model)
    one_round(model, tokenizer)
    rounds = [one_round(model, tokenizer) for _ in range(options.rounds)]
    first, last = rounds[0], rounds[-1]
    print(f"{options.rounds * GENERATIONS} generations on {mx.default_device()}, {options.model}")
    print(f"{'':24}{'first 50':>12}{'last 50':>12}{'ratio':>8}")
    for name, factor, unit in [("step", 1e3, "ms"), ("active", 1e-6, "MB"), ("resident", 1e-6, "MB")]:
        a, b = (getattr(end, name) * factor for end in (first, last))
        print(f"{name + ', ' + unit:24}{a:12.3f}{b:12.3f}{b / a if a else 0:8.3f}")
    print("step, ms, round by round: " + " ".join(f"{1e3 * done.step:.1f}" for done in rounds))


if __name__ == "__main__":
    main()
