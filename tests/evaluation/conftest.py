"""Where nothing contains generated code, it runs with resource limits, and tests of escapes are skipped."""

import pytest

from mlx_diffusiongemma.evaluation import sandbox

PROBLEM = sandbox.problem()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if PROBLEM and item.get_closest_marker("contained"):
            item.add_marker(pytest.mark.skip(reason=f"{PROBLEM}: generated code cannot be contained"))


@pytest.fixture(autouse=True)
def uncontained(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if PROBLEM and "test_code_that_nothing_contains" not in request.node.name:
        monkeypatch.setattr(sandbox, "allow_uncontained", True)
