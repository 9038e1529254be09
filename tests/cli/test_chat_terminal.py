"""`mlx_dg chat` at a terminal: the real command behind a pseudoterminal. pyte reads what it draws."""

from __future__ import annotations

import fcntl
import json
import os
import select
import stat
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyte
import pytest

pytestmark = pytest.mark.slow

# The command, with the pseudoterminal as what Ctrl-C comes from. Two questions hang in a canvas of theirs.
COMMAND = """
import fcntl, os, signal, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background ignores it
if os.environ.get("WITHOUT_PROMPT_TOOLKIT"):
    sys.modules["prompt_toolkit"] = None
from mlx_diffusiongemma.cli import main
from mlx_diffusiongemma.checkpoint.loading import resolve
from mlx_diffusiongemma.engine.batch import Batch
from mlx_diffusiongemma.text.tokenizer import Tokenizer

denoise, tokenizer = Batch._denoise, Tokenizer.load(resolve("demo"))

def hanging(self, active, prefix, clock):
    question = tokenizer.decode(active[0].prompt.ids).rpartition("user")[2]
    if active[0].blocks == ("Count" in question) and ("Count" in question or "Hello" in question):
        os.write(2, b"HANGS\\n")
        time.sleep(600)
    return denoise(self, active, prefix, clock)

Batch._denoise = hanging
main()
"""
TURNS = ["What is 345 + 78?", "423", "What is the capital of Norway?", "The capital of Norway is Oslo."]
UP, CTRL_C, CTRL_D, ESC_ENTER = "\x1b[A", "\x03", "\x04", "\x1b\r"


class _Screen(pyte.Screen):
    """Answers what programs ask of a terminal, such as where its cursor is."""

    answer: Callable[[str], None]

    def write_process_input(self, data: str) -> None:
        self.answer(data)


class Terminal:
    """A terminal of 80x24 that runs the chat."""

    def __init__(self, home: Path, *options: str, stdout: int | None = None):
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "chat", "--model", "demo", "--seed", "0", "--thinking", *options],
            stdin=slave,
            stdout=slave if stdout is None else stdout,
            stderr=slave,
            env=os.environ | {"HOME": str(home), "TERM": "xterm", "MLX_ENABLE_TF32": "0"},
            start_new_session=True,
        )
        os.close(slave)
        self.screen = _Screen(80, 24)
        self.screen.answer = lambda data: self.type(data)
        self.stream = pyte.ByteStream(self.screen)

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines).rstrip()

    def wait(self, condition: Callable[[], bool]) -> None:
        """Read until `condition`. The minute is for a busy machine."""
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, self.text
            self._read(0.2)

    def shows(self, text: str) -> None:
        self.wait(lambda: text in self.text)

    def prompts(self) -> None:
        """Waits for an empty prompt."""
        self.wait(lambda: self.text.splitlines()[-1:] == [">"])

    def does(self, line: str, shown: str) -> None:
        """Type a line, and wait for what it shows and for the next prompt."""
        self.type(f"{line}\r")
        self.shows(shown)
        self.prompts()

    def ends(self) -> int:
        self.wait(lambda: self.process.poll() is not None)
        while self._read(0.2):
            pass
        return self.process.returncode

    def _read(self, seconds: float) -> bool:
        if not select.select([self.master], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError:  # Linux's way to say that nobody has the other end open
            return False
        self.stream.feed(data)
        return bool(data)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def starting(*options: str, stdout: int | None = None) -> Terminal:
        started.append(Terminal(tmp_path, *options, stdout=stdout))
        started[-1].prompts()
        return started[-1]

    yield starting
    for terminal in started:
        terminal.close()


def test_turns_history_and_saved_chats(start: Callable[..., Terminal], tmp_path: Path) -> None:
    chat = start()
    assert chat.lines[0] == "Chat with demo. /help lists the commands, q or Ctrl-D quits."
    chat.does("What is 345 + 78?", "0 of 26 prompt tokens cached")
    assert chat.lines[1:9] == [
        "> What is 345 + 78?",
        "<thought>",
        "ones 5+8+0=13",
        "tens 4+7+1=12",
        "hundreds 3+0+1=04",
        "</thought>",
        "423",
        chat.lines[8],
    ]
    assert chat.lines[8].startswith("1 block, 2 steps, ")
    assert chat.lines[8].endswith(" tokens/s net, 0 of 26 prompt tokens cached")
    chat.does("What is the capital of Norway?", "26 of 46 prompt tokens cached")
    chat.does("/save ~/a.json", "saved 2 turns")
    chat.type(CTRL_D)
    assert chat.ends() == 0
    history = tmp_path / ".mlx_dg_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600

    again = start()
    again.type(UP + UP + UP)  # the first line of the session before
    again.shows("> What is 345 + 78?")
    again.type(CTRL_C)  # clears it, also when it comes twice
    again.prompts()
    again.type(CTRL_C)
    again.does("/load ~/a.json", "loaded 2 turns; thinking on")
    again.type("What is 345 + 78?" + CTRL_C)
    again.does("/save ~/b.json", "saved 2 turns to '~/b.json'")
    again.type("/quit\r")
    assert again.ends() == 0
    assert (tmp_path / "b.json").read_text() == (tmp_path / "a.json").read_text()


def test_ctrl_c_keeps_the_conversation(start: Callable[..., Terminal], tmp_path: Path) -> None:
    chat = start()
    chat.does("What is 345 + 78?", "0 of 26 prompt tokens cached")
    chat.type("Hello\r")  # hangs before anything is answered
    chat.shows("HANGS")
    chat.type("too early")  # is not shown in the answer
    chat.type(CTRL_C)
    chat.shows("\nmlx_dg: interrupted without an answer; the question is taken back")
    chat.prompts()
    chat.does("What is the capital of Norway?", "34 of 46 prompt tokens cached")
    chat.type("/n 2\r")
    chat.shows("2 candidates a turn")
    chat.type("Count to 37.\r")  # hangs in the second canvas
    chat.wait(lambda: chat.text.count("HANGS") == 2)
    chat.type(CTRL_C)
    chat.shows("keep which? [1]")
    chat.type("3\r")
    chat.shows("mlx_dg: error: give the number of a candidate with an answer, found '3'")
    chat.wait(lambda: chat.text.count("keep which?") == 2)
    chat.does("2", "mlx_dg: interrupted; what was answered stays in the conversation, cut short")
    assert "too early" not in chat.text
    chat.type("What is the capital of Italy?\r")
    chat.wait(lambda: chat.text.count("keep which?") == 3)
    chat.type(CTRL_C)  # neither
    chat.shows("\nmlx_dg: interrupted; the question is taken back")
    chat.prompts()
    chat.does(f"/save {tmp_path}/a.json", "saved 3 turns")
    chat.type("What is the capital of Italy?\r")
    chat.wait(lambda: chat.text.splitlines()[-1].startswith("keep which?"))
    chat.type("q\r")  # asks nothing more
    assert chat.ends() == 0
    contents = [each["content"] for each in json.loads((tmp_path / "a.json").read_text())["messages"]]
    *turns, count, answer = contents
    assert turns == TURNS
    assert count == "Count to 37."
    assert "9 10 11" in answer
    assert " ".join(map(str, range(1, 38))).startswith(answer)
    assert not answer.endswith("37")


def test_keys(start: Callable[..., Terminal], tmp_path: Path) -> None:
    """Lines in one message, typed and pasted; completion of commands; bytes that are not text."""
    (tmp_path / ".mlx_dg_history").mkdir()
    read, write = os.pipe()
    chat = start(stdout=write)  # the answers go elsewhere; what is typed still shows
    os.close(write)
    assert "history will not be kept" in chat.text
    chat.type("/res")
    chat.shows("/reset  forget the conversation")
    chat.type("\t")
    chat.shows("> /reset")
    chat.does("", "the conversation is forgotten")
    os.write(chat.master, b"caf\xe9\r")
    chat.shows("mlx_dg: error: prompt: not valid Unicode")
    chat.prompts()
    chat.does(f"What is{ESC_ENTER}345 + 78?", "prompt tokens cached")
    chat.type("\x1b[200~Add 1\rand 2.\x1b[201~")
    chat.shows("  and 2.")
    chat.type("\r")
    chat.wait(lambda: chat.text.count("tokens cached") == 2)
    chat.does(f"/save {tmp_path}/a.json", "saved 2 turns")
    chat.type(CTRL_D)
    assert chat.ends() == 0
    messages = json.loads((tmp_path / "a.json").read_text())["messages"]
    asked = [each["content"] for each in messages if each["role"] == "user"]
    assert asked == ["What is\n345 + 78?", "Add 1\nand 2."]
    with open(read) as answers:
        first, *_ = answers.read().split("\n\n")
    assert first
    assert first not in chat.text


def test_without_prompt_toolkit(start: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WITHOUT_PROMPT_TOOLKIT", "1")
    chat = start()
    assert "pip install 'mlx-diffusiongemma[chat]'" in chat.text.replace("\n", "")
    chat.does("What is 345 + 78?", "0 of 26 prompt tokens cached")
    chat.type("Hello\r")  # hangs
    chat.shows("HANGS")
    chat.type("too early" + CTRL_C)
    chat.shows("interrupted without an answer; the question is taken back")
    chat.prompts()
    assert "too early" not in chat.text
    chat.type(CTRL_D)
    assert chat.ends() == 0
