"""Reads a generation's HTML as a browser and its script do."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser
from typing import Any

import numpy as np


class Parsed(HTMLParser):
    """What a browser finds: tags with their attributes, text, and what scripts hold."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = self.answer = ""
        self.scripts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("img", "br"):
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts[-1] += data
        elif "style" not in self.open:
            self.text += data
            self.answer += data if self.open[-1:] == ["pre"] and "details" not in self.open else ""


def views(html: str) -> list[dict[str, Any]]:
    parsed = Parsed(html)
    kinds = [attributes for tag, attributes in parsed.tags if tag == "script"]
    contents = zip(kinds, parsed.scripts, strict=True)
    return [json.loads(content) for kind, content in contents if kind.get("type") == "application/json"]


def varints(text: str) -> list[int]:
    numbers, value, shift = [], 0, 0
    for byte in base64.b64decode(text):
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(value)
            value = shift = 0
    return numbers


def unpacked(packed: dict[str, Any], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the script reads: places of drafts, entropies as bytes, accepted; `[S, C]` each."""
    steps, numbers, draft, drafts = len(packed["steps"]), iter(varints(packed["drafts"])), [-1] * length, []
    for _ in range(steps):
        position = 0
        for _ in range(next(numbers)):
            position += next(numbers)
            draft[position] = next(numbers)
        drafts.append(list(draft))
    assert next(numbers, None) is None
    entropies = np.frombuffer(base64.b64decode(packed["entropies"]), np.uint8)
    bits = np.frombuffer(base64.b64decode(packed["accepted"]), np.uint8)
    accepted = np.array([bits[i // 8] >> i % 8 & 1 for i in range(steps * length)])
    return np.array(drafts), entropies.reshape(steps, length), accepted.reshape(steps, length)
