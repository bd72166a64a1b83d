"""The learning rate of each optimizer step, as a factor of the configured one: warm-up, then the chosen schedule."""

from __future__ import annotations

import math

from workers.training.job import TrainingOptions


def warmup_steps(options: TrainingOptions, num_steps: int) -> int:
    """Steps with a rising learning rate in an update of `num_steps`.

    `warmup_fraction` of the steps, but at least `warmup_min_steps`, and at most half of the update; none when the
    fraction is 0.

    Example: with the defaults 1 step has none, 2 have 1, 5 have 2, 6 to 30 have 3, 40 have 4.
    """
    if options.warmup_fraction == 0:
        return 0
    wanted = max(math.ceil(options.warmup_fraction * num_steps), options.warmup_min_steps)
    longest = max(num_steps // 2, math.floor(options.warmup_fraction * num_steps))
    return min(wanted, longest)


def rate_factor(options: TrainingOptions, num_steps: int, step: int) -> float:
    """Factor of the learning rate in step 0, 1, ... of an update; never 0, so that every step teaches.

    Rises as (step + 1) / (warm-up + 1), reaches 1 in the first step after the warm-up, and then stays (constant) or
    falls to 1 / (steps after the warm-up) (linear), or along half a cosine.
    """
    warmup = warmup_steps(options, num_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min((step - warmup) / max(1, num_steps - warmup), 1.0)
    if options.schedule == "linear":
        return 1 - done
    if options.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0
