"""The suite structured: 50 short texts to extract as JSON, each in two tasks, without and with `schema=`.

Both tasks have the same prompt, which shows the schema, so they differ only by the effect of `schema=`. They
are neighbours in the list, so that the beginning of the list compares them, too.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from ..graders.json_text import extracted
from ..task import Task
from . import texts


def items() -> list[dict[str, Any]]:
    """Return the sources of the tasks, as dicts. Keys among others:

    rules: rules of this text besides the general ones. expected: the only right value. stated: JSON pointers
    of values that the text spells differently, with the words of the text.
    """
    found: list[dict[str, Any]] = json.loads(
        files(__package__).joinpath("structured.json").read_text("utf-8")
    )
    return found


def tasks() -> list[Task]:
    made, prompts = [], texts("structured")["prompt"].rstrip()
    for item in items():
        rules = f"- {item['rules']}\n" if "rules" in item else ""
        schema = json.dumps(item["schema"], ensure_ascii=False)
        prompt = prompts.format(rules=rules, text=item["text"], schema=schema)
        grade, brief = extracted(item["expected"], item["schema"]), {"max_new_tokens": 512}
        for group, held in (("free", None), ("held", item["schema"])):
            name = f"{item['name']}_{group}"
            made.append(Task(name, prompt, grade, group, thinking=False, settings=brief, schema=held))
    return made
