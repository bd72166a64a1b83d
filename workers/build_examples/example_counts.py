"""Counts of the examples of a shard: sums and counts that the driver divides into metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence

from policies.examples.kinds import Example, PreferencePair, TokenSequence, UnpairedExample


def count_examples(examples: Sequence[Example]) -> dict[str, float]:
    """Sums over the examples of one kind; what does not apply to the kind is left out.

    Pairs: `pairs`, `margin_sum`, `soft_label_sum`, `contradicted` (the judge that compared the two sides prefers the
    rejected one), `chosen_tokens` and `rejected_tokens` (scored ones). Unpaired examples: `examples_desirable`,
    `examples_undesirable` and the tokens of each class under the same two names.
    """
    pairs = [e for e in examples if isinstance(e, PreferencePair)]
    unpaired = [e for e in examples if isinstance(e, UnpairedExample)]
    if pairs:
        return {
            "pairs": len(pairs),
            "margin_sum": round(math.fsum(pair.margin for pair in pairs), 9),
            "soft_label_sum": round(math.fsum(pair.soft_label for pair in pairs), 9),
            "contradicted": sum(pair.soft_label < 0.5 for pair in pairs),
            "chosen_tokens": sum(scored_tokens(pair.chosen) for pair in pairs),
            "rejected_tokens": sum(scored_tokens(pair.rejected) for pair in pairs),
        }
    if unpaired:
        return {
            "examples_desirable": sum(e.desirable for e in unpaired),
            "examples_undesirable": sum(not e.desirable for e in unpaired),
            "chosen_tokens": sum(scored_tokens(e.sequence) for e in unpaired if e.desirable),
            "rejected_tokens": sum(scored_tokens(e.sequence) for e in unpaired if not e.desirable),
        }
    return {}


def scored_tokens(sequence: TokenSequence) -> int:
    """Tokens that count in the loss."""
    return sum(sequence.loss_mask)
