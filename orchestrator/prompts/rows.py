"""From rows of a data set (files or a hub) to prompts: layout, column mapping, checks, ids, slices.

Every complaint names the place of the row (`file:line`). Bad rows are collected, so that one message tells
all of them; after `MAX_PROBLEMS` the rest of the data set is not read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import chain, islice

from orchestrator.prompts.collected_rows import MAX_PROBLEMS, CollectedRows
from orchestrator.prompts.format_choice import NUM_FIRST, choose
from orchestrator.prompts.row_config import RowConfig
from orchestrator.prompts.row_values import Row, RowError
from orchestrator.prompts.source import PromptSource
from orchestrator.prompts.templates import check_template
from policies.base.errors import InputError, explain
from policies.base.records import Prompt
from policies.base.seeds import derive_rng

logger = logging.getLogger(__name__)


class RowSource(PromptSource):
    """A source that reads rows; a member of the family says only where the rows come from."""

    Config = RowConfig
    config: RowConfig

    def __init__(self, config: RowConfig) -> None:
        super().__init__(config)
        self._notes: tuple[str, ...] = ()

    def rows(self) -> Iterator[Row | RowError]:
        """Yield the rows in order; a row that cannot be read is an error in its place."""
        raise NotImplementedError

    def origin(self) -> str:
        """Tell where the rows come from, for messages."""
        raise NotImplementedError

    def load(self) -> list[Prompt]:
        rows = islice(self.rows(), self.config.limit)
        first = list(islice(rows, NUM_FIRST))
        known = [row.values for row in first if isinstance(row, Row)]
        reading = choose(self.config, known)
        if self.config.template is not None and known:
            check_template(self.config.template, known, reading.answer)
        collected = CollectedRows(self.config, reading)
        for row in chain(first, rows):
            if len(collected.problems) >= MAX_PROBLEMS:
                break
            collected.add(row)
        prompts = collected.checked(self.origin())
        if not prompts:
            raise InputError(
                explain(
                    "there are no prompts in it",
                    value=self.origin(),
                    where="prompts.*",
                    fix="name a data set with at least one row",
                )
            )
        self._notes = (reading.text, *collected.notes)
        return self._slice(prompts)

    def notes(self) -> tuple[str, ...]:
        return self._notes

    def _slice(self, prompts: list[Prompt]) -> list[Prompt]:
        config = self.config
        if config.shuffle_seed is not None:
            derive_rng(config.shuffle_seed, "prompts").shuffle(prompts)
        end = None if config.take is None else config.skip + config.take
        taken = prompts[config.skip : end]
        if not taken:
            raise InputError(
                explain(
                    f"nothing is left of {len(prompts)} prompts of {self.origin()}",
                    value=config.skip,
                    where="prompts.*.skip",
                    fix=f"skip fewer than {len(prompts)}",
                )
            )
        return taken
