"""Metrics of what a round learns from: scores, margins, labels, and whether one side is the longer one."""

from __future__ import annotations

from collections.abc import Mapping


def example_metrics(counts: Mapping[str, float]) -> dict[str, float]:
    """`prefer/...` of the examples, from the shards' sums; what there is nothing of is left out.

    `prefer/score` is the mean score of all attempts, by verifiers and judges as weighted: the proxy that the policy is
    trained on. Of pairs: `prefer/margin` (difference of scores), `prefer/soft_label`, `prefer/contradicted_share` (a
    judge that compared the two sides prefers the rejected one). `prefer/length_gap` is how many scored tokens the good
    side is longer than the bad one, in the mean: far from 0, length is among what is taught.
    """

    def value(name: str) -> float:
        return counts.get(f"prefer/{name}", 0.0)

    found: dict[str, float] = {}
    if scored := value("desirable") + value("undesirable"):
        found["prefer/score"] = value("score_sum") / scored
    pairs = value("pairs")
    if pairs:
        found["prefer/margin"] = value("margin_sum") / pairs
        found["prefer/soft_label"] = value("soft_label_sum") / pairs
        found["prefer/contradicted_share"] = value("contradicted") / pairs
    good, bad = value("examples_desirable") + pairs, value("examples_undesirable") + pairs
    if good + bad and not pairs:
        found["prefer/desirable_share"] = good / (good + bad)
    if good and bad:
        found["prefer/length_gap"] = value("chosen_tokens") / good - value("rejected_tokens") / bad
    return found
