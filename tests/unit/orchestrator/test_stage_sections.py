"""A stage may sample, draw, decide and learn otherwise than the run, and says so in its own words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.config.run_config import RunConfig
from orchestrator.driver.launch import resume_experiment, run_experiment
from orchestrator.inspect.audit.run import audit
from orchestrator.runs.folder import RunFolder
from policies.base.errors import InputError, ResumeError
from policies.base.records import Prompt, RoundStatus, Trajectory
from policies.storage.artifacts import read_records
from tests.support.fake_runs import arithmetic, fake_tree


def own_prompts(home: Path, number: int = 3) -> dict[str, Any]:
    """A source of prompts that the run's own has not."""
    path = home / "easy.jsonl"
    rows = [{"question": f"What is {n} plus 0?", "answer": str(n)} for n in range(number)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"type": "jsonl", "path": str(path)}


def config(home: Path, stages: list[Any], **changes: Any) -> RunConfig:
    return RunConfig.model_validate(fake_tree(home, stages=stages, **{"rounds": 2, **changes}))


def trajectories(folder: RunFolder, index: int) -> list[Trajectory]:
    paths = folder.round(index).shards("trajectories")
    return [t for path in paths for t in read_records(path, Trajectory)]


def prompts(folder: RunFolder, index: int) -> list[Prompt]:
    return read_records(folder.round(index).prompts, Prompt)


def test_a_stage_samples_draws_and_decides_by_its_own_keys(tmp_path: Path) -> None:
    first = {
        "name": "warm_up",
        "rounds": 1,
        "prompts": {"train": own_prompts(tmp_path), "per_round": 2},
        "rollout": {"samples_per_prompt": 6, "temperature": 0.5, "mixture": [{"samples": 1}]},
        "acceptance": {"type": "if_better", "margin": -1.0},
    }
    settings = config(tmp_path, [first, "preference"])
    folder = RunFolder(tmp_path / "run")
    summary = run_experiment(settings, folder, source="", observers=())
    assert [r.status for r in summary.results[1:]] != [RoundStatus.SKIPPED] * 2
    warm, usual = trajectories(folder, 1), trajectories(folder, 2)
    assert {t.sampling.temperature for t in warm} == {0.5}
    assert {t.sampling.temperature for t in usual} == {1.0}
    assert [len(prompts(folder, i)) for i in (1, 2)] == [2, 6]
    assert [len(warm), len(usual)] == [2 * 7, 6 * 4]
    assert all("plus 0" in p.messages[-1].content for p in prompts(folder, 1))
    assert not any("plus 0" in p.messages[-1].content for p in prompts(folder, 2))
    assert [check for check in audit(folder, deep=True) if check.verdict == "wrong"] == []


def test_a_run_goes_on_only_with_the_prompts_that_its_stages_began_with(tmp_path: Path) -> None:
    own = {
        "name": "warm_up",
        "rounds": 1,
        "prompts": {"train": own_prompts(tmp_path), "per_round": 2},
    }
    folder = RunFolder(tmp_path / "run")
    run_experiment(config(tmp_path, [own, "preference"]), folder, source="", observers=())
    own_prompts(tmp_path, number=4)
    with pytest.raises(ResumeError, match=r"stages\[0\]\.prompts\.train changed since"):
        resume_experiment(folder)


def test_held_out_prompts_of_the_run_are_none_of_a_stage(tmp_path: Path) -> None:
    same = {"name": "all", "prompts": {"train": arithmetic("held_out"), "per_round": 2}}
    with pytest.raises(InputError, match=r"stages\[0\]\.prompts\.train and prompts\.held_out"):
        run_experiment(
            config(tmp_path, [same]), RunFolder(tmp_path / "run"), source="", observers=()
        )


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"rollout": {"engine": {"type": "fake"}}}, "rollout.engine cannot be set: a stage may"),
        ({"rollout": {"workers": 2}}, "rollout.workers cannot be set: the same workers serve"),
        ({"rollout": {"strategy": {"type": "independent"}}}, "give the stage `strategy`"),
        ({"rollout": {"temprature": 1}}, "temprature"),
        ({"prompts": {"held_out": {"type": "arithmetic"}}}, "measured on the same prompts"),
        ({"prompts": {"per_round": 0}}, r"stages\[0\].prompts"),
        ({"on_rejection": {"keep_examples": "perhaps"}}, r"stages\[0\].on_rejection"),
        ({"limits": {"max_skipped_rounds": 1}}, "limits"),
    ],
)
def test_what_a_stage_may_not_change_is_refused_by_name(
    tmp_path: Path, stage: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        config(tmp_path, [{"name": "a", **stage}])


def test_plan_and_validate_look_at_the_prompts_of_every_stage(tmp_path: Path) -> None:
    large = {"name": "a", "prompts": {"train": own_prompts(tmp_path), "per_round": 4}}
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(fake_tree(tmp_path, stages=[large])), encoding="utf-8")
    for command in ("validate", "plan"):
        done = CliRunner().invoke(app, [command, str(path)])
        said = " ".join(done.output.split())
        assert done.exit_code == 2, said
        assert "a round draws 4 prompts, but stages[0].prompts.train has 3" in said


def test_a_stage_changes_one_key_of_a_section_and_gives_a_component_whole(tmp_path: Path) -> None:
    training = {
        "engine": {"type": "fake"},
        "loss": {"type": "dpo", "beta": 0.3},
        "replay": {"rounds": 2, "share": 0.1, "decay": 0.5},
    }
    late = {"name": "late", "training": {"replay": {"rounds": 4}, "loss": {"type": "ipo"}}}
    (stage,) = config(tmp_path, [late], training=training).resolved_stages
    replay = stage.training.replay
    assert replay is not None
    assert (replay.rounds, replay.share, replay.decay) == (4, 0.1, 0.5)
    assert stage.training.loss.type == "ipo"
