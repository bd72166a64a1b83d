"""The keeper's own process: the parent of every contained process of one owner, and the end of them all.

Standard library only, started as a bare script. It kills nothing but its own children, found by parentage and
never by name: what bwrap leaves behind when it dies at an unlucky moment becomes a child of the keeper (a
"subreaper"), so that it is found as well. It ends when its owner ends, however that was, after its last child.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import marshal
import os
import select
import signal
import socket
import sys
import time
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
MAX_MESSAGE = 1 << 20
MAX_DESCRIPTORS = 8
FIRST_SPARE = 64
"""Received descriptors move above this, clear of the numbers that they get in the child."""
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)
"""The keeper ends with its owner, not before; what it starts gets the default again."""


def main() -> None:
    """Serve the owner (its process number is the argument) over standard input until it is gone."""
    owner = int(sys.argv[1])
    os.closerange(3, 1024)
    os.chdir("/")
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        sys.exit("no PR_SET_CHILD_SUBREAPER")
    watched = os.pidfd_open(owner)
    if os.getppid() != owner:  # it ended before the line above
        return
    channel = socket.socket(fileno=os.dup(0))
    known: set[int] = set()
    try:
        serve(channel, watched, known)
    finally:
        channel.close()
        end_all()


def serve(channel: socket.socket, watched: int, known: set[int]) -> None:
    """Answer requests; returns when the owner hung up or died (its channel may live on in a fork of it)."""
    waiting = select.poll()
    waiting.register(channel.fileno(), select.POLLIN)
    waiting.register(watched, select.POLLIN)
    while True:
        events = [descriptor for descriptor, _ in waiting.poll()]
        if watched in events:
            return
        data, received, _, _ = socket.recv_fds(
            channel, MAX_MESSAGE, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
        if not data:
            return
        try:
            answer = handle(marshal.loads(data), received, known)  # nosec B302 # plain values, from our own process
        except OSError as error:
            answer = {"error": str(error), "errno": error.errno or 0}
        finally:
            for descriptor in received:
                os.close(descriptor)
        channel.send(marshal.dumps(answer))


def handle(request: Any, received: list[int], known: set[int]) -> dict[str, Any]:
    """One request: start a process, kill one with its group, or reap one that is dead already."""
    if request["do"] == "start":
        pid = start(request["command"], request["environment"], received)
        known.add(pid)
        return {"pid": pid}
    pid = request["pid"]
    if pid not in known:  # not a child, or not any more: the number may be somebody else's
        return {"error": f"process {pid} is none of the keeper's", "errno": 0}
    if request["do"] == "kill":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        return {}
    _, status, usage = os.wait4(pid, 0)
    known.discard(pid)
    for child in children() - known:  # what the dead one left behind
        kill(child)
    return {"status": status, "cpu_seconds": usage.ru_utime + usage.ru_stime}


def start(command: list[str], environment: dict[str, str], received: list[int]) -> int:
    """Start a process whose descriptors 0, 1, 2, ... are the received ones, and that has no others."""
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FIRST_SPARE) for descriptor in received]
    try:
        return os.posix_spawn(
            command[0],
            command,
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(moved)],
            setsid=True,
            setsigmask=[],
            setsigdef=[*IGNORED, signal.SIGXFSZ],
        )
    finally:
        for descriptor in moved:
            os.close(descriptor)


def children() -> set[int]:
    """Children of this process, dead ones too. A child's number is not given away before it is reaped here."""
    own = os.getpid()
    try:
        with open(f"/proc/self/task/{own}/children", encoding="ascii") as file:
            return {int(word) for word in file.read().split()}
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        return {
            pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if parent(pid) == own
        }


def parent(pid: int) -> int:
    """The parent of a process, 0 when it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def kill(child: int) -> None:
    """Kill a child and reap it if it is dead at once; else a later call finds it again."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, os.WNOHANG)


def end_all() -> None:
    """Kill and reap until there is no child left: neither one that was started nor one that was inherited."""
    pause = 0.001
    while True:
        for child in children():
            kill(child)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


if __name__ == "__main__":
    main()
