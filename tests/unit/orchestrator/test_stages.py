"""Stages: which rounds they cover, what they change, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from orchestrator.config.run_config import RunConfig
from orchestrator.driver.launch import run_experiment
from orchestrator.inspect.audit.run import audit
from orchestrator.plan.preflight import make_plan
from orchestrator.runs.folder import RunFolder
from policies.base.records import RoundStatus, Trajectory
from policies.storage.artifacts import read_records
from tests.support.fake_runs import fake_config

UNPAIRED = {
    "name": "single",
    "rounds": 2,
    "preferences": {"type": "thresholded"},
    "training": {"loss": {"type": "kto"}, "learning_rate": 3e-6},
}


def config(root: Path, **changes: Any) -> RunConfig:
    """Three rounds in batches of four."""
    training = {"engine": {"type": "fake"}, "batch_size": 4}
    return fake_config(root, **({"rounds": 3, "training": training} | changes))


def test_without_stages_the_whole_run_is_one(tmp_path: Path) -> None:
    settings = config(tmp_path)
    (only,) = settings.resolved_stages
    assert (only.first_round, only.last_round, only.training) == (1, 3, settings.training)


def test_a_stage_changes_what_it_names_and_keeps_the_rest(tmp_path: Path) -> None:
    settings = config(tmp_path, stages=[UNPAIRED, "preference"])
    single, preference = settings.resolved_stages
    assert (single.first_round, single.last_round) == (1, 2)
    assert (single.training.loss.type, single.training.learning_rate) == ("kto", 3e-6)
    assert single.training.batch_size == 4, "what the stage does not name is the run's"
    assert (preference.first_round, preference.last_round) == (3, 3)
    assert preference.training == settings.training
    assert [settings.builder_of(r).kind_name for r in (0, 1, 2, 3)] == ["unpaired"] * 3 + ["pair"]


def test_the_bare_names_stand_for_a_round_of_sft_and_the_run_as_set(tmp_path: Path) -> None:
    sft, preference = config(tmp_path, stages=["sft", "preference"]).resolved_stages
    assert (sft.last_round, sft.training.loss.type, sft.preferences.type) == (1, "sft", "imitate")
    assert (preference.first_round, preference.last_round) == (2, 3)


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (["warm_up"], "known: sft, preference"),
        ([{"name": "a"}, {"name": "b"}], r"stages\[0\].rounds is missing"),
        ([{"name": "a", "rounds": 2}], "do not add up"),
        ([{"name": "a", "rounds": 3}, {"name": "b"}], "do not add up"),
        ([{"name": "a", "training": {"learning_rate": -1}}], r"stages\[0\].training"),
        ([{"name": "a", "training": {"speed": 1}}], "speed"),
        ([{"name": "a", "training": {"resources": {"num_cpus": 1}}}], "cannot be set"),
        ([{"name": "a", "training": {"loss": {"type": "kto"}}}], "learns from unpaired examples"),
        ([{"name": "a", "preferences": {"type": "nothing"}}], "unknown preference builder"),
    ],
)
def test_a_stage_that_cannot_work_is_refused_by_name(
    tmp_path: Path, stages: list[Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        config(tmp_path, stages=stages)


def test_unmasked_training_needs_recomputed_reference_logprobs(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="logprobs: recompute"):
        config(tmp_path, training={"engine": {"type": "fake"}, "loss_mask": "completion"})


def test_verifiers_of_steps_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="nothing scores whole trajectories"):
        config(tmp_path, verifiers=[{"type": "numeric_match", "level": "step"}])


def test_a_loss_of_steps_needs_something_that_judges_steps(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "preferences": {"type": "thresholded"},
        "training": {"engine": {"type": "fake"}, "loss": {"type": "step_kto"}},
    }
    with pytest.raises(ValidationError, match="nothing judges steps"):
        config(tmp_path, **changes)
    judged = [{"type": "numeric_match"}, {"type": "numeric_match", "name": "s", "level": "step"}]
    assert config(tmp_path, verifiers=judged, **changes).rounds == 3


def test_a_run_goes_through_its_stages_with_their_own_examples(tmp_path: Path) -> None:
    settings = config(tmp_path, stages=[UNPAIRED, "preference"])
    summary = run_experiment(settings, RunFolder(tmp_path / "run"), source="", observers=())
    trained = (RoundStatus.IMPROVED, RoundStatus.KEPT)
    assert [r.status in trained for r in summary.results[1:]] == [True] * 3
    columns = [
        set(pq.read_schema(tmp_path / f"run/rounds/000{r}/examples/shard-0000.parquet").names)
        for r in (1, 2, 3)
    ]
    assert ["desirable" in names for names in columns] == [True, True, False]
    assert ["rejected" in names for names in columns] == [False, False, True]


def test_the_initial_reference_of_a_stage_is_the_policy_that_the_stage_began_with(
    tmp_path: Path,
) -> None:
    settings = config(
        tmp_path,
        training={"engine": {"type": "fake"}, "reference": {"type": "initial"}},
        stages=[UNPAIRED, "preference"],
    )
    summary = run_experiment(settings, RunFolder(tmp_path / "run"), source="", observers=())
    assert [r.reference.split(" (")[0] for r in summary.results[1:]] == [
        "version 0",
        "version 0",
        "version 2",
    ]


def test_earlier_policies_give_their_share_of_the_samples(tmp_path: Path) -> None:
    rollout = {
        "engine": {"type": "fake"},
        "samples_per_prompt": 4,
        "prompts_per_shard": 3,
        "mixture": [{"rounds_ago": 1, "samples": 2}],
    }
    settings = config(
        tmp_path,
        rollout=rollout,
        training={"engine": {"type": "fake"}, "reference": {"type": "refresh"}},
    )
    run_experiment(settings, RunFolder(tmp_path / "run"), source="", observers=())
    path = tmp_path / "run/rounds/0003/trajectories/shard-0000.parquet"
    rows = read_records(path, Trajectory)
    by_sample = {(t.sample_index, t.policy_version) for t in rows}
    assert by_sample == {(0, 2), (1, 2), (2, 2), (3, 2), (4, 1), (5, 1)}
    assert len({t.id for t in rows}) == len(rows) == 18


def test_a_stage_of_demonstrations_makes_one_attempt_whatever_the_rounds_after_it_make(
    tmp_path: Path,
) -> None:
    tools = {"type": "tool_arithmetic", "count": 8, "held_out": 4}
    warm_up = {
        "name": "warm_up",
        "rounds": 1,
        "strategy": {"type": "demonstrations"},
        "preferences": {"type": "imitate"},
        "training": {"loss": {"type": "sft"}},
    }
    settings = config(
        tmp_path,
        rounds=2,
        prompts={
            "train": tools | {"demonstrations": True},
            "held_out": tools | {"split": "held_out"},
            "per_round": 6,
        },
        rollout={
            "engine": {"type": "fake"},
            "samples_per_prompt": 4,
            "mixture": [{"rounds_ago": 1, "samples": 2}],
        },
        stages=[warm_up, "preference"],
    )
    folder = RunFolder(tmp_path / "run")
    run_experiment(settings, folder, source="", observers=())
    shards = [folder.round(r).shard(0) for r in (1, 2)]
    taken = [
        sorted(t.sample_index for t in read_records(shard.of("trajectories"), Trajectory))
        for shard in shards
    ]
    assert taken == [[0] * 6, sorted([0, 1, 2, 3, 4, 5] * 6)]
    examples = pq.read_table(shards[0].of("examples")).num_rows
    assert examples == 6, "each demonstration is one example and not four"
    assert audit(folder).num_problems == 0
    plan = make_plan(settings, run_folder=tmp_path / "another")
    said = [line.found for line in plan.lines if line.what == "a round"]
    assert "stage warm_up: 1 attempt at each prompt and not 6" in said[0]


def test_demonstrations_cannot_be_what_held_out_prompts_are_attempted_with(tmp_path: Path) -> None:
    rollout = {"engine": {"type": "fake"}, "strategy": {"type": "demonstrations"}}
    sft = {"engine": {"type": "fake"}, "loss": {"type": "sft"}}
    with pytest.raises(ValidationError, match="the policy would not be measured"):
        config(tmp_path, rollout=rollout, preferences={"type": "imitate"}, training=sft)
