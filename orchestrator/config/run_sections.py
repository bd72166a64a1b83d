"""The sections of a run's configuration: what can be set, with which defaults, and what follows from it."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cached_property
from typing import Annotated

from pydantic import Field, PrivateAttr

from orchestrator.acceptance.rule import ACCEPTANCE
from orchestrator.config.requirements import Placed, placed_components
from orchestrator.config.roles import RoleName, RoleSettings
from orchestrator.config.sections import (
    ClusterSettings,
    EvaluationSettings,
    LimitSettings,
    PolicySettings,
    PromptSettings,
    RejectionSettings,
    RetentionSettings,
    RolloutSettings,
    StorageSettings,
    TrackingSettings,
    TrainingSettings,
    VerifySettings,
)
from orchestrator.config.stages import Stage, StageField, StageSections, resolve
from policies.base.bounds import MAX_WHOLE
from policies.base.component import Component, Settings
from policies.base.component_walk import stated_requirements
from policies.base.records import Sampling
from policies.base.requirements import Hosting
from policies.examples.builder import PREFERENCES, PreferenceBuilder
from policies.plug_ins.stand_ins import StandIns
from workers.judge.judge import JUDGES, Judge
from workers.scoring.feedback_settings import FeedbackSettings
from workers.scoring.metric import METRICS, Metric
from workers.verify.verifier import VERIFIERS, Verifier


class RunSections(Settings):
    """Everything that defines a run."""

    rounds: int = Field(default=1, ge=1, le=100_000)
    """Rounds to run."""
    seed: int = Field(default=0, ge=0, le=MAX_WHOLE)
    """Root of every derived seed."""
    policy: PolicySettings
    """The model that is improved."""
    prompts: PromptSettings
    """Where tasks come from."""
    rollout: RolloutSettings = Field(default_factory=RolloutSettings)
    """How attempts are sampled."""
    roles: dict[RoleName, RoleSettings] = Field(default_factory=dict)
    """Models besides the policy, by the name that they are asked by, e.g. a teacher whose answers become attempts
    (`rollout.mixture`)."""
    verifiers: tuple[Annotated[Verifier.Config, VERIFIERS.field()], ...] = ()
    """Rule-based checks."""
    judges: tuple[Annotated[Judge.Config, JUDGES.field()], ...] = ()
    """Model-based checks."""
    verify: VerifySettings = Field(default_factory=VerifySettings)
    """The worker groups of verifiers and judges."""
    feedback: FeedbackSettings = Field(default_factory=FeedbackSettings)
    """How verdicts add up to one score."""
    preferences: Annotated[PreferenceBuilder.Config, PREFERENCES.field()]
    """How judged attempts become training examples."""
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    """The update."""
    metrics: tuple[Annotated[Metric.Config, METRICS.field()], ...] = ()
    """What is measured of the scored attempts besides what Pawl reports anyway, also on held-out prompts."""
    stages: tuple[StageField, ...] = ()
    """Consecutive stages of the run, e.g. `[sft, preference]`; empty: all rounds are alike."""
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    """The held-out measurement."""
    acceptance: Annotated[Component.Config, ACCEPTANCE.field()] = Field(
        default_factory=lambda: ACCEPTANCE.parse("if_better")
    )
    """Which new policies are kept. `if_better`, the default, rolls back what is clearly worse on the held-out prompts;
    `always` keeps every one."""
    on_rejection: RejectionSettings = Field(default_factory=RejectionSettings)
    """What a rejected round leaves for the next."""
    limits: LimitSettings = Field(default_factory=LimitSettings)
    """When failures stop the round."""
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    """What is kept of finished rounds."""
    cluster: ClusterSettings = Field(default_factory=ClusterSettings)
    """Where the workers run."""
    storage: StorageSettings = Field(default_factory=StorageSettings)
    """Where a copy of the run goes."""
    tracking: TrackingSettings = Field(default_factory=TrackingSettings)
    """Where metrics go."""

    @property
    def evaluation_verifiers(self) -> tuple[Verifier.Config, ...]:
        return self.verifiers if self.evaluation.verifiers is None else self.evaluation.verifiers

    @property
    def evaluation_feedback(self) -> FeedbackSettings:
        """The way in which scores of held-out attempts add up: as in training, but for what counts as right."""
        own = self.evaluation.desirable_at
        return (
            self.feedback if own is None else self.feedback.model_copy(update={"desirable_at": own})
        )

    @property
    def evaluation_sampling(self) -> Sampling:
        """Return what `evaluation` says of each sampling setting, and `rollout` where it says nothing."""
        own, usual = dict(self.evaluation), dict(self.rollout)
        chosen = {n: usual[n] if own[n] is None else own[n] for n in Sampling.model_fields}
        return Sampling(**chosen)

    @cached_property
    def resolved_stages(self) -> tuple[Stage, ...]:
        """The stages with everything resolved, in order; one without `stages`."""
        with nullcontext() if self._plug_ins is None else self._plug_ins.watching():
            own = StageSections(
                prompts=self.prompts,
                rollout=self.rollout,
                training=self.training,
                acceptance=self.acceptance,
                on_rejection=self.on_rejection,
            )
            return resolve(self.stages, own, rounds=self.rounds, preferences=self.preferences)

    @property
    def components(self) -> tuple[Placed, ...]:
        """Every component that the run uses, with its place and what it requires."""
        return placed_components(self, self.resolved_stages)

    def components_of(self, group: str) -> list[Placed]:
        """Those that the workers of one group make."""
        return [each for each in self.components if group in each.groups]

    @property
    def required_code(self) -> list[str]:
        """Functions that components call, and files that decide what they say."""
        needs = [each.needs for each in self.components]
        return [name for each in needs for name in (*each.code, *each.files)]

    @property
    def hosting(self) -> Hosting:
        """Habits of the sampler's engine with the model that it is handed."""
        return stated_requirements(self.rollout.engine).hosting or Hosting()

    def stage_of(self, round_index: int) -> Stage:
        """The stage that a round belongs to; round 0, which only measures, counts to the first."""
        reached = [s for s in self.resolved_stages if s.first_round <= round_index]
        return (reached or list(self.resolved_stages[:1]))[-1]

    def total_samples_of(self, round_index: int) -> int:
        """Attempts at each prompt of a round, earlier policies' included."""
        stage = self.stage_of(round_index)
        return stage.samples + sum(m.samples for m in stage.mixture)

    @property
    def longest_turn(self) -> int:
        """Token budget of the longest turn of any stage, that of measurements included."""
        of_stages = (stage.sections.rollout.max_tokens for stage in self.resolved_stages)
        return max(self.rollout.max_tokens, *of_stages)

    def builder_of(self, round_index: int) -> type[PreferenceBuilder]:
        """Class of a round's preference builder: it says what kind of example it makes."""
        builder = type(self.stage_of(round_index).preferences).component
        assert issubclass(builder, PreferenceBuilder)
        return builder

    _plug_ins: StandIns | None = PrivateAttr(default=None)

    @property
    def plug_ins(self) -> StandIns | None:
        """Return what another process told of the plug-ins; None where there are none, or they were imported here."""
        return self._plug_ins
