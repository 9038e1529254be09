"""What stands in for Linux's kernel on macOS, as far as it can be judged on any machine."""

import sys
from pathlib import Path

from mlx_diffusiongemma.evaluation import sandbox
from mlx_diffusiongemma.evaluation.sandbox import Limits, call, macos


def test_memory_is_watched_where_no_limit_holds_it(monkeypatch):
    monkeypatch.setattr(sandbox, "ON_MACOS", True)
    monkeypatch.setattr(macos, "prefix", lambda folder: [])
    monkeypatch.setattr(macos, "resident_mb", lambda pid: 200.5)
    outcome = call("import time\ntime.sleep(60)", "f", [], limits=Limits(memory_mb=200))
    assert outcome == sandbox.Outcome(None, "memory limit of 200 MB")


def test_the_seatbelt_profile_names_the_folder_and_the_interpreter(tmp_path):
    rules = macos.profile(str(tmp_path)).splitlines()
    assert all(rule.count("(") == rule.count(")") for rule in rules)
    (write,) = [rule for rule in rules if "file-write" in rule]
    (read,) = [rule for rule in rules if "file-read" in rule]
    assert f'(deny file-write* (require-not (require-any (subpath "{tmp_path.resolve()}")' in write
    hidden, seen = read.split("(require-not ")
    assert f'(subpath "{Path.home().resolve()}")' in hidden
    assert f'(subpath "{sys.base_prefix}")' in seen
    assert f'(subpath "{tmp_path}")' in seen
    assert macos.works() == (sys.platform == "darwin")
