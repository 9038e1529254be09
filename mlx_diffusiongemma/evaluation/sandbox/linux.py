"""What the Linux kernel enforces: Landlock judges which files can be opened, seccomp which calls can be made.

Both are set by the process on itself, need no privilege, and cannot be undone; root is held like anybody. A
kernel (or container) without one of them leaves that part out; the canaries find what is then not held.
Loaded inside the sandbox only, through ctypes: https://docs.kernel.org/userspace-api/landlock.html and
https://docs.kernel.org/userspace-api/seccomp_filter.html
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import sys

# Where shared libraries lie; the interpreter's own folders come on top.
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store", "/gnu/store")
LOADER_CACHE = "/etc/ld.so.cache"

# Landlock: numbers are the same on all machines.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
READ_FILE, READ_DIR = 1 << 2, 1 << 3
WRITE_FILE, REMOVE_FILE, MAKE_REG, TRUNCATE = 1 << 1, 1 << 5, 1 << 8, 1 << 14
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # how many bits of access_fs an ABI knows
FILE_RIGHTS_NOW = 16
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 1, 38, 22, 2

# seccomp: offsets in struct seccomp_data, classic BPF, and what a filter answers.
NUMBER, ARCH, ARGUMENTS = 0, 4, 16
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# From here on numbers are the same everywhere and the C library knows how to do without: it takes ENOSYS as
# "old kernel", where EPERM would be an error.
FIRST_RECENT = 424
AT_LEAST = 0x35

FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)  # dup, flags, locks, pipe size; no owner, no signal
IOCTL = (0x5401, 0x5413, 0x541B, 0x5450, 0x5451)  # is it a terminal, its size, bytes waiting, close on exec


def confine(folder: str, library: list[str], calls: dict[str, int]) -> None:
    """Holds this process to files in `folder`, to reading `library` and shared libraries, and to `calls`,
    and lets it end with its parent."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    # It comes when the thread that started this process ends; `call` waits for it in that thread.
    libc.prctl(PR_SET_PDEATHSIG, *map(ctypes.c_ulong, (signal.SIGKILL, 0, 0, 0)))
    if libc.prctl(PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))) != 0:
        return
    restrict_files(libc, folder, library)
    restrict_calls(libc, calls)


def restrict_files(libc: ctypes.CDLL, folder: str, library: list[str]) -> None:
    def call(number: int, *arguments: object) -> int:
        return int(libc.syscall(ctypes.c_long(number), *arguments))

    version = call(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    if version < 1:
        return
    handled = (1 << FILE_RIGHTS.get(version, FILE_RIGHTS_NOW)) - 1
    # access_fs; from ABI 4 access_net (bind, connect TCP); from ABI 6 scoped (abstract sockets, signals)
    attributes = struct.pack("=QQQ", handled, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = call(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0))
    if ruleset < 0:
        return

    def permit(path: str, rights: int) -> None:
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return  # this machine has no such folder
        rule = struct.pack("=Qi", rights & handled, handle)
        call(ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint(0))
        os.close(handle)

    for path in (*LIBRARIES, os.path.join(sys.base_prefix, "lib"), *library):
        permit(path, READ_FILE | (READ_DIR if os.path.isdir(path) else 0))
    permit(LOADER_CACHE, READ_FILE)
    # No folders, links, pipes, sockets: the parent counts and removes plain files of one folder.
    permit(folder, READ_FILE | READ_DIR | WRITE_FILE | REMOVE_FILE | MAKE_REG | TRUNCATE)
    call(RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0))
    os.close(ruleset)


def restrict_calls(libc: ctypes.CDLL, calls: dict[str, int]) -> None:
    machine = os.uname().machine
    if not calls or sys.maxsize < 1 << 32:
        return
    program = call_filter(AUDIT_ARCH[machine], calls, os.getpid())
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: how many instructions, padding, where they are
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    libc.prctl(
        PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), header, ctypes.c_ulong(0), ctypes.c_ulong(0)
    )


def call_filter(arch: int, calls: dict[str, int], pid: int) -> bytes:
    """The BPF program: only these calls, and only in the machine's own way of making them."""
    allowed = dict(calls)
    code = [
        (LOAD, 0, 0, ARCH),
        (EQUAL, 1, 0, arch),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
    ]
    refuse = (RETURN, 0, 0, ERRNO | errno.EPERM)

    def only(name: str, argument: int, *values: int) -> list[tuple[int, int, int, int]]:
        """`name` with one of `values` in the low half of an argument (what an int parameter is)."""
        checks = [(LOAD, 0, 0, ARGUMENTS + 8 * argument)]
        for value in values:
            checks += [(EQUAL, 0, 1, value), (RETURN, 0, 0, ALLOW)]
        checks.append(refuse)
        return [(EQUAL, 0, len(checks), allowed.pop(name)), *checks]

    code += (
        only("kill", 0, pid) + only("tgkill", 0, pid) + only("fcntl", 1, *FCNTL) + only("ioctl", 1, *IOCTL)
    )
    # prlimit64 of itself, and to read only: both halves of the pointer to new limits are 0
    read_limits = [(LOAD, 0, 0, ARGUMENTS), (EQUAL, 0, 5, 0)]
    read_limits += [(LOAD, 0, 0, ARGUMENTS + 16), (EQUAL, 0, 3, 0), (LOAD, 0, 0, ARGUMENTS + 20)]
    read_limits += [(EQUAL, 0, 1, 0), (RETURN, 0, 0, ALLOW), refuse]
    code += [(EQUAL, 0, len(read_limits), allowed.pop("prlimit64")), *read_limits]
    for number in allowed.values():
        code += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    code += [(AT_LEAST, 0, 1, FIRST_RECENT), (RETURN, 0, 0, ERRNO | errno.ENOSYS), refuse]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)
