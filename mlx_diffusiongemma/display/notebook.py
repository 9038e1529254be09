"""The view of a generation in a notebook: one piece of HTML that loads nothing else.

It shows thought, answer, tool calls and a line of statistics. A trace adds its canvases, as JSON that the
script in `trace_view.html` makes interactive. Where no script runs (GitHub, a notebook that is not trusted),
the text remains, with still pictures if Pillow is installed (the extra `notebook` has it). The model's text
is untrusted. It is escaped in HTML, and characters that could end a script element are escaped in JSON.

Tests read the JSON but run no script. After a change, look at the view in JupyterLab: keys, slider, map, both
colours, and a canvas that the grammar finished.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_diffusiongemma.console.messages import CONTROLS_OF_LINES, count
from mlx_diffusiongemma.errors import DiffusionGemmaError

from .pieces import Pieces

if TYPE_CHECKING:
    from mlx_diffusiongemma.engine.trace import Trace, TracedCanvas
    from mlx_diffusiongemma.result import Generation
    from mlx_diffusiongemma.text.channels import ToolCall
    from mlx_diffusiongemma.text.tokenizer import Tokenizer

# Each entropy is a byte on a logarithmic scale between these. 12.5 nats: uniform over 262144 tokens.
LEAST_NATS, MOST_NATS = 0.001, 12.5
MOST_STILLS = 4  # still pictures of the last canvases, shown where no script runs
_MOST_STILL_ROWS = 240
_INERT = "Still pictures, as no script runs here: trust the notebook or run the cell to go through the steps."
_HUE = (230, 97, 0)  # entropy is its opacity, for light and dark themes; trace_view.html has the same colour


def page(generation: Generation) -> str:
    """Run `generation` to its end. Return the HTML of it and of the candidates that share its prompt."""
    shown = generation.candidates
    if len({each.candidate for each in shown}) < len(shown):  # a batch: the others answer other prompts
        shown = [generation]
    traced = any(each.trace is not None for each in shown)
    template = files(__package__).joinpath("trace_view.html").read_text("utf-8")
    style, script = template.split("<!-- script -->\n")
    sections = "".join(_section(each, len(shown) > 1) for each in shown)
    return f'{style}<div class="mlx-dg">\n{sections}</div>\n{script if traced else ""}'


def plain_text(generation: Generation) -> str:
    """Run `generation` to its end. Return answer, tool calls, warnings and failure as text for a terminal."""
    failure = run_to_end(generation)
    parts = [answer] if (answer := "".join(block.answer for block in generation.blocks)) else []
    for call in (call for block in generation.blocks for call in block.tool_calls):
        parts.append(_spelled(call) if call.error is None else f"⚠ tool call: {call.error}\n{call.raw}")
    parts += [f"⚠ {warning}" for warning in generation.warnings]
    parts += [f"⚠ {failure}"] if failure else []
    return neutralised("\n".join(parts))


def run_to_end(generation: Generation) -> str | None:
    """Run `generation` to its end. Return the message of its failure, or None if it did not fail."""
    try:
        list(generation)
    except DiffusionGemmaError as error:
        reason = error.__cause__ or error  # the cause is the failure of an earlier run
        name = "" if isinstance(reason, DiffusionGemmaError) else f"{type(reason).__name__}: "
        return f"{name}{reason}"
    return None


def dropped(trace: Trace) -> str | None:
    """Return a remark if the trace did not keep all steps, otherwise None."""
    if len(trace.steps) == trace.total_steps:
        return None
    return f"the last {len(trace.steps)} of {trace.total_steps} steps were kept"


def _section(generation: Generation, numbered: bool) -> str:
    failure, blocks, trace = run_to_end(generation), generation.blocks, generation.trace
    parts = [f"<p><b>candidate {generation.candidate}</b></p>"] if numbered else []
    if thought := "".join(block.thought for block in blocks):
        parts.append(f"<details><summary>thought</summary><pre>{text(thought)}</pre></details>")
    if answer := "".join(block.answer for block in blocks):
        parts.append(f'<pre class="mlx-dg-answer">{text(answer)}</pre>')
    parts += [_call(call) for block in blocks for call in block.tool_calls]
    parts += [f"<p>⚠ {text(warning)}</p>" for warning in generation.warnings]
    parts += [f"<p>⚠ {text(failure)}</p>"] if failure else []
    reason = "an error" if failure else generation.finish_reason
    ended = f"ended by {reason}" if reason else "closed before its end"
    parts.append(f'<p class="mlx-dg-dim"><small>{_statistics(generation, ended)}</small></p>')
    if trace is not None and trace.steps and generation.tokenizer is not None:
        parts += [f"<p><small>⚠ {lost}</small></p>"] if (lost := dropped(trace)) else []
        parts.append(trace_view(trace, generation.tokenizer))
    return "<section>" + "\n".join(parts) + "</section>\n"


def _call(call: ToolCall) -> str:
    if call.error is not None:
        return f"<p>⚠ tool call: {text(call.error)}</p>\n<pre><code>{text(call.raw)}</code></pre>"
    return f"<p>tool call</p>\n<pre><code>{text(_spelled(call))}</code></pre>"


def _spelled(call: ToolCall) -> str:
    return f"{call.name}({json.dumps(call.arguments, ensure_ascii=False)})"


def _statistics(generation: Generation, ended: str) -> str:
    stats = generation.stats
    return " · ".join(
        [
            f"{count(stats.new_tokens, 'token')} in {count(stats.denoising_steps, 'step')}, "
            f"{count(stats.blocks, 'block')}",
            f"{stats.tokens_per_forward:.1f} tokens per forward",
            f"in-step {stats.in_step_tokens_per_second:.1f}, gross {stats.gross_tokens_per_second:.1f}, "
            f"net {stats.net_tokens_per_second:.1f} tokens/s",
            ended,
            f"seed {generation.seed}",
        ]
    )


def text(raw: str) -> str:
    """Return `raw` as HTML, with signs for control characters."""
    return escape(neutralised(raw))


def neutralised(raw: str) -> str:
    """Return `raw` with signs for control characters other than tab and newline."""
    return raw.translate(CONTROLS_OF_LINES)


# --- the trace --------------------------------------------------------------------------------------------


def trace_view(trace: Trace, tokenizer: Tokenizer) -> str:
    """Return the HTML of the canvases: JSON for the script, and still pictures."""
    data = json.dumps(view_data(trace, tokenizer), separators=(",", ":"), allow_nan=False)
    for character in "<>&":  # so no tag and no comment can appear; `dumps` escapes all that is not ASCII
        data = data.replace(character, f"\\u{ord(character):04x}")
    stills = "\n".join(map(_still, trace.last_tries[-MOST_STILLS:]))
    return (
        f'<div class="mlx-dg-view"><script type="application/json">{data}</script>\n'
        f'<div class="mlx-dg-still"><p><small>{_INERT}</small></p>\n{stills}</div></div>'
    )


def view_data(trace: Trace, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the data for the script, in JSON's types.

    Keys:
        texts: texts of tokens, each once, special tokens first. Drafts and results hold indices of this list.
        special: number of special tokens in `texts`. pad: index of the padding token, or -1 if it is unused.
        length: number of positions of a canvas. nats: lowest and highest entropy of the scale.
        canvases: data of each canvas, see `_canvas_data`.
    """
    pieces, canvases = Pieces(tokenizer), trace.canvases
    results = [c.committed_ids for c in canvases if c.committed_ids is not None]
    used = {int(i) for ids in (*(step.draft_ids for step in trace.steps), *results) for i in np.unique(ids)}
    hidden = sorted(tokenizer.hidden_ids & used)
    special = list(dict.fromkeys(pieces(hidden)))
    known = {(True, piece): place for place, piece in enumerate(special)}

    def places(ids: np.ndarray) -> list[int]:
        keys = [(int(i) in tokenizer.hidden_ids, piece) for i, piece in zip(ids, pieces(ids), strict=True)]
        return [known.setdefault(key, len(known)) for key in keys]

    data = [_canvas_data(canvas, places, canvas is canvases[-1]) for canvas in canvases]
    pad = tokenizer.special.pad
    return {
        "texts": [piece for _, piece in known],
        "special": len(special),
        "pad": -1 if pad is None or pad not in hidden else special.index(pieces([pad])[0]),
        "length": canvases[0].draft_ids.shape[1],
        "nats": [LEAST_NATS, MOST_NATS],
        "canvases": data,
    }


def _canvas_data(
    canvas: TracedCanvas, places: Callable[[np.ndarray], list[int]], is_last: bool
) -> dict[str, Any]:
    """Return the data of one canvas. `places` maps token ids to indices of `texts`.

    Keys:
        block, attempt: number of the block, and of the attempt at this block, from 0.
        state: "committed", "again" (it was denoised again), or "ended" (by an interrupt or an error).
        steps: for each step its index, temperature, mean entropy (null for NaN), seconds and step limit.
        drafts: for each step the indices of its tokens. entropies: for each step its `quantised` entropies.
        accepted: for each step a text with 1 (accepted) or 0 for each position.
        changed: for each position the step in which its token last changed.
        result: indices of the committed tokens, or null. finished: how many differ from the last draft.
    """
    steps = []
    for step in canvas.steps:
        measured = map(_number, (step.temperature, step.mean_entropy, step.seconds))
        steps.append([step.index, *measured, step.index + step.step])
    committed = canvas.committed_ids
    return {
        "block": canvas.block,
        "attempt": canvas.attempt,
        "state": "committed" if canvas.committed else "ended" if is_last else "again",
        "steps": steps,
        "drafts": [places(step.draft_ids) for step in canvas.steps],
        "entropies": quantised(canvas.entropies).tolist(),
        "accepted": ["".join("01"[each] for each in row) for row in canvas.accepted.astype(int).tolist()],
        "changed": canvas.last_changed.tolist(),
        "result": None if committed is None else places(committed)[: canvas.token_count],
        "finished": len(canvas.finished),
    }


def _number(measured: float) -> float | None:
    """Return `measured` with four digits, or None for NaN and infinity, which JSON does not have."""
    return float(f"{measured:.4g}") if math.isfinite(measured) else None


def quantised(entropies: np.ndarray) -> np.ndarray:
    """Return entropies as uint8 on a logarithmic scale from LEAST_NATS (0) to MOST_NATS (255). NaN is 255."""
    entropies = np.nan_to_num(entropies, nan=MOST_NATS)
    share = np.log(np.maximum(entropies, LEAST_NATS) / LEAST_NATS) / np.log(MOST_NATS / LEAST_NATS)
    return np.rint(255 * np.minimum(share, 1)).astype(np.uint8)


def _still(canvas: TracedCanvas) -> str:
    """Return a still picture of the canvas's entropies as HTML, or an empty text without Pillow."""
    try:
        from PIL import Image
    except ImportError:
        return ""
    steps, length = canvas.entropies.shape
    first, last = canvas.steps[0].mean_entropy, canvas.steps[-1].mean_entropy
    about = f"canvas {canvas.block + 1}, {count(steps, 'step')}: mean entropy {first:.3g} to {last:.3g} nats"
    every = math.ceil(steps / _MOST_STILL_ROWS)
    opacity = quantised(canvas.entropies[::every])
    size = (max(1, 640 // length) * length, max(1, min(12, _MOST_STILL_ROWS // len(opacity))) * len(opacity))
    image, png = Image.new("RGB", (length, len(opacity)), _HUE), io.BytesIO()
    image.putalpha(Image.fromarray(opacity))
    image.resize(size, Image.Resampling.NEAREST).save(png, "png", optimize=True)
    return (
        f"<figure><figcaption><small>{about}{result(canvas)}. Entropy, left to right {length} positions, "
        f"downwards {'steps' if every == 1 else f'one step of {every}'}; the stronger the less certain "
        f"({LEAST_NATS} to {MOST_NATS} nats, logarithmic).</small></figcaption>"
        f'<img border="1" alt="{about}" src="data:image/png;base64,'
        f'{base64.b64encode(png.getvalue()).decode()}"></figure>'
    )


def result(canvas: TracedCanvas) -> str:
    """Return a remark on how a canvas ended. It is empty if its last draft was committed unchanged."""
    if not canvas.committed:
        return ", not committed"
    finished = len(canvas.finished)
    return f", {count(finished, 'token')} finished by the grammar or the thinking budget" if finished else ""
