"""The sandbox with real processes: statuses, sessions, warm processes, failures of ours, and what is left behind."""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from policies.base.errors import ConfigurationError, SandboxUnavailableError
from tests.attacks.test_battery import BACKENDS, need
from tests.attacks.victims import ROOT, descendants, ready, tagged
from workers.sandbox.keeper import keeper
from workers.sandbox.policy import make_plan, next_uid
from workers.sandbox.process import spawn
from workers.sandbox.sandbox import Sandbox
from workers.sandbox.settings import SandboxBackend, SandboxSettings, SandboxStatus

LIMITS = SandboxSettings(wall_seconds=20, cpu_seconds=20, num_warm=1)


@pytest.fixture(scope="module", params=BACKENDS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    need(request.param)
    with Sandbox(LIMITS.model_copy(update={"backend": request.param})) as opened:
        assert opened.prepare() == request.param
        yield opened


def limited(sandbox: Sandbox, **limits: object) -> Sandbox:
    return Sandbox(sandbox.settings.model_copy(update=limits))


def test_a_program_reads_its_input_and_prints(sandbox: Sandbox) -> None:
    result = sandbox.run("import sys\nprint(sum(map(int, sys.stdin)))", stdin=b"2\n3\n")
    assert (result.status, result.stdout, result.error) == (SandboxStatus.OK, "5\n", "")


def test_input_larger_than_any_pipe_arrives_whole(sandbox: Sandbox) -> None:
    result = sandbox.run("import sys; print(len(sys.stdin.read()))", stdin=b"x" * 3_000_000)
    assert result.stdout == "3000000\n"


def test_a_traceback_shows_the_code_and_nothing_of_ours(sandbox: Sandbox) -> None:
    result = sandbox.run("def f():\n    return 1 / 0\nf()")
    assert result.status is SandboxStatus.RAISED
    assert "return 1 / 0" in result.error
    assert result.error.endswith("ZeroDivisionError: division by zero")
    assert "launcher" not in result.error


def test_ordinary_programs_work(sandbox: Sandbox) -> None:
    code = """
import asyncio, collections, dataclasses, decimal, json, math, random, re, threading
from concurrent.futures import ThreadPoolExecutor
@dataclasses.dataclass
class P:
    x: int
async def wait():
    await asyncio.sleep(0)
    return P(1)
print(asyncio.run(wait()), json.dumps({'a': math.pi > 3}), re.sub('a', 'b', 'a'))
with ThreadPoolExecutor(2) as pool:
    print(sorted(pool.map(abs, [-1, 2])))
exit()
"""
    result = sandbox.run(code)
    assert (result.status, result.stdout) == (
        SandboxStatus.OK,
        'P(x=1) {"a": true} b\n[1, 2]\n',
    ), result.error


def test_the_order_of_a_set_is_the_same_each_time(sandbox: Sandbox) -> None:
    runs = {sandbox.run("print(set('abcdefgh'))").stdout for _ in range(3)}
    assert len(runs) == 1


def test_two_executions_share_nothing(sandbox: Sandbox) -> None:
    sandbox.run("open('/tmp/left', 'w').write('x')")
    assert "True" not in sandbox.run("import os; print(os.path.exists('/tmp/left'))").stdout


def test_processor_time_is_limited_also_when_the_clock_allows_more(sandbox: Sandbox) -> None:
    with limited(sandbox, cpu_seconds=1, wall_seconds=200) as short:  # a busy machine is slow
        result = short.run("while True: pass")
    assert result.status is SandboxStatus.CPU_LIMIT


def test_calls_get_plain_values_and_a_failing_one_does_not_spoil_the_rest(sandbox: Sandbox) -> None:
    code = "def f(x):\n    print('noise')\n    return {'x': (x, None)} if x else x / 0"
    one, two, three = sandbox.call(code, "f", [[1], [0], ["é"]])
    assert (one.status, one.value) == (SandboxStatus.OK, {"x": [1, None]})
    assert (two.status, two.error.splitlines()[-1]) == (
        SandboxStatus.RAISED,
        "ZeroDivisionError: division by zero",
    )
    assert three.value == {"x": ["é", None]}


def test_calls_after_one_that_hangs_end_as_it_did(sandbox: Sandbox) -> None:
    with limited(sandbox, wall_seconds=1) as short:
        results = short.call("def f(x):\n    while x: pass\n    return x", "f", [[0], [1], [0]])
    assert [r.status for r in results] == [
        SandboxStatus.OK,
        SandboxStatus.WALL_LIMIT,
        SandboxStatus.WALL_LIMIT,
    ]


def test_a_method_of_a_class_can_be_called(sandbox: Sandbox) -> None:
    code = "class Solution:\n    def add(self, a, b):\n        return a + b"
    (result,) = sandbox.call(code, "Solution.add", [[1, 2]])
    assert result.value == 3


def test_a_function_that_is_not_defined_is_the_codes_fault(sandbox: Sandbox) -> None:
    (result,) = sandbox.call("x = 1", "f", [[]])
    assert (result.status, result.error) == (
        SandboxStatus.RAISED,
        "NameError: the code defines no 'f'",
    )


def test_cells_share_their_names_and_echo_a_last_expression(sandbox: Sandbox) -> None:
    session = sandbox.open_session()
    try:
        assert session.run("x = 20\nx + 1").stdout == "21\n"
        assert session.run("print(x)").stdout == "20\n"
        assert session.run("y = x").stdout == ""
        failed = session.run("z = 1\n1 / 0")
        assert (failed.status, failed.error.splitlines()[-1]) == (
            SandboxStatus.RAISED,
            "ZeroDivisionError: division by zero",
        )
        assert session.run("z").stdout == "1\n"
    finally:
        session.close()


def test_after_a_limit_a_session_starts_afresh_and_says_so_once(sandbox: Sandbox) -> None:
    with limited(sandbox, wall_seconds=1) as short:
        session = short.open_session()
        session.run("x = 1")
        assert session.run("while True: pass").status is SandboxStatus.WALL_LIMIT
        after = session.run("'x' in globals()")
        assert (after.status, after.stdout) == (SandboxStatus.OK, "False\n")
        assert after.error.startswith("The interpreter was started afresh")
        assert "wall_limit" in after.error
        assert session.run("1").error == ""
        session.close()


def test_a_cell_that_forges_its_answer_is_found_out(sandbox: Sandbox) -> None:
    session = sandbox.open_session()
    forged = session.run(
        "import os\nfor n in range(3, 64):\n"
        '    try: os.write(n, b\'{"id": "me"}\\n\')\n    except OSError: pass'
    )
    assert forged.status is SandboxStatus.BAD_REPLY
    assert session.run("1").stdout == "1\n"
    session.close()


def test_many_threads_get_each_their_own_result(sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda i: sandbox.run(f"print({i})"), range(12)))
    assert [r.stdout for r in results] == [f"{i}\n" for i in range(12)]


def test_a_closed_sandbox_leaves_no_process_and_refuses_work(sandbox: Sandbox) -> None:
    plan = make_plan(sandbox.backend, LIMITS, f"closing-{os.getpid()}")
    opened = Sandbox(LIMITS, plan=plan)
    session = opened.open_session()
    session.run("1")
    assert tagged(plan.tag)
    session.close()
    opened.close()
    assert tagged(plan.tag) == set()
    with pytest.raises(SandboxUnavailableError, match="closed"):
        opened.run("1")


def test_a_warm_process_that_was_killed_is_replaced(sandbox: Sandbox) -> None:
    sandbox.run("")
    assert sandbox._pool is not None
    waiting = [future.result() for future in sandbox._pool._warm]
    for (
        process
    ) in waiting:  # so far that it has said that it is ready, and nobody has read that yet
        assert select.select([process._control], [], [], 30)[0]
    for pid in ready(sandbox):
        os.kill(pid, signal.SIGKILL)
    for process in waiting:
        assert process._pidfd is not None
        assert select.select([process._pidfd], [], [], 30)[0]
    assert sandbox.run("print(1)").stdout == "1\n"


def test_what_does_not_start_is_our_fault_and_never_the_codes(sandbox: Sandbox) -> None:
    plan = make_plan(sandbox.backend, LIMITS, "broken")
    broken = dataclasses.replace(
        plan, interpreter=dataclasses.replace(plan.interpreter, executable="/bin/false")
    )
    with Sandbox(LIMITS, plan=broken) as opened:
        result = opened.run("print(1)")
        (called,) = opened.call("def f(): pass", "f", [[]])
        cell = opened.open_session().run("1")
    found = {result.status, called.status, cell.status}
    assert found == {SandboxStatus.START_FAILED}
    assert "does not start" in result.error


OWNER = """
import os, sys
from workers.sandbox.keeper import keeper
from workers.sandbox.policy import make_plan
from workers.sandbox.sandbox import Sandbox
from workers.sandbox.settings import SandboxSettings
settings = SandboxSettings(wall_seconds=100, num_warm=4)
plan = make_plan(sys.argv[1], settings, os.environ["TAG"])  # not an argument: the owner is not what is looked for
plan.command(None)(3, 4)
print(keeper().pid, flush=True)
Sandbox(settings, plan=plan).run("import time; time.sleep(100)")
"""


@pytest.mark.parametrize("delay_seconds", [0.0, 0.01, 0.03, 0.3])
def test_when_its_owner_is_killed_nothing_goes_on(sandbox: Sandbox, delay_seconds: float) -> None:
    tag = f"orphan-{os.getpid()}-{sandbox.backend}-{delay_seconds}"
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, sandbox.backend],
        cwd=ROOT,
        env={**os.environ, "TAG": tag},
        stdout=subprocess.PIPE,
    )
    try:
        assert owner.stdout is not None
        keeper_ends = os.pidfd_open(int(owner.stdout.readline()))
        deadline = time.monotonic() + 60
        # One sight is enough: a process that executes the next program (setpriv, bwrap, Python) has no words meanwhile.
        while not (seen := tagged(tag)) and time.monotonic() < deadline:
            time.sleep(0.002)
        assert seen
        time.sleep(delay_seconds)  # some are then half started
    finally:
        owner.kill()
        owner.communicate()
    try:
        assert select.select([keeper_ends], [], [], 60)[0], "the keeper ends after its last child"
    finally:
        os.close(keeper_ends)
    assert seen_later(tag) == set()


def seen_later(tag: str) -> set[int]:
    """What carries the tag in half a second of looks: one look can miss what executes a program at that moment."""
    found = set()
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        found |= tagged(tag)
        time.sleep(0.02)
    return found


def test_a_start_that_is_cut_short_at_any_moment_leaves_nothing(sandbox: Sandbox) -> None:
    plan = make_plan(sandbox.backend, LIMITS, f"short-{os.getpid()}")
    moments = random.Random(0)
    left = set()
    for _ in range(40):
        uid = next_uid()
        process = spawn(plan.command(uid), plan.hello, keeper).result()
        time.sleep(moments.random() * 0.03)
        process.kill()
        left |= tagged(plan.tag)
    assert left == set()


def test_a_package_is_importable_only_when_it_is_named(sandbox: Sandbox) -> None:
    code = "import yaml; print(yaml.safe_load('[1, 2]'))"
    assert sandbox.run(code).error.endswith("No module named 'yaml'")
    with limited(sandbox, packages=("pyyaml",)) as with_yaml:
        assert with_yaml.run(code).stdout == "[1, 2]\n"


def test_a_package_below_tmp_is_importable_and_cannot_be_changed(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)  # code in the sandbox is another user
        (folder / "tiny.py").write_text("VALUE = 7\n", encoding="utf-8")
        about = folder / "tiny-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Name: tiny\nVersion: 1.0\n", encoding="utf-8")
        (about / "RECORD").write_text("tiny.py,,\n", encoding="utf-8")
        monkeypatch.syspath_prepend(name)
        with limited(sandbox, packages=("tiny",)) as with_tiny:
            assert with_tiny.run("import tiny; print(tiny.VALUE)").stdout == "7\n"
            change = f"open({str(folder / 'tiny.py')!r}, 'w')"
            assert with_tiny.run(change).status is SandboxStatus.RAISED
            assert with_tiny.run(f"open({str(folder / 'new.py')!r}, 'w').close()").stdout == ""
        assert (folder / "tiny.py").read_text(encoding="utf-8") == "VALUE = 7\n"
        assert not (folder / "new.py").exists()


def test_a_package_that_is_not_installed_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no-such-package"):
        Sandbox(SandboxSettings(packages=("no-such-package",))).prepare()


def test_the_digest_changes_with_what_contains_and_with_nothing_else(sandbox: Sandbox) -> None:
    with limited(sandbox, num_warm=0) as same, limited(sandbox, memory_mb=128) as other:
        assert same.policy_digest == sandbox.policy_digest
        assert other.policy_digest != sandbox.policy_digest


def test_no_sandbox_has_to_be_asked_for_twice_and_is_loud(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(ConfigurationError, match="asked for twice"):
        Sandbox(SandboxSettings(backend="none")).prepare()
    settings = SandboxSettings(backend="none", allow_unsandboxed=True, num_warm=0)
    with caplog.at_level(logging.WARNING), Sandbox(settings) as opened:
        assert opened.run("print(1)").backend == "none"
    assert "WITHOUT A SANDBOX" in caplog.text


@pytest.mark.skipif(os.getuid() != 0, reason="is about being root")
@pytest.mark.parametrize("backend", BACKENDS)
def test_code_is_never_root_to_the_kernel(backend: SandboxBackend) -> None:
    need(backend)
    with Sandbox(LIMITS.model_copy(update={"backend": backend, "num_warm": 2})) as opened:
        session = opened.open_session()
        session.run("1")
        assert session._process is not None
        own = descendants({session._process.pid})
        # The next ones are being started meanwhile: setpriv, which makes the user, begins as root.
        starting = tagged(opened._prepared()[0].tag) - own
        roots = {name for name, users in map(user_of, own) if "0" in users}
        starting_roots = {name for name, users in map(user_of, starting) if "0" in users}
        session.close()
    assert own
    assert roots == set()
    assert starting_roots <= {"setpriv"}


def user_of(pid: int) -> tuple[str, set[str]]:
    """Name of a process and its real, effective, saved and file system user."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as status:
            lines = dict(line.split(":", 1) for line in status)
    except OSError:  # it ended
        return "", set()
    return lines["Name"].strip(), set(lines["Uid"].split())
