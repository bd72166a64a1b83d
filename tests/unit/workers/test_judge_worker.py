"""The judge worker: files in, files out, a small summary, the same content every time."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from policies.base.errors import ArtifactError, ConfigurationError, JudgeError
from policies.base.records import (
    Comparison,
    Message,
    PolicyVersion,
    Prompt,
    Trajectory,
    TrajectoryStatus,
    Verdict,
    VerdictStatus,
)
from policies.storage.artifacts import read_marker, read_records, write_records
from tests.support import attempts
from tests.support.committing import committed
from workers.cluster.item_filter import WHOLE, ItemFilter
from workers.judge.judge import (
    BACKENDS,
    JUDGES,
    AskingJudge,
    BackendContext,
    Judge,
    JudgeJob,
    Judgement,
)
from workers.judge.judge_in_place import AskingInPlace
from workers.judge.worker import JudgeWorker


def no_version(number: int) -> PolicyVersion:
    raise LookupError(f"no version {number}")


def no_model(name: str) -> PolicyVersion:
    raise LookupError(f"no model {name}")


CONTEXT = BackendContext(policy_version=no_version, model_version=no_model)


class Raising(AskingJudge):
    """A user's judge that is broken."""

    def judge(self, jobs: Any) -> list[Judgement]:
        raise KeyError("their bug")


class Careless(AskingJudge):
    """A user's judge that forgets an attempt and invents another."""

    def judge(self, jobs: Any) -> list[Judgement]:
        ghost = Verdict(source="careless", trajectory_id="ghost", status=VerdictStatus.ABSTAINED)
        return [Judgement(verdicts=[ghost]) for _ in jobs]


class Shard(NamedTuple):
    folder: Path

    def run(
        self,
        worker: JudgeWorker,
        name: str = "out",
        seed: int = 0,
        item_filter: ItemFilter = WHOLE,
    ) -> dict[str, Any]:
        written = worker.judge(
            str(self.folder / "trajectories.parquet"),
            str(self.folder / "prompts.parquet"),
            str(self.folder / f"{name}-verdicts.parquet"),
            str(self.folder / f"{name}-comparisons.parquet"),
            seed,
            item_filter,
        )
        return committed(written)

    def verdicts(self, name: str = "out") -> list[Verdict]:
        return read_records(self.folder / f"{name}-verdicts.parquet", Verdict)

    def comparisons(self, name: str = "out") -> list[Comparison]:
        return read_records(self.folder / f"{name}-comparisons.parquet", Comparison)

    def digests(self, name: str) -> list[str]:
        paths = [self.folder / f"{name}-{kind}.parquet" for kind in ("verdicts", "comparisons")]
        return [marker.content_digest for path in paths if (marker := read_marker(path))]


def attempt(prompt: str, index: int, text: str, status: str = "complete") -> Trajectory:
    changes = {"turns": (), "error": "engine"} if status == "error" else {}
    return attempts.attempt(
        text,
        name=f"{prompt}.{index}",
        sample_index=index,
        prompt_id=prompt,
        status=TrajectoryStatus(status),
        **changes,
    )


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    prompts = [
        Prompt(id=i, messages=(Message(role="user", content=f"Task {i} {{first}}"),)) for i in "pq"
    ]
    trajectories = [
        attempt("p", 0, "short"),
        attempt("q", 0, "only one"),
        attempt("p", 1, "much longer"),
        attempt("p", 2, "", status="error"),
        attempt("p", 3, "medium ok"),
    ]
    write_records(tmp_path / "prompts.parquet", Prompt, prompts)
    write_records(tmp_path / "trajectories.parquet", Trajectory, trajectories)
    return Shard(tmp_path)


def judge(kind: str = "pairwise", rule: str = "longer", **settings: Any) -> Judge.Config:
    config = JUDGES.parse({"type": kind, "backend": {"type": "fake", "rule": rule}, **settings})
    assert isinstance(config, Judge.Config)
    return config


def test_every_trajectory_gets_a_verdict_of_every_judge_in_the_order_of_the_shard(
    shard: Shard,
) -> None:
    summary = shard.run(JudgeWorker([judge(), judge("rubric", name="scale")], CONTEXT))
    verdicts = shard.verdicts()
    ids = ["p.0", "q.0", "p.1", "p.2", "p.3"]
    assert [(v.source, v.trajectory_id) for v in verdicts] == [
        *(("pairwise", i) for i in ids),
        *(("scale", i) for i in ids),
    ]
    assert [v.score for v in verdicts[:5]] == [0.0, None, 1.0, None, 0.5]
    assert verdicts[1].status is verdicts[3].status is VerdictStatus.ABSTAINED
    assert all(0 <= v.score <= 1 for v in verdicts if v.score is not None)
    assert len(shard.comparisons()) == 3
    assert "p.2" not in {c.first for c in shard.comparisons()} | {
        c.second for c in shard.comparisons()
    }
    counts = summary["pairwise"]
    assert (counts["comparisons"], counts["agreed"], counts["questions"]) == (3, 3, 6)
    assert (counts["scored"], counts["abstained"]) == (3, 2)
    assert counts["prompt"].startswith("pairwise.v1.txt@")
    assert counts["backend"] == "fake: longer"


def test_an_attempt_in_quarantine_gets_an_error_and_is_not_compared(shard: Shard) -> None:
    killer = "p.1"
    summary = shard.run(
        JudgeWorker([judge()], CONTEXT), "part", item_filter=ItemFilter(skip=(killer,))
    )
    found = {v.trajectory_id: v for v in shard.verdicts("part")}
    assert "quarantined" in (found[killer].error or "")
    assert len(found) == len({v.trajectory_id for v in shard.verdicts("part")}) == 5
    assert killer not in {side for c in shard.comparisons("part") for side in (c.first, c.second)}
    assert summary["pairwise"]["failed"] == 1


def test_content_is_the_same_with_and_without_cache_hits(shard: Shard) -> None:
    judges = [judge(rule="coin"), judge("rubric", rule="coin", samples=2, temperature=1)]
    cache = str(shard.folder / "cache")
    cold = shard.run(JudgeWorker(judges, CONTEXT, cache), "cold")
    warm = shard.run(JudgeWorker(judges, CONTEXT, cache), "warm")
    shard.run(JudgeWorker(judges, CONTEXT), "none")
    assert shard.digests("cold") == shard.digests("warm") == shard.digests("none")
    assert cold["pairwise"]["cache_hits"] == 0
    assert warm["pairwise"]["cache_hits"] == warm["pairwise"]["questions"] == 6
    assert warm["rubric"]["cache_hits"] == 8


def test_a_failing_backend_gives_errors_counted_and_no_scores(shard: Shard) -> None:
    for rule, text in (
        ("raise", "RuntimeError"),
        ("error", "told to fail"),
        ("garbage", "unreadable"),
    ):
        summary = shard.run(
            JudgeWorker([judge(rule=rule), judge("rubric", rule=rule)], CONTEXT), rule
        )
        assert all(v.score is None for v in shard.verdicts(rule))
        assert all(c.probability is None for c in shard.comparisons(rule))
        assert summary["pairwise"]["errors"] == 3
        assert summary["rubric"]["errors"] == summary["rubric"]["failed"] == 4
        message, count = summary["pairwise"]["top_errors"][0]
        assert text in message
        assert count == 3


def test_a_broken_judge_harms_no_other_judge(shard: Shard) -> None:
    broken = [
        Raising.Config(type="broken", backend=BACKENDS.parse("fake")),
        Careless.Config(type="careless", backend=BACKENDS.parse("fake")),
    ]
    summary = shard.run(JudgeWorker([*broken, judge()], CONTEXT))
    by_source = {
        s: [v for v in shard.verdicts() if v.source == s]
        for s in ("broken", "careless", "pairwise")
    }
    assert "KeyError: 'their bug'" in (by_source["broken"][0].error or "")
    assert "not on the attempts at prompt" in (by_source["careless"][0].error or "")
    assert [v.status.value for v in by_source["broken"]] == [
        "error",
        "error",
        "error",
        "abstained",
        "error",
    ]
    assert summary["broken"]["failed"] == 4
    assert by_source["pairwise"][2].score == 1.0


@pytest.mark.parametrize("num_judges", [1, 2, 3])
def test_the_summary_stays_under_one_kilobyte(shard: Shard, num_judges: int) -> None:
    judges = [judge(rule="raise", name=f"judge-number-{i}") for i in range(num_judges)]
    summary = shard.run(JudgeWorker(judges, CONTEXT))
    assert len(json.dumps(summary)) < 1_000
    assert summary["judge-number-0"]["errors"] == 3


def test_judges_with_equal_backends_share_one(shard: Shard) -> None:
    worker = JudgeWorker(
        [judge(), judge(name="other", criteria="Be brief."), judge(name="x", rule="tie")], CONTEXT
    )
    inner = [place.backend._backend for place in worker._judges if isinstance(place, AskingInPlace)]
    assert inner[0] is inner[1]
    assert inner[0] is not inner[2]
    assert worker.identities()["x"] == {"backend": "fake: tie", "prompt": judge().template.version}  # type: ignore[attr-defined]


def test_a_backend_that_cannot_start_stops_the_worker_with_the_reason() -> None:
    config = JUDGES.parse(
        {"type": "pairwise", "backend": {"type": "engine", "engine": "fake", "model": "gone"}}
    )
    with pytest.raises(JudgeError, match=r"judge's model 'gone' cannot be had.*no model gone"):
        JudgeWorker([config], CONTEXT)  # type: ignore[list-item]


def test_two_judges_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="two judges have one name"):
        JudgeWorker([judge(), judge(rule="tie")], CONTEXT)


def test_a_trajectory_without_its_prompt_is_a_broken_artifact(shard: Shard) -> None:
    write_records(shard.folder / "prompts.parquet", Prompt, [])
    with pytest.raises(ArtifactError, match="belongs to prompt 'p'"):
        shard.run(JudgeWorker([judge()], CONTEXT))


def test_an_empty_shard_is_judged_to_empty_files(shard: Shard) -> None:
    write_records(shard.folder / "trajectories.parquet", Trajectory, [])
    shard.run(JudgeWorker([judge(), judge("rubric")], CONTEXT))
    assert shard.verdicts() == []
    assert shard.comparisons() == []


def test_what_a_worker_is_built_from_pickles() -> None:
    judges, context = pickle.loads(pickle.dumps(([judge(), judge("rubric")], CONTEXT)))
    assert judges == [judge(), judge("rubric")]
    assert context == CONTEXT
    assert JudgeJob(prompt=Prompt(id="p", messages=()), trajectories=(), seed=1).seed == 1


@pytest.mark.parametrize("kind", ["pairwise", "rubric"])
def test_an_attempt_that_a_limit_cut_scores_worst_and_costs_no_question(
    tmp_path: Path, kind: str
) -> None:
    prompts = [Prompt(id="p", messages=(Message(role="user", content="Task"),))]
    attempts_at_it = [
        attempt("p", 0, "short"),
        attempt("p", 1, "the longest by far, but without an e", status="truncated"),
        attempt("p", 2, "<think>longer than the other, and unfinished"),
    ]
    write_records(tmp_path / "prompts.parquet", Prompt, prompts)
    write_records(tmp_path / "trajectories.parquet", Trajectory, attempts_at_it)
    shard = Shard(tmp_path)
    summary = shard.run(JudgeWorker([judge(kind)], CONTEXT))
    by_id = {v.trajectory_id: v.score or 0.0 for v in shard.verdicts()}
    assert by_id["p.0"] > max(by_id["p.1"], by_id["p.2"])
    assert summary[kind].get("questions", 0) == (0 if kind == "pairwise" else 1)
