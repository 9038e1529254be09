"""Files of a model that are not what their names say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlx_diffusiongemma.config.files import read_text
from mlx_diffusiongemma.config.json_file import read_json
from mlx_diffusiongemma.errors import ConfigError


def test_json_of_many_values_is_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" + "[]," * 300_000 + "[]]")
    with pytest.raises(ConfigError, match="more than 200000 values"):
        read_json(tmp_path / "config.json")


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    plain, pipe, device = (tmp_path / name for name in ("plain", "pipe", "device"))
    plain.write_text("é" * 50)
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    assert read_text(plain, 100) == "é" * 50
    for path, message in (
        (plain, "larger than 9.9e-05 MB"),
        (pipe, "not a regular"),
        (device, "not a regular"),
    ):
        with pytest.raises(ValueError, match=message):
            read_text(path, 99)
    with pytest.raises(OSError, match="No such file"):
        read_text(tmp_path / "missing")


@pytest.mark.parametrize("content", ["[" * 10**5, "1" * 10**5, '{"a": NaN', "\ud800"])
def test_a_broken_file_is_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(
        ConfigError, match=r"config\.json: not readable as JSON \(.*\); download it again"
    ) as caught:
        read_json(path)
    assert str(caught.value).isprintable()
