"""With `rollout.ahead: 1` the next round is sampled while an update runs: one key, the same exactness."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.driver.launch import resume_experiment, run_experiment
from orchestrator.inspect.audit.run import audit
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.journal import Journal
from orchestrator.runs.phases import Phase
from orchestrator.runs.samplers import sampling_version
from orchestrator.runs.state import results_of
from policies.base.errors import PawlError
from policies.base.records import Trajectory
from policies.storage.artifacts import marker_path, read_records
from tests.support.cut_journals import cut_journal
from tests.support.fake_runs import fake_config

AHEAD = {
    "engine": {"type": "fake"},
    "samples_per_prompt": 4,
    "prompts_per_shard": 3,
    "ahead": 1,
}


def run(home: Path, name: str = "run", **changes: Any) -> RunFolder:
    folder = RunFolder(home / name)
    config = fake_config(home, **{"rounds": 4, "rollout": AHEAD, **changes})
    run_experiment(config, folder, source="", observers=())
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A whole run, which no test changes."""
    return run(tmp_path_factory.mktemp("ahead"))


def copied(finished: RunFolder, home: Path) -> RunFolder:
    """A copy to cut and spoil."""
    shutil.copytree(finished.path, home / "run")
    return RunFolder(home / "run")


def cut_before(folder: RunFolder, phase: Phase, index: int) -> None:
    """End the journal before a phase of a round, as if the driver had died in it."""
    entries = Journal(folder.journal, guard=lambda: None).entries
    place = next(i for i, e in enumerate(entries) if e.phase is phase and e.round == index)
    cut_journal(folder, place)


def samplers(folder: RunFolder, index: int) -> set[int]:
    paths = folder.round(index).shards("trajectories")
    return {t.policy_version for path in paths for t in read_records(path, Trajectory)}


def events(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.events.read_text("utf-8").splitlines()]


def problems(folder: RunFolder) -> list[str]:
    return [check.name for check in audit(folder, deep=True) if check.verdict == "wrong"]


def test_one_key_samples_the_next_round_while_the_update_runs(finished: RunFolder) -> None:
    folder = finished
    results = results_of(folder)
    served = [result.after for result in results]
    assert served == [0, 1, 2, 3, 4]
    assert [samplers(folder, i) for i in (1, 2, 3, 4)] == [{0}, {0}, {1}, {2}]
    behind = [result.metrics["rollout/off_policy"] for result in results[1:]]
    assert behind == [0.0, 1.0, 1.0, 1.0]
    assert problems(folder) == []
    # Round 2's samples were there before round 1's update had been published.
    first = folder.round(2).shards("trajectories")[0]
    published = folder.policies / "0001" / "manifest.json"
    assert marker_path(first).stat().st_mtime_ns < published.stat().st_mtime_ns


def test_nothing_is_sampled_ahead_of_the_last_round_or_without_the_key(tmp_path: Path) -> None:
    folder = run(tmp_path, rounds=2)
    assert folder.rounds() == [0, 1, 2]
    plain = run(tmp_path, "plain", rollout={**AHEAD, "ahead": 0})
    assert [samplers(plain, i) for i in (1, 2, 3)] == [{0}, {1}, {2}]
    assert all("rollout/off_policy" not in r.metrics for r in results_of(plain))


@pytest.mark.parametrize("cut", [Phase.COLLECT, Phase.TRAIN, Phase.PUBLISH, Phase.ACCEPT])
def test_a_run_that_is_killed_goes_on_to_the_same_files(
    finished: RunFolder, tmp_path: Path, cut: Phase
) -> None:
    folder = copied(finished, tmp_path)
    whole = folder.journal.read_bytes()
    made = {p: p.read_bytes() for i in (1, 2, 3, 4) for p in folder.round(i).shards("examples")}
    cut_before(folder, cut, 2)
    resume_experiment(folder)
    assert folder.journal.read_bytes() == whole
    assert {p: p.read_bytes() for p in made} == made
    assert problems(folder) == []


def test_samples_ahead_that_were_lost_are_made_again_by_the_version_that_made_them(
    finished: RunFolder, tmp_path: Path
) -> None:
    folder = copied(finished, tmp_path)
    whole = folder.journal.read_bytes()
    cut_before(folder, Phase.COLLECT, 3)
    (lost, *_) = folder.round(3).shards("trajectories")
    lost.unlink()
    resume_experiment(folder)
    assert folder.journal.read_bytes() == whole
    assert samplers(folder, 3) == {1}


def test_rejected_rounds_leave_what_the_serving_version_sampled_and_no_other(
    tmp_path: Path,
) -> None:
    never = {"type": "if_better", "margin": 5.0}
    folder = run(tmp_path, acceptance=never, limits={"max_rejected_rounds": 9})
    results = results_of(folder)
    assert [r.after for r in results] == [0] * 5
    assert [samplers(folder, i) for i in (1, 2, 3, 4)] == [{0}] * 4
    reused = [r.metrics.get("train/reused_examples", 0.0) for r in results[1:]]
    assert reused[0] == 0
    assert reused[-1] > reused[1] > 0
    assert problems(folder) == []


def test_policies_that_sample_ahead_are_kept(tmp_path: Path) -> None:
    folder = run(tmp_path, rounds=5, retention={"policies": "best"})
    assert problems(folder) == []
    assert [samplers(folder, i) for i in (4, 5)] == [{2}, {3}]


def test_the_sampler_of_a_round_follows_from_who_served(tmp_path: Path) -> None:
    ahead, plain = fake_config(tmp_path, rollout=AHEAD), fake_config(tmp_path)
    served = [0, 1, 1, 3]
    assert [sampling_version(ahead, served, i) for i in (1, 2, 3, 4)] == [0, 0, 1, 1]
    assert [sampling_version(plain, served, i) for i in (1, 2, 3, 4)] == [0, 1, 1, 3]


def test_a_share_of_an_earlier_policy_is_earlier_than_what_samples(tmp_path: Path) -> None:
    mixture = [{"rounds_ago": 1, "samples": 1}]
    folder = run(tmp_path, rollout={**AHEAD, "mixture": mixture}, retention={"policies": "best"})
    assert [samplers(folder, i) for i in (3, 4)] == [{0, 1}, {1, 2}]
    assert problems(folder) == []


def test_prompts_of_the_next_round_that_were_damaged_are_drawn_again(
    finished: RunFolder, tmp_path: Path
) -> None:
    folder = copied(finished, tmp_path)
    whole = folder.journal.read_bytes()
    cut_before(folder, Phase.TRAIN, 1)
    for kept in (2, 3, 4):
        for path in folder.round(kept).shards("trajectories"):
            path.unlink()
            marker_path(path).unlink()
    damaged = folder.round(2).shard(1).prompts
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(bytes(content))
    resume_experiment(folder)
    assert folder.journal.read_bytes() == whole


STUMBLING = """
from policies.base.errors import RolloutError
from workers.rollout.strategies.independent import Independent


class Stumbling(Independent):
    def run(self, job, engine):
        from pathlib import Path

        if job.scope == "r2" and not (Path(__file__).parent / "mended").exists():
            raise RolloutError("round 2 cannot be sampled")
        return super().run(job, engine)
"""


def test_an_error_of_sampling_ahead_does_not_cost_the_update(tmp_path: Path) -> None:
    (tmp_path / "stumbling.py").write_text(STUMBLING, encoding="utf-8")
    strategy = {"type": f"{tmp_path}/stumbling.py:Stumbling"}
    with pytest.raises(PawlError, match="round 2 cannot be sampled"):
        run(tmp_path, rollout={**AHEAD, "strategy": strategy})
    folder = RunFolder(tmp_path / "run")
    assert [result.round for result in results_of(folder)] == [0, 1], "round 1 was finished first"
    assert any("is put off: " in json.dumps(event) for event in events(folder))
    (tmp_path / "mended").touch()
    resume_experiment(folder)
    assert [result.round for result in results_of(folder)] == [0, 1, 2, 3, 4]


def test_a_gap_that_cannot_be_measured_is_not_promised(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"rollout\.ahead=0, or limits\.on_logprob_gap"):
        fake_config(tmp_path, rollout=AHEAD, limits={"on_logprob_gap": "refuse"})


def test_show_opens_the_last_round_that_was_decided_and_none_that_was_only_sampled(
    tmp_path: Path,
) -> None:
    never = {"type": "if_better", "margin": 5.0}
    folder = run(tmp_path, acceptance=never, limits={"max_rejected_rounds": 2})
    assert folder.rounds()[-1] == 3, "sampled ahead, and the run ended before"
    done = CliRunner().invoke(app, ["show", str(folder.path), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["round"] == 2
