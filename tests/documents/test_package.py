"""The installed package, and the cost of importing it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import metadata
from pathlib import Path

import pytest
import yaml

import mlx_dg
import mlx_diffusiongemma

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
INSTALLED_FROM = ("mlx_diffusiongemma", "convert", "kernels")
HEAVY = ("mlx", "mlx_lm", "transformers", "torch", "tokenizers", "huggingface_hub", "sentencepiece", "numpy")


def modules_after(code: str) -> set[str]:
    """Top-level names in sys.modules of a fresh interpreter that ran `code`."""
    code += "\nimport json, sys\nprint(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_is_light() -> None:
    loaded = modules_after("import mlx_dg; mlx_dg.InputError; dir(mlx_dg)")
    assert "mlx_diffusiongemma" in loaded
    assert not loaded & {*HEAVY, "click"}


def test_help_is_light() -> None:
    loaded = modules_after(
        "from mlx_diffusiongemma.cli import main\n"
        "for arguments in (['--help'], ['generate', '--help'], ['convert', '--help'], ['bench', '--help'],\n"
        "                  ['eval', '--help'], ['eval', 'six', '--help'], ['--version']):\n"
        "    main(arguments, standalone_mode=False)"
    )
    assert "click" in loaded
    assert not loaded & set(HEAVY)


def test_both_names_give_the_same_objects() -> None:
    for name in mlx_dg.__all__:
        assert getattr(mlx_dg, name) is getattr(mlx_diffusiongemma, name), name
    assert {"load", "generate", "convert", "Generation", "Block", "Step"} <= set(dir(mlx_dg))
    assert mlx_dg.ConfigError is sys.modules["mlx_diffusiongemma.errors"].ConfigError  # type: ignore[attr-defined]


def test_python_versions_agree() -> None:
    """pip, the classifiers and CI name the same versions of Python."""
    package = metadata("mlx-diffusiongemma")
    stated = [
        each.rpartition(" ")[2]
        for each in package.get_all("Classifier", [])
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", each)
    ]
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["linux"]["strategy"]["matrix"]["python"] == stated
    assert package["Requires-Python"] == f">={stated[0]}"
    assert [*map(int, (version.split(".")[1] for version in stated))] == [*range(10, 10 + len(stated))]


def test_kernels_is_no_python_package() -> None:
    """A top-level Python package `kernels` would shadow Hugging Face's."""
    assert not list((ROOT / "kernels").rglob("*.py"))


# --- building and installing: one worker builds, the others go on -------------------------------------------


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packaged, so that building leaves nothing in the repository."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "mlx_dg.py", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    for name in INSTALLED_FROM:
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored, symlinks=True)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.xdist_group("wheel")
def test_wheel_holds_everything_and_nothing_else(source: Path, wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    (dist_info,) = (top for top in tops if top.endswith(".dist-info"))
    assert tops == {"mlx_diffusiongemma", "mlx_dg.py", dist_info}

    expected = {"mlx_dg.py", "mlx_diffusiongemma/py.typed"}
    python = [str(p.relative_to(source)) for p in (source / "mlx_diffusiongemma").rglob("*.py")]
    expected |= {name for name in python if "/training/" not in name}
    assert not [name for name in names if "/training/" in name]  # the demo's, which needs torch
    for data in (
        "demo/checkpoint/*",
        "display/*.html",
        "evaluation/suites/*.json",
        "evaluation/suites/*.txt",
    ):
        expected |= {str(p.relative_to(source)) for p in (source / "mlx_diffusiongemma").glob(data)}
    converter, kernels = source / "convert", source / "kernels"
    expected |= {f"mlx_diffusiongemma/converter/{p.relative_to(converter)}" for p in converter.rglob("*.py")}
    expected |= {
        f"mlx_diffusiongemma/kernels/{p.relative_to(kernels)}" for p in kernels.rglob("*") if p.is_file()
    }
    assert expected <= names, f"missing in the wheel: {sorted(expected - names)}"
    assert "mlx_diffusiongemma/kernels/README.md" in names
    assert "mlx_diffusiongemma/kernels/__init__.py" not in names
    assert any(name.endswith("LICENSE") and name.startswith(dist_info) for name in names)


def imported_from(site: Path, *, pth: bool) -> dict[str, str]:
    """Where the modules come from when `site` is the one place where the package is installed.

    -S leaves out this environment's own (editable) installation; its dependencies are put back by path.
    """
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    code = (
        f"import json, site, sys; sys.path[:0] = {[str(site)]!r}; sys.path += {sorted(libraries)!r}\n"
        f"{f'site.addsitedir({str(site)!r})' if pth else ''}\n"
        "import mlx_dg, mlx_diffusiongemma.converter, mlx_diffusiongemma.ops.metal as metal\n"
        "places = {n: sys.modules[n].__file__ for n in sys.modules if n.startswith('mlx_d')}\n"
        "print(json.dumps(places | {'kernels': str(metal.SOURCES)}))"
    )
    options = ["-S", "-P"] if sys.version_info >= (3, 11) else ["-S"]
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, cwd=site)
    assert done.returncode == 0, done.stderr
    places: dict[str, str] = json.loads(done.stdout)
    return places


@pytest.mark.xdist_group("wheel")
def test_wheel_installs(wheel: Path, tmp_path: Path) -> None:
    pip("install", "--quiet", "--no-deps", "--no-index", "--target", tmp_path, wheel)
    places = imported_from(tmp_path, pth=False)
    assert places["mlx_dg"] == str(tmp_path / "mlx_dg.py")
    assert places["mlx_diffusiongemma.converter"] == f"{tmp_path}/mlx_diffusiongemma/converter/__init__.py"
    assert places["kernels"] == str(tmp_path / "mlx_diffusiongemma/kernels")
    assert (tmp_path / "mlx_diffusiongemma/kernels/row_statistics.metal").is_file()


@pytest.mark.xdist_group("wheel")
def test_editable_installs(source: Path, tmp_path: Path) -> None:
    pip("install", "--quiet", "--no-deps", "--no-build-isolation", "--target", tmp_path, "--editable", source)
    places = imported_from(tmp_path, pth=True)
    assert places["mlx_dg"] == str(source / "mlx_dg.py")
    assert Path(places["mlx_diffusiongemma.converter"]).resolve() == source / "convert/__init__.py"
    assert places["kernels"] == str(source / "kernels")
