"""Training batches: items of the task mixture as (prompt ids, one canvas of clean ids)."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from .. import tasks

CANVAS = 64


def render_prompt(item: tasks.Item) -> str:
    """Return what chat_template.jinja renders, in plain Python: a step needs 84, and Jinja takes 1 ms each.

    One thing differs: the template opens the thought after a tool's response, and here the model writes that.
    """

    def value(x: object) -> str:
        if isinstance(x, list):
            return "[" + ",".join(value(v) for v in x) + "]"
        return f'<|"|>{x}<|"|>'

    out, system = ["<bos>"], ""
    messages = list(item.messages)
    if messages[0]["role"] == "system":
        system = messages.pop(0)["content"]
    if item.thinking or item.tools or system:
        out.append("<|turn>system\n" + ("<|think|>\n" if item.thinking else "") + system)
        for declaration in item.declarations or ():
            f = declaration["function"]
            out.append(
                f"<|tool>declaration:{f['name']}{{description:{value(f['description'])},parameters:{{properties:"
                f"{{city:{{description:{value('City name')},type:{value('STRING')}}}}},"
                f"required:{value(['city'])},type:{value('OBJECT')}}}}}<tool|>"
            )
        out.append("<turn|>\n")
    is_open = False
    for message in messages:
        if message["role"] == "tool":
            content = value(message["content"])
            out.append(f"<|tool_response>response:{message['name']}{{value:{content}}}<tool_response|>")
        elif message["role"] == "assistant":
            out.append("<|turn>model\n" + message["content"])
            for call in message.get("tool_calls", ()):
                f = call["function"]
                city = value(f["arguments"]["city"])
                out.append(f"<|tool_call>call:{f['name']}{{city:{city}}}<tool_call|>")
            is_open = bool(message.get("tool_calls"))
            if not is_open:
                out.append("<turn|>\n")
        else:
            out.append(f"<|turn>user\n{message['content']}<turn|>\n")
    return "".join(out) + ("" if is_open else "<|turn>model\n")


class Batches:
    """Draws fixed-shape batches: `short` prompts and `long` ones are padded apart, to waste little work."""

    def __init__(self, directory: Path, seed: int, short: tuple[int, int], long: tuple[int, int]) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.rng = random.Random(seed)
        self.shapes = (short, long)  # (rows, padded prompt length)
        self.queues: tuple[list[tuple[list[int], list[int]]], ...] = ([], [])

    def sample(self) -> tuple[list[int], list[int]]:
        """(prompt ids, 64 clean ids of one canvas); of a long output any canvas, the last one more often."""
        item = tasks.training_item(self.rng)
        prompt = self.tokenizer.encode(render_prompt(item), add_special_tokens=False).ids
        target = self.tokenizer.encode(item.target, add_special_tokens=False).ids
        blocks = -(-len(target) // CANVAS)
        k = blocks - 1 if self.rng.random() < 0.5 else self.rng.randrange(blocks)
        canvas = target[k * CANVAS : (k + 1) * CANVAS]
        return prompt + target[: k * CANVAS], canvas + [0] * (CANVAS - len(canvas))

    def batch(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each shape: prompts [rows, P] (right padded), their lengths [rows], canvases [rows, 64]."""
        out = []
        while any(len(q) < rows for q, (rows, _) in zip(self.queues, self.shapes, strict=True)):
            prompt, canvas = self.sample()
            which = 0 if len(prompt) <= self.shapes[0][1] else 1
            if len(prompt) <= self.shapes[1][1] and len(self.queues[which]) < 4 * self.shapes[which][0]:
                self.queues[which].append((prompt, canvas))
        for queue, (rows, width) in zip(self.queues, self.shapes, strict=True):
            taken, queue[:] = queue[:rows], queue[rows:]
            prompts = np.zeros((rows, width), np.int64)
            for row, (prompt, _) in zip(prompts, taken, strict=True):
                row[: len(prompt)] = prompt
            lengths = np.array([len(p) for p, _ in taken])
            out.append((prompts, lengths, np.array([c for _, c in taken])))
        return out
