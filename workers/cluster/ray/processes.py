"""The processes of a Ray cluster that was started here: what Ray leaves behind of them is ended.

When the control plane has died, the raylet's agents outlive it by minutes: before they end they want to tell that
control plane what happened, and wait for it as long as a driver would.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

END_SECONDS = 5.0
"""How long what Ray left behind may take to end, once it is killed."""


def of_the_cluster() -> list[Any]:
    """The processes that Ray has started below this one, all of them with what they started."""
    import psutil
    import ray

    home = str(Path(ray.__file__).parent)
    found: list[Any] = []
    for child in psutil.Process().children():
        try:
            if home in " ".join(child.cmdline()):
                found += [child, *child.children(recursive=True)]
        except psutil.Error:  # it ended while we looked
            continue
    return found


def end(processes: list[Any]) -> list[int]:
    """Kill those that still run, however Ray was left; returns their process ids.

    A process that got the number of one that has ended is another one, and left alone.
    """
    import psutil

    left = [process for process in processes if process.is_running()]
    for process in left:
        try:
            process.kill()
        except psutil.Error:  # it ended by itself
            continue
    psutil.wait_procs(left, timeout=END_SECONDS)
    return [process.pid for process in left]
