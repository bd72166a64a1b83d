"""Tries a world with the Gymnasium interface before a run: which turns can be actions, and what random play returns."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

NUM_EPISODES = 8
MAX_STEPS = 500
SECONDS = 3.0
"""Bounds of random play: it only has to show where returns lie."""
_TRIED = range(-10, 1001)


@dataclass(frozen=True)
class Refused:
    """The reason why no turn can be an action, and what to do."""

    what: str
    fix: str


def actions_refused(
    space: Any, actions: Literal["integer", "text"] | Sequence[str]
) -> Refused | None:
    """Tell why turns read as `actions` are never, or not all, in the world's `action_space`; None when they are, or can
    be.

    A world without an action space takes what it is given. A space with real numbers or several values at once
    (Gymnasium's Box, MultiDiscrete, Dict, ...) has no action that a number, a label or a text is.
    """
    if space is None:
        return None
    factory = (
        "give a factory as `function` whose world takes whole numbers (a gymnasium.ActionWrapper)"
    )
    if actions == "text":
        if any(_takes(space, text) for text in _texts(space)):
            return None
        return Refused("its actions are no texts", f"set actions: integer, or {factory}")
    first = _first(space)
    if actions == "integer":
        if any(_takes(space, number) for number in (first, *_TRIED)):
            return None
        return Refused("its actions are no whole numbers", factory)
    outside = [label for number, label in enumerate(actions) if not _takes(space, first + number)]
    if len(outside) == len(actions):
        return Refused("its actions are no whole numbers, which labels stand for", factory)
    if outside:
        return Refused(
            f"there is none for the label {outside[0]!r}",
            f"name as many labels as there are actions, at most {len(actions) - len(outside)}",
        )
    count = getattr(space, "n", None)
    if count is not None and int(count) > len(actions):
        return Refused(
            f"{len(actions)} labels name {int(count)} actions, and the others can never be taken",
            f"name all {int(count)} actions, in their order",
        )
    return None


def random_returns(world: Any) -> list[float]:
    """Sums of rewards of a few random episodes that came to their end in time; none where actions cannot be drawn."""
    space: Any = getattr(world, "action_space", None)
    if space is None or not hasattr(space, "sample"):
        return []
    deadline = time.monotonic() + SECONDS
    found: list[float] = []
    if hasattr(space, "seed"):
        space.seed(0)
    for episode in range(NUM_EPISODES):
        world.reset(seed=episode)
        total, steps, is_over = 0.0, 0, False
        while not is_over and steps < MAX_STEPS and time.monotonic() < deadline:
            _, reward, terminated, truncated, _ = world.step(space.sample())
            total += float(reward)
            steps += 1
            is_over = bool(terminated or truncated)
        if steps and math.isfinite(total) and (is_over or steps == MAX_STEPS):
            found.append(total)
    return found


def _first(space: Any) -> int:
    start = getattr(space, "start", 0)
    return int(start) if isinstance(start, int) or hasattr(start, "__index__") else 0


def _takes(space: Any, action: object) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Gymnasium warns of what is only being asked here
            return bool(space.contains(action))
    except (TypeError, ValueError, AttributeError):  # a space that cannot even be asked
        return False


def _texts(space: Any) -> list[object]:
    drawn = [space.sample()] if hasattr(space, "sample") else []
    return [text for text in (*drawn, "a", "go north", "") if isinstance(text, str)]
