"""The rollout strategy seam: how prompts become trajectories on an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from policies.base.component import Component, Family
from policies.base.records import Prompt, Sampling, Trajectory
from policies.base.requirements import Requirements
from policies.base.seeds import derive_seed
from workers.rollout.chat.chat import ChatFormat
from workers.rollout.engine import RolloutEngine


@dataclass(frozen=True)
class RolloutJob:
    """Prompts of one shard and how to sample them."""

    prompts: tuple[Prompt, ...]
    samples_per_prompt: int
    sampling: Sampling
    scope: str
    """Prefix of trajectory ids, e.g. `r3` for round 3, `e3` for its evaluation."""
    seed: int
    first_sample: int = 0
    """Index of the first attempt at each prompt: above 0 where another policy made the ones before."""

    @property
    def sample_indices(self) -> range:
        """Indices of the attempts at each prompt."""
        return range(self.first_sample, self.first_sample + self.samples_per_prompt)

    def trajectory_id(self, prompt: Prompt, sample_index: int) -> str:
        return f"{self.scope}.{prompt.id}.{sample_index}"

    def seed_of(self, prompt: Prompt, sample_index: int, turn: int = 0) -> int:
        return derive_seed(self.seed, self.scope, prompt.id, sample_index, turn)


class RolloutStrategy(Component):
    """Turns prompts into trajectories. Stateless between jobs."""

    samples_policy: ClassVar[bool] = True
    """False: the policy did not write the trajectories, and log-probs are not known."""
    measures_policy: ClassVar[bool] = True
    """False: some attempts are no answers of the policy to the prompt alone, so held-out prompts are not attempted with
    it, and it is given to a stage. So is one that does not sample the policy."""
    repeats_itself: ClassVar[bool] = False
    """True: every attempt at a prompt is the same text, whatever the policy and the seed; a round then makes one."""

    @classmethod
    def usual_requirements(cls, config: Component.Config) -> Requirements:
        """Say how long a trajectory can become, by the names that strategies with several turns use."""
        limits = {name: dict(config).get(name) for name in ("max_turns", "max_trajectory_tokens")}
        return super().usual_requirements(config) + Requirements.model_validate(limits)

    @classmethod
    def refused_prompt(cls, config: Component.Config, prompt: Prompt) -> str | None:
        """Tell why every attempt at a prompt of the training set would be an error, or None; asked before a run."""
        return None

    def __init__(self, config: Component.Config) -> None:
        self.config = config

    def prepare(self, engine: RolloutEngine) -> None:
        """Called once, before the first job: what cannot work with this model or machine is refused here.

        Raises:
            ConfigurationError: e.g. the model's chat template cannot carry this strategy.
            SandboxUnavailableError: a tool runs code, and nothing here can contain it.
        """

    def template_findings(self, chat: ChatFormat, where: str) -> tuple[str, ...]:
        """Try the chat template with conversations like those of this strategy; what a user should know of it.

        Asked by `pawl plan` too, where no engine is: it starts nothing, and costs milliseconds.

        Args:
            chat: of the model.
            where: where the strategy is set, for messages.

        Raises:
            ConfigurationError: the policy would not read what the strategy shows it.
        """
        return ()

    def sample_tools(self) -> tuple[dict[str, Any], ...]:
        """Schemas that the strategy gives to the chat template, besides a prompt's own."""
        return ()

    def close(self) -> None:
        """Give back what the strategy holds."""

    def run(self, job: RolloutJob, engine: RolloutEngine) -> Sequence[Trajectory]:
        """Return a trajectory for each prompt and each of `job.sample_indices`, in prompt order.

        A trajectory that goes wrong is returned with status `error`; only a failure of the engine raises.
        """
        raise NotImplementedError


STRATEGIES = Family("rollout strategy", package="workers.rollout.strategies", base=RolloutStrategy)
