"""A verifier in its own process: whatever it does is a verdict, and the next trajectory is judged."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from policies.base.records import (
    Message,
    Prompt,
    Sampling,
    StopReason,
    Trajectory,
    TrajectoryStatus,
    Turn,
    VerdictStatus,
)
from workers.isolation.child_process import child_environment, clean_text
from workers.verify.isolated_verifier import IsolatedVerifier
from workers.verify.verifier import VERIFIERS, Verifier

PROMPT = Prompt(id="p", messages=(Message(role="user", content="7 times 8?"),), answer=56)

MISBEHAVING = """
import ctypes, os, sys, threading, time
def score(prompt, completion, answer):
    if completion == "raise": raise KeyError("boo")
    if completion == "hang": time.sleep(1000)
    if completion == "backtrack":
        import re
        re.match("(a+)+$", "a" * 64 + "b")
    if completion == "nan": return float("nan")
    if completion == "yes": return "yes"
    if completion == "sys.exit": sys.exit(0)
    if completion == "os._exit": os._exit(7)
    if completion == "segfault":
        print("about to crash", file=sys.stderr, flush=True)
        ctypes.string_at(0)
    if completion == "memory": return bytearray(2**62)
    if completion == "recurse": return score_again(completion)
    if completion == "print":
        for _ in range(40):
            print("o" * 2**17)
            print("e" * 2**17, file=sys.stderr)
    if completion == "scribble":
        for fd in range(3, 1024):
            try: os.write(fd, b"rubbish\\n")
            except OSError: pass
    if completion == "close":
        os.closerange(3, 1024)
    if completion == "surrogate": raise ValueError("\\ud800 \\x1b[31m \\x00")
    return completion == str(answer)
def score_again(completion): return score_again(completion)
"""


def attempt(text: str, index: int = 0) -> Trajectory:
    ids = tuple(range(48))
    turn = Turn(
        role="policy",
        token_ids=ids,
        text=text,
        logprobs=tuple(-0.123456 for _ in ids),
        stop_reason=StopReason.STOP,
    )
    return Trajectory(
        id=f"r1.p.{index}",
        prompt_id="p",
        sample_index=index,
        policy_version=0,
        policy_digest="d",
        prompt_token_ids=tuple(range(30)),
        turns=(turn,),
        status=TrajectoryStatus.COMPLETE,
        sampling=Sampling(),
    )


def config_of(value: Any) -> Verifier.Config:
    config = VERIFIERS.parse(value)
    assert isinstance(config, Verifier.Config)
    return config


def isolated(path: Path, source: str, *, timeout_seconds: float = 5.0) -> IsolatedVerifier:
    path.write_text(source, encoding="utf-8")
    config = {"type": "callable", "function": f"{path}:score", "timeout_seconds": timeout_seconds}
    return IsolatedVerifier(config_of(config))


@pytest.fixture(scope="module")
def misbehaving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IsolatedVerifier]:
    path = tmp_path_factory.mktemp("user") / "bad.py"
    with isolated(path, MISBEHAVING, timeout_seconds=2.0) as verifier:
        yield verifier


@pytest.mark.parametrize(
    ("completion", "error"),
    [
        ("raise", "KeyError: 'boo'"),
        ("hang", r"timed out after 2 s \(verifiers\[...\].timeout_seconds\)"),
        ("backtrack", "timed out after 2 s"),
        ("nan", r"number in \[0, 1\]"),
        ("yes", "must return"),
        ("sys.exit", "SystemExit: 0"),
        ("os._exit", "exit code 7"),
        ("segfault", "SIGSEGV.*about to crash"),
        ("memory", "MemoryError|OverflowError"),
        ("recurse", "RecursionError"),
        ("scribble", "not a Reply"),
        ("close", "hung up|exit code|timed out"),
        ("surrogate", "ValueError"),
    ],
)
def test_a_verifier_that_fails_gives_an_error_and_the_next_trajectory_a_score(
    misbehaving: IsolatedVerifier, completion: str, error: str
) -> None:
    verdict = misbehaving.verify(PROMPT, attempt(completion))
    assert verdict.status is VerdictStatus.ERROR
    assert verdict.score is None
    assert verdict.error is not None
    assert re.search(error, verdict.error, re.DOTALL), verdict.error
    assert "\x1b" not in verdict.error
    after = misbehaving.verify(PROMPT, attempt("56"))
    assert (after.status, after.score) == (VerdictStatus.SCORED, 1.0)


def test_megabytes_of_print_do_not_disturb_the_verdict(misbehaving: IsolatedVerifier) -> None:
    verdict = misbehaving.verify(PROMPT, attempt("print"))
    assert (verdict.status, verdict.score) == (VerdictStatus.SCORED, 0.0)


def test_seconds_are_measured_by_the_parent(misbehaving: IsolatedVerifier) -> None:
    assert misbehaving.verify(PROMPT, attempt("hang")).seconds >= 2.0
    assert 0 < misbehaving.verify(PROMPT, attempt("56")).seconds < 2


def test_a_start_that_fails_is_told_and_not_tried_for_ever(tmp_path: Path) -> None:
    count = tmp_path / "starts"
    source = f"open({str(count)!r}, 'a').write('x')\nimport no_such_package_here\n"
    with isolated(tmp_path / "bad.py", source) as verifier:
        verdicts = verifier.submit([(PROMPT, attempt("56", i)) for i in range(20)]).result()
    assert all("no_such_package_here" in (verdict.error or "") for verdict in verdicts)
    assert [verdict.trajectory_id for verdict in verdicts] == [f"r1.p.{i}" for i in range(20)]
    assert count.read_text() == "xxx"


def test_a_start_that_hangs_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "slow.py"
    path.write_text("import time; time.sleep(1000)", encoding="utf-8")
    config = config_of({"type": "callable", "function": f"{path}:score"})
    with IsolatedVerifier(config, start_timeout_seconds=0.5) as verifier:
        verdict = verifier.verify(PROMPT, attempt("56"))
    assert "took more than 0.5 s to start" in (verdict.error or "")


def test_a_verifier_cannot_sign_for_another_trajectory_or_source(tmp_path: Path) -> None:
    path = tmp_path / "forger.py"
    path.write_text(
        "from workers.verify.verifier import Verifier\n"
        "class Forger(Verifier):\n"
        "    def verify(self, prompt, trajectory):\n"
        "        verdict = self.scored(trajectory, 1.0)\n"
        "        return verdict.model_copy(update={trajectory.completion: 'other'})\n",
        encoding="utf-8",
    )
    with IsolatedVerifier(config_of(f"{path}:Forger")) as verifier:
        assert "'other'" in (verifier.verify(PROMPT, attempt("trajectory_id")).error or "")
        assert "'other'" in (verifier.verify(PROMPT, attempt("source")).error or "")


def test_a_verifier_that_returns_no_verdict_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "bare.py"
    path.write_text(
        "from workers.verify.verifier import Verifier\n"
        "class Bare(Verifier):\n"
        "    def verify(self, prompt, trajectory): return 1.0\n",
        encoding="utf-8",
    )
    with IsolatedVerifier(config_of(f"{path}:Bare")) as verifier:
        assert "must return a Verdict" in (verifier.verify(PROMPT, attempt("56")).error or "")


def test_what_a_verifier_changes_stays_in_its_process(tmp_path: Path) -> None:
    source = (
        "def score(prompt, completion, answer, metadata):\n    metadata['x'] = 1\n    return True\n"
    )
    with isolated(tmp_path / "mutates.py", source) as verifier:
        verifier.verify(PROMPT, attempt("56"))
    assert PROMPT.metadata == {}


def test_no_secret_reaches_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "canary-4711")
    source = "import os\ndef score(completion): raise ValueError(str(dict(os.environ)))\n"
    with isolated(tmp_path / "spy.py", source) as verifier:
        error = verifier.verify(PROMPT, attempt("56")).error or ""
    assert "PATH" in error
    assert "canary-4711" not in error


def test_the_environment_is_an_allow_list() -> None:
    given = {
        "PATH": "/bin",
        "MKL_NUM_THREADS": "2",
        "LC_ALL": "C",
        "SECRET": "x",
        "PATH_TOKEN": "y",
    }
    environment = child_environment(given)
    assert {"PATH", "MKL_NUM_THREADS", "LC_ALL", "PYTHONPATH", "PYTHONHASHSEED"} <= set(environment)
    assert not {"SECRET", "PATH_TOKEN"} & set(environment)


def test_error_text_is_the_same_in_every_run_and_bounded() -> None:
    assert clean_text("<f at 0x7f12ab34cd56>\x1b[0m\x00") == "<f at 0x..> [0m"
    assert len(clean_text("x" * 10**6)) < 4000


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


PIDS = """
import os, subprocess, sys, time
def score(completion):
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    open({path!r}, "w").write(f"{{os.getpid()}} {{grandchild.pid}}")
    time.sleep(1000)
"""


def test_a_timeout_kills_the_whole_process_group(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with isolated(
        tmp_path / "fork.py", PIDS.format(path=str(pids)), timeout_seconds=1.5
    ) as verifier:
        assert "timed out" in (verifier.verify(PROMPT, attempt("56")).error or "")
    for pid in pids.read_text().split():
        wait_until_gone(int(pid))


def test_closing_ends_a_verifier_that_hangs(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    verifier = isolated(tmp_path / "fork.py", PIDS.format(path=str(pids)), timeout_seconds=1000)
    running = verifier.submit([(PROMPT, attempt("56", i)) for i in range(3)])
    while not pids.exists() or len(pids.read_text().split()) < 2:
        time.sleep(0.01)
    verifier.close()
    assert all(verdict.status is VerdictStatus.ERROR for verdict in running.result())
    wait_until_gone(int(pids.read_text().split()[0]))


def test_the_child_dies_with_its_parent_even_while_c_code_holds_the_gil(tmp_path: Path) -> None:
    pid_file, user = tmp_path / "pid", tmp_path / "user.py"
    user.write_text(
        "import os, re\ndef score(completion):\n"
        f"    open({str(pid_file)!r}, 'w').write(f'{{os.getpid()}} ')\n"
        "    re.match('(a+)+$', 'a' * 64 + 'b')\n",
        encoding="utf-8",
    )
    parent_source = (
        "import sys; from tests.unit.workers.test_isolated_verifier import *\n"
        f"isolated(Path({str(user)!r}), Path({str(user)!r}).read_text(), timeout_seconds=600)"
        ".verify(PROMPT, attempt('56'))\n"
    )
    root = str(Path(__file__).resolve().parents[3])
    parent = subprocess.Popen([sys.executable, "-c", parent_source], cwd=root)
    try:
        while not pid_file.exists() or not pid_file.read_text().endswith(" "):
            assert parent.poll() is None
            time.sleep(0.01)
        child = int(pid_file.read_text())
        assert is_running(child)
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    wait_until_gone(child)


def test_a_thousand_trivial_verdicts_take_less_than_ten_starts_of_the_process() -> None:
    items = [(PROMPT, attempt("It is 56.", i)) for i in range(1000)]
    started = time.monotonic()
    with IsolatedVerifier(config_of("numeric_match")) as verifier:
        verifier.submit(items[:1]).result()
        one_start = time.monotonic() - started
        started = time.monotonic()
        verdicts = verifier.submit(items).result()
        seconds = time.monotonic() - started
    assert all(verdict.score == 1.0 for verdict in verdicts)
    assert seconds < 10 * one_start, "a process for each would take a thousand"


def test_a_process_that_is_killed_once_is_asked_again_and_its_verdict_is_a_score(
    tmp_path: Path,
) -> None:
    flag = tmp_path / "killed"
    source = (
        "import os, signal\n"
        "def score(prompt, completion, answer):\n"
        f"    if not os.path.exists({str(flag)!r}):\n"
        f"        open({str(flag)!r}, 'w').close()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return True\n"
    )
    with isolated(tmp_path / "killed_once.py", source) as verifier:
        assert verifier.verify(PROMPT, attempt("56")).score == 1.0
    assert flag.exists()
