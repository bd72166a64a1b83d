"""A Ray cluster of two nodes on this machine, the second of which has a disk of its own where the run folder lies.

The driver's node has no CPUs. The far one (label `pool: far`) lives in a mount namespace in which an empty tmpfs covers
the folder, as on another machine. That needs root (or CAP_SYS_ADMIN); `cannot` says why it cannot be had.
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.ray_head import end

FAR, NEAR = "127.0.0.2", "127.0.0.1"
COVERED = 'mount -t tmpfs -o mode=0700 tmpfs "$0" && exec "$@"'


@dataclass(frozen=True)
class FarCluster:
    """The cluster, and the folder that its two nodes see differently."""

    address: str
    env: dict[str, str]
    folder: Path
    far: int
    """Process id of what started the far node."""

    def there(self, path: Path) -> Path:
        """A path below `folder` as the far node sees it."""
        return Path(f"/proc/{self.far}/root{path}")


def cannot() -> str:
    """Why no mount namespace can be had here; empty when it can."""
    command = ["unshare", "--mount", "--propagation", "private", "true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except OSError as error:
        return str(error)
    return done.stderr.strip() if done.returncode else ""


@contextmanager
def far_cluster(folder: Path) -> Iterator[FarCluster]:
    """Both nodes, for as long as the context is open; `folder` is empty on the far one."""
    home = Path(tempfile.mkdtemp(prefix="r"))  # short: Ray's sockets lie in it
    token = home / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    env = os.environ | {
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
    far = [f"--address={address}", f"--node-ip-address={FAR}", "--num-cpus=4"]
    far += ["--labels", "pool=far"]
    covered = ["unshare", "--mount", "--propagation", "private", "sh", "-c", COVERED, str(folder)]
    started = [_ray(near, env, [])]
    try:
        _wait_for(port, started[0])
        started.append(_ray(far, env, covered))
        yield FarCluster(address, env, folder, started[1].pid)
    finally:
        for each in reversed(started):
            end(each)
        shutil.rmtree(home, ignore_errors=True)


def _ray(arguments: list[str], env: dict[str, str], before: list[str]) -> subprocess.Popen[bytes]:
    command = [*before, str(Path(sys.executable).with_name("ray")), "start", "--block", *arguments]
    return subprocess.Popen(
        command,
        env=env,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _wait_for(port: int, head: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 90
    while True:
        with socket.socket() as probe:
            if probe.connect_ex((NEAR, port)) == 0:
                return
        assert head.poll() is None, "the head node ended"
        assert time.monotonic() < deadline, "the head node did not come up"
        time.sleep(0.2)
