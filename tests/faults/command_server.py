"""A process that has imported Pawl once and forks a `pawl` command for each request: a start in milliseconds.

One JSON object per line on stdin, one answer per line on stdout. `{"start": {...}}` answers `{"pid": n}`;
`{"wait": pid, "seconds": s}` answers `{"code": n}`: minus the signal's number after a signal, null while it runs.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from orchestrator.config.run_config import RunConfig
from tests.faults.scene import small_config
from tests.faults.trigger import arm

WARM = (
    "pandas",
    "pyarrow.parquet",
    "orchestrator.cli.app",
    "orchestrator.config.files",
    "orchestrator.inspect.views.display",
    "orchestrator.runs.state",
    "orchestrator.driver.launch",
    "orchestrator.plan.lines",
    "orchestrator.runs.report",
    "orchestrator.runs.naming",
    "pyarrow.compute",
    "pyarrow.dataset",
    "workers.rollout.engines.fake",
    "workers.training.engines.fake",
)
"""What a driver imports sooner or later, and most of what a short run spends its time with."""


def serve() -> None:
    """Answer requests until stdin ends."""
    for name in WARM:
        importlib.import_module(name)
    RunConfig.model_validate(small_config(Path("unused")))  # finds the components that it names
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            answer: dict[str, Any] = {"pid": _fork(request["start"])}
        else:
            answer = {"code": _wait(int(request["wait"]), float(request["seconds"]))}
        print(json.dumps(answer), flush=True)  # noqa: T201 - the answer of this program


def _fork(start: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _become(start)
        code = _command(start["arguments"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _become(start: dict[str, Any]) -> None:
    os.setsid()
    log = os.open(start["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(_pipe_without_reader() if start["deaf"] else log, 1)
    os.dup2(log, 2)
    os.environ.update(start["env"])
    time.tzset()
    os.chdir(start["cwd"])
    for name, value in start["limits"].items():
        number = getattr(resource, f"RLIMIT_{name}")
        resource.setrlimit(number, (value, resource.getrlimit(number)[1]))
    if start["moment"] is not None:
        arm(start["moment"])


def _pipe_without_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def _command(arguments: list[str]) -> int:
    from orchestrator.cli.app import main

    sys.argv = ["pawl", *arguments]
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _wait(pid: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.01)


if __name__ == "__main__":
    serve()
