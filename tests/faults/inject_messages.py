"""Faults between Ray's processes: messages that come late or not at all, injected by Ray itself.

Each process of Ray reads two variables when it starts; a run that starts its own cluster hands its environment to all
of them. `RAY_testing_asio_delay_us` is `Method=least:most,...` in microseconds; `*` for all methods is of no use: it
also delays what a process tells itself, and the raylet of Ray 2.60 then fails a check of its own while it starts.
`RAY_testing_rpc_failure` is JSON by method. Each process draws by itself, unseeded, and notes each loss in its log.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.faults.fault import Fault
from tests.faults.inject_workers import warnings_of
from tests.faults.scene import Driver, Scene

CALL = "CoreWorkerService.grpc_client.PushTask"
"""The message that hands a call to a worker, and brings its answer back."""
_CONTROL = "ray::rpc::{}GcsService.grpc_client.{}"
LOST = (
    CALL,
    "CoreWorkerService.grpc_client.KillActor",
    "NodeManagerService.grpc_client.RequestWorkerLease",
    "NodeManagerService.grpc_client.ReturnWorkerLease",
    "NodeManagerService.grpc_client.GetResourceLoad",
    _CONTROL.format("ActorInfo", "RegisterActor"),
    _CONTROL.format("ActorInfo", "CreateActor"),
    _CONTROL.format("ActorInfo", "GetActorInfo"),
    _CONTROL.format("ActorInfo", "KillActorViaGcs"),
    _CONTROL.format("NodeInfo", "CheckAlive"),
    _CONTROL.format("TaskInfo", "AddTaskEventData"),
    _CONTROL.format("ControlPlanePubSub", "GcsSubscriberPoll"),
)
"""What a run says and hears: calls, leases, workers that start and end, signs of life. With `*` for all messages, also
the first ones of a node are lost at times, and Ray 2.60 then does not come up at all."""
MOST_LOST = 4
"""Of one method and one sender; below `cluster.max_attempts`, so that no shard is ever given up."""
SHARE = 10
"""In percent, of each of the three kinds of loss."""
LEAST_SECONDS = 0.3
"""By which each call of a worker is late."""
LATE = (
    f"CoreWorkerService.grpc_server.PushTask={LEAST_SECONDS * 1e6:.0f}:600000,"
    "NodeManagerService.grpc_server.RequestWorkerLease=100000:1000000,"
    "ActorInfoGcsService.grpc_server.CreateActor=100000:1000000"
)


def own_cluster(scene: Scene) -> None:
    """Let the scene's drivers start a cluster of their own."""
    cluster = {**scene.changes.get("cluster", {}), "backend": "ray", "num_cpus": 2}
    scene.write_config({**scene.changes, "cluster": cluster})


@contextmanager
def told_to_ray(scene: Scene, env: Mapping[str, str]) -> Iterator[tuple[Driver, Path]]:
    """A driver that was started with `env`, and the folder of its cluster's logs."""
    own_cluster(scene)
    home = tempfile.mkdtemp(prefix="pawl-ray-")  # short: Ray's sockets lie below
    try:
        yield scene.drive(env={"RAY_TMPDIR": home, **env}), Path(home)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def said_by_ray(home: Path, pattern: str) -> list[str]:
    """Lines of Ray's logs that match."""
    found = []
    for path in sorted(home.glob("ray/session_2*/logs/*")):
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            found += [f"{path.name}: {line}" for line in lines if re.search(pattern, line)]
    return found


def lost(scene: Scene, phase: str) -> None:
    """Some messages do not arrive, the answers of some do not, and some arrive although the sender heard otherwise."""
    kinds = ("req_failure_prob", "resp_failure_prob", "in_flight_failure_prob")
    each = {"num_failures": MOST_LOST, **dict.fromkeys(kinds, SHARE)}
    told = json.dumps(dict.fromkeys(LOST, each))
    with told_to_ray(scene, {"RAY_testing_rpc_failure": told}) as (driver, home):
        code = driver.wait()
        assert code == 0, f"exit code {code}:\n{driver.text[-3000:]}"
        losses = said_by_ray(home, "Inject RPC .* failure .*for ")
    assert losses, "Ray lost no message"
    scene.hit()
    if any(line.startswith("python-core-driver") and CALL in line for line in losses):
        warnings = " ".join(warnings_of(scene))
        assert "cannot be reached; whether the call ran is unknown" in warnings, warnings


def late(scene: Scene, phase: str) -> None:
    """Every call reaches its worker a third of a second late or more, leases and new workers up to a second."""
    with told_to_ray(scene, {"RAY_testing_asio_delay_us": LATE}) as (driver, home):
        code = driver.wait()
        assert code == 0, f"exit code {code}:\n{driver.text[-3000:]}"
        delays = said_by_ray(home, "Delaying method CoreWorkerService.grpc_server.PushTask")
        assert delays, "Ray delayed no call"
    syncs = [seconds for (_, name), seconds in scene.phase_seconds().items() if name == "sync"]
    assert syncs, "no round called its rollout workers to load the new policy"
    assert min(syncs) >= LEAST_SECONDS, f"no message was late: the syncs took {syncs}"
    scene.hit()


ROWS = (
    Fault(
        "messages of Ray lost",
        ("any",),
        lost,
        "asked again, or the call handed out again; same result",
        {"cluster": {"max_attempts": MOST_LOST + 1}},
        needs="own ray",
        short=False,
    ),
    Fault(
        "messages of Ray late",
        ("any",),
        late,
        "waited for, same result",
        needs="own ray",
        short=False,
    ),
)
"""The rows of the table about messages."""
