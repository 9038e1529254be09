"""The import order of docs/design.md: each room imports only rooms above it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mlx_diffusiongemma

ROOT = Path(__file__).parents[1]
PUBLIC = mlx_diffusiongemma._MODULE_OF
PACKAGE = "mlx_diffusiongemma"
# From the top of the house down. Rooms of a line do not import each other, unless it is named below.
ORDER = (
    ("errors",),
    ("config", "console", "macs", "habits", "threads", "prompt"),
    ("ops", "cache"),
    ("model", "vision"),
    ("engine",),
    ("text",),
    ("checkpoint",),
    ("control",),
    ("answer", "request", "writer", "result", "generation", "filling", "converter"),
    ("chat", "display"),
    ("bench", "doctor", "evaluation", "demo"),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
# Neighbours that may import each other, in this direction.
NEIGHBOURS = {
    ("config", "console"),
    ("config", "habits"),
    ("ops", "cache"),
    ("request", "answer"),
    ("filling", "request"),
    ("generation", "result"),
    ("result", "answer"),
    ("result", "writer"),
    ("generation", "request"),
    ("generation", "writer"),
    ("writer", "answer"),
    ("doctor", "bench"),
    ("evaluation", "demo"),
    ("converter", "generation"),
}
# An IPython idiom: a generation shows itself, through a view that is imported inside the method.
EXCEPTIONS = {("result", "display")}


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its installed name."""
    named = {}
    for top, name in ((PACKAGE, PACKAGE), ("convert", f"{PACKAGE}.converter")):
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT / top).with_suffix("").parts
            if "converter" in parts and top == PACKAGE:  # a link to convert/
                continue
            named[".".join([name, *parts]).removesuffix(".__init__")] = path
    return named


def imports(name: str, path: Path) -> Iterator[str]:
    """Names that a module imports, those for type checking and those inside functions included."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            target = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{target}.{alias.name}" for alias in node.names)


def room(name: str) -> str | None:
    """Return the room of a module or of a public name; None outside of the package and for its `__init__`."""
    parts = name.split(".")
    if parts[0] == "mlx_dg":
        return "cli"  # everything is behind it
    if parts[0] != PACKAGE or len(parts) == 1:
        return None
    if len(parts) == 2 and parts[1] in PUBLIC and f"{PACKAGE}.{parts[1]}" not in modules():
        return PUBLIC[parts[1]].split(".")[0]
    return parts[1] if parts[1] in LEVEL else None


def forbidden(name: str, imported: str) -> bool:
    here, there = room(name), room(imported)
    if here is None or there is None or here == there or (here, there) in NEIGHBOURS | EXCEPTIONS:
        return False
    return LEVEL[there] >= LEVEL[here]


def test_every_module_has_a_room() -> None:
    for name in modules():
        assert name in {PACKAGE, f"{PACKAGE}.__main__"} or room(name) is not None, name


def test_each_room_imports_only_rooms_above_it() -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, path in modules().items()
        for imported in imports(name, path)
        if forbidden(name, imported)
    ]
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_no_circles() -> None:
    """Between modules, also where only a type checker follows the imports. Packages re-export their own."""
    named = {name: path for name, path in modules().items() if path.name != "__init__.py"}
    edges = {
        name: {
            target
            for imported in imports(name, path)
            for target in (imported, imported.rpartition(".")[0])
            if target in named and target != name and (room(name), room(target)) not in EXCEPTIONS
        }
        for name, path in named.items()
    }
    TopologicalSorter(edges).prepare()  # raises an error that names a circle


@pytest.mark.parametrize(("room", "line"), [
    ("engine", "from ..text.tokenizer import Tokenizer"),
    ("model", "from ..engine.state import CanvasState"),
    ("text", "from ..control import grammar"),
    ("display", "import mlx_diffusiongemma.cli.streams"),
    ("config", "from ..engine.state import Sampler"),
    ("engine", "from .. import generate"),
    ("ops", "import mlx_dg"),
])  # fmt: skip
@pytest.mark.parametrize("around", ["{}", "if TYPE_CHECKING:\n    {}", "def late():\n    {}"])
def test_a_planted_import_is_found(tmp_path: Path, room: str, line: str, around: str) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(around.format(line))
    name = f"{PACKAGE}.{room}.planted"
    assert any(forbidden(name, imported) for imported in imports(name, planted))


def test_an_import_from_a_room_above_is_allowed(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed.py"
    allowed.write_text("from ..config.model import ModelConfig\nfrom ..errors import InputError")
    name = f"{PACKAGE}.ops.allowed"
    assert not any(forbidden(name, imported) for imported in imports(name, allowed))
