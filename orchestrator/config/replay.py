"""The setting of replay: how much of an update may come from earlier rounds, by their age."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from policies.base.bounds import MAX_ROUNDS
from policies.base.settings import Settings

_ROUNDING = 1e-9


class ReplaySettings(Settings):
    """Examples of earlier rounds in an update; their reference log-probs are always computed anew."""

    rounds: int = Field(default=1, ge=1, le=MAX_ROUNDS)
    """How many rounds before are read; rounds with another kind of example (an earlier stage) bring nothing."""
    share: float = Field(default=0.5, gt=0, lt=1)
    """Largest share of the update's examples that may come from them; it is split over the rounds that are there."""
    decay: float = Field(default=1.0, gt=0, le=1)
    """Each round further back may bring this times as many as the one after it; 1 gives all the same."""

    def most(self, num_fresh: int, ages: Sequence[int]) -> dict[int, int]:
        """Most examples of the rounds of these ages, beside `num_fresh` new ones.

        Example:
            >>> ReplaySettings(rounds=2, share=0.5, decay=0.5).most(30, [1, 2])
            {1: 20, 2: 10}
        """
        weights = {age: self.decay**age for age in sorted(ages)}
        whole = num_fresh * self.share / (1 - self.share)
        found: dict[int, int] = {}
        reached = 0.0
        for age, weight in weights.items():
            reached += whole * weight / sum(weights.values())
            found[age] = math.floor(reached + _ROUNDING) - sum(found.values())
        return found
