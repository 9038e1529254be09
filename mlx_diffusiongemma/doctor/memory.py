"""Lists the recipes of the released model, and the longest prompt with which each fits in memory here."""

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
    if usable is None:
        sheet.lines.append("unknown: MLX does not say how much memory this GPU has")
        return
    weights = recipe_weight_bytes(config, "bfloat16" if dtype == mx.bfloat16 else "float32")
    rows, fits = [("26B recipe", "weights", "longest prompt in tokens")], False
    for name, nbytes in weights.items():
        longest = longest_prompt(config, nbytes, usable, _NEW_TOKENS, dtype.size)
        rows.append((name, size(nbytes), f"{longest:,}" if longest else "does not fit"))
        fits = fits or longest > 0
    sheet.lines += [
        *aligned(rows, left=1).splitlines(),
        f"of the {size(usable)} that MLX may use, with {_NEW_TOKENS} new tokens; estimated from shapes,",
        f"with prompts encoded {PREFILL_STEP_SIZE} tokens at a time: a smaller prefill_step_size gives room",
    ]
    if not fits:
        sheet.notes.append(
            "no recipe of the 26B model fits in the memory that MLX may use here; "
            "`mlx_dg info PATH` shows which Macs hold a checkpoint"
        )
