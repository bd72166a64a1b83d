"""Filters the items of a shard that a call is about: all of them, or one at a time to find what kills its worker."""

from __future__ import annotations

from policies.base.records import Record


class ItemFilter(Record):
    """Part of a shard, by id (prompts for sampling, trajectories for judging). Example: `ItemFilter(skip=("7x8",))`.

    Skipped items are not touched; they are recorded as failed, so that counts add up.
    """

    only: tuple[str, ...] = ()
    """Take these alone; empty takes all."""
    skip: tuple[str, ...] = ()
    """Items in quarantine: each killed its worker more than once."""

    def takes(self, item: str) -> bool:
        """Tell whether `item` is worked on."""
        return item not in self.skip and (not self.only or item in self.only)

    @staticmethod
    def reason(what: str) -> str:
        """The error that a skipped item is recorded with."""
        return f"quarantined: {what} killed its worker each time that it was tried alone"


WHOLE = ItemFilter()
