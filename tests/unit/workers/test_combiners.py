"""Combiners read scores by the name of their source, and make of them the one score that is learned from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from policies.base.component import create
from policies.base.errors import ConfigurationError
from policies.base.records import Feedback, Message, Prompt, ScoredGroup, Verdict
from policies.base.source_scores import SourceScore, scores_by_source, spread
from tests.support.attempts import attempt
from workers.scoring.aggregate import aggregate
from workers.scoring.combiner import COMBINERS, Combiner
from workers.scoring.feedback_settings import FeedbackSettings
from workers.scoring.normalize import normalized

PROMPT = Prompt(id="p", messages=(Message(role="user", content="?"),))
SETTINGS: Mapping[str, Any] = {
    "veto": {"sources": {"form": 1.0}},
    "tiers": {"sources": ["right", "reward"]},
}


def combiner(kind: str, **settings: Any) -> Combiner:
    made: Combiner = create(COMBINERS.parse({"type": kind, **SETTINGS.get(kind, {}), **settings}))
    return made


def scores(raw: Sequence[str] = (), **given: float) -> dict[str, SourceScore]:
    return {name: SourceScore(value, raw=name in raw) for name, value in given.items()}


def scored(
    rows: Sequence[Mapping[str, float]], raw: Sequence[str] = (), **settings: Any
) -> ScoredGroup:
    """Attempts `0`, `1`, ... with a verdict for each score by source."""
    verdicts = [
        Verdict(
            source=source,
            trajectory_id=str(i),
            status="scored",  # type: ignore[arg-type]
            score=score,
            raw=source in raw,
        )
        for i, row in enumerate(rows)
        for source, score in row.items()
    ]
    attempts = [attempt("x", name=str(i), sample_index=i) for i in range(len(rows))]
    return aggregate(PROMPT, attempts, verdicts, (), FeedbackSettings.model_validate(settings))


def usable(group: ScoredGroup) -> list[float | None]:
    return [each.score for each in group.feedback]


@pytest.mark.parametrize("kind", list(COMBINERS.members()))
def test_what_nothing_scored_has_no_score_and_the_order_of_attempts_means_nothing(
    kind: str,
) -> None:
    made = combiner(kind)
    group = [
        scores(form=1.0, right=1.0, reward=0.25),
        scores(form=0.0, right=1.0, reward=0.75),
        scores(form=1.0, right=0.0, reward=0.5),
        {},
    ]
    found = made.combine(group)
    assert found[3] is None
    assert all(score is not None and 0 <= score <= 1 for score in found[:3])
    for order in itertools.permutations(range(4)):
        assert [made.combine([group[i] for i in order])[order.index(i)] for i in range(4)] == found


def test_the_mean_is_the_default_and_is_left_out_of_what_files_are_made_from() -> None:
    assert FeedbackSettings().model_dump(mode="json") == {
        "desirable_at": 0.5,
        "on_error": "unusable",
    }
    assert usable(scored([{"a": 1.0, "b": 0.5}])) == [0.75]
    other = FeedbackSettings.model_validate({"combine": "minimum"}).model_dump(mode="json")
    assert other["combine"] == {"type": "minimum"}


def test_the_minimum_and_the_product_of_all_sources() -> None:
    assert usable(scored([{"a": 0.5, "b": 0.25}], combine="minimum")) == [0.25]
    assert usable(scored([{"a": 0.5, "b": 0.25}], combine="product")) == [0.125]


def test_a_veto_scores_nothing_whatever_the_others_say() -> None:
    combine = {"type": "veto", "sources": {"form": 0.5}}
    rows: list[dict[str, float]] = [
        {"form": 0.4, "right": 1.0},
        {"form": 0.5, "right": 0.75},
        {"right": 0.25},
        {"form": 1},
    ]
    assert usable(scored(rows, combine=combine)) == [0.0, 0.75, 0.25, 1.0]


def test_a_raw_source_may_veto_at_any_threshold() -> None:
    combine = {"type": "veto", "sources": {"reward": -2.0}}
    rows = [{"reward": -3.0, "right": 1.0}, {"reward": -1.0, "right": 1.0}]
    assert usable(scored(rows, raw=["reward"], combine=combine)) == [0.0, 1.0]


def test_a_later_tier_orders_only_what_the_earlier_ones_leave_equal() -> None:
    combine = {"type": "tiers", "sources": ["right", "reward"]}
    rows = [
        {"right": 1.0, "reward": -4.0},
        {"right": 0.0, "reward": 9.0},
        {"right": 1.0, "reward": 2.0},
        {"right": 0.0, "reward": 3.0},
        {"reward": 5.0},
    ]
    group = scored(rows, raw=["reward"], combine=combine)
    assert usable(group) == pytest.approx([0.9, 0.1, 1.0, 0.0, None])
    assert [f.desirable for f in group.feedback] == [True, False, True, False, None]
    assert group.feedback[4].unusable_because == "not_combined"
    assert not group.raw


def test_tiers_never_turn_around_what_the_first_source_tells_apart() -> None:
    made = combiner("tiers")
    near = [
        scores(["reward"], right=0.5, reward=9.0),
        scores(["reward"], right=0.5, reward=0.0),
        scores(["reward"], right=0.501, reward=-9.0),
        scores(["reward"], right=0.501, reward=-8.0),
    ]
    found = [score or 0.0 for score in made.combine(near)]
    assert found[1] < found[0] < found[2] < found[3]
    raw = [
        scores(["right"], right=-3.0, reward=1.0),
        scores(["right"], right=-3.0, reward=0.0),
        scores(["right"], right=4.0, reward=0.0),
    ]
    low, lower, high = (score or 0.0 for score in made.combine(raw))
    assert lower < low < high
    assert made.combine([scores(right=0.7)]) == [0.7], "as it is where no later source scored"


def test_scales_bring_raw_scores_to_their_group_or_to_the_unit_interval() -> None:
    group = [scores(["r"], r=value) for value in (2.0, -1.0, 2.0, 5.0)]
    found = {
        scale: [each["r"].score for each in normalized(group, {"r": scale})]
        for scale in ("rank", "min_max", "sigmoid", "z_score")
    }
    assert found["rank"] == pytest.approx([0.5, 0.0, 0.5, 1.0])
    assert found["min_max"] == pytest.approx([0.5, 0.0, 0.5, 1.0])
    assert found["sigmoid"][1] == pytest.approx(0.2689414, abs=1e-6)
    assert found["z_score"] == pytest.approx([0.0, -(2**0.5), 0.0, 2**0.5])
    alone = normalized([scores(["r"], r=7.0)], {"r": "rank"})
    assert alone[0]["r"] == SourceScore(0.5, 1.0, False)
    assert normalized(group, {"r": "z_score"})[0]["r"].raw


def test_raw_scores_stay_what_they_are_unless_a_scale_is_set() -> None:
    rows = [{"reward": -2.5}, {"reward": 7.5}]
    group = scored(rows, raw=["reward"], desirable_at=0.0)
    assert (usable(group), group.raw) == ([-2.5, 7.5], True)
    assert [f.desirable for f in group.feedback] == [False, True]
    ranked = scored(rows, raw=["reward"], normalize={"reward": "rank"})
    assert (usable(ranked), ranked.raw) == ([0.0, 1.0], False)
    assert ranked.feedback[0].verdicts[0].score == -2.5, "the verdict keeps the reward"


def test_sources_are_read_by_name_and_their_spread_tells_how_unsure_a_score_is() -> None:
    (feedback,) = scored([{"a": 0.25, "b": 1.0, "reward": 40.0}], raw=["reward"]).feedback
    found = scores_by_source(feedback.verdicts, {"b": 3.0})
    assert found["b"] == SourceScore(1.0, 3.0, False)
    assert spread(feedback) == 0.75
    assert spread(Feedback(trajectory_id="t", score=1.0, desirable=True)) is None


@pytest.mark.parametrize(
    ("combine", "sources", "said"),
    [
        ({"type": "veto", "sources": {"farm": 1}}, {"form": False}, "did you mean 'form'?"),
        ({"type": "tiers", "sources": ["form", "no"]}, {"form": False}, "known: form"),
        ("mean", {"form": False, "rm": True}, "feedback.normalize: {rm: rank}"),
        ("minimum", {"form": False, "rm": True}, "feedback.normalize: {rm: rank}"),
        ("product", {"rm": True}, "feedback.normalize: {rm: rank}"),
        ({"type": "veto", "sources": {"form": 1}}, {"form": False, "rm": True}, "{rm: rank}"),
        ({"type": "veto", "sources": {"form": 2}}, {"form": False}, "give a number in [0, 1]"),
    ],
)
def test_what_does_not_fit_the_sources_is_refused_in_four_parts(
    combine: Any, sources: dict[str, bool], said: str
) -> None:
    refused = FeedbackSettings.model_validate({"combine": combine}).combine.refused(sources)
    assert refused is not None
    assert said in refused
    assert "Set by: feedback.combine" in refused
    assert "Fix: " in refused


OWN = '''
from pawl import Combiner


class Loudest(Combiner):
    """The score that is furthest from one half."""

    def combine(self, group):
        return [max((s.score for s in x.values()), key=lambda v: abs(v - 0.5)) {change} for x in group]
'''


@pytest.mark.parametrize(("change", "fits"), [("", True), ("* 3", False)])
def test_a_combiner_of_ones_own_is_a_file_and_what_it_returns_is_checked(
    tmp_path: Path, change: str, fits: bool
) -> None:
    path = tmp_path / "loudest.py"
    path.write_text(OWN.replace("{change}", change))
    combine = {"type": f"{path}:Loudest"}
    rows = [{"a": 0.25, "b": 0.875}]
    if fits:
        assert usable(scored(rows, combine=combine)) == [0.875]
    else:
        with pytest.raises(ConfigurationError, match=r"a combiner must return a score in \[0, 1\]"):
            scored(rows, combine=combine)


def test_what_orders_equals_makes_none_of_them_right_or_wrong() -> None:
    rows = [{"right": 1.0, "reward": -3.0}, {"right": 1.0, "reward": 2.0}, {"right": 0.0}]
    combine = {"type": "tiers", "sources": ["right", "reward"]}
    for threshold in (0.5, 0.95, 1.0):
        group = scored(rows, raw=("reward",), combine=combine, desirable_at=threshold)
        assert [f.desirable for f in group.feedback] == [True, True, False]
    first, second, _ = usable(group)
    assert first is not None
    assert second is not None
    assert first < second
