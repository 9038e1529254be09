"""Builds the demo's tokenizer: Gemma's conventions and special-token ids in a vocabulary of 704.

It has Gemma's normalizer, byte fallback, decoder and ids (0-4, 46-52, 98-107), so that the demo tests code
that relies on them. Instead of merges, the vocabulary has the most frequent whole words of the tasks
(`ignore_merges`). So a word to spell backwards is always split into letters, every digit is a token, and no
ids are needed for the intermediate results of merges.

The bundled tokenizer.json was built before training began, and the weights depend on it. Its words depend on
the task shares, which changed later (see training.log). So a new tokenizer fits only new weights.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from .. import tasks

VOCAB_SIZE = 704
SPECIAL = {
    "<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4,
    "<|tool>": 46, "<tool|>": 47, "<|tool_call>": 48, "<tool_call|>": 49,
    "<|tool_response>": 50, "<tool_response|>": 51, '<|"|>': 52, "<|think|>": 98,
    "<|channel>": 100, "<channel|>": 101, "<|turn>": 105, "<turn|>": 106,
    "<|image>": 701, "<|image|>": 702, "<image|>": 703,
}  # fmt: skip
SPACE = "\u2581"
CHUNK = rf"{SPACE}?[A-Za-z_]+|[0-9]|\n|(?:[^A-Za-z_0-9\n{SPACE}]|{SPACE}(?![A-Za-z_]))+"


def frequent_chunks(render: Callable[[tasks.Item], str], count: int, samples: int = 20000) -> list[str]:
    """Return the `count` chunks of several characters that save most tokens in rendered training items."""
    rng = random.Random(7)
    specials = re.compile("|".join(re.escape(s) for s in SPECIAL))
    counter: Counter[str] = Counter()
    for _ in range(samples):
        item = tasks.training_item(rng)
        if item.task in ("spelling", "other") and rng.random() < 0.9:
            continue
        text = (render(item) + item.target).replace(" ", SPACE)
        for part in specials.split(text):
            counter.update(c for c in re.findall(CHUNK, part) if len(c) > 1)
    for name in (*tasks.CAPITALS, *tasks.CITIES):  # every name, with and without a space before it
        counter[name] += 10**6
        counter[SPACE + name] += 10**6
    for text in (*tasks.OTHER_PROMPTS, tasks.OTHER_ANSWER, *tasks.SYSTEM_MESSAGES):
        chunks = re.findall(CHUNK, text.replace(" ", SPACE))
        counter.update(c for c in chunks if c.startswith(SPACE) and len(c) > 2)
    spelled = set(tasks.REAL_WORDS)
    ranked = sorted(counter, key=lambda c: (-counter[c] * (len(c) - 1), c))
    return [c for c in ranked if c not in spelled and counter[c] > 1][:count]


def build(directory: Path, render: Callable[[tasks.Item], str]) -> None:
    """Write tokenizer.json and tokenizer_config.json into `directory`."""
    singles = [SPACE] + [chr(c) for c in range(33, 127)]
    taken = {**SPECIAL, "\n": 107}
    free = [i for i in range(VOCAB_SIZE) if i not in set(taken.values())]
    fixed = singles + [f"<0x{b:02X}>" for b in range(256)]
    chunks = frequent_chunks(render, len(free) - len(fixed))
    # Words and characters get the lower free ids, bytes the higher ones. Only the order of ids depends on it.
    for token, index in zip(singles + chunks + fixed[len(singles) :], free, strict=False):
        taken[token] = index
    for index in sorted(set(range(VOCAB_SIZE)) - set(taken.values())):
        taken[f"<unused{index}>"] = index
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": t, **flags} for t, i in SPECIAL.items()],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {
            "type": "Split", "pattern": {"Regex": CHUNK}, "behavior": "Isolated", "invert": False,
        },
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": True,
            "vocab": dict(sorted(taken.items(), key=lambda kv: kv[1])), "merges": [],
        },
    }  # fmt: skip
    (directory / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False, indent=1) + "\n")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>",
        "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>", "padding_side": "left",
        "clean_up_tokenization_spaces": False, "model_max_length": 4096,
    }  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
