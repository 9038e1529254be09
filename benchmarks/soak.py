"""Runs many generations in one process, to see if steps get slower or memory grows.

    python benchmarks/soak.py [--model demo] [--rounds 10] [--generations 50] [--smoke]

The generations of a round are questions with and without a thought, a chat that keeps a prompt cache, and
prompts of 20 to 500 tokens. They have one to six canvases. All rounds are equal, so that the last can be
compared with the first. An extra round before them warms up. For the first and the last round the script
prints the median time of a denoising step, MLX's active memory and the process's resident memory at the end,
and their ratios.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from typing import Any, NamedTuple

import mlx.core as mx
from common import parse, resident_bytes

import mlx_dg

QUESTIONS = ("What is 345 + 78?", "Capital of France?", "JSON for Paris and Rome", "Count from 0 to 37.")


class Round(NamedTuple):
    """Figures of a round. step: median ms. active, resident: MB of MLX and of the process at the end."""

    step: float
    active: float
    resident: float


def step_times(model: Any, tokenizer: Any, generations: int) -> list[float]:
    """Run the generations of a round. Return the mean ms per step of each."""
    times = []
    filler = tokenizer.encode("Spell the word house. " * 100)
    chat, messages = mlx_dg.PromptCache(model), list[dict[str, str]]()
    for index in range(generations):
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
        times.append(1e3 * generation.stats.denoising_seconds / generation.stats.denoising_steps)
    return times


def one_round(model: Any, tokenizer: Any, generations: int) -> Round:
    step = statistics.median(step_times(model, tokenizer, generations))
    gc.collect()
    mx.clear_cache()
    return Round(step, mx.get_active_memory() / 1e6, resident_bytes() / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description="Many generations: do steps slow down, does memory grow?")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--generations", type=int, default=50, help="of a round")
    options = parse(parser, smoke={"rounds": 2, "generations": 5})
    model, tokenizer = mlx_dg.load(options.model)
    one_round(model, tokenizer, options.generations)
    rounds = [one_round(model, tokenizer, options.generations) for _ in range(options.rounds)]
    print(
        f"{len(rounds)} rounds of {options.generations} generations, {options.model}, {mx.default_device()}"
    )
    print(f"{'':16}{'first round':>12}{'last round':>12}{'ratio':>8}")
    for name, first, last in zip(
        ("step, ms", "active, MB", "resident, MB"), rounds[0], rounds[-1], strict=True
    ):
        print(f"{name:16}{first:12.3f}{last:12.3f}{last / first:8.3f}")
    print("step, ms, round by round: " + " ".join(f"{each.step:.1f}" for each in rounds))


if __name__ == "__main__":
    main()
