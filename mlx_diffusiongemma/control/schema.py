"""JSON Schemas as the grammar compiler takes them, with the places of their parts for its errors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..console.messages import one_line
from ..errors import InputError
from .examples import example
from .schema_depth import is_too_deep
from .schema_keywords import FORMATS
from .schema_objects import definition
from .schema_places import refuse, where
from .schema_reader import SchemaReader
from .schema_refs import step
from .schema_types import json_schema_of, parser_of

__all__ = ["TOO_DEEP", "CheckedSchema", "checked_schema", "parser_of"]

TOO_DEEP = "nested too deeply, or a long chain of references; make it flatter"

_CHECKING = 2_000_000  # characters that are compiled to find the part at fault


@dataclass(frozen=True)
class CheckedSchema:
    """A schema that the grammar compiler enforces in full.

    plain: the schema in the compiler's keywords, with every reference into its `$defs`. patterns: the
    regular expressions in it. examples: texts that its patterns, formats and lengths ask for, the shortest
    first. warnings: what is not enforced, a line each. places: id of a part of `plain` -> where it stood in
    the caller's schema, as a JSON pointer.
    """

    plain: dict[str, Any]
    patterns: tuple[str, ...]
    examples: tuple[str, ...]
    warnings: tuple[str, ...]
    places: dict[int, str]

    def located(self, report: str, compile_part: Callable[[dict[str, Any]], str]) -> str:
        """The compiler's report with its place: that of the smallest part that fails by itself.

        compile_part: a schema -> the report on it, empty if it can be compiled.
        """
        definitions = self.plain.get("$defs", {})
        pointer, checked = "", set[int]()
        most = _CHECKING // (1000 + len(json.dumps(definitions)))
        pending = list(_parts(self.plain, definitions))
        while pending and len(checked) < most:
            part = pending.pop(0)
            if id(part) not in checked:
                checked.add(id(part))
                inner = compile_part({**part, "$defs": definitions})
                if inner:
                    report, pointer = inner, self.places.get(id(part), pointer)
                    pending = list(_parts(part, definitions))

        def place(match: re.Match[str]) -> str:
            return self.places.get(id(definition(match[0], definitions)), "") or "the top"

        return f"{where(pointer)}: {re.sub(r'#/[$]defs/[0-9]+', place, report)}"


def checked_schema(schema: Any) -> CheckedSchema:
    """`schema` for the grammar compiler.

    schema: a JSON Schema (a dict, True or False), or a type that pydantic describes.
    Raises InputError, with the place, for what is not a schema and for what cannot be enforced.
    """
    plain = _as_json(json_schema_of(schema))
    if plain is False:
        raise InputError("schema: false allows no answer at all; loosen it")
    try:
        reader = SchemaReader({} if plain is True else plain)
        top = reader.read()
    except RecursionError:
        raise InputError(f"schema: {TOO_DEEP}") from None
    if is_too_deep(top, reader.definitions):
        raise InputError(f"schema: {TOO_DEEP}")
    if reader.definitions:
        top["$defs"] = reader.definitions
    texts = {example(pattern) for pattern in reader.patterns} | {FORMATS[name] for name in reader.formats}
    texts |= {"a" * length for length in reader.lengths}
    examples = tuple(sorted((text for text in texts if text), key=lambda text: (len(text), text)))
    return CheckedSchema(top, tuple(reader.patterns), examples, tuple(reader.warnings), reader.places)


def _as_json(schema: Any) -> Any:
    """`schema` with JSON's own types."""
    try:
        text = json.dumps(schema, allow_nan=False, ensure_ascii=False)
        text.encode()
        return json.loads(text)
    except RecursionError:
        raise InputError(f"schema: {TOO_DEEP}") from None
    except (TypeError, ValueError) as error:
        pointer, reason = _not_json(schema, "", error)
        refuse(pointer, f"not JSON ({reason}); use plain JSON values")


def _not_json(value: Any, pointer: str, error: Exception) -> tuple[str, str]:
    """Return the place of the innermost part of `value` that cannot be written as JSON, and the reason."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if "Circular" not in str(error):
        for key, each in inner:
            try:
                json.dumps(each, allow_nan=False, ensure_ascii=False).encode()
            except (TypeError, ValueError) as found:
                return _not_json(each, pointer + step(key), found)
    return pointer, one_line(error)


def _parts(node: dict[str, Any], definitions: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schemas directly within a rewritten one."""
    inner: list[Any] = [*node.get("properties", {}).values(), *node.get("patternProperties", {}).values()]
    inner += [part for key in ("allOf", "anyOf", "oneOf", "prefixItems") for part in node.get(key, ())]
    inner += [node[key] for key in ("additionalProperties", "items") if key in node]
    if "$ref" in node:
        inner.append(definition(node["$ref"], definitions))
    yield from (part for part in inner if isinstance(part, dict))
