"""Small inputs that ask for giant work: each is refused in one line, with little memory and little work."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

# Expressions with `model`, `tokenizer`, `generate`, `fill` and `deep(n)`, a value nested n times.
BOMBS = [
    'generate("x", regex="(?:(?:a{4000}){4000}){400}")',
    'generate("x", regex="(?:(?:(?:a{4000}){4000}){4000}){4000}")',
    'generate("x", regex="((.{0,1000}){1,1000}){1,1000}b")',
    'generate("x", regex="(" * 5000 + "a" + ")" * 5000)',
    'generate("x", regex="a" * 10**6)',
    'generate("x", regex="a?" * 20_000)',
    'generate("x", choices=[str(i) * 10 for i in range(10**5)])',
    'generate("x", choices=["a" * 5 * 10**6])',
    'generate("x", schema={"type": "string", "pattern": "^(?:(?:(?:a{4000}){4000}){4000}){4000}$"})',
    'generate("x", schema={"type": "string", "minLength": 10**9})',
    'generate("x", schema={"type": "array", "minItems": 10**9})',
    'generate("x", schema={"type": "integer", "minimum": 10**400})',
    'generate("x", schema={"enum": list(range(10**5))})',
    'generate("x", schema={"const": "a" * 10**6})',
    'generate("x", schema=deep(5000))',
    'generate("x", grammar="start: TEXT\\nTEXT: /(a{1000}){1000}/")',
    'generate("x", tools=[{"type": "function", "function": {"name": "f", "parameters": deep(5000)}}])',
    'generate([{"role": "user", "content": "x", "more": deep(5000)}])',
    'generate("x", pins={place: 5 for place in range(10**6)})',
    'generate("x", pins={10**30: 1})',
    'generate("x", n=10**9)',
    'generate("x", max_new_tokens=10**400)',
    'generate("x", seed=float("inf"))',
    'fill("x [[999999999]]")',
    'fill("x [[..999999999]]")',
    'fill("x [[city:99999999]]")',
    'fill("[[1]] " * 30_000)',
    'fill("".join(f"[[n{i}:1]] " for i in range(30_000)))',
    'fill("[[..200]] " * 3000)',
    'fill("[[" * 10**5)',
]
# Runs one after the other. Reports the kind and text of each error, None for an answer.
SCRIPT = """
import json, os, resource, signal, sys
import mlx_dg
from mlx_diffusiongemma.errors import DiffusionGemmaError
model, tokenizer = mlx_dg.load("demo")
def generate(prompt, **more):
    return str(mlx_dg.generate(model, tokenizer, prompt, **{"max_new_tokens": 64, "seed": 0, **more}))
def fill(template):
    return mlx_dg.fill(model, tokenizer, template, seed=0)
def deep(levels):
    value = 1
    for _ in range(levels):
        value = {"a": value}
    return value
generate("x", regex="a+")
if sys.platform == "linux":
    pages = int(open("/proc/self/statm").read().split()[0])
    size = pages * os.sysconf("SC_PAGESIZE") + 700 * 10**6
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
for bomb in json.load(sys.stdin):
    signal.setitimer(signal.ITIMER_PROF, 20)  # of processor time; then the process ends
    try:
        eval(bomb)
        print(json.dumps(None), flush=True)
    except Exception as error:
        meant = isinstance(error, DiffusionGemmaError)
        print(json.dumps([meant, f"{type(error).__name__}: {error}"]), flush=True)
"""


def test_bombs_are_refused_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps(BOMBS), capture_output=True, text=True, check=False
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(BOMBS), (BOMBS[len(found)], done.returncode, done.stderr[-500:])
    for bomb, (on_purpose, message) in zip(BOMBS, found, strict=True):
        assert on_purpose, (bomb, message)
        assert message.isprintable()
        assert len(message) < 400, (bomb, message)
