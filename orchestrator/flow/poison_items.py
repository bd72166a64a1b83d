"""Finding the item of a shard that kills its worker: each is tried alone, and what kills again is left out."""

from __future__ import annotations

from collections.abc import Sequence

from workers.cluster.item_filter import Portion

DEATHS_ALONE = 2
"""An item is to blame when its worker died so often over it alone: once may be a coincidence."""


class Trial:
    """The items of one shard at one stage, tried one by one. When none is left the rest is done as a whole."""

    def __init__(self, items: Sequence[str]) -> None:
        self._pending = list(items)
        self._deaths = 0
        self.guilty: list[str] = []

    @property
    def is_open(self) -> bool:
        """Whether an item is still to be tried."""
        return bool(self._pending)

    def portion(self) -> Portion:
        """What the next call is to work on: one item alone, or everything but the guilty."""
        if self._pending:
            return Portion(only=(self._pending[0],))
        return Portion(skip=tuple(self.guilty))

    def survived(self) -> None:
        """The item that was tried killed nobody."""
        self._pending.pop(0)
        self._deaths = 0

    def died(self) -> str | None:
        """The worker died over the item that was tried; returns the item when it is guilty."""
        self._deaths += 1
        if self._deaths < DEATHS_ALONE:
            return None
        guilty = self._pending.pop(0)
        self._deaths = 0
        self.guilty.append(guilty)
        return guilty
