"""Faults around a run: edited configs, changed data, other versions, odd places and clocks, a dead tracking server."""

from __future__ import annotations

import http.server
import json
import random
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.fault import WORK, Fault
from tests.faults.inject_files import edit_json
from tests.faults.scene import Moment, Scene


def config_edited(scene: Scene, phase: str) -> None:
    """config.json of the run is edited between two starts: refused, naming it; undone, the run goes on."""
    scene.kill_at(scene.moment_in(phase))
    kept = scene.folder.config.read_bytes()
    tree = json.loads(kept)
    tree["training"]["learning_rate"] = 0.5
    scene.folder.config.write_text(json.dumps(tree), encoding="utf-8")
    scene.refused(3, "config.json")
    scene.folder.config.write_bytes(kept)
    scene.hit()


def code_upgraded(scene: Scene, phase: str) -> None:
    """The run was written by a newer Pawl: refused with both versions; with the right one it goes on."""
    scene.kill_at(scene.moment_in(phase))
    kept = scene.folder.identity.read_bytes()
    edit_json(scene.folder.identity, schema_version=99)
    scene.refused(3, "99")
    scene.folder.identity.write_bytes(kept)
    scene.hit()


def write_prompts(path: Path, *, changed: bool = False) -> None:
    """The multiplication table as a file, in an order of its own."""
    pairs = [(a, b) for a in range(2, 7) for b in range(2, 7)]
    random.Random(1).shuffle(pairs)
    rows: list[dict[str, object]] = [
        {"id": f"{a}x{b}", "prompt": f"What is {a} times {b}?", "answer": a * b} for a, b in pairs
    ]
    long = "Think before you answer. " * 8 + "What is 7 times 7?"
    rows.append({"id": "long", "prompt": long, "answer": 49})
    if changed:
        rows[0]["answer"] = -1
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def data_changed(scene: Scene, phase: str) -> None:
    """The prompt file is edited between two starts: refused; restored, the run goes on."""
    scene.kill_at(scene.moment_in(phase))
    path = Path(scene.env["PAWL_FAULT_PROMPTS"])
    write_prompts(path, changed=True)
    driver = scene.drive()
    assert driver.wait() in (2, 3), driver.text[-2000:]
    assert "prompts.train" in driver.text, driver.text[-2000:]
    write_prompts(path)
    scene.hit()


def data_gone(scene: Scene, phase: str) -> None:
    """The prompt file is gone at the resume: refused, naming it; restored, the run goes on."""
    scene.kill_at(scene.moment_in(phase))
    path = Path(scene.env["PAWL_FAULT_PROMPTS"])
    path.unlink()
    scene.refused(2, path.name)
    write_prompts(path)
    scene.hit()


def under(**env: str) -> Callable[[Scene, str], None]:
    """Killed under one environment, resumed under another."""

    def inject(scene: Scene, phase: str) -> None:
        scene.env.update(env)
        scene.kill_at(scene.moment_in(phase))
        for name in env:
            scene.env[name] = {"TZ": "America/Los_Angeles", "PYTHONHASHSEED": "7"}.get(
                name, env[name]
            )

    return inject


def odd_place(name: str) -> Callable[[Scene, str], None]:
    """The run folder lies where nobody expects it."""

    def inject(scene: Scene, phase: str) -> None:
        scene.runs = scene.home / name
        scene.kill_at(scene.moment_in(phase))
        assert name in str(scene.folder.path)

    return inject


def moved(scene: Scene, phase: str) -> None:
    """The run folder is moved to another place (another mount point) between two starts."""
    scene.kill_at(scene.moment_in(phase))
    target = scene.home / "runs" / "elsewhere"
    shutil.move(scene.folder.path, target)
    scene.run_name = "elsewhere"


def few_files(scene: Scene, phase: str) -> None:
    """A limit of 24 open files: it works, or it ends with words and a code that say so; without it the run goes on."""
    driver = scene.drive(limits={"NOFILE": scene.random.choice([12, 16, 24])})
    found = driver.wait()
    assert found in (0, 1, 75), driver.text[-3000:]
    if found:
        assert "Too many open files" in driver.text or "open files" in driver.text
    scene.hit()


def clock_jumps(scene: Scene, phase: str) -> None:
    """The wall clock jumps back by a day and forth again within the run, and between two starts."""
    driver = scene.drive(Moment("clock", action="note"))
    assert driver.wait() == 0, driver.text[-3000:]
    assert driver.fired.exists()
    scene.hit()


# --- tracking -------------------------------------------------------------------------------------


class _Refusing(http.server.BaseHTTPRequestHandler):
    """Answers every request with 500."""

    num_requests = 0

    def _answer(self) -> None:
        type(self).num_requests += 1
        self.send_error(500, "the database is on fire")

    do_GET = do_POST = do_PATCH = _answer

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def server_of_errors() -> Iterator[str]:
    """A tracking server that is broken."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(timeout=10)
        server.server_close()


def _track(scene: Scene, uri: str) -> None:
    tracking = {"enabled": True, "uri": uri, "timeout_seconds": 1.0}
    scene.write_config({**scene.changes, "tracking": tracking})


def tracking_broken(scene: Scene, phase: str) -> None:
    """MLflow answers 500 to everything: the run does what it does without it."""
    with server_of_errors() as uri:
        _track(scene, uri)
        before = _Refusing.num_requests
        scene.finish()
        assert _Refusing.num_requests > before, "the server was asked"
    scene.hit()


def tracking_down(scene: Scene, phase: str) -> None:
    """Nobody listens at MLflow's address."""
    _track(scene, "http://127.0.0.1:9")
    driver = scene.finish()
    assert "127.0.0.1:9" in driver.text or "tracking" in driver.text.lower()
    scene.hit()


def tracking_locked(scene: Scene, phase: str) -> None:
    """Another program holds the lock of MLflow's SQLite file all the time."""
    path = scene.home / "mlflow.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE held (x)")
        other.commit()
        other.execute("BEGIN EXCLUSIVE")
        _track(scene, f"sqlite:///{path}")
        scene.finish()
        other.rollback()
    scene.hit()


ROWS = [
    Fault("config edited", WORK, config_edited, "exit 3, names it", short=False),
    Fault(
        "written by a newer Pawl", WORK, code_upgraded, "exit 3, names both versions", short=False
    ),
    Fault("prompts edited", WORK, data_changed, "refused", needs="prompts"),
    Fault(
        "prompts gone",
        WORK,
        data_gone,
        "exit 2, names the file",
        needs="prompts",
        short=False,
    ),
    Fault("locale C", WORK, under(LC_ALL="C", PYTHONUTF8="0"), "same result"),
    Fault(
        "other time zone at the resume",
        WORK,
        under(TZ="Pacific/Kiritimati"),
        "same result",
        short=False,
    ),
    Fault(
        "other hash seed at the resume",
        WORK,
        under(PYTHONHASHSEED="1"),
        "same result",
        short=False,
    ),
    Fault("clock jumps", ("any",), clock_jumps, "same result"),
    Fault(
        "spaces and unicode in the path",
        WORK,
        odd_place("läuft 走 '#1'"),
        "same result",
        short=False,
    ),
    Fault("long path", WORK, odd_place("/".join(["n" * 100] * 4)), "same result", short=False),
    Fault("run folder moved", WORK, moved, "same result", short=False),
    Fault("few open files", ("any",), few_files, "works or says so; resumes"),
    Fault(
        "MLflow answers 500",
        ("any",),
        tracking_broken,
        "same result",
        needs="mlflow",
        short=False,
    ),
    Fault(
        "MLflow down",
        ("any",),
        tracking_down,
        "same result",
        needs="mlflow",
        short=False,
    ),
    Fault(
        "MLflow's database locked",
        ("any",),
        tracking_locked,
        "same result",
        needs="mlflow",
        short=False,
    ),
]
"""The rows of the table that need nothing but odd surroundings."""
