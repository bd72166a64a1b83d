"""Feedback as named scores, in whole runs: a reward model in one file, votes without answers, remedies to paste."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.config.files import load_config
from orchestrator.config.gpu_counts import with_gpu_counts
from orchestrator.config.run_config import RunConfig
from orchestrator.inspect.audit.run import audit
from orchestrator.plan.preflight import make_plan
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.judge_models import judge_model_names
from policies.base.records import Feedback, Trajectory, Verdict
from policies.examples.kinds import PreferencePair
from policies.plug_ins.stand_ins import is_stand_in
from policies.storage.artifacts import read_records
from policies.storage.fake_model import write_fake_model
from tests.support.fake_runs import fake_tree

REWARD = '''
"""A reward model: the one file that it takes."""

from policies.base.requirements import ModelRequirement, Requirements
from pawl import Judge, ScoringJudge


class Brevity(ScoringJudge):
    """Rewards short answers, by a table beside its weights."""

    class Config(Judge.Config):
        """Settings."""

        weights: str
        sign: float = 1.0

        def requires(self):
            model = ModelRequirement(
                name=self.weights, set_by="weights", gpus=1, memory_bytes=3_000_000_000
            )
            return super().requires() + Requirements(models=(model,), raw_scores=True)

    def start(self):
        self.loaded = self.context.model_version(self.config.weights)

    def identity(self):
        return f"brevity {self.loaded.digest[:12]} {self.config.sign:g}"

    def score(self, batch):
        self.usage["calls"] += len(batch)
        return [self.config.sign * (10.0 - 3.0 * len(each.answer)) for each in batch]
'''
JUDGED = {"evaluation": {"desirable_at": 0.5}, "feedback": {"desirable_at": 0.0}}


def write(root: Path, **changes: Any) -> Path:
    path = root / "c.yaml"
    path.write_text(json.dumps(fake_tree(root, **changes)))
    return path


def run(path: Path, folder: Path) -> RunFolder:
    named = ["--name", folder.name, "--runs-dir", str(folder.parent)]
    done = CliRunner().invoke(app, ["run", str(path), *named])
    assert done.exit_code == 0, done.output
    return RunFolder(folder)


def records(run: RunFolder, kind: Any, name: str) -> list[Any]:
    found = sorted((run.path / "rounds" / "0001" / name).glob("*.parquet"))
    return [record for path in found for record in read_records(path, kind)]


def reward_tree(root: Path, *, sign: float = 1.0, **changes: Any) -> dict[str, Any]:
    """Answers of three or four characters, rewarded for being short; nothing else trains."""
    (root / "brevity.py").write_text(REWARD)
    weights = root / "reward"
    if not weights.exists():
        write_fake_model(weights, 0.5)
    judge = {"type": f"{root}/brevity.py:Brevity", "name": "brevity"}
    return {
        "verifiers": [],
        "judges": [{**judge, "weights": str(weights), "sign": sign}],
        "evaluation": {"verifiers": [{"type": "numeric_match"}], "desirable_at": 0.5},
        "feedback": {"desirable_at": 0.0},
        "preferences": {"type": "best_vs_worst", "margin": 2.5},
        "rounds": 1,
        **changes,
    }


def test_a_reward_model_is_one_file_and_a_key_planned_with_its_memory_and_given_a_gpu(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, **reward_tree(tmp_path, verify={"judge_workers": 2}))
    config = load_config(str(path)).config
    assert is_stand_in(config.judges[0]), "its class is not imported here"
    plan = make_plan(config, run_folder=tmp_path / "runs" / "x", elsewhere=True)
    told = "\n".join(f"{line.what}: {line.found}" for line in plan.lines)
    assert "judges 6.0 GB" in told
    assert f"judge: brevity is the model {tmp_path / 'reward'}" in told
    assert with_gpu_counts(config, 4).verify.judge_resources.num_gpus == 1
    assert with_gpu_counts(config, 4).verify.resources.num_gpus == 0
    assert judge_model_names(config) == [str(tmp_path / "reward")]


def test_pairs_follow_raw_rewards_and_turn_around_with_the_sign_of_the_model(
    tmp_path: Path,
) -> None:
    lengths: dict[float, list[tuple[int, int]]] = {}
    for sign in (1.0, -1.0):
        path = write(tmp_path, **reward_tree(tmp_path, sign=sign))
        done = run(path, tmp_path / f"run{sign:g}")
        attempts = {t.id: t for t in records(done, Trajectory, "trajectories")}
        pairs = records(done, PreferencePair, "examples")
        size = {i: len(t.completion) for i, t in attempts.items()}
        lengths[sign] = [
            (size[p.chosen.trajectory_id], size[p.rejected.trajectory_id]) for p in pairs
        ]
        verdicts = records(done, Verdict, "judge_verdicts")
        assert all(v.raw and v.source == "brevity" for v in verdicts)
        assert min(v.score for v in verdicts) < 0 or max(v.score for v in verdicts) > 1
        assert {p.margin for p in pairs} <= {3.0 * n for n in range(1, 40)}
        assert all(0.9 < p.soft_label <= 1.0 for p in pairs), "sigmoid of the difference"
        feedback = records(done, Feedback, "feedback")
        assert all(f.desirable == (f.score >= 0) for f in feedback)
        assert not audit(done, deep=True).num_problems
    assert lengths[1.0], "the fake policy writes answers of several lengths"
    assert all(chosen < rejected for chosen, rejected in lengths[1.0])
    assert all(chosen > rejected for chosen, rejected in lengths[-1.0])


def test_prompts_without_answers_are_trained_on_by_the_vote_of_their_attempts(
    tmp_path: Path,
) -> None:
    rows = [{"prompt": f"What is {a} times {b}?"} for a in (7, 8) for b in range(7, 11)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    train = {"type": "jsonl", "path": str(tmp_path / "rows.jsonl")}
    tree = fake_tree(tmp_path)
    path = write(
        tmp_path,
        rounds=1,
        prompts={**tree["prompts"], "train": train},
        rollout={**tree["rollout"], "samples_per_prompt": 6},
        verifiers=[{"type": "majority_vote", "min_votes": 2}],
        evaluation={"verifiers": [{"type": "numeric_match"}]},
    )
    done = run(path, tmp_path / "run")
    attempts = {t.id: t for t in records(done, Trajectory, "trajectories")}
    verdicts = {v.trajectory_id: v for v in records(done, Verdict, "verdicts")}
    pairs = records(done, PreferencePair, "examples")
    assert pairs, "the vote found a majority somewhere"
    for pair in pairs:
        won, lost = verdicts[pair.chosen.trajectory_id], verdicts[pair.rejected.trajectory_id]
        assert won.metrics["vote_share"] > lost.metrics["vote_share"]
        prompt = attempts[pair.chosen.trajectory_id].prompt_id
        same = [v for i, v in verdicts.items() if attempts[i].prompt_id == prompt]
        assert won.metrics["vote_share"] == max(v.metrics["vote_share"] for v in same)
    assert not audit(done, deep=True).num_problems
    said = CliRunner().invoke(app, ["verify", str(done.path), "--deep"])
    assert said.exit_code == 0, said.output


FAKE_REWARD = [{"type": "fake_reward"}]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"judges": FAKE_REWARD}, "feedback.normalize: {fake_reward: rank}"),
        (
            {
                "judges": FAKE_REWARD,
                "verifiers": [],
                "evaluation": {"verifiers": ["numeric_match"]},
            },
            "feedback.normalize: {fake_reward: rank}",
        ),
        (
            {
                "judges": FAKE_REWARD,
                "verifiers": [],
                "evaluation": {"verifiers": ["numeric_match"]},
                "feedback": {"desirable_at": 0.0},
            },
            "evaluation.desirable_at: 0.5",
        ),
        (
            {
                "judges": FAKE_REWARD,
                "verifiers": [],
                "evaluation": {"verifiers": ["numeric_match"], "desirable_at": 0.5},
                "feedback": {"desirable_at": 0.0},
                "preferences": "imitate",
                "training": {"engine": "fake", "loss": "sft"},
            },
            "preferences.threshold: 0.0",
        ),
        ({"feedback": {"desirable_at": 2.0}}, "feedback.desirable_at: 0.5"),
        ({"evaluation": {"desirable_at": 2.0}}, "evaluation.desirable_at: 0.5"),
    ],
)
def test_what_raw_scores_leave_undefined_is_refused_with_a_remedy_that_works_when_pasted(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    changes = {
        **changes,
        "evaluation": {
            **changes.get("evaluation", {}),
            **(
                {"verifiers": [{"type": v} for v in changes["evaluation"]["verifiers"]]}
                if "verifiers" in changes.get("evaluation", {})
                else {}
            ),
        },
    }
    tree = fake_tree(tmp_path, **changes)
    with pytest.raises(ValueError, match="Set by: ") as refused:
        RunConfig.model_validate(tree)
    assert said in str(refused.value)
    # The remedy as it stands in the message, put where its dots say.
    setting, _, value = said.partition(": ")
    section, _, key = setting.partition(".")
    if isinstance(tree.get(section), str):
        tree[section] = {"type": tree[section]}
    tree.setdefault(section, {})[key] = yaml.safe_load(value)
    RunConfig.model_validate(tree)


def test_a_group_scale_says_nothing_of_a_policy_and_does_not_measure_one(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def length(completion):\n    return 3.0 * len(completion)\n")
    verifier = {"type": f"{tmp_path}/own.py:length", "name": "length", "raw": True}
    changes: dict[str, Any] = {
        "verifiers": [verifier],
        "feedback": {"normalize": {"length": "rank"}},
    }
    with pytest.raises(ValueError, match="every policy would measure the same"):
        RunConfig.model_validate(fake_tree(tmp_path, **changes))
    changes["feedback"]["normalize"]["length"] = "sigmoid"
    RunConfig.model_validate(fake_tree(tmp_path, **changes))


def test_a_combiner_that_needs_a_source_that_does_not_measure_is_refused(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "judges": FAKE_REWARD,
        "feedback": {"combine": {"type": "tiers", "sources": ["fake_reward", "numeric_match"]}},
    }
    with pytest.raises(ValueError, match="gives no score without fake_reward"):
        RunConfig.model_validate(fake_tree(tmp_path, **changes))
    changes["feedback"]["combine"]["sources"].reverse()
    RunConfig.model_validate(fake_tree(tmp_path, **changes))


def test_tiers_that_would_leave_all_steps_without_a_score_are_refused(tmp_path: Path) -> None:
    steps = [{"type": "format_rules", "must_match": ["[0-9]"], "level": "step"}]
    changes: dict[str, Any] = {
        "verifiers": [{"type": "numeric_match"}, *steps],
        "feedback": {"combine": {"type": "tiers", "sources": ["numeric_match", "format_rules"]}},
    }
    with pytest.raises(ValueError, match="which does not grade steps as format_rules does"):
        RunConfig.model_validate(fake_tree(tmp_path, **changes))
    changes["feedback"]["combine"] = {"type": "mean"}
    RunConfig.model_validate(fake_tree(tmp_path, **changes))


def test_a_verifier_and_a_reward_model_in_tiers_train_and_tell_how_far_sources_are_apart(
    tmp_path: Path,
) -> None:
    path = write(
        tmp_path,
        rounds=1,
        judges=[*FAKE_REWARD, {"type": "rubric", "backend": "fake"}],
        feedback={"combine": {"type": "tiers", "sources": ["numeric_match", "fake_reward"]}},
        preferences={"type": "all_pairs"},
    )
    done = run(path, tmp_path / "run")
    feedback = records(done, Feedback, "feedback")
    right = {
        v.trajectory_id: v.score
        for f in feedback
        for v in f.verdicts
        if not v.raw and v.source == "numeric_match"
    }
    assert all(f.desirable == (right[f.trajectory_id] == 1) for f in feedback)
    assert len({f.score for f in feedback}) > 2, "rewards order what is equally right"
    result = next(
        r
        for r in map(json.loads, done.journal.read_text().splitlines())
        if r["phase"] == "collect" and r["round"] == 1
    )
    assert result["result"]["counts"]["prefer/spreads"] == len(feedback)
    assert not audit(done, deep=True).num_problems


def yaml_blocks(document: str) -> list[dict[str, Any]]:
    text = (Path(__file__).parents[3] / document).read_text(encoding="utf-8")
    return [yaml.safe_load(part.split("```")[0]) for part in text.split("```yaml\n")[1:]]


@pytest.mark.parametrize("example", yaml_blocks("docs/judges.md"), ids=lambda e: "-".join(e))
def test_an_example_of_the_documentation_can_be_pasted(
    tmp_path: Path, example: dict[str, Any]
) -> None:
    config = RunConfig.model_validate(fake_tree(tmp_path) | example)
    assert config.judges or config.verifiers[0].type == "majority_vote"


def test_the_components_of_the_contributors_guide_work_as_they_stand(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    for name in ("brevity", "loudest"):
        (code,) = [block for block in blocks if block.startswith(f"# {name}.py")]
        (tmp_path / f"{name}.py").write_text(code)
    path = write(
        tmp_path,
        rounds=1,
        judges=[
            {"type": f"{tmp_path}/brevity.py:Brevity", "name": "brevity"},
            {"type": "rubric", "backend": {"type": "fake"}},
        ],
        feedback={
            "combine": {"type": f"{tmp_path}/loudest.py:Loudest"},
            "normalize": {"brevity": "min_max"},
        },
        preferences={"type": "best_vs_worst", "max_spread": 0.9},
    )
    done = run(path, tmp_path / "run")
    feedback = records(done, Feedback, "feedback")
    assert {f.score for f in feedback} <= {0.0, 1.0}, "numeric_match is always the loudest"
    counted = json.loads(done.journal.read_text().splitlines()[-1])["result"]["metrics"]
    assert counted["prefer/spread"] > 0
    assert counted["prefer/dropped/sources_disagree"] > 0
    assert not audit(done, deep=True).num_problems


def test_a_veto_of_what_does_not_measure_is_no_veto_there(tmp_path: Path) -> None:
    judged = {"combine": {"type": "veto", "sources": {"fake_reward": -3.0}}}
    tree = fake_tree(tmp_path, judges=[{"type": "fake_reward"}], feedback=judged)
    assert RunConfig.model_validate(tree).judges


def test_a_vote_measures_only_where_that_is_said(tmp_path: Path) -> None:
    vote = [{"type": "majority_vote"}]
    with pytest.raises(ValidationError, match="would grade held-out prompts by what the attempts"):
        RunConfig.model_validate(fake_tree(tmp_path, verifiers=vote))
    for measured in (vote, [{"type": "numeric_match"}]):
        tree = fake_tree(tmp_path, verifiers=vote, evaluation={"verifiers": measured})
        assert RunConfig.model_validate(tree).verifiers


def test_a_builder_of_revisions_needs_a_strategy_that_makes_them(tmp_path: Path) -> None:
    builder = {"type": "revisions"}
    with pytest.raises(ValidationError, match="there would be no example"):
        RunConfig.model_validate(fake_tree(tmp_path, preferences=builder))
    stages = [{"name": "refine", "strategy": {"type": "revise"}}]
    assert RunConfig.model_validate(fake_tree(tmp_path, preferences=builder, stages=stages)).stages
