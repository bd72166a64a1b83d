"""Whole runs with fakes that learn from answers of a log and from revisions: authors, origins, scores, audit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.config.run_config import RunConfig
from orchestrator.driver.launch import run_experiment
from orchestrator.inspect.audit.run import audit
from orchestrator.inspect.views.trace import trace
from orchestrator.plan.answers import plan_answers
from orchestrator.plan.lines import Plan
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.report import write_report
from orchestrator.runs.state import results_of, stream, stream_examples
from policies.base.records import Author, Message, Prompt, Trajectory
from policies.examples.kinds import PreferencePair
from tests.support.fake_runs import arithmetic, fake_config, fake_tree


def finished(tmp_path: Path, **changes: Any) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    run_experiment(fake_config(tmp_path, rounds=1, **changes), folder, source="")
    report = audit(folder, deep=True)
    assert not report.num_problems, [p for check in report for p in check.problems]
    return folder


def pairs(folder: RunFolder) -> list[PreferencePair]:
    found = [e for e in stream_examples(folder.round(1)) if isinstance(e, PreferencePair)]
    assert found
    return found


def shown(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def rows(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    lines = [
        {
            "prompt": f"What is {a} times 7?",
            "answer": 7 * a,
            "chosen": f"It is {7 * a}.",
            "rejected": f"It is {7 * a + 1}.",
        }
        for a in range(2, 8)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("verifier", ["numeric_match", "recorded_choice"])
def test_offline_pairs_are_learned_from_a_file_of_chosen_and_rejected(
    tmp_path: Path, verifier: str
) -> None:
    columns = {"metadata": ["chosen", "rejected"]}
    train = {"type": "jsonl", "path": str(rows(tmp_path)), "format": "plain", "columns": columns}
    offline = {
        "name": "offline",
        "strategy": {"type": "logged_answers", "columns": ["chosen", "rejected"]},
    }
    folder = finished(
        tmp_path,
        samples=2,
        prompts={"train": train, "held_out": arithmetic("held_out"), "per_round": 6},
        verifiers=[{"type": verifier}],
        evaluation={"verifiers": [{"type": "numeric_match"}]},
        stages=[offline],
    )
    attempts = {t.id: t for t in stream(folder.round(1), "trajectories", Trajectory)}
    assert {t.author for t in attempts.values()} == {Author.LOG}
    made = pairs(folder)
    assert len(made) == 6
    for pair in made:
        right = int(attempts[pair.chosen.trajectory_id].completion.strip("It is."))
        assert right % 7 == 0
        assert (pair.chosen.logprobs, pair.rejected.logprobs) == ((), ())
    metrics = results_of(folder)[1].metrics
    assert metrics["rollout/author/log_share"] == 1.0
    assert metrics["train/examples"] == 6
    assert "  log\n" in shown("show", folder.path, "--round", 1, "--trajectories")
    assert ", by log" in shown("show", folder.path, "--round", 1, "--pairs")
    assert "  log\n" in shown("trace", folder.path, made[0].id)


def test_a_log_without_the_answers_is_refused_before_the_run(tmp_path: Path) -> None:
    offline = {"name": "offline", "strategy": {"type": "logged_answers", "columns": ["choosen"]}}
    plan = Plan()
    train = [Prompt(id="a", messages=(Message(role="user", content="?"),), answer=1)]
    plan_answers(fake_config(tmp_path, stages=[offline]), plan, train, [])
    (line,) = plan.lines
    assert line.verdict == "problem"
    assert "1 of 1 prompts cannot be attempted by logged_answers (stage offline)" in line.found
    assert "0 of 2 answers" in line.found
    assert "Fix: " in line.found


def test_revisions_are_paired_with_their_origins(tmp_path: Path) -> None:
    folder = finished(
        tmp_path,
        high=9,
        per_round=12,
        stages=[{"name": "refine", "strategy": {"type": "revise"}}],
        preferences={"type": "revisions"},
    )
    attempts = {t.id: t for t in stream(folder.round(1), "trajectories", Trajectory)}
    assert len(attempts) == 48
    made = pairs(folder)
    for pair in made:
        winner = attempts[pair.chosen.trajectory_id]
        assert winner.author is Author.EDIT
        assert winner.derived_from == pair.rejected.trajectory_id
        assert pair.chosen.prompt == pair.rejected.prompt == winner.prompt_token_ids
        assert pair.chosen.logprobs == ()
        assert len(pair.rejected.logprobs) == len(pair.rejected.token_ids)
    metrics = results_of(folder)[1].metrics
    assert metrics["rollout/author/edit_share"] == 0.5
    assert metrics["rollout/entropy"] > 0
    assert "eval/pass@1" in metrics, "held-out prompts are attempted without revisions"
    facts = trace(folder, made[0].id)
    assert facts["trajectories"][0]["derived_from"] == facts["trajectories"][1]["id"]
    assert f"edit of {made[0].rejected.trajectory_id}" in shown("trace", folder.path, made[0].id)
    report = write_report(folder)[1].read_text()
    assert "| edit | policy |" in report


def test_strategies_that_do_not_measure_the_policy_are_refused_for_held_out_prompts(
    tmp_path: Path,
) -> None:
    for name in ("revise", "logged_answers", "demonstrations"):
        rollout = {"engine": {"type": "fake"}, "strategy": {"type": name}}
        with pytest.raises(ValueError, match="the policy would not be measured"):
            fake_config(tmp_path, rollout=rollout)


def test_the_examples_of_the_documentation_can_be_pasted(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs/learning-data.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        tree = fake_tree(tmp_path)
        for section, values in yaml.safe_load(block).items():
            old = tree.get(section)
            tree[section] = (
                {**old, **values} if isinstance(old, dict) and isinstance(values, dict) else values
            )
        RunConfig.model_validate(tree)
