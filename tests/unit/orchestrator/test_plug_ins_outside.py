"""Plug-ins are imported in a process of their own: whatever one does there, the command answers, in four parts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.config.files import load_config
from orchestrator.config.plug_ins.asked import (
    acceptance_of,
    load_prompts,
    objective_of,
    reference_plan,
)
from orchestrator.config.plug_ins.configs import checked_outside, names_code
from orchestrator.config.plug_ins.host import environment_of_plug_ins, hosting
from orchestrator.config.run_config import RunConfig
from orchestrator.driver.launch import run_experiment
from orchestrator.runs.folder import RunFolder
from policies.base.component import create
from policies.objectives.loss import PairLoss
from tests.support.fake_runs import fake_tree
from workers.isolation.child_process import ChildProcess

SCORE = "\n\ndef score(prompt, completion, answer):\n    return str(answer) in completion\n"

ROWS = {
    "ends-with-0": ("import os; os._exit(0)", "ended with exit code 0"),
    "ends-with-3": ("import os; os._exit(3)", "ended with exit code 3"),
    "system-exit": ("raise SystemExit(0)", "SystemExit: 0"),
    "interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "hangs": ("import time; time.sleep(1000)", "takes more than 3 s"),
    "floods": ("print('x' * 3_000_000)", "prints more than"),
    "patches-json": ("import json; json.dumps = json.loads = len", "replaces json.dumps"),
    "patches-os": ("import os; os.getpid = lambda: 1; os.read = None", "replaces os.getpid"),
    "patches-sys": ("import sys; sys.exit = print", "replaces sys.exit"),
    "patches-open": ("import builtins; builtins.open = None", "replaces builtins.open"),
    "forks-and-goes-on": ("import os; os.fork()", "forks the process"),
    "leaves-a-daemon": (
        "import os, time\nif not os.fork():\n    os.setsid()\n    time.sleep(300)",
        "forks the process",
    ),
    "asks-for-memory": ("x = bytearray(1 << 42)", "MemoryError"),
    "changes-folder": ("import os; os.chdir('/')", "changes the current folder"),
    "closes-output": ("import os; os.close(1); os.close(2)", "file descriptor 1"),
    "closes-all": ("import os; os.closerange(0, 500)", "ended its process"),
    "crashes": ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    "odd-text": ("raise ValueError('\\ud800' * 5000)", "ValueError: ?"),
}
IN_SHORT = ("ends-with-0", "hangs", "patches-json", "leaves-a-daemon", "closes-output")


def tree_of(root: Path, verifier: str, **changes: Any) -> dict[str, Any]:
    """A config whose verifier is the module `verifier`."""
    (root / "mine.py").write_text(verifier)
    return fake_tree(root, verifiers=[{"type": f"{root}/mine.py:score"}], **changes)


def config_file(root: Path, tree: dict[str, Any]) -> Path:
    path = root / "c.yaml"
    path.write_text(json.dumps(tree))
    return path


def invoke(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.stdout, done.stderr


def descendants() -> list[int]:
    """Processes that carry the mark of a process of plug-ins."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if b"PAWL_CHILD=" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def check_refused(root: Path, code: str, said: str) -> None:
    seconds = 3 if said.startswith("takes") else 60
    cluster = {"backend": "inline", "import_timeout_seconds": seconds}
    tree = tree_of(root, code + SCORE, cluster=cluster)
    before = {*descendants()}
    code_, out, _ = invoke("validate", config_file(root, tree), "--json")
    assert code_ == 2
    told = json.loads(out)
    assert told["valid"] is False
    text = " ".join(told["problems"])
    for part in (said, "mine.py:score", "c.yaml:", "Fix: "):  # what, the value, where, what to do
        assert part in text
    assert {*descendants()} <= before


@pytest.mark.parametrize("row", IN_SHORT)
def test_a_module_that_misbehaves_at_import_is_refused_and_stdout_stays_json(
    tmp_path: Path, row: str
) -> None:
    check_refused(tmp_path, *ROWS[row])


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in ROWS if row not in IN_SHORT])
def test_every_other_way_to_misbehave_is_refused_as_well(tmp_path: Path, row: str) -> None:
    check_refused(tmp_path, *ROWS[row])


def test_the_remedies_for_a_slow_import_work_when_pasted(tmp_path: Path) -> None:
    slow = "import time; time.sleep(1.5)" + SCORE
    path = config_file(tmp_path, tree_of(tmp_path, slow))
    code, _, said = invoke("validate", path, "cluster.import_timeout_seconds=0.5")
    assert code == 2
    assert "raise cluster.import_timeout_seconds" in said
    assert invoke("validate", path, "cluster.import_timeout_seconds=60")[0] == 0


def test_a_run_that_a_plug_in_would_have_ended_with_0_is_refused_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    path = config_file(tmp_path, tree_of(tmp_path, "import os; os._exit(0)" + SCORE))
    runs = tmp_path / "runs"
    code, _, said = invoke("run", path, "--runs-dir", runs)
    assert code == 2
    assert "exit code 0" in said
    assert not runs.exists()


def test_secrets_are_kept_out_of_the_process_by_name_and_by_value() -> None:
    given = {
        "HF_TOKEN": "abc",
        "MY_SECRET": "abc",
        "PLAIN": "hf_" + "a" * 30,
        "STORE": "postgres://me:pass@host/db",
        "DATA": "/data",
        "GIVEN_KEY": "abcdefgh",
    }
    kept = environment_of_plug_ins(given, ["GIVEN_KEY"])
    assert sorted(kept.keys() - {"PYTHONPATH"}) == ["DATA", "GIVEN_KEY"]


def test_a_config_without_plug_ins_starts_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(ChildProcess, "__init__", refuse)
    tree = fake_tree(tmp_path)
    assert not names_code(tree)
    assert isinstance(checked_outside(tree)[0], RunConfig)


MANY = '''
import random
from policies.examples.kinds import PreferencePair
from policies.objectives.loss import PairLoss
from policies.examples.builders.right_vs_wrong import RightVsWrong
from policies.objectives.reference import ReferencePart, ReferencePlan, ReferenceSchedule
from orchestrator.acceptance.rule import AcceptanceRule, Decision
from orchestrator.prompts.source import PromptSource
from policies.base.records import Message, Prompt
from workers.rollout.strategies.independent import Independent
from workers.verify.verifier import Verifier


class Grader(Verifier):
    """Grades."""

    class Config(Verifier.Config):
        """Settings."""

        strict: bool = True
        """Strictly."""

    def check_prompt(self, prompt):
        assert prompt.answer is not None

    def verify(self, prompt, trajectory):
        return self.scored(trajectory, float(str(prompt.answer) in trajectory.completion))


class Builder(RightVsWrong):
    """Builds."""


class First(ReferenceSchedule):
    """The first."""

    def plan(self, served):
        return ReferencePlan(parts=(ReferencePart(version=served[0], weight=1.0),))


class Never(AcceptanceRule):
    """Keeps none."""

    selects = False

    def decide(self, evidence):
        return Decision(accepted=False, reason=f"never {evidence.candidate.version}")


class Source(PromptSource):
    """Prompts."""

    class Config(PromptSource.Config):
        """Settings."""

        start: int
        """First."""

    def load(self):
        return [
            Prompt(id=f"p{self.config.start + i}", answer=str(2 * (i + 2)), metadata={"a": 2, "b": i + 2},
                   messages=(Message(role="user", content=f"What is 2 times {i + 2}? {self.config.start}"),))
            for i in range(6)
        ]

    def notes(self):
        return ("made here",)


class Margin(PairLoss):
    """A margin."""

    class Config(PairLoss.Config):
        """Settings."""

        beta: float = 0.5
        """Slope."""

    def per_pair(self, batch):
        import torch

        return -torch.nn.functional.logsigmoid(self.config.beta * batch.margins)
'''


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, RunConfig]]:
    """A config in which nearly every family is a plug-in, loaded as the command does."""
    root = tmp_path_factory.mktemp("many")
    file = root / "many.py"
    file.write_text(MANY)
    tree = fake_tree(
        root,
        verifiers=[{"type": f"{file}:Grader", "name": "g", "timeout_seconds": 60}],
        preferences={"type": f"{file}:Builder"},
        acceptance={"type": f"{file}:Never"},
        prompts={
            "train": {"type": f"{file}:Source", "start": 0},
            "held_out": {"type": f"{file}:Source", "start": 100},
            "per_round": 6,
        },
        training={
            "engine": {"type": "fake"},
            "loss": {"type": f"{file}:Margin"},
            "reference": {"type": f"{file}:First"},
        },
        rounds=1,
    )
    with hosting():
        yield root, load_config(str(config_file(root, tree))).config


def test_no_class_of_a_plug_in_is_ever_in_the_driver(many: tuple[Path, RunConfig]) -> None:
    _, config = many
    assert not [name for name in sys.modules if name.startswith("pawl_user_many")]
    assert config.verifiers[0].source == "g"
    assert config.verifiers[0].model_dump()["strict"] is True
    assert config.builder_of(1).kind_name == "pair"
    assert isinstance(objective_of(config.training.loss), PairLoss)
    assert config.plug_ins is not None
    assert all(list(code.files) == ["many.py"] for code in config.plug_ins.code.values())


def test_what_the_driver_asks_of_plug_ins_is_answered_from_outside(
    many: tuple[Path, RunConfig],
) -> None:
    _, config = many
    prompts, notes = load_prompts(config, config.prompts.train)
    assert [p.id for p in prompts] == [f"p{i}" for i in range(6)]
    assert notes == ("made here",)
    assert reference_plan(config, config.training.reference, [4, 5]).single == 4
    assert acceptance_of(config, config.acceptance).selects is False
    assert not [name for name in sys.modules if name.startswith("pawl_user_many")]


def test_a_run_of_plug_ins_alone_runs_and_its_dump_says_what_the_classes_would_say(
    many: tuple[Path, RunConfig],
) -> None:
    root, config = many
    summary = run_experiment(config, RunFolder(root / "run"), source="")
    assert [r.status.value for r in summary.results][-1] == "rejected"
    assert "never 1" in summary.results[-1].reason
    dumped = config.model_dump(mode="json")
    imported = RunConfig.model_validate(dumped)  # as a program that imports them itself
    assert imported.model_dump(mode="json") == dumped
    assert type(create(config.verifiers[0])).__name__ == "Grader"


def test_what_hangs_after_its_import_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.config.plug_ins.configs.CONFIG_SECONDS", 3.0)
    monkeypatch.setattr("orchestrator.config.plug_ins.host.START_SECONDS", 60.0)
    slow = (
        "import time\nfrom pydantic import model_validator\nfrom workers.verify.verifier import Verifier\n"
        "class score(Verifier):\n    '''S.'''\n    class Config(Verifier.Config):\n        '''S.'''\n"
        "        @model_validator(mode='after')\n        def _slow(self):\n            time.sleep(1000)\n"
    )
    started = time.monotonic()
    code, _, said = invoke("validate", config_file(tmp_path, tree_of(tmp_path, slow)))
    assert code == 2
    assert "did not answer after it was imported" in said
    assert time.monotonic() - started < 240


def test_a_file_may_name_a_component_of_ours_that_it_imports(tmp_path: Path) -> None:
    code = "from workers.verify.verifiers.numeric_match import NumericMatch\n"
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    tree = fake_tree(tmp_path, verifiers=[{"type": f"{tmp_path}/mine.py:NumericMatch"}])
    code_, out, err = invoke("validate", config_file(tmp_path, tree))
    assert (code_, "NumericMatch" in out) == (0, True), out + err
