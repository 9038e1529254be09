"""What the Linux kernel holds by itself: no audit hook, no limits, and native calls through ctypes."""

import fcntl
import json
import os
import subprocess
import sys
import time

from mlx_diffusiongemma.evaluation.sandbox import CHILD, linux, syscalls

# `native` calls the C library, `call` the kernel. What raises OSError is refused, by the error's name.
# Nothing here may do harm where it is not refused: files are the test's own, signals are 0.
PROGRAM = """
import ctypes, errno, fcntl, json, mmap, os, resource, signal, socket, subprocess, sys, threading
sys.path.insert(0, sys.argv[1])
import linux, syscalls
outside, library, tried = sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
libc = ctypes.CDLL(None, use_errno=True)
linux.confine(os.getcwd(), [*sys.path[1:], library], syscalls.numbers(os.uname().machine))

def native(name, *arguments):
    result = getattr(libc, name)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result

def call(number, *arguments):
    return native("syscall", ctypes.c_long(number), *arguments)

said = {}
for expression in tried:
    try:
        said[expression] = repr(eval(expression))
    except OSError as error:
        said[expression] = errno.errorcode[error.errno]
    except (RuntimeError, ValueError) as error:
        said[expression] = str(error)
print(json.dumps(said))
"""

REFUSED = {
    "EACCES": [  # by Landlock
        "open(outside)",
        "open(outside, 'a')",
        "open('/etc/passwd')",
        "open('/proc/self/environ')",
        "open(f'/proc/{os.getppid()}/environ')",
        "open('/dev/fd/0')",
        "open(library + '/module.py', 'r+')",
        "open(library + '/new.py', 'w')",
        "os.open(library + '/module.py', os.O_RDONLY | os.O_TRUNC)",
        "os.remove(library + '/module.py')",
        "os.open('new', os.O_CREAT | os.O_WRONLY, dir_fd=os.open('..', os.O_PATH))",
        "os.listdir('/')",
        "os.listdir('..')",
        "os.remove(outside)",
        "os.rename(outside, 'here')",
    ],
    "EPERM": [  # by seccomp
        "os.truncate(outside, 0)",
        "os.link(outside, 'here')",
        "os.symlink(outside, 'here')",
        "os.mkdir('folder')",
        "os.rmdir('folder')",
        "os.mkfifo('pipe')",
        "os.mknod('device', 0o20666, os.makedev(1, 3))",
        "os.chmod(outside, 0)",
        "os.chown(outside, os.getuid(), os.getgid())",
        "os.utime(outside)",
        "os.setxattr(outside, 'user.name', b'value')",
        "os.fork()",
        "native('vfork')",
        "os.posix_spawn('/bin/sh', ['sh', '-c', 'true'], {})",
        "os.execv('/bin/sh', ['sh', '-c', 'true'])",
        "subprocess.run(['/bin/sh', '-c', 'true'])",
        "socket.socket()",
        "socket.socket(socket.AF_UNIX)",
        "socket.socketpair()",
        "os.kill(os.getppid(), 0)",
        "os.kill(0, 0)",
        "os.kill(-1, 0)",
        "os.killpg(os.getppid(), 0)",
        "native('tgkill', os.getppid(), os.getppid(), 0)",
        "native('ptrace', 16, os.getppid(), 0, 0)",
        "native('process_vm_readv', os.getppid(), None, 0, None, 0, 0)",
        "resource.prlimit(os.getppid(), resource.RLIMIT_CPU)",
        "native('setrlimit', resource.RLIMIT_CORE, b'\\0' * 16)",
        "fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
        "fcntl.ioctl(0, 0x8901, b'\\0' * 4)",  # FIOSETOWN
        "native('memfd_create', b'name', 0)",
        "native('shmget', 0, 4096, 0o1600)",
        "native('unshare', 0x10000000)",
        "native('mount', b'none', b'.', b'no such kind', 0, None)",
        "os.chroot('.')",
        "os.setsid()",
        "os.nice(1)",
        "native('prctl', 1, 0, 0, 0, 0)",
    ],
    "ENOSYS": [
        "call(425, 8, b'\\0' * 200)",  # io_uring_setup
        "call(434, os.getppid(), 0)",  # pidfd_open
        "call(435, b'\\0' * 88, 88)",  # clone3
        "call(437, -100, b'/etc/passwd', b'\\0' * 24, 24)",  # openat2
        "call(0x40000000 | 39)",  # x86's third way to make calls; nothing elsewhere
    ],
    "can't start new thread": ["threading.Thread(target=int).start()"],
}
PERMITTED = {
    "open('mine', 'w').write('text')": "4",
    "os.rename('mine', 'mine too')": "None",
    "os.listdir()": "['mine too']",
    "os.remove('mine too')": "None",
    "os.kill(os.getpid(), 0)": "None",
    "open(library + '/module.py').read()": "'untouched'",
    "open(os.__file__).readable()": "True",
    "resource.getrlimit(resource.RLIMIT_CORE) is not None": "True",
    "__import__('sqlite3').connect(':memory:').execute('SELECT 1').fetchone()": "(1,)",
}


def confined(expressions, tmp_path):
    """What each expression gave in a confined process, and how that ended."""
    outside, folder, module = (
        tmp_path / "outside.txt",
        tmp_path / "folder",
        tmp_path / "library" / "module.py",
    )
    folder.mkdir()
    module.parent.mkdir()
    for file in (outside, module):
        file.write_text("untouched")
    command = [sys.executable, "-I", "-S", "-B", "-c", PROGRAM]
    command += [str(CHILD.parent), str(outside), str(module.parent)]
    ran = subprocess.run([*command, json.dumps(expressions)], cwd=folder, capture_output=True, text=True)
    assert outside.read_text() == module.read_text() == "untouched"
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "folder",
        "library",
        "module.py",
        "outside.txt",
    ]
    return json.loads(ran.stdout or "{}"), ran.returncode, ran.stderr


if sys.platform == "linux":

    def test_the_kernel_refuses_without_any_help_from_python(tmp_path):
        expected = {expression: error for error, group in REFUSED.items() for expression in group}
        said, status, errors = confined([*expected, *PERMITTED], tmp_path)
        assert said == expected | PERMITTED, errors
        assert status == 0

    def test_calls_as_another_machine_end_the_process(tmp_path):
        """32-bit calls have other numbers: where a 64-bit x86 process makes one, it is ended (SIGSYS)."""
        fork = "b802000000cd80c3"  # mov eax, 2; int 0x80; ret
        jump = (
            "(page := mmap.mmap(-1, 4096, prot=7)).write(bytes.fromhex('" + fork + "')) and "
            "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()"
        )
        _, status, _ = confined(
            [jump if os.uname().machine == "x86_64" else "os.kill(os.getpid(), 31)"], tmp_path
        )
        assert status == -31

    ORPHAN = """
import fcntl, os, signal, time
signal.alarm(0)
with open("log", "w") as log:
    fcntl.flock(log, fcntl.LOCK_EX)
    print("started", file=log, flush=True)
    time.sleep(20)
    print("survived", file=log, flush=True)
"""

    def test_nothing_outlives_a_killed_parent(tmp_path):
        """Also when the code put off its own alarm. A lock on its file tells when it has ended."""
        start = (
            "import sys; from mlx_diffusiongemma.evaluation.sandbox import call; call(sys.argv[1], 'f', [])"
        )
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        deadline = time.monotonic() + 60
        with subprocess.Popen([sys.executable, "-c", start, ORPHAN], env=environment) as parent:
            try:
                while not (logs := [log for log in tmp_path.glob("*/log") if log.read_text()]):
                    assert parent.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            finally:
                parent.kill()
        with logs[0].open() as log:
            fcntl.flock(log, fcntl.LOCK_SH)
            assert log.read() == "started\n"


def test_the_table_knows_each_call_once_and_on_both_machines():
    x86, arm = syscalls.numbers("x86_64"), syscalls.numbers("aarch64")
    assert len(set(x86.values())) == len(x86)
    assert len(set(arm.values())) == len(arm)
    assert set(arm) < set(x86)
    assert syscalls.numbers("riscv64") == {}
    # Those that have a newer call in their place on aarch64.
    replaced = (
        "access alarm creat dup2 epoll_create epoll_wait getdents getpgrp lstat open pause pipe poll "
        "readlink rename select stat time unlink"
    )
    assert sorted(set(x86) - set(arm)) == replaced.split()
    assert (x86["openat"], arm["openat"], x86["prlimit64"], arm["prlimit64"]) == (257, 56, 302, 261)
    refused = (
        "fork vfork clone clone3 execve execveat socket connect ptrace mount setrlimit prctl memfd_create"
    )
    assert not set(refused.split()) & set(x86)


def answer(program, arch, number, *arguments):
    """Runs a classic BPF program on one system call, as the kernel does."""
    words = {0: number, 4: arch}
    for index in range(6):
        value = arguments[index] if index < len(arguments) else 0
        words[16 + 8 * index], words[20 + 8 * index] = value & 0xFFFFFFFF, value >> 32
    place = accumulator = 0
    while True:
        code, jump_true, jump_false, k = (
            int.from_bytes(program[8 * place :][a:b], "little") for a, b in ((0, 2), (2, 3), (3, 4), (4, 8))
        )
        place += 1
        if code == linux.RETURN:
            return k
        if code == linux.LOAD:
            accumulator = words[k]
        else:
            assert code in (linux.EQUAL, linux.AT_LEAST)
            holds = accumulator == k if code == linux.EQUAL else accumulator >= k
            place += jump_true if holds else jump_false


def test_the_filter_of_each_machine_lets_through_what_the_table_has():
    for machine, arch in linux.AUDIT_ARCH.items():
        calls = syscalls.numbers(machine)
        program = linux.call_filter(arch, calls, 4321)
        judged = {"kill", "tgkill", "fcntl", "ioctl", "prlimit64"}
        through = {n for n in range(600) if answer(program, arch, n, 77, 77, 77) == linux.ALLOW}
        assert through == {number for name, number in calls.items() if name not in judged}
        for name, right, wrong in (
            ("kill", (4321, 9), (1, 9)),
            ("tgkill", (4321, 4321, 6), (1, 4321, 6)),
            ("fcntl", (0, 1030), (0, 8)),
            ("ioctl", (0, 0x5401), (0, 0x5412)),
            ("prlimit64", (0, 7, 0), (0, 7, 1 << 32)),
            ("prlimit64", (0, 7, 0), (0, 7, 1)),
            ("prlimit64", (0, 7, 0), (1, 7, 0)),
        ):
            assert answer(program, arch, calls[name], *right) == linux.ALLOW
            assert answer(program, arch, calls[name], *wrong) == linux.ERRNO | 1
        assert answer(program, arch ^ 1, calls["read"]) == linux.KILL
        assert answer(program, arch, 0x40000000 | calls["read"]) == linux.ERRNO | 38
