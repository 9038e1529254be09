"""Sources for the grammar compiler, and words for its reports."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher

from ..console.messages import one_line
from ..errors import InputError
from .patterns import ends_in_escape
from .schema import TOO_DEEP, checked_schema
from .vocabulary import Vocabulary

# White space after a comma and a colon only, and at most one: a model in doubt could otherwise write blanks
# for ever. `{"a": 1, "b": 2}` and `{"a":1,"b":2}` both fit.
_JSON = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}

# Reports that name the compiler's own options, or nothing that a caller knows.
_REASONS = {
    "Failed to generate regex for": "minimum or maximum is above 9e17, which cannot be enforced; lower it",
    "min/maxProperties only supported": "minProperties and maxProperties cannot be enforced beside optional "
    "properties; make them required, or take the limits out",
    "circular references with sibling keys": "a $ref that leads back to itself has other keywords beside it; "
    "move them to where it leads",
}


def in_short(report: str, place: bool = True) -> str:
    """Return a report of the compiler on one line: the problem and its place, without the drawing."""
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    first = re.sub(r"^(?:at )?(\d+)\((\d+)\): ", r"line \1, column \2: ", lines[0] if lines else "not usable")
    first = first.removesuffix(" regex parse error:").removesuffix("regex parse error:").rstrip(" :")
    where = [first[:120]] if place or not reasons else []
    text = ": ".join(part for part in (*where, *reasons) if part)
    return f"{text[:200]}; correct it"


@dataclass(frozen=True)
class Source:
    """A grammar before it is compiled.

    lark: in Lark's syntax. literal: what it may spell out. patterns: the regular expressions in it. texts:
    all that it matches, if they are known. values: JSON strings that may stand in it. warnings: what is not
    enforced, a line each. explain: a report of the compiler -> an error message.
    """

    lark: str
    literal: str
    patterns: Sequence[str] = ()
    texts: Sequence[str] = ()
    values: Sequence[str] = ()
    warnings: tuple[str, ...] = ()
    explain: Callable[[str], str] = in_short

    def matcher(self, vocabulary: Vocabulary) -> LLMatcher:
        """Compile it.

        Where only one text can follow, the compiler allows nothing but the tokenizer's own ids for it. They
        do not spell every text: the name of a special token becomes that token. Then any ids must do.
        """
        plain = self.literal.replace("\\", "")
        forced = all(vocabulary.spells(text) for text in {self.literal, plain})
        header = "" if forced else '%llguidance {"no_forcing": true}\n'
        return LLMatcher(vocabulary.backend, header + self.lark, log_level=0)


def source_of(name: str, value: Any, vocabulary: Vocabulary) -> Source:
    """The source of what a caller gives under `name`: schema, regex, grammar or choices.

    Raises InputError for what is not of that kind, and for schemas that cannot be enforced.
    """
    if name == "schema":
        return _schema(value, vocabulary)
    if name == "choices":
        return _choices(value)
    text = _checked_text(name, value)
    if not text:
        raise InputError(f"{name}: empty; an answer is never empty")
    if name == "grammar":
        return Source(text, text, [text])
    if ends_in_escape(text):
        raise InputError("regex: ends within an escape; write two backslashes for one")
    (compiled,) = json.loads(LLMatcher.grammar_from_regex(text))["grammars"]
    # Where in Lark's text the pattern stands is of no use.
    return Source(
        compiled["lark_grammar"], text, [text], explain=lambda report: in_short(report, place=False)
    )


def _schema(value: Any, vocabulary: Vocabulary) -> Source:
    schema = checked_schema(value)

    def lark(plain: Mapping[str, Any]) -> str:
        return f"start: %json {json.dumps({**plain, 'x-guidance': _JSON})}"

    def reason(report: str) -> str:
        known = next((words for start, words in _REASONS.items() if start in report), None)
        return known or in_short(report.partition("failed to compile JSON schema: ")[2] or report)

    def compile_part(plain: Mapping[str, Any]) -> str:
        matcher = LLMatcher(vocabulary.backend, lark(plain), log_level=0)
        return reason(matcher.get_error()) if matcher.is_error() else ""

    def explain(report: str) -> str:
        if "recursion limit exceeded" in report:  # of the reader of JSON: it has no place
            return TOO_DEEP
        return schema.located(reason(report), compile_part)

    texts = [json.dumps(text, ensure_ascii=False) for text in schema.examples]
    return Source(
        lark(schema.plain),
        json.dumps(schema.plain, ensure_ascii=False),
        schema.patterns,
        values=['""', *texts, *(text[1:] for text in texts)],  # also where the first quote is written
        warnings=schema.warnings,
        explain=explain,
    )


def _choices(choices: Any) -> Source:
    if isinstance(choices, str | bytes) or not isinstance(choices, Sequence):
        raise InputError(f"choices: found {type(choices).__name__}; give a list of texts")
    if not choices:
        raise InputError("choices: empty; give at least one text")
    known: set[str] = set()
    for index, choice in enumerate(choices):
        if not isinstance(choice, str):
            raise InputError(f"choices: item {index} is {type(choice).__name__}; every choice is a text")
        if not choice:
            raise InputError(f"choices: item {index} is empty; an answer is never empty")
        if choice in known:
            raise InputError(f"choices: '{one_line(choice, 40)}' is there twice; keep one of them")
        known.add(_checked_text(f"choices: item {index}", choice))
    # One terminal: the compiler allows 2000 rules in one place, and follows each of them.
    return Source(
        "start: TEXT\nTEXT: " + " | ".join(map(json.dumps, choices)), "\n".join(choices), texts=list(choices)
    )


def _checked_text(name: str, text: Any) -> str:
    if not isinstance(text, str):
        raise InputError(f"{name}: found {type(text).__name__}; give a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name}: not valid Unicode ({error.reason}); decode it as UTF-8") from None
    return text
