"""Standard errors of held-out measurements: against numpy, scipy, closed forms and the bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]

from orchestrator.acceptance.measurement import Measurement, PromptCounts, difference, pooled
from orchestrator.acceptance.statistics import (
    Estimate,
    clustered_mean,
    clustered_ratio,
    is_clearly_above,
    is_clearly_below,
    paired_difference,
    sampling_error,
    student_quantile,
)

RNG = np.random.default_rng(7)
SAMPLES = 8


def counts(
    *right: int, asked: int = SAMPLES, measured: tuple[int, ...] | None = None
) -> PromptCounts:
    whole = measured or (asked,) * len(right)
    return PromptCounts(
        asked=(asked,) * len(right),
        measured=whole,
        right=right,
        score_sum=tuple(map(float, right)),
        ended=whole,
        ended_right=right,
    )


def test_a_prompt_is_one_observation_of_the_standard_error() -> None:
    rights = [0, 2, 8, 8, 5, 1]
    found = counts(*rights).metrics()
    rates = np.array(rights) / SAMPLES
    assert found["eval/pass@1"] == pytest.approx(rates.mean())
    assert found["eval/pass@1_se"] == pytest.approx(stats.sem(rates))
    # Miller 2024, eq. 4, written out over single attempts, with the factor for few clusters.
    attempts = np.array([[1.0] * r + [0.0] * (SAMPLES - r) for r in rights]) - rates.mean()
    clusters = len(rights)
    by_cluster = (attempts.sum(axis=1) ** 2).sum() / attempts.size**2
    assert found["eval/pass@1_se"] == pytest.approx(
        math.sqrt(by_cluster * clusters / (clusters - 1))
    )
    naive = attempts.std(ddof=1) / math.sqrt(attempts.size)
    assert found["eval/pass@1_se"] > 1.5 * naive, "attempts at one prompt are not independent"


def test_every_pass_at_k_and_the_score_have_their_standard_error() -> None:
    found = counts(0, 2, 8, 5).metrics("test")
    for k in (1, 2, 4, 8):
        assert f"test/pass@{k}_se" in found
    at_2 = [0.0, 1 - math.comb(6, 2) / math.comb(8, 2), 1.0, 1 - math.comb(3, 2) / math.comb(8, 2)]
    assert found["test/pass@2"] == pytest.approx(np.mean(at_2))
    assert found["test/pass@2_se"] == pytest.approx(stats.sem(at_2))
    assert "test/score_se" in found


def test_the_standard_error_of_a_ratio_agrees_with_the_bootstrap_over_prompts() -> None:
    ended = RNG.integers(1, 9, 400)
    right = RNG.binomial(ended, RNG.uniform(0, 1, 400))
    found = clustered_ratio(right.tolist(), ended.tolist())
    draws = RNG.integers(0, 400, (4000, 400))
    again = right[draws].sum(axis=1) / ended[draws].sum(axis=1)
    assert found.value == pytest.approx(right.sum() / ended.sum())
    assert found.error == pytest.approx(again.std(), rel=0.06)


def test_the_paired_difference_drops_what_makes_a_prompt_hard_for_both() -> None:
    hard = RNG.uniform(0, 1, 60)
    old, new = hard + RNG.normal(0, 0.05, 60), hard + 0.1 + RNG.normal(0, 0.05, 60)
    found = paired_difference(new.tolist(), old.tolist())
    assert found.value == pytest.approx((new - old).mean())
    assert found.error == pytest.approx(stats.sem(new - old))
    unpaired = math.hypot(stats.sem(new), stats.sem(old))
    assert found.error is not None
    assert found.error < unpaired / 3


@pytest.mark.parametrize("degrees", [1, 2, 3, 5, 11, 23, 200])
@pytest.mark.parametrize("probability", [0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
def test_the_quantile_is_that_of_students_t(probability: float, degrees: int) -> None:
    assert student_quantile(probability, degrees) == pytest.approx(
        stats.t.ppf(probability, degrees), rel=0.02
    )


def test_a_loss_is_clear_exactly_when_the_one_sided_t_test_says_so() -> None:
    for _ in range(200):
        values = RNG.normal(-0.02, 0.1, 24)
        test = stats.ttest_1samp(values, 0.0, alternative="less")
        if abs(test.pvalue - 0.1) > 0.003:
            assert is_clearly_below(clustered_mean(values.tolist()), 0.0, 0.9) is bool(
                test.pvalue < 0.1
            )
        assert is_clearly_above(clustered_mean((-values).tolist()), 0.0, 0.9) is is_clearly_below(
            clustered_mean(values.tolist()), 0.0, 0.9
        )


def test_one_prompt_makes_nothing_clear() -> None:
    assert clustered_mean([0.2]).error is None
    assert not is_clearly_below(Estimate(-1.0, None, 1), 0.0, 0.9)
    with pytest.raises(ValueError, match="no prompts"):
        clustered_mean([])


def test_attempts_that_all_ended_alike_are_a_sample_all_the_same() -> None:
    old, new = counts(*[8] * 24), counts(*[8] * 23, 7)
    found = difference(Measurement(1, {}, new), Measurement(0, {}, old))
    assert found is not None
    assert not is_clearly_below(found, 0.0, 0.7), "one lost attempt of 192 is no loss"
    # By hand: a rate of 16.5 / 17 (of 15.5 / 17 where one was lost), 8 attempts on both sides.
    rates = [16.5 / 17] * 23 + [15.5 / 17]
    by_hand = math.sqrt(sum(p * (1 - p) * (2 / 8) for p in rates)) / 24
    assert sampling_error([(8, 8, 8, 8)] * 23 + [(7, 8, 8, 8)]) == pytest.approx(by_hand)
    assert found.error == pytest.approx(by_hand)


def test_measurements_of_one_version_are_pooled_attempt_by_attempt() -> None:
    both = pooled([counts(1, 8), counts(3, 7)])
    assert both == counts(4, 15, asked=16)
    assert both.metrics()["eval/pass@1"] == pytest.approx((4 / 16 + 15 / 16) / 2)


def test_all_metrics_are_over_the_same_prompts_and_count_what_was_not_measured() -> None:
    found = counts(2, 4, 8, 0, measured=(8, 7, 8, 0)).metrics()
    assert found["eval/prompts"] == 3
    assert found["eval/prompts_unmeasured"] == 1
    assert found["eval/unusable_share"] == pytest.approx(9 / 32)
    assert found["eval/pass@1"] == pytest.approx((2 / 8 + 4 / 7 + 1) / 3)
    by_hand = [1 - math.comb(n - c, 4) / math.comb(n, 4) for n, c in ((8, 2), (7, 4), (8, 8))]
    assert found["eval/pass@4"] == pytest.approx(np.mean(by_hand))
    assert "eval/pass@8" not in found, "one of the three prompts has seven graded attempts"


def test_a_prompt_with_less_than_half_of_its_attempts_is_not_measured() -> None:
    assert counts(3, 4, measured=(3, 4)).measured_prompts == [1]
    nothing = counts(0, 0, measured=(0, 0)).metrics()
    assert counts(*[4] * 20, measured=(8,) * 19 + (0,)).unmeasured_share == 0.05, "to the last bit"
    assert nothing == {
        "eval/prompts": 0,
        "eval/prompts_unmeasured": 2,
        "eval/unusable_share": 1.0,
    }
