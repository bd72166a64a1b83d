"""Finding the item of a shard that kills its worker: each is tried alone, and what kills again is left out."""

from __future__ import annotations

from collections.abc import Sequence

from workers.cluster.item_filter import ItemFilter

DEATHS_ALONE = 2
"""An item is to blame when its worker died so often over it alone: once may be a coincidence."""


class PoisonSearch:
    """The items of one shard at one stage, tried one by one. When none is left the rest is done as a whole."""

    def __init__(self, items: Sequence[str]) -> None:
        self._pending = list(items)
        self._deaths = 0
        self.poison: list[str] = []

    @property
    def is_open(self) -> bool:
        """Tell whether an item is still to be tried."""
        return bool(self._pending)

    def item_filter(self) -> ItemFilter:
        """Return what the next call is to work on: one item alone, or everything but the poison items."""
        if self._pending:
            return ItemFilter(only=(self._pending[0],))
        return ItemFilter(skip=tuple(self.poison))

    def survived(self) -> None:
        """The item that was tried killed nobody."""
        self._pending.pop(0)
        self._deaths = 0

    def died(self) -> str | None:
        """The worker died over the item that was tried; returns the item when it is the poison."""
        self._deaths += 1
        if self._deaths < DEATHS_ALONE:
            return None
        poison = self._pending.pop(0)
        self._deaths = 0
        self.poison.append(poison)
        return poison
