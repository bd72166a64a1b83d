"""A Ray cluster on this machine whose far nodes have disks of their own where the driver has its run folder.

The driver's node has no CPUs. Each far one (label `pool: far`) lives in a mount namespace in which an empty tmpfs
covers the folder, as on another machine. That needs root, or user namespaces; `cannot` says why it cannot be had.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policies.storage.fake_model import write_fake_model
from tests.faults.scene import CommandServer, Scene, merged
from tests.support.ray_head import end

PACE: dict[str, Any] = {
    "rollout": {
        "engine": {"type": "fake", "seconds_per_call": 0.1},
        "mixture": [{"rounds_ago": 1, "samples": 1}],
    },
    "judges": [
        {
            "type": "rubric",
            "verdict_only": True,
            "backend": {"type": "engine", "engine": {"type": "fake"}},
        }
    ],
    "limits": {"max_verdict_errors": 1.0},
    "training": {
        "engine": {"type": "fake", "seconds_per_step": 0.02},
        "checkpoint_steps": 1,
        "batch_size": 1,
    },
}


NEAR = "127.0.0.1"
APART = ["unshare", "--mount", "--propagation", "private"]
if os.geteuid() != 0:
    APART += ["--user", "--map-root-user"]
COVERED = 'mount -t tmpfs -o mode=0700 tmpfs "$0" && exec "$@"'


@dataclass(frozen=True)
class FarCluster:
    """The cluster, and the folder that its nodes see differently."""

    address: str
    env: dict[str, str]
    folder: Path
    near: subprocess.Popen[bytes]
    """What started the driver's node."""
    far: tuple[subprocess.Popen[bytes], ...]
    """What started the far nodes."""

    def there(self, path: Path, node: int = 0) -> Path:
        """A path below `folder` as a far node sees it."""
        return Path(f"/proc/{self.far[node].pid}/root{path}")


def cannot() -> str:
    """Why no mount namespace can be had here; empty when it can."""
    command = [*APART, "sh", "-c", COVERED, "/mnt", "true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except OSError as error:
        return str(error)
    return done.stderr.strip() if done.returncode else ""


@contextmanager
def far_cluster(folder: Path, num_far: int = 1) -> Iterator[FarCluster]:
    """All nodes, for as long as the context is open; `folder` is empty on the far ones."""
    home = Path(tempfile.mkdtemp(prefix="r"))  # short: Ray's sockets lie in it
    token = home / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    env = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with socket.socket() as probe:
        probe.bind((NEAR, 0))
        port = probe.getsockname()[1]
    address = f"{NEAR}:{port}"
    near = ["--head", f"--port={port}", f"--node-ip-address={NEAR}", "--num-cpus=0"]
    near += ["--include-dashboard=false", f"--temp-dir={home}"]
    far = [f"--address={address}", "--num-cpus=4", "--labels", "pool=far"]
    covered = [*APART, "sh", "-c", COVERED, str(folder)]
    started: list[subprocess.Popen[bytes]] = []
    try:
        _start(near, env, [], home / "near.log", started)
        for number in range(num_far):
            own = [*far, f"--node-ip-address=127.0.0.{2 + number}"]
            _start(own, env, covered, home / f"far{number}.log", started)
        yield FarCluster(address, env, folder, started[0], tuple(started[1:]))
    finally:
        for each in reversed(started):
            if each.poll() is None:
                end(each)
        shutil.rmtree(home, ignore_errors=True)


def _start(
    arguments: list[str],
    env: dict[str, str],
    before: list[str],
    log: Path,
    started: list[subprocess.Popen[bytes]],
) -> None:
    """Start a node and wait until it is up: two that start at once may want the same ports."""
    command = [*before, str(Path(sys.executable).with_name("ray")), "start", "--block", *arguments]
    # What earlier tests of this process told Ray is not for these nodes.
    own = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    with log.open("wb") as output:
        node = subprocess.Popen(
            command,
            env=own | env,
            start_new_session=True,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    started.append(node)
    deadline = time.monotonic() + 90
    while b"Ray runtime started" not in log.read_bytes():
        assert node.poll() is None, log.read_text(encoding="utf-8")[-3000:]
        assert time.monotonic() < deadline, "the node did not come up"
        time.sleep(0.1)


class World:
    """A cluster whose far nodes see nothing of `folder`, and runs in it."""

    def __init__(self, cluster: FarCluster, command_server: CommandServer) -> None:
        self.cluster, self.command_server = cluster, command_server
        self.folder = cluster.folder
        self.model = write_fake_model(self.folder / "model", skill=0.3)
        self.calm = self._scene("calm", PACE)
        self.calm.finish()

    def scene(self, name: str, *, shared: bool, changes: Mapping[str, Any] | None = None) -> Scene:
        """A run all of whose workers lie on far nodes."""
        placed = {"resources": {"labels": {"pool": "far"}, "num_cpus": 0.5}}
        places: dict[str, Any] = dict.fromkeys(("rollout", "verify", "training"), placed)
        places["verify"] = {**placed, "judge_resources": placed["resources"]}
        cluster = {"backend": "ray", "address": self.cluster.address, "shared_folder": shared}
        tree = merged(merged(PACE, places | {"cluster": cluster}), changes or {})
        return self._scene(name, tree)

    def _scene(self, name: str, changes: Mapping[str, Any]) -> Scene:
        home = self.folder / name
        calm = None if name == "calm" else self.calm
        env = self.cluster.env
        return Scene(self.command_server, home, self.model, changes=changes, calm=calm, env=env)
