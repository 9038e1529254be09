"""How much memory may be used on which machine, and what Macs keep wired."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_diffusiongemma.engine import memory
from mlx_diffusiongemma.engine.memory import usable_memory, wired_limit

# --- what may be used ---------------------------------------------------------------------------------------


def files(monkeypatch: pytest.MonkeyPatch, directory: Path, meminfo: str | None, *cgroups: str) -> None:
    """In the place of Linux's own."""
    (directory / "meminfo").write_text(meminfo or "")
    monkeypatch.setattr(memory, "_MEMINFO", str(directory / ("meminfo" if meminfo else "missing")))
    paths = [directory / f"cgroup{i}" for i in range(len(cgroups))]
    for path, text in zip(paths, cgroups, strict=True):
        path.write_text(text)
    monkeypatch.setattr(memory, "_CGROUP_LIMITS", [*map(str, paths), str(directory / "missing")])


def on(monkeypatch: pytest.MonkeyPatch, device: Any, **info: int) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(device))
    monkeypatch.setattr(mx, "device_info", lambda: info)


AVAILABLE = "MemTotal:       8000 kB\nMemFree:         1000 kB\nMemAvailable:    5000 kB\nCached:   900 kB\n"


def test_usable_on_this_machine() -> None:
    usable = usable_memory()
    assert usable is not None
    assert 2**28 < usable < 2**44


def test_usable_on_metal_and_unknown_on_another_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, mx.gpu, max_recommended_working_set_size=123, memory_size=456)
    assert usable_memory() == 123
    on(monkeypatch, mx.gpu, total_memory=456)
    assert usable_memory() is None


def test_usable_on_linux_is_what_is_available_and_what_mlx_holds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on(monkeypatch, mx.cpu)
    monkeypatch.setattr(mx, "get_active_memory", lambda: 300_000)
    monkeypatch.setattr(mx, "get_cache_memory", lambda: 20_000)
    available = 5000 * 1024 + 320_000
    for limits, usable in (
        ((), available),
        (("max\n",), available),
        ((f"{2**40}\n", "4000000\n"), 4_000_000),
    ):
        files(monkeypatch, tmp_path, AVAILABLE, *limits)
        assert usable_memory() == usable


def test_usable_elsewhere_is_all_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on(monkeypatch, mx.cpu)
    files(monkeypatch, tmp_path, None)
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 16384}.__getitem__)
    assert usable_memory() == 16_384_000


# --- wired memory -------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Limits set in MLX on a Mac that recommends 100 bytes and whose limit is 7."""
    limit, calls = [7], []

    def set_wired_limit(new: int) -> int:
        calls.append(new)
        limit.append(new)
        return limit[-2]

    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 100})
    monkeypatch.setattr(mx, "set_wired_limit", set_wired_limit)
    monkeypatch.setattr(mx, "synchronize", lambda: calls.append("synchronized"))
    return calls


def test_the_wired_limit_is_restored_after_an_exception(calls: list[Any]) -> None:
    with pytest.raises(ZeroDivisionError), wired_limit():
        raise ZeroDivisionError
    assert calls == [100, "synchronized", 7]


def test_the_wired_limit_is_restored_when_the_last_of_several_ends(calls: list[Any]) -> None:
    """Generations that take turns end in any order."""

    def generation() -> Iterator[None]:
        with wired_limit():
            yield

    first, second = generation(), generation()
    next(first)
    next(second)
    first.close()
    assert calls == [100, 100, "synchronized"]
    second.close()
    assert calls == [100, 100, "synchronized", "synchronized", 7]
    with wired_limit():
        pass
    assert calls[-1] == 7


def test_other_devices_have_no_wired_limit(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "device_info", dict)
    with pytest.raises(ZeroDivisionError), wired_limit():
        raise ZeroDivisionError
    assert calls == []
