"""The memory of a generation: estimated before it runs, refused when it cannot fit, kept wired on Macs.

MLX's cache of freed buffers gets no limit, here as in mlx-lm: whatever it holds is used again or given back
before MLX exceeds 95% of what a Mac recommends, and it is cleared after each prefill chunk and each block.
"""

from __future__ import annotations

import bisect
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import mlx.core as mx
from mlx.utils import tree_reduce

from ..cache import bucket
from ..config.model import FULL, ModelConfig
from ..errors import InputError
from ..model.attention import BAND_ROWS
from ..ops import on_gpu

if TYPE_CHECKING:
    from ..model.network import Network

_SMALLEST_CHUNK = 128  # prefill in smaller ones is slow and saves little

_MEMINFO = "/proc/meminfo"
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # v2, v1


class Needed(NamedTuple):
    """Bytes: the model's weights, the prefix cache, and the intermediates of its largest pass."""

    weights: int
    cache: int
    work: int


def memory_needed(
    config: ModelConfig,
    weight_bytes: int,
    prompt_tokens: int,
    new_tokens: int,
    chunk_size: int,
    itemsize: int = 2,
    batch: int = 1,
) -> int:
    """Bytes that a generation takes at its peak, with activations of `itemsize` bytes: the sum of

    weights: `weight_bytes`, those that are loaded
    cache: 2 (K, V) * kv_heads * head_dim * itemsize * positions over all layers. A full layer holds the
        prompt and all canvases, rounded up (`cache.bucket`), a sliding one window - 1 and a canvas
    work: the larger of the last denoising step (rows: the canvas; keys: all that a layer holds) and of the
        last chunk of prefill (rows: at most `chunk_size`; keys: the prompt), each the sum of
        attention scores and mask, rows * keys * (itemsize * heads + 1) bytes, as if MLX fused none (on
        Metal it fuses heads as wide as these in few cases), in a sliding layer of at most 512 rows and the
        window, and there K and V once more: those of the layer that takes the most;
        the experts, rows * top_k * (itemsize * 3 * (hidden + moe_intermediate) + 4 * hidden) bytes: input,
        sorted and not, gate, up and their product, the output, and that weighted in 4 bytes;
        what lies beside them, rows * itemsize * (4 * hidden + 3 * intermediate + 4 * heads * head_dim) bytes,
        of the widest head;
        of a step, canvas * vocabulary * (2 * itemsize + 2 * 4 + 1) bytes: logits, those of rows whose soft
        embedding is dense, and while they are capped, two copies in 4 bytes and a mask

    Of a `batch`, work is so many times that, and cache one less than twice: rows that go on without the
    others are copied.
    """
    return sum(_needed(config, weight_bytes, prompt_tokens, new_tokens, chunk_size, itemsize, batch))


def _needed(
    config: ModelConfig,
    weight_bytes: int,
    prompt_tokens: int,
    new_tokens: int,
    chunk_size: int,
    itemsize: int,
    batch: int,
) -> Needed:
    text, canvas = config.text, config.canvas_length
    positions = prompt_tokens + math.ceil(new_tokens / canvas) * canvas
    capacity = bucket(positions, canvas)
    kept = text.sliding_window - 1
    rows = min(prompt_tokens, chunk_size)

    layers = [  # each one's type and bytes a position
        (kind, 2 * heads * width * itemsize)
        for kind, heads, width in zip(text.layer_types, text.kv_heads, text.head_dims, strict=True)
    ]
    cache = sum(size * (capacity if kind == FULL else kept + canvas) for kind, size in layers)

    def work(rows: int, held: int) -> int:
        score, band = itemsize * text.num_attention_heads + 1, min(rows, BAND_ROWS)
        attention = max(
            rows * held * score if kind == FULL else band * (kept + band) * score + (kept + rows) * size
            for kind, size in layers
        )
        hidden, experts = text.hidden_size, text.top_k_experts
        routed = experts * (itemsize * 3 * (hidden + text.moe_intermediate_size) + 4 * hidden)
        queries = text.num_attention_heads * max(text.head_dims)
        beside = itemsize * (4 * hidden + 3 * text.intermediate_size + 4 * queries)
        return attention + rows * (routed + beside)

    step = work(canvas, capacity) + canvas * text.vocab_size * (2 * itemsize + 2 * 4 + 1)
    prefill = work(rows, prompt_tokens)
    return Needed(weight_bytes, (2 * batch - 1) * cache, batch * max(step, prefill))


def usable_memory() -> int | None:
    """Bytes that MLX may hold here, with all that it holds already; None where nobody knows.

    On Metal what the system recommends; for the CPU backend the machine's memory, less on Linux: what is
    available and what the control group may have.
    """
    recommended = mx.device_info().get("max_recommended_working_set_size")
    if recommended is not None:
        return int(recommended)
    if on_gpu():
        return None
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    available = re.search(r"^MemAvailable: *(\d+) kB$", _text(_MEMINFO), re.MULTILINE)
    if available:
        limits.append(int(available[1]) * 1024 + mx.get_active_memory() + mx.get_cache_memory())
    limits += [int(text) for text in map(_text, _CGROUP_LIMITS) if text.strip().isdigit()]
    return min(limits)


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def fits(
    model: Network,
    prompt_tokens: int,
    max_new_tokens: int,
    chunk_size: int,
    batch: int = 1,
    held: int = 0,
) -> bool:
    """Return False if a generation needs more memory than there is. See `check_fits`."""
    try:
        check_fits(model, prompt_tokens, max_new_tokens, chunk_size, batch, held)
    except InputError:
        return False
    return True


def check_fits(
    model: Network,
    prompt_tokens: int,
    max_new_tokens: int,
    chunk_size: int,
    batch: int = 1,
    held: int = 0,
) -> None:
    """Raises `InputError`, which says what would help, if a generation needs more than there is.

    There is `usable_memory` less what MLX holds for others: not this model's weights, nor the `held` bytes
    of a cache that the generation takes over.
    """
    usable = usable_memory()
    if usable is None:
        return
    weights = tree_reduce(lambda total, leaf: total + getattr(leaf, "nbytes", 0), model.parameters(), 0)
    usable -= max(0, mx.get_active_memory() - weights - held)

    def needed(prompt: int, new: int, chunk: int, rows: int) -> Needed:
        return _needed(model.config, weights, prompt, new, chunk, model.dtype.size, rows)

    amount = needed(prompt_tokens, max_new_tokens, chunk_size, batch)
    if sum(amount) <= usable:
        return
    parts = ", ".join(f"{name} {part / 1e9:.2f}" for name, part in amount._asdict().items())
    remedies = _remedies(
        lambda *sizes: sum(needed(*sizes)) <= usable,
        (prompt_tokens, max_new_tokens, chunk_size, batch),
        model.config.canvas_length,
    )
    megabytes = math.ceil(sum(amount) / 2**20)
    if megabytes <= _most_wired_mb():
        remedies.append(f"let the GPU have more: sudo sysctl iogpu.wired_limit_mb={megabytes}")
    raise InputError(
        f"{prompt_tokens} prompt and {max_new_tokens} new tokens need {sum(amount) / 1e9:.2f} GB ({parts}), "
        f"but {usable / 1e9:.2f} GB can be used; {' or '.join(remedies)}"
    )


def _remedies(fits: Callable[..., bool], sizes: tuple[int, int, int, int], canvas: int) -> list[str]:
    """Each enough by itself, if there is one that is. sizes: what `fits` takes, which now does not fit."""
    prompt, new, chunk, batch = sizes

    def most(below: int, enough: Callable[[int], bool]) -> int:
        """The largest number from 1 to `below - 1` that is enough, or 0; those above it are not."""
        return bisect.bisect_left(range(1, below), True, key=lambda n: not enough(n))

    halved = (chunk >> times for times in range(1, chunk.bit_length()))
    chunks = [size for size in halved if size >= _SMALLEST_CHUNK and fits(prompt, new, size, batch)]
    shorter = most(prompt, lambda n: fits(n, new, chunk, batch))
    canvases = most(math.ceil(new / canvas), lambda n: fits(prompt, n * canvas, chunk, batch))
    fewer = most(batch, lambda n: fits(prompt, new, chunk, n))
    remedies = [f"lower prefill_step_size to {chunks[0]}"] if chunks else []
    remedies += [f"shorten the prompt to {shorter} tokens"] if shorter else []
    remedies += [f"lower max_new_tokens to {canvases * canvas}"] if canvases else []
    remedies += [f"generate {fewer} at a time"] if fewer else []
    if remedies:
        return remedies
    both = most(prompt, lambda n: fits(n, canvas, chunk, batch))
    if both:
        return [f"shorten the prompt to {both} tokens and lower max_new_tokens to {canvas}"]
    return ["take a smaller recipe (`mlx_dg info` shows what each needs)"]


def _most_wired_mb() -> int:
    """MiB that the GPU of this Mac may be given by hand: all but an eighth of its memory; 0 elsewhere."""
    device = mx.device_info()
    if "max_recommended_working_set_size" not in device:
        return 0
    return int(device["memory_size"]) * 7 // 8 // 2**20


_limits_found: list[int] = []  # by each `wired_limit` that is open; the first is what others set


@contextmanager
def wired_limit() -> Iterator[None]:
    """Lets MLX keep wired what macOS recommends, so that weights are not paged out between passes.

    The recipe of mlx-lm's `wired_limit`, which prints a warning on stdout. Several may be open at a time, as
    of generations that take turns; when the last one closes, the limit is what it was before the first.
    """
    recommended = mx.device_info().get("max_recommended_working_set_size")
    if recommended is None:
        yield
        return
    _limits_found.append(mx.set_wired_limit(int(recommended)))
    try:
        yield
    finally:
        mx.synchronize()  # the limit must not change under running work
        found = _limits_found.pop()
        if not _limits_found:
            mx.set_wired_limit(found)
