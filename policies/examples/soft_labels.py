"""Soft labels: how sure it is that the chosen side of a pair is better: from comparisons where judges made them, else
from scores.

Each source (verifier or judge) that scored both sides says a probability; the label is their mean, weighted as their
scores are. A pairwise judge says what it said of these two, both orders averaged; where it never compared them, what
follows from how often each won (Bradley-Terry). A source of raw scores, a reward model, says sigmoid(s_c - s_r): its
training made that of rewards. Any other source says (1 + s_c - s_r) / 2: with scores as probabilities of being right,
the chance that the chosen side alone is right, and half the chance of a tie.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from policies.base.records import Comparison, Feedback, ScoredGroup


def soft_label(group: ScoredGroup, chosen: str, rejected: str) -> float | None:
    """Probability that `chosen` is better than `rejected`, both ids of trajectories; None where no source scored both.

    Example: one pairwise judge that saw the two with probability 0.75, beside a verifier that calls both right (a tie,
    0.5), both of weight 1: 0.625.
    """
    feedback = {each.trajectory_id: each for each in group.feedback}
    mine, other = (_opinions(feedback[name], group) for name in (chosen, rejected))
    raw = {v.source for each in group.feedback for v in each.verdicts if v.raw}
    total = weighted = 0.0
    for source in mine.keys() & other.keys():
        (score, weight), (other_score, other_weight) = mine[source], other[source]
        compared = [c for c in group.comparisons if c.source == source]
        probability = (
            _compared(compared, chosen, rejected)
            if compared
            else of_scores(score, other_score, raw=source in raw)
        )
        share = (weight + other_weight) / 2
        total += share
        weighted += share * probability
    return min(1.0, max(0.0, weighted / total)) if total > 0 else None


def of_scores(score: float, other: float, *, raw: bool = False) -> float:
    """Probability that what has `score` is better than what has the score `other`; `raw` ones are log-odds."""
    if raw:
        return 1.0 / (1.0 + math.exp(min(700.0, other - score)))
    return (1.0 + score - other) / 2


def _opinions(feedback: Feedback, group: ScoredGroup) -> dict[str, tuple[float, float]]:
    """Mean score and weight by source, of the verdicts on the whole attempt."""
    found: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for verdict in feedback.verdicts:
        if verdict.score is not None and verdict.span is None:
            weight = group.weights.get(verdict.source, 1.0) * verdict.confidence
            found[verdict.source].append((verdict.score, weight))
    return {
        source: (math.fsum(s for s, _ in of_one) / len(of_one), math.fsum(w for _, w in of_one))
        for source, of_one in found.items()
    }


def _compared(comparisons: Sequence[Comparison], chosen: str, rejected: str) -> float:
    """Return what one judge's comparisons say: directly, or by how often each side won against others."""
    sides = {chosen, rejected}
    direct = _wins(chosen, (c for c in comparisons if {c.first, c.second} == sides))
    if direct:
        return math.fsum(direct) / len(direct)
    rates = [_mean(_wins(name, comparisons)) for name in (chosen, rejected)]
    up, down = rates[0] * (1 - rates[1]), rates[1] * (1 - rates[0])
    return up / (up + down) if up + down > 0 else 0.5


def _wins(name: str, comparisons: Iterable[Comparison]) -> list[float]:
    """Probabilities that `name` is better, in the comparisons with it that did not fail."""
    return [
        c.probability if c.first == name else 1.0 - c.probability
        for c in comparisons
        if c.probability is not None and name in (c.first, c.second)
    ]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.5
