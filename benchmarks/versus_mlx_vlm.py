"""Compares mlx_dg with mlx-vlm: steps, prefill, sampler, memory and whole generations.

    python benchmarks/versus_mlx_vlm.py [--only ROW ...] [--rounds 3] [--steps 4] [--vocab 262144]
                                        [--prompt-tokens 4096] [--items 3] [--work DIR] [--smoke]

Every figure comes from a new process that takes one measurement of one side (see `versus_sides.py`). The
sides take turns, in the opposite order in every other round. A ratio is mlx_dg's figure divided by mlx-vlm's
in the same round. Both sides load the same converted directories, compute in float32, use the entropy-bound
sampler, and never denoise a canvas again. The rows are:

- step, step-flat: seconds per denoising step after a prompt of 64 tokens: the time of 2 + `--steps` steps
  minus the time of 2 steps, because the first and the last step of a canvas do less work. No canvas may
  converge, but mlx-vlm still reads from the device once a step. The temperature stays at 0.8.
- step-long: seconds per step after a prompt of `--prompt-tokens`. prefill: seconds to encode this prompt.
- sampler: seconds of the step of `sampler.py`, with softcap, on random logits [256, vocab].
- memory: peaks of a process that loads a model and denoises one canvas after 64 tokens, with 2 + `--steps`
  steps. MLX's peak is counted after loading. The resident peak includes libraries and loading.
- generation: seconds for all answers of the demo checkpoint, in 4 bits, to held-out prompts of its tasks,
  `--items` for each task and thinking mode, with the settings of its generation_config.json. The answers of
  both sides are graded in the same way. Each round has its own seed.

The synthetic model has hidden size 128, 4 layers (3 sliding, 1 full), 32 experts of width 64, top 4, and
canvases of 256. Experts have 4 bits, other weights 8. With the weights as drawn ("flat", in step-flat) all
tokens are about equally likely: 12.4 nats. "Peaked" weights (in step, step-long, prefill, memory) have other
norms: the last norm is multiplied by 14, the norms at the end of attention and feed-forward branches by 0.25.
With the whole vocabulary, a position then has 0.003 nats, and none has over 0.1. At the median position, 3
tokens have 1 - 1e-4 of the probability, at the worst tenth of the positions 800 to 1700 tokens. The trained
demo has 0.002 to 0.005 nats in its first steps, 99% of the positions below 0.1, and 1 such token (at the
worst position 34). With a smaller `--vocab`, logits are even more peaked.

`--work` keeps the checkpoints for the next run. Exits with status 2 if mlx-vlm is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from common import parse
from synthetic_checkpoint import SMALL, config_of, write_checkpoint
from versus_sides import SIDES, STEPS_BEFORE, Job

from mlx_diffusiongemma.config.generation import GenerationConfig
from mlx_diffusiongemma.converter import convert
from mlx_diffusiongemma.demo import tasks
from mlx_diffusiongemma.text.channels import ChannelParser
from mlx_diffusiongemma.text.tokenizer import Tokenizer

ROWS = ("step", "step-flat", "step-long", "sampler", "prefill", "memory", "generation")
CONTEXT = 8192
PEAKED_LAST_NORM, PEAKED_BRANCHES = 14.0, 0.25
BRANCHES = (".post_attention_layernorm.weight", ".post_feedforward_layernorm.weight")
SHORT = 64  # tokens of a short prompt
SMOKE = {
    "only": ["step-flat", "generation"],
    "rounds": 1,
    "steps": 1,
    "vocab": 1024,
    "prompt_tokens": 128,
    "items": 1,
}
UNITS = {"seconds": "s", "mlx_gb": "GB, MLX", "resident_gb": "GB, resident"}


@dataclass
class Row:
    """A job and its results.

    figures: by metric and side, a figure for each round. right, steps: by side, the number of right answers
    and of denoising steps in each round. mean_entropy: of mlx_dg, in nats, at the last step of the short and
    of the long generation of a step row, otherwise empty.
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

    def __init__(self, directory: Path, items: int) -> None:
        self.tokenizer = Tokenizer.load(directory)
        self.stop_ids = GenerationConfig.load(directory).eos_token_id
        self.items = tasks.held_out_items(items, seed=0)
        self.prompts = [
            self.tokenizer.prompt_ids(list(item.messages), thinking=item.thinking, tools=item.declarations)
            for item in self.items
        ]

    def count_right(self, answers: list[list[int]]) -> int:
        return sum(self._is_right(*each) for each in zip(self.items, self.prompts, answers, strict=True))

    def _is_right(self, item: tasks.Item, prompt: list[int], token_ids: list[int]) -> bool:
        """True if the answer would be strictly right in the suite `demo` of `mlx_dg eval`."""
        parser = ChannelParser(self.tokenizer, prompt)
        text = parser.feed(token_ids) + parser.finish()
        calls = [(call.name, call.arguments) for call in text.tool_calls]
        ended = bool(token_ids) and token_ids[-1] in self.stop_ids
        thought = bool(text.thought.strip()) == item.thinking
        return ended and thought and tasks.is_right(item, text.answer, calls)


def flat_checkpoint(work: Path, vocab: int) -> Path:
    """Convert synthetic weights as drawn, unless `work` has them already. Return their directory."""
    target = work / f"flat-{vocab}"
    if not target.exists():
        config = config_of(replace(SMALL, vocab=vocab), layers=4)
        config["text_config"]["max_position_embeddings"] = CONTEXT
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            write_checkpoint(Path(scratch) / "source", config)
            convert(Path(scratch) / "source", target, dtype="float32")
    return target


def peaked_checkpoint(flat: Path, work: Path, vocab: int) -> Path:
    """Copy `flat`, with norms that give distributions like a trained model's. Return the copy's directory."""
    target = work / f"peaked-{vocab}"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            copy = Path(scratch) / "copy"
            shutil.copytree(flat, copy)
            for file in copy.glob("*.safetensors"):
                tensors: Any = mx.load(str(file))
                for name in tensors:
                    if name.endswith(BRANCHES):
                        tensors[name] *= PEAKED_BRANCHES
                tensors["model.decoder.norm.weight"] *= PEAKED_LAST_NORM
                mx.eval(tensors)
                mx.save_safetensors(str(file), tensors, metadata={"format": "mlx"})
            copy.rename(target)
    return target


def all_rows(models: dict[str, str], demo: Demo, options: argparse.Namespace) -> list[Row]:
    rng = np.random.default_rng(0)
    lengths = SHORT, options.prompt_tokens
    short, long = (rng.integers(10, demo.tokenizer.vocab_size, length).tolist() for length in lengths)
    at_short = {"model": models["peaked"], "prompt": short}
    at_long = {"model": models["peaked"], "prompt": long}
    step = {"measure": "step", "steps": options.steps}
    jobs: dict[str, Job] = {
        "step": at_short | step,
        "step-flat": at_short | step | {"model": models["flat"]},
        "step-long": at_long | step,
        "sampler": {"measure": "sampler", "rows": SMALL.canvas, "vocab": options.vocab},
        "prefill": at_long | {"measure": "prefill"},
        "memory": at_short | {"measure": "memory", "steps": STEPS_BEFORE + options.steps},
        "generation": {"measure": "generation", "model": models["demo"], "prompts": demo.prompts},
    }
    return [Row(name, jobs[name]) for name in ROWS if name in options.only]


def run(job: Job) -> dict[str, Any]:
    """Run the job in a new process and return its answer. If the process fails, exit with a message."""
    command = [sys.executable, str(Path(__file__).with_name("versus_sides.py"))]
    process = subprocess.run(command, input=json.dumps(job), stdout=subprocess.PIPE, text=True, check=False)
    if process.returncode:
        sys.exit(f"{job['measure']} of {job['side']} failed with exit status {process.returncode}")
    answer: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return answer


def measure(row: Row, index: int, demo: Demo) -> None:
    """Run round `index` of one row on both sides, and add the results to the row."""
    seeds = {"seed": 1000 * index} if row.name == "generation" else {}
    for side in sorted(SIDES, reverse=bool(index % 2)):
        answer = run(row.job | seeds | {"side": side})
        for metric in UNITS.keys() & answer.keys():
            row.figures.setdefault(metric, {name: [] for name in SIDES})[side].append(answer[metric])
        if "token_ids" in answer:
            row.right.setdefault(side, []).append(demo.count_right(answer["token_ids"]))
            row.steps.setdefault(side, []).append(answer["denoising_steps"])
        if side == "mlx_dg":
            row.mean_entropy = answer.get("mean_entropy", [])


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
    prompts = Demo(demo, options.items)
    paths = {name: str(path.resolve()) for name, path in models.items()}

    versions = ", ".join(f"{name} {version(name)}" for name in ("mlx", "mlx-vlm"))
    print(f"{versions}, {mx.default_device()}, {os.cpu_count()} cores, vocabulary {options.vocab}, ", end="")
    print(f"{options.steps} steps, {options.rounds} rounds; ratio: mlx_dg / mlx-vlm, median and range")
    print(f"{'':26}{'mlx_dg':>10}{'mlx-vlm':>10}{'ratio':>8}", flush=True)
    for row in all_rows(paths, prompts, options):
        for index in range(options.rounds):
            measure(row, index, prompts)
        print_row(row, len(prompts.items))


def main() -> None:
    parser = argparse.ArgumentParser(description="mlx_dg against mlx-vlm, side by side.")
    add = parser.add_argument
    add("--only", nargs="+", choices=ROWS, default=ROWS, metavar="ROW", help=", ".join(ROWS))
    add("--rounds", type=int, default=3)
    add("--steps", type=int, default=4, help="denoising steps that are timed")
    add("--vocab", type=int, default=262144, help="of the synthetic checkpoint; 4096 is quick")
    add("--prompt-tokens", type=int, default=4096, help="of the long prompt")
    add("--items", type=int, default=3, help="demo prompts for each task and thinking mode; 3 make 42")
    add("--work", type=Path, help="keep the checkpoints in this directory")
    options = parse(parser, SMOKE, needs_mlx_vlm=True)
    if options.vocab < 1024:
        parser.error("--vocab must be at least 1024: the tokenizer has 704 tokens")

    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        compare(options, work)


if __name__ == "__main__":
    main()
