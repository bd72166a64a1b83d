"""Reading a run folder: status, show and trace, through the functions and through the command."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.inspect.views.trace import trace
from orchestrator.runs.events import EventKind, EventLog
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.journal import Journal
from orchestrator.runs.phases import Collected, Drawn, Evaluated, Phase, Trained
from orchestrator.runs.reader import read_entries
from orchestrator.runs.state import run_status
from policies.base.errors import InputError
from policies.base.records import (
    Comparison,
    Feedback,
    Message,
    Prompt,
    RoundResult,
    RoundStatus,
    Sampling,
    StopReason,
    Trajectory,
    TrajectoryStatus,
    Turn,
    Verdict,
    VerdictStatus,
)
from policies.examples.kinds import PreferencePair, TokenSequence
from policies.objectives.reference import ReferencePart, ReferencePlan
from policies.storage.artifacts import write_json, write_records
from policies.storage.policy_store import PolicyStore

EVIL = "\x1b[31mred\x1b[0m [bold]7 x 8[/bold] \u202e= 56"
QUESTION = "What is 7 times 8?"


def invoke(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    return done.exit_code, done.stdout, done.stderr


def attempt(scope: str, index: int, text: str, version: int = 0) -> Trajectory:
    tool = Turn(
        role="observation",
        token_ids=(50, 51),
        text="Output: 56",
        stop_reason=StopReason.OBSERVATION,
    )
    said = Turn(
        role="policy",
        token_ids=(9, 10 + index),
        text=text,
        logprobs=(-0.1, -0.7),
        stop_reason=StopReason.STOP,
    )
    return Trajectory(
        id=f"{scope}.7x8.{index}",
        prompt_id="7x8",
        sample_index=index,
        policy_version=version,
        policy_digest="d" * 64,
        prompt_token_ids=(1, 5),
        turns=(said, tool) if index == 1 else (said,),
        status=TrajectoryStatus.COMPLETE,
        sampling=Sampling(),
    )


def judged(trajectory: Trajectory, score: float) -> tuple[Verdict, Feedback]:
    verdict = Verdict(
        source="numeric_match",
        trajectory_id=trajectory.id,
        status=VerdictStatus.SCORED,
        score=score,
        rationale="read 56",
    )
    feedback = Feedback(
        trajectory_id=trajectory.id, score=score, desirable=score >= 0.5, verdicts=(verdict,)
    )
    return verdict, feedback


def write_samples(
    place: Any, scope: str, version: int, *, shard: int = 0, texts: tuple[str, ...]
) -> list[Trajectory]:
    prompt = Prompt(id="7x8", messages=(Message(role="user", content=QUESTION),), answer=56)
    paths = place.shard(shard)
    write_records(place.prompts, Prompt, [prompt])
    write_records(paths.prompts, Prompt, [prompt])
    attempts = [attempt(scope, i + 10 * shard, text, version) for i, text in enumerate(texts)]
    opinions = [judged(t, float(i == 0)) for i, t in enumerate(attempts)]
    write_records(paths.of("trajectories"), Trajectory, attempts)
    write_records(paths.of("verdicts"), Verdict, [v for v, _ in opinions])
    write_records(paths.of("feedback"), Feedback, [f for _, f in opinions])
    return attempts


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A finished run of one round, written through the same functions as a real one."""
    run = RunFolder(tmp_path / "runs" / "demo-1")
    run.path.mkdir(parents=True)
    write_json(run.identity, {"schema_version": 1, "name": "demo-1"})
    write_json(
        run.config,
        {
            "rounds": 1,
            "preferences": {"type": "right_vs_wrong"},
            "tracking": {"experiment": "demo", "uri": "sqlite:////nowhere/mlflow.db"},
        },
    )
    write_samples(run.round(0).evaluation, "e0", 0, texts=("57", "58"))
    right, wrong = write_samples(run.round(1), "r1", 0, texts=(EVIL, "It is 54."))
    pair = PreferencePair(
        id=f"{right.id}>{wrong.id}",
        prompt_id="7x8",
        chosen=TokenSequence.of(right),
        rejected=TokenSequence.of(wrong),
        margin=1.0,
    )
    write_records(run.round(1).shard(0).of("examples"), PreferencePair, [pair])
    compared = Comparison(
        source="pairwise",
        first=right.id,
        second=wrong.id,
        probability=0.5,
        first_shown_first=1.0,
        first_shown_second=0.0,
        agreed=False,
    )
    write_records(run.round(1).shard(0).of("comparisons"), Comparison, [compared])
    write_samples(run.round(1).evaluation, "e1", 1, texts=("56", "55"))
    write_policies(run, tmp_path)
    write_history(run)
    return run


def write_policies(run: RunFolder, tmp_path: Path) -> None:
    store = PolicyStore(run.policies)
    for name in ("model", "candidate"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(name.encode())
    store.adopt_initial(tmp_path / "model")
    store.publish(tmp_path / "candidate", number=1, round_index=1, parent=0)


def write_history(run: RunFolder) -> None:
    journal, events = Journal(run.journal), EventLog(run.events)
    before, after = (
        {"eval/pass@1": 0.25, "eval/pass@8": 0.875},
        {"eval/pass@1": 0.5, "eval/pass@8": 1.0, "prefer/examples": 1.0},
    )
    events.emit(EventKind.RUN_STARTED, resumed=False, rounds=1)
    journal.append(0, Phase.DRAW, Drawn(num_prompts=1, num_shards=0, digest="9f"))
    journal.append(0, Phase.EVALUATE, Evaluated(version=0, digests={}, metrics=before))
    journal.append(
        0,
        Phase.ACCEPT,
        RoundResult(
            round=0,
            status=RoundStatus.UNTRAINED,
            before=0,
            after=0,
            reference="none",
            metrics=before,
        ),
    )
    events.emit(EventKind.PHASE_STARTED, round_index=1, phase="collect", shards=1)
    events.emit(EventKind.PHASE_FINISHED, round_index=1, phase="collect", seconds=2.5)
    events.emit(EventKind.PHASE_FINISHED, round_index=1, phase="collect", seconds=1.5)
    events.warn("one verifier failed \x1b[2J", round_index=1)
    journal.append(1, Phase.DRAW, Drawn(num_prompts=1, num_shards=1, digest="9f"))
    journal.append(
        1,
        Phase.COLLECT,
        Collected(
            digests={},
            num_trajectories=2,
            num_examples=1,
            counts={"rollout/tokens": 4.0},
            dropped={"duplicate": 3},
        ),
    )
    plan = ReferencePlan(parts=(ReferencePart(version=0, weight=1.0),))
    journal.append(
        1,
        Phase.TRAIN,
        Trained(reference=plan, logprobs="rollout", outcome=None, skipped_because=""),
    )
    journal.append(
        1,
        Phase.ACCEPT,
        RoundResult(
            round=1,
            status=RoundStatus.IMPROVED,
            before=0,
            after=1,
            reference="version 0",
            metrics=after,
        ),
    )
    events.emit(EventKind.RUN_FINISHED, reason="all 1 rounds are done")


def test_status_holds_state_metrics_and_summed_seconds(folder: RunFolder) -> None:
    code, out, _ = invoke("status", folder.path, "--json")
    facts = json.loads(out)
    assert code == 0
    assert (facts["name"], facts["state"], facts["experiment"], facts["current"]) == (
        "demo-1",
        "finished",
        "demo",
        None,
    )
    assert [r["status"] for r in facts["rounds"]] == ["untrained", "improved"]
    assert [r["metrics"]["eval/pass@1"] for r in facts["rounds"]] == [0.25, 0.5]
    assert facts["rounds"][1]["seconds"] == {"collect": 4.0}  # 2.5 + 1.5: the phase was done twice


def test_status_for_people_is_a_table_without_control_codes(folder: RunFolder) -> None:
    code, out, _ = invoke("status", folder.path)
    assert (code, "\x1b" in out) == (0, False)
    assert all(text in out for text in ("pass@8", "improved", "one verifier failed"))


def driver(folder: RunFolder, pid: int, *, host: str = "", started: str | None = None) -> None:
    write_json(
        folder.driver, {"pid": pid, "pid_started": started, "host": host or socket.gethostname()}
    )


def unfinish(folder: RunFolder) -> None:
    lines = folder.events.read_text().splitlines(keepends=True)
    folder.events.write_text("".join(lines[:-1]))


def test_a_dead_driver_that_said_nothing_was_interrupted(folder: RunFolder) -> None:
    unfinish(folder)
    assert run_status(folder)["state"] == "interrupted"
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    driver(folder, child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert run_status(folder)["state"] == "interrupted"  # a process that only waits to be buried
    child.wait()
    assert run_status(folder)["state"] == "interrupted"


def test_a_living_driver_means_running_and_a_recycled_number_does_not(folder: RunFolder) -> None:
    unfinish(folder)
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    driver(folder, os.getpid(), started=started)
    facts = run_status(folder)
    assert facts["state"] == "running"
    assert facts["current"]["round"] == 1
    driver(folder, os.getpid(), started="1")
    assert run_status(folder)["state"] == "interrupted"
    driver(folder, 1, host="another-host")
    assert run_status(folder)["state"] == "running"


def test_a_resumed_run_is_running_although_it_failed_before(folder: RunFolder) -> None:
    events = EventLog(folder.events)
    events.emit(EventKind.RUN_FAILED, error="TrainingError", message="loss is NaN")
    failed = run_status(folder)
    assert (failed["state"], failed["message"]) == ("failed", "TrainingError: loss is NaN")
    events.emit(EventKind.RUN_STARTED, resumed=True, rounds=1)
    driver(folder, os.getpid())
    assert run_status(folder)["state"] == "running"


def test_reading_never_cuts_off_what_is_being_written(folder: RunFolder) -> None:
    for path in (folder.journal, folder.events):
        path.write_bytes(path.read_bytes() + b'{"round": 2, "ph')
    size = folder.journal.stat().st_size
    assert len(read_entries(folder)) == 7
    assert run_status(folder)["state"] == "finished"
    assert folder.journal.stat().st_size == size
    folder.events.write_text("garbage\n" + folder.events.read_text())
    assert run_status(folder)["state"] == "finished"


def test_show_sums_a_round_up(folder: RunFolder) -> None:
    code, out, _ = invoke("show", folder.path, "--round", 1, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["dropped"] == {"duplicate": 3}
    assert facts["on_disk"]["trajectories"] == 2
    assert facts["reference"] == "version 0"
    assert "duplicate: 3" in invoke("show", folder.path)[1]


def test_model_text_reaches_the_terminal_without_control_codes_or_markup(folder: RunFolder) -> None:
    code, out, _ = invoke("show", folder.path, "--round", 1, "--trajectories")
    assert code == 0
    assert "[bold]7 x 8[/bold]" in out
    assert "\x1b" not in out
    assert "\u202e" not in out
    _, as_json, _ = invoke("show", folder.path, "--round", 1, "--trajectories", "--json")
    assert as_json.isascii()
    assert "\x1b" not in as_json
    assert json.loads(as_json)[0]["turns"][0]["text"] == EVIL


def test_show_pairs_looks_the_texts_up(folder: RunFolder) -> None:
    _, out, _ = invoke("show", folder.path, "--round", 1, "--pairs", "--json")
    (pair,) = json.loads(out)
    assert QUESTION in pair["prompt"]
    assert pair["chosen"] == {"id": "r1.7x8.0", "text": EVIL}
    assert pair["rejected"]["text"] == (
        "policy 1:\n  It is 54.\nobservation:\n  Output: 56\nended: answered"
    )
    assert "rejected r1.7x8.1" in invoke("show", folder.path, "--round", 1, "--pairs")[1]


def test_show_feedback_names_every_verdict(folder: RunFolder) -> None:
    out = invoke("show", folder.path, "--round", 1, "--feedback")[1]
    assert "numeric_match: score 1 (read 56)" in out


def test_round_0_shows_its_measurement_and_has_no_pairs(folder: RunFolder) -> None:
    _, out, _ = invoke("show", folder.path, "--round", 0, "--trajectories", "--json")
    assert [t["id"] for t in json.loads(out)] == ["e0.7x8.0", "e0.7x8.1"]
    code, out, _ = invoke("show", folder.path, "--round", 0, "--pairs")
    assert (code, out.strip()) == (0, "round 0 has none (it only measures)")


def test_a_limit_reads_no_more_shards_than_needed(folder: RunFolder) -> None:
    write_samples(folder.round(1), "r1", 0, shard=1, texts=("later",))
    damaged = folder.round(1).shard(1).of("trajectories")
    damaged.write_bytes(b"damaged")
    code, out, _ = invoke(
        "show", folder.path, "--round", 1, "--trajectories", "--limit", 1, "--json"
    )
    assert (code, len(json.loads(out))) == (0, 1)
    code, _, err = invoke("show", folder.path, "--round", 1, "--trajectories")
    assert code == 3
    assert "changed since it was written" in err


def test_a_round_that_has_not_begun_is_refused(folder: RunFolder) -> None:
    code, _, err = invoke("show", folder.path, "--round", 7)
    assert code == 2
    assert "rounds: 0 to 1" in err


def test_an_example_is_traced_to_prompt_verdicts_policy_and_result(folder: RunFolder) -> None:
    facts = trace(folder, "r1.7x8.0>r1.7x8.1")
    assert facts["kind"] == "PreferencePair"
    assert [t["id"] for t in facts["trajectories"]] == ["r1.7x8.0", "r1.7x8.1"]
    tool_use = facts["trajectories"][1]
    assert (tool_use["scored_tokens"], tool_use["observation_tokens"]) == (2, 2)
    assert tool_use["mean_logprob"] == pytest.approx(-0.4)  # (-0.1 - 0.7) / 2 policy tokens
    assert {v["trajectory_id"] for v in facts["verdicts"]} == {"r1.7x8.0", "r1.7x8.1"}
    assert facts["comparisons"][0]["agreed"] is False
    assert facts["prompts"][0]["answer"] == 56
    assert [v["number"] for v in facts["policy_versions"]] == [0]
    assert facts["result"]["status"] == "improved"


def test_an_evaluation_trajectory_is_traced_through_its_chain_of_parents(folder: RunFolder) -> None:
    code, out, _ = invoke("trace", folder.path, "e1.7x8.0", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["measurement"] is True
    assert [v["number"] for v in facts["policy_versions"]] == [1, 0]
    text = invoke("trace", folder.path, "r1.7x8.0>r1.7x8.1")[1]
    assert "orders disagree" in text
    assert "\x1b" not in text


def test_an_unknown_id_is_refused_with_near_ones(folder: RunFolder) -> None:
    with pytest.raises(InputError, match=r"r1\.7x8\.1"):
        trace(folder, "r1.7x8.9")
    code, _, err = invoke("trace", folder.path, "nonsense")
    assert code == 2
    assert "pawl show" in err


def test_a_folder_that_is_no_run_is_refused_by_every_reader(tmp_path: Path) -> None:
    for arguments in (("status",), ("show", "--round", "0"), ("resume",)):
        code, _, err = invoke(arguments[0], tmp_path, *arguments[1:])
        assert code == 2
        assert "is not a run folder" in err
