"""Program of the process that renders chat templates. It imports nothing of this package.

Each line of standard input is a request in JSON: the template, its values and the limits. Each gets one line
of JSON as its reply. The Jinja environment is that of Transformers' `chat_template_utils`.
"""

import json
import os
import resource
import signal
import sys
import threading
import time
from datetime import datetime
from functools import lru_cache
from typing import Any

sys.path += sys.argv[1:]  # where the parent finds jinja2

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

_PEAK_UNIT = 1 if sys.platform == "darwin" else 1024  # number of bytes in a unit of ru_maxrss


class Generation(Extension):
    """The tags `{% generation %}` and `{% endgeneration %}`, which leave their content as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class Dict:
    """Makes dicts, like `dict`, but gives templates no access to the type itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class Namespace(jinja2.utils.Namespace):
    """Jinja's namespace, without names that begin with an underscore, which lead to Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that `self` may be a name in it
        self, given = args[0], args[1:]
        values = dict(*given, **kwargs)
        for name in values:
            checked(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(checked(name), value)


def checked(name: str) -> str:
    if name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}; rename it")
    return name


def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@lru_cache(maxsize=8)
def compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": Dict(),
        "namespace": Namespace,
    }
    return environment.from_string(template)


def peak() -> int:
    """Return the largest memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _PEAK_UNIT


def limit_memory(nbytes: int) -> None:
    """Limit the process to `nbytes` more memory than it has now. Only Linux enforces such a limit."""
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[0])
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGESIZE") + nbytes, hard))


def answered(request: dict[str, Any]) -> dict[str, Any]:
    """Return the reply: {"text": ...}, or {"error": the exception's type, "message": ...}."""
    limit_memory(request["bytes"])
    signal.setitimer(signal.ITIMER_PROF, request["seconds"])  # its signal ends the process
    try:
        text = compiled(request["template"]).render(**request["values"])
        if len(text) > request["characters"]:
            return {"error": "", "message": f"it writes {len(text)} characters, more than its input allows"}
        return {"text": text}
    except MemoryError:
        os._exit(86)
    except BaseException as error:  # expressions in templates may raise anything
        return {"error": type(error).__name__, "message": str(error)[:2000]}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def watch(most: list[float]) -> None:
    """End the process when its memory exceeds `most[0]` bytes, because macOS enforces no limit itself."""
    while True:
        time.sleep(0.02)
        if peak() > most[0]:
            os._exit(86)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    most = [float("inf")]
    if sys.platform != "linux":
        threading.Thread(target=watch, args=(most,), daemon=True).start()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        most[0] = peak() + request["bytes"]
        reply = json.dumps(answered(request))
        most[0] = float("inf")
        sys.stdout.write(f"{reply}\n")
        sys.stdout.flush()


main()
