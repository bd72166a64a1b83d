"""Stages of a run: rounds that differ in sampling, examples, objective or rule, e.g. `[sft, preference]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast

from pydantic import BeforeValidator, Field, JsonValue

from orchestrator.acceptance.rule import ACCEPTANCE
from orchestrator.config.mixture import MixtureSettings
from orchestrator.config.sections import (
    PromptSettings,
    RejectionSettings,
    RolloutSettings,
    TrainingSettings,
)
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
    rollout: dict[str, JsonValue] = Field(default_factory=dict)
    """Keys of `rollout` that differ, e.g. `{samples_per_prompt: 16, temperature: 0.8}`: sampling, `max_tokens`, `stop`
    and `mixture`. Held-out prompts are always attempted with what the run and `evaluation` say."""
    prompts: dict[str, JsonValue] = Field(default_factory=dict)
    """Keys of `prompts` that differ: `per_round`, and `train`, a source of the stage's own."""
    acceptance: Annotated[Component.Config, ACCEPTANCE.field()] | None = None
    """Rule of the stage; null takes the run's."""
    on_rejection: dict[str, JsonValue] = Field(default_factory=dict)
    """Keys of `on_rejection` that differ."""


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
class StageSections:
    """The sections that a stage may change, as they hold in its rounds."""

    prompts: PromptSettings
    rollout: RolloutSettings
    training: TrainingSettings
    acceptance: Component.Config
    on_rejection: RejectionSettings
    own_prompts: bool = False
    """The stage changes `prompts`."""


_OF_PROMPTS = frozenset({"train", "per_round"})
_OF_ROLLOUT = frozenset(
    {"samples_per_prompt", "mixture", "temperature", "top_p", "top_k", "max_tokens", "stop"}
)
"""Keys of a section that a stage may change; of the others all but these:"""
_FIXED = {
    "resources": "the same workers serve all stages",
    "workers": "the same workers serve all stages",
    "strategy": "give the stage `strategy`",
    "held_out": "all rounds are measured on the same prompts, else they could not be compared",
    "test": "all rounds are measured on the same prompts, else they could not be compared",
}
"""Keys that no stage may change, with the reason."""

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Stage:
    """A stage with everything resolved."""

    index: int
    name: str
    first_round: int
    last_round: int
    preferences: PreferenceBuilder.Config
    strategy: Component.Config
    sections: StageSections

    @property
    def training(self) -> TrainingSettings:
        """The update of its rounds."""
        return self.sections.training

    @property
    def own_prompts(self) -> bool:
        """Tell whether it draws from a set, or in portions, of its own: then its passes over the set begin with it."""
        return self.sections.own_prompts

    @property
    def samples(self) -> int:
        """Attempts of the serving policy at each prompt; 1 where all would be the same text."""
        return 1 if self.repeats_itself else self.sections.rollout.samples_per_prompt

    @property
    def mixture(self) -> tuple[MixtureSettings, ...]:
        """Samples of earlier policies; none where they would be the same text again."""
        return () if self.repeats_itself else self.sections.rollout.mixture

    @property
    def earlier(self) -> tuple[MixtureSettings, ...]:
        """Shares of the mixture that earlier policies sample."""
        return tuple(share for share in self.mixture if share.role is None)

    @property
    def role_samples(self) -> MixtureSettings | None:
        """The share of the mixture that a role answers, if one does."""
        return next((share for share in self.mixture if share.role is not None), None)

    @property
    def repeats_itself(self) -> bool:
        """Tell whether its strategy gives one text per prompt, however often it is asked."""
        return cast("type[RolloutStrategy]", type(self.strategy).component).repeats_itself


def resolve(
    stages: Sequence[StageSettings],
    run: StageSections,
    *,
    rounds: int,
    preferences: PreferenceBuilder.Config,
) -> tuple[Stage, ...]:
    """The stages in order; without any, the whole run is one.

    Args:
        stages: differences from the run.
        run: the run's own sections.
        rounds: of the run.
        preferences: the run's own builder.

    Raises:
        ValueError: the rounds do not add up, or a stage's keys are wrong; names the stage.
    """
    if not stages:
        return (Stage(0, "main", 1, rounds, preferences, run.rollout.strategy, run),)
    found: list[Stage] = []
    first = 1
    for index, each in enumerate(stages):
        length = _length(stages, index, rounds=rounds, first=first)
        found.append(
            Stage(
                index=index,
                name=each.name,
                first_round=first,
                last_round=first + length - 1,
                preferences=each.preferences or preferences,
                strategy=each.strategy or run.rollout.strategy,
                sections=_overridden(run, each, index),
            )
        )
        first += length
    return tuple(found)


def _length(stages: Sequence[StageSettings], index: int, *, rounds: int, first: int) -> int:
    each, is_last, left = stages[index], index == len(stages) - 1, rounds - first + 1
    length = left if each.rounds is None and is_last else each.rounds
    if length is None:
        raise ValueError(f"stages[{index}].rounds is missing: only the last stage may leave it out")
    if length < 1 or length > left or (is_last and length != left):
        raise ValueError(
            f"the rounds of the stages do not add up to rounds ({rounds}): stages[{index}] ({each.name}) begins "
            f"with round {first} and would have {length}. Fix: change rounds, or the stages' rounds"
        )
    return length


def _overridden(run: StageSections, stage: StageSettings, index: int) -> StageSections:
    at = f"stages[{index}]"
    return StageSections(
        prompts=_merged(run.prompts, stage.prompts, f"{at}.prompts", _OF_PROMPTS),
        rollout=_merged(run.rollout, stage.rollout, f"{at}.rollout", _OF_ROLLOUT),
        training=_merged(run.training, stage.training, f"{at}.training"),
        on_rejection=_merged(run.on_rejection, stage.on_rejection, f"{at}.on_rejection"),
        acceptance=stage.acceptance or run.acceptance,
        own_prompts=bool(stage.prompts),
    )


def _merged(
    base: S, changes: Mapping[str, JsonValue], at: str, allowed: frozenset[str] | None = None
) -> S:
    if not changes:
        return base
    for name in sorted(changes.keys() & type(base).model_fields.keys()):
        if name in _FIXED or (allowed is not None and name not in allowed):
            why = _FIXED.get(name, f"a stage may change {', '.join(sorted(allowed or ()))}")
            raise ValueError(f"{at}.{name} cannot be set: {why}")
    try:
        own = base.model_dump(mode="json")
        changed = {name: _inside(own.get(name), value) for name, value in changes.items()}
        return type(base).model_validate({**own, **changed})
    except ValueError as error:
        raise ValueError(f"{at}: {error}") from error


def _inside(own: JsonValue, change: JsonValue) -> JsonValue:
    """Keys of a plain section (`replay`) are changed one by one; a component is given whole, with its `type`."""
    plain = isinstance(own, dict) and isinstance(change, dict) and "type" not in {*own, *change}
    return {**own, **change} if plain else change  # type: ignore[dict-item]
