"""Documents are true: snippets run, links lead somewhere, derived parts are fresh."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import mlx.core as mx
import pytest
from support.documents import has_shape, snippets

import mlx_dg
from mlx_diffusiongemma import InputError, Settings
from mlx_diffusiongemma.cli import main
from mlx_diffusiongemma.config.released import real_config
from mlx_diffusiongemma.converter.memory import recipe_weight_bytes
from mlx_diffusiongemma.engine.memory import check_fits
from mlx_diffusiongemma.macs import gpu_limit

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMING = ROOT / "docs/coming-from-mlx-lm.md"
LINKED = [*DOCUMENTS, ROOT / "kernels/README.md", *sorted((ROOT / "benchmarks").glob("*.md"))]
ON_CPU = mx.default_device().type == mx.DeviceType.cpu  # where the outputs that are shown were made
HUB_MODEL = "google/diffusiongemma-26B-A4B-it"  # the demo stands in for it: nothing is downloaded here


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", DOCUMENTS, ids=name)
def test_python_prints_what_is_shown(file: Path) -> None:
    namespace: dict[str, Any] = {}
    for snippet in snippets(file):
        if snippet.kind == "python":
            printed = io.StringIO()
            code = compile("\n" * snippet.line + snippet.code, name(file), "exec")
            with contextlib.redirect_stdout(printed):
                exec(code, namespace)
            assert has_shape(printed.getvalue(), snippet.shown or "", ON_CPU), (
                f"{name(file)}:{snippet.line} prints\n{printed.getvalue()}"
            )


@pytest.mark.parametrize("file", DOCUMENTS, ids=name)
def test_commands_print_what_is_shown(file: Path, tmp_path: Path) -> None:
    if any("build/demo-4bit" in snippet.code for snippet in snippets(file)):
        shell("mlx_dg convert demo --mlx-path build/demo-4bit", tmp_path)
    for snippet in snippets(file):
        if snippet.kind == "console":
            command, folder = runnable(snippet.code), tmp_path
            if command.startswith("make "):
                folder = ROOT
            refused = snippet.shown is not None and snippet.shown.startswith("mlx_dg: error: ")
            printed = shell(command, folder, status=2 if refused else 0)
            if snippet.shown is not None:
                assert has_shape(printed, snippet.shown, ON_CPU), f"{name(file)}: {command} prints\n{printed}"


def runnable(command: str) -> str:
    """Return the command to run. A fresh clone runs those of make, and test_package.py installs."""
    if command.startswith("make "):
        return command.replace("make ", "make --dry-run ", 1)
    if command.startswith("pip "):
        extras = metadata("mlx-diffusiongemma").get_all("Provides-Extra", [])
        assert set(re.findall(r"\[(\w+)\]", command)) <= set(extras), command
        return "true"
    assert "mlx_dg" in command, f"{command}: no rule for how to test it"
    return command.replace(HUB_MODEL, "demo")


def shell(command: str, folder: Path, status: int = 0) -> str:
    """Return stdout and stderr of `command`, which ends with `status`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env=os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == status, f"{command} ends with {done.returncode}:\n{done.stdout}"
    return done.stdout


@pytest.mark.parametrize(("shown", "alike"), [
    ("12 tokens,  7.5 GB", True),
    ("12 tokens, 1e-05 GB", True),
    ("13 tokens, 0.25 GB", False),
    ("12 words, 7.5 GB", False),
    ("12 tokens, 7.5 GB\nmore", False),
    ("... GB", True),
    ("12\ntokens, 7.5 GB", False),
    ("(12) tokens, 7.5 GB", False),
    ("12 tokens, 7 GB", False),
])  # fmt: skip
def test_shapes(shown: str, alike: bool) -> None:
    assert has_shape("12 tokens, 0.25 GB\n", shown) == alike


@pytest.mark.parametrize("file", [*LINKED, ROOT / "CHANGELOG.md"], ids=name)
def test_links_lead_somewhere(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = unquote(target).partition("#")
        found = (file.parent / path) if path else file
        assert found.exists(), f"{name(file)}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{name(file)}: {target}"


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_refusal_shown_is_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/memory.md shows what 32k tokens get on a 24 GB Mac."""
    sizes = {"memory_size": 24 * 2**30, "max_recommended_working_set_size": gpu_limit(24)}
    monkeypatch.setattr(mx, "device_info", lambda: sizes)
    monkeypatch.setattr(mx, "get_active_memory", lambda: 0)
    config = real_config()
    weights = SimpleNamespace(nbytes=recipe_weight_bytes(config)["mixed-4bit"])
    model: Any = SimpleNamespace(config=config, dtype=mx.bfloat16, parameters=lambda: {"weights": weights})
    with pytest.raises(InputError) as refused:
        check_fits(model, 32768, 1024, 2048)
    assert f"```text\n{refused.value}\n```" in (ROOT / "docs/memory.md").read_text(encoding="utf-8")


def test_derived_parts_are_fresh() -> None:
    """`make docs` would change nothing."""
    shell("python docs/generate.py --check", ROOT)


@pytest.mark.parametrize("file", LINKED, ids=name)
def test_what_is_named_exists(file: Path) -> None:
    """Options, commands, names of the package, targets of make and files between backquotes."""
    text = re.sub(r"^```.*?^```$", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    if file == COMING:  # the left column is mlx-lm's; test_docs_coming reads it
        text = re.sub(r"^\| .*? \|", "|", text, flags=re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    options = {
        option
        for command in [main, *main.commands.values(), *main.commands["eval"].commands.values()]
        for each in command.params
        for option in each.opts
    } | {"--help", "--index-url"}
    for code in re.findall(r"`([^`\n]+)`", text):
        where = f"{name(file)}: `{code}`"
        scripts_own = code.startswith("python ")
        for option in [] if scripts_own else re.findall(r"(?<![\w-])--[a-z][a-z-]+", code):
            assert option in options, where
        for command in re.findall(r"^mlx_dg ([a-z]+)", code):
            assert command in main.commands, where
        for attribute in re.findall(r"\bmlx_dg\.([A-Za-z]\w*)(?!\.?\w*:)", code):
            assert hasattr(mlx_dg, attribute), where
        for target in re.findall(r"^make ([a-z]+)$", code):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), where
        if re.fullmatch(r"(?:[\w.-]+/)+[\w.-]*", code) and not code.startswith(("mlx-community/", "owner/")):
            assert (ROOT / code).exists() or (ROOT / "mlx_diffusiongemma" / code).exists(), where


def test_defaults_of_settings_are_those_of_the_released_model() -> None:
    table = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+`) \| ([\d., ]+) \|", table, re.MULTILINE)
    shown = {
        field: value
        for fields, values in rows
        for field, value in zip(re.findall(r"`(\w+)`", fields), values.split(","), strict=False)
    }
    assert len(shown) >= 8
    released = Settings()
    for field, value in shown.items():
        default = getattr(released, field)
        default = default[0] if isinstance(default, tuple) else default
        assert float(value) == default, field


def test_every_setting_is_documented() -> None:
    settings = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    missing = [field.name for field in dataclasses.fields(Settings) if f"`{field.name}`" not in settings]
    assert not missing
