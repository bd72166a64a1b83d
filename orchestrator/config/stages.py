"""Stages of a run: consecutive rounds with their own examples, objective and strategy, e.g. `[sft, preference]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast

from pydantic import BeforeValidator, Field, JsonValue

from orchestrator.config.sections import TrainingSettings
from policies.base.bounds import MAX_ROUNDS
from policies.base.component import Component, Settings
from policies.examples.builder import PREFERENCES, PreferenceBuilder
from workers.rollout.strategy import STRATEGIES, RolloutStrategy

PRESETS: dict[str, dict[str, Any]] = {
    "sft": {
        "name": "sft",
        "rounds": 1,
        "preferences": {"type": "imitate"},
        "training": {"loss": {"type": "sft"}},
    },
    "preference": {"name": "preference"},
}
"""What a bare name in `stages` stands for: one round of rejection-sampling fine-tuning, and the run as it is set."""


class StageSettings(Settings):
    """Differences from the run's own sections while the stage lasts."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    """Name in reports and metrics."""
    rounds: int | None = Field(default=None, ge=1, le=MAX_ROUNDS)
    """Rounds of the stage; only the last stage may leave it out: it takes the rest of `rounds`."""
    preferences: Annotated[PreferenceBuilder.Config, PREFERENCES.field()] | None = None
    """Builder of the stage's examples; null takes the run's."""
    strategy: Annotated[Component.Config, STRATEGIES.field()] | None = None
    """Rollout strategy of the stage's rounds, e.g. `demonstrations`; null takes rollout.strategy. Held-out prompts
    are always attempted with rollout.strategy."""
    training: dict[str, JsonValue] = Field(default_factory=dict)
    """Keys of `training` that differ in this stage, e.g. `{loss: {type: sft}, learning_rate: 1.0e-5}`."""


def _preset(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in PRESETS:
        raise ValueError(
            f"no stage is called {value!r}; known: {', '.join(PRESETS)}. "
            "Your own: {name: ..., rounds: ..., training: {...}}"
        )
    return PRESETS[value]


StageField = Annotated[StageSettings, BeforeValidator(_preset)]


@dataclass(frozen=True)
class Stage:
    """A stage with everything resolved."""

    index: int
    name: str
    first_round: int
    last_round: int
    preferences: PreferenceBuilder.Config
    strategy: Component.Config
    training: TrainingSettings

    @property
    def repeats_itself(self) -> bool:
        """Tell whether its strategy gives one text per prompt, however often it is asked."""
        return cast("type[RolloutStrategy]", type(self.strategy).component).repeats_itself


def resolve(
    stages: Sequence[StageSettings],
    *,
    rounds: int,
    preferences: PreferenceBuilder.Config,
    strategy: Component.Config,
    training: TrainingSettings,
) -> tuple[Stage, ...]:
    """The stages in order; without any, the whole run is one.

    Raises:
        ValueError: the rounds do not add up, or a stage's training keys are wrong; names the stage.
    """
    if not stages:
        return (Stage(0, "main", 1, rounds, preferences, strategy, training),)
    found: list[Stage] = []
    first = 1
    for index, each in enumerate(stages):
        is_last = index == len(stages) - 1
        left = rounds - first + 1
        length = left if each.rounds is None and is_last else each.rounds
        if length is None:
            raise ValueError(
                f"stages[{index}].rounds is missing: only the last stage may leave it out"
            )
        if length < 1 or length > left or (is_last and length != left):
            raise ValueError(
                f"the rounds of the stages do not add up to rounds ({rounds}): stages[{index}] ({each.name}) begins "
                f"with round {first} and would have {length}. Fix: change rounds, or the stages' rounds"
            )
        found.append(
            Stage(
                index=index,
                name=each.name,
                first_round=first,
                last_round=first + length - 1,
                preferences=each.preferences or preferences,
                strategy=each.strategy or strategy,
                training=_merged(training, each, index),
            )
        )
        first += length
    return tuple(found)


def _merged(base: TrainingSettings, stage: StageSettings, index: int) -> TrainingSettings:
    for fixed in {"resources", "workers"} & stage.training.keys():
        raise ValueError(
            f"stages[{index}].training.{fixed} cannot be set: the same training workers serve all stages"
        )
    if not stage.training:
        return base
    try:
        return TrainingSettings.model_validate({**base.model_dump(mode="json"), **stage.training})
    except ValueError as error:
        raise ValueError(f"stages[{index}].training: {error}") from error
