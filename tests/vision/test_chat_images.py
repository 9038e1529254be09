"""Images in a chat: attached to a question, kept with it, saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mlx_diffusiongemma.chat.chat import Chat
from mlx_diffusiongemma.cli.chat_commands import run_command
from mlx_diffusiongemma.errors import InputError

SHORT: dict[str, Any] = {"seed": 0, "max_new_tokens": 32, "max_denoising_steps": 4}


def test_an_image_goes_with_the_next_question_and_stays_with_it(seeing: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (80, 60), "red").save(path)
    chat = Chat(*seeing, **SHORT)
    blind = chat.ask("A").token_ids
    assert run_command(chat, f"/image {path}") == "the next message takes 1 image"
    turn = chat.ask("A")
    assert turn.token_ids != blind
    assert len(turn.prompt_ids) > 63
    chat.keep(turn)
    assert chat.attached == []
    follow = chat.ask("B")
    assert follow.token_ids
    assert follow.stats.cached_tokens > 63

    chat.save(tmp_path / "chat.json")
    path.unlink()
    again = Chat(*seeing, **SHORT)
    again.load(tmp_path / "chat.json")
    assert again.messages == chat.messages
    assert again.ask("B").token_ids == follow.token_ids
    values = json.loads((tmp_path / "chat.json").read_text())
    for images in ("x", [3], None):
        values["messages"][0]["images"] = images
        with pytest.raises(InputError, match="messages must have the roles user and assistant"):
            again.restore(values)


def test_a_file_that_is_no_image_is_not_attached(seeing: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no")
    chat = Chat(*seeing, **SHORT)
    for name in ("a.png", "missing.png", "."):
        with pytest.raises(InputError, match=r"image: '.*"):
            run_command(chat, f"/image {tmp_path / name}")
    assert chat.attached == []
