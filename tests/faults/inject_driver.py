"""Faults of the driver's process: killed, stopped, suspended, doubled, orphaned."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable

from tests.faults.scene import PHASES, Moment, Scene


def killed(scene: Scene, phase: str) -> None:
    """SIGKILL somewhere in the phase."""
    scene.kill_at(scene.moment_in(phase))


def killed_again_and_again(scene: Scene, phase: str) -> None:
    """Three SIGKILLs in a row: each resume dies too, at one of its first changes of a file."""
    scene.kill_at(scene.moment_in(phase))
    for _ in range(2):
        scene.kill_at_operation(12)


def killed_at_an_operation(scene: Scene, phase: str) -> None:
    """SIGKILL right before a random change of a file, anywhere in the run."""
    scene.kill_at_operation(400)


def killed_before_it_began(scene: Scene, phase: str) -> None:
    """SIGKILL while the run folder itself is made; `pawl run` is simply typed again."""
    scene.kill_at(Moment("operation", nth=scene.random.randint(1, 20)))


def stopped_by(name: str, code: int, *, twice: bool = False) -> Callable[[Scene, str], None]:
    """A polite signal, or two of them."""

    def stop(scene: Scene, phase: str) -> None:
        action = f"{name}+{name}" if twice else name
        driver = scene.drive(scene.moment_in(phase, action))
        found = driver.wait()
        assert driver.fired.exists()
        if found == 0:  # it was asked in the last moments of the run, when nothing was left to stop
            assert phase in ("accept", "evaluate"), driver.text[-2000:]
        else:
            assert found == code, f"exit code {found}:\n{driver.text[-3000:]}"
        scene.hit()

    return stop


def hung_up(scene: Scene, phase: str) -> None:
    """The terminal is closed (SIGHUP)."""
    driver = scene.drive(scene.moment_in(phase, "SIGHUP"))
    assert driver.wait() != 1, driver.text[-2000:]
    scene.hit()


def nobody_reads(scene: Scene, phase: str) -> None:
    """`pawl run ... | head -1`: whoever read the output has gone."""
    driver = scene.drive(deaf=True)
    code = driver.wait()
    finished = len(scene.folder.rounds()) == 3 and scene.state() == scene.calm_state()
    assert code != 0 or finished, "a run that ended early says so with its exit code"
    scene.hit()


def two_drivers(scene: Scene, phase: str) -> None:
    """A second driver on the run of a living one is refused, naming it; the first is not disturbed."""
    first = scene.drive(scene.moment_in(phase, "hold"))
    first.wait_until_fired()
    second = scene.drive()
    assert second.wait() == 75, second.text[-2000:]
    assert str(first.pid) in second.text
    scene.hit()
    first.go_on()
    assert first.wait() == 0, first.text[-3000:]


def suspended(scene: Scene, phase: str) -> None:
    """A laptop that sleeps (SIGSTOP): the run belongs to the suspended driver and goes on with it."""
    driver = scene.drive(scene.moment_in(phase, "SIGSTOP"))
    driver.wait_until_fired()
    other = scene.drive()
    assert other.wait() == 75, other.text[-2000:]
    scene.hit()
    driver.signal(signal.SIGCONT)
    assert driver.wait() == 0, driver.text[-3000:]


def lost_its_lease(scene: Scene, phase: str) -> None:
    """Another driver took the run over while this one slept: it must stop and commit nothing more."""
    driver = scene.drive(Moment("phase_started", 1, phase, action="hold"))
    driver.wait_until_fired()
    before = scene.folder.journal.read_bytes()
    latest = max(scene.folder.epochs.glob("*.json"))
    held = json.loads(latest.read_text(encoding="utf-8"))
    later = held["epoch"] + 1
    claim = held | {"epoch": later, "pid": 2**22 - 1}
    latest.with_name(f"{later:0{len(latest.stem)}d}.json").write_text(
        json.dumps(claim), encoding="utf-8"
    )
    driver.go_on()
    code = driver.wait()
    assert code == 75, f"exit code {code}:\n{driver.text[-3000:]}"
    assert scene.folder.journal.read_bytes() == before, "it committed without the lease"
    scene.hit()


def claim_differently(scene: Scene, **changes: object) -> None:
    """Change what the last driver said of itself, wherever it said it."""
    claim = max(scene.folder.epochs.glob("*.json"))
    for path in (scene.folder.driver, claim, claim.with_suffix(".beat")):
        if path.exists():
            held = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps(held | changes), encoding="utf-8")


def pid_used_again(scene: Scene, phase: str) -> None:
    """The dead driver's process number belongs to somebody else by now."""
    scene.kill_at(scene.moment_in(phase))
    claim_differently(scene, pid=os.getpid())


def died_elsewhere(scene: Scene, phase: str) -> None:
    """The driver died on another host, whose processes nobody here can see: its heartbeat stands still."""
    scene.kill_at(scene.moment_in(phase))
    claim_differently(scene, host="node-of-old", boot_id="of-the-node-of-old")
    assert "node-of-old" in scene.finish().text


def killed_under_a_supervisor(scene: Scene, phase: str) -> None:
    """The driver of `pawl run --supervise` is killed: the run finishes without anybody typing anything."""
    runs, name = scene.folder.path.parent, scene.folder.path.name
    arguments = ["run", str(scene.config), "--runs-dir", str(runs), "--name", name, "--supervise"]
    supervisor = scene.command(arguments)
    deadline = time.monotonic() + 60
    wanted = f'"phase":"{phase}"'
    while time.monotonic() < deadline:
        text = (
            scene.folder.events.read_text(encoding="utf-8") if scene.folder.events.exists() else ""
        )
        if wanted in text.replace(" ", ""):
            break
        time.sleep(0.01)
    held = json.loads(scene.folder.driver.read_text(encoding="utf-8"))
    assert held["pid"] != supervisor.pid
    os.kill(held["pid"], signal.SIGKILL)
    scene.hit()
    assert supervisor.wait() == 0, supervisor.text[-3000:]
    epoch = json.loads(scene.folder.driver.read_text(encoding="utf-8"))["epoch"]
    assert epoch > held["epoch"], "another driver finished the run"


EVERY_PHASE = PHASES
