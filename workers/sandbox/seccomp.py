"""The system calls that untrusted code may make, as a seccomp program for the launcher to load.

An allow-list: a single process that computes, reads and writes what it has, and starts threads. Everything
else (sockets, processes, exec, signals to others, namespaces, mounts, ptrace, keys, io_uring, bpf, shared
memory, and whatever future kernels add) is refused with an error number, so that code fails like code.

Of sockets there is one kind: both ends of a stream pair in one's own hands (asyncio wakes itself with one). It takes
no address and no option: a datagram end could send to every socket of the machine that it can name, options make
its buffers in the kernel larger, and descriptors sent over it would escape the limit on their number.

Locks on files reach beyond the process, as a file may be the host's, and each takes memory of the kernel. The classic
ones belong to the process and never stand in its own way; it has no second process and no file that others write, so
they are reported as taken and nothing is done (sqlite3 asks for them). The other two kinds could tell: none is free.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Operand = int | str
Instruction = tuple[int, int, int, Operand]
"""Code, jump if true, jump if false, operand; the operand "PID" is filled in by the process that loads it."""

_X86_64 = """
    read=0 write=1 open=2 close=3 stat=4 fstat=5 lstat=6 poll=7 lseek=8 mmap=9 mprotect=10
    munmap=11 brk=12 rt_sigaction=13 rt_sigprocmask=14 rt_sigreturn=15 pread64=17 pwrite64=18
    readv=19 writev=20 access=21 pipe=22 select=23 sched_yield=24 mremap=25 msync=26 mincore=27
    madvise=28 dup=32 dup2=33 pause=34 nanosleep=35 getitimer=36 alarm=37 setitimer=38 getpid=39
    sendfile=40 recvfrom=45 recvmsg=47 shutdown=48 getsockname=51
    getpeername=52 getsockopt=55 exit=60 wait4=61 uname=63 fsync=74
    fdatasync=75 truncate=76 ftruncate=77 getdents=78 getcwd=79 chdir=80 fchdir=81 rename=82
    mkdir=83 rmdir=84 creat=85 link=86 unlink=87 symlink=88 readlink=89 chmod=90 fchmod=91
    umask=95 gettimeofday=96 getrlimit=97 getrusage=98 sysinfo=99 times=100 getuid=102
    getgid=104 geteuid=107 getegid=108 getppid=110 getpgrp=111 getgroups=115 getresuid=118
    getresgid=120 getpgid=121 getsid=124 rt_sigpending=127 rt_sigtimedwait=128 rt_sigsuspend=130
    sigaltstack=131 utime=132 statfs=137 fstatfs=138 getpriority=140 sched_getparam=143
    sched_getscheduler=145 sched_get_priority_max=146 sched_get_priority_min=147 arch_prctl=158
    gettid=186 getxattr=191 lgetxattr=192 fgetxattr=193 listxattr=194 llistxattr=195
    flistxattr=196 time=201 futex=202 sched_getaffinity=204 epoll_create=213 getdents64=217
    set_tid_address=218 restart_syscall=219 fadvise64=221 clock_gettime=228 clock_getres=229
    clock_nanosleep=230 exit_group=231 epoll_wait=232 epoll_ctl=233 utimes=235 waitid=247
    openat=257 mkdirat=258 futimesat=261 newfstatat=262 unlinkat=263 renameat=264 linkat=265
    symlinkat=266 readlinkat=267 fchmodat=268 faccessat=269 pselect6=270 ppoll=271
    set_robust_list=273 utimensat=280 epoll_pwait=281 timerfd_create=283 eventfd=284
    fallocate=285 timerfd_settime=286 timerfd_gettime=287 signalfd4=289 eventfd2=290
    epoll_create1=291 dup3=292 pipe2=293 preadv=295 pwritev=296 getcpu=309 renameat2=316
    getrandom=318 membarrier=324 copy_file_range=326 statx=332 rseq=334 close_range=436
    faccessat2=439
"""
_AARCH64 = """
    getxattr=8 lgetxattr=9 fgetxattr=10 listxattr=11 llistxattr=12 flistxattr=13 getcwd=17
    eventfd2=19 epoll_create1=20 epoll_ctl=21 epoll_pwait=22 dup=23 dup3=24 mkdirat=34
    unlinkat=35 symlinkat=36 linkat=37 renameat=38 statfs=43 fstatfs=44 truncate=45 ftruncate=46
    fallocate=47 faccessat=48 chdir=49 fchdir=50 fchmod=52 fchmodat=53 openat=56 close=57
    pipe2=59 getdents64=61 lseek=62 read=63 write=64 readv=65 writev=66 pread64=67 pwrite64=68
    preadv=69 pwritev=70 sendfile=71 pselect6=72 ppoll=73 signalfd4=74 readlinkat=78 fstatat=79
    fstat=80 fsync=82 fdatasync=83 timerfd_create=85 timerfd_settime=86 timerfd_gettime=87
    utimensat=88 exit=93 exit_group=94 waitid=95 set_tid_address=96 futex=98 set_robust_list=99
    nanosleep=101 getitimer=102 setitimer=103 clock_gettime=113 clock_getres=114
    clock_nanosleep=115 sched_getscheduler=120 sched_getparam=121 sched_getaffinity=123
    sched_yield=124 sched_get_priority_max=125 sched_get_priority_min=126 restart_syscall=128
    sigaltstack=132 rt_sigsuspend=133 rt_sigaction=134 rt_sigprocmask=135 rt_sigpending=136
    rt_sigtimedwait=137 rt_sigreturn=139 getpriority=141 getresuid=148 getresgid=150 times=153
    getpgid=155 getsid=156 getgroups=158 uname=160 getrlimit=163 getrusage=165 umask=166
    getcpu=168 gettimeofday=169 getpid=172 getppid=173 getuid=174 geteuid=175 getgid=176
    getegid=177 gettid=178 sysinfo=179 getsockname=204 getpeername=205 recvfrom=207
    getsockopt=209 shutdown=210 recvmsg=212 brk=214 munmap=215
    mremap=216 mmap=222 fadvise64=223 mprotect=226 msync=227 mincore=232 madvise=233 wait4=260
    renameat2=276 getrandom=278 membarrier=283 copy_file_range=285 statx=291 rseq=293
    close_range=436 faccessat2=439
"""


@dataclass(frozen=True)
class _Machine:
    audit: int
    """AUDIT_ARCH value: system call numbers mean nothing without it."""
    allowed: str
    guarded: dict[str, int]
    """Numbers of the calls that depend on an argument."""


MACHINES = {
    "x86_64": _Machine(
        0xC000003E,
        _X86_64,
        {
            "clone": 56,
            "kill": 62,
            "tgkill": 234,
            "prctl": 157,
            "ioctl": 16,
            "fcntl": 72,
            "prlimit64": 302,
            "socketpair": 53,
            "sendto": 44,
            "flock": 73,
            "clone3": 435,
        },
    ),
    "aarch64": _Machine(
        0xC00000B7,
        _AARCH64,
        {
            "clone": 220,
            "kill": 129,
            "tgkill": 131,
            "prctl": 167,
            "ioctl": 29,
            "fcntl": 25,
            "prlimit64": 261,
            "socketpair": 199,
            "sendto": 206,
            "flock": 32,
            "clone3": 435,
        },
    ),
}


_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENT = (
    0,
    4,
    16,
)  # offsets in struct seccomp_data; arguments have 8 bytes
_KILL, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_EPERM, _ENOLCK, _ENOSYS = 1, 37, 38
_DONE = _ERRNO
"""Error number 0: the call is reported as done, and is not done."""
_X32_BIT = 0x40000000
_O_WRONLY, _O_RDWR, _O_TRUNC = 1, 2, 0o1000
_AF_UNIX, _SOCK_STREAM, _SOCK_FLAGS = 1, 1, 0o2004000  # flags: SOCK_CLOEXEC, SOCK_NONBLOCK
_NEWEST_OLD_CALL = 424
"""From here on both machines count alike, and C libraries try a call and fall back when it is missing."""

CLONE_THREAD = 0x00010000
CLONE_NEW_NAMESPACE = 0x7E020080

_F_SETLK, _F_SETLKW = 6, 7
_F_OFD_GETLK, _F_OFD_SETLK, _F_OFD_SETLKW = 36, 37, 38
_ANSWERS: dict[str, dict[int, int]] = {
    "fcntl": {
        _F_SETLK: _DONE,
        _F_SETLKW: _DONE,
        _F_OFD_SETLK: _ERRNO | _ENOLCK,
        _F_OFD_SETLKW: _ERRNO | _ENOLCK,
    }
}
"""What is answered to values of the same argument instead of EPERM."""
_ARGUMENTS: dict[str, tuple[int, tuple[Operand, ...]]] = {
    "kill": (0, ("PID",)),
    "tgkill": (0, ("PID",)),
    "prlimit64": (0, (0, "PID")),
    # PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_SET_VMA: above all not PR_SET_PDEATHSIG
    "prctl": (0, (3, 15, 16, 0x53564D41)),
    # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: above all not TIOCSTI
    "ioctl": (1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
    # Duplicates, flags, questions about locks: above all not F_SETOWN, F_SETSIG and F_NOTIFY, which send signals,
    # F_SETLEASE, which makes others wait, and F_SETPIPE_SZ, which takes memory
    "fcntl": (1, (*range(6), _F_OFD_GETLK, 1030, 1032)),
}


_METADATA = frozenset(
    "chmod fchmod fchmodat utime utimes futimesat utimensat truncate".split()  # noqa: SIM905 - as above
)
"""Landlock does not (or not on every kernel) keep these from files that it hides."""


def seccomp_program(
    machine: str | None = None, *, own_files: bool = True
) -> list[Instruction] | None:
    """The filter to load; None where system calls are numbered in a way unknown to us.

    Args:
        machine: `x86_64` or `aarch64`; by default, this machine.
        own_files: whether all that the code sees is its own or read-only, so that it may change modes and times.
    """
    found = MACHINES.get(machine or os.uname().machine)
    if found is None:
        return None
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, found.audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if found is MACHINES["x86_64"]:
        program += [(_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _KILL)]
    for item in found.allowed.split():
        name, _, number = item.partition("=")
        if name in ("open", "openat"):
            program += _guarded(int(number), _no_truncated_reading(1 if name == "open" else 2))
        elif own_files or name not in _METADATA:
            program += [(_EQUAL, 0, 1, int(number)), (_RETURN, 0, 0, _ALLOW)]
    for name, (argument, values) in _ARGUMENTS.items():
        program += _guarded(found.guarded[name], _one_of(argument, values, _ANSWERS.get(name, {})))
    program += _guarded(found.guarded["clone"], _threads_only())
    program += _guarded(found.guarded["socketpair"], _stream_pair())
    program += _guarded(found.guarded["sendto"], _no_address(4))
    program += _guarded(found.guarded["flock"], [(_RETURN, 0, 0, _ERRNO | _ENOLCK)])
    program += [(_AT_LEAST, 0, 1, _NEWEST_OLD_CALL), (_RETURN, 0, 0, _ERRNO | _ENOSYS)]
    program.append((_RETURN, 0, 0, _ERRNO | _EPERM))
    return program


def _guarded(number: int, body: Sequence[Instruction]) -> list[Instruction]:
    return [(_EQUAL, 0, len(body), number), *body]


def _one_of(
    argument: int, values: Sequence[Operand], answers: Mapping[int, int]
) -> list[Instruction]:
    """Allow the call when the low half of an argument is one of `values`; the kernel reads no more of these."""
    body: list[Instruction] = [(_LOAD, 0, 0, _ARGUMENT + 8 * argument)]
    for value in values:
        body += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
    for value, answer in answers.items():
        body += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, answer)]
    return [*body, (_RETURN, 0, 0, _ERRNO | _EPERM)]


def _no_truncated_reading(argument: int) -> list[Instruction]:
    """Allow open(), but not to truncate what is opened for reading: an old Landlock does not see that."""
    return [
        (_LOAD, 0, 0, _ARGUMENT + 8 * argument),
        (_ANY_BIT, 1, 0, _O_TRUNC),
        (_RETURN, 0, 0, _ALLOW),
        (_ANY_BIT, 0, 1, _O_WRONLY | _O_RDWR),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
    ]


def _threads_only() -> list[Instruction]:
    """Allow clone() for a thread of this process, in no new namespace."""
    return [
        (_LOAD, 0, 0, _ARGUMENT),
        (_ANY_BIT, 0, 1, CLONE_NEW_NAMESPACE),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
        (_ANY_BIT, 0, 1, CLONE_THREAD),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
    ]


def _stream_pair() -> list[Instruction]:
    """Allow socketpair() for two connected Unix stream sockets, with or without the flags of a new descriptor."""
    refuse: Instruction = (_RETURN, 0, 0, _ERRNO | _EPERM)
    return [
        (_LOAD, 0, 0, _ARGUMENT),
        (_EQUAL, 1, 0, _AF_UNIX),
        refuse,
        (_LOAD, 0, 0, _ARGUMENT + 8),
        (_AND, 0, 0, 0xFFFFFFFF & ~_SOCK_FLAGS),
        (_EQUAL, 1, 0, _SOCK_STREAM),
        refuse,
        (_LOAD, 0, 0, _ARGUMENT + 16),
        (_EQUAL, 1, 0, 0),
        refuse,
        (_RETURN, 0, 0, _ALLOW),
    ]


def _no_address(argument: int) -> list[Instruction]:
    """Allow the call when an argument, a pointer, is null in both halves."""
    place = _ARGUMENT + 8 * argument
    refuse: Instruction = (_RETURN, 0, 0, _ERRNO | _EPERM)
    return [
        (_LOAD, 0, 0, place),
        (_EQUAL, 1, 0, 0),
        refuse,
        (_LOAD, 0, 0, place + 4),
        (_EQUAL, 1, 0, 0),
        refuse,
        (_RETURN, 0, 0, _ALLOW),
    ]
