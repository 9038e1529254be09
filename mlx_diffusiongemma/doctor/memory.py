"""Which recipes of the released model run here, and how much they may read."""

from __future__ import annotations

import mlx.core as mx

from ..bench.synthetic import default_dtype
from ..config.generation import PREFILL_STEP_SIZE
from ..config.released import real_config
from ..console.tables import aligned, size
from ..converter.memory import longest_prompt, recipe_weight_bytes
from ..engine.memory import usable_memory
from .sheet import Sheet

_NEW_TOKENS = 1024


def check(sheet: Sheet) -> None:
    usable, config, dtype = usable_memory(), real_config(), default_dtype()
    weights = recipe_weight_bytes(config, "bfloat16" if dtype == mx.bfloat16 else "float32")
    if usable is None:
        sheet.lines.append("nobody knows how much memory this GPU has for MLX")
        return
    longest = {
        name: longest_prompt(config, nbytes, usable, _NEW_TOKENS, dtype.size)
        for name, nbytes in weights.items()
    }
    rows = [
        (name, size(nbytes), f"{longest[name]:,}" if longest[name] else "does not fit")
        for name, nbytes in weights.items()
    ]
    table = aligned([("26B recipe", "weights", "longest prompt in tokens"), *rows], left=1)
    sheet.lines += table.splitlines()
    sheet.lines += [
        f"of the {size(usable)} that MLX may use, with {_NEW_TOKENS} new tokens; estimated from shapes,",
        f"with prompts encoded {PREFILL_STEP_SIZE} tokens at a time: a smaller prefill_step_size gives room",
    ]
    if not any(longest.values()):
        sheet.notes.append(
            "no recipe of the 26B model fits in the memory that MLX may use here; "
            "`mlx_dg info PATH` tells which Macs hold a checkpoint"
        )
