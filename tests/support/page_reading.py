"""Reads the HTML of a generation as a browser does, and the data that its script reads."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import numpy as np

from mlx_diffusiongemma.display.notebook import quantised
from mlx_diffusiongemma.display.pieces import Pieces


class Parsed(HTMLParser):
    """Parsed HTML: tags with their attributes, the text, the answer's text, and contents of scripts."""

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


def check_view(view: dict[str, Any], generation: Any) -> None:
    """Assert that the data of a view agree with the trace of `generation`."""
    pieces, tokenizer = Pieces(generation.tokenizer), generation.tokenizer
    canvases = generation.trace.canvases
    assert len(view["canvases"]) == len(canvases) > 0
    for data, canvas in zip(view["canvases"], canvases, strict=True):
        for draft, step in zip(data["drafts"], canvas.steps, strict=True):
            assert [view["texts"][place] for place in draft] == pieces(step.draft_ids)
            hidden = [token in tokenizer.hidden_ids for token in step.draft_ids.tolist()]
            assert [place < view["special"] for place in draft] == hidden
            assert [place == view["pad"] for place in draft] == (
                step.draft_ids == tokenizer.special.pad
            ).tolist()
        assert [[bit == "1" for bit in row] for row in data["accepted"]] == canvas.accepted.tolist()
        assert data["entropies"] == quantised(canvas.entropies).tolist()
        assert data["changed"] == canvas.last_changed.tolist()
        again = any((canvas.block, canvas.attempt + 1) == (o.block, o.attempt) for o in canvases)
        state = "committed" if canvas.committed else "again" if again else "ended"
        about = (data["block"], data["attempt"], data["state"], data["finished"])
        assert about == (canvas.block, canvas.attempt, state, len(canvas.finished))
        if canvas.committed:
            ids = generation.blocks[canvas.block].token_ids
            assert canvas.committed_ids[: len(ids)].tolist() == ids
            assert [view["texts"][p] for p in data["result"]] == pieces(canvas.committed_ids)[: len(ids)]
            assert data["finished"] == sum(np.array(data["result"]) != data["drafts"][-1][: len(ids)])
        else:
            assert data["result"] is None
        expected = [
            [step.index, step.temperature, step.mean_entropy, step.seconds, step.index + step.step]
            for step in canvas.steps
        ]
        np.testing.assert_allclose(data["steps"], expected, rtol=1e-3)
