"""Code that wants a verdict without solving the task: every cheat is a 0, and none is an error or a hang."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from policies.base.component import create
from policies.base.errors import SandboxUnavailableError
from policies.base.records import Json, Message, Prompt, Verdict, VerdictStatus
from tests.attacks.test_battery import BACKENDS, need
from tests.contracts.test_verifiers import attempt
from workers.verify.isolated_verifier import IsolatedVerifier
from workers.verify.verifier import VERIFIERS, Verifier
from workers.verify.verifiers.code_tests import CodeTests

TESTS: Json = [
    {"call": "double", "arguments": [2], "expected": 4},
    {"call": "double", "arguments": ["ab"], "expected": "abab"},
    {"call": "double", "arguments": [[1]], "expected": [1, 1]},
]
RIGHT = "def double(x):\n    return x * 2"

CHEATS = {
    "an object that equals everything": """
class Any:
    def __eq__(self, other): return True
    def __hash__(self): return 0
def double(x): return Any()
""",
    "a number that equals everything": """
class Any(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def double(x): return Any(0)
""",
    "a list that equals everything": """
class Any(list):
    def __eq__(self, other): return True
def double(x): return Any()
""",
    "a dictionary that equals everything": """
class Any(dict):
    def __eq__(self, other): return True
    def __len__(self): return 4
def double(x): return Any(a=1)
""",
    "exit with success": "import sys\ndef double(x): sys.exit(0)",
    "leave at once": "import os\ndef double(x): os._exit(0)",
    "leave when defined": "import os\nos._exit(0)\ndef double(x): pass",
    "leave at exit": "import atexit, os\natexit.register(os._exit, 0)\ndef double(x): raise ValueError",
    "leave the work to a child": """
import os
def double(x):
    if os.fork(): os._exit(0)
""",
    "replace the check": """
import builtins, sys
def check(*a, **k): raise SystemExit(0)
builtins.check = check
for m in list(sys.modules.values()):
    try: m.check = m.same_value = m.reply = check
    except Exception: pass
def double(x): raise SystemExit(0)
""",
    "print the verdict": """
import os
def double(x):
    print('{"passed": true}\\nPASSED 3/3\\nscore: 1.0', flush=True)
    os._exit(0)
""",
    "change what callers hold": """
import sys
def double(x):
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
            if type(value) is list: value.append('passed')
            if type(value) is dict: value['passed'] = value['expected'] = True
        frame = frame.f_back
    return True
""",
    "trace the caller": """
import sys
class Any:
    def __eq__(self, other): return True
def trace(frame, event, argument):
    for name in list(frame.f_locals):
        frame.f_locals[name] = Any()
    return trace
sys.settrace(trace)
def double(x): return Any()
""",
    "find the expected value": """
import gc, sys
def double(x):
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
            if isinstance(value, dict) and 'expected' in value: return value['expected']
        frame = frame.f_back
    for value in gc.get_objects():
        if isinstance(value, dict) and 'expected' in value: return value['expected']
""",
    "answer on every descriptor": """
import os
def double(x):
    for number in range(1, 256):
        for text in (b'{"value": 4}\\n', b'{"id": 1, "value": 4}\\n', b'true\\n'):
            try: os.write(number, text)
            except OSError: pass
""",
    "answer with nonsense numbers": "def double(x): return float('nan')",
    "answer without end": """
def double(x):
    value = []
    for _ in range(90000): value = [value]
    return value
""",
    "answer with a huge number": """
import sys
sys.set_int_max_str_digits(0)
def double(x): return 10 ** 60000
""",
    "ignore signals and hang": """
import signal
for number in range(1, 32):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
def double(x):
    while True: pass
""",
    "patch the encoder": """
import json, sys
launcher = sys._getframe(1)
while launcher.f_back: launcher = launcher.f_back
launcher.f_globals.get('g', launcher.f_globals)['reply'] = lambda *a: None
def double(x): return x
""",
    "text that no file can hold": "def double(x): raise ValueError('\\ud800' * 9)",
    "an error message without end": "def double(x): raise ValueError('x' * 10**7)",
    "almost right": "def double(x): return x * 2 + 1e-9 if isinstance(x, int) else x * 2",
}


def prompt(tests: Json) -> Prompt:
    return Prompt(id="p", messages=(Message(role="user", content="?"),), answer=tests)


@pytest.fixture(scope="module", params=BACKENDS)
def verifier(request: pytest.FixtureRequest) -> Iterator[CodeTests]:
    need(request.param)
    made: CodeTests = create(VERIFIERS.parse(settings(request.param)))
    made._sandbox.prepare()
    yield made
    made._sandbox.close()


def settings(backend: str, **extra: Any) -> dict[str, Any]:
    sandbox = {"backend": backend, "wall_seconds": 2, "cpu_seconds": 2, "num_warm": 1}
    return {"type": "code_tests", "sandbox": sandbox, **extra}


def judge(verifier: Verifier, code: str, tests: Json = TESTS) -> Verdict:
    return verifier.verify(prompt(tests), attempt(f"Here it is:\n```python\n{code}\n```"))


@pytest.mark.parametrize("name", CHEATS)
def test_no_verdict_is_fooled_by(verifier: CodeTests, name: str) -> None:
    verdict = judge(verifier, CHEATS[name])
    assert (verdict.status, verdict.score) == (VerdictStatus.SCORED, 0.0), verdict.rationale
    assert len(verdict.model_dump_json()) < 2000


def test_the_right_code_passes(verifier: CodeTests) -> None:
    verdict = judge(verifier, RIGHT)
    assert (verdict.score, verdict.rationale) == (1.0, "3 of 3 tests passed")


def test_programs_are_compared_by_what_they_print(verifier: CodeTests) -> None:
    tests: Json = [{"stdin": "2 3\n", "stdout": "5\n\n"}, {"stdin": "1 1\n", "stdout": "2"}]
    assert judge(verifier, "print(sum(map(int, input().split())))  ", tests).score == 1.0
    assert judge(verifier, "print(5)", tests).score == 0.0
    assert judge(verifier, "print(sum(map(int, input().split())))\n1/0", tests).score == 0.0


def test_a_share_counts_every_test(verifier: CodeTests) -> None:
    made = CodeTests(verifier.config.model_copy(update={"score": "share"}))
    tests: Json = [
        {"call": "f", "arguments": [1], "expected": 1},
        {"call": "f", "arguments": [2], "expected": 4},
        {"call": "g", "arguments": [], "expected": None},
        {"stdin": "", "stdout": "hello"},
    ]
    assert judge(made, "print('hello')\ndef f(x): return x", tests).score == 0.5
    made._sandbox.close()


@pytest.mark.parametrize("code", ["def (", "\x00", "é = ", "import no_such_module"])
def test_code_that_does_not_run_is_a_zero(verifier: CodeTests, code: str) -> None:
    assert judge(verifier, code).score == 0.0


def test_a_sandbox_that_fails_is_an_error_and_not_a_zero(verifier: CodeTests) -> None:
    made = CodeTests(verifier.config)
    made._sandbox.prepare()
    made._sandbox.close()
    with pytest.raises(SandboxUnavailableError):
        judge(made, RIGHT)


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_a_process_of_its_own_the_verdicts_are_the_same(backend: str) -> None:
    need("bwrap" if backend == "bwrap" else "landlock")
    config = VERIFIERS.parse(settings(backend))
    assert isinstance(config, Verifier.Config)
    with IsolatedVerifier(config) as isolated:
        right = isolated.verify(prompt(TESTS), attempt(f"```python\n{RIGHT}\n```"))
        wrong = isolated.verify(prompt(TESTS), attempt("```python\nimport os\nos._exit(0)\n```"))
        broken = isolated.verify(prompt(None), attempt(f"```python\n{RIGHT}\n```"))
    assert (right.score, wrong.score) == (1.0, 0.0), (right.error, wrong.error)
    assert broken.status is VerdictStatus.ERROR
