"""Pairs of a right (desirable) over a wrong (undesirable) trajectory, drawn at random and evenly."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import ClassVar

from pydantic import Field

from policies.base.bounds import MAX_COUNT
from policies.base.records import ScoredGroup
from policies.examples.builder import Built, Candidate, PreferenceBuilder
from policies.examples.kinds import Example, PreferencePair
from policies.examples.pairs import count_without_contrast, pair_of


class RightVsWrong(PreferenceBuilder):
    """Makes up to `pairs_per_prompt` different pairs.

    With `pairs_per_prompt: 1` this is the rule of iterative M-DPO (Xiong et al., arXiv 2409.02392): one random right
    trajectory over one random wrong one, each of the r x w pairs equally likely, after duplicates were removed;
    with `drop_failed_calls: right` (or `all`), `drop_truncated: right` (the default) and `max_tokens: 2048` as in the
    paper.

    With n pairs over r right and w wrong trajectories, none is used more often than ceil(n / r) or
    ceil(n / w) times. Dropped: `all_right` and `all_wrong` count trajectories; `cap`, `identical` and
    `prefix_differs` count pairs.
    """

    kind: ClassVar[type[Example]] = PreferencePair

    class Config(PreferenceBuilder.Config):
        """Settings of `right_vs_wrong`."""

        pairs_per_prompt: int = Field(default=2, ge=1, le=MAX_COUNT)
        """Most pairs from one prompt: more would let prompts with many contrasts rule the update."""

    config: Config

    def build(self, group: ScoredGroup, rng: random.Random) -> Built:
        """Return the pairs of `group`."""
        built = Built()
        candidates = self.candidates(group, built)
        right = [c for c in candidates if c.feedback.desirable]
        wrong = [c for c in candidates if not c.feedback.desirable]
        if not right or not wrong:
            count_without_contrast(candidates, built, "no_contrast")
            return built
        rng.shuffle(right)
        rng.shuffle(wrong)
        num_possible = len(right) * len(wrong)
        num_wanted = min(self.config.pairs_per_prompt, num_possible)
        uses: Counter[str] = Counter()
        most_right = math.ceil(num_wanted / len(right))
        most_wrong = math.ceil(num_wanted / len(wrong))
        num_seen = 0
        for chosen, rejected in _evenly(right, wrong):
            if len(built.examples) == num_wanted:
                break
            is_used_up = (
                uses[chosen.trajectory.id] >= most_right
                or uses[rejected.trajectory.id] >= most_wrong
            )
            if is_used_up:
                continue
            num_seen += 1
            pair = pair_of(chosen, rejected, built)
            if pair is not None:
                built.examples.append(pair)
                uses.update((chosen.trajectory.id, rejected.trajectory.id))
        if num_possible > num_seen:
            built.dropped["cap"] += num_possible - num_seen
        return built


def _evenly(right: list[Candidate], wrong: list[Candidate]) -> list[tuple[Candidate, Candidate]]:
    """Every pair once, in an order whose beginnings use each side as evenly as possible."""
    period = math.lcm(len(right), len(wrong))
    # Walking both sides in step meets each pair of one diagonal once; then the next diagonal begins.
    return [
        (right[i % len(right)], wrong[(i + i // period) % len(wrong)])
        for i in range(len(right) * len(wrong))
    ]
