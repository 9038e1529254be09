"""How a generation displays itself in a notebook: one piece of HTML that needs nothing from outside.

Text by channels and a line of statistics; with a trace also its canvases, which `trace_view.html` makes
interactive. Where no script runs (GitHub, a notebook that is not trusted), text and still pictures remain.
The model's text is untrusted: it is escaped in HTML, and data in JSON that cannot end a script element.
"""

from __future__ import annotations

import base64
import json
import re
import struct
import zlib
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from .pieces import Pieces

if TYPE_CHECKING:
    from mlx_diffusiongemma.channels import ToolCall
    from mlx_diffusiongemma.generation import Generation
    from mlx_diffusiongemma.tokenizer import Tokenizer
    from mlx_diffusiongemma.trace import TracedCanvas

# Entropies are one byte each, on a logarithmic scale between these; 12.5 nats is a guess among 262144 tokens.
LEAST_NATS, MOST_NATS = 0.001, 12.5
MOST_STILLS = 4  # of the last canvases, where no script runs
_HUE = (230, 97, 0)  # of entropy, by opacity, so that it reads on light and on dark; also in trace_view.html
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def page(generation: Generation) -> str:
    """HTML of `generation`, run to its end, and of the candidates that share its prompt."""
    shown = generation.candidates
    if len({each.candidate for each in shown}) < len(shown):  # a batch: the others answer other prompts
        shown = [generation]
    traced = any(each.trace is not None for each in shown)
    template = files(__package__).joinpath("trace_view.html").read_text("utf-8")
    style, script = template.split("<!-- script -->\n")
    sections = "".join(_section(each, len(shown) > 1) for each in shown)
    return f'{style}<div class="mlx-dg">\n{sections}</div>\n{script if traced else ""}'


def _section(generation: Generation, numbered: bool) -> str:
    blocks = list(generation)  # runs it
    parts = [f"<p><b>candidate {generation.candidate}</b></p>"] if numbered else []
    if thought := "".join(block.thought for block in blocks):
        parts.append(f"<details><summary>thought</summary><pre>{text(thought)}</pre></details>")
    if answer := "".join(block.answer for block in blocks):
        parts.append(f'<pre class="mlx-dg-answer">{text(answer)}</pre>')
    parts += [_call(call) for block in blocks for call in block.tool_calls]
    parts += [f"<p>⚠ {text(block.warning)}</p>" for block in blocks if block.warning]
    parts.append(f'<p class="mlx-dg-dim"><small>{_statistics(generation)}</small></p>')
    if generation.trace is not None and generation.trace.steps:
        parts.append(trace_view(generation.trace.canvases, generation.tokenizer))
    return "<section>" + "\n".join(parts) + "</section>\n"


def _call(call: ToolCall) -> str:
    if call.error is not None:
        return f"<p>⚠ tool call: {text(call.error)}</p>\n<pre><code>{text(call.raw)}</code></pre>"
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return f"<p>tool call</p>\n<pre><code>{text(f'{call.name}({arguments})')}</code></pre>"


def _statistics(generation: Generation) -> str:
    stats = generation.stats
    return " · ".join(
        [
            f"{stats.new_tokens} tokens in {stats.denoising_steps} steps, {stats.blocks} "
            + ("block" if stats.blocks == 1 else "blocks"),
            f"{stats.tokens_per_forward:.1f} tokens per forward",
            f"in-step {stats.in_step_tokens_per_second:.1f}, gross {stats.gross_tokens_per_second:.1f}, "
            f"net {stats.net_tokens_per_second:.1f} tokens/s",
            f"ended by {generation.finish_reason or 'an interrupt'}",
            f"seed {generation.seed}",
        ]
    )


def text(raw: str) -> str:
    """`raw` as HTML; control characters other than tab and newline as visible signs."""

    def sign(control: re.Match[str]) -> str:
        return chr(0x2400 + ord(control[0])) if control[0] < " " else "\ufffd"

    return escape(_CONTROLS.sub(sign, raw))


# --- the trace --------------------------------------------------------------------------------------------


def trace_view(canvases: list[TracedCanvas], tokenizer: Tokenizer) -> str:
    """The canvases as data for the script, and as stills."""
    data = json.dumps(view_data(canvases, tokenizer), separators=(",", ":"))  # ASCII: U+2028 is escaped, too
    for character in "<>&":  # neither an end tag nor a comment can appear
        data = data.replace(character, f"\\u{ord(character):04x}")
    committed = [canvas for canvas in canvases if canvas.committed]
    stills = "\n".join(map(_still, committed[-MOST_STILLS:]))
    return (
        f'<div class="mlx-dg-view" data-lm-suppress-shortcuts="true">'
        f'<script type="application/json">{data}</script>\n<div class="mlx-dg-still">{stills}</div></div>'
    )


def view_data(canvases: list[TracedCanvas], tokenizer: Tokenizer) -> dict[str, Any]:
    """What the script needs, in JSON's types.

    texts: what tokens read, each once; special: how many of them, the first ones, are no text. Of each
    canvas, packed and in base64: entropies, a byte each; accepted, a bit each; drafts, for each step the
    number of tokens that differ from the step before's and for each of them the distance from the last one
    and the place in `texts`; changed, the step in which each token last changed. steps: per step index,
    temperature, mean entropy, seconds and how many steps there may be.
    """
    pieces = Pieces(tokenizer)
    hidden = sorted(tokenizer.hidden_ids & {int(i) for c in canvases for i in np.unique(c.draft_ids)})
    special = list(dict.fromkeys(pieces(hidden)))
    known = {(True, piece): place for place, piece in enumerate(special)}

    def places(ids: np.ndarray) -> np.ndarray:
        keys = [(int(i) in tokenizer.hidden_ids, piece) for i, piece in zip(ids, pieces(ids), strict=True)]
        return np.array([known.setdefault(key, len(known)) for key in keys])

    packed = [_packed(canvas, [places(step.draft_ids) for step in canvas.steps]) for canvas in canvases]
    pad = tokenizer.special.pad
    return {
        "texts": [piece for _, piece in known],
        "special": len(special),
        "pad": -1 if pad is None or pad not in hidden else special.index(pieces([pad])[0]),
        "length": canvases[0].draft_ids.shape[1],
        "nats": [LEAST_NATS, MOST_NATS],
        "canvases": packed,
    }


def _packed(canvas: TracedCanvas, drafts: list[np.ndarray]) -> dict[str, Any]:
    numbers: list[int] = []
    for before, draft in zip([np.full_like(drafts[0], -1), *drafts], drafts, strict=False):
        (positions,) = np.nonzero(before != draft)
        gaps = np.diff(positions, prepend=0)
        numbers += [len(positions), *np.stack([gaps, draft[positions]], axis=1).ravel().tolist()]
    steps = []
    for step in canvas.steps:
        measured = (float(f"{x:.4g}") for x in (step.temperature, step.mean_entropy, step.seconds))
        steps.append([step.index, *measured, step.index + step.step])
    return {
        "block": canvas.block,
        "attempt": canvas.attempt,
        "committed": canvas.committed,
        "steps": steps,
        "entropies": _base64(quantised(canvas.entropies).tobytes()),
        "accepted": _base64(np.packbits(canvas.accepted, bitorder="little").tobytes()),
        "drafts": _base64(_varints(numbers)),
        "changed": _base64(_varints(canvas.last_changed.tolist())),
    }


def quantised(entropies: np.ndarray) -> np.ndarray:
    """Nats -> uint8 on the logarithmic scale; 0: at most `LEAST_NATS`."""
    share = np.log(np.maximum(entropies, LEAST_NATS) / LEAST_NATS) / np.log(MOST_NATS / LEAST_NATS)
    return np.rint(255 * np.minimum(share, 1)).astype(np.uint8)


def _varints(numbers: Iterable[int]) -> bytes:
    """Seven bits a byte, lowest first; the eighth says that more follow."""
    out = bytearray()
    for number in numbers:
        while number > 127:
            out.append(number & 127 | 128)
            number >>= 7
        out.append(number)
    return bytes(out)


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _still(canvas: TracedCanvas) -> str:
    """The heat map as a picture, for where no script runs."""
    steps, length = canvas.entropies.shape
    first, last = canvas.steps[0].mean_entropy, canvas.steps[-1].mean_entropy
    about = f"canvas {canvas.block + 1}, {steps} steps: mean entropy {first:.3g} to {last:.3g} nats"
    pixel = np.ones((max(1, min(12, 240 // steps)), max(1, 640 // length)), np.uint8)
    return (
        f"<figure><figcaption><small>{about}. Entropy, left to right {length} positions, downwards steps; "
        f"the stronger the less certain ({LEAST_NATS} to {MOST_NATS} nats, logarithmic).</small></figcaption>"
        f'<img alt="{about}" src="data:image/png;base64,'
        f'{_base64(_png(np.kron(quantised(canvas.entropies), pixel)))}"></figure>'
    )


def _png(opacity: np.ndarray) -> bytes:
    """uint8 `[H, W]` as a PNG of one colour. (Written here, because matplotlib need not be installed.)"""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    height, width = opacity.shape
    rows = np.hstack([np.zeros((height, 1), np.uint8), opacity])  # each begins with the filter, none
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        + chunk(b"PLTE", bytes(_HUE) * 256)
        + chunk(b"tRNS", bytes(range(256)))
        + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9))
        + chunk(b"IEND", b"")
    )
