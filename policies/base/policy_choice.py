"""Chooses the version of the run's own policy that answers in a round, where a config names one by when it served."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Annotated, Literal

from pydantic import Field

from policies.base.bounds import MAX_ROUNDS
from policies.base.settings import Settings


class RoundsAgo(Settings):
    """The version that served some rounds before the newest."""

    rounds_ago: int = Field(ge=1, le=MAX_ROUNDS)
    """How many rounds; the initial version while there are too few."""


PolicyChoice = (
    Annotated[int, Field(ge=0, le=MAX_ROUNDS)] | Literal["initial", "current"] | RoundsAgo
)
"""A number, `initial` (the same as 0), `current` (the one that serves), or `{rounds_ago: n}`."""


def chosen_version(
    choice: PolicyChoice | None, served: Sequence[int], published: Container[int]
) -> int:
    """The number of the version that answers now.

    A number whose version is not published yet stands for the version that serves, until it is.

    Args:
        choice: what the config says; None is `initial`.
        served: the version accepted at the end of each finished round, round 0 first; empty before it.
        published: versions that exist.

    Example:
        >>> chosen_version(2, served=[0, 1], published={0, 1})
        1
        >>> chosen_version(RoundsAgo(rounds_ago=1), served=[0, 1, 2], published={0, 1, 2})
        1
    """
    if not served or choice is None or choice == "initial":
        return 0
    if choice == "current":
        return served[-1]
    if isinstance(choice, RoundsAgo):
        return served[max(0, len(served) - 1 - choice.rounds_ago)]
    return choice if choice in published else served[-1]
