"""Whole runs with fakes in one process: what becomes of a round, and of a run that goes wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.config.run_config import RunConfig
from orchestrator.driver.launch import RunSummary, resume_experiment, run_experiment
from orchestrator.runs.events import Event, EventKind, Observer, read_events
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.lease import claim
from policies.base.errors import (
    ConfigurationError,
    InputError,
    LimitExceededError,
    ResumeError,
    RolloutError,
)
from policies.base.process_identity import process_start
from policies.base.records import RoundStatus
from tests.support.fake_runs import arithmetic, fake_config


def run(tmp_path: Path, settings: RunConfig, observers: Sequence[Observer] = ()) -> RunSummary:
    return run_experiment(settings, RunFolder(tmp_path / "run"), source="", observers=observers)


def test_round_zero_measures_the_untrained_policy(tmp_path: Path) -> None:
    first = run(tmp_path, fake_config(tmp_path)).results[0]
    assert first.status is RoundStatus.UNTRAINED
    assert (first.before, first.after) == (0, 0)
    assert 0.0 <= first.metrics["eval/pass@1"] <= first.metrics["eval/pass@8"] <= 1.0


def test_each_round_trains_on_its_own_version_and_publishes_the_next(tmp_path: Path) -> None:
    results = run(tmp_path, fake_config(tmp_path)).results
    assert [(r.before, r.after) for r in results] == [(0, 0), (0, 1), (1, 2)]
    assert [r.reference for r in results[1:]] == [
        "version 0 (log-probs: rollout)",
        "version 1 (log-probs: rollout)",
    ]
    manifest = json.loads((tmp_path / "run/policies/0002/manifest.json").read_text())
    assert (manifest["parent"], manifest["round"]) == (1, 2)


def test_the_initial_reference_stays_the_starting_model(tmp_path: Path) -> None:
    training = {"engine": {"type": "fake"}, "reference": {"type": "initial"}}
    results = run(tmp_path, fake_config(tmp_path, training=training)).results
    assert results[1].reference == "version 0 (log-probs: rollout)", (
        "in round 1 the initial policy sampled"
    )
    assert results[2].reference == "version 0 (log-probs: recompute)"


def test_a_worse_policy_is_rolled_back_and_the_next_round_starts_from_the_old_one(
    tmp_path: Path,
) -> None:
    accept = {"type": "if_better", "margin": 0.9}
    results = run(tmp_path, fake_config(tmp_path, acceptance=accept)).results
    assert [r.status for r in results[1:]] == [RoundStatus.REJECTED, RoundStatus.REJECTED]
    assert [(r.before, r.after) for r in results[1:]] == [(0, 0), (0, 0)]
    assert "margin" in results[1].reason


def test_a_round_without_pairs_is_skipped_with_its_reason_and_a_streak_ends_the_run(
    tmp_path: Path,
) -> None:
    summary = run(tmp_path, fake_config(tmp_path, skill=1.0, rounds=9))
    skipped = summary.results[1:]
    assert [r.status for r in skipped] == [RoundStatus.SKIPPED] * 2
    assert "0 examples" in skipped[0].reason
    assert "all_right" in skipped[0].reason
    assert "limits.max_skipped_rounds" in summary.reason
    assert skipped[0].metrics["eval/pass@1"] == summary.results[0].metrics["eval/pass@1"]


def test_a_broken_engine_fails_the_run_truthfully_and_what_finished_stays(tmp_path: Path) -> None:
    engine = {"type": "fake", "fail_prompts_matching": "2 times 3|3 times 2|5 times 5"}
    settings = fake_config(
        tmp_path, rollout={"engine": engine, "samples_per_prompt": 4, "prompts_per_shard": 3}
    )
    with pytest.raises(RolloutError, match="told to fail"):
        run(tmp_path, settings)
    last = read_events(tmp_path / "run/events.jsonl")[-1]
    assert last.kind is EventKind.RUN_FAILED
    assert last.detail["error"] == "RolloutError"


def verifier_file(tmp_path: Path, body: str) -> dict[str, str]:
    path = tmp_path / "mine.py"
    path.write_text(
        f"import os, time\n\ndef score(prompt, completion, answer):\n    {body}\n", encoding="utf-8"
    )
    return {"type": f"{path}:score", "name": "mine"}


def test_a_verifier_file_outside_the_repository_decides_what_is_learned(tmp_path: Path) -> None:
    mine = verifier_file(tmp_path, "return str(answer) in completion")
    results = run(tmp_path, fake_config(tmp_path, verifiers=[mine])).results
    assert results[2].metrics["eval/pass@1"] > 0
    assert results[1].metrics["verify/mine/error_share"] == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise RuntimeError('no idea')", "no idea"),
        ("return float('nan')", "nan"),
        ("return 'yes'", "yes"),
        ("os._exit(3)", "mine"),
    ],
)
def test_a_verifier_that_always_fails_stops_the_run_with_counts_and_cause(
    tmp_path: Path, body: str, message: str
) -> None:
    # Few attempts: a process that dies is started again for every verdict.
    mine, few = verifier_file(tmp_path, body), {"samples_per_prompt": 1}
    settings = fake_config(tmp_path, verifiers=[mine], evaluation=few, held_out=2, samples=2)
    with pytest.raises(LimitExceededError, match=r"of \d+ verdicts of mine are errors") as caught:
        run(tmp_path, settings)
    assert message in str(caught.value)
    assert "limits.max_verdict_errors" in str(caught.value)


def test_a_verifier_that_sometimes_fails_is_counted_warned_about_and_never_a_score(
    tmp_path: Path,
) -> None:
    body = "return [str(answer) in completion, 1 / (len(completion) % 3)][0]"
    warnings: list[str] = []

    def listen(event: Event) -> None:
        if event.kind is EventKind.WARNING:
            warnings.append(str(event.detail["message"]))

    limits = {"max_verdict_errors": 0.95}
    summary = run(
        tmp_path,
        fake_config(tmp_path, verifiers=[verifier_file(tmp_path, body)], limits=limits),
        [listen],
    )
    metrics = summary.results[1].metrics
    assert 0 < metrics["verify/mine/errors"] < 24
    assert any(
        "verdicts of mine are errors; most common: " in w and "ZeroDivisionError" in w
        for w in warnings
    )
    assert metrics["prefer/dropped/unusable: verifier_error:mine"] == metrics["verify/mine/errors"]


def test_a_hanging_verifier_costs_its_timeout_and_gives_errors(tmp_path: Path) -> None:
    body = "return time.sleep(60) if completion.startswith('That') else str(answer) in completion"
    mine = verifier_file(tmp_path, body) | {"timeout_seconds": 0.3}
    limits = {"max_verdict_errors": 0.95}
    few = {"samples_per_prompt": 1}
    sizes = {"rounds": 1, "held_out": 2, "per_round": 4, "samples": 2}
    settings = fake_config(tmp_path, verifiers=[mine], limits=limits, evaluation=few, **sizes)
    assert run(tmp_path, settings).results[1].metrics["verify/mine/errors"] > 0


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path: Path) -> None:
    settings = fake_config(tmp_path)
    run(tmp_path, settings)
    with pytest.raises(ConfigurationError, match=r"holds a run already.*pawl resume"):
        run(tmp_path, settings)


def test_a_run_that_another_process_drives_is_left_alone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    parent = os.getppid()
    import socket

    folder.driver.write_text(
        json.dumps(
            {"pid": parent, "pid_started": process_start(parent), "host": socket.gethostname()}
        )
    )
    with pytest.raises(ResumeError, match=f"driven by process {parent}"):
        claim(folder)
    folder.driver.write_text(
        json.dumps({"pid": parent, "pid_started": 1, "host": socket.gethostname()})
    )
    claim(folder).release()
    assert json.loads(folder.driver.read_text())["pid"] == os.getpid(), (
        "a reused pid is not the old driver"
    )


def test_an_edited_config_is_refused_on_resume(tmp_path: Path) -> None:
    run(tmp_path, fake_config(tmp_path))
    folder = RunFolder(tmp_path / "run")
    folder.config.write_text(folder.config.read_text().replace('"rounds": 2', '"rounds": 3'))
    with pytest.raises(ResumeError, match="was edited"):
        resume_experiment(folder)


def test_prompts_that_stand_in_both_sets_are_refused_before_anything_runs(tmp_path: Path) -> None:
    both = arithmetic("train")
    settings = fake_config(tmp_path, prompts={"train": both, "held_out": both, "per_round": 6})
    with pytest.raises(InputError):
        run(tmp_path, settings)
    assert not (tmp_path / "run/journal.jsonl").exists()


def test_a_starting_model_that_changed_is_refused_on_resume(tmp_path: Path) -> None:
    run(tmp_path, fake_config(tmp_path))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other")
    from policies.base.errors import PolicyStoreError

    with pytest.raises(PolicyStoreError, match="changed since the run began"):
        resume_experiment(RunFolder(tmp_path / "run"))
