"""Memory of a generation: an estimate before it runs, a check that it fits, and wired memory on Macs.

As in mlx-lm, MLX's cache of freed buffers has no limit. MLX reuses or frees these buffers before its memory
exceeds 95% of the size that a Mac recommends. The cache is cleared after each prefill chunk and each block.
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

_SMALLEST_CHUNK = 128  # smaller prefill chunks are slow and save little

_MEMINFO = "/proc/meminfo"
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # v2, v1


class Needed(NamedTuple):
    """Bytes of the weights, of the prefix cache, and of the intermediates of the largest pass (`work`)."""

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
    """Return the bytes that a generation needs at its peak: weights + cache + work.

    weights: `weight_bytes`, the loaded weights.

    cache: the sum over layers of 2 (K, V) * kv_heads * head_dim * itemsize * positions. A full layer has a
    position for the prompt and all canvases, rounded up by `cache.bucket`. A sliding layer has window - 1
    positions and a canvas.

    work: the larger of the last denoising step and the last prefill chunk. A step has the canvas as rows and
    everything in the cache as keys. A chunk has at most `chunk_size` rows and the prompt as keys. Either is
    the sum of:

    - Attention: rows * keys * (itemsize * heads + 1) bytes of scores and mask in the most expensive layer, as
      if MLX never fused attention. (On Metal it rarely does for heads as wide as these.) A sliding layer has
      at most 512 rows at a time, its window as keys, and one more copy of K and V.
    - Experts: rows * top_k * (itemsize * 3 * (hidden + moe_intermediate) + 4 * hidden) bytes. These are the
      input before and after sorting, gate, up and their product, the output, and the weighted output in 4
      bytes.
    - Other layers: rows * itemsize * (4 * hidden + 3 * intermediate + 4 * heads * head_dim) bytes, with the
      widest head.
    - In a step, canvas * vocabulary * (2 * itemsize + 2 * 4 + 1) bytes. These are the logits, the logits of
      rows with a dense soft embedding, and two copies in 4 bytes and a mask while they are capped.

    A batch multiplies work by `batch` and cache by 2 * batch - 1, because rows that continue without the
    others are copied.

    itemsize: bytes of an activation.
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
    window = text.sliding_window - 1
    rows = min(prompt_tokens, chunk_size)

    layers = [  # type, and bytes per position
        (kind, 2 * heads * width * itemsize)
        for kind, heads, width in zip(text.layer_types, text.kv_heads, text.head_dims, strict=True)
    ]
    cache = sum(size * (capacity if kind == FULL else window + canvas) for kind, size in layers)

    def work(rows: int, keys: int) -> int:
        score, band = itemsize * text.num_attention_heads + 1, min(rows, BAND_ROWS)
        attention = max(
            rows * keys * score if kind == FULL else band * (window + band) * score + (window + rows) * size
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
    """Return the bytes that MLX may use, including those that it uses now. None if unknown.

    On Metal this is the recommended working set size. On the CPU backend it is the machine's memory. On
    Linux, available memory and the limit of the control group can lower it.
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
    cache_bytes: int = 0,
) -> bool:
    """Return True if there is enough memory for a generation. See `check_fits`."""
    try:
        check_fits(model, prompt_tokens, max_new_tokens, chunk_size, batch, cache_bytes)
    except InputError:
        return False
    return True


def check_fits(
    model: Network,
    prompt_tokens: int,
    max_new_tokens: int,
    chunk_size: int,
    batch: int = 1,
    cache_bytes: int = 0,
) -> None:
    """Raise `InputError` if a generation needs more memory than there is. The message says what would help.

    The available memory is `usable_memory` minus MLX's other arrays. These are all arrays except this model's
    weights and the prompt cache that the generation continues, which takes `cache_bytes`.
    """
    usable = usable_memory()
    if usable is None:
        return
    weights = tree_reduce(lambda total, leaf: total + getattr(leaf, "nbytes", 0), model.parameters(), 0)
    usable -= max(0, mx.get_active_memory() - weights - cache_bytes)

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
    """Return changes for the message, each of which is enough alone. If there is none, combine two.

    sizes: arguments with which `fits` returns False.
    """
    prompt, new, chunk, batch = sizes

    def most(below: int, enough: Callable[[int], bool]) -> int:
        """Return the largest number from 1 to `below - 1` that is enough, or 0 if none is."""
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
    """Return the most MiB to wire for this Mac's GPU: seven eighths of its memory. 0 on other machines."""
    device = mx.device_info()
    if "max_recommended_working_set_size" not in device:
        return 0
    return int(device["memory_size"]) * 7 // 8 // 2**20


_previous_limits: list[int] = []  # one per open `wired_limit`; the first was set outside this package


@contextmanager
def wired_limit() -> Iterator[None]:
    """Let MLX wire as much memory as macOS recommends, so that weights are not paged out between passes.

    This is mlx-lm's `wired_limit` without its warning on stdout. Several may be open if generations take
    turns. The end of the last one restores the limit from before the first.
    """
    recommended = mx.device_info().get("max_recommended_working_set_size")
    if recommended is None:
        yield
        return
    _previous_limits.append(mx.set_wired_limit(int(recommended)))
    try:
        yield
    finally:
        mx.synchronize()  # the limit must not change under running work
        previous = _previous_limits.pop()
        if not _previous_limits:
            mx.set_wired_limit(previous)
