"""A judge that is a version of the policy: loaded when that version exists, and named in what it said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.files import load_config
from orchestrator.config.run_config import RunConfig
from orchestrator.driver.launch import resume_experiment, run_experiment
from orchestrator.plan.judges import plan_judges
from orchestrator.plan.lines import Plan
from orchestrator.rounds.judge_versions import judging_versions
from orchestrator.rounds.retention import needed_policies
from orchestrator.runs.folder import RunFolder
from policies.base.errors import ConfigurationError, PawlError
from policies.base.policy_choice import PolicyChoice, RoundsAgo, chosen_version
from policies.base.records import RoundResult, RoundStatus, Verdict
from policies.storage.artifacts import read_records
from tests.support.fake_runs import fake_config


def judged(root: Path, version: Any, *, rounds: int = 3, **changes: Any) -> RunConfig:
    """A run in which a version of the policy rates the attempts beside a verifier."""
    judge = {
        "type": "rubric",
        "name": "own",
        "verdict_only": True,
        "weight": 0.01,
        "backend": {"type": "engine", "engine": {"type": "fake"}, "version": version},
    }
    feedback = {"on_error": "ignore_source"}
    limits = {"max_verdict_errors": 1.0}
    settings = {"judges": [judge], "feedback": feedback, "limits": limits, "rounds": rounds}
    return fake_config(root, **settings, **changes)


def versions_in(folder: RunFolder, index: int) -> set[int | None]:
    """Which versions the judge's verdicts of a round name."""
    paths = folder.round(index).shards("judge_verdicts")
    assert paths
    return {v.policy_version for path in paths for v in read_records(path, Verdict)}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, [0, 0, 0, 0]),
        ("initial", [0, 0, 0, 0]),
        (0, [0, 0, 0, 0]),
        ("current", [0, 1, 1, 3]),
        (RoundsAgo(rounds_ago=1), [0, 0, 1, 1]),
        (1, [0, 1, 1, 1]),
        (2, [0, 1, 2, 2]),
    ],
)
def test_which_version_judges_rounds_1_to_4_when_round_2_was_rejected(
    choice: PolicyChoice | None, expected: list[int]
) -> None:
    served, published = [0, 1, 1, 3], {0, 1, 2, 3}
    found = [
        chosen_version(choice, served[:done], {v for v in published if v < done})
        for done in range(1, 5)
    ]
    assert found == expected


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (1, [{0}, {1}, {1}]),
        ("current", [{0}, {1}, {2}]),
        ({"rounds_ago": 1}, [{0}, {0}, {1}]),
        (None, [{0}, {0}, {0}]),
    ],
)
def test_a_run_is_judged_by_the_version_that_is_due_and_its_verdicts_name_it(
    tmp_path: Path, version: Any, expected: list[set[int]]
) -> None:
    folder = RunFolder(tmp_path / "run")
    config = judged(tmp_path, version, acceptance={"type": "always"})
    results = run_experiment(config, folder, source="").results
    assert [r.after for r in results] == [0, 1, 2, 3]
    assert [versions_in(folder, index) for index in (1, 2, 3)] == expected


def test_a_resumed_run_goes_on_with_the_judge_that_is_due(tmp_path: Path) -> None:
    whole, stopped = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
    config = judged(tmp_path, 1, acceptance={"type": "always"})
    run_experiment(config, whole, source="")

    def stop_in_round_two(event: Any) -> None:
        if event.round == 2 and event.phase == "train":
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, PawlError)):
        run_experiment(config, stopped, source="", observers=[stop_in_round_two])
    resume_experiment(stopped)
    for index in (1, 2, 3):
        assert versions_in(stopped, index) == versions_in(whole, index)
    journals = [
        [r.model_dump(exclude={"metrics"}) for r in _results(folder)] for folder in (whole, stopped)
    ]
    assert journals[0] == journals[1]


def _results(folder: RunFolder) -> list[RoundResult]:
    from orchestrator.runs.journal import Journal

    return Journal(folder.journal).results()


def test_a_version_that_never_comes_in_time_is_refused_and_the_remedy_works(
    tmp_path: Path,
) -> None:
    with pytest.raises((ConfigurationError, ValueError), match=r"backend\.version is 3") as refusal:
        judged(tmp_path, 3, rounds=3)
    assert "version=current" in str(refusal.value)
    assert judged(tmp_path, "current", rounds=3).rounds == 3
    assert judged(tmp_path, "initial", rounds=3).rounds == 3
    own = "judges=[{type: rubric, verdict_only: true, backend: {type: engine, engine: fake, version: 9}}]"
    with pytest.raises(ConfigurationError, match=r"judges\.0\.backend\.version is 9") as refused:
        load_config("fake-smoke", [own])
    remedy = str(refused.value).partition("set ")[2].split(" ")[0]
    assert load_config("fake-smoke", [own, remedy]).config.judges


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (1, "version 1 of the policy judges from round 2 on"),
        ("current", "the version of the policy that serves judges"),
        ({"rounds_ago": 2}, "served 2 rounds ago"),
        (None, "the policy as it came judges"),
    ],
)
def test_the_plan_says_which_version_judges_when(tmp_path: Path, version: Any, said: str) -> None:
    plan = Plan()
    plan_judges(judged(tmp_path, version), plan, elsewhere=False)
    assert said in plan.lines[0].found
    assert plan.fits


def test_a_judge_model_that_is_not_there_is_found_by_the_plan(tmp_path: Path) -> None:
    backend = {"type": "engine", "engine": "fake", "model": str(tmp_path / "none")}
    config = fake_config(tmp_path, judges=[{"type": "rubric", "backend": backend}])
    plan = Plan()
    plan_judges(config, plan, elsewhere=False)
    (line,) = plan.of("problem")
    assert "no such model directory" in line.found
    assert "judges.0.backend.model" in line.found
    assert "policy.model" not in line.found


@pytest.mark.parametrize(
    ("version", "needed"),
    [(None, {0, 4}), (2, {0, 2, 4}), ("current", {0, 4}), ({"rounds_ago": 2}, {0, 2, 3, 4})],
)
def test_versions_that_a_judge_will_run_on_are_kept(
    tmp_path: Path, version: Any, needed: set[int]
) -> None:
    config = judged(tmp_path, version, rounds=12)
    history = [
        RoundResult(
            round=i,
            status=RoundStatus.KEPT,
            before=max(0, i - 1),
            after=i,
            reference="version 0",
            metrics={"eval/pass@1": i / 10},
        )
        for i in range(5)
    ]
    assert needed_policies(config, history) == needed
    found: Mapping[str, int] = judging_versions(config, history)
    assert set(found.values()) <= needed
