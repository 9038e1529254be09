"""What answers a task: this package, mlx-vlm, or a server that speaks OpenAI's chat completions.

All are treated alike. They get the same messages and the seed of the task, thought and answer are told apart
before anything is graded, and the first call of a runner answers `WARM_UP`, briefly and untimed: loading,
building kernels and whatever else a first generation takes count for nobody. (What a later prompt of
another length makes a runner build anew counts.)
"""

from __future__ import annotations

from typing import Any, Protocol

from ...errors import InputError
from ..task import Reply, Task

LOCAL = ("mlx_dg", "mlx-vlm")
NAMES = (*LOCAL, "endpoint")
WARM_UP = "Hello"  # no task's prompt, so that no server has that in its cache


class Runner(Protocol):
    """identity: what determines its answers, ready for JSON. objection: why it cannot run a task as it is
    meant, None when it can. Called, it gives `n` candidates; what the prompt or the model is to blame for is
    a reply's `error`, everything else is raised."""

    name: str

    def identity(self) -> dict[str, Any]: ...

    def objection(self, task: Task) -> str | None: ...

    def __call__(self, task: Task, seed: int, n: int = 1) -> list[Reply]: ...


def choose(name: str, model: str | None, endpoint: str | None) -> Runner:
    """The runner of that name. Local ones load their model at the first call.

    model: a directory, hub id or "demo"; of an endpoint, the name of the model that the server knows.
    """
    if name not in NAMES:
        raise InputError(f"runner {name!r}: there is none; choose from {', '.join(NAMES)}")
    if name == "endpoint":
        from .endpoint import Endpoint

        if not endpoint:
            raise InputError("runner endpoint: no --endpoint given; name its URL")
        return Endpoint(endpoint, model)
    if endpoint is not None:
        raise InputError(f"--endpoint is for the runner endpoint, not for {name}; leave one of them out")
    if not model:
        raise InputError("no --model given; name a directory, a hub id, or demo")
    if name == "mlx-vlm":
        from .vlm import Vlm

        return Vlm(model)
    from .native import Native

    return Native(model)


def check_single(name: str, n: int) -> None:
    """`InputError` unless one candidate is asked for."""
    if n != 1:
        raise InputError(f"n {n}: runner {name} makes one candidate at a time; leave --n at 1")


def one_line(text: object) -> str:
    return " ".join(str(text).split())
