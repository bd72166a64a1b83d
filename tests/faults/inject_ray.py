"""Faults that need real actors: workers killed, frozen or poisoned on a Ray cluster that the rows share."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from policies.storage.fake_model import write_fake_model
from tests.faults.fault import Fault
from tests.faults.inject_workers import counts
from tests.faults.scene import Moment, Scene
from tests.support.ray_head import end


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def shared_cluster(
    home: Path, inside: Sequence[str] = (), told: Mapping[str, str] | None = None
) -> Iterator[dict[str, str]]:
    """A Ray head of its own on loopback, with a token; gives the environment that joins it.

    `inside` is a command that starts it, `told` what only the cluster has in its environment.
    """
    token = home / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    env = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    port = free_port()
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    command += [f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=4"]
    short = tempfile.mkdtemp(
        prefix="pawl-ray-"
    )  # Ray's sockets lie below: their paths must stay short
    command += ["--include-dashboard=false", f"--temp-dir={short}"]
    head = subprocess.Popen(
        [*inside, *command],
        env={**os.environ, **env, **(told or {})},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 90
        while not _answers(port):
            assert head.poll() is None, "the head node ended"
            assert time.monotonic() < deadline, "the head node did not come up"
            time.sleep(0.1)
        yield env | {"PAWL_FAULT_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        end(head)
        shutil.rmtree(short, ignore_errors=True)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def join(scene: Scene) -> None:
    """Let the scene's drivers join the shared cluster."""
    cluster = {"backend": "ray", "address": scene.env["PAWL_FAULT_ADDRESS"]}
    scene.write_config(
        {**scene.changes, "cluster": {**scene.changes.get("cluster", {}), **cluster}}
    )


def to_worker(
    group: str, name: str = "SIGKILL", phase_seconds: float = 0.3
) -> Callable[[Scene, str], None]:
    """A signal to a worker's process while it has something to do."""

    def inject(scene: Scene, phase: str) -> None:
        join(scene)
        delay = scene.random.uniform(0.0, phase_seconds)
        driver = scene.drive(
            Moment("phase_started", 1, phase, delay=delay, action=f"{name}@{group}")
        )
        code = driver.wait()
        assert driver.fired.exists(), driver.text[-3000:]
        scene.hit()
        assert code == 0, f"exit code {code}:\n{driver.text[-3000:]}"

    return inject


def stalled_worker(scene: Scene, phase: str) -> None:
    """A worker stands still for two seconds (SIGSTOP, SIGCONT), as on an overloaded node: it is waited for."""
    join(scene)
    delay = scene.random.uniform(0.0, 0.3)
    action = "SIGSTOP@rollout"
    driver = scene.drive(Moment("phase_started", 1, phase, delay=delay, action=action))
    driver.wait_until_fired()
    time.sleep(2.0)
    os.kill(int(driver.fired.read_text(encoding="utf-8")), signal.SIGCONT)
    scene.hit()
    assert driver.wait() == 0, driver.text[-3000:]


def poison_prompt(scene: Scene, phase: str) -> None:
    """Some prompts kill their rollout worker each time: they are set aside, the round goes on without them."""
    scene.model = write_fake_model(scene.home / "model", skill=0.3)
    asked_for = {"config.json": '{"model_type": "scripted"}', "tokenizer.json": "{}"}
    asked_for["chat_template.jinja"] = "{{ messages }}"
    for name, text in asked_for.items():  # what a plan wants with an engine that it does not know
        (scene.model / name).write_text(text, encoding="utf-8")
    join(scene)
    scene.finish()
    reasons = list(scene.folder.quarantine.rglob("*.reason.json"))
    assert reasons, "nothing was set aside"
    assert counts(scene)["rollout/errors"] > 0, "its attempts are counted as errors"
    scene.hit()


def killed_control_plane(scene: Scene, phase: str) -> None:
    """The cluster's control plane (GCS) of a local cluster is killed: exit 75, nothing left behind.

    A short run may be done before it needs the control plane again; `tests/integration/test_cluster_loss.py` has one
    that is not.
    """
    own = {"backend": "ray", "num_cpus": 2, "lost_after_seconds": 10.0}
    scene.write_config({**scene.changes, "cluster": own})
    driver = scene.drive(Moment("phase_started", 1, phase, action="note"))
    driver.wait_until_fired()
    victims = [p for p in scene.processes() if b"gcs_server" in _command_line(p)]
    assert victims, "no control plane was found"
    os.kill(victims[0], signal.SIGKILL)
    scene.hit()
    code = driver.wait()
    assert code in (0, 75), f"exit code {code}:\n{driver.text[-3000:]}"


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it ended while we looked
        return b""


def killed_driver(scene: Scene, phase: str) -> None:
    """The driver is killed; its actors on the joined cluster must not outlive it for long, nor commit anything."""
    join(scene)
    scene.kill_at(Moment("phase_started", 1, phase, delay=scene.random.uniform(0, 0.1)))


KILLING = Path(__file__).parents[1] / "support" / "crashing_engines.py"
_TABLE = {"type": "arithmetic", "low": 2, "high": 5, "held_out": 3}
_WITH_THE_DEADLY_ONE = {
    "train": _TABLE | {"split": "train"},
    "held_out": _TABLE | {"split": "held_out"},
    "per_round": 13,
}
_SLOW = {"rollout": {"engine": {"type": "fake", "seconds_per_call": 0.15}}}
ROWS = (
    Fault(
        "rollout worker killed",
        ("collect", "evaluate"),
        to_worker("rollout"),
        "its shard is handed out again",
        _SLOW,
        needs="ray",
        short=False,
    ),
    Fault(
        "verify worker killed",
        ("collect",),
        to_worker("verify"),
        "its shard is handed out again",
        _SLOW,
        needs="ray",
        short=False,
    ),
    Fault(
        "trainer killed",
        ("train",),
        to_worker("train"),
        "the update is done again",
        {"training": {"engine": {"type": "fake", "seconds_per_step": 0.1}}},
        needs="ray",
        short=False,
    ),
    Fault(
        "rollout worker frozen",
        ("collect",),
        to_worker("rollout", "SIGSTOP"),
        "found silent, replaced",
        {**_SLOW, "cluster": {"silence_timeout_seconds": 20.0}},
        needs="ray",
        short=False,
    ),
    Fault(
        "rollout worker stalls",
        ("collect", "evaluate"),
        stalled_worker,
        "waited for, same result",
        _SLOW,
        needs="ray",
        short=False,
    ),
    Fault(
        "prompt kills its rollout worker",
        ("collect",),
        poison_prompt,
        "set aside after n deaths, counted",
        {
            "rounds": 1,
            "rollout": {"engine": {"type": f"{KILLING}:Killing"}, "prompts_per_shard": 5},
            "prompts": _WITH_THE_DEADLY_ONE,
            "limits": {"max_failed_trajectories": 0.9},
            "cluster": {"max_attempts": 2, "max_restarts": 60},
        },
        needs="ray",
        short=False,
        compares=False,
    ),
    Fault(
        "control plane killed",
        ("collect",),
        killed_control_plane,
        "exit 75, resumes on a new cluster; or it is done without",
        _SLOW,
        needs="own ray",
        short=False,
    ),
    Fault(
        "driver killed on Ray",
        ("collect", "train"),
        killed_driver,
        "resumes; its actors are gone",
        _SLOW,
        needs="ray",
        short=False,
    ),
)
"""The rows of the table that need Ray."""
