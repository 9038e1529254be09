"""The demo checkpoint's own tasks, with items that it was not trained on."""

from __future__ import annotations

from functools import partial
from itertools import chain, zip_longest

from mlx_diffusiongemma.demo import tasks as demo
from mlx_diffusiongemma.evaluation.task import Grade, Reply, Task

_ITEMS = 20  # per task and thinking mode; half of that for each situation of a tool
_SEED = 0


def tasks() -> list[Task]:
    """Every task's first item, then every one's second: a part of them is a part of each."""
    by_group: dict[str, list[Task]] = {}
    for item in demo.held_out_items(_ITEMS, _SEED):
        group = f"{item.task}{', thinking' if item.thinking else ''}"
        siblings = by_group.setdefault(group, [])
        siblings.append(
            Task(
                name=f"{group} {len(siblings) + 1}",
                group=group,
                prompt=item.messages,
                grade=partial(grade, item),
                thinking=item.thinking,
                tools=tuple(item.declarations or ()),
            )
        )
    return [task for task in chain(*zip_longest(*by_group.values())) if task is not None]


def grade(item: demo.Item, reply: Reply) -> Grade:
    """Strict: right to the letter, and it thought exactly when asked to. Lenient: whatever it thought."""
    right = demo.is_right(item, reply.answer, list(reply.tool_calls))
    thought = bool(reply.thought.strip())
    if not right:
        return Grade(False, False, f"not {item.answer!r}")
    if thought != item.thinking:
        return Grade(False, True, "a thought that was not asked for" if thought else "no thought")
    return Grade(True, True)
