"""Python types as schemas: what pydantic describes, and the objects that answers become."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, NewType

import pydantic
import pytest
from support.grammars import accepts, compiled, refusal, shortest
from typing_extensions import NotRequired, TypedDict

from mlx_diffusiongemma.control.schema import checked_schema
from mlx_diffusiongemma.control.schema_types import parser_of
from mlx_diffusiongemma.errors import GenerationError, InputError


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class City(pydantic.BaseModel):
    """A city."""

    name: str = pydantic.Field(description="its name", examples=["Oslo"])
    people: int = pydantic.Field(default=3, ge=0, deprecated=True)
    twin: City | None = None


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


class Person(TypedDict):
    name: str
    age: NotRequired[int]


class Pair(NamedTuple):
    left: int
    right: str


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: int = pydantic.Field(ge=1, le=9)


class Dog(pydantic.BaseModel):
    kind: Literal["dog", "wolf"]
    name: str | None = None


Pet = Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]
UserId = NewType("UserId", int)
Even = Annotated[int, pydantic.AfterValidator(lambda value: value if value % 2 == 0 else 1 / 0)]

CET = datetime.timezone(datetime.timedelta(hours=1))
TYPES: list[tuple[Any, str, Any]] = [
    (City, '{"name": "Oslo", "twin": {"name": "\\""}}', City(name="Oslo", twin=City(name='"'))),
    (list[City], '[{"name": "a", "people": 1}]', [City(name="a", people=1)]),
    (dict[str, City], '{"a": {"name": "b"}}', {"a": City(name="b")}),
    (City | None, "null", None),
    (Cat | Dog, '{"kind": "wolf"}', Dog(kind="wolf")),
    (list[Pet], '[{"kind": "cat", "lives": 9}]', [Cat(kind="cat", lives=9)]),
    (pydantic.TypeAdapter(list[Point]), '[{"x": 1, "y": 2.5}]', [Point(1, 2.5)]),
    (Point, '{"x": 1}', Point(1)),
    (Person, '{"name": "a"}', {"name": "a"}),
    (Pair, '[1, "a"]', Pair(1, "a")),
    (Color, '"blue"', Color.BLUE),
    (Level, "2", Level.HIGH),
    (dict[Color, int], '{"red": 1}', {Color.RED: 1}),
    (Literal["a", 1, None], "1", 1),
    (int, "-3", -3),
    (float, "2.5", 2.5),
    (bool, "true", True),
    (str, '"a"', "a"),
    (bytes, '"a"', b"a"),
    (type(None), "null", None),
    (dict[str, int], '{"a": 1}', {"a": 1}),
    (dict, '{"a": [1]}', {"a": [1]}),
    (list, "[1, {}]", [1, {}]),
    (tuple[int, str], '[1, "a"]', (1, "a")),
    (set[str], '["a", "b", "a"]', {"a", "b"}),
    (frozenset[Color], '["red", "red"]', frozenset({Color.RED})),
    (UserId, "7", 7),
    (Any, '[{"a": null}]', [{"a": None}]),
    (Annotated[str, pydantic.Field(pattern="^[A-Z]{2}$")], '"NO"', "NO"),
    (datetime.date, '"2024-02-29"', datetime.date(2024, 2, 29)),
    (datetime.datetime, '"2024-02-29T23:59:59+01:00"', datetime.datetime(2024, 2, 29, 23, 59, 59, 0, CET)),
    (datetime.timedelta, '"P1DT2H"', datetime.timedelta(days=1, hours=2)),
    (decimal.Decimal, "1.50", decimal.Decimal("1.50")),
]


@pytest.mark.parametrize(("schema", "text", "value"), TYPES, ids=map(str, range(len(TYPES))))
def test_types_are_schemas_and_answers_their_instances(schema: Any, text: str, value: Any) -> None:
    grammar, parse = compiled(schema=schema), parser_of(schema)
    assert accepts(grammar, text)
    parsed = parse(text)
    assert parsed == value
    assert type(parsed) is type(value)
    parse(shortest(grammar))


class Careful(pydantic.BaseModel):
    even: int

    @pydantic.field_validator("even")
    @classmethod
    def check(cls, value: int) -> int:
        if value % 2:
            raise ValueError("must be even")
        return value


@pytest.mark.parametrize(("schema", "text", "said"), [
    (Careful, '{"even": 3}', "Careful refuses it (even: Value error, must be even)"),
    (list[Careful], '[{"even": 3}, {"even": 5}]', "(0.even: Value error, must be even, and 1 more)"),
    (Even, "3", "refuses it (division by zero)"),
    (Careful, '{"even": 4', "not whole JSON"),
    (Careful, "", "not whole JSON"),
    ({}, '["a', "was it cut? raise max_new_tokens"),
    (City, "[1]", "City refuses it (Input should be an object)"),
    (dict[int, str], '{"a": "b"}', "refuses it (a.[key]: Input should be a valid integer"),
])  # fmt: skip
def test_an_answer_that_is_not_such_an_object_is_an_error(schema: Any, text: str, said: str) -> None:
    with pytest.raises(GenerationError) as caught:
        parser_of(schema)(text)
    message = str(caught.value)
    assert message.startswith("parsed: the answer is ")
    assert said in message
    assert "\n" not in message
    assert caught.value.__cause__ is not None


class Odd:
    """Not a type that pydantic knows."""


@dataclasses.dataclass
class Unknown:
    odd: Odd


@pytest.mark.parametrize(("schema", "said"), [
    ('{"type": "string"}', "found str; give a dict (json.loads of the text) or a type"),
    ([], "found list; give a JSON Schema as a dict, or a type"),
    (3, "found int; give"),
    (City(name="a"), "found an instance of City; give the class itself"),
    (Point(1), "found an instance of Point; give the class itself"),
    (Color.RED, "pydantic cannot use <Color.RED: 'red'>"),
    pytest.param(print, "found builtin_function_or_method print; give a type, not a", id="print"),
    pytest.param(lambda: 1, "give a type, not a function", id="lambda"),
    (Odd, "pydantic cannot use Odd (Unable to generate pydantic-core schema for"),
    (Unknown, "pydantic cannot use Unknown"),
    (list["Nowhere"], "Nowhere"),  # noqa: F821
    (Callable[[int], str], "has no JSON Schema"),
    (Annotated[set[int], pydantic.Field(min_length=2)], "keyword 'uniqueItems' cannot be enforced"),
], ids=lambda each: each[:30] if isinstance(each, str) else type(each).__name__)  # fmt: skip
def test_what_is_not_a_schema_is_refused(schema: Any, said: str) -> None:
    assert said in refusal(schema=schema)


def test_a_class_may_make_its_own_schema() -> None:
    class Own(pydantic.BaseModel):
        a: int

        @classmethod
        def model_json_schema(cls, *args: Any, **options: Any) -> dict[str, Any]:
            return {**super().model_json_schema(*args, **options), "additionalProperties": {"const": 7}}

    grammar = compiled(schema=Own)
    assert accepts(grammar, '{"a": 1, "b": 7}')


def test_defaults_that_are_no_json_are_no_warning() -> None:
    class Defaults(pydantic.BaseModel):
        odd: Any = object()
        when: str = pydantic.Field(default_factory=str)

    assert checked_schema(Defaults).warnings == ()


@pytest.mark.parametrize("schema", [list[int], Point, Color, Literal["a"], int])
def test_without_pydantic_types_are_refused_and_dicts_are_not(
    monkeypatch: pytest.MonkeyPatch, schema: Any
) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    assert "need pydantic 2; install it, or give a JSON Schema (dict)" in refusal(schema=schema)
    with pytest.raises(InputError, match="need pydantic 2"):
        parser_of(schema)
    assert accepts(compiled(schema={"type": "integer"}), "3")
    for schema in ({"type": "object"}, {}, True):
        assert parser_of(schema)('{"a": [1, null, "x"]}') == {"a": [1, None, "x"]}
