"""A run to break: starts real `pawl` drivers on it, breaks them or its files, resumes, and compares with peace."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orchestrator.inspect.audit.run import audit
from orchestrator.runs.events import read_events
from orchestrator.runs.folder import RunFolder
from policies.storage.fake_model import write_fake_model

ROOT = Path(__file__).parents[2]
PHASES = ("draw", "collect", "train", "publish", "sync", "evaluate", "accept")
WAIT_SECONDS = float(os.environ.get("PAWL_FAULT_WAIT_SECONDS", "200"))
"""Longest wait for a driver: a run that does not end is as bad as one that is lost."""
TAG = "PAWL_FAULT_SCENE"
"""Environment variable that every process of a scene inherits: what is left over is found by it."""


@dataclass(frozen=True)
class Moment:
    """When something happens in a driver. Example: `Moment("phase_started", 1, "collect", delay=0.02)`.

    `event` is an event's kind, `journal` (right before the line of a phase), `clock` (the nth look at it),
    `operation` (before the nth change of a file) or `storage` (from then on every change fails with `error`).
    """

    event: str
    round: int | None = None
    phase: str | None = None
    nth: int = 1
    delay: float = 0.0
    action: str = "SIGKILL"
    """Signals joined by `+`; `SIGKILL@rollout`: to a worker of that group; `hold` (until the fired file
    is gone); or `note` (only say that it was reached)."""
    error: int = 0

    def but(self, action: str) -> Moment:
        """The same moment with another action."""
        return Moment(self.event, self.round, self.phase, self.nth, self.delay, action, self.error)


class CommandServer:
    """Forks `pawl` commands."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("command_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._process:
            self._process.kill()


class StillRunningError(AssertionError):
    """A driver did not end in time: nothing is proved, neither loss nor the lack of it."""


@dataclass
class Driver:
    """A `pawl` process that was started."""

    command_server: CommandServer
    pid: int
    log: Path
    fired: Path

    def wait(self, seconds: float = WAIT_SECONDS) -> int:
        """Its exit code, minus the number of the signal that ended it."""
        code = self.poll(seconds)
        if code is None:
            raise StillRunningError(f"still running after {seconds} s:\n{self.text[-3000:]}")
        return code

    def poll(self, seconds: float = 0.0) -> int | None:
        """The same, None while it runs."""
        code: int | None = self.command_server.ask({"wait": self.pid, "seconds": seconds})["code"]
        return code

    @property
    def text(self) -> str:
        """What it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def wait_until_fired(self, seconds: float = WAIT_SECONDS) -> None:
        """Return when its moment has come."""
        deadline = time.monotonic() + seconds
        while not self.fired.exists():
            assert time.monotonic() < deadline, f"the moment never came:\n{self.text[-2000:]}"
            code = self.poll(0.01)
            assert code is None or self.fired.exists(), f"ended with {code}:\n{self.text[-2000:]}"

    def go_on(self) -> None:
        """End a `hold`."""
        self.fired.unlink()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)


Tree = dict[str, Any]


def small_config(model: Path) -> Tree:
    """Two rounds of two shards on the scripted engines, slow enough that a phase has an inside."""
    arithmetic = {"type": "arithmetic", "low": 2, "high": 6, "held_out": 4}
    return {
        "rounds": 2,
        "policy": {"model": str(model), "dtype": "float32"},
        "prompts": {
            "train": arithmetic | {"split": "train"},
            "held_out": arithmetic | {"split": "held_out"},
            "per_round": 6,
        },
        "rollout": {
            "engine": {"type": "fake", "seconds_per_call": 0.01},
            "samples_per_prompt": 4,
            "prompts_per_shard": 3,
            "max_tokens": 48,
        },
        "verifiers": [{"type": "numeric_match"}],
        "preferences": {"type": "right_vs_wrong"},
        "training": {"engine": {"type": "fake", "seconds_per_step": 0.01}, "batch_size": 2},
        "evaluation": {"samples_per_prompt": 2},
        "acceptance": {"type": "always"},  # each round goes on from the one before
        "cluster": {"backend": "inline"},
        "tracking": {"enabled": False},
    }


def merged(base: Tree, changes: Mapping[str, Any]) -> Tree:
    """`base` with `changes` laid over it, section by section; a section with a `type` replaces the other."""
    found = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = merged(found[key], value) if both and "type" not in value else value
    return found


@dataclass
class Scene:
    """One run folder with its config, and everything that is done to it."""

    command_server: CommandServer
    home: Path
    model: Path
    seed: int = 0
    changes: Mapping[str, Any] = field(default_factory=dict)
    run_name: str = "run"
    env: dict[str, str] = field(default_factory=dict)
    calm: Scene | None = None
    """The undisturbed run of the same config."""
    num_fired: int = 0
    """Faults that really happened."""

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        self.random = random.Random(self.seed)
        self.tag = f"{os.getpid()}-{self.home.name}-{self.random.getrandbits(48):x}"
        self.runs = self.home / "runs"
        self.config = self.home / "config.yaml"
        self.write_config(self.changes)
        self._drivers = 0

    @property
    def folder(self) -> RunFolder:
        """The run."""
        return RunFolder(self.runs / self.run_name)

    def write_config(self, changes: Mapping[str, Any]) -> None:
        """Write the config with `changes` over the small one."""
        tree = merged(small_config(self.model), changes)
        self.config.write_text(json.dumps(tree), encoding="utf-8")

    def command(
        self,
        arguments: Sequence[str],
        moment: Moment | None = None,
        *,
        env: Mapping[str, str] | None = None,
        limits: Mapping[str, int] | None = None,
        deaf: bool = False,
    ) -> Driver:
        """Start `pawl` with arguments; `deaf`: nobody reads what it prints."""
        self._drivers += 1
        log = self.home / f"driver-{self._drivers}.log"
        fired = self.home / f"fired-{self._drivers}"
        start = {
            "arguments": list(arguments),
            "env": {TAG: self.tag, **self.env, **(env or {})},
            "cwd": str(self.home),
            "log": str(log),
            "limits": dict(limits or {}),
            "deaf": deaf,
            "moment": None if moment is None else asdict(moment) | {"fired": str(fired)},
        }
        pid = self.command_server.ask({"start": start})["pid"]
        return Driver(self.command_server, pid, log, fired)

    def drive(self, moment: Moment | None = None, **how: Any) -> Driver:
        """Start the run, or go on with it."""
        if self.folder.identity.exists():
            return self.command(["resume", str(self.folder.path)], moment, **how)
        runs, name = str(self.folder.path.parent), self.folder.path.name
        return self.command(
            ["run", str(self.config), "--runs-dir", runs, "--name", name], moment, **how
        )

    def moment_in(self, phase: str, action: str = "SIGKILL") -> Moment:
        """A random moment of a phase: at its start, somewhere inside, before its journal line, or right after it."""
        seconds = (self.calm or self).phase_seconds()
        rounds = [index for index, name in seconds if name == phase]
        index = self.random.choice(rounds)
        how = self.random.choice(["inside", "inside", "journal", "phase_finished"])
        if how != "inside":
            return Moment(how, index, phase, action=action)
        delay = self.random.uniform(0.0, seconds[index, phase])
        return Moment("phase_started", index, phase, delay=delay, action=action)

    def refused(self, code: int, *words: str, **how: Any) -> Driver:
        """Drive, and expect this exit code and these words."""
        driver = self.drive(**how)
        found = driver.wait()
        assert found == code, f"exit code {found}, expected {code}:\n{driver.text[-3000:]}"
        flat = " ".join(driver.text.split())
        missing = [word for word in words if word not in flat]
        assert missing == [], f"the message does not say {missing}:\n{driver.text[-3000:]}"
        return driver

    def kill_at(self, moment: Moment) -> None:
        """Drive until the moment kills the driver; the fault counts only when it really hit."""
        driver = self.drive(moment)
        code = driver.wait()
        assert driver.fired.exists(), f"the moment never came:\n{driver.text[-2000:]}"
        assert code == -signal.SIGKILL, f"ended with {code} instead:\n{driver.text[-3000:]}"
        self.num_fired += 1

    def kill_at_operation(self, most: int) -> None:
        """Kill the driver right before one of its next changes of a file, at most the `most`-th one."""
        nth = self.random.randint(1, most)
        while True:
            driver = self.drive(Moment("operation", nth=nth))
            code = driver.wait()
            if driver.fired.exists():
                assert code == -signal.SIGKILL, f"ended with {code}:\n{driver.text[-3000:]}"
                return self.hit()
            assert code == 0, f"ended with {code}:\n{driver.text[-3000:]}"
            if self.num_fired:  # there were fewer changes left than that: the run is done
                return None
            shutil.rmtree(self.folder.path)
            nth = max(1, nth // 2)

    def finish(self, **how: Any) -> Driver:
        """Drive to the end without any further fault."""
        driver = self.drive(**how)
        code = driver.wait()
        assert code == 0, f"exit code {code}:\n{driver.text[-4000:]}"
        return driver

    def hit(self) -> None:
        """Count a fault that happened."""
        self.num_fired += 1

    def check(self) -> None:
        """The run is whole, nothing is left behind, and no process of it lives."""
        report = audit(self.folder, deep=True)
        problems = [f"{check.name}: {text}" for check in report for text in check.problems]
        assert problems == [], problems
        left = [note for check in report for note in check.notes if "left behind" in note]
        assert left == [], left
        alive = self.processes()
        assert alive == [], f"processes that outlived the run: {alive}"

    def processes(self) -> list[int]:
        """Processes of this scene that live, drivers and whatever they started."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                environ = (path / "environ").read_bytes()
                state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:  # it ended while we looked
                continue
            if f"{TAG}={self.tag}".encode() in environ and state != "Z":
                found.append(int(path.name))
        return found

    def state(self) -> dict[str, Any]:
        """Everything that a run decides, without clocks and paths."""
        run = self.folder
        found: dict[str, Any] = {"journal": run.journal.read_text(encoding="utf-8")}
        for index in run.rounds():
            root = run.round(index).path
            for marker in sorted(root.rglob("*.parquet.json")):
                if "attempts" not in marker.parts:
                    value = json.loads(marker.read_text(encoding="utf-8"))
                    name = f"{index}/{marker.relative_to(root)}"
                    found[name] = (value["content_digest"], value["num_rows"])
        for path in sorted(run.policies.glob("*/*.safetensors")):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(run.policies))] = digest
        return found

    def calm_state(self) -> dict[str, Any]:
        """What the undisturbed run decided."""
        assert self.calm is not None
        return self.calm.state()

    def phase_seconds(self) -> dict[tuple[int, str], float]:
        """How long each phase took."""
        events = read_events(self.folder.events)
        return {
            (e.round, e.phase): float(str(e.detail["seconds"]))
            for e in events
            if e.kind.value == "phase_finished" and e.round is not None and e.phase is not None
        }


class Peace:
    """Undisturbed runs, one per config: what every disturbed one is compared with."""

    def __init__(self, command_server: CommandServer, home: Path) -> None:
        self.command_server, self.home = command_server, home
        self.model = write_fake_model(home / "model", skill=0.3)
        self._known: dict[str, Scene] = {}

    def scene(self, changes: Mapping[str, Any]) -> Scene:
        """The undisturbed run of the small config with `changes`."""
        key = hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:12]
        if key not in self._known:
            scene = Scene(
                self.command_server, self.home / f"peace-{key}", self.model, changes=changes
            )
            scene.finish()
            scene.check()
            self._known[key] = scene
        return self._known[key]

    def disturbed(self, home: Path, changes: Mapping[str, Any], seed: int) -> Scene:
        """A fresh scene to break, with its undisturbed twin."""
        calm = self.scene(changes)
        return Scene(self.command_server, home, self.model, seed=seed, changes=changes, calm=calm)
