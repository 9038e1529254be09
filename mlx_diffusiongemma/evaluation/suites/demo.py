"""The demo checkpoint's own tasks, with items that it was not trained on."""

from __future__ import annotations

import json
import re
from functools import partial
from itertools import chain, zip_longest

from mlx_diffusiongemma.demo import tasks as demo
from mlx_diffusiongemma.evaluation.graders.json_text import document
from mlx_diffusiongemma.evaluation.graders.number import number
from mlx_diffusiongemma.evaluation.graders.text import lines, plain, shortened, unfenced, unusable
from mlx_diffusiongemma.evaluation.task import Grade, Grader, Reply, Task

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
    """Strict: right to the letter, and it thought exactly when asked to. Lenient: wrapped, or whatever it
    thought."""
    content = _grader(item)(reply)
    thought = bool(reply.thought.strip())
    if not content.lenient or thought == item.thinking:
        return content
    return Grade(False, True, "a thought that was not asked for" if thought else "no thought")


def _grader(item: demo.Item) -> Grader:
    if item.task == "tool_call":
        return partial(_call, item)
    if item.task == "addition":
        return _without_calls(number(int(item.answer)))
    if item.task == "json":
        return _without_calls(document(json.loads(item.answer)))
    if item.task == "counting":
        return _without_calls(partial(_sequence, item.answer, " "))
    if item.task == "spelling":
        return _without_calls(partial(_sequence, item.answer, "-"))
    return _without_calls(lines([item.answer]))


def _without_calls(grader: Grader) -> Grader:
    def grade(reply: Reply) -> Grade:
        return Grade(False, False, "calls a tool") if reply.tool_calls else grader(reply)

    return grade


def _sequence(expected: str, separator: str, reply: Reply) -> Grade:
    """Numbers or letters. Lenient: with other separators; letters also without any."""
    text = reply.answer.strip()
    if text == expected:
        return Grade(True, True)
    if reason := unusable(text):
        return Grade(False, False, reason)
    found = re.sub(rf"[\s,{separator}]+", separator, plain(unfenced(text)))
    if found in (expected, expected.replace("-", "")):
        return Grade(False, True, "other separators or marks")
    return Grade(False, False, f"{shortened(text)} is not {shortened(expected)}")


def _call(item: demo.Item, reply: Reply) -> Grade:
    """Lenient: with text around the call."""
    if not demo.is_right(item, reply.answer, list(reply.tool_calls)):
        return Grade(False, False, f"calls {shortened(reply.tool_calls)}, not {shortened(item.answer)}")
    alone = not reply.answer.strip()
    return Grade(alone, True, "" if alone else "more than the call")
