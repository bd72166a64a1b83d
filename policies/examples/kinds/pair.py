"""Preference pairs: a chosen sequence over a rejected one."""

from __future__ import annotations

from typing import ClassVar, Self

from policies.base.records import Probability, ScoredGroup
from policies.examples.kind import Example, TokenSequence
from policies.examples.soft_labels import soft_label


class PreferencePair(Example):
    """Chosen over rejected, for the same prompt tokens. Made by a preference builder.

    Example: `PreferencePair(id="r1.7x8.0>r1.7x8.3", prompt_id="7x8", chosen=..., rejected=..., margin=1.0)`.
    """

    kind_name: ClassVar[str] = "pair"
    counted_as: ClassVar[str] = "pairs"
    fewest_sequences: ClassVar[int] = 2

    chosen: TokenSequence
    rejected: TokenSequence
    margin: float
    """Score of chosen minus score of rejected."""
    soft_label: Probability = 1.0
    """Probability that chosen is really better (`examples/soft_labels.py`); losses read it with `soft_labels: true`."""

    def problem(self) -> str | None:
        chosen, rejected = self.chosen, self.rejected
        same = (chosen.token_ids, chosen.loss_mask) == (rejected.token_ids, rejected.loss_mask)
        return super().problem() or ("identical" if same else None)

    def counts(self) -> dict[str, float]:
        """Sums over pairs; `contradicted`: the judge that compared the two sides prefers the rejected one."""
        return {
            "pairs": 1,
            "margin_sum": self.margin,
            "soft_label_sum": self.soft_label,
            "contradicted": int(self.soft_label < 0.5),
            "chosen_tokens": self.chosen.num_scored,
            "rejected_tokens": self.rejected.num_scored,
        }

    def favours(self) -> bool:
        return self.margin > 0

    def labelled(self, group: ScoredGroup) -> Self:
        """Return the pair with a soft label, where its builder gave none and a source scored both sides."""
        if "soft_label" in self.model_fields_set:
            return self
        label = soft_label(group, self.chosen.trajectory_id, self.rejected.trajectory_id)
        return self if label is None else self.model_copy(update={"soft_label": label})
