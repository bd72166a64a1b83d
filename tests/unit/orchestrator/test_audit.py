"""Each invariant of a run folder that `pawl verify` claims is noticed when it is broken, by its name."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.driver.launch import run_experiment
from orchestrator.inspect.audit.check import CLAIMS, Report
from orchestrator.inspect.audit.run import audit
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.journal_reading import JournalEntry
from orchestrator.runs.removal_notes import FETCHED, LeftInBucket, note_path
from policies.base.records import Feedback, Record, Trajectory, Verdict
from policies.examples.kinds import PreferencePair
from policies.storage.artifacts import marker_path, read_records, write_json, write_records
from tests.support.fake_runs import fake_config


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of two rounds, made by the real thing on the scripted engines."""
    return finished(tmp_path_factory.mktemp("audit"))


@pytest.fixture
def run(whole: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy to break."""
    return RunFolder(Path(shutil.copytree(whole.path, tmp_path / "run")))


def wrong(report: Report) -> set[str]:
    return {check.name for check in report if check.verdict == "wrong"}


def shard(run: RunFolder, kind: str, index: int = 0, round_index: int = 1) -> Path:
    return run.round(round_index).path / kind / f"shard-{index:04d}.parquet"


def rewrite(path: Path, kind: type[Any], change: Callable[[list[Any]], list[Any]]) -> None:
    """Change the rows of a shard and give it a marker that fits them: a fault that no digest shows."""
    summary = json.loads(marker_path(path).read_text(encoding="utf-8"))["summary"]
    write_records(path, kind, change(read_records(path, kind)), summary=summary)


def edit_journal(run: RunFolder, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change lines of the journal as somebody would who gives each its seal again: a fault that no seal shows."""
    lines = [json.loads(line) for line in run.journal.read_text(encoding="utf-8").splitlines()]
    change(lines)
    before, sealed = "", []
    for line in lines:
        sealed.append(JournalEntry.model_validate(line).sealed_after(before))
        before = sealed[-1].seal
    run.journal.write_text("".join(x.model_dump_json() + "\n" for x in sealed), encoding="utf-8")
    for path in (*run.epochs.glob("*.head"), *run.epochs.glob("*.beat")):
        path.unlink()


def entry(lines: list[dict[str, Any]], round_index: int, phase: str) -> dict[str, Any]:
    return next(x for x in lines if (x["round"], x["phase"]) == (round_index, phase))


def edit_json(path: Path, **changes: Any) -> None:
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def replaced(record: Record, **changes: Any) -> Any:
    return record.model_copy(update=changes)


def test_a_run_that_nobody_disturbed_is_whole(whole: RunFolder) -> None:
    report = audit(whole, deep=True)
    assert wrong(report) == set()
    unexamined = {check.name for check in report if not check.num_examined}
    assert unexamined == {"quarantine"}, "every other claim was put to the test"
    assert not [note for check in report for note in check.notes]


Break = Callable[[RunFolder], object]

BREAKS: list[tuple[str, str, Break]] = [
    ("identity", "an edited config", lambda r: edit_json(r.config, seed=7)),
    ("identity", "a newer schema", lambda r: edit_json(r.identity, schema_version=99)),
    ("identity", "no identity", lambda r: r.identity.write_text("{", encoding="utf-8")),
    ("journal", "a phase twice", lambda r: edit_journal(r, lambda x: x.insert(5, x[4]))),
    ("journal", "phases out of order", lambda r: edit_journal(r, lambda x: x.insert(5, x.pop(6)))),
    ("journal", "a phase left out", lambda r: edit_journal(r, lambda x: x.pop(4))),
    ("journal", "an unreadable line", lambda r: r.journal.write_bytes(r.journal.read_bytes().replace(b"{", b"x", 1))),
    ("files", "a flipped byte", lambda r: flip(shard(r, "trajectories"))),
    ("files", "a cut file", lambda r: shard(r, "examples").write_bytes(b"PAR1")),
    ("files", "a file that is gone", lambda r: shard(r, "verdicts").unlink()),
    ("files", "an unreadable marker", lambda r: marker_path(shard(r, "feedback")).write_bytes(b"?")),
    ("files", "flipped weights", lambda r: flip(r.policies / "0001" / "model.safetensors")),
    ("files", "weights that are gone", lambda r: (r.policies / "0002/model.safetensors").unlink()),
    ("complete", "a shard that is gone", lambda r: forget(shard(r, "feedback", 1))),
    ("complete", "a round that is gone", lambda r: shutil.rmtree(r.round(1).path)),
    ("digests", "another round's shard", lambda r: swap(r, "verdicts")),
    ("digests", "other held-out prompts", lambda r: swap_prompts(r)),
    ("committed", "data without a marker", lambda r: marker_path(shard(r, "verdicts")).unlink()),
    ("committed", "a candidate left", lambda r: r.round(1).candidate.mkdir()),
    ("lineage", "a wrong parent", lambda r: edit_json(r.policies / "0002/manifest.json", parent=0, seal="")),
    ("files", "an edited manifest", lambda r: edit_json(r.policies / "0002/manifest.json", parent=0)),
    ("files", "an edited companion", lambda r: (r.policies / "0001/fake_policy.json").write_text("{}")),
    ("files", "an added template", lambda r: (r.policies / "0001/chat_template.jinja").write_text("")),
    ("files", "added weights", lambda r: (r.policies / "0001/other.safetensors").write_bytes(b"")),
    ("lineage", "what was begun with", lambda r: (r.policies / "0000/manifest.json").unlink()),
    ("identity", "an edited run.json", lambda r: edit_json(r.identity, experiment="another")),
    ("identity", "run.json of another run", lambda r: edit_json(r.identity, run_id="f" * 32, seal="")),
    ("identity", "the given config", lambda r: r.config_source.write_text("rounds: 3")),
    ("training", "an edited step log", lambda r: flip(r.round(1).train_log)),
    ("training", "an edited record", lambda r: edit_json(r.round(1).update_files, files=[])),
    ("epochs", "an edited claim", lambda r: edit_json(r.epochs / "000001.json", pid=1)),
    ("journal", "a line flipped", lambda r: flip(r.journal)),
    ("lineage", "a manifest gone", lambda r: (r.policies / "0001/manifest.json").unlink()),
    ("lineage", "a version that nobody published", lambda r: serve_another(r)),
    ("reference", "another reference", lambda r: edit_journal(r, train_against(0))),
    ("reference", "a reference from the future", lambda r: edit_journal(r, train_against(2))),
    ("training", "a step twice", lambda r: repeat_last_line(r.round(1).train_log)),
    ("training", "no step log", lambda r: r.round(2).train_log.unlink()),
    ("training", "examples left out", lambda r: edit_journal(r, learn_from_less)),
    ("quarantine", "no reason", lambda r: set_aside_without_a_word(r)),
    ("epochs", "an epoch left out", lambda r: claim_again(r, "000003.json", 3)),
    ("epochs", "a claim that names another epoch", lambda r: claim_again(r, "000002.json", 1)),
    ("inputs", "other trajectories", lambda r: make_from(r, trajectories="f" * 64)),
    ("epochs", "an epoch of nobody", lambda r: edit_json(r.driver, epoch=7)),
]  # fmt: skip


def forget(path: Path) -> None:
    path.unlink()
    marker_path(path).unlink()


def swap(run: RunFolder, kind: str) -> None:
    for name in ("shard-0000.parquet", "shard-0000.parquet.json"):
        shutil.copy(run.round(2).path / kind / name, run.round(1).path / kind / name)


def swap_prompts(run: RunFolder) -> None:
    for name in ("prompts.parquet", "prompts.parquet.json"):
        shutil.copy(run.round(2).path / name, run.round(2).evaluation.path / name)


def serve_another(run: RunFolder) -> None:
    edit_journal(run, lambda x: entry(x, 2, "accept")["result"].update(after=7))


def train_against(version: int) -> Callable[[list[dict[str, Any]]], object]:
    plan = {"parts": [{"version": version, "weight": 1.0}]}
    return lambda x: entry(x, 2, "train")["result"].update(reference=plan)


def learn_from_less(lines: list[dict[str, Any]]) -> None:
    entry(lines, 1, "train")["result"]["outcome"]["num_examples"] -= 1


def repeat_last_line(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines, lines[-1]]) + "\n", encoding="utf-8")


def set_aside_without_a_word(run: RunFolder) -> None:
    (run.path / "quarantine").mkdir(exist_ok=True)
    (run.path / "quarantine" / "shard-0000.parquet").write_bytes(b"bad")


def claim_again(run: RunFolder, name: str, epoch: int) -> None:
    text = json.dumps({"epoch": epoch, "host": "h", "pid": 1})
    (run.epochs / name).write_text(text, encoding="utf-8")


def make_from(run: RunFolder, **inputs: str) -> None:
    path = marker_path(shard(run, "feedback"))
    marker = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, marker | {"inputs": marker["inputs"] | inputs, "seal": ""})


@pytest.mark.parametrize(
    ("check", "what", "break_it"), BREAKS, ids=[f"{b[0]}-{b[1]}" for b in BREAKS]
)
def test_what_is_broken_is_named_by_its_check(
    run: RunFolder, check: str, what: str, break_it: Break
) -> None:
    break_it(run)
    report = audit(run)
    assert check in wrong(report), what
    assert report[check].problems[0].strip()


def changed(
    path: Path, kind: type[Record], run: RunFolder, change: Callable[[list[Any]], list[Any]]
) -> set[str]:
    """Which checks see a change of rows whose marker and journal digest were made to fit.

    What was made from the changed file does not fit it any more; that is one check's business, and left out.
    """
    rewrite(path, kind, change)
    folder = path.parent
    markers = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.json"))]
    digest = hashlib.sha256("".join(m["content_digest"] for m in markers).encode()).hexdigest()
    edit_journal(
        run, lambda x: entry(x, 1, "collect")["result"]["digests"].update({folder.name: digest})
    )
    return wrong(audit(run, deep=True)) - {"inputs"}


def test_an_id_that_two_shards_share_is_found(run: RunFolder) -> None:
    twin = read_records(shard(run, "examples", 1), PreferencePair)[0].id
    found = changed(
        shard(run, "examples"), PreferencePair, run, lambda x: [replaced(x[0], id=twin), *x[1:]]
    )
    assert found == {"ids"}


def test_an_attempt_that_is_there_twice_is_found(run: RunFolder) -> None:
    found = changed(shard(run, "trajectories"), Trajectory, run, lambda x: [*x[:-1], x[0]])
    assert {"ids", "counts"} <= found


def test_a_lost_trajectory_is_found(run: RunFolder) -> None:
    found = changed(shard(run, "trajectories"), Trajectory, run, lambda x: x[:-1])
    assert {"counts", "sources"} <= found


def test_a_lost_verdict_is_found(run: RunFolder) -> None:
    assert changed(shard(run, "verdicts"), Verdict, run, lambda x: x[1:]) == {"counts"}


def test_a_lost_example_is_found(run: RunFolder) -> None:
    found = changed(shard(run, "examples"), PreferencePair, run, lambda x: x[1:])
    assert found == {"counts"}


def test_lost_feedback_is_found(run: RunFolder) -> None:
    assert changed(shard(run, "feedback"), Feedback, run, lambda x: x[1:]) == {"counts"}


def test_a_verdict_on_a_foreign_trajectory_is_found(run: RunFolder) -> None:
    found = changed(
        shard(run, "verdicts"),
        Verdict,
        run,
        lambda x: [replaced(x[0], trajectory_id="r9.1x1.0"), *x[1:]],
    )
    assert found == {"sources"}


def test_a_sample_of_another_policy_is_found(run: RunFolder) -> None:
    found = changed(
        shard(run, "trajectories"),
        Trajectory,
        run,
        lambda x: [replaced(t, policy_version=1) for t in x],
    )
    assert "samplers" in found


def test_a_sample_of_other_weights_is_found(run: RunFolder) -> None:
    found = changed(
        shard(run, "trajectories"),
        Trajectory,
        run,
        lambda x: [replaced(x[0], policy_digest="f" * 64), *x[1:]],
    )
    assert found == {"samplers"}


def test_rows_that_do_not_fit_their_digest_are_found_by_a_deep_audit_alone(run: RunFolder) -> None:
    path = shard(run, "feedback")
    digest = json.loads(marker_path(path).read_text(encoding="utf-8"))["content_digest"]
    rewrite(path, Feedback, lambda x: [replaced(x[0], score=0.123), *x[1:]])
    edit_json(marker_path(path), content_digest=digest, seal="")
    assert wrong(audit(run)) == set()
    assert wrong(audit(run, deep=True)) == {"content"}


def test_an_unfinished_round_may_have_unfinished_files(run: RunFolder) -> None:
    edit_journal(run, lambda x: x.__delitem__(slice(-3, None)))
    forget(shard(run, "feedback", 1, round_index=2))
    (run.round(2).path / "verdicts" / ".shard-0001.parquet.77.tmp").write_bytes(b"half")
    report = audit(run)
    assert wrong(report) == {"complete", "counts", "digests"}, "collect is in the journal"
    edit_journal(run, lambda x: x.__delitem__(slice(-3, None)))
    assert wrong(audit(run)) == set()


def test_a_torn_last_line_is_a_note_and_no_fault(run: RunFolder) -> None:
    with run.journal.open("ab") as handle:
        handle.write(b'{"round":3,"pha')
    report = audit(run)
    assert wrong(report) == set()
    assert "cut off" in report["journal"].notes[0]


def test_what_lies_in_a_journal_and_does_not_count_is_a_note(run: RunFolder) -> None:
    run.journal.write_bytes(b"\n" + run.journal.read_bytes())
    report = audit(run)
    assert (wrong(report), len(report["journal"].notes)) == (set(), 1)


def test_leftovers_of_a_killed_worker_are_notes(run: RunFolder) -> None:
    (run.round(1).path / "verdicts" / ".shard-0000.parquet.77.tmp").write_bytes(b"half")
    report = audit(run)
    assert wrong(report) == set()
    assert len(report["committed"].notes) == 1


def test_the_command_prints_a_line_per_check_and_exits_with_3_for_a_broken_run(
    run: RunFolder,
) -> None:
    done = CliRunner().invoke(app, ["verify", str(run.path), "--deep"])
    assert done.exit_code == 0, done.output
    assert all(name in done.output for name in CLAIMS)
    assert "run is whole" in done.output
    flip(shard(run, "trajectories"))
    done = CliRunner().invoke(app, ["verify", str(run.path)])
    assert done.exit_code == 3
    assert "trajectories/shard-0000.parquet changed" in done.output


def test_the_command_answers_in_json(run: RunFolder) -> None:
    flip(run.policies / "0001" / "model.safetensors")
    done = CliRunner().invoke(app, ["verify", str(run.path), "--json"])
    assert done.exit_code == 3
    found = json.loads(done.output)
    assert found["whole"] is False
    assert found["checks"]["files"]["num_problems"] == 1
    assert "model.safetensors" in found["checks"]["files"]["problems"][0]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert done.exit_code not in (0, 1)


def finished(root: Path, **changes: Any) -> RunFolder:
    """A finished run with other settings."""
    folder = RunFolder(root / "run")
    config = fake_config(root, **changes)
    run_experiment(config, folder, source="")
    return folder


def notes(report: Report) -> str:
    return "\n".join(note for check in report for note in check.notes)


def test_what_retention_removed_is_named_and_not_missed(tmp_path: Path) -> None:
    run = finished(tmp_path, rounds=3, retention={"policies": 1, "trajectories": 1})
    assert not (run.policies / "0001" / "manifest.json").exists(), "retention had its work"
    assert not list((run.round(1).path / "trajectories").glob("*"))
    report = audit(run, deep=True)
    assert wrong(report) == set()
    for sentence in (
        "policy version 1 was removed after round",
        "the samples of round 1 were removed after round",
    ):
        assert sentence in notes(report)
    assert "policy version 3" not in notes(report)
    done = CliRunner().invoke(app, ["verify", str(run.path)])
    assert done.exit_code == 0
    assert "note: policy version 1 was removed" in done.output
    note_path(run, "policy", 1).unlink()
    assert wrong(audit(run)) == {"lineage"}
    note_path(run, "round", 1).unlink()
    assert {"complete", "lineage"} <= wrong(audit(run)), "without its note a removal is a loss"


def test_what_was_left_in_a_bucket_is_named_and_not_missed(run: RunFolder) -> None:
    left = ["policies/0001/model.safetensors", "rounds/0001/train/steps.jsonl"]
    left += [
        path.relative_to(run.path).as_posix()
        for path in sorted(run.round(1).path.rglob("*.parquet*"))
    ]
    for name in left:
        (run.path / name).unlink()
    assert {"complete", "files", "training"} <= wrong(audit(run)), "without a word it is a loss"
    said = LeftInBucket(address="s3://models/pawl/run", names=tuple(left))
    write_json(run.path / FETCHED, said.model_dump(mode="json"))
    report = audit(run, deep=True)
    assert wrong(report) == set()
    assert f"{len(left)} files were not fetched" in notes(report)
    assert "s3://models/pawl/run" in notes(report)
    assert "model.safetensors was not fetched (version 1)" in notes(report)
    shard(run, "verdicts", round_index=2).unlink()
    assert "files" in wrong(audit(run)), "what was fetched has to be there"
