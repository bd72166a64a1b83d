"""No wait without an end: every call in the packages that can block has a timeout, or a reason why not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("orchestrator", "workers", "policies")

BOUNDED_BY_ARGUMENT = {
    # call or method -> how many positional arguments make the timeout part of the call
    "ray.get": 99,
    "ray.wait": 99,
    "wait": 1,
    "wait_for": 2,
    "join": 1,
    "acquire": 2,
    "result": 1,
    "communicate": 2,
    "get": 2,
    "put": 3,
    "run": 99,
    "call": 99,
    "check_call": 99,
    "check_output": 99,
    "select": 4,
    "urlopen": 3,
    "create_connection": 2,
    "Client": 99,
    "AsyncClient": 99,
    "waitpid": 2,
}
SUBPROCESS = {"run", "call", "check_call", "check_output"}
HTTP = {"Client", "AsyncClient", "get", "post", "put", "request", "stream", "urlopen"}
SOCKET = {"recv", "recv_into", "recvfrom", "recvmsg", "accept", "connect", "sendall", "makefile"}
"""Bounded when the same file gives the socket a timeout (`settimeout`), else not."""
ALWAYS = {"wait_for", "join", "acquire", "result", "communicate", "waitpid"}
TIMEOUTS = {"timeout", "timeout_seconds", "timeout_s", "blocking"}

ALLOWED: dict[tuple[str, str], str] = {
    (
        "orchestrator/tracking/mlflow_client.py",
        "lock.acquire()",
    ): "`SendLock` asks the system without waiting",
    ("orchestrator/tracking/push.py", "self._lock.acquire()"): (
        "`SendLock` asks the system without waiting"
    ),
    ("workers/sandbox/probe.py", "spawn(plan.command(uid), plan.hello, keeper).result()"): (
        "the thread behind it asks the keeper, whose socket times out after ANSWER_SECONDS"
    ),
    ("workers/sandbox/sandbox.py", "future.result()"): (
        "the thread behind it asks the keeper, whose socket times out after ANSWER_SECONDS"
    ),
    (
        "orchestrator/tracking/push.py",
        "self._state.wait_for(lambda: self._poked or self._stopping)",
    ): ("the sending thread has nothing to send; it is a daemon, and the end of the run wakes it"),
    ("orchestrator/tracking/server.py", "child.wait()"): (
        "`pawl ui` serves until a person ends it with Ctrl-C"
    ),
    ("workers/rollout/multi_turn/thread_pool.py", "self._waiting.get()"): (
        "an idle daemon thread waits for work; `release` ends it, and the worker does not wait for it"
    ),
    (
        "workers/judge/backends/openai.py",
        "thread.submit(lambda: asyncio.run(work())).result()",
    ): ("`_Batch` bounds each request by judges.backend.timeout_seconds and the number of tries"),
    (
        "workers/judge/backends/openai.py",
        "httpx.AsyncClient(timeout=None, limits=limits, trust_env=not local)",
    ): ("`_Batch` bounds the whole request; httpx's own limit would start anew with each read"),
    ("workers/verify/isolated_verifier.py", "self.submit([(prompt, trajectory)]).result()"): (
        "the thread kills its child after verifiers[].timeout_seconds and then answers"
    ),
    ("workers/verify/consistency.py", "future.result()"): (
        "one answer of the verifier's thread, which bounds it with verifiers[...].timeout_seconds"
    ),
    ("workers/verify/worker.py", "future.result()"): (
        "the verifier's thread kills its child after verifiers[].timeout_seconds for each item"
    ),
}
"""(file, source of the call) -> why it cannot wait for ever. An entry that matches nothing fails."""

HELD: dict[tuple[str, str], str] = {
    ("workers/isolation/child_process.py", "self._process.wait(_DEATH_SECONDS)"): (
        "one thread ends the child, the others wait until it is gone; bounded"
    ),
    ("workers/rollout/tools/function.py", "starting.result(_SPAWN_SECONDS)"): (
        "processes are started one at a time; bounded"
    ),
    ("workers/sandbox/keeper.py", "self._channel.recv(65536)"): (
        "one question to the keeper at a time; its socket times out after ANSWER_SECONDS"
    ),
}
"""The same for calls that are made while a lock is held."""


@dataclass(frozen=True)
class Wait:
    """A call that can block and carries no timeout."""

    path: str
    line: int
    source: str

    @property
    def key(self) -> tuple[str, str]:
        return (self.path, self.source)


def waits_in(path: str, text: str) -> Iterator[Wait]:
    """Every call of `text` that can wait for something else and has no timeout of its own."""
    tree = ast.parse(text)
    queues = _queues(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _can_wait(node, text, queues):
            yield Wait(path, node.lineno, ast.unparse(node)[:120])


def _queues(tree: ast.Module) -> dict[str, bool]:
    """Names that hold a queue, and whether it may be full: only their `.get()` and `.put()` are waits."""
    found: dict[str, bool] = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            text = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else ""
            text += ast.unparse(node.value) if node.value is not None else ""
            if "Queue" in text:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {ast.unparse(t): "SimpleQueue" not in text for t in targets}
        elif (
            isinstance(node, ast.arg)
            and node.annotation
            and "Queue" in ast.unparse(node.annotation)
        ):
            found[node.arg] = "SimpleQueue" not in ast.unparse(node.annotation)
    return found


def _can_wait(node: ast.Call, text: str, queues: dict[str, bool]) -> bool:
    if not isinstance(node.func, ast.Attribute):
        return False
    name, owner = node.func.attr, ast.unparse(node.func.value)
    if not _is_wait(name, owner, node, text, queues):
        return False
    if name in SOCKET:
        return f"{owner}.settimeout(" not in text and f"{owner}.setblocking(False)" not in text
    if any(k.arg in TIMEOUTS and ast.unparse(k.value) != "None" for k in node.keywords):
        return False
    first = BOUNDED_BY_ARGUMENT.get(f"{owner}.{name}", BOUNDED_BY_ARGUMENT.get(name, 99))
    return len(node.args) < first


def _is_wait(name: str, owner: str, node: ast.Call, text: str, queues: dict[str, bool]) -> bool:
    if owner == "ray":
        return name in ("get", "wait")
    if owner == "subprocess":
        return name in SUBPROCESS
    if owner in ("httpx", "requests", "urllib.request"):
        return name in HTTP
    if owner in ("os", "select", "socket"):
        return name in ("waitpid", "wait", "select", "create_connection")
    if name in ("get", "put"):  # putting into a SimpleQueue never waits
        return owner in (queues if name == "get" else {q for q in queues if queues[q]})
    if name == "join":  # a thread's or a process's; text and path joins take an argument
        return not node.args and not owner.endswith(("path", "'", '"'))
    if name in SOCKET:
        return "import socket" in text and name not in ("connect",)
    return name in ALWAYS or name == "wait"


def waits_under_a_lock(path: str, text: str) -> Iterator[Wait]:
    """Every call that may take long and is made while a lock of this process is held.

    A `with lock:` has no timeout. It ends when the holder lets go, so no holder may wait for anything.
    """
    tree = ast.parse(text)
    queues = _queues(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.With):
            continue
        names = [ast.unparse(item.context_expr) for item in node.items]
        if not any(name.rpartition(".")[2] in _locks(tree) for name in names):
            continue
        for inner in (n for statement in node.body for n in ast.walk(statement)):
            if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute):
                name, owner = inner.func.attr, ast.unparse(inner.func.value)
                waits_for_itself = owner in names  # a condition gives its lock back while it waits
                if waits_for_itself:
                    continue
                if (owner, name) == ("time", "sleep") or _is_wait(name, owner, inner, text, queues):
                    yield Wait(path, inner.lineno, ast.unparse(inner)[:120])


def _locks(tree: ast.Module) -> set[str]:
    """Last names of what holds a lock or a condition."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            made = ast.unparse(node.value)
            if made in {f"threading.{kind}()" for kind in ("Lock", "RLock", "Condition")}:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {ast.unparse(t).rpartition(".")[2] for t in targets}
    return found


def _sources() -> list[Path]:
    return [p for top in PACKAGES for p in sorted((ROOT / top).rglob("*.py"))]


@pytest.fixture(scope="module")
def found() -> list[Wait]:
    return [
        wait
        for path in _sources()
        for wait in waits_in(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    ]


def test_every_wait_has_a_timeout(found: list[Wait]) -> None:
    endless = [f"{w.path}:{w.line}: {w.source}" for w in found if w.key not in ALLOWED]
    assert endless == [], "give it a timeout whose message names what waits for what"


def test_no_lock_is_held_over_a_wait() -> None:
    held = [
        wait
        for path in _sources()
        for wait in waits_under_a_lock(
            str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        )
    ]
    assert [f"{w.path}:{w.line}: {w.source}" for w in held if w.key not in HELD] == []
    assert [key for key in HELD if key not in {w.key for w in held}] == []


def test_every_exception_still_stands_for_a_call(found: list[Wait]) -> None:
    keys = {wait.key for wait in found}
    assert [key for key in ALLOWED if key not in keys] == []
    assert all(len(reason) > 20 for reason in ALLOWED.values())


@pytest.mark.parametrize(
    "source",
    [
        "import ray\nray.get(ref)",
        "import ray\nray.wait([ref])",
        "ray.get(ref, timeout=None)",
        "subprocess.run(['x'])",
        "process.communicate()",
        "process.wait()",
        "thread.join()",
        "future.result()",
        "lock.acquire()",
        "event.wait()",
        "condition.wait_for(done)",
        "import queue\nq = queue.Queue()\nq.get()",
        "def f(q: Queue[int]):\n    q.put(1)",
        "select.select([a], [], [])",
        "os.wait()",
        "import socket\nlistener.accept()",
        "import socket\nsocket.create_connection(('h', 1))",
        "httpx.Client()",
        "httpx.get('http://h')",
        "urllib.request.urlopen('http://h')",
        "requests.post('http://h')",
    ],
)
def test_the_check_sees_a_wait_without_an_end(source: str) -> None:
    assert list(waits_in("x.py", source))


@pytest.mark.parametrize(
    "source",
    [
        "ray.get(ref, timeout=3)",
        "subprocess.run(['x'], timeout=3)",
        "process.wait(3)",
        "thread.join(timeout=left)",
        "future.result(3)",
        "lock.acquire(timeout=3)",
        "lock.acquire(blocking=False)",
        "', '.join(names)",
        "os.path.join(a, b)",
        "settings.get('key')",
        "import socket\ns.settimeout(3)\ns.recv(1)",
        "select.select([a], [], [], 3)",
        "httpx.Client(timeout=3)",
    ],
)
def test_the_check_passes_a_wait_with_an_end(source: str) -> None:
    assert list(waits_in("x.py", source)) == []


def test_the_check_sees_a_wait_under_a_lock() -> None:
    begin = "import threading\nlock = threading.Lock()\nwith lock:\n    "
    assert list(waits_under_a_lock("x.py", begin + "child.wait(3)"))
    assert list(waits_under_a_lock("x.py", begin + "time.sleep(1)"))
    assert list(waits_under_a_lock("x.py", begin + "names.append(1)")) == []
    condition = "import threading\nc = threading.Condition()\nwith c:\n    c.wait_for(done, 3)"
    assert list(waits_under_a_lock("x.py", condition)) == []
