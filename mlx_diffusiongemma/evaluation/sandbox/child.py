"""The program inside the sandbox. It gives up its rights, then runs the code of its request.

The request is a JSON object on stdin. The reply is a JSON object on stdout, with "results" or "failure".
"""

import errno
import json
import os
import resource
import sys
import types

MB, NOBODY = 1 << 20, 65534


def main() -> None:
    request = json.load(sys.stdin)
    output, null, write, leave = os.dup(1), os.open(os.devnull, os.O_RDWR), os.write, os._exit
    for stream in range(3):
        os.dup2(null, stream)
    if request["nobody"]:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    limit(request["limits"])
    data = run(request["source"], request["function"], request["arguments"], request["limits"]).encode()
    if len(data) > request["limits"]["file_mb"] * MB:
        data = b'{"failure": "results beyond the file size limit"}'
    while data:
        data = data[write(output, data) :]
    leave(0)


def limit(limits: dict) -> None:
    """Set those resource limits that the system has."""
    memory, size, seconds = limits["memory_mb"] * MB, limits["file_mb"] * MB, limits["cpu_seconds"]
    values = {"AS": memory, "FSIZE": size, "NPROC": 0, "NOFILE": 64, "CORE": 0, "CPU": seconds}
    for name, value in values.items():
        hard = value + 1 if name == "CPU" else value  # SIGXCPU at `value`, SIGKILL at `hard`
        try:
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, hard))
        except (ValueError, OSError):
            continue


def run(source: str, name: str, calls: list, limits: dict) -> str:
    """Run the code. Return results or failure as JSON text, even if the code changed builtins or modules."""
    loads, dumps, results = json.loads, json.dumps, []

    def describe(error: BaseException) -> str:
        try:
            message = str(error)
            if isinstance(error, MemoryError):
                message = f"memory limit of {limits['memory_mb']} MB"
            elif isinstance(error, OSError) and error.errno == errno.EFBIG:
                message = f"file size limit of {limits['file_mb']} MB"
            return f"{type(error).__name__}: {message}"[:200]
        except BaseException:
            return "an exception without a message"

    module = sys.modules["solution"] = types.ModuleType("solution")
    try:
        exec(compile(source, "solution.py", "exec", dont_inherit=True), module.__dict__)
        function = module.__dict__.get(name)
        if not callable(function):
            return dumps({"failure": f"no function named {name}"})
    except BaseException as error:
        return dumps({"failure": describe(error)})
    for arguments in calls:
        try:
            results.append(dumps(function(*loads(arguments)), allow_nan=False))
        except BaseException as error:
            results.append(dumps({"raised": describe(error)}))
    return '{"results": [' + ", ".join(results) + "]}"


main()
