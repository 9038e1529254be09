"""Trains the demo checkpoint from scratch on a CPU: uniform-state block diffusion over the synthetic tasks.

    python -m mlx_diffusiongemma.demo.training.train --minutes 70 --seed 0

A sample is a prompt and one 64-token canvas of its output. Each token of the canvas is replaced by a random
one with the probability t ** `--noise-power`. t ~ U(0, 1) is drawn for each sample. (A low power means more
noise, at which the model must work out the answer instead of reading it.) The loss is the cross entropy of
the clean token at every position, including the padding after the stop token. Half of the batches get
self-conditioning from a first pass without it. Muon trains matrices, AdamW the other parameters. The learning
rate depends on the elapsed time, so that its schedule ends after `--minutes`. The saved checkpoint is a
moving average of the weights, in bfloat16. `training.log` records the runs that made the bundled checkpoint.

For speed set MALLOC_MMAP_THRESHOLD_=8589934592 and MALLOC_TRIM_THRESHOLD_=17179869184. Otherwise every step
allocates its memory from the operating system again.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import data, network, train_tokenizer

HERE = Path(__file__).parent
CHECKPOINT = HERE.parent / "checkpoint"  # its configuration files define the model that is trained
RECORDED = ("minutes", "seed", "rate", "muon_rate", "noise_power", "warm_up", "resume")
SHAPES = ((64, 40), (20, 176))  # (rows, prompt tokens) of the two parts of a batch


def new_model(seed: int) -> nn.Module:
    from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

    torch.manual_seed(seed)
    model = DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig.from_pretrained(CHECKPOINT))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "vision" not in name and p.dim() >= 2:
                p.normal_(0, 0.05)
            elif "q_norm" in name or "k_norm" in name:
                p.fill_(p.shape[0] ** -0.25)  # the attention scale is 1: start from the usual 1/sqrt(d)
    return model


def check_against_transformers(model: nn.Module) -> None:
    """Raise `RuntimeError` if logits of network.py and of the Transformers class differ by more than 1e-4."""
    prompt, canvas = torch.randint(0, 704, (2, 150)), torch.randint(0, 704, (2, 64))
    lengths, before = torch.tensor([150, 33]), torch.randn(2, 64, 704) * 3
    with torch.no_grad():
        soft = network.soft_embedding(model, before, torch.ones(2, 1, 1))
        ours = network.canvas_logits(model, prompt, canvas, network.build_masks(lengths, 150, 64, 128), soft)
        for row, length in enumerate(lengths.tolist()):
            theirs = model(input_ids=prompt[row : row + 1, :length], decoder_input_ids=canvas[row : row + 1],
                           self_conditioning_logits=before[row : row + 1]).logits  # fmt: skip
            difference = (ours[row] - theirs[0]).abs().max().item()
            if difference > 1e-4:
                raise RuntimeError(f"network.py differs from Transformers by {difference}")


def save(model: nn.Module, weights: dict[str, Tensor], directory: Path) -> None:
    """Write configuration files and bfloat16 weights into `directory`. Each file is replaced atomically."""
    from transformers import DiffusionGemmaForBlockDiffusion, DiffusionGemmaGenerationConfig

    scratch = directory.parent / (directory.name + ".new")
    shutil.rmtree(scratch, ignore_errors=True)
    copy = DiffusionGemmaForBlockDiffusion(model.config)
    copy.load_state_dict(weights, strict=False)
    copy = copy.to(torch.bfloat16)
    copy.generation_config = DiffusionGemmaGenerationConfig.from_pretrained(CHECKPOINT)
    copy.save_pretrained(scratch)
    config = json.loads((scratch / "config.json").read_text())
    full = {"global_head_dim": 64, "num_global_key_value_heads": 1}  # Google's spelling, beside Transformers'
    config["text_config"] = dict(sorted({**config["text_config"], **full}.items()))
    (scratch / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for file in scratch.iterdir():
        file.chmod(0o644)  # safetensors creates its files for the owner alone
        file.replace(directory / file.name)
    scratch.rmdir()


def worker(queue: Any, directory: Path, seed: int) -> None:
    batches = data.Batches(directory, seed, *SHAPES)
    while True:
        queue.put(batches.batch())


class Muon:
    """The optimizer Muon for matrices: momentum with orthogonalised updates. Each expert is one matrix."""

    def __init__(self, params: list[Tensor], momentum: float = 0.95) -> None:
        self.params, self.momentum = params, momentum
        self.buffers = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step(self, rate: float, decay: float) -> None:
        for p, m in zip(self.params, self.buffers, strict=True):
            if p.grad is None:
                continue
            m.lerp_(p.grad, 1 - self.momentum)
            g = p.grad.lerp(m, self.momentum)
            tall = g.shape[-2] > g.shape[-1]
            x = g.mT if tall else g
            x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
            for a, b, c in ((3.4445, -4.7750, 2.0315),) * 5:  # Newton-Schulz
                s = x @ x.mT
                x = a * x + (b * s + c * s @ s) @ x
            x = (x.mT if tall else x).float()
            p.mul_(1 - rate * decay).add_(x, alpha=-rate * max(1, p.shape[-2] / p.shape[-1]) ** 0.5)


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    started = time.time()
    log = open(args.log, "a", buffering=1)  # noqa: SIM115 - lives as long as the process

    def say(text: str) -> None:
        print(text, flush=True)
        log.write(text + "\n")

    if args.tokenizer and args.resume:
        raise SystemExit("--tokenizer changes what the ids mean: it cannot be combined with --resume")
    if args.tokenizer or not (args.out / "tokenizer.json").exists():
        train_tokenizer.build(args.out, data.render_prompt)
    model = new_model(args.seed)
    text_config = model.config.text_config
    check_against_transformers(model)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad and "vision" not in n}
    if args.resume:
        state = torch.load(args.resume)
        model.load_state_dict(state["ema"], strict=False)
    by_adam = ("embed_tokens", "router")
    matrices = [p for n, p in trained.items() if p.dim() >= 2 and not any(name in n for name in by_adam)]
    is_matrix = {id(p) for p in matrices}
    others = [p for p in trained.values() if id(p) not in is_matrix]
    muon, adam = Muon(matrices), torch.optim.AdamW(others, lr=args.rate, betas=(0.9, 0.98), weight_decay=0.0)
    ema = {n: p.detach().clone() for n, p in trained.items()}
    forward = torch.compile(network.canvas_logits, dynamic=False)
    queue: Any = multiprocessing.Queue(maxsize=8)
    worker_args = (queue, args.out, args.seed + 1000 * bool(args.resume))
    source = multiprocessing.Process(target=worker, args=worker_args, daemon=True)
    source.start()
    say(f"parameters {sum(p.numel() for p in trained.values())}, shapes {SHAPES}, "
        + ", ".join(f"{k} {getattr(args, k)}" for k in RECORDED))  # fmt: skip
    generator = torch.Generator().manual_seed(args.seed)
    step, losses, saved, reported, norms = 0, [], time.time(), time.time(), []
    begun = None  # the clock of the schedule starts after compilation
    while True:
        now = time.time()
        progress = 0.0 if begun is None else (now - begun) / (args.minutes * 60 - (begun - started))
        if progress >= 1:
            break
        scale = min(1.0, (step + 1) / args.warm_up) * (0.5 + 0.5 * math.cos(math.pi * progress)) + 0.002
        conditioned = bool(torch.rand((), generator=generator) < 0.5)
        total = 0.0
        for prompts, lengths, clean in queue.get():
            prompt, canvas = torch.from_numpy(prompts), torch.from_numpy(clean)
            rows = len(canvas)
            rate = torch.rand(rows, 1, generator=generator) ** args.noise_power
            noise = torch.randint(0, text_config.vocab_size, canvas.shape, generator=generator)
            noisy = torch.where(torch.rand(canvas.shape, generator=generator) < rate, noise, canvas)
            masks = network.build_masks(torch.from_numpy(lengths), prompt.shape[1], data.CANVAS, 128)
            soft = torch.zeros(rows, data.CANVAS, text_config.hidden_size)  # like None: its MLP maps 0 to 0
            with torch.autocast("cpu", dtype=torch.bfloat16):
                if conditioned:
                    # Gradients stay on only because this reuses the compiled graph.
                    first = forward(model, prompt, noisy, masks, soft).detach()
                    with torch.no_grad():
                        # The sampler uses logits / T with T from 0.4 to 0.8. Cover these and T = 1.
                        heat = 0.4 + 0.6 * torch.rand(rows, 1, 1, generator=generator)
                        soft = network.soft_embedding(model, first, heat).float()
                logits = forward(model, prompt, noisy, masks, soft)
            loss = F.cross_entropy(logits.flatten(0, 1), canvas.flatten())
            (loss * rows / sum(r for r, _ in SHAPES)).backward()
            total += loss.item() * rows / sum(r for r, _ in SHAPES)
        norms.append(nn.utils.clip_grad_norm_(trained.values(), 1.0).item())
        muon.step(args.muon_rate * scale, 0.01)
        for group in adam.param_groups:
            group["lr"] = args.rate * scale
        adam.step()
        for p in trained.values():
            p.grad = None
        with torch.no_grad():
            keep = min(0.998, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(ema.values()), list(trained.values()), 1 - keep)
        step += 1
        losses.append(total)
        if begun is None and step >= 4:
            begun = time.time()
        if time.time() - reported > 60:
            pace = (time.time() - reported) / len(losses)
            say(f"{(time.time() - started) / 60:5.1f} min  step {step:6d}  loss {np.mean(losses):.4f}  "
                f"grad {np.mean(norms):.2f}  {pace:.3f} s/step")  # fmt: skip
            losses, norms, reported = [], [], time.time()
        if time.time() - saved > args.save_minutes * 60:
            torch.save({"ema": ema, "step": step}, args.state.with_suffix(".tmp"))
            args.state.with_suffix(".tmp").replace(args.state)
            save(model, ema, args.out)
            saved = time.time()
    torch.save({"ema": ema, "step": step}, args.state)
    save(model, ema, args.out)
    say(f"{(time.time() - started) / 60:5.1f} min  step {step:6d}  loss {np.mean(losses or [0]):.4f}  done")
    source.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=70)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rate", type=float, default=3e-3, help="AdamW, for embeddings, norms and routers")
    parser.add_argument("--muon-rate", type=float, default=0.02, help="Muon, for matrices")
    parser.add_argument("--noise-power", type=float, default=1.0, help="t = U(0, 1) ** this")
    parser.add_argument("--warm-up", type=int, default=200, help="steps")
    parser.add_argument("--save-minutes", type=float, default=3)
    parser.add_argument("--out", type=Path, default=CHECKPOINT)
    parser.add_argument("--log", type=Path, default=HERE / "training.log")
    parser.add_argument("--state", type=Path, default=Path("demo-state.pt"), help="averaged float32 weights")
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--tokenizer", action="store_true", help="rebuild the tokenizer (new weights only)")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
