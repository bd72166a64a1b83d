"""Ray's memory killer ends a worker: its node is a group of processes with little memory (cgroup), as in a container.

Ray counts the memory of the whole machine, so beside other load nobody could say when it kills. In a mount namespace
of its own, where the group's files lie over those of the machine, it counts the group alone. That takes root and a
memory controller.
"""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.fault import Fault
from tests.faults.inject_ray import join, shared_cluster
from tests.faults.inject_workers import warnings_of
from tests.faults.scene import Scene
from tests.support.growing import VARIABLE

GROWING = Path(__file__).parents[1] / "support" / "growing.py"
LIMIT_BYTES = 4 << 30
"""Beyond it the kernel kills; nothing here comes near it."""
THRESHOLD = 0.5
"""Share of the limit at which Ray kills. An idle cluster takes about 0.7 GB, the growth up to 2 GB more."""
_ROOT = Path("/sys/fs/cgroup")
_VERSIONS = ((_ROOT / "memory", "memory.limit_in_bytes"), (_ROOT, "memory.max"))
"""Of cgroups, 1 and 2: the folder of the memory controller and the file with a group's limit."""
_INTO = 'echo $$ > "$0/cgroup.procs" && mount --bind "$0" "$1" && shift && exec "$@"'


@functools.cache
def can_limit_memory() -> bool:
    """Whether this machine lets us put processes into a group with a limit."""
    try:
        with memory_group():
            return shutil.which("unshare") is not None
    except OSError:
        return False


@contextmanager
def memory_group() -> Iterator[list[str]]:
    """A group with little memory; gives the command that starts what follows in it.

    Raises:
        OSError: not on this machine, or not as this user.
    """
    controller, limit = next(
        (v for v in _VERSIONS if (v[0] / "cgroup.procs").exists()), _VERSIONS[1]
    )
    group = controller / f"pawl-fault-{secrets.token_hex(4)}"
    group.mkdir()
    try:
        descriptor = os.open(group / limit, os.O_WRONLY)  # it must be there: nothing may make it
        with os.fdopen(descriptor, "w") as handle:
            handle.write(str(LIMIT_BYTES))
        yield ["unshare", "-m", "sh", "-c", _INTO, str(group), str(controller)]
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    """A group can be removed once its last process has ended."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def killed_for_its_memory(scene: Scene, phase: str) -> None:
    """A verifier's process or a trainer takes more and more memory, until Ray ends its worker."""
    note = scene.home / "grown"
    who = "trainer" if phase == "train" else "verifier"
    env = {
        VARIABLE: f"{who}:{note}",
        "RAY_memory_usage_threshold": str(THRESHOLD),
        "RAY_memory_monitor_refresh_ms": "100",
    }
    (scene.home / "cluster").mkdir()
    with memory_group() as inside, shared_cluster(scene.home / "cluster", inside, env) as joined:
        scene.env |= joined
        join(scene)
        driver = scene.drive()
        code = driver.wait()
        assert note.exists(), f"nothing grew:\n{driver.text[-3000:]}"
        assert code == 0, f"exit code {code}:\n{driver.text[-3000:]}"
    told = [text for text in warnings_of(scene) if "ran out of memory" in text]
    assert told, f"nobody was ended for its memory:\n{driver.text[-3000:]}"
    assert any("a fresh worker takes its place" in text for text in told), told
    scene.hit()


ROWS = (
    Fault(
        "worker out of memory",
        ("evaluate", "train"),
        killed_for_its_memory,
        "named as memory, restarted within its budget, same result",
        {
            "verifiers": [{"type": f"{GROWING}:verifier", "timeout_seconds": 60.0}],
            "training": {"engine": {"type": f"{GROWING}:Trainer"}},
        },
        needs="memory group",
        short=False,
    ),
)
"""The row of the table about memory."""
