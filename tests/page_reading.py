"""Reads a generation's HTML as a browser and its script do."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import numpy as np

from mlx_diffusiongemma.display.notebook import quantised
from mlx_diffusiongemma.display.pieces import Pieces


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
    steps, numbers, draft = len(packed["steps"]), iter(varints(packed["drafts"])), [-1] * length
    drafts = [draft := changed(draft, numbers) for _ in range(steps)]
    assert next(numbers, None) is None
    entropies = np.frombuffer(base64.b64decode(packed["entropies"]), np.uint8)
    bits = np.frombuffer(base64.b64decode(packed["accepted"]), np.uint8)
    accepted = np.array([bits[i // 8] >> i % 8 & 1 for i in range(steps * length)])
    return np.array(drafts), entropies.reshape(steps, length), accepted.reshape(steps, length)


def committed(packed: dict[str, Any], length: int) -> list[int]:
    """Places of the block's tokens."""
    numbers = iter(varints(packed["finished"]))
    final = changed(unpacked(packed, length)[0][-1].tolist(), numbers)
    assert next(numbers, None) is None
    return final[: packed["count"]]


def changed(draft: list[int], numbers: Iterator[int]) -> list[int]:
    draft, position = list(draft), 0
    for _ in range(next(numbers)):
        position += next(numbers)
        draft[position] = next(numbers)
    return draft


def check_view(view: dict[str, Any], generation: Any) -> None:
    """That the data of a view are the trace of `generation`."""
    pieces, tokenizer = Pieces(generation.tokenizer), generation.tokenizer
    canvases = generation.trace.canvases
    assert len(view["canvases"]) == len(canvases) > 0
    for packed, canvas in zip(view["canvases"], canvases, strict=True):
        drafts, entropies, accepted = unpacked(packed, view["length"])
        for draft, step in zip(drafts, canvas.steps, strict=True):
            assert [view["texts"][place] for place in draft] == pieces(step.draft_ids)
            hidden = [token in tokenizer.hidden_ids for token in step.draft_ids.tolist()]
            assert (draft < view["special"]).tolist() == hidden
            assert (draft == view["pad"]).tolist() == (step.draft_ids == tokenizer.special.pad).tolist()
        np.testing.assert_array_equal(accepted, canvas.accepted)
        np.testing.assert_array_equal(entropies, quantised(canvas.entropies))
        assert varints(packed["changed"]) == canvas.last_changed.tolist()
        again = any((canvas.block, canvas.attempt + 1) == (o.block, o.attempt) for o in canvases)
        state = "committed" if canvas.committed else "again" if again else "ended"
        about = (packed["block"], packed["attempt"], packed["state"], packed["count"])
        assert about == (canvas.block, canvas.attempt, state, canvas.token_count)
        if canvas.committed:
            ids = generation.blocks[canvas.block].token_ids
            found = [view["texts"][place] for place in committed(packed, view["length"])]
            assert found == pieces(canvas.committed_ids)[: len(ids)]
            assert canvas.committed_ids[: len(ids)].tolist() == ids
        expected = [
            [step.index, step.temperature, step.mean_entropy, step.seconds, step.index + step.step]
            for step in canvas.steps
        ]
        np.testing.assert_allclose(packed["steps"], expected, rtol=1e-3)
