"""Names the versions that sample a round: a pure function of the config and of who served before it."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.config.run_config import RunConfig


def earlier_version(config: RunConfig, served: Sequence[int], index: int, rounds_ago: int) -> int:
    """Return the version that gives a share of a mixture: what served `rounds_ago` rounds before what samples."""
    behind = min(config.rollout.ahead, index - 1)
    return served[max(0, index - 1 - behind - rounds_ago)]


def sampling_version(config: RunConfig, served: Sequence[int], index: int) -> int:
    """Return the version that samples round `index`: the one that serves, or that served `rollout.ahead` rounds before.

    Args:
        config: the run's.
        served: the version accepted at the end of each round, round 0 first; those up to the sampling one are read.
        index: 1 for the first round that trains, which nothing is sampled ahead of.
    """
    behind = min(config.rollout.ahead, index - 1)
    return served[index - 1 - behind]
