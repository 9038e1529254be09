"""Signals and environment of the command's process."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import Any, NoReturn

from mlx_diffusiongemma.errors import InputError

from .streams import flush_outputs

# Variables that libraries read as numbers when they are imported. A bad value would give a traceback.
_WHOLE = (
    "HF_HUB_DOWNLOAD_TIMEOUT",
    "HF_HUB_ETAG_TIMEOUT",
    "TQDM_NCOLS",
    "TQDM_NROWS",
    "TQDM_POSITION",
    "TQDM_INITIAL",
    "TQDM_UNIT_DIVISOR",
)
_NUMBERS = (
    "TQDM_MININTERVAL",
    "TQDM_MAXINTERVAL",
    "TQDM_MINITERS",
    "TQDM_SMOOTHING",
    "TQDM_DELAY",
    "TQDM_TOTAL",
)


def handle_signals() -> None:
    """Make SIGTERM and SIGHUP end the process like an exit, and a second Ctrl-C end it at once."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, _leave)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def keep_on_interrupt() -> None:
    """Let every Ctrl-C raise `KeyboardInterrupt`, for a command that goes on after it."""
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, _: Any) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # files are being closed now
    sys.exit(128 + number)


def _interrupt(number: int, _: Any) -> NoReturn:
    signal.signal(number, _end_now)
    raise KeyboardInterrupt


def _end_now(*_: Any) -> NoReturn:
    """Exit without finalizing the interpreter, which would abort while threads run."""
    with suppress(Exception):  # a write that this interrupted
        flush_outputs()
    os._exit(130)


def check_environment() -> None:
    """Raise `InputError` for an environment variable that is not the number that a library expects."""
    for name in (*_WHOLE, *_NUMBERS):
        value = os.environ.get(name)
        try:
            if value:
                (int if name in _WHOLE else float)(value)
        except ValueError:
            raise InputError(f"{name}: found {value!r}; set it to a number, or unset it") from None
