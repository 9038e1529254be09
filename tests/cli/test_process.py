"""Signals, full disks and strange variables: what the command's process makes of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from mlx_diffusiongemma.cli.process import check_environment
from mlx_diffusiongemma.console.messages import say
from mlx_diffusiongemma.console.tables import aligned
from mlx_diffusiongemma.errors import InputError

# Converts in small shards, with a pause after each.
SLOW_CONVERSION = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have them ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from mlx_diffusiongemma.cli import run
from mlx_diffusiongemma.converter import conversion, writing
writing.SHARD_BYTES = 150_000
write = conversion._write_shard
def slowly(*arguments):
    record = write(*arguments)
    time.sleep(0.05)
    return record
conversion._write_shard = slowly
sys.argv = ["mlx_dg", "convert", "demo", "--mlx-path", sys.argv[1]]
run()
"""
# Runs generated code that does not end.
SANDBOX = """
from mlx_diffusiongemma.cli.process import handle_signals
from mlx_diffusiongemma.evaluation import sandbox
handle_signals()
sandbox.allow_uncontained = True
sandbox.call("while True: pass", "f", [[]])
"""


def converting(target: Path, shards: int = 2) -> subprocess.Popen[str]:
    """Return a conversion that has written some shards."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_CONVERSION, str(target)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    progress = target.parent / f".{target.name}.partial" / "progress.json"
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if progress.exists() and progress.read_text().count('"pieces"') >= shards:
            break
        time.sleep(0.01)
    return process


@pytest.mark.slow
@pytest.mark.parametrize(("signals", "status"), [
    ((signal.SIGTERM,), 143),
    ((signal.SIGHUP,), 129),
    ((signal.SIGINT,), 130),
    *(((signal.SIGINT, delay, signal.SIGINT), 130) for delay in (0, 0.05)),
])  # fmt: skip
def test_a_conversion_that_gets_a_signal_continues_later(
    signals: Sequence[float], status: int, tmp_path: Path
) -> None:
    process = converting(tmp_path / "out")
    for each in signals:
        if isinstance(each, signal.Signals):
            process.send_signal(each)
        else:
            time.sleep(each)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    assert "terminate called" not in errors
    kept = (tmp_path / ".out.partial" / "progress.json").read_text().count('"pieces"')
    assert kept >= 2
    if len(signals) > 1:
        return
    assert f"mlx_dg: kept {kept} finished shards" in errors
    resumed = converting(tmp_path / "out", shards=99)
    assert resumed.communicate(timeout=60)[1].endswith(f"mlx_dg: wrote {tmp_path / 'out'}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_generated_code_that_is_ended_leaves_no_directory(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", SANDBOX], env=environment)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("mlx-dg-sandbox-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("options", [[], ["--thinking"], ["--stats"], ["--json"]])
def test_a_full_stderr_does_not_cost_the_answer(options: list[str]) -> None:
    command = [sys.executable, "-m", "mlx_diffusiongemma", "generate", *options, "What is 345 + 78?"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, check=False)
    assert done.returncode == 0
    assert "423" in done.stdout


@pytest.mark.parametrize(("name", "value"), [
    ("HF_HUB_DOWNLOAD_TIMEOUT", "abc"),
    ("HF_HUB_ETAG_TIMEOUT", "1.5"),
    ("TQDM_MININTERVAL", "\x1b[2J"),
    ("TQDM_TOTAL", "x"),
    ("TQDM_INITIAL", "1.5"),
])  # fmt: skip
def test_a_variable_that_is_no_number_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{name}: found .*; set it to a number, or unset it") as caught:
        check_environment()
    assert str(caught.value).isprintable()
    monkeypatch.setenv(name, "10")
    check_environment()


def test_foreign_text_is_shown_with_signs(capsys: pytest.CaptureFixture[str]) -> None:
    title = "\x1b]0;title\x07\x9b2J\u202e"
    say(f"one{title}\ntwo\tthree")
    assert capsys.readouterr().err == "one␛]0;title␇\ufffd2J\ufffd\ntwo\tthree\n"
    table = aligned([["name", "n"], [f"{title}\nfake", "1"]], left=1)
    assert all(line.isprintable() for line in table.splitlines())
    assert len(table.splitlines()) == 2
    assert str(InputError(f"found {title}\nfake")).isprintable()
