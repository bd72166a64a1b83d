"""The installed command on real Ray, vLLM, TRL, MLflow and the demo model: small runs, whole path."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.runs.folder import RunFolder
from policies.base.records import Trajectory
from policies.examples.kinds import PreferencePair, UnpairedExample
from policies.storage.artifacts import read_records
from tests.e2e.demo_model import demo_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SMALL = [
    "prompts.per_round=4",
    "rollout.samples_per_prompt=8",
    "rollout.max_tokens=24",
    "rollout.prompts_per_shard=2",
    "prompts.train.low=2",
    "prompts.train.high=6",
    "prompts.train.held_out=4",
    "prompts.held_out.low=2",
    "prompts.held_out.high=6",
    "prompts.held_out.held_out=4",
    "evaluation.samples_per_prompt=4",
    "acceptance={type: always}",  # so few prompts measure nothing: every round must go on from the last
]


def pawl(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    demo_model()
    command = [str(Path(sys.executable).with_name("pawl")), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=580, check=False, cwd=folder
    )


def status(folder: Path, name: str) -> dict[str, Any]:
    done = pawl(folder, "status", f"runs/{name}", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_dpo_runs_whole_and_what_it_leaves_is_right(tmp_path: Path) -> None:
    done = pawl(
        tmp_path,
        "run",
        "quickstart",
        *SMALL,
        "rounds=2",
        "preferences.pairs_per_prompt=1",
        "training.batch_size=2",  # two steps: as many pairs as say that the weights moved
        "training.learning_rate=2.0e-5",
        "--name",
        "dpo",
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = status(tmp_path, "dpo")
    assert found["state"] == "finished"
    assert [r["round"] for r in found["rounds"]] == [0, 1, 2]
    trained = found["rounds"][1]["metrics"]
    # The reference is the sampler: at the first step nothing has moved, so the loss is ln 2 but for the
    # difference between vLLM's and the trainer's bf16.
    assert trained["train/loss_first"] == pytest.approx(math.log(2), abs=0.05)
    for each in found["rounds"][1:]:
        assert each["metrics"]["health/logprob_gap"] < 0.08, (
            "the sampler served the weights that the trainer wrote"
        )
        assert each["metrics"]["verify/numeric_match/errors"] == 0

    run = RunFolder(tmp_path / "runs/dpo").round(2)
    trajectories = {
        t.id: t for p in run.shards("trajectories") for t in read_records(p, Trajectory)
    }
    assert {t.policy_version for t in trajectories.values()} == {1}
    pairs = [e for p in run.shards("examples") for e in read_records(p, PreferencePair)]
    assert pairs
    for pair in pairs:
        for side in (pair.chosen, pair.rejected):
            source = trajectories[side.trajectory_id]
            assert side.token_ids == source.token_ids, "what was sampled is what is trained on"
            assert side.loss_mask == source.loss_mask

    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("quickstart")
    runs = client.search_runs([experiment.experiment_id])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert len(parents) == 1
    assert parents[0].info.status == "FINISHED"
    assert len(runs) == 4, "one parent, rounds 0 to 2"
    curve = client.get_metric_history(parents[0].info.run_id, "eval/pass_at_1")
    assert [m.step for m in curve] == [0, 1, 2]

    traced = pawl(tmp_path, "trace", "runs/dpo", pairs[0].id, "--json")
    assert traced.returncode == 0, traced.stderr


def test_kto_with_lora_and_a_moving_average_reference_runs_whole(tmp_path: Path) -> None:
    done = pawl(
        tmp_path,
        "run",
        "quickstart-kto",
        *SMALL,
        "rounds=2",
        "preferences.max_per_class=1",
        "training.batch_size=4",
        "training.reference={type: moving_average, alpha: 0.5}",
        "policy.adapter={rank: 8}",
        "training.learning_rate=2.0e-4",
        "--name",
        "kto",
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    rounds = status(tmp_path, "kto")["rounds"]
    first = rounds[1]["metrics"]
    # With policy = reference each example's loss is half its class weight, and the weights follow the counts.
    weights = [first["train/desirable_weight"], first["train/undesirable_weight"]]
    assert 0.5 * min(weights) - 0.05 < first["train/loss_first"] < 0.5 * max(weights) + 0.05
    assert (
        "0.5 x version 0 + 0.5 x version 1" in RunFolder(tmp_path / "runs/kto").journal.read_text()
    )
    assert rounds[2]["metrics"]["health/logprob_gap"] < 0.08, (
        "merged adapters were published and served"
    )
    examples = [
        e
        for p in RunFolder(tmp_path / "runs/kto").round(1).shards("examples")
        for e in read_records(p, UnpairedExample)
    ]
    assert {e.desirable for e in examples} == {True, False}


def test_a_frozen_version_of_the_policy_judges_in_both_orders_and_its_verdicts_are_learned_from(
    tmp_path: Path,
) -> None:
    done = pawl(
        tmp_path,
        "run",
        "judge-dpo",
        *SMALL,
        "rollout.max_tokens=64",  # of two answers that were cut there is nothing to compare
        "rounds=1",
        "rollout.samples_per_prompt=4",
        "evaluation.samples_per_prompt=1",  # nothing is read from it here
        "--name",
        "judge",
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    metrics = status(tmp_path, "judge")["rounds"][1]["metrics"]
    assert metrics["judge/pairwise/comparisons"] > 0
    assert metrics["judge/pairwise/error_share"] < 0.5
    assert 0 <= metrics["judge/pairwise/agreement"] <= 1
