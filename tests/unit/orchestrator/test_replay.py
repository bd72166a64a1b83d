"""Replay: examples of earlier rounds in an update, up to a share, by age; proven from the journal alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.config.replay import ReplaySettings
from orchestrator.config.run_config import RunConfig
from orchestrator.driver.launch import resume_experiment, run_experiment
from orchestrator.inspect.audit.check import Report
from orchestrator.inspect.audit.earlier_examples import check_reuse
from orchestrator.inspect.audit.run import audit
from orchestrator.inspect.views.learned_in import learned_in
from orchestrator.inspect.views.trace import trace
from orchestrator.rounds.update_view import rounds_still_read, taken_positions
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.journal import Journal
from orchestrator.runs.phases import Collected, Phase, Trained
from orchestrator.runs.state import results_of, stream_examples
from orchestrator.storage.fetch import learned_again
from policies.base.records import RoundResult, RoundStatus
from policies.storage.artifacts import marker_path
from policies.storage.policy_store import PolicyStore
from tests.support.cut_journals import cut_journal
from tests.support.fake_runs import fake_config

REPLAY = {"replay": {"rounds": 2, "share": 0.5, "decay": 0.5}}
NOTING = '''
import json
from pathlib import Path

from workers.training.engines.fake import FakeTrainingEngine


class Noting(FakeTrainingEngine):
    """The fake engine, but it notes what it was given."""

    class Config(FakeTrainingEngine.Config):
        """Settings of the notes."""

        notes: str
        """Folder for them."""

    config: Config

    def update(self, job, examples):
        self.note(job, examples)
        return super().update(job, examples)

    def load(self, job, examples):
        self.note(job, examples)
        return super().load(job, examples)

    def note(self, job, examples):
        facts = {
            "logprobs": job.logprobs,
            "policy": job.policy.number,
            "examples": [[e.id, e.chosen.policy_version] for e in examples],
        }
        (Path(self.config.notes) / f"{job.round}.json").write_text(json.dumps(facts))
'''


def config(tmp_path: Path, **changes: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "rounds": 4,
        "high": 9,
        "training": {"engine": {"type": "fake"}, **REPLAY},
    }
    return fake_config(tmp_path, **(settings | changes))


def run(tmp_path: Path, name: str = "run", **changes: Any) -> RunFolder:
    folder = RunFolder(tmp_path / name)
    run_experiment(config(tmp_path, **changes), folder, source="")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of four rounds; its neighbour `model` is the model that it began with."""
    return run(tmp_path_factory.mktemp("whole"))


def trained(folder: RunFolder, index: int) -> Trained:
    found = Journal(folder.journal).find(index, Phase.TRAIN, Trained)
    assert found is not None
    return found


def made(folder: RunFolder, index: int) -> int:
    found = Journal(folder.journal).find(index, Phase.COLLECT, Collected)
    assert found is not None
    return found.num_examples


def problems(folder: RunFolder) -> list[str]:
    return [p for check in audit(folder, deep=True) for p in check.problems]


def everything(folder: RunFolder) -> dict[str, bytes]:
    kept = [folder.journal]
    for kind in ("trajectories", "examples"):
        kept += folder.path.glob(f"rounds/*/{kind}/shard-*.parquet")
    kept += folder.path.glob("policies/*/*.safetensors")
    return {str(p.relative_to(folder.path)): p.read_bytes() for p in kept}


def back_to(folder: RunFolder, index: int, phase: Phase) -> None:
    """Take the run back to where this phase had not finished; later versions go, as they would not be there."""
    entries = Journal(folder.journal).entries
    cut_journal(
        folder, next(i for i, e in enumerate(entries) if (e.round, e.phase) == (index, phase))
    )
    for number in range(index, 5):
        shutil.rmtree(PolicyStore(folder.policies).directory(number))
        shutil.rmtree(folder.round(number).evaluation.path)


def test_shares_are_split_by_age_and_never_above_the_whole() -> None:
    settings = ReplaySettings(rounds=2, share=0.25, decay=0.5)
    assert settings.most(90, [1, 2]) == {1: 20, 2: 10}
    assert settings.most(90, [2]) == {2: 30}, "split over the rounds that are there"
    assert sum(ReplaySettings(rounds=3, share=0.5).most(10, [1, 2, 3]).values()) == 10
    assert ReplaySettings(rounds=2, share=0.5).most(0, [1, 2]) == {1: 0, 2: 0}
    assert ReplaySettings(rounds=2, share=0.5).most(9, []) == {}


def test_one_key_replays_earlier_rounds_and_the_run_stays_whole(whole: RunFolder) -> None:
    folder = whole
    assert [[p.round for p in trained(folder, i).replayed] for i in (1, 2, 3, 4)] == [
        [],
        [1],
        [1, 2],
        [2, 3],
    ]
    for index in (2, 3, 4):
        parts, own = trained(folder, index).replayed, made(folder, index)
        caps = ReplaySettings(rounds=2, share=0.5, decay=0.5).most(own, [1, 2][: index - 1])
        for part in parts:
            assert part.num_examples == min(caps[index - part.round], made(folder, part.round))
        metrics = results_of(folder)[index].metrics
        number = sum(p.num_examples for p in parts)
        assert metrics["train/replayed_examples"] == number
        assert metrics["train/examples"] == own + number
        assert metrics["train/replayed_share"] == pytest.approx(number / (own + number))
        assert 1 <= metrics["train/replayed_age"] <= 2
    assert "train/replayed_examples" not in results_of(folder)[1].metrics
    assert not problems(folder)


def test_what_earlier_policies_sampled_reaches_the_trainer_as_theirs(tmp_path: Path) -> None:
    """So the trainer scores it under the policy (`reference_logprobs._recorded`): recorded log-probs are another's."""
    plug_in = tmp_path / "noting.py"
    plug_in.write_text(NOTING, encoding="utf-8")
    engine = {"type": f"{plug_in}:Noting", "notes": str(tmp_path)}
    folder = run(tmp_path, rounds=3, training={"engine": engine, **REPLAY})
    facts = json.loads((tmp_path / "3.json").read_text())
    assert (facts["logprobs"], facts["policy"]) == ("rollout", 2)
    by_round = {i: [e.id for e in stream_examples(folder.round(i))] for i in (1, 2, 3)}
    wanted = [[name, 2] for name in by_round[3]]
    for part in trained(folder, 3).replayed:
        places = taken_positions(0, 3, part)
        assert len(places) == part.num_examples
        wanted += [[by_round[part.round][place], part.round - 1] for place in places]
    assert facts["examples"] == wanted
    assert any(version != 2 for _, version in facts["examples"])


@pytest.mark.parametrize("phase", [Phase.COLLECT, Phase.TRAIN])
def test_a_run_that_is_killed_replays_the_same(
    whole: RunFolder, tmp_path: Path, phase: Phase
) -> None:
    shutil.copytree(whole.path, tmp_path / "cut")
    folder = RunFolder(tmp_path / "cut")
    back_to(folder, 3, phase)
    resume_experiment(folder)
    assert everything(folder) == everything(whole)
    assert not problems(folder)


def test_trace_names_the_updates_that_an_example_was_in(whole: RunFolder) -> None:
    folder = whole
    by_round = [e.id for e in stream_examples(folder.round(1))]
    part = trained(folder, 2).replayed[0]
    taken = {by_round[place] for place in taken_positions(0, 2, part)}
    for name in by_round:
        assert (2 in learned_in(folder, 1, name)) == (name in taken)
    one = sorted(taken)[0]
    assert trace(folder, one)["learned_in"][:2] == [1, 2]
    shown = CliRunner().invoke(app, ["trace", str(folder.path), one])
    assert shown.exit_code == 0
    assert "learned in rounds 1, 2" in shown.stdout


def test_retention_keeps_what_a_coming_round_replays(whole: RunFolder, tmp_path: Path) -> None:
    folder = run(tmp_path, "removed", retention={"trajectories": 1})
    for index in (2, 3, 4):
        assert trained(folder, index).replayed == trained(whole, index).replayed
    there = [i for i in folder.rounds() if folder.round(i).shards("examples")]
    assert there == [4], "no round comes that would read the others"
    assert not problems(folder)


def test_rounds_of_another_kind_bring_nothing(tmp_path: Path) -> None:
    stages = [
        "sft",
        {"name": "preference", "rounds": 2, "training": {"replay": {"rounds": 9, "share": 0.4}}},
    ]
    folder = run(tmp_path, rounds=3, stages=stages, training={"engine": {"type": "fake"}})
    assert trained(folder, 2).replayed == ()
    assert [p.round for p in trained(folder, 3).replayed] == [2]
    assert not problems(folder)


def test_rejected_rounds_come_whole_and_are_not_replayed_twice(tmp_path: Path) -> None:
    never = {"type": "if_better", "margin": 0.9}
    folder = run(tmp_path, rounds=3, acceptance=never, high=9)
    assert [trained(folder, i).reused for i in (1, 2, 3)] == [(), (1,), (1, 2)]
    assert [trained(folder, i).replayed for i in (1, 2, 3)] == [(), (), ()]


def test_damaged_examples_of_an_earlier_round_are_left_out_with_a_warning(
    whole: RunFolder, tmp_path: Path
) -> None:
    shutil.copytree(whole.path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    back_to(folder, 4, Phase.TRAIN)
    gone = folder.round(3).shards("examples")[0]
    gone.unlink()
    marker_path(gone).unlink()
    resume_experiment(folder)
    assert [p.round for p in trained(folder, 4).replayed] == [2]
    assert "the examples of round 3 are not used again" in folder.events.read_text()


def test_verify_finds_a_replay_that_the_journal_does_not_bear_out(
    whole: RunFolder, tmp_path: Path
) -> None:
    folder = whole
    settings = config(tmp_path)
    entries = Journal(folder.journal).entries
    place = next(i for i, e in enumerate(entries) if (e.round, e.phase) == (3, Phase.TRAIN))
    honest = Trained.model_validate(entries[place].result)
    for change in ({"digest": "0" * 64}, {"num_examples": 1}, {"round": 3}):
        part = honest.replayed[-1].model_copy(update=change)
        lying = honest.model_copy(update={"replayed": (*honest.replayed[:-1], part)})
        entry = entries[place].model_copy(update={"result": lying.model_dump(mode="json")})
        check = Report()["training"]
        check_reuse(settings, [*entries[:place], entry, *entries[place + 1 :]], check)
        assert check.problems, change
    check = Report()["training"]
    check_reuse(settings, entries, check)
    assert not check.problems


def test_a_fetched_run_has_what_a_coming_round_reads() -> None:
    def result(index: int, before: int, after: int) -> RoundResult:
        return RoundResult(
            round=index, status=RoundStatus.KEPT, before=before, after=after, reference=""
        )

    accepted = [result(i, max(i - 1, 0), i) for i in range(6)]
    assert not learned_again(accepted, {})
    assert learned_again(accepted, {"training": {"replay": {"rounds": 2}}}) == {4, 5}
    late = {
        "training": {},
        "stages": [{"training": None}, {"training": {"replay": {"share": 0.5}}}],
    }
    assert learned_again(accepted, late) == {5}
    rejected = [*accepted[:3], result(3, 2, 2), result(4, 2, 2)]
    assert learned_again(rejected, {}) == {3, 4}


def test_retention_looks_ahead_to_the_stages_that_come(tmp_path: Path) -> None:
    late = {"name": "late", "training": {"replay": {"rounds": 3, "share": 0.4}}}
    settings = config(
        tmp_path,
        rounds=6,
        stages=[{"name": "early", "rounds": 3}, late],
        training={"engine": {"type": "fake"}},
    )
    finished = [
        RoundResult(round=i, status=RoundStatus.KEPT, before=max(i - 1, 0), after=i, reference="")
        for i in range(3)
    ]
    assert rounds_still_read(settings, finished) == {1, 2}
    more = [
        finished[-1].model_copy(update={"round": i, "before": i - 1, "after": i}) for i in (3, 4, 5)
    ]
    assert rounds_still_read(settings, [*finished, *more[:2]]) == {2, 3, 4}
    assert rounds_still_read(settings, [*finished, *more]) == {3, 4, 5}
