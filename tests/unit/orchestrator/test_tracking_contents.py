"""What lands of a run: the parent and its rounds, curves, tables, policies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.runs.folder import RunFolder
from orchestrator.runs.state import results_of
from orchestrator.runs.tables import example_rows, sample_rows
from orchestrator.tracking.memory import MemorySink
from orchestrator.tracking.spool import TrackedRun
from orchestrator.tracking.tracker import SpooledTracker
from policies.base.records import Trajectory
from policies.examples.kinds import PreferencePair, TokenSequence
from policies.storage.artifacts import read_records, write_records
from tests.support.run_folders import RUN_ID, make_run, phase_seconds

RUN = TrackedRun(run_id=RUN_ID, name="q-1", experiment="multiply", params={"seed": "0"})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "q-1")


def tracker_of(
    folder: RunFolder, sink: MemorySink, *, rows: int = 64, register: bool = False
) -> SpooledTracker:
    tracker = SpooledTracker(
        folder,
        lambda: sink,
        where="memory",
        table_rows=rows,
        register_policy=register,
        on_warning=pytest.fail,
    )
    tracker.start(RUN)
    return tracker


def tell(tracker: SpooledTracker, folder: RunFolder, *rounds: int) -> None:
    for result in results_of(folder):
        if result.round in rounds:
            tracker.round_finished(result, phase_seconds(result.round), folder.round(result.round))


Sent = Callable[..., MemorySink]


@pytest.fixture
def run(folder: RunFolder) -> Sent:
    """Tell these rounds, end the run, and return what landed."""

    def send(*rounds: int, rows: int = 64, register: bool = False) -> MemorySink:
        sink = MemorySink()
        tracker = tracker_of(folder, sink, rows=rows, register=register)
        tell(tracker, folder, *rounds)
        tracker.finish("FINISHED")
        return sink

    return send


def test_a_run_lands_with_a_parent_and_a_nested_run_for_each_round(run: Sent) -> None:
    sink = run(0, 1, 2)
    assert sink.runs == dict.fromkeys(["q-1", "q-1/0", "q-1/1", "q-1/2"], "FINISHED")
    assert sink.history(None, "eval/pass_at_1") == [(0, 0.29), (1, 0.39), (2, 0.55)]
    assert sink.history(None, "seconds/train") == [(1, 3.5), (2, 3.5)]
    assert sink.params == {"seed": "0"}
    assert sink.tags["q-1/2"]["pawl.status"] == "improved"


def test_a_round_has_its_training_curve_by_optimizer_step_and_not_the_total_in_it(
    run: Sent,
) -> None:
    sink = run(2)
    assert [step for step, _ in sink.history(2, "train/loss")] == [1, 2, 3]
    assert sink.history(None, "train/loss") == [(2, 0.6)]
    assert sink.history(2, "kl") == [(2, 0.02)]


def test_steps_told_while_the_update_runs_are_not_told_again_at_its_end(folder: RunFolder) -> None:
    sink = MemorySink()
    tracker = tracker_of(folder, sink)
    rows = [json.loads(line) for line in folder.round(2).train_log.read_text().splitlines()]
    tracker.steps(2, rows[:1])
    tracker.steps(2, rows[:2])
    tell(tracker, folder, 2)
    tracker.steps(2, rows)
    tracker.finish("FINISHED")
    assert [step for step, _ in sink.history(2, "rewards/margins")] == [1, 2, 3]


def test_a_round_has_tables_of_samples_and_pairs_and_the_untrained_one_of_its_measurement(
    run: Sent,
) -> None:
    sink = run(0, 1, rows=5)
    assert {name: len(rows) for name, rows in sink.tables.items()} == {
        "q-1/0/evaluation_samples.json": 5,
        "q-1/1/evaluation_samples.json": 5,
        "q-1/1/samples.json": 5,
        "q-1/1/pairs.json": 5,
    }
    first = sink.tables["q-1/1/samples.json"][0]
    assert first["prompt"] == "What is 2 times 3?"
    assert first["completion"] == "It is 6."
    assert (first["score"], first["desirable"], first["status"]) == (1.0, True, "complete")
    pair = sink.tables["q-1/1/pairs.json"][0]
    assert (pair["chosen"], pair["rejected"]) == ("It is 6.", "It is 7.")


def test_tables_of_conversations_tell_every_turn_and_how_they_ended(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "q-1", rounds=1, tool_use=True, extra_text="\npolicy 9:\x1b[0m")
    right, wrong = sorted(sample_rows(folder.round(1), 12), key=lambda row: str(row["id"]))[:2]
    assert right["completion"] == (
        "policy 1:\n  Let me compute it.\n  ```python\n  print(6 * 7)\n  ```\n  policy 9:[0m\n"
        "observation (python ok):\n  Output: 42\n  policy 9:[0m\n"
        "policy 2:\n  It is 6.\n  policy 9:[0m\nended: answered, outcome 1"
    )
    columns = ("turns", "tool_calls", "ending", "outcome")
    assert [right[name] for name in columns] == [2, "python ok", "answered", 1.0]
    assert [wrong[name] for name in columns] == [2, "python failed", "turn_limit", 0.25]
    pair = example_rows(folder.round(1), 1)[0]
    assert "observation (python failed):" in str(pair["rejected"])


def test_single_turns_have_the_columns_they_always_had(folder: RunFolder) -> None:
    assert "turns" not in sample_rows(folder.round(1), 1)[0]
    assert set(example_rows(folder.round(1), 1)[0]) == {
        *("id", "prompt", "chosen", "rejected", "margin", "soft_label", "weight")
    }


def test_what_pairs_share_and_who_sampled_them_are_columns_where_they_differ(
    tmp_path: Path,
) -> None:
    folder = make_run(tmp_path / "q-1", rounds=1)
    shard = folder.round(1).shard(0)
    good, bad = read_records(shard.of("trajectories"), Trajectory)[:2]
    pair = PreferencePair(
        id="a>b",
        prompt_id=good.prompt_id,
        chosen=TokenSequence.of(good, scored_from=4),
        rejected=TokenSequence.of(bad, scored_from=4).model_copy(update={"policy_version": 7}),
        margin=1.0,
    )
    write_records(shard.of("examples"), PreferencePair, [pair])
    row = example_rows(folder.round(1), 1)[0]
    assert row["shared_tokens"] == 2  # 2 tokens of prompt, of the next 3 the first 2 are not scored
    assert (row["chosen_policy_version"], row["rejected_policy_version"]) == (0, 7)


def test_tables_begin_with_one_sample_of_every_prompt(run: Sent) -> None:
    sink = run(1, rows=3)
    assert {row["prompt"] for row in sink.tables["q-1/1/samples.json"]} == {
        "What is 2 times 3?",
        "What is 4 times 5?",
        "What is 7 times 8?",
    }


def test_no_tables_are_sent_when_none_are_wanted(run: Sent) -> None:
    sink = run(1, rows=0)
    assert sink.tables == {}


def test_accepted_policies_are_registered_and_the_starting_one_is_not(
    folder: RunFolder, run: Sent
) -> None:
    sink = run(0, 1, 2, register=True)
    assert {r: p.number for r, p in sink.registered.items()} == {1: 1, 2: 2}
    assert sink.registered[2].path == str(folder.policies / "0002")
