"""A prompt that kills its worker each time: found, left out, recorded; the round goes on with the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.run_config import RunConfig
from orchestrator.driver.launch import resume_experiment, run_experiment
from orchestrator.runs.folder import RunFolder
from policies.base.errors import LimitExceededError, RolloutError, VerificationError
from policies.base.records import Feedback, Trajectory, TrajectoryStatus
from policies.storage.artifacts import read_records
from tests.support.fake_runs import fake_config

ENGINES = Path(__file__).parents[2] / "support" / "crashing_engines.py"


def config(tmp_path: Path, engine: str, **changes: Any) -> RunConfig:
    tree = {
        "rounds": 1,
        "seed": 3,
        "rollout": {
            "engine": {"type": f"{ENGINES}:{engine}"},
            "samples_per_prompt": 3,
            "prompts_per_shard": 5,
        },
        "limits": {"max_failed_trajectories": 0.4},
    }
    return fake_config(tmp_path, high=5, held_out=3, per_round=13, **(tree | changes))


def trajectories(folder: RunFolder) -> list[Trajectory]:
    return [t for p in folder.round(1).shards("trajectories") for t in read_records(p, Trajectory)]


def test_a_poison_prompt_is_left_out_recorded_and_counted_and_the_round_goes_on(
    tmp_path: Path,
) -> None:
    folder = RunFolder(tmp_path / "run")
    result = run_experiment(config(tmp_path, "Lost"), folder, source="").results[1]
    rows = trajectories(folder)
    assert len(rows) == 39, "13 prompts x 3 samples, the failed ones included"
    assert len({t.id for t in rows}) == 39
    failed = [t for t in rows if t.status is TrajectoryStatus.ERROR]
    assert {t.prompt_id for t in failed} == {"2x3"}
    assert len(failed) == 3
    assert "killed its worker" in (failed[0].error or "")
    assert _counts(folder)["rollout/errors"] == 3
    assert result.metrics["rollout/quarantined"] == 1
    feedback = [f for p in folder.round(1).shards("feedback") for f in read_records(p, Feedback)]
    assert {f.trajectory_id for f in feedback} == {t.id for t in rows}
    notes = [json.loads(p.read_text()) for p in folder.quarantine.glob("*.reason.json")]
    assert [(n["item"], n["stage"]) for n in notes] == [("2x3", "rollout")]


def _counts(folder: RunFolder) -> dict[str, float]:
    entries = [json.loads(line) for line in folder.journal.read_text().splitlines()]
    counts: dict[str, float] = next(
        e["result"]["counts"] for e in entries if e["phase"] == "collect"
    )
    return counts


def test_the_limit_of_failed_trajectories_still_holds(tmp_path: Path) -> None:
    settings = config(tmp_path, "Lost", limits={"max_failed_trajectories": 0.05})
    with pytest.raises(LimitExceededError, match="3 of 39 trajectories ended in a rollout error"):
        run_experiment(settings, RunFolder(tmp_path / "run"), source="")


@pytest.mark.parametrize(
    ("engine", "error"),
    [
        ("NotFinite", "the engine gave a log-prob that is not finite"),
        ("Empty", "the engine gave a completion without a token"),
        ("TooLong", "tokens where at most"),
    ],
)
def test_what_no_engine_may_give_makes_a_failed_trajectory_never_an_example(
    tmp_path: Path, engine: str, error: str
) -> None:
    folder = RunFolder(tmp_path / "run")
    run_experiment(config(tmp_path, engine), folder, source="")
    failed = [t for t in trajectories(folder) if t.status is TrajectoryStatus.ERROR]
    assert {t.prompt_id for t in failed} == {"2x3"}
    assert all(error in (t.error or "") and not t.turns for t in failed)
    assert _counts(folder)["rollout/errors"] == 3


@pytest.mark.parametrize(
    ("engine", "error"),
    [
        ("Unsound", "RuntimeError: the engine was told to fail"),
        ("Unaligned", "log-probs, expected"),
        ("Fewer", "shorter than"),
    ],
)
def test_an_engine_that_fails_each_time_ends_the_run_with_its_reason(
    tmp_path: Path, engine: str, error: str
) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(RolloutError, match=error):
        run_experiment(config(tmp_path, engine), folder, source="")
    assert not folder.round(1).shards("feedback")


def test_a_verifier_that_cannot_start_judges_nothing_and_a_resume_with_one_that_can_goes_on(
    tmp_path: Path,
) -> None:
    remedy = tmp_path / "remedy"
    plugin = tmp_path / "needy.py"
    plugin.write_text(
        "from pathlib import Path\n"
        f"assert Path({str(remedy)!r}).exists(), 'this machine lacks something'\n"
        "def score(prompt, completion, answer):\n"
        "    return str(answer) in completion\n",
        encoding="utf-8",
    )
    folder = RunFolder(tmp_path / "run")
    remedy.touch()
    settings = config(tmp_path, "FakeEngine", verifiers=[{"type": f"{plugin}:score"}])
    remedy.unlink()
    with pytest.raises(VerificationError, match=r"does not start.*lacks something"):
        run_experiment(settings, folder, source="")
    assert not list(folder.path.rglob("verdicts/*.parquet")), "it says nothing about the samples"
    remedy.touch()
    assert len(resume_experiment(folder).results) == 2
