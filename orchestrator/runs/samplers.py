"""Names the version that samples a round: a pure function of the config and of who served before it."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.config.run_config import RunConfig


def sampling_version(config: RunConfig, served: Sequence[int], index: int) -> int:
    """Return the version that samples round `index`: the one that serves, or that served `rollout.ahead` rounds before.

    Args:
        config: the run's.
        served: the version accepted at the end of each round, round 0 first; those up to the sampling one are read.
        index: 1 for the first round that trains, which nothing is sampled ahead of.
    """
    behind = min(config.rollout.ahead, index - 1)
    return served[index - 1 - behind]
