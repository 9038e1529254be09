"""Release the resources that MLX holds for a thread when the thread ends."""

from __future__ import annotations

import threading

import mlx.core as mx


class _Release:
    def __del__(self) -> None:
        mx.clear_streams()


_thread = threading.local()


def release_at_thread_end() -> None:
    """Make MLX drop this thread's streams and compile cache when the thread ends.

    MLX itself drops them later, when the operating system's thread ends. If the interpreter has exited by
    then, the process aborts (status 134). The main thread does not need this, because MLX clears its cache
    when the interpreter exits.
    """
    if threading.current_thread() is not threading.main_thread() and not hasattr(_thread, "release"):
        _thread.release = _Release()  # Python deletes it in this thread, when the thread ends
