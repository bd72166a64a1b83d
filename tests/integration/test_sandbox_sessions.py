"""Sessions stand still between cells and end at any moment without a trace; what code may still do beside limits."""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.attacks.victims import ready, tagged
from tests.integration.test_sandbox import LIMITS, limited, sandbox
from workers.sandbox.keeper import keeper
from workers.sandbox.policy import make_plan, next_uid
from workers.sandbox.process import spawn
from workers.sandbox.sandbox import Sandbox
from workers.sandbox.settings import SandboxStatus

__all__ = ["sandbox"]  # a fixture

SPIN = """
import hashlib, threading
def go_on():
    while True:
        hashlib.pbkdf2_hmac('sha256', b'x', b'y', 20000)
for _ in range(3):
    threading.Thread(target=go_on, daemon=True).start()
"""


def test_between_two_cells_a_session_uses_no_processor_time_and_then_goes_on(
    sandbox: Sandbox,
) -> None:
    session = sandbox.open_session()
    try:
        session.run(SPIN)
        assert session._process is not None
        assert session._process._watch is not None
        watch = session._process._watch
        time.sleep(0.05)  # the stop may still be on its way to a processor
        before = watch.cpu_seconds()
        time.sleep(0.2)
        assert watch.cpu_seconds() == before > 0
        session.run("import time; time.sleep(0.1)")
        assert watch.cpu_seconds() > before
    finally:
        session.close()


def test_the_threads_of_a_cell_share_its_processor_time(sandbox: Sandbox) -> None:
    with limited(sandbox, cpu_seconds=0.3, wall_seconds=200) as short:
        session = short.open_session()
        kept = session.run("x = 1")
        ended = session.run(SPIN + "while True: pass")
        session.close()
    assert kept.status is SandboxStatus.OK
    assert (ended.status, ended.error) == (
        SandboxStatus.CPU_LIMIT,
        "used 0.3 s of processor time",
    )


def test_a_session_that_is_closed_from_another_thread_at_any_moment_leaves_nothing(
    sandbox: Sandbox,
) -> None:
    plan = make_plan(sandbox.backend, LIMITS, f"closed-{os.getpid()}")
    moments = random.Random(1)
    with Sandbox(LIMITS.model_copy(update={"num_warm": 0}), plan=plan) as opened:
        for _ in range(8):
            session = opened.open_session()
            with ThreadPoolExecutor(1) as thread:
                running = thread.submit(session.run, "while True: pass")
                time.sleep(moments.random() * 0.15)
                session.close()
                result = running.result(30)
            assert result.status is not SandboxStatus.OK
            assert session._process is None
        assert tagged(plan.tag) - ready(opened) == set()


def test_a_process_that_breaks_off_leaves_no_descriptor(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = spawn(
        make_plan(sandbox.backend, LIMITS, "breaks").command(next_uid()),
        make_plan(sandbox.backend, LIMITS, "breaks").hello,
        keeper,
    ).result()

    def fail() -> None:
        raise OSError("no more descriptors")

    monkeypatch.setattr(process, "_watch_inner", fail)
    with pytest.raises(OSError, match="no more descriptors"):
        process.wait_ready()
    assert process._dead is not None
    assert process._stdout.closed
    assert process._stderr.closed


def test_a_database_works_in_the_private_folder_where_there_is_one_and_in_memory(
    sandbox: Sandbox,
) -> None:
    folder = sandbox.backend == "bwrap"
    code = """
import sqlite3, tempfile
path = tempfile.mkdtemp() + '/x.db' if FOLDER else 'file:x?mode=memory&cache=shared'
one, two = (sqlite3.connect(path, uri=True) for _ in range(2))
one.execute('create table t (x)')
one.execute('insert into t values (7)')
one.commit()
print(two.execute('select x from t').fetchall())
"""
    result = sandbox.run(f"FOLDER = {folder}\n{code}")
    assert (result.status, result.stdout) == (SandboxStatus.OK, "[(7,)]\n"), result.error
