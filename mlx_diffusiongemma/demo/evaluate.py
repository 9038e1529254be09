"""Held-out accuracy of the demo checkpoint through this package's own generator.

    python -m mlx_diffusiongemma.demo.evaluate [--model DIRECTORY] [--bits 8] [--items 50] [--seed 0]

`--model` takes the Hugging Face directory (default: the bundled one) or a converted one; `--bits` rounds an
unconverted one to so many bits in memory, everything but the router. Every item comes
from the side of the split that training never saw; the answer must be right to the letter (JSON: as a
value), and a thought must be there exactly when thinking is on.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import tasks

CHECKPOINT = Path(__file__).parent / "checkpoint"


@dataclass
class Row:
    """Counts of one task: items right, canvases that stopped before the step cap, tokens, denoising steps."""

    task: str
    items: int = 0
    right: int = 0
    canvases: int = 0
    stopped: int = 0
    tokens: int = 0
    steps: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, other: Row) -> None:
        for name in ("items", "right", "canvases", "stopped", "tokens", "steps"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def line(self) -> str:
        accuracy, stopped = self.right / max(1, self.items), self.stopped / max(1, self.canvases)
        return (
            f"{self.task:24s}{self.items:6d}{accuracy:10.1%}{self.canvases:10d}{stopped:10.1%}"
            f"{self.tokens / max(1, self.steps):16.1f}{self.steps / max(1, self.canvases):13.1f}"
        )


HEADER = "{:24s}{:>6s}{:>10s}{:>10s}{:>10s}{:>16s}{:>13s}".format(
    "task", "items", "right", "canvases", "stopped", "tokens/forward", "steps/block"
)


def held_out_items(count: int, seed: int) -> list[tasks.Item]:
    """`count` held-out items per task and thinking mode; the three tool situations get half of that each."""
    rng = random.Random(seed)
    items: list[tasks.Item] = []
    for family in tasks.FAMILIES:
        for thinking in (True, False):
            kinds = ("tool_call", "tool_response", "no_tool") if family == "tools" else (family,)
            wanted = dict.fromkeys(kinds, max(1, count // 2) if family == "tools" else count)
            while any(wanted.values()):
                item = tasks.draw(rng, family, held_out=True, thinking=thinking)
                if wanted[item.task]:
                    wanted[item.task] -= 1
                    items.append(item)
    return items


def evaluate(model: Any, tokenizer: Any, items: list[tasks.Item], seed: int, **settings: Any) -> list[Row]:
    """Generates every item (seed + index) and returns a row per task and thinking mode, in order."""
    from mlx_diffusiongemma import generate

    rows: dict[str, Row] = {}
    for index, item in enumerate(items):
        row = rows.setdefault(f"{item.task}{', thinking' if item.thinking else ''}", Row(""))
        row.task = f"{item.task}{', thinking' if item.thinking else ''}"
        result = generate(model, tokenizer, list(item.messages), thinking=item.thinking,
                          tools=item.declarations, seed=seed + index, **settings)  # fmt: skip
        blocks = list(result)
        calls = [(call.name, call.arguments) for call in result.tool_calls]
        right = (
            result.finish_reason == "stop"
            and tasks.is_right(item, result.answer, calls)
            and bool(result.thought.strip()) == item.thinking
        )
        row.items += 1
        row.right += right
        row.canvases += len(blocks)
        row.stopped += sum(block.converged for block in blocks)
        row.tokens += sum(len(block.token_ids) for block in blocks)
        row.steps += sum(block.denoising_steps for block in blocks)
        if not right:
            asked = item.messages[-1]["content"]
            row.failures.append(f"{asked!r}: {result.thought!r} -> {result.answer!r} {calls}")
    return list(rows.values())


def quantize(model: Any, bits: int) -> None:
    import mlx.nn as nn

    def chosen(path: str, module: Any) -> bool:
        return hasattr(module, "to_quantized") and "router" not in path

    nn.quantize(model, group_size=64, bits=bits, class_predicate=chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=str(CHECKPOINT), help="Hugging Face or converted directory")
    parser.add_argument("--bits", type=int, choices=(4, 8), help="quantize in memory")
    parser.add_argument("--items", type=int, default=50, help="held-out items per task and thinking mode")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--failures", type=int, default=0, help="show so many wrong answers of each task")
    parser.add_argument("--json", type=Path, help="write the counts to this file as well")
    args = parser.parse_args()

    import mlx_diffusiongemma as package

    model, tokenizer = package.load(args.model)
    if args.bits:
        quantize(model, args.bits)
    started = time.perf_counter()
    rows = evaluate(model, tokenizer, held_out_items(args.items, args.seed), args.seed)
    total = Row("all")
    print(HEADER)
    for row in rows:
        print(row.line())
        for failure in row.failures[: args.failures]:
            print("    " + failure)
        total.add(row)
    print(total.line())
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in (*rows, total)], indent=1) + "\n")


if __name__ == "__main__":
    main()
