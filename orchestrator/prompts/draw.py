"""Draws the prompts that a round works on: without replacement within a pass over the set, reshuffled each pass."""

from __future__ import annotations

from collections.abc import Sequence

from policies.base.errors import ConfigurationError, explain
from policies.base.records import Prompt
from policies.base.seeds import derive_rng


def draw(prompts: Sequence[Prompt], round_index: int, per_round: int, seed: int) -> list[Prompt]:
    """Return the prompts of a round: a function of its arguments alone, so that resume draws the same.

    The rounds read one endless sequence of passes over the set, each pass shuffled anew. Every prompt comes
    once per pass, and never twice in a round: where a round reaches into the next pass, that pass begins
    with prompts which the round does not have yet.

    Args:
        prompts: the whole set, in a fixed order.
        round_index: 1 for the first round that trains.
        per_round: prompts of a round.
        seed: the run's seed.

    Raises:
        ConfigurationError: `per_round` is not between 1 and the number of prompts.
    """
    if not 1 <= per_round <= len(prompts):
        raise ConfigurationError(
            explain(
                f"a round must have between 1 and {len(prompts)} prompts, the size of the training set",
                value=per_round,
                where="prompts.per_round",
                fix=f"use at most {len(prompts)}, or a larger training set",
            )
        )
    if round_index < 1:
        raise ValueError(f"prompts are drawn for rounds from 1 on, not for round {round_index}")
    size = len(prompts)
    first = (round_index - 1) * per_round
    first_pass, last_pass = first // size, (first + per_round - 1) // size
    order: list[int] = []
    orders: list[int] = []
    for pass_index in range(last_pass + 1):
        # Prompts of the round that began in the pass before must not come first in this one.
        num_carried = (pass_index * size) % per_round
        order = _shuffled(
            size, pass_index, seed, order[size - num_carried :], per_round - num_carried
        )
        if pass_index >= first_pass:
            orders.extend(order)
    start = first - first_pass * size
    return [prompts[i] for i in orders[start : start + per_round]]


def _shuffled(
    size: int, pass_index: int, seed: int, carried: list[int], num_head: int
) -> list[int]:
    """An order of one pass whose first `num_head` are none of `carried`."""
    order = list(range(size))
    derive_rng(seed, "draw", pass_index).shuffle(order)
    if not carried:
        return order
    taken = set(carried)
    head = [i for i in order if i not in taken][:num_head]
    chosen = set(head)
    return head + [i for i in order if i not in chosen]
