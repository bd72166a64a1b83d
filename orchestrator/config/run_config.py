"""The configuration of a run: its sections, checked where they must fit each other.

Every section refuses unknown keys; no validator changes a value; the resolved tree is written into the
run folder. Importing this module, and loading a config, imports none of ray, vllm, torch, mlflow, trl.
"""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from orchestrator.config.checks import problems
from orchestrator.config.run_sections import RunSections
from policies.base.component import WATCH, Component
from policies.plug_ins.stand_ins import StandIns


class RunConfig(RunSections):
    """Everything that defines a run."""

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        watch = WATCH.get()
        if isinstance(
            watch, StandIns
        ):  # the process that imported the plug-ins has checked the sections
            self._plug_ins = watch
            return self
        found = list(problems(self))
        if found:
            raise ValueError(" | ".join(found))
        return self


def strategies(config: RunConfig) -> list[Component.Config]:
    """Return what a rollout worker may be asked to use: the run's own strategy first, then that of each stage."""
    return [config.rollout.strategy, *(stage.strategy for stage in config.resolved_stages)]


def strategy_index(config: RunConfig, round_index: int) -> int:
    """Index in `strategies` of the one that samples a round."""
    return 1 + config.stage_of(round_index).index
