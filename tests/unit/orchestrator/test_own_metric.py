"""A metric of a user's own is one file and one key; it is reported of every round, and one that fails stops nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.inspect.audit.run import audit
from orchestrator.runs.folder import RunFolder
from policies.base.measured import reduced
from policies.base.records import Message, Prompt, ScoredGroup, Trajectory
from policies.storage.artifacts import read_records
from tests.support.fake_runs import fake_tree
from workers.scoring.metric import Metric, measured

MINE = '''
"""Numbers of my own."""

from pawl import Metric, Reduction


class Letters(Metric):
    """Letters of the longest and of the mean answer."""

    reduction = Reduction.MAX

    def measure(self, group):
        return max(len(t.completion) for t in group.trajectories)


class Broken(Metric):
    """Fails on half of all prompts."""

    def measure(self, group):
        if int(group.prompt.answer) % 2:
            raise KeyError("odd")
        return {"even": 1.0}
'''


def pawl(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.output


def config_file(home: Path, metrics: list[Any], **changes: Any) -> Path:
    (home / "mine.py").write_text(MINE, encoding="utf-8")
    path = home / "config.yaml"
    tree = fake_tree(home, metrics=metrics, **changes)
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def rounds_of(folder: Path) -> list[dict[str, float]]:
    code, said = pawl("status", folder, "--json")
    assert code == 0, said
    return [each["metrics"] for each in json.loads(said)["rounds"]]


@pytest.mark.parametrize("separate", [False, True])
def test_a_metric_of_ones_own_is_reported_of_rounds_and_of_held_out_prompts(
    tmp_path: Path, separate: bool
) -> None:
    ours = {"evaluation": {"verifiers": [{"type": "numeric_match"}]}} if separate else {}
    metrics = [f"{tmp_path}/mine.py:Letters", "distinct_answers", "score_spread"]
    config = config_file(tmp_path, [{"type": name} for name in metrics], **ours)
    code, said = pawl("run", config, "--runs-dir", tmp_path / "runs", "--name", "mine")
    assert code == 0, said
    folder = RunFolder(tmp_path / "runs" / "mine")
    untrained, first, _ = rounds_of(folder.path)
    name = "metric/Letters"
    assert name not in untrained, "round 0 collects nothing"
    rows = [
        read_records(path, Trajectory)
        for shard in (folder.round(1), folder.round(1).evaluation)
        for path in shard.shards("trajectories")
    ]
    longest = [max(len(t.completion) for t in of_one) for of_one in rows]
    collected = len(folder.round(1).shards("trajectories"))
    assert first[name] == max(longest[:collected])
    assert first[f"eval/{name}"] == max(longest[collected:])
    assert {f"eval/{name}", "eval/metric/distinct_answers"} <= untrained.keys()
    assert 0 < first["metric/distinct_answers"] <= 1
    assert first["metric/score_spread/range"] >= first["metric/score_spread/std"] > 0
    assert [check for check in audit(folder, deep=True) if check.verdict == "wrong"] == []


def test_a_metric_that_fails_is_left_out_counted_and_told(tmp_path: Path) -> None:
    config = config_file(tmp_path, [{"type": f"{tmp_path}/mine.py:Broken", "name": "mine"}])
    code, said = pawl("run", config, "--runs-dir", tmp_path / "runs", "--name", "broken")
    assert code == 0, said
    *_, last = rounds_of(tmp_path / "runs" / "broken")
    assert last["eval/metric/mine/errors"] == 2
    assert last["metric/mine/even"] == last["eval/metric/mine/even"] == 1.0
    events = (tmp_path / "runs" / "broken" / "events.jsonl").read_text(encoding="utf-8")
    assert "metrics: 'mine' could not measure" in events
    assert "KeyError" in events


def test_a_prompt_with_one_number_that_is_none_counts_in_no_number() -> None:
    metric = Halves(Halves.Config(type="halves"))
    groups = [ScoredGroup(prompt=prompt(i), trajectories=(), feedback=()) for i in (1, 2, 3)]
    entries = measured([metric], groups)
    assert reduced([entries]) == {"metric/halves/whole": 1.0, "metric/halves/half": 0.5}
    assert entries["metric_errors"]["halves"][0] == 2


class Halves(Metric):
    """Measures two numbers of a prompt, of which one is no number for odd prompts."""

    def measure(self, group: ScoredGroup) -> dict[str, float]:
        return {"whole": 1.0, "half": 0.5 if int(group.prompt.id) % 2 == 0 else math.nan}


def prompt(number: int) -> Prompt:
    return Prompt(id=str(number), messages=(Message(role="user", content="?"),))


def test_two_metrics_of_one_name_are_refused(tmp_path: Path) -> None:
    code, said = pawl("validate", config_file(tmp_path, [{"type": "score_spread"}] * 2))
    assert code == 2
    assert "two metrics are called score_spread" in said
