"""structured: 50 short texts to extract as JSON under small schemas, each once free, once held to its schema.

Both see the same prompt, schema included, so the difference is what `schema=` does. The pairs are neighbours:
the beginning of the list compares the two as well.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from mlx_diffusiongemma.evaluation.graders.schema import extracted
from mlx_diffusiongemma.evaluation.task import Task

PROMPT = """Extract the facts of this text as one JSON document that is valid under this JSON Schema.

Rules:
- Copy names and words exactly as the text spells them.
- Dates are YYYY-MM-DD. Times of day are HH:MM on the 24-hour clock.
- Numbers are plain JSON numbers, without units and thousands separators.
- Lists keep the order of the text.
- Where the text says nothing, a property is null if it may be, and left out if it is not required.
{rules}
Text:
{text}

JSON Schema:
{schema}

Reply with only the JSON."""


def items() -> list[dict[str, Any]]:
    """What the tasks are made of. rules: what goes beyond the general rules. expected: the one right value.
    stated: for what the text spells otherwise than the value does, by JSON pointer, the words that say it."""
    found: list[dict[str, Any]] = json.loads(
        files(__package__).joinpath("structured.json").read_text("utf-8")
    )
    return found


def tasks() -> list[Task]:
    made = []
    for item in items():
        rules = f"- {item['rules']}\n" if "rules" in item else ""
        schema = json.dumps(item["schema"], ensure_ascii=False)
        prompt = PROMPT.format(rules=rules, text=item["text"], schema=schema)
        grade = extracted(item["expected"], item["schema"])
        for group, held in (("free", None), ("held", item["schema"])):
            made.append(
                Task(
                    name=f"{item['name']}_{group}",
                    prompt=prompt,
                    grade=grade,
                    group=group,
                    thinking=False,
                    settings={"max_new_tokens": 512},
                    schema=held,
                )
            )
    return made
