"""The system call filter, run by a small interpreter of the kernel's filter language on both machines."""

from __future__ import annotations

import struct

import pytest

from workers.sandbox.seccomp import MACHINES, Instruction, seccomp_program

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
DONE, ENOLCK = 0x00050000, 0x00050025
PID = 4242
NUMBERS = {
    "x86_64": {"read": 0, "openat": 257, "execve": 59, "socket": 41, "clone": 56, "kill": 62}
    | {"ptrace": 101, "prctl": 157, "ioctl": 16, "fcntl": 72, "prlimit64": 302, "fchmodat": 268}
    | {"unshare": 272, "socketpair": 53, "mount": 165, "memfd_create": 319, "tkill": 200}
    | {"sendto": 44, "sendmsg": 46, "sendmmsg": 307, "setsockopt": 54, "flock": 73}
    | {"connect": 42, "bind": 49, "timer_create": 222, "io_setup": 206, "msgget": 68},
    "aarch64": {"read": 63, "openat": 56, "execve": 221, "socket": 198, "clone": 220, "kill": 129}
    | {"ptrace": 117, "prctl": 167, "ioctl": 29, "fcntl": 25, "prlimit64": 261, "fchmodat": 53}
    | {"unshare": 97, "socketpair": 199, "mount": 40, "memfd_create": 279, "tkill": 130}
    | {"sendto": 206, "sendmsg": 211, "sendmmsg": 269, "setsockopt": 208, "flock": 32}
    | {"connect": 203, "bind": 200, "timer_create": 107, "io_setup": 0, "msgget": 186},
}
THREAD = 0x3D0F00  # what glibc passes for a thread


def decide(program: list[Instruction], machine: str, number: int, *arguments: int) -> int:
    """What the kernel would answer: loads, jumps and returns of classic BPF over struct seccomp_data."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=iIQ6Q", number, MACHINES[machine].audit, 0, *padded)
    accumulator = position = 0
    while True:
        code, yes, no, operand = program[position]
        value = PID if operand == "PID" else int(operand)
        position += 1
        if code == 0x54:
            accumulator &= value
        elif code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x06:
            return value
        else:
            test = {0x15: accumulator == value, 0x35: accumulator >= value}
            held = test[code] if code in test else bool(accumulator & value)
            position += yes if held else no


@pytest.fixture(params=list(MACHINES))
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def answer(machine: str, name: str, *arguments: int, own_files: bool = True) -> int:
    program = seccomp_program(machine, own_files=own_files)
    assert program is not None
    return decide(program, machine, NUMBERS[machine][name], *arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("read", ()),
        ("openat", (0, 0, 0)),
        ("openat", (0, 0, 0o1000 | 1)),
        ("clone", (THREAD,)),
        ("kill", (PID, 11)),
        ("prctl", (15,)),
        ("ioctl", (1, 0x5401)),
        ("fcntl", (1, 3)),
        ("prlimit64", (0,)),
        ("socketpair", (1, 1, 0)),
        ("socketpair", (1, 1 | 0o2004000, 0)),
        ("sendto", (3, 0, 1, 0, 0, 0)),
        ("fcntl", (1, 5)),
        ("fcntl", (1, 36)),
    ],
)
def test_what_a_single_process_needs_is_allowed(
    machine: str, name: str, arguments: tuple[int, ...]
) -> None:
    assert answer(machine, name, *arguments) == ALLOW


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("execve", ()),
        ("socket", (1, 1)),
        ("clone", (17,)),
        ("clone", (THREAD | 0x10000000,)),
        ("clone", (THREAD | 0x80,)),
        ("kill", (1, 9)),
        ("kill", (2**32 - 1, 9)),
        ("tkill", (PID,)),
        ("ptrace", ()),
        ("prctl", (1,)),
        ("ioctl", (1, 0x5412)),
        ("fcntl", (1, 8)),
        ("fcntl", (1, 1031)),
        ("prlimit64", (1,)),
        ("socketpair", (2, 1, 0)),
        ("socketpair", (1, 2, 0)),
        ("socketpair", (1, 2 | 0o2004000, 0)),
        ("socketpair", (1, 5, 0)),
        ("socketpair", (1, 1, 1)),
        ("sendto", (3, 0, 1, 0, 0x7F00, 16)),
        ("sendto", (3, 0, 1, 0, 0x7F << 32, 16)),
        ("sendmsg", (3,)),
        ("sendmmsg", (3,)),
        ("setsockopt", (3, 1, 7)),
        ("connect", (3,)),
        ("bind", (3,)),
        ("timer_create", ()),
        ("io_setup", ()),
        ("msgget", ()),
        ("fcntl", (1, 10)),
        ("fcntl", (1, 1024)),
        ("fcntl", (1, 1026)),
        ("openat", (0, 0, 0o1000)),
        ("unshare", (0x10000000,)),
        ("mount", ()),
        ("memfd_create", ()),
    ],
)
def test_what_reaches_beyond_the_process_is_refused(
    machine: str, name: str, arguments: tuple[int, ...]
) -> None:
    assert answer(machine, name, *arguments) == EPERM


def test_a_lock_of_the_process_is_reported_as_taken_and_every_other_as_refused(
    machine: str,
) -> None:
    assert {answer(machine, "fcntl", 3, command) for command in (6, 7)} == {DONE}
    assert {answer(machine, "fcntl", 3, command) for command in (37, 38)} == {ENOLCK}
    assert answer(machine, "flock", 3, 2) == ENOLCK


def test_calls_newer_than_the_list_do_not_exist(machine: str) -> None:
    program = seccomp_program(machine)
    assert program is not None
    assert {decide(program, machine, number) for number in (425, 435, 449, 900)} == {ENOSYS}


def test_where_foreign_files_are_in_sight_their_modes_cannot_be_changed(machine: str) -> None:
    assert answer(machine, "fchmodat", own_files=True) == ALLOW
    assert answer(machine, "fchmodat", own_files=False) == EPERM


def test_the_call_numbers_of_another_machine_kill() -> None:
    program = seccomp_program("x86_64")
    assert program is not None
    assert decide(program, "aarch64", NUMBERS["x86_64"]["read"]) == KILL
    assert decide(program, "x86_64", 0x40000000) == KILL


def test_every_jump_stays_inside_the_program(machine: str) -> None:
    program = seccomp_program(machine)
    assert program is not None
    assert len(program) < 4096
    for place, (code, yes, no, _) in enumerate(program):
        if code not in (0x20, 0x06):
            assert max(yes, no) <= 255
            assert place + 1 + max(yes, no) < len(program)
    assert program[-1][0] == 0x06


def test_an_unknown_machine_has_no_filter() -> None:
    assert seccomp_program("riscv64") is None
