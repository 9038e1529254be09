"""Compares the Metal kernels, on this device, with the MLX operations that define their results.

Each kernel runs the trial of its self-check, at the sizes of the demo and of the released model. The
package's tests compare many more inputs. A kernel that a failed self-check has switched off is compared, too.
"""

from __future__ import annotations

import os
import re
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..console.tables import aligned
from ..ops import metal
from ..ops.self_check import Check, checks_of, too_large
from .sheet import Sheet

SIZES = ((704, 128, 64), (262144, 2816, 256))  # tokens and columns of the embedding, positions of a canvas
# An error of Metal's compiler about generated source. It holds no data of this machine.
_COMPLAINT = re.compile(r"^program_source:\d+:\d+: error: [ -~]{1,200}", re.MULTILINE)
_ADVICE = "set MLX_DG_KERNELS=off until this is fixed, and please report it with this text"


def check(sheet: Sheet) -> None:
    ok, reason = metal.available()
    if not ok:
        sheet.lines += [f"not checked: {reason}", "MLX operations are used instead"]
        if os.environ.get("MLX_DG_KERNELS") == "on":
            sheet.problems.append("MLX_DG_KERNELS=on, but Metal kernels cannot run here; unset it")
        return
    rows = {}
    for vocab, columns, canvas_length in SIZES:
        for dtype in (mx.bfloat16, mx.float32):
            table = _random_table(vocab, columns, dtype)
            for each in checks_of(table, dtype, 1, canvas_length):
                if each[:2] not in rows:
                    used = (each.kernel, f"{vocab} x {columns}", str(dtype).rpartition(".")[2])
                    rows[each[:2]] = (*used, _result(sheet, each, " ".join(used)))
            mx.clear_cache()
    sheet.lines += aligned([("kernel", "embedding", "dtype", "result"), *rows.values()], left=4).splitlines()
    sheet.lines.append(f"generations use {'the kernels' if metal.enabled() else 'MLX operations'}")


def _result(sheet: Sheet, each: Check, use: str) -> str:
    try:
        difference = too_large(each.make())
    except Exception as error:
        complaint = _COMPLAINT.search(str(error))
        sheet.failed(f"kernel {use}" + (f" ({complaint[0]})" if complaint else ""), error)
        return "failed, see below"
    if difference:
        sheet.problems.append(f"kernel {use}: {difference}; {_ADVICE}")
    return "differs, see below" if difference else "agrees"


def _random_table(vocab: int, columns: int, dtype: mx.Dtype) -> nn.QuantizedEmbedding:
    """Return an embedding with random values up to 1/32, in 8 bits as in the default recipe."""
    table: Any = nn.QuantizedEmbedding(vocab, columns, 64, 8)  # its own values stay lazy
    words = mx.random.randint(-(2**31), 2**31 - 1, table.weight.shape, key=mx.random.key(4))
    table.weight = words.view(mx.uint32)
    steps = 2.0**-12 * mx.random.uniform(0.5, 1, table.scales.shape, key=mx.random.key(5))
    table.scales, table.biases = steps.astype(dtype), (-255 / 2 * steps).astype(dtype)
    mx.eval(table.parameters())
    return table
