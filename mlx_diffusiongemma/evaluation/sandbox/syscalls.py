"""The system calls a program in the sandbox may make on Linux: name, number on x86_64, number on aarch64.

Everything about memory, files that are open, time and itself; opening files, too, which Landlock judges.
Nothing that makes a process or a thread, a socket or a file of another kind, changes owner, mode or limits,
or reaches another process. `kill` to `prlimit64` are allowed with certain arguments only (`linux.py`).
"""

from __future__ import annotations

TABLE = """
read 0 63, write 1 64, close 3 57, fstat 5 80, lseek 8 62, mmap 9 222, mprotect 10 226, munmap 11 215,
mremap 25 216, madvise 28 233, msync 26 227, mincore 27 232, brk 12 214, pread64 17 67, pwrite64 18 68,
readv 19 65, writev 20 66, preadv 295 69, pwritev 296 70, preadv2 327 286, pwritev2 328 287,
sendfile 40 71, copy_file_range 326 285, open 2 -, creat 85 -, openat 257 56, stat 4 -, lstat 6 -,
newfstatat 262 79, statx 332 291, access 21 -, faccessat 269 48, faccessat2 439 439, readlink 89 -,
readlinkat 267 78, getdents 78 -, getdents64 217 61, getcwd 79 17, chdir 80 49, fchdir 81 50,
umask 95 166, statfs 137 43, fstatfs 138 44, unlink 87 -, unlinkat 263 35, rename 82 -, renameat 264 38,
renameat2 316 276, ftruncate 77 46, fallocate 285 47, fsync 74 82, fdatasync 75 83, flock 73 32,
fadvise64 221 223, dup 32 23, dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59, eventfd2 290 19,
close_range 436 436, select 23 -, pselect6 270 72, poll 7 -, ppoll 271 73, epoll_create1 291 20,
epoll_create 213 -, epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22, rt_sigaction 13 134,
rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigtimedwait 128 137,
rt_sigsuspend 130 133, sigaltstack 131 132, pause 34 -, alarm 37 -, setitimer 38 103, getitimer 36 102,
nanosleep 35 101, clock_nanosleep 230 115, clock_gettime 228 113, clock_getres 229 114,
gettimeofday 96 169, time 201 -, times 100 153, futex 202 98, restart_syscall 219 128,
sched_yield 24 124, sched_getaffinity 204 123, getrandom 318 278, membarrier 324 283, exit 60 93,
exit_group 231 94, getpid 39 172, gettid 186 178, getppid 110 173, getpgrp 111 -, getpgid 121 155,
getsid 124 156, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177, getgroups 115 158,
getresuid 118 148, getresgid 120 150, getrlimit 97 163, getrusage 98 165, uname 63 160, sysinfo 99 179,
kill 62 129, tgkill 234 131, fcntl 72 25, ioctl 16 29, prlimit64 302 261
"""


def numbers(machine: str) -> dict[str, int]:
    """Name -> number on "x86_64" or "aarch64", without those that it lacks; {} on other machines."""
    if machine not in ("x86_64", "aarch64"):
        return {}
    column = 1 if machine == "x86_64" else 2
    rows = [row.split() for row in TABLE.replace("\n", " ").split(",")]
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}
