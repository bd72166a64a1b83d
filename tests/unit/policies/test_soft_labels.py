"""Judged probabilities reach the loss: from comparisons through a builder into the number that is minimised."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch

from policies.base.component import create
from policies.base.records import (
    Comparison,
    Message,
    Prompt,
    ScoredGroup,
    Span,
    Trajectory,
    Verdict,
    VerdictStatus,
)
from policies.examples.builder import PREFERENCES
from policies.examples.kinds import PreferencePair, SupervisedExample, UnpairedExample
from policies.examples.soft_labels import soft_label
from policies.objectives.loss import LOSSES, PairLoss, PairTensors
from tests.support.attempts import attempt
from tests.support.scored_batches import collated
from workers.scoring.aggregate import aggregate
from workers.scoring.feedback_settings import FeedbackSettings
from workers.training.batches.plan import MicroBatch

PROMPT = Prompt(id="p", messages=(Message(role="user", content="?"),))


def attempts(number: int) -> list[Trajectory]:
    found = []
    for index in range(number):
        made = attempt(f"text {index}", name=f"t{index}", sample_index=index)
        turn = made.turns[0].model_copy(update={"token_ids": (10 + index,)})
        found.append(made.model_copy(update={"turns": (turn,)}))
    return found


def compared(first: int, second: int, ahead: float, behind: float) -> Comparison:
    """The judge saw the pair in both orders; each number is the probability that `first` is better."""
    return Comparison(
        source="judge",
        first=f"t{first}",
        second=f"t{second}",
        probability=(ahead + behind) / 2,
        first_shown_first=ahead,
        first_shown_second=behind,
        agreed=ahead == behind,
    )


def verdict(source: str, index: int, score: float | None, **changes: Any) -> Verdict:
    status = VerdictStatus.ABSTAINED if score is None else VerdictStatus.SCORED
    return Verdict(source=source, trajectory_id=f"t{index}", status=status, score=score, **changes)


def judged(
    number: int,
    comparisons: Sequence[Comparison],
    verdicts: Sequence[Verdict] = (),
    weights: dict[str, float] | None = None,
) -> ScoredGroup:
    """A group as the verify worker makes it: a pairwise judge's verdict is the mean of what an attempt won."""
    wins: dict[int, list[float]] = {index: [] for index in range(number)}
    for c in comparisons:
        assert c.probability is not None
        wins[int(c.first[1:])].append(c.probability)
        wins[int(c.second[1:])].append(1 - c.probability)
    own = [verdict("judge", i, sum(won) / len(won)) for i, won in wins.items() if won]
    return aggregate(
        PROMPT, attempts(number), [*own, *verdicts], comparisons, FeedbackSettings(), weights
    )


def pairs_of(group: ScoredGroup, name: str = "all_pairs", **config: Any) -> list[PreferencePair]:
    builder = create(PREFERENCES.parse({"type": name, **config}))
    built = builder.build_labelled(group, random.Random(0))
    return cast("list[PreferencePair]", built.examples)


def loss_of(pairs: Sequence[PreferencePair], h: Sequence[float], **config: Any) -> float:
    """Mean DPO loss (beta 0.1) of pairs whose differences of log-ratios are `h`, labels as the collator gives them."""
    loss = create(LOSSES.parse({"type": "dpo", "beta": 0.1, **config}))
    assert isinstance(loss, PairLoss)
    rows = MicroBatch(rows=tuple(range(len(pairs))), share=1.0)
    facts = collated(loss, pairs, [(0.0, 0.0)] * len(pairs), [1.0, 1.0], rows)["facts"]
    zeros = torch.zeros(len(pairs))
    tensors = PairTensors(
        chosen_logps=torch.tensor(h),
        rejected_logps=zeros,
        ref_chosen_logps=zeros,
        ref_rejected_logps=zeros,
        chosen_lengths=zeros + 1,
        rejected_lengths=zeros + 1,
        soft_labels=facts["values"]["soft_label"],
    )
    return float((loss.per_pair(tensors) * facts["weights"]).mean())


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


@pytest.mark.parametrize("name", ["all_pairs", "best_vs_worst"])
def test_the_judged_probability_is_in_the_loss(name: str) -> None:
    group = judged(2, [compared(0, 1, ahead=1.0, behind=0.5)])
    (pair,) = pairs_of(group, name)
    assert (pair.id, pair.soft_label) == ("t0>t1", 0.75)
    expected = -0.75 * log_sigmoid(0.1 * 1.5) - 0.25 * log_sigmoid(-0.1 * 1.5)
    assert loss_of([pair], [1.5], soft_labels=True) == pytest.approx(expected, abs=1e-6)
    assert loss_of([pair], [1.5]) == pytest.approx(-log_sigmoid(0.15), abs=1e-6)


def test_many_pairs_keep_their_own_probabilities_in_the_loss() -> None:
    found, expected, h = [], [], []
    for index in range(20):
        probability = 0.5 + 0.5 * (index + 1) / 20
        (pair,) = pairs_of(judged(2, [compared(1, 0, probability, probability)]))
        found.append(pair)
        h.append(index / 7)
        expected.append(
            -probability * log_sigmoid(0.1 * index / 7)
            - (1 - probability) * log_sigmoid(-0.1 * index / 7)
        )
    assert len({pair.soft_label for pair in found}) == 20
    value = loss_of(found, h, soft_labels=True)
    assert value == pytest.approx(sum(expected) / 20, abs=1e-6)


def test_a_pair_that_its_own_comparison_contradicts_says_so() -> None:
    circle = [compared(0, 1, 0.4, 0.4), compared(0, 2, 1.0, 1.0), compared(1, 2, 0.5, 0.5)]
    labels = {pair.id: pair.soft_label for pair in pairs_of(judged(3, circle))}
    assert labels == {"t0>t1": pytest.approx(0.4), "t0>t2": 1.0, "t1>t2": 0.5}


def test_attempts_that_were_never_compared_are_told_apart_by_how_often_each_won() -> None:
    ring = [compared(0, 1, 0.9, 0.9), compared(2, 3, 0.6, 0.6)]
    label = soft_label(judged(4, ring), "t0", "t3")
    assert label == pytest.approx(0.9 * 0.6 / (0.9 * 0.6 + 0.1 * 0.4))


def test_scores_as_probabilities_of_being_right_give_the_chance_of_being_the_better_one() -> None:
    graded = [verdict("grader", 0, 0.8), verdict("grader", 1, 0.3)]
    # right and wrong: 0.8 * 0.7; both right or both wrong: a tie, half of 0.8 * 0.3 + 0.2 * 0.7
    assert soft_label(judged(2, [], graded), "t0", "t1") == pytest.approx(0.56 + 0.5 * 0.38)
    certain = [verdict("checker", 0, 1.0), verdict("checker", 1, 0.0)]
    assert soft_label(judged(2, [], certain), "t0", "t1") == 1.0


def test_sources_count_with_their_weight_and_confidence() -> None:
    checked = [verdict("checker", 0, 1.0), verdict("checker", 1, 1.0)]
    group = judged(2, [compared(0, 1, 0.75, 0.75)], checked)
    assert soft_label(group, "t0", "t1") == pytest.approx((0.75 + 0.5) / 2)
    heavy = judged(2, [compared(0, 1, 0.75, 0.75)], checked, {"judge": 3.0, "checker": 1.0})
    assert soft_label(heavy, "t0", "t1") == pytest.approx((3 * 0.75 + 0.5) / 4)
    doubtful = [v.model_copy(update={"confidence": 0.0}) for v in checked]
    ignored = judged(2, [compared(0, 1, 0.75, 0.75)], doubtful)
    assert soft_label(ignored, "t0", "t1") == 0.75


def test_without_a_source_that_scored_both_nothing_is_claimed() -> None:
    group = judged(2, [], [verdict("a", 0, 1.0), verdict("b", 1, 0.0)])
    assert soft_label(group, "t0", "t1") is None
    steps = [verdict("s", i, float(i), span=Span(turn=0, start=0, end=1)) for i in (0, 1)]
    assert soft_label(judged(2, [], steps), "t0", "t1") is None


def test_a_label_that_the_builder_set_is_kept() -> None:
    class Sure(type(create(PREFERENCES.parse("all_pairs")))):  # type: ignore[misc]
        def build(self, group: ScoredGroup, rng: random.Random) -> Any:
            built = super().build(group, rng)
            built.examples = [e.model_copy(update={"soft_label": 0.9}) for e in built.examples]
            return built

    builder = Sure(Sure.Config(type="sure"))
    group = judged(2, [compared(0, 1, 0.75, 0.75)])
    assert [e.soft_label for e in builder.build_labelled(group, random.Random(0)).examples] == [0.9]


@pytest.mark.parametrize("name", ["all_pairs", "thresholded", "imitate"])
def test_prompts_weigh_the_same_where_that_is_asked_for(name: str) -> None:
    scores = [verdict("v", i, s) for i, s in enumerate((1.0, 0.9, 0.8, 0.1))]
    group = judged(4, [], scores)
    builder = create(PREFERENCES.parse({"type": name, "weight_by": "prompt"}))
    examples = builder.build_labelled(group, random.Random(0)).examples
    assert len(examples) > 1
    assert isinstance(examples[0], PreferencePair | UnpairedExample | SupervisedExample)
    assert [e.weight for e in examples] == [pytest.approx(1 / len(examples))] * len(examples)
    plain = create(PREFERENCES.parse(name)).build_labelled(group, random.Random(0)).examples
    assert {e.weight for e in plain} == {1.0}


def test_a_weight_is_in_the_loss() -> None:
    (pair,) = pairs_of(judged(2, [compared(0, 1, 1.0, 1.0)]))
    half = pair.model_copy(update={"weight": 0.5})
    assert loss_of([half], [1.5]) == pytest.approx(0.5 * loss_of([pair], [1.5]))


def test_the_default_weighting_leaves_the_digest_of_older_settings_as_it_was() -> None:
    plain = PREFERENCES.parse("all_pairs").model_dump(mode="json")
    assert "weight_by" not in plain
    by_prompt = PREFERENCES.parse({"type": "all_pairs", "weight_by": "prompt"})
    assert PREFERENCES.parse(by_prompt.model_dump(mode="json")) == by_prompt
