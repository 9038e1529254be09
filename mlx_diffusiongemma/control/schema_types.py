"""Python types as schemas: pydantic writes their JSON Schemas, and turns answers into objects."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

from ..console.messages import one_line
from ..errors import GenerationError, InputError


def json_schema_of(schema: Any) -> Any:
    """Return the JSON Schema of the caller's `schema`.

    schema: a JSON Schema (a dict, True or False), which is returned unchanged. Or a type: a pydantic model
        class, a `TypeAdapter`, a dataclass, TypedDict, Enum, or an annotation such as `list[City]`.
    Raises `InputError` for anything else, and for a type if pydantic is missing.
    """
    if isinstance(schema, dict | bool):
        return schema
    adapter = _adapter(schema)
    from pydantic import BaseModel

    try:
        if isinstance(schema, type) and issubclass(schema, BaseModel):
            return schema.model_json_schema(schema_generator=_generator())  # the class may have its own
        return adapter.json_schema(schema_generator=_generator())
    except Exception as error:  # pydantic's own, for types that JSON does not have
        raise InputError(
            f"schema: {_name(schema)} has no JSON Schema ({_reason(error)}); give one as a dict"
        ) from error


def parser_of(schema: Any) -> Callable[[str], Any]:
    """Return a function from the text of an answer to the value that `schema` describes.

    If `schema` is a type, the value is an instance of it, otherwise a plain JSON value. The function raises
    `GenerationError` if the text is incomplete or the type's own validators reject it.
    """
    adapter = None if isinstance(schema, dict | bool) else _adapter(schema)

    def parse(text: str) -> Any:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise GenerationError(
                f"parsed: the answer is not whole JSON ({one_line(error)}); was it cut? raise max_new_tokens"
            ) from error
        try:
            return value if adapter is None else adapter.validate_json(text)
        except Exception as error:  # also whatever the caller's validators raise
            raise GenerationError(
                f"parsed: the answer is JSON, but {_name(schema)} refuses it ({_reason(error)}); "
                "generate again, or say in the prompt what it must be like"
            ) from error

    return parse


def _generator() -> Any:
    """Return pydantic's generator of schemas, changed to agree with pydantic's validation."""
    from pydantic.json_schema import GenerateJsonSchema

    class Generator(GenerateJsonSchema):
        # Warnings that pydantic would print. Neither changes which answers are valid.
        ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012

        def set_schema(self, schema: Any) -> dict[str, Any]:
            return _with_repetitions(super().set_schema(schema))

        def frozenset_schema(self, schema: Any) -> dict[str, Any]:
            return _with_repetitions(super().frozenset_schema(schema))

    return Generator


def _with_repetitions(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a set. It allows repetitions if one item is enough, as validation does."""
    if schema.get("minItems", 0) <= 1:
        schema.pop("uniqueItems", None)
    return schema


def _adapter(schema: Any) -> Any:
    """Return pydantic's adapter of a type. Raise `InputError` if `schema` is not a type."""
    kind = type(schema).__name__
    if isinstance(schema, str | bytes):
        raise InputError(f"schema: found {kind}; give a dict (json.loads of the text) or a type")
    if isinstance(schema, int | float | list | tuple | set) or schema is None:
        raise InputError(f"schema: found {kind}; give a JSON Schema as a dict, or a type such as list[str]")
    if is_dataclass(type(schema)) or hasattr(type(schema), "model_json_schema"):
        raise InputError(f"schema: found an instance of {kind}; give the class itself")
    if inspect.isroutine(schema):
        raise InputError(f"schema: found {kind} {_name(schema)}; give a type, not a function")
    try:
        from pydantic import TypeAdapter
    except ImportError:
        raise InputError(
            f"schema: types such as {_name(schema)} need pydantic 2; install it, or give a JSON Schema (dict)"
        ) from None
    if isinstance(schema, TypeAdapter):
        return schema
    try:
        return TypeAdapter(schema)
    except Exception as error:  # pydantic's own, a NameError of an annotation, and more
        raise InputError(
            f"schema: pydantic cannot use {_name(schema)} ({_reason(error)}); give a JSON Schema as a dict"
        ) from error


def _name(schema: Any) -> str:
    has_name = isinstance(schema, type) or inspect.isroutine(schema)
    return (getattr(schema, "__name__", None) if has_name else None) or one_line(repr(schema), 60)


def _reason(error: Exception) -> str:
    """Return the first problem that an error of pydantic names, in one line."""
    details = getattr(error, "errors", None)
    if callable(details):
        first, *rest = details(include_url=False) or [{}]
        place = ".".join(map(str, first.get("loc", ())))
        more = f", and {len(rest)} more" if rest else ""
        return one_line(f"{place}: {first.get('msg')}" if place else first.get("msg")) + more
    return one_line(one_line(error).partition(" For further information visit")[0], 160)
