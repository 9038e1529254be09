"""mlx_dg against mlx-vlm: steps, prefill, sampler, memory and whole generations, side by side.

    python benchmarks/versus_mlx_vlm.py [--only ROW ...] [--rounds 3] [--steps 4] [--vocab 262144]
                                        [--work DIR] [--write-json FILE]

Every figure comes from a fresh process that runs one side and takes one measurement (`versus_sides.py` says
how); the sides take turns and swap places from round to round. A ratio is mlx_dg's figure over mlx-vlm's in
the same round. Both load the same converted directories, compute in float32, and sample entropy-bound.

- step, step-flat: seconds per denoising step behind a prompt of 64 tokens. A generation of 2 + `--steps`
  steps less one of 2, so that what the first and the last step leave out counts for neither side. Neither
  may converge; mlx-vlm still reads from the device once a step. The temperature stays at 0.8.
- step-4096: the same behind 4096 tokens. prefill: seconds until 4096 tokens are in the cache.
- sampler: what `sampler.py` compares, with softcap, on random logits [256, vocab].
- memory: of a process that loads and denoises one canvas behind 64 tokens, 2 + `--steps` steps: MLX's
  peak since the weights were there, and the resident set's, libraries and loading included.
- generation: the demo checkpoint in 4 bits, seconds for all answers to held-out prompts of its tasks, the
  settings those of its generation_config.json; both are graded alike. Each round has a seed of its own.

The synthetic weights: hidden 128, 4 layers (3 sliding, 1 full), 32 experts of 64, top 4, canvas 256; 4-bit
experts, 8-bit rest. As they are drawn ("flat"), no token is likelier than another: 12.4 nats. The others
("peaked": step, step-4096, prefill, memory) differ in norms alone: the last one times 14, those that close
attention and feed-forward branches times 0.25. With the whole vocabulary that leaves 0.003 nats a position,
all below 0.1, and 1 - 1e-4 of the probability on 3 tokens (median; the worst tenth of the positions: 800 to
1700). The demo, which is trained, has 0.002 to 0.005 nats in its first steps, 99 % of the positions below
0.1, and 1 token (the worst of all: 34). With a small `--vocab` logits are more peaked yet.

`--work` keeps the checkpoints for the next run. Asserts no time. Exits 2 if mlx-vlm is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from synthetic_checkpoint import config_of, write_checkpoint
from versus_sides import SIDES, STEPS_BEFORE

from mlx_diffusiongemma.config.generation import GenerationConfig
from mlx_diffusiongemma.converter import convert
from mlx_diffusiongemma.demo import tasks
from mlx_diffusiongemma.text.channels import ChannelParser
from mlx_diffusiongemma.text.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from oracle import tiny

ROWS = ("step", "step-flat", "step-4096", "sampler", "prefill", "memory", "generation")
SIZES = tiny.TinySpec(
    "versus",
    seed=0,
    logit_gain=1,
    branch_gain=1,
    conditioning_gain=1,
    layer_types=("sliding_attention",) * 3 + ("full_attention",),
    hidden=128,
    dense=256,
    expert=64,
    experts=32,
    top_k=4,
    heads=4,
    head_dim=32,
    full_head_dim=64,
    window=1024,
    canvas=256,
)
CONTEXT = 8192
PEAKED_LAST_NORM, PEAKED_BRANCHES = 14.0, 0.25
SHORT, LONG = 64, 4096  # tokens of a prompt
ITEMS = 3  # held-out prompts per task and thinking mode: 42 together
UNITS = {"seconds": "s", "mlx_gb": "GB, MLX", "resident_gb": "GB, resident"}

Job = dict[str, Any]


@dataclass
class Row:
    """What one row measures, and what came of it.

    figures: by metric and side, one a round. right, steps: of all answers together, by side, one a round.
    mean_entropy: nats, ours, at the last step of the short and of the long generation.
    """

    name: str
    job: Job
    figures: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    right: dict[str, list[int]] = field(default_factory=dict)
    steps: dict[str, list[int]] = field(default_factory=dict)
    mean_entropy: list[float] = field(default_factory=list)

    def ratios(self, metric: str) -> list[float]:
        return [ours / theirs for ours, theirs in zip(*self.figures[metric].values(), strict=True)]


class Demo:
    """The demo's held-out prompts, as token ids, and their grader."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer = Tokenizer.load(directory)
        self.stop_ids = GenerationConfig.load(directory).eos_token_id
        self.items = tasks.held_out_items(ITEMS, seed=0)
        self.prompts = [
            self.tokenizer.prompt_ids(list(item.messages), thinking=item.thinking, tools=item.declarations)
            for item in self.items
        ]

    def count_right(self, answers: list[list[int]]) -> int:
        return sum(self._is_right(*each) for each in zip(self.items, self.prompts, answers, strict=True))

    def _is_right(self, item: tasks.Item, prompt: list[int], token_ids: list[int]) -> bool:
        """As the suite `demo` grades: ended by itself, right, and thought about exactly when asked to."""
        parser = ChannelParser(self.tokenizer, prompt)
        seen = parser.feed(token_ids) + parser.finish()
        calls = [(call.name, call.arguments) for call in seen.tool_calls]
        ended = bool(token_ids) and token_ids[-1] in self.stop_ids
        thought = bool(seen.thought.strip()) == item.thinking
        return ended and thought and tasks.is_right(item, seen.answer, calls)


def flat_checkpoint(work: Path, vocab: int) -> Path:
    """The synthetic weights as they are drawn, converted."""
    target = work / f"flat-{vocab}"
    if not target.exists():
        config = config_of(replace(SIZES, vocab=vocab))
        config["text_config"]["max_position_embeddings"] = CONTEXT
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            write_checkpoint(Path(scratch) / "source", config)
            convert(Path(scratch) / "source", target, dtype="float32")
    return target


def peaked_checkpoint(flat: Path, work: Path, vocab: int) -> Path:
    """The same with other norms, whose distributions look like a trained model's."""
    target = work / f"peaked-{vocab}"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            copy = Path(scratch) / "copy"
            shutil.copytree(flat, copy)
            for file in copy.glob("*.safetensors"):
                tensors: Any = mx.load(str(file))
                for name in tensors:
                    if name.endswith(
                        (".post_attention_layernorm.weight", ".post_feedforward_layernorm.weight")
                    ):
                        tensors[name] = tensors[name] * PEAKED_BRANCHES
                tensors["model.decoder.norm.weight"] *= PEAKED_LAST_NORM
                mx.eval(tensors)
                mx.save_safetensors(str(file), tensors, metadata={"format": "mlx"})
            copy.rename(target)
    return target


def all_rows(models: dict[str, str], demo: Demo, steps: int, vocab: int) -> dict[str, Row]:
    rng = np.random.default_rng(0)
    short, long = (rng.integers(10, demo.tokenizer.vocab_size, size).tolist() for size in (SHORT, LONG))

    at_short = {"model": models["peaked"], "prompt": short}
    at_long = {"model": models["peaked"], "prompt": long}
    answers = {"measure": "generation", "model": models["demo"], "prompts": demo.prompts}
    jobs: dict[str, Job] = {
        "step": at_short | {"measure": "step", "steps": steps},
        "step-flat": at_short | {"measure": "step", "steps": steps, "model": models["flat"]},
        "step-4096": at_long | {"measure": "step", "steps": steps},
        "sampler": {"measure": "sampler", "rows": SIZES.canvas, "vocab": vocab},
        "prefill": at_long | {"measure": "prefill"},
        "memory": at_short | {"measure": "memory", "steps": STEPS_BEFORE + steps},
        "generation": answers,
    }
    return {name: Row(name, jobs[name]) for name in ROWS}


def run(job: Job) -> dict[str, Any]:
    """What a fresh process makes of the job. Its stderr is ours; when it fails, so do we."""
    command = [sys.executable, str(Path(__file__).with_name("versus_sides.py"))]
    done = subprocess.run(command, input=json.dumps(job), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{job['measure']} of {job['side']} failed with exit status {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def measure(row: Row, index: int, demo: Demo) -> None:
    """Round `index` of one row."""
    seeds = {"seed": 1000 * index} if row.name == "generation" else {}
    for side in sorted(SIDES, reverse=bool(index % 2)):
        seen = run(row.job | seeds | {"side": side})
        for metric in UNITS.keys() & seen.keys():
            row.figures.setdefault(metric, {name: [] for name in SIDES})[side].append(seen[metric])
        if "token_ids" in seen:
            row.right.setdefault(side, []).append(demo.count_right(seen["token_ids"]))
            row.steps.setdefault(side, []).append(seen["denoising_steps"])
        if side == "mlx_dg":
            row.mean_entropy = seen.get("mean_entropy", [])


def print_row(row: Row, items: int) -> None:
    for metric, unit in UNITS.items():
        if metric not in row.figures:
            continue
        ours, theirs = (statistics.median(row.figures[metric][side]) for side in SIDES)
        ratios = row.ratios(metric)
        print(f"{row.name:12}{unit:14}{ours:10.3f}{theirs:10.3f}{statistics.median(ratios):8.2f}", end="")
        print(f"   {min(ratios):.2f}..{max(ratios):.2f}")
    for what, counts in ((f"right of {items} answers", row.right), ("denoising steps", row.steps)):
        if counts:
            listed = "; ".join(f"{side} {' '.join(map(str, counts[side]))}" for side in SIDES)
            print(f"{'':12}{what}, round by round: {listed}")
    if row.mean_entropy:
        short, long = (f"{entropy:.4f}" for entropy in row.mean_entropy)
        print(f"{'':12}mean entropy of mlx_dg's canvas: {short} nats before these steps, {long} at the last")
    sys.stdout.flush()


def compare(options: argparse.Namespace, work: Path) -> None:
    demo = work / "demo-4bit"
    if not demo.exists():
        convert("demo", demo, dtype="float32")
    flat = flat_checkpoint(work, options.vocab)
    models = {"flat": flat, "peaked": peaked_checkpoint(flat, work, options.vocab), "demo": demo}
    prompts = Demo(demo)
    paths = {name: str(path.resolve()) for name, path in models.items()}
    rows = all_rows(paths, prompts, options.steps, options.vocab)

    versions = {name: version(name) for name in ("mlx", "mlx-vlm")}
    print(", ".join(f"{name} {number}" for name, number in versions.items()), end="")
    print(f", {mx.default_device()}, {os.cpu_count()} cores, vocabulary {options.vocab}, ", end="")
    print(f"{options.steps} steps, {options.rounds} rounds; ratio: mlx_dg / mlx-vlm, median and range")
    print(f"{'':26}{'mlx_dg':>10}{'mlx-vlm':>10}{'ratio':>8}", flush=True)
    chosen = [rows[name] for name in ROWS if name in options.only]
    for row in chosen:
        for index in range(options.rounds):
            measure(row, index, prompts)
        print_row(row, len(prompts.items))
    if options.write_json:
        settings = {name: getattr(options, name) for name in ("vocab", "steps", "rounds")}
        settings["items"] = len(prompts.items)
        results = {
            row.name: row.figures
            | {"ratios": {metric: row.ratios(metric) for metric in row.figures}}
            | {"right": row.right, "denoising_steps": row.steps, "mean_entropy": row.mean_entropy}
            for row in chosen
        }
        content = {
            "versions": versions,
            "device": str(mx.default_device()),
            "settings": settings,
            "rows": results,
        }
        options.write_json.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="mlx_dg against mlx-vlm, side by side.")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS, metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="denoising steps that are timed")
    parser.add_argument(
        "--vocab", type=int, default=262144, help="of the synthetic checkpoint; 4096 is quick"
    )
    parser.add_argument("--work", type=Path, help="where the checkpoints stay; default: nowhere")
    parser.add_argument("--write-json", type=Path, metavar="FILE", help="every round's figures")
    options = parser.parse_args()
    if min(options.rounds, options.steps) < 1:
        parser.error("--rounds and --steps must be at least 1")
    if options.vocab < 1024:
        parser.error("--vocab must be at least 1024: the tokenizer has 704 tokens")
    if importlib.util.find_spec("mlx_vlm") is None:
        print("No module named 'mlx_vlm': pip install mlx-vlm==0.7.10 to compare with it", file=sys.stderr)
        sys.exit(2)

    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        compare(options, work)


if __name__ == "__main__":
    main()
