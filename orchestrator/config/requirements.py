"""Asks every component of a config what it requires: with its place in the config and the workers that have it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.config.stages import Stage
from policies.base.component import Component, Settings
from policies.base.component_walk import Place, components_in, stated_requirements
from policies.base.requirements import POLICY, ModelRequirement, Requirements

_GROUPS = {
    "rollout": "rollout",
    "verifiers": "verify",
    "feedback": "verify",
    "preferences": "verify",
    "evaluation": "grade",
    "judges": "judge",
    "metrics": "verify",
    "training": "train",
}
"""Worker groups by the section of a component; what the driver itself uses is in none."""
_ALSO = {"metrics": ("grade",)}
"""Further groups that make the components of a section."""
_BY_STAGE = ("preferences", "training")


@dataclass(frozen=True)
class Placed:
    """A component of a config, and what it requires."""

    place: Place
    component: Component.Config
    needs: Requirements

    @property
    def path(self) -> str:
        """Its place as overrides write it. Example: `judges.0.backend`."""
        return ".".join(map(str, self.place))

    @property
    def setting(self) -> str:
        """Its place as messages write it. Example: `judges[0].backend`."""
        return _bracketed(self.place)

    @property
    def group(self) -> str:
        """The worker group that makes it; empty for the driver."""
        inner = self.place[2:] if self.place[0] == "stages" else self.place
        if inner[0] == "roles":
            return f"role-{inner[1]}"
        return "rollout" if inner[0] == "strategy" else _GROUPS.get(str(inner[0]), "")

    @property
    def groups(self) -> tuple[str, ...]:
        """Every group that makes it."""
        return (self.group, *_ALSO.get(str(self.place[0]), ()))

    @property
    def gpus(self) -> int:
        """GPUs that one worker wants for it, where there are some."""
        hosted = 0 if self.needs.hosting is None else self.needs.hosting.gpus
        return max((hosted, *(model.gpus for model in self.needs.models)))

    def other_models(self) -> Iterator[ModelRequirement]:
        """The models that it loads itself and that are not the policy."""
        yield from (model for model in self.needs.models if model.name != POLICY)


def placed_components(config: Settings, stages: Sequence[Stage]) -> tuple[Placed, ...]:
    """Every component that a run uses, once: those of stages where they differ from the run's own.

    Raises:
        ConfigurationError: one cannot say what it requires.
    """
    sections = {name: vars(config)[name] for name in type(config).model_fields}
    own = dict(components_in({n: sections.pop(n) for n in _BY_STAGE} | sections))
    found = {p: c for p, c in own.items() if p[0] not in (*_BY_STAGE, "stages")}
    for stage in stages:
        sections = {"training": stage.training, "prompts": stage.sections.prompts}
        parts = {"preferences": stage.preferences, "acceptance": stage.sections.acceptance}
        for place, component in components_in({**parts, "strategy": stage.strategy, **sections}):
            usual = ("rollout", *place) if place[0] == "strategy" else place
            same = own.get(usual) == component
            found[usual if same else ("stages", stage.index, *place)] = component
    return tuple(Placed(p, c, stated_requirements(c)) for p, c in found.items())


def _bracketed(place: Place) -> str:
    keys = [f"[{key}]" if isinstance(key, int) else f".{key}" for key in place]
    return "".join(keys).removeprefix(".")
