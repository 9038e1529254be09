"""Compares `mlx_dg convert` with mlx-vlm's convert on the same checkpoint, each in its own process.

    python benchmarks/synthetic_checkpoint.py
    python benchmarks/conversion.py [SOURCE] [--rounds 3] [--recipe NAME] [--cold] [--scratch DIR] [--smoke]

The recipes are similar, but not equal. Both store experts in 4 bits, and embedding, attention and dense MLP
in 8 bits (affine, groups of 64). mlx-vlm stores the router in 8 bits and self-conditioning in 4 bits. mlx_dg
does not quantize the router, and stores self-conditioning in 8 bits. mlx-vlm loads, quantizes and saves the
model as a whole.

The two converters take turns, in the opposite order in every other round. Seconds are the wall time of the
whole process, including imports. mlx_dg's seconds include the wait until its files are on the disk (fsync),
mlx-vlm's do not. CPU seconds are summed over all cores, and a busy disk does not change them. Before each
process, dirty pages are written out, untimed. Peak memory is the peak of the resident set (ru_maxrss), which
on a Mac may leave out memory that only the GPU uses. GB/s are bytes of source weights per second. The source
is read before each process, untimed, so that as much of it as fits is in the page cache. With --cold (Linux)
it is dropped from the cache instead. Exits with status 2 if mlx-vlm is missing or a converter fails.
`--smoke` converts the demo once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common import parse

from mlx_diffusiongemma.checkpoint.loading import resolve

CHUNK = 1 << 26


@dataclass(frozen=True)
class Run:
    """One conversion: wall time in seconds, CPU seconds of all cores, peak resident bytes, bytes written."""

    seconds: float
    cores: float
    peak: int
    written: int


def weight_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def weight_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in weight_files(directory))


def read_through(directory: Path) -> None:
    """Read every weight file once, so that it is in the page cache if it fits."""
    for file in weight_files(directory):
        with file.open("rb", buffering=0) as stream:
            while stream.read(CHUNK):
                pass


def drop_from_cache(directory: Path) -> None:
    for file in weight_files(directory):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(command: list[str], out: Path) -> Run:
    """Run a converter that writes into `out`, and remove `out`. If it fails, print its output and exit."""
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            sys.stderr.write(output.read()[-4000:])
            print(f"{' '.join(command)} failed with status {process.returncode}", file=sys.stderr)
            raise SystemExit(2)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    result = Run(seconds, usage.ru_utime + usage.ru_stime, peak, weight_bytes(out))
    shutil.rmtree(out)
    return result


def measure(
    source: Path, scratch_parent: Path, recipe: str, rounds: int, prepare: Callable[[], None]
) -> dict[str, list[Run]]:
    """Return the runs of each converter, by name. They write to a temporary directory in `scratch_parent`."""
    results: dict[str, list[Run]] = {"mlx_dg": [], "mlx-vlm": []}
    with tempfile.TemporaryDirectory(dir=scratch_parent, prefix="conversion-") as scratch:
        out = Path(scratch) / "out"
        python, paths = [sys.executable, "-m"], ["--mlx-path", str(out)]
        commands = {
            "mlx_dg": [*python, "mlx_diffusiongemma", "convert", str(source), *paths, "--recipe", recipe],
            "mlx-vlm": [*python, "mlx_vlm", "convert", "--model", str(source), *paths, "-q"],
        }
        for index in range(rounds):
            for name in sorted(results, reverse=bool(index % 2)):
                os.sync()
                prepare()
                results[name].append(run(commands[name], out))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="mlx_dg convert against mlx-vlm's on the same checkpoint.")
    parser.add_argument("source", nargs="?", type=Path, default=Path("build/synthetic"), help="a checkpoint")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recipe", default="mixed-4bit", help="mlx_dg's")
    parser.add_argument("--cold", action="store_true", help="drop the source from the page cache before each")
    parser.add_argument("--scratch", type=Path, help="where results come and go; default: beside the source")
    smoke = {"source": Path(resolve("demo")), "scratch": Path(tempfile.gettempdir()), "rounds": 1}
    options = parse(parser, smoke, needs_mlx_vlm=True)
    if not weight_files(options.source):
        parser.error(f"{options.source}: no safetensors files in it; synthetic_checkpoint.py writes some")
    if options.cold and not hasattr(os, "posix_fadvise"):
        parser.error("--cold needs posix_fadvise, which only Linux has")

    source = options.source.resolve()
    size = weight_bytes(source) / 1e9
    prepare = drop_from_cache if options.cold else read_through
    scratch = options.scratch or source.parent
    results = measure(source, scratch, options.recipe, options.rounds, lambda: prepare(source))
    state = "dropped from the page cache" if options.cold else "read into the page cache"
    files = len(weight_files(source))
    print(f"{size:.3g} GB in {files} files, {state} before each run; {options.rounds} rounds")
    print(f"{'':10}{'seconds':>10}{'min..max':>16}{'CPU s':>8}{'GB/s':>8}{'peak GB':>10}{'GB written':>12}")
    for name, runs in results.items():
        seconds = [one.seconds for one in runs]
        median = statistics.median(seconds)
        spread = f"{min(seconds):.1f}..{max(seconds):.1f}"
        cores = statistics.median(one.cores for one in runs)
        peak, written = max(one.peak for one in runs) / 1e9, runs[0].written / 1e9
        print(
            f"{name:10}{median:10.1f}{spread:>16}{cores:8.1f}{size / median:8.2f}{peak:10.2f}{written:12.2f}"
        )
    ratios = [ours.seconds / theirs.seconds for ours, theirs in zip(*results.values(), strict=True)]
    print(f"time, mlx_dg over mlx-vlm: {statistics.median(ratios):.2f}", end="")
    print(f" ({min(ratios):.2f}..{max(ratios):.2f})")


if __name__ == "__main__":
    main()
