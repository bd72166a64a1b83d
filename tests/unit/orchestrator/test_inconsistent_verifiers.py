"""A verifier whose verdict changes when it is asked again is told of, in every round; a steady one is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.driver.launch import run_experiment
from orchestrator.inspect.audit.run import audit
from orchestrator.runs.events import Event, EventKind
from orchestrator.runs.folder import RunFolder
from policies.base.records import RoundResult
from tests.support.fake_runs import fake_config

SEEN = """
seen = set()
def score(prompt, completion):
    again = (prompt, completion) in seen
    seen.add((prompt, completion))
"""
INCONSISTENT = SEEN + "    return not again\n"
STEADY = SEEN + "    return len(completion) % 2 == 0\n"
FAILING = SEEN + "    if again: raise ValueError('tired')\n    return 1.0\n"


def run_with(root: Path, source: str) -> tuple[list[str], list[RoundResult]]:
    """Warnings and results of a run of one verifier, one shard a round of three attempts."""
    plugin = root / "mine.py"
    plugin.write_text(source, encoding="utf-8")
    warnings: list[str] = []

    def observe(event: Event) -> None:
        if event.kind is EventKind.WARNING:
            warnings.append(str(event.detail["message"]))

    verifier = {"type": "callable", "function": f"{plugin}:score", "name": "mine"}
    config = fake_config(root, rounds=1, per_round=1, samples=3, per_shard=1, verifiers=[verifier])
    summary = run_experiment(config, RunFolder(root / "run"), source="", observers=[observe])
    return warnings, list(summary.results)


def test_a_verifier_that_contradicts_itself_is_named_and_counted(tmp_path: Path) -> None:
    warnings, results = run_with(tmp_path, INCONSISTENT)
    assert any("mine, asked again" in text and "1 of 1 shard(s)" in text for text in warnings)
    assert results[1].metrics["verify/mine/fickle_shards"] == 1
    assert audit(RunFolder(tmp_path / "run")).num_problems == 0


@pytest.mark.parametrize("source", [STEADY, FAILING], ids=["steady", "failing"])
def test_a_steady_verifier_and_a_failed_answer_are_not_taken_for_fickle(
    tmp_path: Path, source: str
) -> None:
    warnings, results = run_with(tmp_path, source)
    assert not any("asked again" in text for text in warnings)
    assert "verify/mine/fickle_shards" not in results[1].metrics
