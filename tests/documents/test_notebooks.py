"""The stored notebooks: run in order without errors, and free of what one machine left in them.

`make notebooks` executes them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

DIRECTORY = Path(__file__).parents[2] / "notebooks"
PATHS = sorted(DIRECTORY.glob("*.ipynb"))
REFRESH = (
    "run `make notebooks` and then `jupyter nbconvert --to notebook --inplace --execute "
    "--ClearMetadataPreprocessor.enabled=True "
    "--ClearMetadataPreprocessor.preserve_nb_metadata_mask kernelspec notebooks/*.ipynb`"
)
MOST_BYTES = 400_000
MOST_COLUMNS = 112  # of a page 1100 pixels wide
# Directories of a machine, terminal colours, objects by address, times of day, what a front end complains of.
JUNK = re.compile(
    r"/(home|Users|root|tmp|work|usr|var|opt|private)/|[A-Z]:\\\\|\x1b|\bat 0x[0-9a-f]{6,}"
    r"|Warning\b|IProgress|\b20\d\d-\d\d-\d\d|\d+%\|"
)


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


@pytest.fixture
def notebook(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def text_of(output: Any) -> str:
    """Return the text of an output, without pictures and the data of views."""
    if output.output_type == "stream":
        return str(output.text)
    kept = {kind: text for kind, text in output.data.items() if not kind.startswith("image/")}
    return re.sub(r'"data:image/png;base64,[^"]*"|<script[^>]*>.*?</script>', "", json.dumps(kept))


def test_there_are_five() -> None:
    assert [path.stem[:2] for path in PATHS] == ["01", "02", "03", "04", "05"]


def test_format_and_metadata(notebook: Any, path: Path) -> None:
    """Nothing that differs from machine to machine and run to run."""
    nbformat.validate(notebook)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}, REFRESH
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata.get("language_info", {})) <= {"name"}, REFRESH
    assert all(cell.metadata == {} for cell in notebook.cells), REFRESH
    assert path.stat().st_size < MOST_BYTES


def test_the_model_is_one_variable_at_the_top(notebook: Any) -> None:
    codes = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert codes[0].splitlines()[-1] == 'MODEL = "demo"'
    assert all(line.startswith("#") for line in codes[0].splitlines()[:-1])
    assert "26B" in codes[0]
    assert not any('"demo"' in code for code in codes[1:])


def test_cells_ran_in_order_without_errors(notebook: Any) -> None:
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in codes]
    assert counts == list(range(1, len(codes) + 1)), REFRESH
    outputs = [output for cell in codes for output in cell.outputs]
    assert len(outputs) >= len(codes) / 2, REFRESH
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert not any(output.get("name") == "stderr" for output in outputs)
    for output in outputs:
        assert not any("widget" in kind for kind in output.get("data", {}))


def test_nothing_of_a_machine_is_in_them(notebook: Any) -> None:
    for cell in notebook.cells:
        for text in (cell.source, *map(text_of, cell.get("outputs", []))):
            assert not (found := JUNK.search(text)), f"{found}: {text[:200]}; {REFRESH}"


def test_printed_lines_fit_the_page(notebook: Any) -> None:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    lines = [line for output in outputs if "text" in output for line in output.text.splitlines()]
    assert max(map(len, lines), default=0) <= MOST_COLUMNS


def test_links_lead_somewhere(notebook: Any) -> None:
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#]+)[^)]*\)", cell.source):
                assert (DIRECTORY / target).exists(), target
