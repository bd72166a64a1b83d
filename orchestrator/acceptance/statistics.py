"""Standard errors of held-out measurements, clustered by prompt, and the paired difference of two policies.

The attempts at one prompt are not independent, so a prompt is one observation: its mean over attempts. The standard
error of the mean over C prompts is that of C independent values (Miller 2024, "Adding Error Bars to Evals", arXiv
2411.00640, section 2.2, with clusters of one size, and the usual factor C / (C - 1) for few clusters). Two policies
that answered the same prompts are compared prompt by prompt (section 4): what makes a prompt hard for both drops out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts and its standard error. Example: `Estimate(0.39, 0.07, 24)`."""

    value: float
    error: float | None
    """Standard error; None where it cannot be told, with fewer than two prompts."""
    num_prompts: int

    def __str__(self) -> str:
        return f"{self.value:+.3f} +- {self.error or 0.0:.3f}"


def clustered_mean(values: Sequence[float]) -> Estimate:
    """Mean of one value per prompt, with the standard error sd / sqrt(C).

    Args:
        values: mean score of each prompt's attempts. [C]

    Example:
        >>> clustered_mean([0.0, 1.0])
        Estimate(value=0.5, error=0.5, num_prompts=2)
    """
    number = len(values)
    if not number:
        raise ValueError("the mean of no prompts is not defined")
    mean = math.fsum(values) / number
    if number < 2:
        return Estimate(mean, None, number)
    variance = math.fsum((v - mean) ** 2 for v in values) / (number - 1)
    return Estimate(mean, math.sqrt(variance / number), number)


def paired_difference(new: Sequence[float], old: Sequence[float], floor: float = 0.0) -> Estimate:
    """Mean over prompts of new minus old, with its clustered standard error.

    Args:
        new: mean score of each prompt under one policy. [C]
        old: the same prompts under the other. [C]
        floor: smallest standard error to believe; see `sampling_error`.
    """
    found = clustered_mean([a - b for a, b in zip(new, old, strict=True)])
    error = None if found.error is None else max(found.error, floor)
    return Estimate(found.value, error, found.num_prompts)


def sampling_error(counts: Sequence[tuple[float, int, float, int]]) -> float:
    """Standard error of a paired difference from the chance of sampling alone: the least that it can be.

    Attempts that all ended alike show no spread, and are still a sample: the rate of each prompt is taken from both
    policies' attempts together with Jeffreys' prior (half a success and half a failure added).

    Args:
        counts: per prompt: score sum and number of attempts, of one policy and of the other. [C]
    """
    if not counts:
        return 0.0
    total = 0.0
    for new_sum, new_number, old_sum, old_number in counts:
        rate = (new_sum + old_sum + 0.5) / (new_number + old_number + 1)
        total += rate * (1 - rate) * (1 / new_number + 1 / old_number)
    return math.sqrt(total) / len(counts)


def student_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t distribution.

    Exact for 1 and 2 degrees of freedom; else the expansion of Abramowitz and Stegun, 26.7.5, to the fourth order,
    right to 2 % for probabilities up to 0.99 from 3 degrees on.

    Args:
        probability: above 0 and below 1.
        degrees: of freedom, at least 1.
    """
    p = probability
    if degrees == 1:
        return math.tan(math.pi * (p - 0.5))
    if degrees == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    z, n = NormalDist().inv_cdf(p), degrees
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / n ** (i + 1) for i, term in enumerate(terms))


def is_clearly_below(difference: Estimate, bound: float, confidence: float) -> bool:
    """True if a difference is below `bound` by a one-sided t test at `confidence` (0.9: one false alarm in ten)."""
    if difference.error is None or difference.num_prompts < 2:
        return False
    far = student_quantile(confidence, difference.num_prompts - 1) * difference.error
    return difference.value + far < bound


def is_clearly_above(difference: Estimate, bound: float, confidence: float) -> bool:
    """Tell whether a difference is above `bound` by a one-sided t test at `confidence`."""
    return is_clearly_below(
        Estimate(-difference.value, difference.error, difference.num_prompts), -bound, confidence
    )


def clustered_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Ratio of two sums over prompts, e.g. right over ended, with the standard error of a ratio of cluster totals.

    The linearised (Taylor) estimator, e.g. Cochran, "Sampling Techniques", 3rd ed., eq. 6.13: sqrt(C / (C - 1) x sum
    of (numerator - ratio x denominator) squared) / sum of denominators.

    Args:
        numerators: of each prompt. [C]
        denominators: of each prompt; not all 0. [C]
    """
    whole, number = math.fsum(denominators), len(denominators)
    if whole <= 0:
        raise ValueError("the ratio to nothing is not defined")
    ratio = math.fsum(numerators) / whole
    if number < 2:
        return Estimate(ratio, None, number)
    rest = math.fsum((a - ratio * b) ** 2 for a, b in zip(numerators, denominators, strict=True))
    return Estimate(ratio, math.sqrt(rest * number / (number - 1)) / whole, number)
