"""Retention: what is kept is what a coming round may need, and a crash in the middle of a removal changes nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.config.run_config import RunConfig
from orchestrator.driver.launch import resume_experiment, run_experiment
from orchestrator.rounds.retention import best_round, needed_policies
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.removal_notes import removed, why_gone
from orchestrator.runs.state import results_of
from policies.base.errors import InputError, PawlError
from policies.base.records import RoundResult, RoundStatus
from policies.storage.artifacts import read_marker
from policies.storage.faulty_files import CountingFiles, CrashingFiles
from policies.storage.files import using
from tests.support.fake_runs import fake_config


def config(tmp_path: Path, rounds: int = 4, **changes: Any) -> RunConfig:
    """Rounds of one shard."""
    sizes = {"rounds": rounds, "high": 5, "held_out": 3, "per_round": 3, "samples": 6}
    return fake_config(tmp_path, **(sizes | changes))


def run(tmp_path: Path, settings: RunConfig, name: str = "run") -> RunFolder:
    folder = RunFolder(tmp_path / name)
    run_experiment(settings, folder, source="")
    return folder


def versions(folder: RunFolder) -> set[int]:
    return {int(p.name) for p in folder.policies.glob("[0-9]*")}


def sampled(folder: RunFolder) -> list[int]:
    return [i for i in folder.rounds() if folder.round(i).shards("trajectories")]


def test_everything_is_kept_by_default(tmp_path: Path) -> None:
    folder = run(tmp_path, config(tmp_path, rounds=2))
    assert versions(folder) == {0, 1, 2}
    assert sampled(folder) == [1, 2]
    assert not folder.removed.exists()


def test_the_newest_n_policies_and_the_best_are_kept(tmp_path: Path) -> None:
    folder = run(tmp_path, config(tmp_path, rounds=5, retention={"policies": 2}))
    best = best_round(results_of(folder)).after
    assert versions(folder) == {0, 4, 5, best}
    assert set(removed(folder, "policy")) == {1, 2, 3} - {best}


def test_only_the_best_and_what_is_needed_is_kept(tmp_path: Path) -> None:
    folder = run(tmp_path, config(tmp_path, rounds=4, retention={"policies": "best"}))
    assert versions(folder) == {0, 4, best_round(results_of(folder)).after}


def test_samples_of_the_newest_n_rounds_are_kept_and_what_rounds_decided_stays(
    tmp_path: Path,
) -> None:
    folder = run(tmp_path, config(tmp_path, rounds=3, retention={"trajectories": 2}))
    assert sampled(folder) == [2, 3]
    assert set(removed(folder, "round")) == {0, 1}
    for index in (1,):
        old = folder.round(index)
        assert not any((old.path / kind).exists() for kind in ("examples", "feedback", "verdicts"))
        assert not (old.evaluation.path / "trajectories").exists()
        assert old.train_log.exists()
        assert old.prompts.exists()


def result(index: int, after: int, score: float | None = None) -> RoundResult:
    return RoundResult(
        round=index,
        status=RoundStatus.IMPROVED,
        before=max(0, index - 1),
        after=after,
        reference="",
        metrics={} if score is None else {"eval/pass@1": score},
    )


def history(*scores: float) -> list[RoundResult]:
    return [result(i, i, score) for i, score in enumerate(scores)]


def test_the_best_is_the_best_measured_and_of_equal_ones_the_first() -> None:
    assert best_round(history(0.1, 0.5, 0.5, 0.4)).round == 1
    assert best_round([result(0, 0), result(1, 1)]).round == 1, "without a measurement the newest"


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, {0, 6}),
        ({"training": {"reference": {"type": "initial"}}}, {0, 6}),
        ({"training": {"reference": {"type": "rounds_ago", "rounds": 3}}}, {0, 3, 4, 5, 6}),
        ({"training": {"reference": {"type": "moving_average", "alpha": 0.9}}}, {0, 5, 6}),
        ({"rollout": {"mixture": [{"rounds_ago": 2, "samples": 1}]}}, {0, 4, 5, 6}),
    ],
    ids=["refresh", "initial", "rounds_ago", "moving_average", "mixture"],
)
def test_what_a_coming_round_compares_with_or_samples_from_is_needed(
    tmp_path: Path, changes: dict[str, Any], needed: set[int]
) -> None:
    fake: dict[str, Any] = {
        "training": {"engine": {"type": "fake"}},
        "rollout": {"engine": {"type": "fake"}},
    }
    merged = {key: fake[key] | changes.get(key, {}) for key in fake}
    settings = config(tmp_path, rounds=12, **merged)
    scores = history(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    assert needed_policies(settings, scores) == needed
    assert needed_policies(settings, history(0.1, 0.9, 0.3, 0.4, 0.5, 0.6, 0.7)) == needed | {1}


def test_the_initial_policy_of_a_later_stage_is_needed_when_it_has_begun(tmp_path: Path) -> None:
    stages = [
        {"name": "one", "rounds": 2},
        {"name": "two", "rounds": 10, "training": {"reference": {"type": "initial"}}},
    ]
    settings = config(tmp_path, rounds=12, stages=stages)
    assert needed_policies(settings, history(0.1, 0.2, 0.3, 0.4, 0.5)) == {0, 2, 4}


@pytest.mark.parametrize(
    "changes",
    [
        {
            "training": {
                "engine": {"type": "fake"},
                "reference": {"type": "rounds_ago", "rounds": 2},
            },
            "rollout": {
                "engine": {"type": "fake"},
                "samples_per_prompt": 6,
                "prompts_per_shard": 3,
                "mixture": [{"rounds_ago": 2, "samples": 2}],
            },
        },
        {"acceptance": {"type": "if_better", "margin": 0.2}},
    ],
    ids=["rounds_ago and a mixture", "rejections"],
)
def test_a_run_that_keeps_little_decides_the_same(tmp_path: Path, changes: dict[str, Any]) -> None:
    whole = run(tmp_path, config(tmp_path, rounds=4, **changes), "whole")
    retention = {"policies": "best", "trajectories": 1}
    folder = run(tmp_path, config(tmp_path, rounds=4, retention=retention, **changes))
    assert folder.journal.read_bytes() == whole.journal.read_bytes()
    assert len(versions(folder)) < len(versions(whole))


def everything(folder: RunFolder) -> dict[str, bytes]:
    """All files of a run by name, without what has clocks or names a driver; shards by their content."""
    clocks = re.compile(r"events\.jsonl|driver\.json|run\.json|report\..*|epochs/.*")
    found = {}
    for path in sorted(folder.path.rglob("*")):
        name = str(path.relative_to(folder.path))
        if path.suffix == ".parquet":
            marker = read_marker(path)
            found[name] = b"" if marker is None else marker.content_digest.encode()
        elif path.is_file() and not clocks.fullmatch(name) and ".parquet" not in name:
            found[name] = path.read_bytes().replace(str(folder.path).encode(), b"RUN")
    return found


class Crash(BaseException):
    """The driver is gone."""


def crash() -> None:
    raise Crash


def test_a_crash_at_any_step_of_a_removal_is_completed_by_the_next_driver(tmp_path: Path) -> None:
    settings = config(tmp_path, rounds=1, retention={"policies": "best", "trajectories": 1})
    counting = CountingFiles()
    with using(counting):
        whole = everything(run(tmp_path, settings, "whole"))
    hit = 0
    for back in range(8, 200, 3):
        folder = RunFolder(tmp_path / f"crash-{back}")
        layer = CrashingFiles(counting.count - back, end=crash)
        with pytest.raises((PawlError, Crash)), using(layer):
            run_experiment(settings, folder, source="")
        assert layer.count >= layer.crash_at
        if not folder.removed.exists():
            break
        hit += 1
        resume_experiment(folder)
        assert everything(folder) == whole, f"crash {back} operations before the end"
    assert hit >= 3, "several steps of removals were hit"


def invoke(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    return done.exit_code, done.stdout, done.stderr


def test_show_and_trace_say_that_something_was_removed_and_why(tmp_path: Path) -> None:
    retention = {"policies": "best", "trajectories": 1}
    folder = run(tmp_path, config(tmp_path, rounds=4, retention=retention))
    code, out, _ = invoke("show", folder.path, "--round", 1)
    assert code == 0
    assert "the samples of round 1 were removed after round 2 (retention.trajectories)" in out
    code, out, _ = invoke("show", folder.path, "--round", 1, "--trajectories")
    assert code == 0
    assert "removed after round 2" in out
    code, _, err = invoke("trace", folder.path, "r1.2x3.0")
    assert code == 2
    assert "removed after round 2" in err
    code, out, _ = invoke("show", folder.path, "--round", 4, "--trajectories", "--json")
    wanted = json.loads(out)[0]["id"]
    code, out, err = invoke("trace", folder.path, wanted)
    assert code == 0, err
    gone = sorted(removed(folder, "policy"))
    assert gone
    assert why_gone(folder, "policy", gone[-1]) is not None
    assert f"policy version {gone[-1]}" in out
    assert why_gone(folder, "policy", 0) is None


def test_removals_are_events(tmp_path: Path) -> None:
    folder = run(tmp_path, config(tmp_path, rounds=3, retention={"trajectories": 1}))
    events = [json.loads(line) for line in folder.events.read_text().splitlines()]
    told = [(e["detail"]["what"], e["detail"]["number"]) for e in events if e["kind"] == "removed"]
    assert told == [("round", 0), ("round", 1), ("round", 2)]


@pytest.mark.parametrize("retention", [{"policies": 0}, {"trajectories": 0}, {"policies": "some"}])
def test_keeping_nothing_is_refused(tmp_path: Path, retention: dict[str, Any]) -> None:
    with pytest.raises((InputError, ValueError), match="retention"):
        config(tmp_path, retention=retention)
