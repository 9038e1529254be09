"""Runners, which answer tasks: this package, mlx-vlm, or a server that speaks OpenAI's chat completions.

All get the same messages and the seed of the task, and they separate thought and answer. At its first call a
runner also answers `WARM_UP`, untimed, so that its times do not include loading and building kernels.
"""

from __future__ import annotations

from typing import Any, Protocol

from ...errors import InputError
from ..task import Reply, Task

LOCAL = ("mlx_dg", "mlx-vlm")
NAMES = (*LOCAL, "endpoint")
WARM_UP = "Hello"  # not the prompt of any task, so that no server has it in its cache


class Runner(Protocol):
    """Answers a task with `n` replies when it is called.

    A failure that the prompt or the model causes becomes the `error` of a reply. Other failures are raised.
    identity: facts that determine its answers, as JSON values. objection: why it cannot run a task, or None.
    """

    name: str

    def identity(self) -> dict[str, Any]: ...

    def objection(self, task: Task) -> str | None: ...

    def __call__(self, task: Task, seed: int, n: int = 1) -> list[Reply]: ...


def choose(name: str, model: str | None, endpoint: str | None) -> Runner:
    """Return the runner called `name`. A local runner loads its model at the first call.

    name: one of NAMES. model: a directory, hub id or "demo". For an endpoint, the server's name of the model.
    """
    if not model:
        raise InputError("no --model given; name a directory, a hub id, or demo (or the endpoint's model)")
    if (name == "endpoint") != bool(endpoint):
        raise InputError("runner endpoint and --endpoint URL belong together; give both, or neither")
    if name == "endpoint":
        from .endpoint import Endpoint

        return Endpoint(endpoint or "", model)
    if name == "mlx-vlm":
        from .vlm import Vlm

        return Vlm(model)
    from .native import Native

    return Native(model)


def unsupported(name: str, task: Task, known: frozenset[str]) -> str | None:
    """Return the objection of runner `name` to a task with settings outside `known`, or None."""
    unknown = sorted({name for name, value in task.settings.items() if value is not None} - known)
    return f"{name} has no setting {', '.join(unknown)}" if unknown else None


def check_single(runner: Runner, task: Task, n: int) -> None:
    """Raise `InputError` if a runner cannot run a task, or is asked for several candidates."""
    if n != 1:
        raise InputError(f"n {n}: runner {runner.name} makes one candidate at a time; leave --n at 1")
    if objection := runner.objection(task):
        raise InputError(f"{task.name}: {objection}; choose another runner")
