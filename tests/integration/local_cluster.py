"""Starts a local cluster as a run would, and tells what its worker sees and which addresses are listened on.

Prints one JSON line: {"secrets": {name: value}, "listening": [addresses], "mode": of the token file}.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import psutil

from workers.cluster.ray.cluster import RayCluster
from workers.cluster.seam import GroupSpec, Resources

NAMES = ("HF_TOKEN", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN_PATH")


class Looker:
    """A worker that says what it sees in its environment."""

    def variables(self, names: tuple[str, ...]) -> dict[str, str | None]:
        return {name: os.environ.get(name) for name in names}

    def first_variables(self) -> str:
        """The environment that the process was started with."""
        return Path("/proc/self/environ").read_text(encoding="utf-8", errors="replace")


def main() -> None:
    cluster = RayCluster(num_cpus=1, keep=("JUDGE_API_KEY",))
    group = cluster.start_group(GroupSpec("looker", Looker, resources=Resources(num_cpus=0.1)))
    cluster.wait_ready([group], 60)
    found = {
        "secrets": cluster.result(group.submit("variables", (*NAMES, "JUDGE_API_KEY")), 30),
        "canaries": cluster.result(group.submit("first_variables"), 30).count("canary"),
        "listening": sorted(listening()),
        "processes": [p.name() for p in psutil.Process().children(recursive=True)],
        "mode": stat.S_IMODE(os.stat(os.environ["RAY_AUTH_TOKEN_PATH"]).st_mode),
        "driver": os.environ["HF_TOKEN"],
        "open to others": open_to_others(),
    }
    cluster.close()
    sys.stdout.write(json.dumps(found) + "\n")


def open_to_others() -> list[str]:
    """What others could enter or write of the session's folder and of the two around it."""
    from ray._private import worker

    session = Path(worker._global_node.get_session_dir_path())  # type: ignore[attr-defined]
    folders = (session, session.parent, session.parent.parent)
    return [str(folder) for folder in folders if stat.S_IMODE(folder.stat().st_mode) & 0o077]


def listening() -> set[str]:
    """Addresses on which this process and its descendants accept TCP connections."""
    me = psutil.Process()
    return {
        connection.laddr.ip
        for process in (me, *me.children(recursive=True))
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }


if __name__ == "__main__":
    main()
