"""Compare each Metal kernel with its reference before a generation uses it.

These kernels have not run on every chip and Metal compiler. A kernel that does not compile, or whose results
differ from those of its reference, is switched off for the process. The reference replaces it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx

from ..console.messages import one_line
from ..errors import InputError
from . import metal, trials
from .accept_and_renoise import suits_length
from .row_statistics import CHUNK
from .soft_embedding import suits_table, width
from .table_products import Table, project

logger = logging.getLogger(__name__)


class Check(NamedTuple):
    """A check of one kernel.

    kernel: name of the kernel.
    use: everything that the kernel's compiled code depends on.
    make: function that makes the trial.
    """

    kernel: str
    use: tuple[Any, ...]
    make: Callable[[], trials.Trial]


_passed: set[tuple[str, tuple[Any, ...]]] = set()  # kernel and use of checks that passed
_lock = threading.Lock()


def checked_kernels(table: Table, dtype: mx.Dtype, canvas_shape: Sequence[int]) -> tuple[str, ...]:
    """Check the kernels that a denoising step uses, and return the names of those that pass.

    The operations of a step depend on these names, so they belong to the key of a compiled step. The checks
    evaluate arrays, so call this before a step is traced. Each check takes at most a dozen rows, and is made
    once per process (see `Check.use`).

    Args:
        table: the embedding table.
        dtype: dtype of the model's activations.
        canvas_shape: `[B, C]`.

    Raises:
        InputError: the check fails and `MLX_DG_KERNELS` is on. Otherwise a failure is logged as a warning.
    """
    if not metal.enabled():
        return ()
    checks = checks_of(table, dtype, *canvas_shape)
    with _lock:  # other threads wait, because they must not use an unchecked kernel
        for check in checks:
            if check.kernel not in metal.failures and check[:2] not in _passed:
                fault = _fault(check.make())
                if fault is None:
                    _passed.add(check[:2])
                    continue
                metal.failures[check.kernel] = fault
                if metal.switch() == "auto":
                    logger.warning(
                        "Metal kernel %s fails its check on this machine: %s. It is switched off, and MLX's "
                        "operations take its place. Please run `mlx_dg doctor` and report the result.",
                        check.kernel,
                        one_line(fault),
                    )
    names = [check.kernel for check in checks]
    failed = [name for name in names if name in metal.failures]
    if failed and metal.switch() == "on":
        raise InputError(
            f"MLX_DG_KERNELS=on, but Metal kernel {failed[0]} fails its check on this machine: "
            f"{metal.failures[failed[0]]}; unset it to run without this kernel, and report what "
            "`mlx_dg doctor` prints"
        )
    return tuple(name for name in names if name not in failed)


def checks_of(table: Table, dtype: mx.Dtype, batch: int, length: int) -> list[Check]:
    """Return the checks of the kernels that a step on a canvas `[batch, length]` uses."""
    vocab, columns = table.weight.shape[0], width(table)
    # `project` is lazy, so nothing is computed.
    logits_dtype = project(mx.zeros((1, columns), dtype=dtype), table).dtype
    launch, constants = _passing(batch * length, -(-vocab // CHUNK))
    trial = partial(trials.row_statistics_trial, vocab, logits_dtype, launch)
    checks = [Check("row_statistics", (vocab, logits_dtype, constants), trial)]
    if suits_length(length):
        canvas_launch, canvas_constants = _passing(batch, length)
        trial = partial(trials.accept_and_renoise_trial, length, vocab, canvas_launch)
        checks.append(Check("accept_and_renoise", (length, canvas_constants), trial))
    if suits_table(table):
        packing = (table["scales"].dtype, table.bits, table.group_size) if "scales" in table else None
        use = vocab, columns, table.weight.dtype, packing, dtype, logits_dtype, constants
        trial = partial(trials.soft_embedding_trial, table, dtype, logits_dtype, launch)
        checks.append(Check("soft_embedding", use, trial))
    return checks


def _passing(rows: int, columns: int) -> tuple[int | None, tuple[bool, bool]]:
    """Return the number of rows that a trial launches together (None for all), and a key of the build.

    MLX passes arrays of fewer than 8 elements as constants, for which Metal compiles other code. A trial must
    therefore launch such arrays if a step does. The key has a flag for arrays `[rows]` and one for arrays
    `[rows, columns]`: True if they are constants.
    """
    return rows if rows < 8 else None, (rows < 8, rows * columns < 8)


def too_large(trial: trials.Trial) -> str | None:
    """Return the first difference that rounding cannot explain, in words, or None. Raise MLX's errors."""
    got = trial.kernel()
    mx.eval(got)  # raises the compiler's errors
    mx.synchronize()  # raises the GPU's errors, which would otherwise appear in later work
    for what, measured, allowed in (each for each in trial.compare(got, trial.expected) if each.is_too_large):
        return f"{what} differs by {measured:.2g} from MLX's operations, allowed is {allowed:.2g}"
    return None


def _fault(trial: trials.Trial) -> str | None:
    """Return the problem of a kernel in one line, or None."""
    try:
        return too_large(trial)
    except Exception as error:
        complaint = next((line for line in str(error).splitlines() if "error:" in line), error)
        return one_line(complaint, 200)  # the first error of the compiler
