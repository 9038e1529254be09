"""Draws training batches. A sample is an item of the tasks as prompt ids and the ids of one canvas."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from .. import tasks

CANVAS = 64


def render_prompt(item: tasks.Item) -> str:
    """Return the prompt that chat_template.jinja renders. Jinja would take 1 ms each, and a step needs 84.

    One thing differs. After a tool's response the template opens the thought. Here the model must open it.
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
    """Draws batches of fixed shape, which have a part for short and a part for long prompts, to save padding.

    short, long: number of rows and padded prompt length of each part.
    """

    def __init__(self, directory: Path, seed: int, short: tuple[int, int], long: tuple[int, int]) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.rng = random.Random(seed)
        self.shapes = (short, long)  # each (rows, padded prompt length)
        self.queues: tuple[list[tuple[list[int], list[int]]], ...] = ([], [])

    def sample(self) -> tuple[list[int], list[int]]:
        """Return prompt ids, with the earlier canvases of an output, and 64 ids of its next canvas.

        In half of the cases this is the last canvas, otherwise any canvas.
        """
        item = tasks.training_item(self.rng)
        prompt = self.tokenizer.encode(render_prompt(item), add_special_tokens=False).ids
        target = self.tokenizer.encode(item.target, add_special_tokens=False).ids
        blocks = -(-len(target) // CANVAS)
        k = blocks - 1 if self.rng.random() < 0.5 else self.rng.randrange(blocks)
        canvas = target[k * CANVAS : (k + 1) * CANVAS]
        return prompt + target[: k * CANVAS], canvas + [0] * (CANVAS - len(canvas))

    def batch(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Return right-padded prompts [rows, P], lengths [rows] and canvases [rows, 64] of each shape."""
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
