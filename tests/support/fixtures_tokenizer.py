"""Writes small tokenizers with Gemma's conventions but other ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SPACE = "\u2581"
SPECIAL = [
    "<pad>", "<eos>", "<bos>", "<unk>", "<mask>", '<|"|>', "<|think|>", "<|turn>", "<turn|>",
    "<|channel>", "<channel|>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>",
    "<|tool_response>", "<tool_response|>", "<|image>", "<|image|>", "<image|>", "<|audio|>",
]  # fmt: skip
# A merge makes each token of several characters. All other tokens are characters or bytes.
MERGES = [
    ("t", "h"), ("o", "u"), ("g", "h"), ("th", "ou"), ("gh", "t"), ("m", "o"), ("d", "e"), ("l", "l"),
    ("ll", "o"), ("c", "a"), ("ca", "ll"), (SPACE, "th"), (SPACE, "ou"),
]  # fmt: skip
TEMPLATE = """{{ bos_token }}
{%- set has_system = messages[0].role == 'system' -%}
{%- if enable_thinking or tools or has_system -%}
{{ '<|turn>system\\n' }}{{ '<|think|>\\n' if enable_thinking }}
{{- messages[0].content if has_system }}
{%- for tool in tools or [] -%}
<|tool>{{ tool.function.name }}({{ tool.function.parameters.properties | join(',') }})<tool|>
{%- endfor -%}
{{ '<turn|>\\n' }}
{%- endif -%}
{%- for message in messages[(1 if has_system else 0):] -%}
{%- if message.role == 'system' -%}{{ raise_exception('the system message comes\\nfirst') }}{%- endif -%}
{{ '<|turn>' }}{{ {'user': 'user', 'assistant': 'model', 'tool': 'tool'}[message.role] }}{{ '\\n' }}
{%- for call in message.tool_calls or [] -%}
<|tool_call>call:{{ call.function.name }}{}<tool_call|>
{%- endfor -%}
{{ message.content.value if message.content is mapping else message.content }}{{ '<turn|>\\n' }}
{%- endfor -%}
{{ '<|turn>model\\n' if add_generation_prompt }}"""
CONFIG = {
    "tokenizer_class": "GemmaTokenizer",
    "bos_token": "<bos>",
    "eos_token": {"__type": "AddedToken", "content": "<turn|>"},  # not the real eos, as in some copies
    "pad_token": "[PAD]",  # not in the vocabulary, and must not be added to it
}


def write_tokenizer(directory: Path, *, strip_first_space: bool = False, template: bool = True) -> Path:
    """Write tokenizer files, and a config.json of an unknown model type, into `directory`. Return it.

    strip_first_space: add a space before a text and strip it in decoding, as Llama's tokenizers do.
    """
    characters = [chr(code) for code in range(33, 127)] + [SPACE, "\n", "é"]
    names = [*SPECIAL, *(f"<0x{value:02X}>" for value in range(256)), *characters]
    names += [left + right for left, right in MERGES] + ["<unused0>"]
    vocabulary = {name: index for index, name in enumerate(names)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": vocabulary[name], "content": name, "special": True, **flags} for name in SPECIAL]
    for index, name in enumerate(["<table>", "\n\n", "\n\n\n"], start=len(names)):
        added.append({"id": index, "content": name, "special": name == "\n\n\n", **flags})
    first = {"Sequence": {"id": "A", "type_id": 0}}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    decoders: list[dict[str, object]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if strip_first_space:
        replace = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace]}
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    tokenizer = {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 8}, "direction": "Left", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>",
        },
        "added_tokens": added,
        "normalizer": replace,
        "pre_tokenizer": None,
        # Like Gemma's, it adds bos. A prompt whose template also writes bos must not have it twice.
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, first],
            "pair": [first, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [vocabulary["<bos>"]], "tokens": ["<bos>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": vocabulary, "merges": [list(pair) for pair in MERGES],
        },
    }  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (directory / "config.json").write_text('{"model_type": "diffusion_gemma_9"}', encoding="utf-8")
    if template:
        (directory / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return directory


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message
