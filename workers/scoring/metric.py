"""The metric seam: a number of your own about the scored attempts at a prompt, joined over a round and reported."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from policies.base.component import Component, Family
from policies.base.errors import PawlError, boundary
from policies.base.measured import ERRORS, KEY, Measured, Reduction, check_finite
from policies.base.records import ScoredGroup

logger = logging.getLogger(__name__)


class Metric(Component):
    """Measures each prompt of a round with its scored attempts, and of the held-out measurement.

    It is reported as `metric/<name>`, or `metric/<name>/<key>` where `measure` gives several numbers; with `eval/`
    before it on held-out prompts. It decides nothing: a prompt on which it fails is left out and counted.
    """

    reduction: ClassVar[Reduction] = Reduction.MEAN
    """The way in which the prompts' numbers become the round's."""

    class Config(Component.Config):
        """Settings that every metric has."""

        name: str | None = Field(default=None, min_length=1, max_length=60, pattern=r"^[\w./:-]+$")
        """Name in reports; by default the type, of a file of your own the class. Must be unique in a run."""

        @property
        def source(self) -> str:
            return self.name or self.type.rpartition(":")[2]

    def __init__(self, config: Config) -> None:
        self.config = config

    def measure(self, group: ScoredGroup) -> float | Mapping[str, float] | None:
        """Return one number, several by name, or None where there is nothing to measure.

        Args:
            group: a prompt, its attempts, and what verifiers and judges said of each; `feedback[i]` is about
                `trajectories[i]`.
        """
        raise NotImplementedError


METRICS = Family("metric", package="workers.scoring.metrics", base=Metric)


def measured(metrics: Sequence[Metric], groups: Sequence[ScoredGroup]) -> dict[str, Any]:
    """Let every metric measure every group; returns entries for the shard's summary, none where nothing is measured.

    `measured` has the numbers; `metric_errors`, by metric, how often it failed and the first error.
    """
    found, failed = Measured(), dict[str, Any]()
    for metric in metrics:
        source = metric.config.source
        for group in groups:
            try:
                with boundary(PawlError, f"metric {source!r} failed on prompt {group.prompt.id!r}"):
                    numbers = _named(source, metric.measure(group))
                    for name, value in numbers.items():  # all of them, or the prompt is left out
                        check_finite(name, value)
                    for name, value in numbers.items():
                        found.add(name, value, metric.reduction)
            except PawlError as error:
                logger.warning("%s", error)
                count, first = failed.get(source, (0, str(error)))
                failed[source] = [count + 1, first[:300]]
    entries: dict[str, Any] = {}
    if numbers := found.summary():
        entries[KEY] = numbers
    if failed:
        entries[ERRORS] = failed
    return entries


def _named(source: str, value: float | Mapping[str, float] | None) -> dict[str, float]:
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return {f"metric/{source}/{key}": float(of_one) for key, of_one in value.items()}
    return {f"metric/{source}": float(value)}
