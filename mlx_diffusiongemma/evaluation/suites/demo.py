"""The suite demo: tasks of the demo checkpoint, with items that it was not trained on."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import partial
from itertools import chain, zip_longest

from ...demo import tasks as demo
from ..graders.json_text import document
from ..graders.text import lines, shortened
from ..task import Grade, Reply, Task

_ITEMS = 20  # items per task and thinking mode; half as many for each of three tool situations
_SEED = 0


def tasks() -> list[Task]:
    """Return the items in turns: the first of every task, then the second of every task, and so on.

    A run that is limited to a few items then still covers all tasks.
    """
    groups: dict[str, list[Task]] = defaultdict(list)
    for item in demo.held_out_items(_ITEMS, _SEED):
        group = f"{item.task}{', thinking' if item.thinking else ''}"
        name, tools = f"{group} {len(groups[group]) + 1}", tuple(item.declarations or ())
        task = Task(name, item.messages, partial(grade, item), group, item.thinking, tools=tools)
        groups[group].append(task)
    return [task for task in chain(*zip_longest(*groups.values())) if task is not None]


def grade(item: demo.Item, reply: Reply) -> Grade:
    """Grade the answer or tool call. To be strictly right, it must have a thought exactly if asked to."""
    content = _content(item, reply)
    thought = bool(reply.thought.strip())
    if not content.strict or thought == item.thinking:
        return content
    return Grade(False, True, "a thought that was not asked for" if thought else "no thought")


def _content(item: demo.Item, reply: Reply) -> Grade:
    if item.task == "tool_call":
        right = demo.is_right(item, reply.answer, list(reply.tool_calls)) and not reply.answer.strip()
        wrong = f"calls {shortened(reply.tool_calls)}, not {shortened(item.answer)} alone"
        return Grade(right, right, "" if right else wrong)
    if reply.tool_calls:
        return Grade(False, False, "calls a tool")
    return (document(json.loads(item.answer)) if item.task == "json" else lines(item.answer))(reply)
