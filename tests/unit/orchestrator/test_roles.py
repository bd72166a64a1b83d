"""A role answers beside the policy: on the policy's tokens, judged like any attempt, and learned from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.config.run_config import RunConfig
from orchestrator.inspect.audit.run import audit
from orchestrator.runs.folder import RunFolder
from policies.base.records import Author, Trajectory, TrajectoryStatus
from policies.base.role_answers import RoleAnswer
from policies.examples.kinds import PreferencePair
from policies.storage.artifacts import read_records
from tests.support.fake_runs import fake_tree

TEACHER = '''
"""A teacher that multiplies, with a word of warning; it will not speak of sevens."""

import re

from pawl import JudgeBackend, Reply


class Teacher(JudgeBackend):
    def __init__(self, config, *, context):
        self.config = config

    def identity(self):
        return "teacher 1"

    def ask(self, questions):
        return [self._reply(q.messages) for q in questions]

    def _reply(self, messages):
        assert messages[0].role == "system", "the system message stands first"
        a, b = map(int, re.findall(r"[0-9]+", messages[-1].content)[:2])
        if 7 in (a, b):
            return Reply(text=None, error="no sevens")
        return Reply(text=f"The answer is {a * b}")
'''


def tree(home: Path, **changes: Any) -> dict[str, Any]:
    (home / "teacher.py").write_text(TEACHER, encoding="utf-8")
    teacher = {"backend": {"type": f"{home}/teacher.py:Teacher"}, "system": "Teach."}
    rollout = {
        "engine": {"type": "fake"},
        "samples_per_prompt": 3,
        "prompts_per_shard": 3,
        "mixture": [{"role": "teacher", "samples": 1}],
    }
    mine = {"roles": {"teacher": teacher}, "rollout": rollout, "skill": 0.02}
    return fake_tree(home, **{**mine, **changes})


def pawl(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.output


def run(home: Path, **changes: Any) -> RunFolder:
    path = home / "config.yaml"
    path.write_text(json.dumps(tree(home, **changes)), encoding="utf-8")
    code, said = pawl("run", path, "--runs-dir", home / "runs", "--name", "mine")
    assert code == 0, said
    return RunFolder(home / "runs" / "mine")


def read(folder: RunFolder, index: int, kind: Any, record: Any) -> list[Any]:
    return [r for path in folder.round(index).shards(kind) for r in read_records(path, record)]


def test_answers_of_a_teacher_enter_pairs_and_the_run_is_whole(tmp_path: Path) -> None:
    folder = run(tmp_path)
    attempts: list[Trajectory] = read(folder, 1, "trajectories", Trajectory)
    taught = {t.id: t for t in attempts if t.author is Author.ROLE}
    assert len(attempts) == 6 * 4
    assert len(taught) == 6
    for each in taught.values():
        assert (each.role, each.status) == ("teacher", TrajectoryStatus.COMPLETE)
        assert each.completion.startswith("The answer is ")
        assert each.logprobs == (), "nobody knows the policy's log-probs of what another wrote"
        own = next(t for t in attempts if t.prompt_id == each.prompt_id and t.id != each.id)
        assert each.prompt_token_ids == own.prompt_token_ids, "they stand on the policy's prompt"
    pairs: list[PreferencePair] = read(folder, 1, "examples", PreferencePair)
    assert {p.chosen.trajectory_id for p in pairs} & taught.keys()
    answers: list[RoleAnswer] = read(folder, 1, "answers", RoleAnswer)
    assert {a.answered_by for a in answers} == {"teacher 1"}
    report = audit(folder, deep=True)
    assert [check for check in report if check.verdict == "wrong"] == []
    notes = [note for check in report for note in check.notes]
    assert not [note for note in notes if "nobody's" in note]

    chosen = next(p for p in pairs if p.chosen.trajectory_id in taught)
    code, said = pawl("trace", folder.path, chosen.id)
    assert code == 0, said
    assert "teacher" in said
    measured = folder.round(1).evaluation.shards("trajectories")
    authors = {t.author for path in measured for t in read_records(path, Trajectory)}
    assert authors == {Author.POLICY}, "a teacher is never measured"


def test_a_teacher_that_will_not_answer_is_a_failed_attempt_and_no_bad_one(tmp_path: Path) -> None:
    prompts = {
        "train": {"type": "arithmetic", "low": 6, "high": 8, "held_out": 2, "split": "train"},
        "held_out": {"type": "arithmetic", "low": 6, "high": 8, "held_out": 2, "split": "held_out"},
        "per_round": 6,
    }
    limits = {"max_failed_trajectories": 0.5}
    folder = run(tmp_path, prompts=prompts, limits=limits)
    taught = [t for t in read(folder, 1, "trajectories", Trajectory) if t.author is Author.ROLE]
    failed = [t for t in taught if t.status is TrajectoryStatus.ERROR]
    assert failed
    assert all("7" in t.prompt_id and t.error == "no sevens" for t in failed)
    pairs: list[PreferencePair] = read(folder, 1, "examples", PreferencePair)
    sides = {s.trajectory_id for p in pairs for s in p.sequences()}
    assert not sides & {t.id for t in failed}


def test_the_plan_names_the_group_of_a_role(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(tree(tmp_path)), encoding="utf-8")
    code, said = pawl("plan", path)
    assert code == 0, said
    assert "role-teacher" in said


ROLE = {"backend": {"type": "fake"}}
MIXTURE = {"engine": {"type": "fake"}, "samples_per_prompt": 3}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"roles": {}}, "names the role 'teacher', which roles does not have"),
        ({"roles": {"teachr": ROLE}}, "did you mean 'teachr'"),
        ({"roles": {"teacher": ROLE, "other": ROLE}}, "nothing asks the role 'other'"),
        ({"roles": {"Teacher 1": ROLE}}, "roles"),
        (
            {
                "rollout": {
                    **MIXTURE,
                    "mixture": [{"role": "teacher", "rounds_ago": 1, "samples": 1}],
                }
            },
            "rounds_ago and role are both given",
        ),
        (
            {"rollout": {**MIXTURE, "mixture": [{"role": "teacher", "samples": 1}] * 2}},
            "names 2 roles",
        ),
        (
            {
                "rollout": {
                    **MIXTURE,
                    "mixture": [{"role": "teacher", "samples": 1}],
                    "strategy": {"type": "self_refine"},
                }
            },
            "answers once, but the strategy",
        ),
        (
            {"roles": {"teacher": {"backend": {"type": "engine", "model": "policy"}}}},
            "answers with the policy itself",
        ),
    ],
)
def test_what_cannot_be_right_about_roles_is_refused_with_the_way_out(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        RunConfig.model_validate(tree(tmp_path, **changes))
