"""A raw score is any finite number: it says so itself, and its source says so before a run."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from policies.base.component import create
from policies.base.records import Message, Prompt, ScoredGroup, Verdict, VerdictStatus
from policies.examples.builder import PREFERENCES, PreferenceBuilder
from policies.examples.kinds import PreferencePair
from policies.storage.artifacts import canonical_json, read_records, write_records
from tests.support.attempts import attempt
from workers.scoring.aggregate import aggregate
from workers.scoring.feedback_settings import FeedbackSettings
from workers.verify.isolated_verifier import IsolatedVerifier
from workers.verify.verifier import VERIFIERS, Verifier

PROMPT = Prompt(id="p", messages=(Message(role="user", content="?"),))


def verdict(score: float | None, *, raw: bool = True, name: str = "t0") -> Verdict:
    status = VerdictStatus.ABSTAINED if score is None else VerdictStatus.SCORED
    return Verdict(source="reward", trajectory_id=name, status=status, score=score, raw=raw)


def rewarded(*rewards: float) -> ScoredGroup:
    turns = [
        attempt("x").turns[0].model_copy(update={"token_ids": (9 + i,)})
        for i in range(len(rewards))
    ]
    attempts = [attempt("x", name=f"t{i}", turns=(turn,)) for i, turn in enumerate(turns)]
    verdicts = [verdict(reward, name=f"t{i}") for i, reward in enumerate(rewards)]
    return aggregate(PROMPT, attempts, verdicts, (), FeedbackSettings(desirable_at=0.0))


def builder(**settings: Any) -> PreferenceBuilder:
    made: PreferenceBuilder = create(PREFERENCES.parse(settings))
    return made


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, 1e16])
def test_a_raw_score_is_finite_and_bounded(score: float) -> None:
    with pytest.raises(ValidationError):
        verdict(score)


def test_a_score_outside_the_unit_interval_must_say_that_it_is_raw() -> None:
    with pytest.raises(ValidationError, match=r"lies in \[0, 1\], got 1.5"):
        verdict(1.5, raw=False)
    assert verdict(-1.5).score == -1.5


def test_the_mark_of_a_raw_score_is_written_only_where_there_is_one(tmp_path: Path) -> None:
    assert "raw" not in canonical_json(verdict(0.5, raw=False))
    said = [verdict(0.5, raw=False), verdict(-7.25), verdict(None, raw=False)]
    write_records(tmp_path / "v.parquet", Verdict, said)
    assert read_records(tmp_path / "v.parquet", Verdict) == said


def test_a_pair_of_raw_scores_is_as_sure_as_the_reward_model_was_trained_to_be() -> None:
    group = rewarded(-1.0, 2.0)
    made = builder(type="best_vs_worst", margin=2.5)
    (pair,) = made.build_labelled(group, random.Random(0)).examples
    assert isinstance(pair, PreferencePair)
    assert (pair.margin, pair.chosen.trajectory_id) == (3.0, "t1")
    assert pair.soft_label == pytest.approx(1 / (1 + math.exp(-3.0)))
    assert not builder(type="best_vs_worst", margin=3.5).build(group, random.Random(0)).examples


@pytest.mark.parametrize(
    ("settings", "raw", "said"),
    [
        ({"type": "imitate"}, True, "preferences.threshold: 0.0"),
        ({"type": "thresholded"}, True, "preferences.threshold: 0.0"),
        ({"type": "thresholded", "threshold": 0.0}, True, None),
        ({"type": "thresholded", "threshold": -3.0}, False, "a number in [0, 1]"),
        ({"type": "thresholded", "low_threshold": -3.0}, False, "a number in [0, 1]"),
        ({"type": "all_pairs", "margin": 2.0}, False, "a number in [0, 1]"),
        ({"type": "all_pairs", "margin": 2.0}, True, None),
        ({"type": "right_vs_wrong"}, True, None),
    ],
)
def test_thresholds_and_margins_that_do_not_fit_the_scores_are_refused(
    settings: dict[str, Any], raw: bool, said: str | None
) -> None:
    refused = builder(**settings).config.refused_scores(raw)
    assert refused is None if said is None else said in (refused or "")


def test_thresholds_below_zero_sort_raw_scores() -> None:
    made = builder(type="thresholded", threshold=-1.0, low_threshold=-5.0)
    built = made.build(rewarded(-0.5, -3.0, -9.0), random.Random(0))
    assert [(e.label(), e.scores()) for e in built.examples] == [(True, (-0.5,)), (False, (-9.0,))]
    assert built.dropped == {"between_thresholds": 1}


def length(completion: str) -> float:
    return 3.0 - len(completion)


def truth(completion: str) -> bool:
    return bool(completion)


class Sly(Verifier):
    """Gives a raw score and never said that it would."""

    def verify(self, prompt: Prompt, trajectory: Any) -> Verdict:
        return verdict(9.0, name=trajectory.id).model_copy(update={"source": "sly"})


@pytest.mark.parametrize(
    ("function", "expected"), [(length, [-1.0, 3.0]), (truth, [1.0, 0.0])], ids=["length", "truth"]
)
def test_a_function_of_raw_scores_is_taken_at_its_word_also_about_nothing(
    function: Callable[[str], float], expected: list[float]
) -> None:
    reference = f"{__name__}:{function.__name__}"
    config = VERIFIERS.parse({"type": reference, "raw": True})
    assert isinstance(config, Verifier.Config)
    with IsolatedVerifier(config) as verifier:
        items = [(PROMPT, attempt("four", name="a")), (PROMPT, attempt("", name="b"))]
        verdicts = verifier.submit(items).result()
    assert [(v.score, v.raw) for v in verdicts] == [(score, True) for score in expected]
    with pytest.raises(ValueError, match="leave one of the two out"):
        VERIFIERS.parse({"type": reference, "raw": True, "score_range": [0, 9]})


def test_a_verifier_that_never_said_that_it_is_raw_gives_an_error_and_no_score() -> None:
    config = Sly.Config(type=f"{__name__}:Sly", name="sly")
    with IsolatedVerifier(config) as verifier:
        said = verifier.verify(PROMPT, attempt("x"))
    assert said.score is None
    assert "does not say so before the run" in (said.error or "")
